"""The answer to one image, which shows itself in notebooks."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image

from ifam._typing import Bool, Int, Tensor
from ifam.errors import IfamError
from ifam.io import printable
from ifam.prediction.reading import crop_for_display, read_any
from ifam.report.bars import waterfall
from ifam.report.figures import as_figure, picture_path, write_picture
from ifam.report.triptych import triptych

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Flags of a row.
NOTHING, EVERYTHING = "nothing_visible", "nearly_everything_visible"
DISAGREES, NO_CLASS = "selector_disagrees", "no_class_in_set"


@dataclass(frozen=True)
class Maps:
    """What a picture of an image is drawn from besides the image, in a few bytes a patch.

    Attributes:
        parts: Most probable part of each of the selector's patches, the background last.
        num_parts: Number of parts.
        packed: The mask in bits, see `mask`.
        shape: Rows and columns of the mask.
        size: Height and width of the model's input.
        grid: Rows and columns of the predictor's patches.
        white: The value that is white in images of more than 8 bits.
        seen: What of the image the model saw, in words.
    """

    parts: np.ndarray
    num_parts: int
    packed: np.ndarray
    shape: tuple[int, int]
    size: tuple[int, int]
    grid: tuple[int, int]
    white: int
    seen: str

    @property
    def mask(self) -> Bool[Tensor, "H W"]:
        """The mask, True where the predictor saw something."""
        bits = np.unpackbits(self.packed, count=self.shape[0] * self.shape[1])
        return torch.from_numpy(bits.astype(bool)).view(self.shape)

    @property
    def part_maps(self) -> Int[Tensor, "K1 H W"]:
        """1 at the most probable part of each patch, 0 elsewhere."""
        one_hot = torch.nn.functional.one_hot(torch.from_numpy(self.parts.astype(np.int64)), self.num_parts + 1)
        return one_hot.permute(2, 0, 1)


@dataclass(frozen=True)
class Prediction:
    """The answer to one file, or the reason why there is none. In a notebook, it shows itself.

    Attributes:
        path: The file.
        label: Index of the most probable class; None where the file could not be read, as all below but `error`.
        class_name: Its name.
        probability: Its probability.
        top: Names and probabilities of the most probable classes, at most five, best first.
        visible_fraction: Share of the patches in the mask: those that the predictor saw, if the model masks its
            input.
        overlay: The picture of input, parts and visible patches, if pictures were drawn.
        classes: Names of the classes in the image's set (`ifam.evaluation.conformal`), the most probable first; there
            is an answer only where it is one. None without a calibration.
        familiarity: Share of held-out images that are at least as unlike the training images; None if unknown.
        selector_class: The class that the selector alone would answer; None where there is no predictor.
        selector_probability: Its probability.
        prior: Logit of the answer for an image of which nothing is visible, where the model adds up its parts
            (`ModelConfig.aggregation`).
        contributions: What each part adds to it; their sum is the logit of the answer.
        flags: `nothing_visible` (the answer is then the predictor's prior, if the model masks its input),
            `nearly_everything_visible` (more than 90 %), `selector_disagrees`, `no_class_in_set`.
        scaling: How values of more than 8 bits were brought to 8, such as "range 0 to 4095 (assumed)" or "window 40 /
            400" (DICOM); None for images of 8 bits.
        error: Why the file could not be read; None where it could.
    """

    path: Path
    label: int | None = None
    class_name: str | None = None
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    visible_fraction: float | None = None
    overlay: Path | None = None
    classes: tuple[str, ...] | None = None
    familiarity: float | None = None
    selector_class: str | None = None
    selector_probability: float | None = None
    prior: float | None = None
    contributions: tuple[float, ...] | None = None
    flags: tuple[str, ...] = ()
    scaling: str | None = None
    error: str | None = None
    maps: Maps | None = field(default=None, repr=False, compare=False)

    @property
    def empty(self) -> bool:
        """Whether nothing was visible."""
        return NOTHING in self.flags

    @property
    def answer(self) -> str:
        """The class and its probability in words, or that there is none."""
        if self.probability is None:
            return "not read"
        return f"{printable(self.class_name)} · {self.probability:.1%}"

    def draw(self, display: Image.Image | None = None) -> Image.Image:
        """The picture of input, parts and visible patches.

        Args:
            display: The crop that the model sees, in any resolution; read again from the file where it is None.

        Returns:
            An RGB image.

        Raises:
            IfamError: The file is gone or was never read, or the row comes from a table and has no picture.
        """
        maps = self.maps
        if maps is None:
            return self._overlay()
        if display is None:
            try:
                display = crop_for_display(read_any(self.path, maps.white)[0], maps.size, maps.grid)
            except Exception as error:  # Pillow and pydicom can raise anything on a file that has changed
                raise IfamError(f"{self.path} cannot be read again ({error}); predict once more.") from error
        seen = maps.seen if self.classes is None else f"{maps.seen} · set: {printable(in_words(self.classes))}"
        caption = f"{printable(self.path.name)} · {seen}"
        bars = [] if self.prior is None or self.contributions is None else waterfall(self.prior, self.contributions)
        return triptych(display, maps.part_maps.float(), maps.mask, title=self.answer, caption=caption, bars=bars)

    def _overlay(self) -> Image.Image:
        try:
            if self.overlay is not None:
                with Image.open(self.overlay) as picture:
                    return picture.convert("RGB")
        except OSError as error:
            raise IfamError(f"{self.overlay} cannot be read ({error}); draw it again.") from error
        reason = "the file could not be read" if self.error else "it comes from a table without pictures"
        raise IfamError(f"There is no picture of {self.path}: {reason}; predict it again.")

    def plot(self) -> "Figure":
        """The picture as a figure of matplotlib, which pyplot does not manage.

        Raises:
            IfamError: There is no picture, see `draw`.
        """
        return as_figure(self.draw())

    def save(self, path: str | Path) -> Path:
        """Write the picture to a file, in the format of its ending.

        Args:
            path: The file (.png, .jpg, .webp, ...); replaced if it is there.

        Returns:
            The file.

        Raises:
            IfamError: There is no picture, see `draw`; or it cannot be written.
        """
        path = picture_path(path)
        return write_picture(self.draw(), path)

    def _repr_html_(self) -> str:
        """The answer as a notebook shows it, with its picture where one can be drawn."""
        facts = list(self._facts())
        rows = Markup("").join(
            Markup('<tr><td style="text-align:left">{}</td><td style="text-align:left">{}</td></tr>').format(*fact)
            for fact in facts
        )
        title = Markup("<b>{}</b>").format(self.answer)
        try:
            buffer = BytesIO()
            self.draw().save(buffer, "WEBP", quality=82)
        except IfamError:
            picture = Markup("")
        else:
            data = base64.b64encode(buffer.getvalue()).decode()
            shown = '<img src="data:image/webp;base64,{}" alt="{}" style="max-width:100%">'
            picture = Markup(shown).format(data, f"input, parts and what the predictor saw of {self.path.name!r}")
        return str(Markup("<div>{}<br>{}<table>{}</table></div>").format(title, picture, rows))

    def _facts(self) -> Sequence[tuple[str, str]]:
        """What a notebook shows below the picture."""
        facts: list[tuple[str, str | None]] = [("file", printable(self.path)), ("error", self.error)]
        if len(self.top) > 1:
            facts.append(("next", ", ".join(f"{name} {share:.1%}" for name, share in self.top[1:])))
        facts.append(("set", None if self.classes is None else in_words(self.classes)))
        facts.append(("familiarity", None if self.familiarity is None else f"{self.familiarity:.3f}"))
        if self.selector_class is not None and self.selector_probability is not None:
            facts.append(("selector alone", f"{self.selector_class} · {self.selector_probability:.1%}"))
        if self.contributions is not None and self.prior is not None:
            parts = " ".join(f"{value:+.2f} (part {k})" for k, value in enumerate(self.contributions) if value)
            facts.append(("logit", f"{self.prior:.2f} (prior) {parts}"))
        facts += [("flags", ", ".join(self.flags).replace("_", " ")), ("values", self.scaling)]
        return [(name, printable(value)) for name, value in facts if value]


def in_words(classes: Sequence[str], separator: str = " or ") -> str:
    """A set of classes in words."""
    return separator.join(classes) or "(none)"
