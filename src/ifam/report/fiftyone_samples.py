"""An audit as samples of FiftyOne, to sort, filter and look at its images."""

from pathlib import Path
from typing import Any

import numpy as np
from torchvision.transforms.v2 import functional as F

from ifam._typing import Float, Tensor
from ifam.auditing.run import AuditResult, ImageRow
from ifam.errors import IfamError
from ifam.importing import import_extra
from ifam.io import ensure_writable, local_path, replacing


def to_fiftyone(result: AuditResult, folder: str | Path) -> list[Any]:
    """A `fiftyone.Sample` for each image of an audit, to be added to a `fiftyone.Dataset`.

    The fields of a sample are `answer` (with its confidence), `ground_truth` and `group` where they are known, `mask`
    (1 where the predictor saw the image) and `parts` (1 for part 0 and so on, 0 for the background) as segmentations,
    `flips` (whether the answer changes on another background), `answer_after` (the answer there), `influence`,
    `visible`, `unstable`, `right` and `index`, as in `result.images`. Its flags are tags.

    Args:
        result: An audit that was just run: one that was read from a file has no images.
        folder: Folder for the images as the model received them, as PNG files; new or empty.

    Returns:
        One sample for each image, in the order of `result.images`. No database is needed to make them.

    Raises:
        IfamError: The extra `fiftyone` is missing, the audit has no images, or the folder is not empty or cannot be
            written.
    """
    fiftyone = import_extra("fiftyone", "fiftyone", "Samples need")
    if result.pictures is None:
        raise IfamError("The audit was read from a file, which has no images; run it again with `ifam.audit`.")
    target = local_path(folder)
    ensure_writable(target, folder=True, option="folder")
    if target.is_dir() and any(target.iterdir()):
        raise IfamError(f"{target} is not empty; give a new folder for the images.")
    target.mkdir(parents=True, exist_ok=True)
    pictures = result.pictures
    winners = pictures.part_maps.argmax(dim=1)
    num_parts = pictures.part_maps.shape[1] - 1
    # 1 for the first part, 0 for the background.
    parts = ((winners + 1) % (num_parts + 1)).numpy().astype(np.uint8)
    masks = pictures.mask.numpy().astype(np.uint8)
    samples = []
    for number, row in enumerate(result.images):
        path = target / f"{row.index:06d}.png"
        _write(pictures.images[number], path)
        samples.append(_sample(fiftyone, row, path.resolve(), masks[number], parts[number]))
    return samples


def _sample(fiftyone: Any, row: ImageRow, path: Path, mask: np.ndarray, parts: np.ndarray) -> Any:
    """The sample of an image."""
    known = {
        "ground_truth": None if row.label is None else fiftyone.Classification(label=row.label),
        "group": row.group,
        "right": row.right,
    }
    return fiftyone.Sample(
        filepath=str(path),
        tags=list(row.flags),
        index=row.index,
        answer=fiftyone.Classification(label=row.answer, confidence=row.confidence),
        answer_after=fiftyone.Classification(label=row.answer_after),
        flips=row.answer_after != row.answer,
        influence=row.influence,
        visible=row.visible,
        unstable=row.unstable,
        mask=fiftyone.Segmentation(mask=mask),
        parts=fiftyone.Segmentation(mask=parts),
        **{name: value for name, value in known.items() if value is not None},
    )


def _write(image: Float[Tensor, "3 S1 S2"], path: Path) -> None:
    """Write an image of colors between 0 and 1."""
    with replacing(path) as temporary:
        F.to_pil_image(image.clamp(0, 1)).save(temporary, format="PNG")
