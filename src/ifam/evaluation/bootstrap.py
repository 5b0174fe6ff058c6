"""Bootstrap intervals.

A resample is a row of weights: how often each image was drawn. Figures are functions of such rows; a row of ones gives
the figure itself.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ifam._typing import Bool, Float, Int, Tensor
from ifam.pulse import reported

# Lower and upper end.
Interval = tuple[float, float]

LEVEL = 0.95
# Number of weights in memory at once; a resample of ImageNet's validation images has 50,000.
_CHUNK = 4_000_000


def resamples(images: int, number: int, seed: int = 0) -> Iterator[Float[Tensor, "R N"]]:
    """Weights of bootstrap resamples, in chunks.

    Args:
        images: Number of images N; each resample draws as many.
        number: Number of resamples.
        seed: Seed of the draws, which are the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    step = max(1, _CHUNK // images)
    for start in reported(range(0, number, step), "bootstrap intervals, by parts"):
        rows = min(step, number - start)
        drawn = torch.randint(images, (rows, images), generator=generator)
        drawn += images * torch.arange(rows)[:, None]
        yield torch.bincount(drawn.flatten(), minlength=rows * images).view(rows, images).double()


def interval(values: Float[Tensor, " R"] | np.ndarray) -> Interval | None:
    """The central 95 % of a figure's resamples, ignoring NaN; None if there are no others."""
    resampled = np.asarray(values, dtype=np.float64)
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return None
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def totals(
    values: Tensor, index: Int[Tensor, " N"], size: int, weights: Float[Tensor, "R N"]
) -> Float[Tensor, "R size"]:
    """Weighted sum of the values [N] of each group.

    Args:
        values: Values to sum.
        index: Group of each image.
        size: Number of groups.
        weights: How often each image counts.
    """
    sums = weights.new_zeros(size, len(weights))
    return sums.index_add_(0, index, weights.T * values[:, None]).T


def mean(values: Tensor, weights: Float[Tensor, "R N"]) -> Float[Tensor, " R"]:
    """Weighted mean of values [N]."""
    return weights @ values.double() / weights.sum(dim=1)


def auroc(
    scores: Float[Tensor, " N"], positive: Bool[Tensor, " N"], weights: Float[Tensor, "R N"]
) -> Float[Tensor, " R"]:
    """Area under the ROC curve: how often a positive scores above a negative; ties count half.

    Args:
        scores: Higher for positives.
        positive: True for the positive class.
        weights: How often each image counts.

    Returns:
        The area for each row of weights; NaN if one of the classes has no image.
    """
    levels, level = torch.unique(scores, return_inverse=True)
    above = totals(positive, level, len(levels), weights)
    below = totals(~positive, level, len(levels), weights)
    beaten = (above * (below.cumsum(dim=1) - below / 2)).sum(dim=1)
    return beaten / (above.sum(dim=1) * below.sum(dim=1))


def stacked(chunks: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Concatenate the figures of several chunks of resamples."""
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
