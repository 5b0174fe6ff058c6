"""Corrections by a simulated user: mask IoU and worst group after `ifam.correct`, for models on their own data.

    python -m benchmarks.corrections MODEL [MODEL ...] [--images 5 10 20 50] [--draws 3] [--split test]
        [--out runs/corrections.json]

Images are drawn at random from the training images. Three users give the same number of labels, where `n` images have
`n * P` patches: one paints the true masks of `n` images; one labels as many random patches of all drawn images, of
which nothing else is known; and one paints only what is wrong, at most ten patches of each of `n` images, so with far
fewer labels. Figures are those of all images of the split: the IoU of the mask, pooled over patches, the accuracy of
the worst group, and the average.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ifam._typing import Bool, Float, Int, Tensor
from ifam.checkpoints import hub
from ifam.data import Benchmark, TransformedDataset, collate, load_benchmark
from ifam.io import write_json
from ifam.models.ifam import IFAM
from ifam.models.masking import make_mask, patch_mask
from ifam.progress import ProgressBar
from ifam.provenance import record
from ifam.training.corrections import fit_prototypes, with_prototypes
from ifam.types import Batch

# Training images that a user may be shown.
_POOL = 600
# Patches that the third user paints on an image.
_STROKES = 10
_BATCH = 50

# Labels of a user: shown and hidden patches of images, which images, and the weight of patches without a label.
Labels = tuple[Int[Tensor, " N"], Bool[Tensor, "N P"], Bool[Tensor, "N P"], float]


@dataclass(frozen=True)
class Known:
    """Images with all that does not depend on prototypes.

    Attributes:
        batches: The images, with their true masks.
        patches: Tokens of the selector.
        truth: True for patches of which at least half is object, on the selector's grid.
    """

    batches: list[Batch]
    patches: Float[Tensor, "N P D"]
    truth: Bool[Tensor, "N P"]


@torch.no_grad()
def known(model: IFAM, benchmark: Benchmark, split: str, most: int | None = None) -> Known:
    """Images of a split, evenly spaced if there are more than `most`."""
    images = TransformedDataset(benchmark.split(split), model.image_size, model.normalization)
    chosen = torch.linspace(0, len(images) - 1, min(most or len(images), len(images))).long().unique().tolist()
    batches, patches, truth = [], [], []
    with ProgressBar() as bar:
        task = bar.add_task(f"tokens of {split}", total=len(chosen))
        for start in range(0, len(chosen), _BATCH):
            batch = collate([images[i] for i in chosen[start : start + _BATCH]])
            assert batch.masks is not None, "the benchmark has masks"
            batches.append(batch)
            patches.append(model.selector.patches(batch.images))
            truth.append(patch_mask(batch.masks, model.selector.backbone.grid).flatten(1))
            bar.advance(task, len(batch.images))
    return Known(batches, torch.cat(patches), torch.cat(truth))


@torch.inference_mode()
def figures(model: IFAM, images: Known) -> dict[str, float]:
    """IoU of the masks, worst group and average."""
    both, either, right, groups = 0, 0, [], []
    for batch, patches in zip(images.batches, images.patches.split(_BATCH), strict=True):
        out = model.classify(batch.images, model.selector.select(patches))
        assert out.mask is not None, "the model masks its input"
        assert batch.masks is not None, "the benchmark has masks"
        truth = patch_mask(batch.masks, (out.mask.shape[1], out.mask.shape[2]))
        both, either = both + int((out.mask & truth).sum()), either + int((out.mask | truth).sum())
        right.append(out.logits.argmax(dim=1) == batch.labels)
        groups.append(batch.groups_or_classes)
    correct, group = torch.cat(right).float(), torch.cat(groups)
    worst = min(float(correct[group == one].mean()) for one in group.unique())
    return {"mask_iou": both / max(either, 1), "worst_group": worst, "average": float(correct.mean())}


def true_masks(pool: Known, count: int, generator: torch.Generator, wrong: Tensor) -> Labels:
    """Every patch of some images."""
    chosen = torch.randperm(len(pool.truth), generator=generator)[:count]
    return chosen, pool.truth[chosen], ~pool.truth[chosen], 1.0


def random_patches(pool: Known, count: int, generator: torch.Generator, wrong: Tensor) -> Labels:
    """As many patches of all images, wherever they are; of the others nothing is known."""
    number = count * pool.truth.shape[1]
    labeled = torch.zeros(pool.truth.numel(), dtype=torch.bool)
    labeled[torch.randperm(len(labeled), generator=generator)[:number]] = True
    labeled = labeled.view_as(pool.truth)
    chosen = labeled.any(dim=1).nonzero()[:, 0]
    return chosen, (labeled & pool.truth)[chosen], (labeled & ~pool.truth)[chosen], 0.0


def wrong_patches(pool: Known, count: int, generator: torch.Generator, wrong: Tensor) -> Labels:
    """A few patches of some images, of those that are wrong in the mask."""
    chosen = torch.randperm(len(pool.truth), generator=generator)[:count]
    order = torch.rand(count, pool.truth.shape[1], generator=generator).masked_fill(~wrong[chosen], 2.0)
    first = order.argsort(dim=1).argsort(dim=1) < _STROKES
    painted = wrong[chosen] & first
    return chosen, painted & pool.truth[chosen], painted & ~pool.truth[chosen], 1.0


USERS: dict[str, Callable[[Known, int, torch.Generator, Tensor], Labels]] = {
    "true masks": true_masks,
    "random patches": random_patches,
    "wrong patches": wrong_patches,
}


def measure(folder: Path, counts: Sequence[int], draws: int, split: str) -> dict[str, Any]:
    """The figures of one model before and after corrections."""
    saved = hub.read(folder)
    model = hub.load(saved)
    assert isinstance(model, IFAM), f"{folder} is not a model of the method ifam"
    benchmark = load_benchmark(saved.extra["benchmark"], saved.extra.get("root"), options=saved.extra.get("data"))
    pool, images = known(model, benchmark, "train", _POOL), known(model, benchmark, split)
    grid = model.selector.backbone.grid
    wrong = make_mask(model.selector.select(pool.patches)).visible.flatten(1).detach() != pool.truth
    start = figures(model, images)
    found: dict[str, Any] = {"split": split, "start": start, "users": {}}
    print(f"{folder}: start {show(start)}", flush=True)
    for user, label in USERS.items():
        for count in counts:
            runs = []
            for draw in range(draws):
                chosen, shown, hidden, keep = label(pool, count, torch.Generator().manual_seed(draw), wrong)
                began = time.perf_counter()
                prototypes = fit_prototypes(
                    model.selector,
                    pool.patches[chosen],
                    shown.unflatten(1, grid),
                    hidden.unflatten(1, grid),
                    keep=keep,
                )
                seconds = time.perf_counter() - began
                labels = int(shown.sum() + hidden.sum())
                runs.append(
                    {**figures(with_prototypes(model, prototypes), images), "seconds": seconds, "labels": labels}
                )
            found["users"].setdefault(user, {})[count] = runs
            print(f"  {user}, {count} images: {show(mean(runs))}", flush=True)
    return found


def mean(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each figure, on average."""
    return {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}


def show(one: dict[str, float]) -> str:
    """Figures in a line."""
    text = f"IoU {one['mask_iou']:.3f}, worst group {one['worst_group']:.1%}, average {one['average']:.1%}"
    return text + (f", {one['labels']:.0f} labels, {one['seconds']:.2f} s" if "seconds" in one else "")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each model, and write all figures."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="+", type=Path)
    options.add_argument("--images", nargs="+", type=int, default=[5, 10, 20, 50])
    options.add_argument("--draws", type=int, default=3)
    options.add_argument("--split", default="test")
    options.add_argument("--out", type=Path, default=Path("runs/corrections.json"))
    given = options.parse_args(argv)
    results: dict[str, Any] = {"conditions": record(), "models": {}}
    for folder in given.models:
        results["models"][str(folder)] = measure(folder, given.images, given.draws, given.split)
        write_json(given.out, results)


if __name__ == "__main__":
    main()
