"""Reliance on the background as anybody can measure it, beside that by a benchmark's own pairs of pictures.

    python -m benchmarks.any_reliance --models runs/compare-pondbirds/models --selector runs/ifam [--split val]

For every model in a folder of `ifam compare --save_models`: the share of answers that flip when the benchmark shows
the same object on another class's background, and that of `ifam audit --any` on the same images, with objects cut out
by the benchmark's masks and by a selector, and backgrounds from the images themselves. Then the rank correlation
(Spearman) of either with the first over the models, and of the last two, and the bias: the mean difference.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from benchmarks.measure import publish, revision, table
from ifam._typing import Float, Tensor
from ifam.auditing.any_classifier import AnyClassifier, compute_scores
from ifam.auditing.audit_any import select_objects
from ifam.auditing.reliance import measure_flips
from ifam.checkpoints import hub
from ifam.data import Benchmark, TransformedDataset, evenly_spaced, load_benchmark
from ifam.data.base import ImageDataset
from ifam.models.base import Classifier

NAMES = ("benchmark's pairs", "masks", "selector")


def as_classifier(model: Classifier, name: str) -> AnyClassifier:
    """A model as the audit takes it."""
    mean, std = model.normalization
    return AnyClassifier(name, lambda images: model(images).logits, model.image_size, mean, std)


def reliance(model: AnyClassifier, data: dict[str, Any], images: Benchmark, seed: int) -> list[float]:
    """Share of answers that flip, by each of `NAMES`."""

    def answers(pixels: Tensor) -> Tensor:
        return compute_scores(model, pixels.split(32)).argmax(dim=1)

    figures = [float((answers(data["image"]) != answers(data["swapped"])).float().mean())]
    for objects in (data["mask"], data["selected"]):
        usable = objects.flatten(1).any(dim=1) & ~objects.flatten(1).all(dim=1)
        rows = (data["image"][usable], objects[usable], data["label"][usable])
        figures.append(measure_flips(model, *rows, images.class_names, backgrounds=2, seed=seed).overall.flips)
    return figures


def read(examples: ImageDataset, size: tuple[int, int], number: int) -> dict[str, Tensor]:
    """Images, masks, labels and the benchmark's other pictures, with values in 0..1."""
    swapped: Callable[[], ImageDataset] = getattr(examples, "swapped")  # noqa: B009
    plain = ((0.0,) * 3, (1.0,) * 3)
    indices = evenly_spaced(len(examples), number)
    rows, others = ([TransformedDataset(one, size, plain)[index] for index in indices] for one in (examples, swapped()))
    return {
        "image": torch.stack([row["image"] for row in rows]),
        "swapped": torch.stack([row["image"] for row in others]),
        "mask": torch.stack([row["mask"] for row in rows]).bool(),
        "label": torch.tensor([row["label"] for row in rows]),
    }


def agreement(figures: Float[Tensor, "M 3"]) -> list[str]:
    """Rank correlation and bias of two columns at a time, as rows."""
    rows = []
    for one, other in ((1, 0), (2, 0), (2, 1)):
        bias = figures[:, one] - figures[:, other]
        rank = float(spearmanr(figures[:, one], figures[:, other]).statistic)
        rows.append(
            f"{NAMES[one]} against {NAMES[other]}: rank correlation {rank:.2f}, bias {100 * float(bias.mean()):+.1f} "
            f"points ({100 * float(bias.min()):+.1f} to {100 * float(bias.max()):+.1f})"
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every model."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", type=Path, nargs="+", required=True, help="folders of folders of models")
    options.add_argument("--selector", required=True, help="folder of the model that cuts objects out")
    options.add_argument("--benchmark", default="pondbirds")
    options.add_argument("--root", type=Path, help="folder of the images, for benchmarks on disk")
    options.add_argument("--split", default="val")
    options.add_argument("--limit", type=int, default=300, help="images, evenly spaced in the split")
    options.add_argument("--seed", type=int, default=0, help="of the choice of backgrounds")
    options.add_argument("--out", type=Path, help="Markdown file for the table")
    args = options.parse_args(argv)
    images, selector = load_benchmark(args.benchmark, args.root), hub.load(args.selector)
    folders = sorted({file.parent for folder in args.models for file in folder.glob("*/config.json")})
    models = {folder: hub.load(folder) for folder in folders}
    models = {folder: model for folder, model in models.items() if not model.needs_masks}
    data: dict[str, Any] = read(images.split(args.split), selector.image_size, args.limit)
    data["selected"] = select_objects(selector, data["image"])
    rows = [reliance(as_classifier(model, folder.name), data, images, args.seed) for folder, model in models.items()]
    lines = [[f.name, *(f"{100 * share:.1f}" for share in row)] for f, row in zip(models, rows, strict=True)]
    where = f"{args.benchmark}, {len(data['image'])} images of {args.split}, {len(models)} models, ifam at {revision()}"
    publish("\n\n".join([where, table(["", *NAMES], lines), *agreement(torch.tensor(rows))]), args.out)


if __name__ == "__main__":
    main()
