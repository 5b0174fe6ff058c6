"""Background gap: the same objects on different backgrounds, as in ImageNet-9 (arXiv 2006.09994).

A benchmark lists its treatments (`Benchmark.treatments`), each a split, and the two whose difference is the background
gap (`Benchmark.gap`). If a split provides `objects`, the object that each image shows, the interval of the gap
resamples objects, so both treatments contain the same ones; otherwise each is resampled independently.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ifam._typing import Int, Tensor
from ifam.data import Benchmark, ImageDataset
from ifam.evaluation.accuracy import Evaluation, summarize_rows
from ifam.evaluation.bootstrap import Interval, interval, mean, resamples
from ifam.evaluation.collect import Rows, collect
from ifam.models.base import Classifier
from ifam.models.interventions import Intervention


@dataclass(frozen=True)
class Gap:
    """Difference of accuracy between two treatments.

    Attributes:
        treatments: Names of the two treatments.
        predictor: Difference of the predictor's accuracies.
        selector: Difference of the selector's accuracies; None for models without one.
        intervals: Bootstrap interval of each, by name.
        pairing: How images were resampled.
    """

    treatments: tuple[str, str]
    predictor: float
    selector: float | None
    intervals: dict[str, Interval]
    pairing: str


@dataclass(frozen=True)
class VariantResults:
    """Evaluations of all treatments.

    Attributes:
        treatments: Evaluations by name.
        missing: Treatments without images.
        gap: None if one of its two treatments is missing, or the benchmark defines none.
    """

    treatments: dict[str, Evaluation]
    missing: tuple[str, ...]
    gap: Gap | None


def evaluate_treatments(
    model: Classifier,
    benchmark: Benchmark,
    *,
    interventions: Sequence[Intervention] = (),
    num_resamples: int = 1000,
    seed: int = 0,
    **settings: Any,
) -> VariantResults:
    """Evaluate every treatment that has images.

    Args:
        model: An `IFAM` or a baseline.
        benchmark: A data set with treatments.
        interventions: Changes to the selection of every image.
        num_resamples: Resamples of the bootstrap intervals; 0 for none.
        seed: Seed of the resamples.
        settings: Further arguments, as for `ifam.evaluation.collect.collect`.
    """
    present = [name for name in benchmark.treatments if name in benchmark.splits]
    rows, evaluations = {}, {}
    for name in present:
        (rows[name],) = collect(model, benchmark, name, [interventions], label=name, **settings)
        evaluations[name] = summarize_rows(model, rows[name], benchmark, name, num_resamples, seed)
    gap = None
    if benchmark.gap is not None and all(name in rows for name in benchmark.gap):
        gap = _gap(benchmark, benchmark.gap, [rows[name] for name in benchmark.gap], num_resamples, seed)
    return VariantResults(evaluations, tuple(name for name in benchmark.treatments if name not in present), gap)


def _gap(benchmark: Benchmark, names: tuple[str, str], rows: Sequence[Rows], number: int, seed: int) -> Gap:
    """The difference, with its interval over resampled objects."""
    objects, total, pairing = _same_objects([benchmark.split(name) for name in names])
    classifiers = [name for name in ("predictor", "selector") if f"{name}.right" in rows[0]]

    def difference(classifier: str, weights: Tensor) -> Tensor:
        first, second = (
            mean(table[f"{classifier}.right"], weights[:, index]) for table, index in zip(rows, objects, strict=True)
        )
        return first - second

    ones = torch.ones(1, total, dtype=torch.double)
    values = {name: float(difference(name, ones)) for name in classifiers}
    resampled: dict[str, list[Tensor]] = {name: [] for name in classifiers}
    for weights in resamples(total, number, seed):
        for name in classifiers:
            resampled[name].append(difference(name, weights))
    ends = {name: interval(torch.cat(values)) for name, values in resampled.items() if values}
    return Gap(
        treatments=names,
        predictor=values["predictor"],
        selector=values.get("selector"),
        intervals={name: value for name, value in ends.items() if value is not None},
        pairing=pairing,
    )


def _same_objects(splits: Sequence[ImageDataset]) -> tuple[list[Int[Tensor, " N"]], int, str]:
    """Indices of the objects in the images of each split, the number of objects, and how images were paired."""
    named: list[list[Hashable]] = [
        [(number, index) if name is None else name for index, name in enumerate(_objects(split))]
        for number, split in enumerate(splits)
    ]
    numbers: dict[Hashable, int] = {}
    for name in (name for names in named for name in names):
        numbers.setdefault(name, len(numbers))
    both = len(set(named[0]) & set(named[1]))
    pairing = (
        f"paired by object: {both} of {len(numbers)} objects are in both" if both else "independent: objects unknown"
    )
    return [torch.tensor([numbers[name] for name in names]) for names in named], len(numbers), pairing


def _objects(split: ImageDataset) -> Sequence[Hashable | None]:
    return getattr(split, "objects", [None] * len(split))
