"""The same objects treated in several ways, and what the background is worth: ImageNet-9 (arXiv 2006.09994).

A benchmark names its treatments (`Benchmark.treatments`), each a split, and the two whose difference is the gap due to
the background (`Benchmark.gap`). Where images tell which object they show (`objects` of a split), the gap's interval
draws objects, so that what is hard about an object is hard in both treatments; otherwise each draws its own images.
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
    """How much better one treatment goes than another.

    Attributes:
        treatments: Their names.
        predictor: Difference of the predictor's accuracies.
        selector: The same of the selector; None for models without one.
        intervals: Bootstrap interval of each, by name.
        pairing: How images were drawn for the intervals.
    """

    treatments: tuple[str, str]
    predictor: float
    selector: float | None
    intervals: dict[str, Interval]
    pairing: str


@dataclass(frozen=True)
class VariantResults:
    """The evaluation of each treatment.

    Attributes:
        treatments: By name.
        missing: Treatments that are not there.
        gap: None where one of its two treatments is missing, or the benchmark has none.
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
    """Judge every treatment that is there.

    Args:
        model: An `IFAM` or a baseline.
        benchmark: A data set with treatments.
        interventions: Changes to the selection of every image.
        num_resamples: Resamples of the bootstrap intervals; 0 for none.
        seed: Seed of the resamples.
        settings: Further arguments, as for `ifam.evaluation.collect.collect`.
    """
    here = [name for name in benchmark.treatments if name in benchmark.splits]
    rows, evaluations = {}, {}
    for name in here:
        (rows[name],) = collect(model, benchmark, name, [interventions], label=name, **settings)
        evaluations[name] = summarize_rows(model, rows[name], benchmark, name, num_resamples, seed)
    gap = None
    if benchmark.gap is not None and all(name in rows for name in benchmark.gap):
        gap = _gap(benchmark, benchmark.gap, [rows[name] for name in benchmark.gap], num_resamples, seed)
    return VariantResults(evaluations, tuple(name for name in benchmark.treatments if name not in here), gap)


def _gap(benchmark: Benchmark, names: tuple[str, str], rows: Sequence[Rows], number: int, seed: int) -> Gap:
    """The difference, and its interval over objects drawn anew."""
    objects, total, pairing = _same_objects([benchmark.split(name) for name in names])
    who = [w for w in ("predictor", "selector") if f"{w}.right" in rows[0]]

    def difference(w: str, weights: Tensor) -> Tensor:
        first, second = (
            mean(table[f"{w}.right"], weights[:, index]) for table, index in zip(rows, objects, strict=True)
        )
        return first - second

    ones = torch.ones(1, total, dtype=torch.double)
    values = {w: float(difference(w, ones)) for w in who}
    drawn: dict[str, list[Tensor]] = {w: [] for w in who}
    for weights in resamples(total, number, seed):
        for w in who:
            drawn[w].append(difference(w, weights))
    ends = {w: interval(torch.cat(values)) for w, values in drawn.items() if values}
    return Gap(
        treatments=names,
        predictor=values["predictor"],
        selector=values.get("selector"),
        intervals={w: value for w, value in ends.items() if value is not None},
        pairing=pairing,
    )


def _same_objects(splits: Sequence[ImageDataset]) -> tuple[list[Int[Tensor, " N"]], int, str]:
    """For each split the number of each image's object, how many objects there are, and how they were told."""
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
