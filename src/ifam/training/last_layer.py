"""Last-layer retraining on group-balanced validation images: deep feature reweighting (DFR).

Kirichenko, Izmailov, Wilson: Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations
(arXiv 2204.02937), the variant of section 6 that needs no data but the validation images. A trained model often
has the right features next to spurious ones; a linear classifier that is fitted where the spurious ones do not help
uses the right ones.

All layers but the last are frozen. As in the paper, the classifier is a logistic regression with an l1 penalty,
fitted on group-balanced draws, whose coefficients are averaged. There is one difference: features are divided by their
standard deviation, but not centered, and a layer without bias, like all of this package, gets none. So the result is
exactly a linear layer of the same shape, which is saved and loaded like any other.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from ifam._typing import Float, Int, Tensor
from ifam.data import Benchmark
from ifam.errors import IfamError
from ifam.evaluation.features import last_layer_of
from ifam.models.base import Classifier
from ifam.pulse import reported

# Inverse strengths C of the penalty, as in the paper; from strong to weak.
STRENGTHS = (0.01, 0.03, 0.07, 0.1, 0.3, 0.7, 1.0)


@dataclass(frozen=True)
class Retraining:
    """The result of retraining the last layer.

    Attributes:
        strength: Inverse strength C of the l1 penalty that was chosen.
        worst_groups: For each strength tried, the accuracy of the worst group on the half that was not fitted to.
        split: The images used.
        groups: Number of images of each group; every draw takes as many of each as the smallest has.
        draws: Number of draws whose coefficients were averaged.
        seed: Seed of halves and draws.
        nonzero: Share of the weights that are not zero.
        seconds: Duration.
    """

    strength: float
    worst_groups: dict[float, float]
    split: str
    groups: dict[str, int]
    draws: int
    seed: int
    nonzero: float
    seconds: float


def retrain(
    model: Classifier,
    benchmark: Benchmark,
    *,
    split: str = "val",
    strengths: Sequence[float] = STRENGTHS,
    draws: int = 10,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    label: str = "embedding",
) -> Retraining:
    """Refit the last layer of a model, in place; the model is in evaluation mode afterwards.

    Args:
        model: Any trained model. Of an `IFAM` it is the predictor's layer, so the masks do not change.
        benchmark: The data set.
        split: Images to fit on: validation images, which the other layers have not seen.
        strengths: Inverse strengths C of the l1 penalty to choose from, on halves of the split.
        draws: Group-balanced draws whose coefficients are averaged.
        seed: Seed of halves and draws.
        batch_size: Images at a time; affects speed only.
        workers: Processes that load images.
        label: Label of the progress bar.

    Returns:
        The chosen strength, and the data it was chosen on.

    Raises:
        IfamError: A group has fewer than two images, a class has none, all images of a draw are of one class, or a
            number is out of its range.
    """
    if draws < 1 or not strengths or min(strengths) <= 0:
        raise IfamError(
            f"draws is {draws} and strengths {list(strengths)}, but at least 1 and numbers above 0 are needed."
        )
    started = time.perf_counter()
    counts = check(benchmark, split)
    layer = model.last_layer
    settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "label": label}
    images = last_layer_of(model.eval(), benchmark, split, **settings)
    features = images.features.double().numpy()
    labels, groups = images.labels.numpy(), images.groups.numpy()
    if not len(layer.weight) == len(benchmark.class_names) == len(np.unique(labels)):
        raise IfamError(
            f"The model has {len(layer.weight)} classes, and {len(np.unique(labels))} of the "
            f"{len(benchmark.class_names)} of {benchmark.name} have images in the split {split!r}, but these must be "
            f"the same; give data with images of each class."
        )
    fitter = LastLayerFitter(features, labels, groups, len(layer.weight), layer.bias is not None)
    first, second = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=groups, random_state=seed)
    accuracies = {c: fitter.worst_group(*fitter.averaged(first, c, draws, seed), second) for c in sorted(strengths)}
    # At a tie, the strongest penalty, whose classifier uses the fewest features.
    strength = max(accuracies, key=lambda c: (accuracies[c], -c))
    weight, bias = fitter.averaged(np.arange(len(labels)), strength, draws, seed)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))
    return Retraining(
        strength=strength,
        worst_groups={c: worst for c, (worst, _) in accuracies.items()},
        split=split,
        groups=counts,
        draws=draws,
        seed=seed,
        nonzero=float((weight != 0).mean()),
        seconds=time.perf_counter() - started,
    )


def check(benchmark: Benchmark, split: str = "val") -> dict[str, int]:
    """Number of images of each group of a split.

    Groups that neither this split nor the training images have, such as those of the test images only, are left out.

    Raises:
        IfamError: A group has fewer than two images: one to fit on, and one to choose the penalty by. Or a class has
            none, where the split lists its `labels`.
    """
    counts = benchmark.groups(split).bincount(minlength=len(benchmark.group_names))
    needed = torch.ones_like(counts, dtype=torch.bool)
    if "train" in benchmark.splits and not bool(counts.all()):
        needed = counts + benchmark.groups("train").bincount(minlength=len(counts)) > 0
    groups = zip(benchmark.group_names, counts.tolist(), needed.tolist(), strict=True)
    count_of_group = {name: count for name, count, is_needed in groups if is_needed}
    for name, count in count_of_group.items():
        if count < 2:
            raise IfamError(
                f"The group {name!r} of {benchmark.name} has {count or 'no'} image{'s' if count != 1 else ''} in the "
                f"split {split!r}, but at least two are needed to retrain the last layer; add some."
            )
    labels: Sequence[int] | Tensor | None = getattr(benchmark.split(split), "labels", None)
    for label, name in enumerate(benchmark.class_names):
        if labels is not None and label not in labels:
            raise IfamError(
                f"The class {name!r} of {benchmark.name} has no image in the split {split!r}, but images of each are "
                f"needed to retrain the last layer; add some."
            )
    return count_of_group


class LastLayerFitter:
    """Linear classifiers on fixed features.

    Args:
        features: Features of each image.
        labels: Class of each image.
        groups: Group of each image.
        num_classes: Classes C.
        bias: Whether the classifiers have a bias.
    """

    def __init__(
        self,
        features: Float[np.ndarray, "N D"],
        labels: Int[np.ndarray, " N"],
        groups: Int[np.ndarray, " N"],
        num_classes: int,
        bias: bool,
    ) -> None:
        self.features, self.labels, self.groups = features, labels, groups
        self.num_classes, self.bias = num_classes, bias

    def averaged(
        self, rows: NDArray[np.int64], strength: float, draws: int, seed: int
    ) -> tuple[Float[np.ndarray, "C D"], Float[np.ndarray, " C"]]:
        """Weight and bias, averaged over classifiers fitted on group-balanced draws of these images."""
        # One scale for all draws, so that the average of their coefficients is the average of their scores.
        scale = StandardScaler(with_mean=False).fit(self.features[rows]).scale_
        weight, bias = np.zeros((self.num_classes, len(scale))), np.zeros(self.num_classes)
        for sample in reported(self.balanced(rows, draws, seed), f"fitting with C = {strength:g}", draws):
            classes = len(np.unique(self.labels[sample]))
            if classes < 2:
                raise IfamError(
                    "A group-balanced draw has images of a single class, to which no classifier can be fitted; give "
                    "each class groups of its own (class and context), or add images to the smallest group."
                )
            # liblinear is exact and fast, but supports two classes only.
            solver = "liblinear" if classes == 2 else "saga"
            regression = LogisticRegression(
                C=strength,
                l1_ratio=1.0,
                solver=solver,
                fit_intercept=self.bias,
                random_state=seed,
                max_iter=5000,
                tol=1e-3,
            ).fit(self.features[sample] / scale, self.labels[sample])
            coefficients, intercept = regression.coef_, np.atleast_1d(regression.intercept_)
            if len(coefficients) == 1:
                # One score separates two classes: each gets half of it, with opposite signs.
                coefficients, intercept = (np.concatenate([-x, x]) / 2 for x in (coefficients, intercept))
            weight[regression.classes_] += coefficients / scale / draws
            bias[regression.classes_] += intercept / draws
        return weight, bias

    def balanced(self, rows: NDArray[np.int64], draws: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """Random draws with as many images of each group as the smallest group has."""
        generator = np.random.default_rng(seed)
        members = [rows[self.groups[rows] == group] for group in np.unique(self.groups)]
        fewest = min(map(len, members))
        for _ in range(draws):
            yield np.concatenate([generator.choice(indices, fewest, replace=False) for indices in members])

    def worst_group(
        self, weight: Float[np.ndarray, "C D"], bias: Float[np.ndarray, " C"], rows: NDArray[np.int64]
    ) -> tuple[float, float]:
        """Accuracy of the worst group of these images, and the mean over groups, which breaks ties."""
        correct = (self.features[rows] @ weight.T + bias).argmax(axis=1) == self.labels[rows]
        accuracies = [float(correct[self.groups[rows] == group].mean()) for group in np.unique(self.groups[rows])]
        return min(accuracies), sum(accuracies) / len(accuracies)
