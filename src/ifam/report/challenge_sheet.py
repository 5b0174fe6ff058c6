"""Some objects that a background fooled a model about, for people to look at."""

from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvf

from ifam.data.base import evenly_spaced
from ifam.data.records import ImageFiles
from ifam.evaluation.challenge import Challenge, as_bytes, name_of
from ifam.io import replacing
from ifam.report.overlays import contact_sheet, enlarge

_MOST, _SIDE = 24, 160


def write_fooled(challenge: Challenge, objects: ImageFiles, backgrounds: ImageFiles, path: Path) -> Path | None:
    """Draw objects, the background that fooled the model about them, and both together.

    Args:
        challenge: The outcome; at most 24 fooled objects are shown, evenly spread.
        objects: Its objects.
        backgrounds: Its backgrounds.
        path: The picture.

    Returns:
        The path, or None where no object was fooled.

    Raises:
        IfamError: The picture cannot be written.
    """
    if not challenge.fooled:
        return None
    things, scenes = ({name_of(p): i for i, p in enumerate(files.paths)} for files in (objects, backgrounds))
    rows, captions = [], []
    for index in evenly_spaced(len(challenge.fooled), _MOST):
        one = challenge.fooled[index]
        example, scene = objects[things[one.object]], backgrounds[scenes[one.background]]
        image, background = as_bytes(example["image"]), as_bytes(scene["image"])
        panels = (image, background, torch.where(example["mask"], image, background))
        rows.append([enlarge(_picture(panel), _SIDE) for panel in panels])
        captions.append(f"{one.object_class} + background of {one.background_class}: {one.answer}")
    with replacing(path) as beside:
        contact_sheet(rows, captions).save(beside)
    return path


def _picture(image: torch.Tensor) -> Image.Image:
    picture: Image.Image = tvf.to_pil_image(image)
    return picture
