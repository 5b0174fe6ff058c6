"""A contact sheet of fooled objects."""

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
    """Draw fooled objects, the backgrounds that fooled the model, and their composites.

    Args:
        challenge: The result; at most 24 evenly spaced fooled objects are shown.
        objects: Objects of the challenge.
        backgrounds: Backgrounds of the challenge.
        path: File of the picture.

    Returns:
        The path, or None if no object was fooled.

    Raises:
        IfamError: The picture cannot be written.
    """
    if not challenge.fooled:
        return None
    object_index, background_index = (
        {name_of(p): i for i, p in enumerate(files.paths)} for files in (objects, backgrounds)
    )
    rows, captions = [], []
    for index in evenly_spaced(len(challenge.fooled), _MOST):
        fooled = challenge.fooled[index]
        example = objects[object_index[fooled.object]]
        image = as_bytes(example["image"])
        background = as_bytes(backgrounds[background_index[fooled.background]]["image"])
        panels = (image, background, torch.where(example["mask"], image, background))
        rows.append([enlarge(_picture(panel), _SIDE) for panel in panels])
        captions.append(f"{fooled.object_class} + background of {fooled.background_class}: {fooled.answer}")
    with replacing(path) as temporary:
        contact_sheet(rows, captions).save(temporary)
    return path


def _picture(image: torch.Tensor) -> Image.Image:
    picture: Image.Image = tvf.to_pil_image(image)
    return picture
