"""Images to begin with."""

from pathlib import Path

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from ifam.data import load_benchmark
from ifam.data.files import list_images
from ifam.data.images import load_image
from ifam.errors import IfamError

# Examples that are shown; of a folder, the first by name.
_DRAWN, _MOST = 4, 12


def drawn_examples() -> list[tuple[Image.Image, str]]:
    """A drawn bird of each group of pondbirds, with its name."""
    images = load_benchmark("pondbirds", options={"num_train": 2, "num_val": 2, "num_test": _DRAWN}).split("test")
    return [(to_pil_image(images[index]["image"]), f"drawn bird {index + 1}") for index in range(len(images))]


def examples_in(folder: Path, white: int = 0) -> list[tuple[Image.Image, str]]:
    """The first images of a folder, with their names.

    Args:
        folder: The folder, which is searched recursively.
        white: The value that is white in images of more than 8 bits.

    Raises:
        IfamError: It is no folder, or none of its files is an image.
    """
    if not folder.is_dir():
        raise IfamError(f"{folder} is not a folder; give a folder of images with --examples.")
    listing = list_images(folder)
    listing.require_images(folder)
    shown: list[tuple[Image.Image, str]] = []
    for path in listing.paths:
        if len(shown) == _MOST:
            break
        try:
            shown.append((load_image(path, white), path.name))
        except IfamError:
            continue
    if not shown:
        raise IfamError(f"None of the images in {folder} can be read; give another folder with --examples.")
    return shown
