"""Thresholds below which a patch is unsure of its part: quantiles on training images, kept with the model.

They lie in `config.json`, as part of what `hub.save` calls `extra`: a copy of the folder, the hub and `ifam convert`
carry them along.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ifam._typing import Tensor
from ifam.data import Benchmark, Prepared, collate
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
        quantiles: Which ones.
        values: For each quantile a threshold a part; None for parts that win no patch, which are never unsure.
        patches: Patches that each part won.
        images: Images that were looked at.
        source: Which images they were.
    """

    quantiles: tuple[float, ...]
    values: tuple[tuple[float | None, ...], ...]
    patches: tuple[int, ...]
    images: int
    source: dict[str, Any]

    def at(self, quantile: float) -> list[float]:
        """The thresholds of one quantile, for `DropUnsure`.

        Raises:
            IfamError: It is not among them.
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
    """Look at images without augmentation, and take quantiles (linear interpolation) of each part's similarity.

    Args:
        model: A model with parts. Left in the mode it was in.
        benchmark: The data set.
        split: Which of its splits; thresholds that are fitted to test images are worth nothing.
        quantiles: Shares of the won patches that fall below the threshold.
        batch_size: Images at a time.
        limit: Images at most, evenly spread over the split; all of them where None.

    Raises:
        IfamError: There is no such split, a quantile is not between 0 and 1, or the model has no parts.
    """
    if not model.selects_parts:
        raise IfamError(
            f"The method {model.method} has no parts, and so no thresholds; give a model that selects parts."
        )
    wrong = [q for q in quantiles if not 0 <= q <= 1]
    if wrong or not quantiles:
        shown = f"{wrong[0]:g} is none" if wrong else "none was given"
        raise IfamError(f"Quantiles are between 0 and 1, and {shown}: 0.05 drops the least sure 5% of patches.")
    examples = Prepared(benchmark.split(split), model.image_size, model.normalization)
    if limit is not None and limit < 1:
        raise IfamError(f"limit is {limit}, but at least 1 image is needed.")
    chosen = range(len(examples)) if limit is None else evenly_spaced(len(examples), limit)
    won: list[list[np.ndarray]] = [[] for _ in range(model.config.num_parts)]
    device = device_of(model)
    with evaluating(model), ProgressBar() as bar:
        task = bar.add_task("looking at won patches", total=len(chosen))
        for start in range(0, len(chosen), batch_size):
            batch = collate([examples[i] for i in chosen[start : start + batch_size]]).to(device)
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
        images=len(chosen),
        source={
            "benchmark": benchmark.name,
            "split": split,
            "note": benchmark.note,
            "selector": selector_digest(model),
        },
    )


def selector_digest(model: Classifier) -> str | None:
    """A hash of the weights that thresholds depend on; None for a model without parts."""
    weights = {name: value for name, value in model.state_dict().items() if name.startswith("selector.")}
    return weights_digest({k.removeprefix("selector."): v for k, v in weights.items()}) if model.selects_parts else None


def store(thresholds: Thresholds, folder: str | Path, source: Mapping[str, Any] | None = None) -> Path:
    """Write thresholds into the configuration of a saved model.

    Args:
        thresholds: What was computed with this model.
        folder: Folder of the model.
        source: What else to note of how they came about.

    Returns:
        The file written.

    Raises:
        IfamError: This is no folder of a model, or it cannot be written.
    """
    path = local_path(folder) / CONFIG
    if not path.is_file():
        raise IfamError(f"{folder} is no folder of a model; copy the model to one, and name that with --model.")
    kept = to_json(replace(thresholds, source={**thresholds.source, **(source or {})}))
    settings = read_json(path) or {}
    settings["extra"] = {**settings.get("extra", {}), "thresholds": kept}
    write_json(path, settings)
    return path


def stored(extra: Mapping[str, Any], model: str, net: Classifier | None = None) -> Thresholds:
    """The thresholds that travel with a model.

    Args:
        extra: What `hub.read` gave beside the configuration.
        model: Folder or hub id of the model, for the message.
        net: The model itself, to check that the thresholds are of its weights.

    Raises:
        IfamError: There are none, or they are of other weights.
    """
    if extra.get("thresholds") is None:
        raise IfamError(
            f"{model} has no thresholds, which dropping unsure patches needs; compute them on its training images with "
            f"`ifam thresholds --model {model}`."
        )
    try:
        thresholds = from_json(Thresholds, extra["thresholds"])
    except ValueError as error:
        raise IfamError(
            f"The thresholds in {CONFIG} of {model} are not as `ifam thresholds` writes them ({error}); compute them "
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
