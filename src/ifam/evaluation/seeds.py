"""Means over seeds with t-intervals, and paired differences between methods.

The intervals cover variation of data, initial weights and order of images, as far as seeds affect them. Intervals over
test images alone are in `ifam.evaluation.bootstrap`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ifam.evaluation.bootstrap import LEVEL


@dataclass(frozen=True)
class MeanCI:
    """A figure over several seeds.

    Attributes:
        n: Number of seeds with this figure.
        mean: Mean over these seeds.
        low: Lower end of the 95 % t-interval of the mean; None for a single seed.
        high: Upper end.
    """

    n: int
    mean: float
    low: float | None = None
    high: float | None = None


def over_seeds(values: Sequence[float]) -> MeanCI:
    """Mean and Student's t-interval, `mean -+ t * s / sqrt(n)` with n - 1 degrees of freedom.

    Args:
        values: The figure of each seed, at least one.
    """
    figures, n = np.asarray(values, dtype=np.float64), len(values)
    mean = float(figures.mean())
    if n == 1:
        return MeanCI(n, mean)
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * stats.sem(figures))
    return MeanCI(n, mean, mean - half_width, mean + half_width)


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> MeanCI | None:
    """Mean and interval of the difference on the same seeds; None if no seed has both.

    Effects of a seed on both figures, such as harder images, cancel in the difference.

    Args:
        values: A figure by seed.
        others: The figure to subtract, by seed.
    """
    both = [seed for seed in values if seed in others]
    return over_seeds([values[seed] - others[seed] for seed in both]) if both else None
