"""What a calibration keeps: coverage, answers given and their errors, by group."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.stats import binomtest

from ifam._typing import Bool, Float, Int, Tensor
from ifam.data import Benchmark
from ifam.evaluation.bootstrap import LEVEL, Interval
from ifam.evaluation.conformal import Calibration
from ifam.evaluation.features import LastLayer, last_layer_of
from ifam.models.base import Classifier

# Points of a risk-coverage curve.
_POINTS = 20


@dataclass(frozen=True)
class Coverage:
    """Sets of classes of some images.

    Attributes:
        count: Number of images.
        coverage: Share of the images whose set holds their class.
        interval: Exact binomial interval (95 %) of `coverage`.
        answered: Share of the images whose set is a single class, so that there is an answer.
        several: Share of the images whose set has several classes.
        none: Share of the images whose set is empty.
        error: Share of wrong answers among those that are given; None where none is.
        risk_coverage: Share of the images with an answer and share of wrong ones among these, for answers from the
            surest to all of this group, by the probability of the answer alone; the same limits for all groups.
    """

    count: int
    coverage: float
    interval: Interval
    answered: float
    several: float
    none: float
    error: float | None
    risk_coverage: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class CoverageResult:
    """Content of `calibration.json`.

    Attributes:
        error: Largest share of images whose set may miss their class.
        class_conditional: Whether this holds for each class.
        held_out: Number of held-out images of each class.
        tells_unfamiliar: Whether an image can be so unlike all classes that its set is empty.
        overall: Coverage of all images; None where there were no others than the held-out ones.
        groups: Coverage of each group.
        conditions: Model, data, versions.
        kind: Distinguishes it from other results.
    """

    error: float
    class_conditional: bool
    held_out: dict[str, int]
    tells_unfamiliar: bool
    overall: Coverage | None = None
    groups: dict[str, Coverage] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    kind: str = "calibration"

    @property
    def worst(self) -> tuple[str, Coverage] | None:
        """The group with the lowest coverage, and its name."""
        return min(self.groups.items(), key=lambda one: one[1].coverage, default=None)


def measure_coverage(
    model: Classifier,
    calibration: Calibration,
    benchmark: Benchmark,
    split: str = "test",
    *,
    batch_size: int = 64,
    workers: int = 0,
) -> tuple[Coverage, dict[str, Coverage]]:
    """Coverage of all images of a split, and of each group.

    Args:
        model: The model.
        calibration: Its calibration.
        benchmark: The data set.
        split: Images other than the held-out ones.
        batch_size: Images at a time; affects speed only.
        workers: Processes that load images.

    Raises:
        IfamError: The split does not exist.
    """
    images = last_layer_of(model, benchmark, split, batch_size=batch_size, workers=workers, label="measuring coverage")
    return coverage_by_group(calibration, images, benchmark.group_names)


def coverage_by_group(
    calibration: Calibration, images: LastLayer, names: tuple[str, ...]
) -> tuple[Coverage, dict[str, Coverage]]:
    """Coverage of all images, and of each group that has any.

    Args:
        calibration: The calibration.
        images: Features, logits, classes and groups of the images.
        names: Name of each group.
    """
    sets = calibration.sets(images.logits, calibration.familiarity(images.features))
    confidence, answers = images.logits.softmax(dim=1).max(dim=1)
    limits = torch.quantile(confidence.double(), torch.linspace(0, 1, _POINTS + 1, dtype=torch.float64)[:-1])

    def of(chosen: Bool[Tensor, " N"]) -> Coverage:
        labels = images.labels[chosen]
        return _coverage(sets[chosen], labels, confidence[chosen], answers[chosen] != labels, limits)

    groups: Mapping[str, Tensor] = {name: images.groups == group for group, name in enumerate(names)}
    everything = torch.ones_like(images.labels, dtype=torch.bool)
    return of(everything), {name: of(chosen) for name, chosen in groups.items() if bool(chosen.any())}


def _coverage(
    sets: Bool[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    confidence: Float[Tensor, " N"],
    wrong: Bool[Tensor, " N"],
    limits: Float[Tensor, " L"],
) -> Coverage:
    """Coverage of some images."""
    count, sizes = len(labels), sets.sum(dim=1)
    covered = sets.gather(1, labels[:, None])[:, 0]
    answered = sizes == 1
    estimate = binomtest(int(covered.sum()), count).proportion_ci(LEVEL)
    sure = [confidence >= limit for limit in limits.flip(0)]
    return Coverage(
        count=count,
        coverage=float(covered.double().mean()),
        interval=(float(estimate.low), float(estimate.high)),
        answered=float(answered.double().mean()),
        several=float((sizes > 1).double().mean()),
        none=float((sizes == 0).double().mean()),
        # A set of one class that is not the true one is a wrong answer.
        error=float((~covered[answered]).double().mean()) if bool(answered.any()) else None,
        risk_coverage=tuple(
            (float(one.double().mean()), float(wrong[one].double().mean())) for one in sure if bool(one.any())
        ),
    )
