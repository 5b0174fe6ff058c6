"""What a visitor of the app has done: the image on the table, what was painted, and the model after learning."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ifam._typing import Bool, Float, Tensor
from ifam.app.exploration import Exploration, PlainAnswer
from ifam.data.images import load_image, open_image, why_unreadable
from ifam.errors import IfamError
from ifam.evaluation.conformal import Calibration
from ifam.models.base import Classifier
from ifam.models.ifam import IFAM
from ifam.training.corrections import fit_prototypes, has_enough_paint, save_corrected, with_prototypes

# Visitors of whom anything is kept.
MOST_VISITORS = 100
# Painted images that a visitor may learn from.
_MOST_PAINTED = 200


@dataclass(frozen=True)
class Studio:
    """What all visitors share.

    Attributes:
        model: The model, in evaluation mode.
        source: Its folder or hub id.
        corrected: The folder in which corrected models are saved, as `NAME-corrected-1` and so on; None for none.
        name: The beginning of their names.
        extra: What was saved beside the model.
        calibration: For sets of classes.
        plain: A model that sees the whole image, to compare with.
        max_megapixels: Largest image that is decoded.
        white: The value that is white in images of more than 8 bits, as in training.
    """

    model: IFAM
    source: str = ""
    corrected: Path | None = None
    name: str = "model"
    extra: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    plain: Classifier | None = None
    max_megapixels: float = 50.0
    white: int = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.model.config.class_labels


@dataclass(frozen=True)
class Painted:
    """An image that something was painted on.

    Attributes:
        name: Name of its file.
        digest: SHA-256 of its file.
        patches: Tokens of the selector.
        shown: Where "this" was painted.
        hidden: Where "not this" was painted.
    """

    name: str
    digest: str
    patches: Float[Tensor, "1 P D"]
    shown: Bool[Tensor, "R C"]
    hidden: Bool[Tensor, "R C"]


class Session:
    """One visitor.

    Args:
        studio: What all visitors share.

    Attributes:
        exploration: The image on the table; None before the first.
        name: Its name.
        plain: The answer of the plain model to it.
        notice: What was said last, but for mistakes: it stays while the image is edited.
        number: Which image of the visit it is, from 1, to tell edits of one from edits of the next.
        model: The model that answers: the studio's, or the last that was learned.
        saved: Where that was saved.
        learned: Names of the images that it was learned from.
        left_out: Names of those on which less than half of each patch was painted.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio, self.model = studio, studio.model
        self.exploration: Exploration | None = None
        self.plain: PlainAnswer | None = None
        self.name = ""
        self.notice = ""
        self.number = 0
        self.saved: Path | None = None
        self.learned: tuple[str, ...] = ()
        self.left_out: tuple[str, ...] = ()
        self._digest = ""
        self._painted: dict[str, Painted] = {}
        # Paint on the image on the table that was learned, and is not shown any more.
        self._below: Painted | None = None

    @property
    def calibration(self) -> Calibration | None:
        """Of the model that answers: a corrected one has none."""
        return self.studio.calibration if self.model is self.studio.model else None

    def open_file(self, path: str | Path, name: str = "") -> None:
        """Put an image on the table.

        Args:
            path: Its file.
            name: What it is called.

        Raises:
            IfamError: It is no image, is damaged, or too large; the image before stays.
        """
        path = Path(path)
        name = name or path.name
        try:
            with open_image(path) as image:
                width, height = image.size
            if width * height > self.studio.max_megapixels * 1e6:
                raise IfamError(
                    f"{name} has {width:,} x {height:,} pixels, but up to {self.studio.max_megapixels:g} million are "
                    f"read here; save it smaller."
                )
            content = path.read_bytes()
            self.open_image(load_image(path, self.studio.white), name, hashlib.sha256(content).hexdigest())
        except IfamError as error:
            if error.__cause__ is None:
                raise
            raise IfamError(f"{name} is not a readable image ({_reason(path, error.__cause__)}).") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise IfamError(f"{name} is not a readable image ({_reason(path, error)}).") from error

    def open_image(self, image: Image.Image, name: str, digest: str = "") -> None:
        """Put an image on the table that was read already; what was painted on it before is shown again.

        Args:
            image: The image.
            name: What it is called.
            digest: What tells it from others; of its pixels by default.
        """
        exploration = Exploration(self.model, image, self.calibration)
        plain = None
        if self.studio.plain is not None:
            plain = PlainAnswer(self.studio.plain, image, self.studio.class_names)
        self._remember()
        self.exploration, self.plain, self.name = exploration, plain, name
        self.number += 1
        self._digest = digest or hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()
        self._below = None
        if before := self._painted.get(self._digest):
            exploration.repaint(before.shown, before.hidden)

    def reset(self) -> None:
        """Take back all edits of the image on the table, and do not learn from it."""
        self._painted.pop(self._digest, None)
        self._below = None
        if self.exploration is not None:
            self.exploration.reset()

    @property
    def painted(self) -> list[Painted]:
        """The images that something was painted on, the one on the table included."""
        self._remember()
        return list(self._painted.values())

    def learn(self) -> Path | None:
        """Fit the prototypes to all that was painted, and save the model beside the one before.

        The fit starts from the model of the studio, with everything that was painted in this session, so that nothing
        drifts. The paint is taken off the image on the table, so that it shows what the new model finds by itself; it
        counts the next time, too, but where something else is painted on it.

        Returns:
            The folder of the new model.

        Raises:
            IfamError: Nothing is painted, or the model cannot be saved; then the session stays as it is.
        """
        if self.studio.corrected is None:
            raise IfamError("Learning is switched off here; start the app without `--learn false`.")
        painted = self.painted
        if not painted:
            raise IfamError("Nothing is painted yet; paint “this” or “not this” on the image first.")
        base = self.studio.model
        shown, hidden = _stacked(painted)
        enough = has_enough_paint(base.selector, shown, hidden).tolist()
        left_out = tuple(one.name for one, counts in zip(painted, enough, strict=True) if not counts)
        if any(enough):
            painted = [one for one, counts in zip(painted, enough, strict=True) if counts]
            shown, hidden = _stacked(painted)
        patches = torch.cat([one.patches for one in painted])
        model = with_prototypes(base, fit_prototypes(base.selector, patches, shown, hidden))
        images = [{"name": one.name, "sha256": one.digest} for one in painted]
        known: dict[str, Any] = {"before": base, "source": self.studio.source, "extra": self.studio.extra}
        with _next_folder(self.studio.corrected, self.studio.name) as folder:
            self.saved = save_corrected(model, folder, shown, hidden, images, **known)
        self.model, self.learned, self.left_out = model, tuple(one.name for one in painted), left_out
        if self.exploration is not None:
            self._below = self._painted.get(self._digest)
            self.exploration.reset()
            self.exploration.use(model)
        return self.saved

    def _remember(self) -> None:
        """Keep what is painted on the image on the table."""
        one = self.exploration
        if one is None:
            return
        shown, hidden = one.shown, one.hidden
        if self._below is not None:
            shown, hidden = shown | (self._below.shown & ~hidden), hidden | (self._below.hidden & ~shown)
        self._painted.pop(self._digest, None)
        if not bool((shown | hidden).any()):
            return
        self._painted[self._digest] = Painted(self.name, self._digest, one.patches, shown, hidden)
        while len(self._painted) > _MOST_PAINTED:
            self._painted.pop(next(iter(self._painted)))


