"""Sets of classes with a stated error: split conformal prediction on images that the model was not trained on.

The score of a class is its surprise, `-log p_y`. With `n` held-out images, a class belongs to the set of an image if
its score is at most the k-th smallest score of their true classes, `k = ceil((n + 1) (1 - error))`. If an image and the
held-out ones are exchangeable, its set holds the true class with a probability of at least `1 - error`, whatever the
model is (Vovk, Gammerman and Shafer: Algorithmic Learning in a Random World, 2005; Sadinle, Lei and Wasserman: Least
Ambiguous Set-Valued Classifiers with Bounded Error Levels, arXiv 1609.00451).

A fifth of the error is spent on images that are unlike all classes: the set is empty if the image is less like the
training images than all but this share of the held-out ones. The distance is Mahalanobis's, of the input of the last
layer to the nearest class (Lee et al.: A Simple Unified Framework for Detecting Out-of-Distribution Samples, arXiv
1807.03888). In a model that masks its input, it depends on the visible patches alone, as the answer does.
"""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ifam._typing import Bool, Float, Int, Tensor
from ifam.data import Benchmark
from ifam.data.base import evenly_spaced
from ifam.errors import IfamError, first_line
from ifam.evaluation.features import LastLayer, last_layer_of
from ifam.io import local_path, replacing, run_digest
from ifam.model_files import CALIBRATION, CONFIG, weights_digest
from ifam.models.base import Classifier
from ifam.ranges import COUNT, NATURAL, QUANTILE, check_numbers

ERROR = 0.05
# The share of the error that is spent on images that are unlike all classes.
UNFAMILIAR = 0.2
# Training images that the classes are described by.
_DESCRIBED = 2000


