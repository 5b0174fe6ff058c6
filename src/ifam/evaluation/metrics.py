"""Metrics over groups and masks, exact for any number of devices and any batch size."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torchmetrics import Metric

from ifam._typing import Float, Int, Tensor
from ifam.distributed import objects_of_processes


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy of one group or class.

    Attributes:
        accuracy: Share of its images that are right.
        count: Number of images.
        low: Lower end of the interval of the accuracy; None if no interval was computed.
        high: Upper end.
    """

    accuracy: float
    count: int
    low: float | None = None
    high: float | None = None


class AccuracyByGroup(Metric):
    """Accuracy of each group, on average, and of the worst group.

    The worst group is the one with the lowest accuracy of all groups that have an image.

    Args:
        num_groups: Number of groups G.
    """

    full_state_update = False
    correct: Tensor
    count: Tensor

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.add_state("correct", torch.zeros(num_groups, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(num_groups, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"], groups: Int[Tensor, " B"]) -> None:
        """Count a batch."""
        right = logits.argmax(dim=1) == labels
        self.count += torch.bincount(groups, minlength=self.num_groups)
        self.correct += torch.bincount(groups[right], minlength=self.num_groups)

    def compute(self) -> Float[Tensor, " G"]:
        """Accuracy of each group, NaN for groups without an image."""
        return self.correct / self.count

    def average(self) -> float:
        """Share of all images that are right."""
        with self.sync_context():
            return float(self.correct.sum() / self.count.sum())

    def worst(self) -> float:
        """Accuracy of the worst group."""
        with self.sync_context():
            accuracy = self.correct[self.count > 0] / self.count[self.count > 0]
            return float(accuracy.min())

    def by_name(self, names: Sequence[str]) -> dict[str, GroupAccuracy]:
        """Accuracy and number of images of each group that has any."""
        with self.sync_context():
            return {
                name: GroupAccuracy(float(correct / count), int(count))
                for name, correct, count in zip(names, self.correct, self.count, strict=True)
                if count > 0
            }


class ExactMean:
    """Mean of a value of each image, to the last bit the same in whatever order the images come.

    The values of all devices are added exactly, and the sum is rounded once (`math.fsum`).
    """

    def __init__(self) -> None:
        self.values: list[float] = []

    def update(self, values: Float[Tensor, " B"]) -> None:
        """Add the values of a batch."""
        self.values += values.double().tolist()

    def mean(self) -> float:
        """The mean over all devices, each of which must call this; NaN where there is no image."""
        values = list(itertools.chain.from_iterable(objects_of_processes(self.values)))
        return math.fsum(values) / len(values) if values else math.nan

    def reset(self) -> None:
        """Forget all values."""
        self.values = []


class MaskIoU(Metric):
    """Intersection over union of predicted and true masks of patches, pooled over all images."""

    full_state_update = False
    intersection: Tensor
    union: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("intersection", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("union", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, mask: Tensor, truth: Tensor) -> None:
        """Count a batch of boolean masks of the same shape."""
        self.intersection += (mask & truth).sum()
        self.union += (mask | truth).sum()

    def known(self) -> bool:
        """Whether any device has counted a patch; the same on all of them, since all must call `compute` or none."""
        with self.sync_context():
            return int(self.union) > 0

    def pooled(self) -> float:
        """`compute` as a number, also on a device that has counted nothing."""
        with self.sync_context():
            return float(self._iou())

    def compute(self) -> Tensor:
        """IoU; 1 where both masks are empty everywhere."""
        return self._iou()

    def _iou(self) -> Tensor:
        return torch.where(self.union > 0, self.intersection / self.union.clamp_min(1), 1.0)
