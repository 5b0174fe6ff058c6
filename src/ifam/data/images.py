"""Image files of every kind, read the same way for training and for prediction."""

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from ifam._typing import Bool, Tensor
from ifam.errors import IfamError

EXTENSIONS = frozenset({".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# What Pillow raises for files that are damaged, cut off, or no images at all.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def load_image(path: str | Path) -> Image.Image:
    """Read an image of any mode as a viewer would show it.

    Turned as its EXIF data say, transparent pixels over white, 16-bit values divided down to 8 bits. Values
    without a stated range (32-bit and floating point) are stretched from their least to their greatest.

    Args:
        path: The file; of an animation the first picture is taken.

    Returns:
        An RGB image.

    Raises:
        IfamError: The file is no image, or is damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            # Pillow's own conversion would clip everything above 255 to white.
            upright = ImageOps.exif_transpose(_eight_bits(image) if image.mode[0] in "IF" else image)
            if upright.has_transparency_data:
                coloured = upright.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
            return upright.convert("RGB")
    except UNREADABLE as error:
        reason = str(error).replace(f" {str(path)!r}", "") or type(error).__name__
        raise IfamError(
            f"{path} is no image that can be read ({reason}); remove it, or skip such files with skip_bad."
        ) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image with values above 255, brought down to 8 bits."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = float(values.min()), float(values.max())
    if image.mode[0] == "I" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    grey = (values - low) / max(high - low, 1e-12) * 255
    reduced = Image.fromarray(grey.round().astype(np.uint8))
    reduced.getexif().update(image.getexif())
    return reduced


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image once it is turned as its EXIF data say."""
    width, height = image.size
    if image.format == "PNG" and "exif" not in image.info:
        return width, height  # asking for more would decode the whole image
    lies_on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (height, width) if lies_on_its_side else (width, height)


def load_mask(path: str | Path) -> Bool[Tensor, "H W"]:
    """Read a mask: true where any channel is above zero (for palettes, the index), or is true in a `.npy` file.

    Args:
        path: An image, or a numpy array [H, W].

    Raises:
        IfamError: The file is no mask, or is damaged.
    """
    try:
        if str(path).endswith(".npy"):
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                image.load()
                # Opaque is not the same as object: the alpha channel says nothing.
                plain = image.convert("RGB") if image.mode in ("RGBA", "CMYK", "YCbCr") else image
                values = np.asarray(plain.convert("L") if plain.mode == "LA" else plain)
    except UNREADABLE as error:
        raise IfamError(
            f"{path} is no mask that can be read ({error}); remove it, or skip such files with skip_bad."
        ) from error
    return torch.from_numpy((values > 0).any(axis=2) if values.ndim == 3 else values > 0)
