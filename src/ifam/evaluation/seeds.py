"""Figures over seeds: their mean with a t-interval, and differences between methods, seed by seed.

The interval covers the chance of data, initial weights and order of images, as far as the seeds change them; that of
the test images alone is what `ifam.evaluation.bootstrap` is for.
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
        n: Seeds that have the figure.
        mean: Its mean.
        low: Lower end of the 95 % t-interval of the mean; None with a single seed.
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
    found, n = np.asarray(values, dtype=np.float64), len(values)
    mean = float(found.mean())
    if n == 1:
        return MeanCI(n, mean)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * stats.sem(found))
    return MeanCI(n, mean, mean - reach, mean + reach)


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> MeanCI | None:
    """Mean and interval of the difference on the same seeds; None where no seed has both.

    What a seed does to both figures, say by drawing harder images, drops out of the difference.

    Args:
        values: A figure by seed.
        others: The figure to subtract, by seed.
    """
    both = [seed for seed in values if seed in others]
    return over_seeds([values[seed] - others[seed] for seed in both]) if both else None
