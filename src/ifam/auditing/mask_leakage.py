"""Mask leakage: how much the shape of the mask alone reveals.

The predictor sees no hidden pixel, but it sees which patches are hidden. What this shape reveals about class and
background is measured with a cross-validated linear probe.
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
# There are many features and few images, so the penalty is strong.
_STRENGTH = 0.01


@dataclass(frozen=True)
class ProbeResult:
    """How well a linear probe predicts a target.

    Attributes:
        target: What is predicted: "class" or "background".
        source: Features: "mask" or "part maps".
        images: Images used; classes with fewer images than folds are left out.
        accuracy: Cross-validated accuracy.
        low: Lower end of its 95 % interval (bootstrap over images).
        high: Upper end.
        chance: Share of the most frequent value.
        shuffled: Mean accuracy with values shuffled among the images.
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
        """Whether the accuracy is higher than chance and shuffling explain."""
        return self.low > max(self.chance, self.shuffled_high)


@dataclass(frozen=True)
class Leakage:
    """What masks and part maps reveal.

    Attributes:
        readings: A result for each target and source.
        notes: What could not be measured, and why.
    """

    readings: tuple[ProbeResult, ...]
    notes: tuple[str, ...]


def measure_leakage(
    inputs: AuditInputs, outputs: ModelOutputs, *, shuffles: int = 20, seed: int = 0, advance: Advance = no_progress
) -> Leakage:
    """Predict class and background from masks and part maps.

    Args:
        inputs: The images.
        outputs: What the model returned for them.
        shuffles: Number of shuffles to compare with.
        seed: Seed of folds, resampling and shuffling.
        advance: Progress callback, called with the number of finished probes.
    """
    targets = {"class": inputs.labels, "background": background_of(inputs)}
    sources = {"mask": outputs.mask.flatten(1).float(), "part maps": outputs.part_maps.flatten(1)}
    readings, notes = [], []
    for target, values in targets.items():
        for source, features in sources.items():
            if values is None:
                result: ProbeResult | str = f"{target}: unknown for these images, so it was not probed"
            else:
                result = probe(features, values, target, source, shuffles=shuffles, seed=seed)
            if isinstance(result, ProbeResult):
                readings.append(result)
            else:
                notes.append(result)
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
        The result, or a sentence that says why there is none.
    """
    y = values.cpu().numpy()
    counts = np.bincount(y)
    frequent = counts[y] >= _FOLDS
    if (counts >= _FOLDS).sum() < 2:
        return f"{target}: fewer than two values have {_FOLDS} images, so it was not probed; audit more images"
    x, y = features.float().cpu().numpy()[frequent], y[frequent]
    right = _predict(x, y, seed) == y
    random = np.random.default_rng(seed)
    resampled = right[random.integers(len(right), size=(_RESAMPLES, len(right)))].mean(axis=1)
    shuffled = [float((_predict(x, permuted, seed) == permuted).mean()) for permuted in _shuffled(y, shuffles, random)]
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
    """Cross-validated prediction of each image's value."""
    # A rotation does not affect a quadratic penalty, and leaves at most as many features as images.
    classifier = make_pipeline(StandardScaler(), PCA(), LogisticRegression(C=_STRENGTH, max_iter=1000))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    # If all masks of a fold are equal, ratios of a zero variance are computed, but not used.
    with np.errstate(invalid="ignore"):
        predicted: NDArray[Any] = cross_val_predict(classifier, x, y, cv=folds)
    return predicted


def _shuffled(y: NDArray[Any], times: int, random: np.random.Generator) -> Sequence[NDArray[Any]]:
    return [random.permutation(y) for _ in range(max(1, times))]


def background_of(inputs: AuditInputs) -> Int[Tensor, " N"] | None:
    """The background of each image, if groups are class x background (`label * backgrounds + background`)."""
    if inputs.groups is None or inputs.labels is None or not inputs.class_names:
        return None
    count, rest = divmod(len(inputs.group_names), len(inputs.class_names))
    crossed = not rest and count > 1 and bool((inputs.groups // count == inputs.labels).all())
    return inputs.groups % count if crossed else None
