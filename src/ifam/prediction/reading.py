"""Images read and prepared for a model, in any number of processes and always in order."""

import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ifam._typing import Float, Tensor
from ifam.data.base import FitAndCrop
from ifam.data.dicom import DICOM, read_dicom
from ifam.data.images import read_image, why_unreadable
from ifam.data.members import is_file, read_start
from ifam.errors import IfamError
from ifam.interruption import follow_parent
from ifam.models.base import Classifier
from ifam.prediction.sources import Found

# Largest side of displayed images in pixels, the input size of the paper's models.
_DISPLAY = 518
_Size = tuple[int, int]


@dataclass(frozen=True)
class Item:
    """A file that was read, or why it could not be.

    Attributes:
        found: The file.
        display: What the model sees in a resolution for display, if it is drawn.
        scaling: How values of more than 8 bits were brought to 8; empty where there were none.
        error: Why it could not be read; empty where it could.
    """

    found: Found
    display: Image.Image | None = None
    scaling: str = ""
    error: str = ""


@dataclass(frozen=True)
class ReadBatch:
    """Files that were read together.

    Attributes:
        items: The files, in order.
        images: The model's input of those that could be read.
    """

    items: list[Item]
    images: Float[Tensor, "B 3 S1 S2"]


@dataclass(frozen=True)
class Reader(Dataset[tuple[Item, Tensor | None]]):
    """Reads files for a model; small, since every process that reads gets a copy.

    Attributes:
        size: Height and width of the model's input.
        grid: Rows and columns of its mask.
        normalization: Channel means and standard deviations.
        white: The value that is white in images of more than 8 bits (`ifam.data.images.load_image`).
        drawn: Whether pictures are drawn.
    """

    size: _Size
    grid: _Size
    normalization: tuple[tuple[float, ...], tuple[float, ...]]
    white: int = 0
    drawn: bool = False

    def __getitem__(self, found: Found) -> tuple[Item, Tensor | None]:
        """A file, and the model's input where it could be read."""
        try:
            image, scaling = read_any(found.path, self.white)
            pixels = _prepared(image, self.size, self.normalization)
            display = crop_for_display(image, self.size, self.grid) if self.drawn else None
        except Exception as error:  # Pillow and pydicom can raise anything on a damaged file
            return Item(found, error=_reason(found.path, error)), None
        return Item(found, display, scaling), pixels

    def collate(self, read: Sequence[tuple[Item, Tensor | None]]) -> ReadBatch:
        """Files as a batch, in one tensor, since each would need a file descriptor to be sent to another process."""
        pixels = [one for _, one in read if one is not None]
        return ReadBatch([item for item, _ in read], torch.stack(pixels) if pixels else torch.zeros(0, 3, *self.size))


def read_batches(
    reader: Reader, found: Iterable[Found], batch_size: int, workers: int
) -> Generator[ReadBatch, None, None]:
    """Batches of files in their order, of the same images and bits for any number of processes.

    Args:
        reader: Reads a file.
        found: The files, which are looked for as they are needed.
        batch_size: Files in a batch.
        workers: Processes that read; 0 for none besides this one.

    Raises:
        IfamError: A process that reads was ended by the system.
    """
    files = iter(found)
    loader = DataLoader(
        reader,
        batch_sampler=iter(lambda: list(islice(files, batch_size)), []),
        num_workers=workers,
        collate_fn=reader.collate,
        worker_init_fn=follow_parent,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise IfamError(
            "A process that reads images was ended, often since the memory was full; give fewer --workers, and go on "
            "with --resume."
        ) from error


def read_any(path: Path, white: int) -> tuple[Image.Image, str]:
    """An image of any kind, DICOM too, and how its values were brought to 8 bits.

    Raises:
        Exception: Pillow and pydicom can raise anything on a damaged file.
    """
    if not is_file(path):
        kind = "it is a folder" if path.is_dir() else "it is not a regular file" if path.exists() else "it is missing"
        raise NotAFile(kind)
    with warnings.catch_warnings():
        # That a range was assumed is in the row.
        warnings.simplefilter("ignore")
        if path.suffix.lower() in DICOM or (read_start(path, 132) or b"")[128:] == b"DICM":
            return read_dicom(path)
        return read_image(path, white)


class NotAFile(Exception):
    """What was given is no regular file; opening it could wait forever."""


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, NotAFile):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        return why_unreadable(path, error)
    except Exception:  # of a name that no system call takes
        return " ".join(str(error).split()) or type(error).__name__


def preprocess(image: Image.Image, model: Classifier) -> Float[Tensor, "3 S1 S2"]:
    """The model's input from an image: the shorter side resized, the center cropped, normalized.

    Args:
        image: An image of any size and mode.
        model: The model, for its image size and normalization.

    Returns:
        Normalized pixels.
    """
    return _prepared(image, model.image_size, model.normalization)


def _prepared(
    image: Image.Image, size: _Size, normalization: tuple[tuple[float, ...], tuple[float, ...]]
) -> Float[Tensor, "3 S1 S2"]:
    mean, std = normalization
    pixels = FitAndCrop(size)(v2.functional.to_image(image.convert("RGB")))
    pixels = v2.functional.to_dtype(pixels, torch.float32, scale=True)
    return torch.as_tensor(v2.functional.normalize(pixels, list(mean), list(std))).as_subclass(Tensor)


def display_crop(image: Image.Image, model: Classifier) -> Image.Image:
    """The crop that the model sees, in the resolution of the original up to 518 pixels.

    Args:
        image: An image of any size and mode.
        model: The model, for its image size.

    Returns:
        An RGB image, at least as large as the model's input, with a whole number of pixels per patch of the predictor.
    """
    return crop_for_display(image, model.image_size, model.mask_grid)


def crop_for_display(image: Image.Image, size: _Size, grid: _Size) -> Image.Image:
    """What `display_crop` gives, for a model with this input size and grid of its mask."""
    (rows, columns), (height, width) = grid, size
    scale = max(1.0, min(_DISPLAY / min(height, width), image.height / height, image.width / width))
    # Rounded down to patches, so that all are drawn equally large.
    shown = rows * int(scale * height / rows), columns * int(scale * width / columns)
    cropped: Image.Image = FitAndCrop(shown)(image.convert("RGB"))
    return cropped
