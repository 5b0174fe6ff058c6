"""Read image files of any kind, in the same way for training and prediction."""

import sys
import warnings
from contextlib import suppress
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from ifam.data.members import is_member, open_file, read_start
from ifam.errors import IfamError
from ifam.io import foreign_bytes

# The extra `heif`: Pillow reads HEIC after this registration, which every process that reads images needs. The wheels
# of pillow-heif, which writes HEIC too, contain x265, which is under the GPL.
READS_HEIF = False
with suppress(ImportError):
    import_module("pi_heif").register_heif_opener()
    READS_HEIF = True

# Images with more pixels are not decoded; those of 8 bits would take more than 2 GB, deeper ones up to 5. It is the
# limit of Pillow, which programs can lift.
MAX_PIXELS = 178_956_970
# Pillow, and numpy for masks, can raise anything on a damaged file.
UNREADABLE = (Exception,)
# Possible white values where a file does not state one: floats up to 1, and 8, 10, 12, 14 or 16 bits.
_WHITES = (1, 255, 1023, 4095, 16383, 65535)
# Formats whose readers scale every depth to 16 bits.
_SCALED = ("PPM", "JPEG2000")
# Pillow's letters for big and little endian and the machine's own order.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
# Pixels of more than 8 bits that are scaled at a time.
_BLOCK = 1 << 20
_BITS_PER_SAMPLE, _PLANAR, _MAX_SAMPLE, _SMAX_SAMPLE = 258, 284, 281, 341
# White values guessed in this process, each with the first file that it was guessed for.
_GUESSES: dict[int, Path] = {}


def open_image(source: Path | BytesIO) -> Image.Image:
    """Open an image as `Image.open`, without decoding it, unless it is too large to be decoded.

    Raises:
        ValueError: It states more than `MAX_PIXELS`, which a file of a few kilobytes can do.
        OSError: It is not an image.
    """
    try:
        with warnings.catch_warnings():
            # Of damaged tags; what cannot be read is an error.
            warnings.simplefilter("ignore")
            if isinstance(source, Path) and is_member(source):
                with open_file(source) as file:
                    image = Image.open(BytesIO(file.read()))
                # Formats that are read twice are found again by it.
                image.filename = str(source)
            else:
                image = Image.open(source)
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {MAX_PIXELS:,} pixels; save it smaller") from error
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"cannot identify image file {str(source)!r}") from None
    try:
        check_pixels(*image.size)
    except ValueError:
        image.close()
        raise
    return image


def check_pixels(width: int, height: int) -> None:
    """Refuse the size of an image or mask that would fill the memory.

    Raises:
        ValueError: It has more than `MAX_PIXELS`.
    """
    if width * height > MAX_PIXELS:
        raise ValueError(f"it has {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}; save it smaller")


def load_image(path: str | Path, white: int = 0) -> Image.Image:
    """Read an image of any mode as a viewer would display it.

    EXIF orientation is applied, transparent pixels are blended with white, and color profiles are ignored. Values of
    more than 8 bits are divided by the white value and never stretched to the image's own range, so that images of one
    data set stay comparable. The white value is, in this order, `white`, the one stated by the format (TIFF samples of
    10, 12 or 14 bits, PGM, PPM), or else the smallest of 1 (floating point), 255, 1023, 4095, 16383 and 65535 that no
    value exceeds; where that is not the full range of the type, a warning says so. If there are negative values, black
    is the negative of white.

    Args:
        path: The file; the first frame or page, if there are several.
        white: The value that is white in images of more than 8 bits; 0 for the rule above.

    Returns:
        An RGB image.

    Raises:
        IfamError: The file is not an image, is damaged, has more than `MAX_PIXELS`, or the range of its values is
            unknown.
    """
    if not isinstance(white, int) or white < 0:
        raise IfamError(f"white is {white!r}, but a whole number of at least 0 is expected.")
    path = Path(path)
    try:
        return read_image(path, white)[0]
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def read_image(path: Path, white: int = 0) -> tuple[Image.Image, str]:
    """An image as `load_image` reads it, and how values of more than 8 bits were scaled.

    Args:
        path: The file.
        white: As for `load_image`.

    Returns:
        An RGB image, and a text such as "range 0 to 4095 (assumed)"; an empty one for images of 8 bits.

    Raises:
        Exception: Pillow can raise anything on a damaged file.
    """
    image, scaling = _upright(path, white)
    return _over_white(image), scaling


