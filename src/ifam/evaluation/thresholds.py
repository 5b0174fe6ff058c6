"""Similarity thresholds for dropping unsure patches: quantiles on training images, stored with the model.

They are stored in `config.json` under `extra` (see `Classifier.save_pretrained`), so a copy of the folder, the hub and
`ifam convert` keep them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ifam._typing import Tensor
from ifam.data import Benchmark, TransformedDataset, collate
from ifam.data.base import evenly_spaced
from ifam.errors import IfamError
from ifam.io import local_path, write_json
from ifam.model_files import CONFIG, read_json, weights_digest
from ifam.models.base import Classifier, device_of, evaluating
from ifam.progress import ProgressBar
from ifam.serialization import from_json, to_json

QUANTILES = tuple(round(0.01 * i, 2) for i in range(1, 100))


@dataclass(frozen=True)
class Thresholds:
    """For each part, quantiles of its similarity to the patches that it wins.

    Attributes:
        quantiles: The quantiles.
        values: A threshold for each quantile and part; None for parts that win no patch.
        patches: Number of patches that each part won.
        images: Number of images.
        source: Description of the images and the selector.
    """

    quantiles: tuple[float, ...]
    values: tuple[tuple[float | None, ...], ...]
    patches: tuple[int, ...]
    images: int
    source: dict[str, Any]

    def at(self, quantile: float) -> list[float]:
        """The thresholds of one quantile, for `DropUnsure`.

        Raises:
            IfamError: There are no thresholds for this quantile.
        """
        for known, row in zip(self.quantiles, self.values, strict=True):
            if math.isclose(known, quantile, abs_tol=1e-9):
                return [-math.inf if value is None else value for value in row]
        shown = [f"{q:g}" for q in self.quantiles]
        listed = ", ".join(shown if len(shown) <= 8 else [*shown[:3], "...", *shown[-2:]])
        raise IfamError(
            f"The model has no thresholds for the quantile {quantile:g}, only for {listed}; choose one of these, or "
            f"compute it with `ifam thresholds --quantiles [{quantile:g}]`."
        )


@torch.inference_mode()
def compute_thresholds(
    model: Classifier,
    benchmark: Benchmark,
    split: str = "train",
    quantiles: Sequence[float] = QUANTILES,
    *,
    batch_size: int = 64,
    limit: int | None = None,
) -> Thresholds:
    """Compute quantiles (linear interpolation) of each part's similarity on images without augmentation.

    Args:
        model: A model with parts. Its mode is restored afterwards.
        benchmark: The data set.
        split: Which of its splits; not one that the thresholds are evaluated on.
        quantiles: Shares of the won patches below the threshold.
        batch_size: Images at a time.
        limit: Largest number of images, evenly spaced in the split; all if None.

    Raises:
        IfamError: The split does not exist, a quantile is not between 0 and 1, or the model has no parts.
    """
    if not model.selects_parts:
        raise IfamError(
            f"The method {model.method} has no parts, and therefore no thresholds; give a model that selects parts."
        )
    wrong = [q for q in quantiles if not 0 <= q <= 1]
    if wrong or not quantiles:
        problem = f"{wrong[0]:g} is not" if wrong else "at least one is needed"
        raise IfamError(f"Quantiles are between 0 and 1, but {problem}: 0.05 drops the least sure 5% of patches.")
    examples = TransformedDataset(benchmark.split(split), model.image_size, model.normalization)
    if limit is not None and limit < 1:
        raise IfamError(f"limit is {limit}, but at least 1 image is needed.")
    indices = range(len(examples)) if limit is None else evenly_spaced(len(examples), limit)
    won: list[list[np.ndarray]] = [[] for _ in range(model.config.num_parts)]
    device = device_of(model)
    with evaluating(model), ProgressBar() as bar:
        task = bar.add_task("similarity of patches", total=len(indices))
        for start in range(0, len(indices), batch_size):
            batch = collate([examples[i] for i in indices[start : start + batch_size]]).to(device)
            selection = model.select(batch.images)
            for part, values in enumerate(won):
                values.append(_numbers(selection.similarity[:, part][selection.winners == part]))
            bar.advance(task, len(batch.images))
    joined = [np.concatenate(values) for values in won]
    table = [[float(x) for x in np.quantile(v, quantiles)] if len(v) else [None] * len(quantiles) for v in joined]
    return Thresholds(
        quantiles=tuple(map(float, quantiles)),
        values=tuple(zip(*table, strict=True)),
        patches=tuple(map(len, joined)),
        images=len(indices),
        source={
            "benchmark": benchmark.name,
            "split": split,
            "note": benchmark.note,
            "selector": selector_digest(model),
        },
    )


def selector_digest(model: Classifier) -> str | None:
    """A hash of the weights that thresholds depend on; None for models without parts."""
    weights = {name: value for name, value in model.state_dict().items() if name.startswith("selector.")}
    return weights_digest({k.removeprefix("selector."): v for k, v in weights.items()}) if model.selects_parts else None


def store(thresholds: Thresholds, folder: str | Path, source: Mapping[str, Any] | None = None) -> Path:
    """Write thresholds into the configuration of a saved model.

    Args:
        thresholds: Thresholds of this model.
        folder: Folder of the model.
        source: Added to the description of their source.

    Returns:
        The file written.

    Raises:
        IfamError: The folder does not contain a model or cannot be written.
    """
    path = local_path(folder) / CONFIG
    if not path.is_file():
        raise IfamError(
            f"{folder} is not the folder of a model; copy the model to a folder, and give that with --model."
        )
    content = to_json(replace(thresholds, source={**thresholds.source, **(source or {})}))
    settings = read_json(path) or {}
    settings["extra"] = {**settings.get("extra", {}), "thresholds": content}
    write_json(path, settings)
    return path


def stored(extra: Mapping[str, Any], model: str, net: Classifier | None = None) -> Thresholds:
    """The thresholds stored with a model.

    Args:
        extra: What `hub.read` gives as `extra`.
        model: Folder or hub id of the model, for the message.
        net: The model, to check that the thresholds belong to its weights.

    Raises:
        IfamError: There are none, or they belong to other weights.
    """
    if extra.get("thresholds") is None:
        raise IfamError(
            f"{model} has no thresholds, which are needed to drop unsure patches; compute them on training images with "
            f"`ifam thresholds --model {model}`."
        )
    try:
        thresholds = from_json(Thresholds, extra["thresholds"])
    except ValueError as error:
        raise IfamError(
            f"The thresholds in {CONFIG} of {model} are not in the format of `ifam thresholds` ({error}); compute them "
            f"again."
        ) from None
    if net is not None and thresholds.source.get("selector") not in (None, selector_digest(net)):
        raise IfamError(
            f"The thresholds of {model} were computed with other weights; compute them again with `ifam thresholds "
            f"--model {model} --overwrite`."
        )
    return thresholds


def _numbers(values: Tensor) -> np.ndarray:
    numbers: np.ndarray = values.double().cpu().numpy()
    return numbers