@dataclass(frozen=True)
class ClassFeatures:
    """What the training images of each class are like, in the input of the last layer.

    Attributes:
        means: Mean of each class.
        whitening: Maps features to ones whose covariance within classes is the identity.
    """

    means: Float[Tensor, "C D"]
    whitening: Float[Tensor, "D D"]

    def distances(self, features: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Mahalanobis distance of each image to the nearest class."""
        white, means = features.double() @ self.whitening, self.means @ self.whitening
        return torch.stack([(white - mean).square().sum(dim=1).sqrt() for mean in means]).amin(dim=0)


@dataclass(frozen=True)
class Calibration:
    """What turns the answers of a model into sets of classes.

    Attributes:
        scores: Score of the true class of each held-out image.
        labels: Its class.
        class_names: Name of each class.
        error: Largest share of images whose set may miss their class.
        class_conditional: Whether this holds for each class, and not only on average.
        training: What the classes are like in training images; None where there are none.
        distances: Distance of each held-out image to the nearest class; None where `training` is.
        source: Description of the model and of the held-out images.

    Raises:
        IfamError: The error is not between 0 and 1, or a class has fewer than 1 / error held-out images.
    """

    scores: Float[Tensor, " N"]
    labels: Int[Tensor, " N"]
    class_names: tuple[str, ...]
    error: float = ERROR
    class_conditional: bool = False
    training: ClassFeatures | None = None
    distances: Float[Tensor, " N"] | None = None
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_counts(self.labels, self.class_names, self.error)

    def at(self, error: float) -> "Calibration":
        """The same with another error.

        Raises:
            IfamError: There are not enough held-out images for it.
        """
        return replace(self, error=error)

    @property
    def tells_unfamiliar(self) -> bool:
        """Whether an image can be so unlike all classes that its set is empty: this takes enough held-out images."""
        counts = self.labels.bincount(minlength=len(self.class_names))
        images = int(counts.min() if self.class_conditional else counts.sum())
        return self.distances is not None and 1 / (images + 1) <= self.error * UNFAMILIAR

    def limits(self) -> Float[Tensor, " C"]:
        """The largest score of each class with which it belongs to a set."""
        error = self.error * (1 - UNFAMILIAR) if self.tells_unfamiliar else self.error
        if not self.class_conditional:
            return torch.full((len(self.class_names),), _quantile(self.scores, error), dtype=torch.float64)
        each = [_quantile(self.scores[self.labels == label], error) for label in range(len(self.class_names))]
        return torch.tensor(each, dtype=torch.float64)

    def familiarity(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"] | None:
        """The share of images that are at least as unlike the training images, of the held-out ones and the image.

        Args:
            features: The input of the last layer.

        Returns:
            Above 0 and up to 1, among the held-out images of each class where sets are class-conditional, and otherwise
            among all, the same for each class; None where there were no training images.
        """
        if self.training is None or self.distances is None:
            return None
        own, classes = self.training.distances(features.cpu()), range(len(self.class_names))
        if not self.class_conditional:
            return _rank(own, self.distances)[:, None].expand(-1, len(classes))
        return torch.stack([_rank(own, self.distances[self.labels == label]) for label in classes], dim=1)

    def sets(
        self, logits: Float[Tensor, "B C"], familiarity: Float[Tensor, "B C"] | None = None
    ) -> Bool[Tensor, "B C"]:
        """The set of each image: one class, several, or none.

        Args:
            logits: Class logits.
            familiarity: What `familiarity` gives; None for sets by the classes alone.

        Raises:
            IfamError: The logits are of another number of classes.
        """
        if logits.ndim != 2 or logits.shape[1] != len(self.class_names):
            raise IfamError(
                f"The logits have shape {list(logits.shape)}, but [B, {len(self.class_names)}] is expected: the "
                f"calibration is of the classes {', '.join(self.class_names[:5])}."
            )
        sets = surprise(logits.cpu()) <= self.limits()
        if familiarity is not None and self.tells_unfamiliar:
            sets = sets & (familiarity > self.error * UNFAMILIAR)
        return sets

    def save(self, folder: str | Path) -> Path:
        """Write the calibration beside the model that it belongs to, in the place of an earlier one and its coverage.

        Args:
            folder: Folder of the model.

        Returns:
            The file written.

        Raises:
            IfamError: The folder has no model, or cannot be written.
        """
        path = local_path(folder) / CALIBRATION
        if not (path.parent / CONFIG).is_file():
            raise IfamError(f"{folder} is not the folder of a model; save the model first, with `save_pretrained`.")
        tensors, settings = self._content()
        path.with_suffix(".json").unlink(missing_ok=True)
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"calibration": json.dumps(settings)})
            # Written for its owner alone; whoever may read the model may read its calibration.
            temporary.chmod((path.parent / CONFIG).stat().st_mode)
        return path

    @property
    def digest(self) -> str:
        """A digest of all that sets depend on besides the model's output."""
        tensors, settings = self._content()
        return run_digest({**settings, "content": weights_digest(tensors)})

    def _content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and settings, as they are stored."""
        tensors = {"scores": self.scores, "labels": self.labels}
        if self.training is not None and self.distances is not None:
            tensors |= {"distances": self.distances, **vars(self.training)}
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return {name: tensor.contiguous() for name, tensor in tensors.items()}, settings


_SETTINGS = ("class_names", "error", "class_conditional", "source")


def surprise(logits: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """`-log p` of each class, in float64, where it does not saturate."""
    return -logits.double().log_softmax(dim=1)


def calibrate(
    model: Classifier,
    benchmark: Benchmark,
    *,
    split: str = "val",
    error: float = ERROR,
    class_conditional: bool = False,
    batch_size: int = 64,
    workers: int = 0,
) -> Calibration:
    """Calibrate a model on held-out images.

    Args:
        model: A trained model of any method.
        benchmark: The data set; its training images, if there are some, tell what images of its classes are like.
        split: Held-out images, on which the model was not trained. If its best epoch was chosen on them, coverage of
            other images may be slightly lower.
        error: Largest share of images whose set may miss their class.
        class_conditional: Keep to the error in each class, and not only on average.
        batch_size: Images at a time; affects speed only.
        workers: Processes that load images.

    Raises:
        IfamError: The split is that of the training images or does not exist, its classes are not those of the model,
            or it has fewer than 1 / error images of a class.
    """
    check_numbers(COUNT, batch_size=batch_size)
    check_numbers(NATURAL, workers=workers)
    _check_classes(model, benchmark)
    if split == "train":
        raise IfamError("The model was trained on the split 'train'; calibrate on held-out images, such as 'val'.")
    known = getattr(benchmark.split(split), "labels", None)
    if known is not None:
        # Before minutes are spent on them.
        _check_counts(torch.as_tensor(known, dtype=torch.long), benchmark.class_names, error)
    settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    held_out = last_layer_of(model, benchmark, split, label="calibrating", **settings)
    training = distances = None
    if "train" in benchmark.splits:
        chosen = evenly_spaced(len(benchmark.split("train")), _DESCRIBED)
        training = describe(
            last_layer_of(model, benchmark, "train", indices=chosen, label="describing classes", **settings)
        )
        distances = None if training is None else training.distances(held_out.features)
    return Calibration(
        scores=surprise(held_out.logits).gather(1, held_out.labels[:, None])[:, 0],
        labels=held_out.labels,
        class_names=benchmark.class_names,
        error=error,
        class_conditional=class_conditional,
        training=training,
        distances=distances,
        source={"model": model_digest(model), "benchmark": benchmark.name, "split": split, "note": benchmark.note},
    )


def load_calibration(folder: str | Path, model: Classifier | None = None) -> Calibration | None:
    """The calibration beside a saved model.

    Args:
        folder: Folder of the model.
        model: The model, to check that the calibration is its own.

    Returns:
        The calibration; None if there is none.

    Raises:
        IfamError: It is damaged, or belongs to another model.
    """
    path = local_path(folder) / CALIBRATION
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            settings = json.loads(file.metadata()["calibration"])
        features = ClassFeatures(tensors["means"], tensors["whitening"]) if "means" in tensors else None
        settings["class_names"] = tuple(settings["class_names"])
        calibration = Calibration(
            tensors["scores"], tensors["labels"], training=features, distances=tensors.get("distances"), **settings
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, IfamError) as error:
        raise IfamError(
            f"{path} is not a valid calibration ({first_line(error)}); write it again with `ifam calibrate`."
        ) from error
    if model is not None:
        check_owner(calibration, model, str(path))
    return calibration


def check_owner(calibration: Calibration, model: Classifier, name: str = "The calibration") -> None:
    """Refuse the calibration of another model.

    Args:
        calibration: The calibration.
        model: The model.
        name: What to call the calibration in the message.

    Raises:
        IfamError: It belongs to another model, or to other weights.
    """
    digest = model_digest(model)
    # One that was made from scores says nothing of its model but the number of its classes.
    if len(calibration.class_names) != model.config.num_classes or calibration.source.get("model", digest) != digest:
        raise IfamError(
            f"{name} belongs to another model, or to other weights; write it again with `ifam calibrate --overwrite`."
        )


def describe(images: LastLayer) -> ClassFeatures | None:
    """Mean of each class, and the covariance within classes, shrunk as by Ledoit and Wolf.

    Args:
        images: Training images.

    Returns:
        None if there are fewer than two images of a class.
    """
    features, labels, count = images.features.double(), images.labels, images.logits.shape[1]
    if int(labels.bincount(minlength=count).min()) < 2:
        return None
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(count)])
    # Only calibration needs it, and prediction starts faster without.
    from sklearn.covariance import ledoit_wolf

    covariance, _ = ledoit_wolf((features - means[labels]).numpy(), assume_centered=True)
    variances, directions = torch.linalg.eigh(torch.from_numpy(covariance))
    # In a direction in which the features never vary, nothing is known.
    scale = torch.where(variances > variances.max() * 1e-12, variances, torch.inf).rsqrt()
    return ClassFeatures(means, directions * scale)


def _check_counts(labels: Int[Tensor, " N"], names: tuple[str, ...], error: float) -> None:
    """Refuse an error that takes more held-out images of a class than there are."""
    if error not in QUANTILE:
        raise IfamError(f"error is {error!r}, but a share between 0 and 1 is expected, such as 0.05.")
    least, counts = math.ceil(1 / error - 1e-9), labels.bincount(minlength=len(names))
    if int(counts.min()) < least:
        raise IfamError(
            f"An error of {error:g} takes at least {least} held-out images of each class, but "
            f"{names[int(counts.argmin())]!r} has {int(counts.min())}; add some, or give a larger --error."
        )


def _check_classes(model: Classifier, benchmark: Benchmark) -> None:
    """Refuse data whose classes are not those of the model, in their order."""
    names, known = benchmark.class_names, model.config.class_names
    if len(names) != model.config.num_classes or (known and known != names):
        expected = ", ".join(known[:5]) if known else str(model.config.num_classes)
        raise IfamError(
            f"{benchmark.name} has the classes {', '.join(names[:5])} ({len(names)}), but the model has {expected}; "
            f"give data of its classes, in their order."
        )


def _rank(values: Float[Tensor, " B"], known: Float[Tensor, " N"]) -> Float[Tensor, " B"]:
    """The share of known values that are at least as large, counting the value itself."""
    below = torch.searchsorted(known.sort().values, values)
    return (len(known) - below + 1).double() / (len(known) + 1)


def _quantile(scores: Float[Tensor, " N"], error: float) -> float:
    """The k-th smallest score, `k = ceil((N + 1) (1 - error))`; infinity if there are not as many."""
    rank = math.ceil((len(scores) + 1) * (1 - error) - 1e-9)
    return math.inf if rank > len(scores) else float(scores.sort().values[rank - 1])


def model_digest(model: Classifier, weights: str | None = None) -> str:
    """A digest of all that the answers of a model depend on.

    Args:
        model: The model.
        weights: The digest of its weights, where it is known.
    """
    usual = asdict(type(model.config)())
    # Not of all settings, since another version may have more of them.
    changed = {name: value for name, value in asdict(model.config).items() if value != usual[name]}
    return run_digest(
        {"weights": weights or weights_digest(model.state_dict()), "config": changed, "method": model.method}
    )