def to_rgb(image: Image.Image, name: Path) -> Image.Image:
    """An opened image as `load_image` reads a file.

    Args:
        image: Of any mode.
        name: What it is, for warnings.

    Raises:
        Exception: Pillow can raise anything on a damaged image.
    """
    return _over_white(_shown(image, name, 0)[0])


def load_rgba(path: str | Path) -> Image.Image:
    """Read an image as `load_image` does, and keep its transparency.

    Args:
        path: The file.

    Returns:
        An RGBA image, or an RGB image where the file has no transparency.

    Raises:
        IfamError: The file is not an image, is damaged, has more than `MAX_PIXELS`, or the range of its values is
            unknown.
    """
    path = Path(path)
    try:
        return _upright(path, 0)[0]
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> IfamError:
    return IfamError(f"{path} is not a readable image ({why_unreadable(path, error)}); remove it, or replace it.")


def _upright(path: Path, white: int) -> tuple[Image.Image, str]:
    """The image with its EXIF orientation applied, as RGBA where it has transparency and as RGB elsewhere."""
    with open_image(path) as image:
        return _shown(image, path, white)


def _shown(image: Image.Image, path: Path, white: int) -> tuple[Image.Image, str]:
    """As `_upright`, of an opened image; the path is for messages."""
    reduced, scaling = _eight_bits(image, path, white)
    upright = ImageOps.exif_transpose(reduced)
    if upright.has_transparency_data:
        return upright.convert("RGBA"), scaling
    return _lab_to_rgb(upright) if upright.mode == "LAB" else upright.convert("RGB"), scaling


def _over_white(image: Image.Image) -> Image.Image:
    """An RGBA image over white; one without transparency as it is."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def why_unreadable(path: Path, error: Exception) -> str:
    """Why a file cannot be read: its actual content, or the message of the reader without the path."""
    stated = error.strerror if isinstance(error, OSError) else None
    message = " ".join((stated or str(error).replace(f" {str(path)!r}", "")).split()).rstrip(".")
    start = read_start(path, 512)
    foreign = "" if start is None else foreign_bytes(start) or _needs_library(start)
    return foreign or message or type(error).__name__


def _needs_library(start: bytes) -> str:
    """Which library an image needs that is not installed, by its first bytes; empty if none."""
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1") and not READS_HEIF:
        return "it is a HEIC image, and reading those needs `pip install 'ifam[heif]'`"
    return ""


def _eight_bits(image: Image.Image, path: Path, white: int) -> tuple[Image.Image, str]:
    """The image with 8 bits per channel, and how deeper values were scaled."""
    values = _deep_values(image)
    if values is None:
        return image, ""
    flat = values.reshape(-1, values.shape[2] if values.ndim == 3 else 1)
    colors, alpha = (flat[:, :-1], flat[:, -1:]) if flat.shape[1] in (2, 4) else (flat, flat[:, :0])
    finite = colors[np.isfinite(colors)] if colors.dtype.kind == "f" else colors
    if not finite.size:
        raise ValueError("none of its values is a number")
    low, high = float(finite.min()), float(finite.max())
    known = white or _stated_white(image)
    top = known or _guessed_white(image, path, low, high)
    bottom = -top if low < 0 else 0
    opaque = top if alpha.max(initial=0) <= top else 65535
    pixels = np.empty(flat.shape, np.uint8)
    # In blocks, since floats of the whole image would take many times its memory.
    for block in (slice(start, start + _BLOCK) for start in range(0, len(flat), _BLOCK)):
        scaled = (np.nan_to_num(colors[block].astype(np.float64), posinf=top, neginf=bottom) - bottom) / (top - bottom)
        scaled = np.concatenate([scaled, alpha[block] / opaque], axis=1)
        pixels[block] = (scaled * 255).round().clip(0, 255)
    # Pillow has no three-dimensional image of a single channel, and reads two as gray and alpha.
    reduced = Image.fromarray(pixels.reshape(values.shape))
    reduced.getexif().update(image.getexif())
    return reduced, f"range {bottom} to {top}{'' if known else ' (assumed)'}"


def _deep_values(image: Image.Image) -> np.ndarray | None:
    """Values [H, W] or [H, W, C] of an image with more than 8 bits per channel, not yet loaded; None for others."""
    if image.mode[0] in "IF":
        return np.asarray(image)
    bits = _tags(image, _BITS_PER_SAMPLE)
    if len(bits) > 1 and max(bits) > 8 and _tags(image, _PLANAR) == (2,):
        raise ValueError("its 16-bit channels are stored one after another; save it as a 16-bit PNG")
    raw_modes = {_raw_mode(tile) for tile in _tiles(image)}
    if not any(";16" in raw_mode for raw_mode in raw_modes):
        return None
    # Of several channels Pillow keeps the upper 8 bits, where 12-bit values have almost nothing. The lower ones are the
    # upper ones in the other byte order.
    if raw_modes <= {f"{mode};16{order}" for mode in ("RGB", "RGBA") for order in _OTHER_ORDER}:
        with open_image(Path(getattr(image, "filename", ""))) as again:
            _tiles(again)[:] = [_in_other_order(tile) for tile in _tiles(again)]
            lower = np.asarray(again)
        deep = np.asarray(image).astype(np.uint16)
        deep <<= 8
        deep |= lower
        return deep
    if np.asarray(image).max() < 16:
        raise ValueError("its 16-bit values use the lowest 12 bits only; save it in RGB, or with 8 bits")
    return None


def _tiles(image: Image.Image) -> list[Any]:
    """The tiles of an opened file that Pillow will decode."""
    tiles: list[Any] = getattr(image, "tile", [])
    return tiles


def _raw_mode(tile: Any) -> str:
    """Pillow's name of the storage of a tile ("RGB;16B")."""
    arguments = tile[3]
    return str(arguments if isinstance(arguments, str) else (arguments or ("",))[0])


