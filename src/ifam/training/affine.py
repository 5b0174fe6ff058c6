"""The affine transform behind the equivariance loss: forward for images, inverse for part maps.

One transform serves a whole batch, as in PDiscoNet (arXiv 2309.03173) and PDiscoFormer (arXiv 2407.04538).
Angles are in degrees and signs are torchvision's; transforms are about the center of the image.
"""

from dataclasses import dataclass

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from ifam._typing import Float, Tensor
from ifam.errors import IfamError


@dataclass(frozen=True)
class Affine:
    """Rotate, then scale, about the center of the image, then shift. The default is the identity.

    Attributes:
        angle: Degrees, in torchvision's direction: positive is clockwise on the screen.
        translate: Shift `(x, y)` in pixels (or cells, for a map), to the right and down.
        scale: Factor of enlargement, positive.

    Raises:
        IfamError: The scale is not positive.
    """

    angle: float = 0.0
    translate: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise IfamError(f"The affine scale is {self.scale}, but a positive number is expected; give 1 for none.")

    def resized(self, source: tuple[int, int], target: tuple[int, int]) -> "Affine":
        """The same transform for another resolution of the same image: only the shift has a unit.

        Args:
            source: `(height, width)` that the shift refers to.
            target: `(height, width)` that the result refers to.
        """
        x, y = self.translate
        shift = (x * target[1] / source[1], y * target[0] / source[0])
        return Affine(self.angle, shift, self.scale)


def sample_affine(
    image_size: tuple[int, int],
    *,
    degrees: tuple[float, float] = (-90.0, 90.0),
    translate: tuple[float, float] = (0.11, 0.11),
    scale: tuple[float, float] = (0.8, 1.4),
    generator: torch.Generator | None = None,
) -> Affine:
    """Sample a transform uniformly, in the order angle, x-shift, y-shift, scale.

    Args:
        image_size: `(height, width)` in pixels.
        degrees: Lowest and highest angle.
        translate: Largest shift `(x, y)`, either way, as a fraction of width and height; sampled shifts are
            rounded to whole pixels.
        scale: Lowest and highest factor.
        generator: A CPU generator; torch's own by default.
    """

    def uniform(low: float, high: float) -> float:
        return torch.empty(1).uniform_(low, high, generator=generator).item()

    height, width = image_size
    reach_x, reach_y = translate[0] * width, translate[1] * height
    angle = uniform(*degrees)
    shift_x, shift_y = round(uniform(-reach_x, reach_x)), round(uniform(-reach_y, reach_y))
    return Affine(angle, (float(shift_x), float(shift_y)), uniform(*scale))


def transform(images: Float[Tensor, "B C H W"], affine: Affine) -> Float[Tensor, "B C H W"]:
    """Transform images: bilinear, and zero (the mean color, once normalized) outside the image."""
    return _resample(images, affine, InterpolationMode.BILINEAR)


def inverse_transform(
    maps: Float[Tensor, "B K1 H W"], affine: Affine, image_size: tuple[int, int] | None = None
) -> Float[Tensor, "B K1 H W"]:
    """Transform the maps of transformed images back to the original images.

    Two nearest-neighbor resamplings, first the shift and then the rotation and scale: every value is one
    of the given maps (or zero, outside), and the gradient goes to exactly that cell. Each resampling rounds
    to a whole cell, so on a coarse grid this undoes `transform` only roughly.

    Args:
        maps: Maps of the transformed images.
        affine: The transform of the images.
        image_size: `(height, width)` of those images, to convert the shift from pixels to cells of the map.
            None if the shift is in cells already.
    """
    if image_size is not None:
        affine = affine.resized(image_size, (maps.shape[2], maps.shape[3]))
    x, y = affine.translate
    unshift, unturn = Affine(translate=(-x, -y)), Affine(angle=-affine.angle, scale=1 / affine.scale)
    return _resample(_resample(maps, unshift, InterpolationMode.NEAREST), unturn, InterpolationMode.NEAREST)


def _resample(
    images: Float[Tensor, "B C H W"], affine: Affine, interpolation: InterpolationMode
) -> Float[Tensor, "B C H W"]:
    """One affine resampling with zero fill, its coordinates in at least single precision."""
    # The sampling grid is a matrix product: in half precision, or under autocast, it is off by whole pixels.
    half = images.dtype in (torch.float16, torch.bfloat16)
    with torch.autocast(images.device.type, enabled=False):
        out: Tensor = tvf.affine(
            images.float() if half else images,
            angle=affine.angle,
            translate=list(affine.translate),
            scale=affine.scale,
            shear=[0.0, 0.0],
            interpolation=interpolation,
        )
    return out.to(images.dtype)
