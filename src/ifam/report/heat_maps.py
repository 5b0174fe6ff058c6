"""Heat maps of images, and their pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch.nn import functional as F

from ifam._typing import Float, Int, Tensor, UInt8
from ifam.errors import IfamError
from ifam.report.figures import as_figure, picture_path, write_picture
from ifam.report.overlays import contact_sheet, enlarge, heat_overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Images in a picture.
_SHOWN = 8


@dataclass(frozen=True, repr=False)
class HeatMaps:
    """One value for each patch: how much it speaks for a class, by a method of attribution. None is negative.

    A map is a statement after the fact: what it leaves out may have been read all the same.

    Attributes:
        maps: The value of each patch; its scale depends on the method. All 0 where nothing speaks for the class.
        targets: The class that each map is of.
        logits: The model's class logits.
        method: The method.
        images: The images, to be drawn.
        class_names: Name of each class, where the model has them.
    """

    maps: Float[Tensor, "B H W"]
    targets: Int[Tensor, " B"]
    logits: Float[Tensor, "B C"]
    method: str
    images: UInt8[Tensor, "B 3 S1 S2"]
    class_names: tuple[str, ...] = ()

    def pixels(self) -> Float[Tensor, "B S1 S2"]:
        """The maps in the pixels of the images, bilinear."""
        size = self.images.shape[2:]
        return F.interpolate(self.maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]

    def overlay(self, index: int = 0, display: Image.Image | None = None) -> Image.Image:
        """A map over its image.

        Args:
            index: Number of the image.
            display: The crop that the model received, in any resolution; the image itself where it is None.

        Raises:
            IfamError: There is no such image.
        """
        if not -len(self.maps) <= index < len(self.maps):
            raise IfamError(f"index is {index}, but there are {len(self.maps)} maps; count from 0.")
        return heat_overlay(self._image(index) if display is None else display, self.maps[index])

    def draw(self) -> Image.Image:
        """Image and map of the first eight images, side by side.

        Raises:
            IfamError: There are none.
        """
        shown = [enlarge(self._image(index)) for index in range(min(len(self.maps), _SHOWN))]
        if not shown:
            raise IfamError("There are no maps to draw; give images.")
        rows = [(image, self.overlay(index, image)) for index, image in enumerate(shown)]
        captions = [self._caption(index) for index in range(len(shown))]
        return contact_sheet(rows, captions, columns=min(2, len(rows)))

    def plot(self) -> "Figure":
        """What `draw` draws, as a figure of matplotlib, which pyplot does not manage."""
        return as_figure(self.draw())

    def save(self, path: str | Path) -> Path:
        """Write what `draw` draws to a file, in the format of its ending (.png, .jpg, .webp, ...).

        Raises:
            IfamError: It has no such ending, or cannot be written.
        """
        path = picture_path(path)
        return write_picture(self.draw(), path)

    def _image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index].permute(1, 2, 0).numpy())

    def _caption(self, index: int) -> str:
        target = int(self.targets[index])
        name = self.class_names[target] if self.class_names else f"class {target}"
        return f"{name} · {float(self.logits[index].softmax(dim=0)[target]):.1%} · {self.method}"

    def __repr__(self) -> str:
        count, rows, columns = self.maps.shape
        return f"Heat maps of {count} images by {self.method}, {rows} x {columns} patches each; `.plot()` draws them."
