"""How often an answer changes when the same object stands on another class's background."""

from dataclasses import replace
from typing import Any

from ifam._typing import Int, Tensor
from ifam.data import Benchmark
from ifam.evaluation.collect import collect
from ifam.models.base import Classifier


def has_swaps(benchmark: Benchmark, split: str) -> bool:
    """Whether a split has pictures of its objects on another class's background."""
    return getattr(benchmark.split(split), "swapped", None) is not None


def flip_rate(
    model: Classifier,
    benchmark: Benchmark,
    split: str,
    *,
    answers: Int[Tensor, " N"] | None = None,
    precision: str = "32-true",
    label: str = "swapping backgrounds",
) -> float:
    """Share of the images whose answer changes when the background is exchanged, with the mask found anew.

    Args:
        model: A model of any method.
        benchmark: A data set with swapped pictures (`has_swaps`).
        split: Which of its splits.
        answers: Those to the images as they are, from an evaluation; computed where None.
        precision: As `TrainConfig.precision`; 32 bits where the device has no use for fewer.
        label: Text of the progress bar.
    """
    swapped = getattr(benchmark.split(split), "swapped")()  # noqa: B009
    both = replace(benchmark, splits={**benchmark.splits, "swapped": swapped})
    settings: dict[str, Any] = {"precision": precision, "label": label}
    if answers is None:
        answers = collect(model, both, split, [()], **settings)[0]["predictor.answer"]
    (swapped_rows,) = collect(model, both, "swapped", [()], **settings)
    return float((answers != swapped_rows["predictor.answer"]).float().mean())
