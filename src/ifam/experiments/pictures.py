"""Pictures of a comparison: the same images for every method, with what it saw and answered."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from ifam.data import Benchmark, TransformedDataset, collate
from ifam.evaluation.comparisons import Picture, Run
from ifam.evaluation.conformal import Calibration
from ifam.models.base import Classifier, device_of
from ifam.models.contributions import PartContributions, can_explain, explain_output
from ifam.models.timm_interface import features_of, recorded_features
from ifam.report.overlays import part_overlay, predictor_view, save_picture, thumbnail

FOLDER = "pictures"


def first_of_each_group(images: Benchmark, split: str, count: int) -> list[int]:
    """Indices of the first images of each group, independent of results."""
    groups = images.groups(split)
    return [
        index for group in range(len(images.group_names)) for index in (groups == group).nonzero()[:count, 0].tolist()
    ]


@torch.inference_mode()
def draw_pictures(
    model: Classifier,
    images: Benchmark,
    split: str,
    count: int,
    folder: Path,
    row: str,
    calibration: Calibration | None = None,
) -> list[Picture]:
    """Draw the first images of each group, with the answers of a model.

    Args:
        model: The model, in evaluation mode.
        images: The data.
        split: Split to draw from.
        count: Images of each group.
        folder: Folder of the results; pictures are written to its subfolder `pictures/`.
        row: Name for the files of this model.
        calibration: What gives the sets of classes.
    """
    indices, examples = first_of_each_group(images, split, count), images.split(split)
    batch = collate([TransformedDataset(examples, model.image_size, model.normalization)[index] for index in indices])
    batch = batch.to(device_of(model))
    with recorded_features(model) as features:
        out = model.predict_batch(batch)
    sets = None
    if calibration is not None:
        sets = calibration.sets(out.logits, calibration.familiarity(features_of(model, features, len(indices))))
    explained = explain_output(model, batch.images, out) if can_explain(model) else None
    probabilities, answers = out.logits.softmax(dim=1).max(dim=1)
    pictures = []
    for place, index in enumerate(indices):
        example = examples[index]["image"]
        image = thumbnail(example if isinstance(example, Image.Image) else to_pil_image(example))
        drawn: dict[str, Any] = {"image": _save(image, folder, f"{index:05d}-input")}
        if out.mask is not None and model.selects_parts:
            drawn["parts"] = _save(part_overlay(image, out.part_maps[place]), folder, f"{index:05d}-{row}-parts")
            drawn["seen"] = _save(predictor_view(image, out.mask[place]), folder, f"{index:05d}-{row}-seen")
        if explained is not None:
            drawn |= _bars(explained, place)
        pictures.append(
            Picture(
                index=index,
                group=images.group_names[int(batch.groups_or_classes[place])],
                label=images.class_names[int(batch.labels[place])],
                answer=images.class_names[int(answers[place])],
                confidence=float(probabilities[place]),
                classes=None if sets is None else [images.class_names[c] for c in sets[place].nonzero()[:, 0].tolist()],
                **drawn,
            )
        )
    return pictures


def _bars(explained: PartContributions, place: int) -> dict[str, Any]:
    """What the parts contribute to the answer to one of the images."""
    prior, contributions = explained.bars(place)
    return {"prior": prior, "contributions": tuple(contributions), "exact": explained.exact}


def with_files(run: Run, folder: Path) -> Run:
    """A run without pictures whose files are missing, as in a copy of `runs.jsonl` alone."""
    files = [[picture.image, picture.parts, picture.seen] for picture in run.pictures]
    complete = [all((folder / file).is_file() for file in names if file) for names in files]
    return replace(run, pictures=[picture for picture, keep in zip(run.pictures, complete, strict=True) if keep])


def _save(image: Image.Image, folder: Path, name: str) -> str:
    """Write a picture, and return its path relative to the folder of the results."""
    path = f"{FOLDER}/{name}.webp"
    save_picture(image, folder / path)
    return path
