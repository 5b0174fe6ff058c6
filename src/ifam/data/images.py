"""Image files of every kind, read the same way for training and for prediction."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

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
