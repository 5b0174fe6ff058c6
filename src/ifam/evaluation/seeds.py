"""Figures over seeds: their mean with a t-interval, and differences between methods, seed by seed.

The interval covers the chance of data, initial weights and order of images, as far as the seeds change them; that of
the test images alone is what `ifam.evaluation.bootstrap` is for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

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


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A table of several methods over several seeds.

    Args:
        runs: One for each method and seed, with `row` (its name), `seed`, `figures` (by name), `groups` (`accuracy` and
            `count` by name) and `parameters`.

    Returns:
        `rows`, for each name in the order of the runs: `figures` and `groups`, each with `n`, `mean`, `low` and `high`
        (groups with their `count` too, of the first seed), `differences` of the figures and of the groups to the first
        row on the same seeds, `values` by seed, and `parameters`.
    """
    named: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        named.setdefault(run["row"], []).append(run)
    by_seed = {name: _by_seed(own) for name, own in named.items()}
    first = next(iter(named), "")
    rows = []
    for name, own in named.items():
        summary = {key: asdict(over_seeds(list(values.values()))) for key, values in by_seed[name].items()}
        other = by_seed[first] if name != first else {}
        differences = {key: paired(values, other[key]) for key, values in by_seed[name].items() if key in other}
        counts = {group: found["count"] for group, found in own[0]["groups"].items()}
        rows.append(
            {
                "name": name,
                "figures": {key: found for key, found in summary.items() if not key.startswith(_GROUP)},
                "groups": {g: {"count": count, **summary[_GROUP + g]} for g, count in counts.items()},
                "differences": {key: asdict(found) for key, found in differences.items() if found},
                "values": {key: {str(seed): v for seed, v in values.items()} for key, values in by_seed[name].items()},
                "parameters": own[0]["parameters"],
            }
        )
    return {"rows": rows}


_GROUP = "group: "


def _by_seed(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Each figure, and the accuracy of each group, by seed."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        groups = {_GROUP + name: group["accuracy"] for name, group in run["groups"].items()}
        for key, value in {**run["figures"], **groups}.items():
            found.setdefault(key, {})[run["seed"]] = value
    return found
