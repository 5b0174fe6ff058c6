"""Masks of objects in files: which pixels belong to the object, and their orientation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ifam._typing import Bool, Tensor
from ifam.data.images import UNREADABLE, check_pixels, content_of, open_image, orientation, upright_size, why_unreadable
from ifam.errors import IfamError

# Compression artifacts around edges make these formats unsuitable for object indices.
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "HEIF", "JPEG2000")
# Rotates stored pixels [H, W] upright, by EXIF orientation.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda values: np.rot90(values, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda values: np.rot90(values, -1),
    7: lambda values: np.rot90(values.T, 2),
    8: np.rot90,
}


def load_mask(path: str | Path, image: str | Path | None = None, *, any_value: bool = False) -> Bool[Tensor, "H W"]:
    """Read the mask of an object, upright.

    These pixels count as object:

    - in intensities, those of at least half of white. Intensities are: files of lossy formats (JPEG, lossy WebP),
    floats
      from 0 to 1, and gray values that reach the white of their type (255 or 65535) with values between half and white,
      or with no others than 0 and white;
    - in all other files, whose values are indices of objects or parts, those that are not zero: index images, 0/1,
    label maps
      (with 255 for "unclear", too), colored label maps;
    - in palettes, those with another index than 0, unless the colors are black and white;
    - no transparent pixels; where all opaque pixels are black, the opaque ones.

    A mask is rotated with its image: if it states no EXIF orientation itself and has the size of the image as stored,
    the orientation of the image is applied to it. A mask that only fits the upright image is not rotated.

    Args:
        path: An image, or a numpy array [H, W] or [H, W, C] in a `.npy` file.
        image: The image of the mask.
        any_value: Count every value above zero, in intensities too.

    Raises:
        IfamError: The file is not a mask, or is damaged.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npy":
            # Mapped: memory is only taken for what the file holds, whatever its header says.
            mask = _of_array(np.load(path, mmap_mode="r", allow_pickle=False), any_value)
        else:
            with open_image(path) as opened:
                opened.load()
                mask = _turned(_of_image(opened, any_value), orientation(opened) or 1)
        return torch.from_numpy(np.ascontiguousarray(mask if image is None else turn_with(mask, path, Path(image))))
    except IfamError:
        raise
    except UNREADABLE as error:
        raise IfamError(
            f"{path} is not a readable mask ({why_unreadable(path, error)}); remove it, or skip such files with "
            f"skip_bad."
        ) from error


def to_mask(image: Image.Image) -> Bool[Tensor, "H W"]:
    """The mask of an object in an opened image, by the rule of `load_mask`.

    Raises:
        Exception: Pillow can raise anything on a damaged image.
    """
    return torch.from_numpy(np.ascontiguousarray(_turned(_of_image(image, False), orientation(image) or 1)))


def mask_size(path: Path) -> tuple[int, int]:
    """Width and height of a mask by its header, with its own EXIF orientation applied."""
    if path.suffix.lower() == ".npy":
        height, width = _plane(np.load(path, mmap_mode="r", allow_pickle=False))
        return width, height
    with open_image(path) as image:
        size = upright_size(image)
        image.verify()
        return size


def mask_turn(mask: Path, size: tuple[int, int], image: Path) -> int:
    """The EXIF orientation to apply to the mask of an image; 1 where it is upright already.

    Args:
        mask: The file of the mask.
        size: Its width and height.
        image: The file of the image.
    """
    try:
        with open_image(image) as opened:
            turn, stored = orientation(opened) or 1, opened.size
    except UNREADABLE:
        return 1  # Pillow does not support DICOM, and a damaged image is reported where it is read
    if turn == 1 or size != stored or _states_orientation(mask):
        return 1
    return turn


def turn_with(values: np.ndarray, mask: Path, image: Path) -> np.ndarray:
    """The pixels of a mask [H, W], rotated with its image (see `mask_turn`)."""
    return _turned(values, mask_turn(mask, (values.shape[1], values.shape[0]), image))


def is_ambiguous(size: tuple[int, int], turn: int) -> bool:
    """Whether a rotated mask may have been upright before, by its size."""
    return turn in (2, 3, 4) or (turn > 1 and size[0] == size[1])


def _states_orientation(path: Path) -> bool:
    if path.suffix.lower() == ".npy":
        return False
    with open_image(path) as opened:
        return orientation(opened) is not None


def _turned(values: np.ndarray, turn: int) -> np.ndarray:
    return values if turn == 1 else _TURNS[turn](values)


def _plane(values: np.ndarray) -> tuple[int, int]:
    """Height and width of a mask in an array."""
    if values.dtype.kind not in "biuf":
        raise ValueError(f"it holds {values.dtype}, but numbers or true and false are expected")
    shape = values.shape
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] > 4) or 0 in shape:
        raise ValueError(f"its shape is {shape}, but [H, W] is expected")
    check_pixels(shape[1], shape[0])
    return shape[0], shape[1]


def _of_array(values: np.ndarray, any_value: bool) -> np.ndarray:
    height, width = _plane(values)
    return _is_object(values.reshape(height, width, -1), any_value)


def _of_image(image: Image.Image, any_value: bool) -> np.ndarray:
    """The object's pixels in an opened image."""
    if image.mode in ("P", "PA"):
        index = np.asarray(image.getchannel(0) if image.mode == "PA" else image)
        colors = {tuple(np.unique(np.asarray(image.convert("RGB"))[index == value])) for value in np.unique(index)}
        # Black and white are intensities; in other palettes the index decides.
        if not colors <= {(0,), (255,)} or len(colors) == 1:
            return index > 0
        image = image.convert("RGB")
    lossy = image.format in _LOSSY or image.info.get("compression") == "jpeg"
    if image.format == "WEBP":
        lossy = b"VP8L" not in content_of(image)[:4096]
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA") and image.mode[0] not in "IF":
        image = image.convert("RGBA" if image.mode in ("La", "RGBa") else "RGB")
    values = np.asarray(image)
    values = values[..., None] if values.ndim == 2 else values
    if image.mode in ("LA", "RGBA"):
        values, alpha = values[..., :-1], values[..., -1]
        opaque = alpha >= 128
        if not values[opaque].any() and not opaque.all():
            return np.asarray(opaque)
        values = values * opaque[..., None]
    return np.asarray(values.max(axis=2) >= 128) if lossy and not any_value else _is_object(values, any_value)


def _is_object(values: np.ndarray, any_value: bool) -> np.ndarray:
    """Which pixels of a lossless file [H, W, C] belong to the object [H, W]."""
    if values.dtype.kind == "f" and (np.isnan(values).any() or values.min() < 0):
        raise ValueError("it holds NaN or negative values, but 0 for background and 1 for the object are expected")
    colored = bool((values != values[..., :1]).any())
    brightest = values.max(axis=2)
    white = _white(brightest) if not (any_value or colored) else None
    return np.asarray(brightest > 0 if white is None else brightest >= white / 2)


def _white(values: np.ndarray) -> float | None:
    """The white value of a mask of intensities; None where the values are indices of objects."""
    highest = values.max()
    if values.dtype.kind == "f" and highest <= 1:
        return 1.0
    if highest not in (255, 65535):
        return None
    between = values[(values > 0) & (values < highest)]
    # Soft edges have values in the upper half; indices of objects with 255 for "unclear" rarely do.
    return float(highest) if not between.size or bool((between >= highest / 2).any()) else None