class Sessions:
    """The sessions of all visitors, of which the longest unused are closed.

    Args:
        new: Makes one.
        most: Sessions that are kept.
        idle: Seconds after which an unused one is closed.
    """

    def __init__(self, new: Callable[[], Session], most: int = MOST_VISITORS, idle: float = 3600.0) -> None:
        self._new, self._most, self._idle = new, most, idle
        self._all: OrderedDict[str, tuple[Session, float]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._all)

    def get(self, key: str) -> Session:
        """The session of a visitor; a new one for a new visitor, or where the old one was closed."""
        now = time.monotonic()
        with self._lock:
            session = self._all.pop(key)[0] if key in self._all else self._new()
            self._all[key] = session, now
            first = next(iter(self._all))
            while len(self._all) > self._most or now - self._all[first][1] > self._idle:
                del self._all[first]
                first = next(iter(self._all))
        return session

    def close(self, key: str) -> None:
        """Forget a visitor."""
        with self._lock:
            self._all.pop(key, None)


def _stacked(painted: Sequence[Painted]) -> tuple[Bool[Tensor, "B R C"], Bool[Tensor, "B R C"]]:
    """What was painted on several images."""
    return torch.stack([one.shown for one in painted]), torch.stack([one.hidden for one in painted])


_saving = threading.Lock()


@contextmanager
def _next_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder that does not exist: `NAME-corrected-1`, or the next number."""
    with _saving:
        number = 1
        while (parent / f"{name}-corrected-{number}").exists():
            number += 1
        yield parent / f"{name}-corrected-{number}"


def _reason(path: Path, error: BaseException) -> str:
    return why_unreadable(path, error if isinstance(error, Exception) else OSError(str(error)))
