"""`ifam demo`: a comparison of a plain ViT and iFAM on synthetic birds with misleading backgrounds, with pictures."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ifam.data import PondbirdsConfig
from ifam.errors import IfamError
from ifam.evaluation.comparisons import ComparisonResult
from ifam.experiments.compare import run_comparison
from ifam.experiments.comparison import Comparison, Row
from ifam.io import check_absent, replacing
from ifam.report.overlays import contact_sheet, enlarge
from ifam.training.presets import TINY_LOSS, TINY_MODEL, TINY_TRAIN

ABOUT = (
    "Drawn birds: swimmers and perchers, on water or in a forest. "
    f"In {PondbirdsConfig().correlation:.0%} of the training and validation images the "
    "background agrees with the bird; in the test set it says nothing, so half of the test images contradict what "
    "the training images suggest."
)


def demo_comparison(seed: int = 0, seeds: int = 1, quick: bool = False) -> Comparison:
    """The comparison of the demo, the same as recipes/compare/demo.yaml.

    Args:
        seed: First seed, of data and training.
        seeds: Number of seeds.
        quick: Little data and one epoch, to check that everything runs.

    Raises:
        IfamError: There is no seed.
    """
    if seeds < 1:
        raise IfamError(f"seeds is {seeds}, but at least 1 is needed.")
    train = replace(TINY_TRAIN, epochs=1, batch_size=32) if quick else TINY_TRAIN
    data: dict[str, Any] = {"num_train": 200, "num_val": 100, "num_test": 200} if quick else {}
    rows = tuple(Row(method, method, False, TINY_MODEL, train, TINY_LOSS) for method in ("plain_vit", "ifam"))
    return Comparison(
        rows, tuple(range(seed, seed + seeds)), "pondbirds", data=data, num_resamples=0, pictures=3, about=ABOUT
    )


def run_demo(
    comparison: Comparison, out: Path, *, threads: int | None = None, overwrite: bool = False
) -> ComparisonResult:
    """Train, evaluate and draw.

    Args:
        comparison: Result of `demo_comparison`.
        out: Folder for `compare.json`, `runs.jsonl`, `pictures.png` and `models/`.
        threads: CPU threads; the number of cores if None.
        overwrite: Repeat existing runs with other settings.

    Raises:
        IfamError: The folder cannot be written or contains other files.
    """
    if not (out / "runs.jsonl").exists():
        check_absent([out / name for name in ("report.html", "pictures.png")], overwrite)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or os.cpu_count() or 1)
    try:
        result = run_comparison(comparison, out, save_models=True, overwrite=overwrite)
    finally:
        torch.set_num_threads(before)
    # Of pictures that were removed since a run was made, there is no sheet.
    if all(row.pictures for row in result.rows):
        with replacing(out / "pictures.png") as temporary:
            _contact_sheet(result, out).save(temporary)
    return result


def _contact_sheet(result: ComparisonResult, folder: Path) -> Image.Image:
    """The first image of each group: input, parts, what the predictor saw, and both answers."""
    plain, ifam = result.rows
    panels, captions = [], []
    groups = set()
    for plain_picture, picture in zip(plain.pictures, ifam.pictures, strict=True):
        if picture.group not in groups and picture.parts and picture.seen:
            groups.add(picture.group)
            panels.append([_open(folder / file) for file in (picture.image, picture.parts, picture.seen)])
            captions.append(f"{picture.group}.  plain ViT: {plain_picture.answer};  iFAM: {picture.answer}")
    return contact_sheet(panels, captions)


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return enlarge(image)


__all__ = ["demo_comparison", "run_demo"]
