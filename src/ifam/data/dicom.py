"""Read DICOM images as a viewer would display them; needs pydicom, the extra `medical`."""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ifam.data.images import check_pixels
from ifam.errors import IfamError
from ifam.importing import import_extra

# Endings of DICOM files, in lower case.
DICOM = frozenset({".dcm", ".dicom"})
# In window widths, far enough from its center that every function of a window has reached its end.
_FAR = 100


def require_pydicom() -> Any:
    """The library that reads DICOM files.

    Raises:
        IfamError: It is not installed.
    """
    return import_extra("pydicom", "medical", "DICOM files are read with")


def read_dicom(path: Path) -> tuple[Image.Image, str]:
    """An image of one frame in 8 bits, and how its values were brought there.

    Gray values are rescaled as the file states, and black and white are the ends of its (first) window; where it states
    none, those of what its bits can store. They are never stretched to the image's own range, so that images of one
    data set stay comparable. Where the file states that low values are white, they are inverted.

    Args:
        path: The file.

    Returns:
        An RGB image, and a text such as "window 40 / 400"; an empty one for colors, which are taken as they are.

    Raises:
        IfamError: pydicom is not installed.
        Exception: pydicom and its decoders can raise anything on a damaged file.
    """
    pydicom = require_pydicom()
    with warnings.catch_warnings():
        # Of damaged tags; what cannot be read is an error.
        warnings.simplefilter("ignore")
        file = pydicom.dcmread(path)
        frames = int(file.get("NumberOfFrames") or 1)
        check_pixels(int(file.Columns), int(file.Rows) * frames)
        if frames > 1:
            raise ValueError(f"it has {frames} frames; save each as an image of its own")
        pixels = _decoded(file)
        if pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8:
            return Image.fromarray(pixels), ""
        if pixels.ndim != 2:
            raise ValueError(f"one gray picture, or one of 8-bit colors, is expected, not {pixels.shape}")
        values, low, high, scaling = _scaled(file, pixels)
    gray = ((values - low) / (high - low) * 255).round().clip(0, 255).astype(np.uint8)
    if file.get("PhotometricInterpretation") == "MONOCHROME1":
        gray, scaling = 255 - gray, f"{scaling}, inverted"
    return Image.fromarray(gray).convert("RGB"), scaling


def load_dicom(path: Path) -> Image.Image:
    """An image as `read_dicom` reads it.

    Raises:
        IfamError: The file is not a DICOM image, or is damaged.
    """
    try:
        return read_dicom(path)[0]
    except IfamError:
        raise
    except Exception as error:  # see `read_dicom`
        raise IfamError(
            f"{path} is not a readable DICOM image ({_reason(error)}); re-download it, or skip such files with "
            f"skip_bad."
        ) from None


def dicom_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, from its header."""
    try:
        header = require_pydicom().dcmread(path, stop_before_pixels=True)
        width, height = int(header.Columns), int(header.Rows)
        check_pixels(width, height)
        return width, height
    except IfamError:
        raise
    except Exception as error:  # see `read_dicom`
        raise ValueError(_reason(error)) from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _decoded(file: Any) -> np.ndarray:
    """The stored values [H, W], or colors [H, W, 3]."""
    try:
        return np.asarray(import_module("pydicom.pixels").pixel_array(file))
    except RuntimeError as error:
        if "missing dependencies" not in str(error):
            raise
        syntax = file.file_meta.TransferSyntaxUID.name
        raise ValueError(
            f"its pixels are compressed as {syntax}, for which no decoder is installed; save it uncompressed"
        ) from None


def _scaled(file: Any, pixels: np.ndarray) -> tuple[np.ndarray, float, float, str]:
    """Rescaled values, which of them are the ends of the range for display, and what this range is."""
    library = import_module("pydicom.pixels")
    values = library.apply_modality_lut(pixels, file).astype(np.float64)
    center, width = _first(file.get("WindowCenter")), _first(file.get("WindowWidth"))
    if center is not None and width is not None:
        ends = np.array([center - _FAR * width, center + _FAR * width])
        low, high = library.apply_windowing(ends, file)
        return library.apply_windowing(values, file), float(low), float(high), f"window {center:g} / {width:g}"
    lowest = -(2 ** (file.BitsStored - 1)) if file.get("PixelRepresentation", 0) else 0
    stored = np.array([lowest, lowest + 2**file.BitsStored - 1])
    if file.get("ModalityLUTSequence"):
        ends = np.array([0, 2 ** int(file.ModalityLUTSequence[0].LUTDescriptor[2]) - 1])
    else:
        ends = np.sort(library.apply_modality_lut(stored, file).astype(np.float64))
    low, high = map(float, ends)
    return values, low, high, f"range {low:g} to {high:g}"


def _first(stated: Any) -> float | None:
    """The first of the values of an element; None where there is none."""
    values = [stated] if stated is None or isinstance(stated, int | float | str) else list(stated)
    return None if not values or values[0] in (None, "") else float(values[0])
