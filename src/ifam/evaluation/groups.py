"""Accuracy by class and by group, for the predictor and the selector, and the quality of the mask."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ifam._typing import Tensor
from ifam.data import Benchmark, Prepared, collate
from ifam.masking import patch_mask
from ifam.metrics import GroupAccuracy, MaskIoU
from ifam.progress import progress_bar
from ifam.types import Batch, Output


@dataclass(frozen=True)
class Accuracy:
    """How often one classifier is right.

    Attributes:
        average: Share of all images.
        worst_group: Accuracy of the lowest group.
        groups: Accuracy and number of images of each group.
        classes: Accuracy and number of images of each class.
    """

    average: float
    worst_group: float
    groups: dict[str, dict[str, float | int]]
    classes: dict[str, dict[str, float | int]]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        predictor: The model's answer (for a baseline, its only one).
        selector: The selector's own classification; None for a baseline.
        mask_iou: Intersection over union of mask and truth, pooled over all patches; None where the truth is unknown.
            A patch counts as object where the object covers half of it.
        visible_fraction: Mean share of patches that the predictor saw; None for a baseline.
        empty: Images of which nothing was visible; None for a baseline.
        count: Images evaluated.
        extra: Conditions, for the record.
    """

    predictor: Accuracy
    selector: Accuracy | None
    mask_iou: float | None
    visible_fraction: float | None
    empty: int | None
    count: int
    extra: dict[str, Any] = field(default_factory=dict)


class _Tally:
    """Counts of one classifier."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self.groups = GroupAccuracy(len(benchmark.group_names))
        self.classes = GroupAccuracy(len(benchmark.class_names))

    def update(self, logits: Tensor, batch: Batch) -> None:
        assert batch.groups is not None
        self.groups.update(logits.float(), batch.labels, batch.groups)
        self.classes.update(logits.float(), batch.labels, batch.labels)

    def accuracy(self) -> Accuracy:
        return Accuracy(
            average=self.groups.average(),
            worst_group=self.groups.worst(),
            groups=self.groups.by_name(self.benchmark.group_names),
            classes=self.classes.by_name(self.benchmark.class_names),
        )


def evaluate(
    model: nn.Module,
    benchmark: Benchmark,
    split: str = "test",
    *,
    batch_size: int = 64,
    workers: int = 0,
    label: str = "evaluating",
) -> Evaluation:
    """Classify every image of a split.

    Args:
        model: An `IFAM` or a baseline. Left in the mode it was in.
        benchmark: The data set.
        split: Which of its splits.
        batch_size: Images at a time; changes nothing but speed.
        workers: Processes that load images.
        label: What the progress bar says.

    Returns:
        Accuracies and the quality of the mask.

    Raises:
        IfamError: There is no such split.
    """
    size, normalisation = model.image_size, model.normalisation
    examples = Prepared(benchmark.split(split), size, normalisation)  # type: ignore[arg-type]
    loader = DataLoader(examples, batch_size=batch_size, num_workers=workers, collate_fn=collate)
    predictor, selector, iou = _Tally(benchmark), _Tally(benchmark), MaskIoU()
    visible, empty, two_stage, masks_known = 0.0, 0, False, False
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.inference_mode(), progress_bar() as bar:
        for batch in _tracked(loader, bar, label, len(examples)):
            batch = batch.to(device)
            out = model(batch.images)
            if not isinstance(out, Output):
                predictor.update(out, batch)
                continue
            two_stage = True
            predictor.update(out.logits, batch)
            selector.update(out.selector_logits, batch)
            visible += float(out.visible_fraction.sum())
            empty += int(out.empty.sum())
            if batch.masks is not None:
                masks_known = True
                iou.update(out.mask, patch_mask(batch.masks, (out.mask.shape[1], out.mask.shape[2])))
    model.train(was_training)
    return Evaluation(
        predictor=predictor.accuracy(),
        selector=selector.accuracy() if two_stage else None,
        mask_iou=float(iou.compute()) if masks_known else None,
        visible_fraction=visible / len(examples) if two_stage else None,
        empty=empty if two_stage else None,
        count=len(examples),
    )


def _tracked(loader: Iterable[Batch], bar: Any, label: str, total: int) -> Iterable[Batch]:
    """The batches, with a bar that counts images."""
    task = bar.add_task(label, total=total)
    for batch in loader:
        yield batch
        bar.advance(task, len(batch.images))


@torch.inference_mode()
def hidden_influence(model: Any, examples: Any, count: int = 64, seed: int = 0) -> float:
    """Largest change of any logit when every hidden pixel is replaced by noise, 1e30, infinity and NaN.

    The mask is held fixed. By construction this is exactly 0.

    Args:
        model: An `IFAM`.
        examples: Examples to take images from.
        count: How many of the first images.
        seed: Seed of the noise.
    """
    prepared = Prepared(examples, model.image_size, model.normalisation)
    batch = collate([prepared[i] for i in range(min(count, len(prepared)))])
    model.eval()
    mask = model(batch.images).mask
    logits = model.predictor(batch.images, mask)
    height, width = model.predictor.backbone.patch_size
    hidden = ~mask.repeat_interleave(height, 1).repeat_interleave(width, 2)[:, None]
    noise = torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(seed))
    worst = 0.0
    for other in (
        noise,
        batch.images.roll(1, 0),
        *(torch.full_like(noise, x) for x in (1e30, torch.inf, torch.nan)),
    ):
        changed = model.predictor(torch.where(hidden, other, batch.images), mask)
        difference = (changed - logits).abs().nan_to_num(nan=torch.inf).max()
        worst = max(worst, float(difference))
    return worst