def _in_other_order(tile: Any) -> Any:
    """A tile whose 16-bit values are read in the other byte order."""
    codec, extents, offset, arguments = tile
    raw_mode = _raw_mode(tile)
    swapped = raw_mode[:-1] + _OTHER_ORDER[raw_mode[-1]]
    arguments = swapped if isinstance(arguments, str) else (swapped, *arguments[1:])
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (codec, extents, offset, arguments)


def _tags(image: Image.Image, tag: int) -> tuple[int, ...]:
    """The values of a TIFF tag; empty where it is missing."""
    stated = getattr(image, "tag_v2", {}).get(tag, ())
    return stated if isinstance(stated, tuple) else (stated,)


def _stated_white(image: Image.Image) -> int:
    """The white value stated by the format, 0 where there is none."""
    if image.format in _SCALED:
        return 65535
    bits = max(_tags(image, _BITS_PER_SAMPLE), default=16)
    return 2**bits - 1 if bits in (10, 12, 14) else 0


def _guessed_white(image: Image.Image, path: Path, low: float, high: float) -> int:
    """The smallest usual range that contains the values; warns once for each, unless it is that of the type."""
    # Writers use these tags for the largest possible or for the largest actual value.
    stated = [float(value) for tag in (_MAX_SAMPLE, _SMAX_SAMPLE) for value in _tags(image, tag)]
    highest = max(abs(low), abs(high), *stated) if stated else max(abs(low), abs(high))
    whites = _WHITES if image.mode[0] == "F" else _WHITES[1:]
    white = next((white for white in whites if highest <= white), 0)
    if not white:
        raise ValueError(f"its values go up to {highest:g}; save it with 8 or 16 bits, or state which value is white")
    # An empty image gives no evidence.
    if white not in (1, 65535) and highest > 0 and white not in _GUESSES:
        others = "".join(f" and {known:,} in {first.name}" for known, first in _GUESSES.items())
        warnings.warn(
            f"{path} does not state which value is white; {white:,} is assumed, since no value is larger{others}. If "
            f"that is wrong, set it with --data.white (`load_image(path, white=...)`).",
            stacklevel=2,
        )
    if highest > 0:
        _GUESSES.setdefault(white, path)
    return white


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    """A CIELAB image in sRGB."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if converted is None:
        raise ValueError("it has no colors that can be converted")
    return converted


def orientation(image: Image.Image) -> int | None:
    """The EXIF orientation of an opened image, 1 to 8; None where it states none."""
    known = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"} & set(image.info)
    # `getexif` would decode the whole image to find a chunk behind the pixels.
    if image.format == "PNG" and not known and b"eXIf" not in content_of(image):
        return None
    stated = image.getexif().get(ExifTags.Base.Orientation)
    return stated if stated in range(1, 9) else None


def content_of(image: Image.Image) -> bytes:
    """The bytes of an opened image's file; none of one that was opened in memory."""
    name = getattr(image, "filename", "")
    if not name:
        return b""
    with open_file(Path(name)) as file:
        return file.read()


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image once its EXIF orientation is applied."""
    width, height = image.size
    return (height, width) if (orientation(image) or 1) >= 5 else (width, height)
