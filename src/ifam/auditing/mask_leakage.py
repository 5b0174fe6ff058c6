"""What the mask alone gives away: a logistic regression on its shape, and on nothing else.

The predictor sees no hidden pixel, but it sees which patches are hidden. How much class and background that shape
carries is measured by how well a linear model reads it, on images it was not fitted to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ifam._typing import Float, Int, Tensor
from ifam.auditing.inputs import Advance, AuditInputs, ModelOutputs, no_progress

_FOLDS = 5
_RESAMPLES = 2000
# Features are many and images few: a strong penalty is what such a reader would choose.
_STRENGTH = 0.01


@dataclass(frozen=True)
class ProbeResult:
    """How well something can be read from something else.

    Attributes:
        target: What is read: "class" or "background".
        source: What from: "mask" or "part maps".
        images: Images used; classes with fewer images than folds are left out.
        accuracy: Share that is read rightly, on images that were not fitted to.
        low: Lower end of its 95 % interval (bootstrap over images).
        high: Upper end.
        chance: Share of the most frequent value: what is right without looking.
        shuffled: Mean accuracy when the values are shuffled among the images.
        shuffled_high: The largest of these accuracies.
    """

    target: str
    source: str
    images: int
    accuracy: float
    low: float
    high: float
    chance: float
    shuffled: float
    shuffled_high: float

    @property
    def above_chance(self) -> bool:
        """Whether more can be read than chance and shuffling explain."""
        return self.low > max(self.chance, self.shuffled_high)


@dataclass(frozen=True)
class Leakage:
    """What masks and part maps give away.

    Attributes:
        readings: One row a target and source.
        notes: What could not be measured, and why.
    """

    readings: tuple[ProbeResult, ...]
    notes: tuple[str, ...]


def measure_leakage(
    cases: AuditInputs, observed: ModelOutputs, *, shuffles: int = 20, seed: int = 0, advance: Advance = no_progress
) -> Leakage:
    """Read class and background from masks and part maps.

    Args:
        cases: The images.
        observed: What the model selected in them.
        shuffles: How often the values are shuffled for comparison.
        seed: Seed of folds, resampling and shuffling.
        advance: Progress callback, called with the number of finished probes.
    """
    targets = {"class": cases.labels, "background": background_of(cases)}
    sources = {"mask": observed.mask.flatten(1).float(), "part maps": observed.part_maps.flatten(1)}
    readings, notes = [], []
    for target, values in targets.items():
        for source, features in sources.items():
            if values is None:
                found: ProbeResult | str = f"{target}: not known to the data, so nothing could be read"
            else:
                found = probe(features, values, target, source, shuffles=shuffles, seed=seed)
            if isinstance(found, ProbeResult):
                readings.append(found)
            else:
                notes.append(found)
            advance(1)
    return Leakage(tuple(readings), tuple(dict.fromkeys(notes)))


def probe(
    features: Float[Tensor, "N F"],
    values: Int[Tensor, " N"],
    target: str = "class",
    source: str = "mask",
    *,
    shuffles: int = 20,
    seed: int = 0,
) -> ProbeResult | str:
    """Predict values from features by cross-validated logistic regression.

    Returns:
        The accuracy with what it is compared with, or a sentence that says why there is none.
    """
    y = values.cpu().numpy()
    counts = np.bincount(y)
    kept = counts[y] >= _FOLDS
    if (counts >= _FOLDS).sum() < 2:
        return f"{target}: fewer than two values have {_FOLDS} images, so nothing could be read; audit more images"
    x, y = features.float().cpu().numpy()[kept], y[kept]
    right = _predict(x, y, seed) == y
    random = np.random.default_rng(seed)
    resampled = right[random.integers(len(right), size=(_RESAMPLES, len(right)))].mean(axis=1)
    shuffled = [float((_predict(x, other, seed) == other).mean()) for other in _shuffled(y, shuffles, random)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return ProbeResult(
        target=target,
        source=source,
        images=len(y),
        accuracy=float(right.mean()),
        low=float(low),
        high=float(high),
        chance=float(np.bincount(y).max() / len(y)),
        shuffled=float(np.mean(shuffled)),
        shuffled_high=max(shuffled),
    )


def _predict(x: NDArray[Any], y: NDArray[Any], seed: int) -> NDArray[Any]:
    """The value of each image, by a regression that was not fitted to it."""
    # A full rotation changes nothing for a model with a quadratic penalty, but leaves as many features as images.
    reader = make_pipeline(StandardScaler(), PCA(), LogisticRegression(C=_STRENGTH, max_iter=1000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    # Where all images of a fold have the same mask, shares of a variance of zero are computed, and not used.
    with np.errstate(invalid="ignore"):
        predicted: NDArray[Any] = cross_val_predict(reader, x, y, cv=folds)
    return predicted


def _shuffled(y: NDArray[Any], times: int, random: np.random.Generator) -> Sequence[NDArray[Any]]:
    return [random.permutation(y) for _ in range(max(1, times))]


def background_of(cases: AuditInputs) -> Int[Tensor, " N"] | None:
    """The background of each image, where groups are class x background (`label * backgrounds + background`)."""
    if cases.groups is None or cases.labels is None or not cases.class_names:
        return None
    count, rest = divmod(len(cases.group_names), len(cases.class_names))
    crossed = not rest and count > 1 and bool((cases.groups // count == cases.labels).all())
    return cases.groups % count if crossed else None
