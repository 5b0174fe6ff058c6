"""Corrections: the prototypes of the selector, fitted to what a person painted on a few images.

Every patch p of a painted image, with token x_p, gets a target distribution q_p over parts and background. Where m_p is
its part map before the correction, q_p is

    m_p without the background, scaled to a sum of 1    if p is painted as object,
    the background alone                                if p is painted as background,
    m_p                                                 if p is not painted,

and the prototypes a_k minimize, with the cross-entropy H and the weight w_p, which is 1 for painted patches,

    sum_p w_p H(q_p, softmax_k(-||x_p - a_k||^2 / tau))  +  prior * mean_p ||x_p||^2 * mean_k ||a_k - a_k before||^2.

This is a logistic regression that starts from the prototypes as they were. The backbone, the predictor and all else
stay as they are, so the tokens are computed once and the fit takes seconds.
"""

import copy
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from ifam._typing import Bool, Float, Int, Tensor
from ifam.errors import IfamError, first_line
from ifam.io import local_path, write_json
from ifam.model_files import weights_digest
from ifam.models.base import Classifier, PartClassifier, device_of, evaluating
from ifam.models.masking import resize_mask
from ifam.models.selector import Selector
from ifam.version import __version__

# How much the prototypes are held where they were, chosen on validation images of pondbirds, seed 100
# (docs/results/corrections.md).
PRIOR = 4.0
# Steps of L-BFGS; its gains are negligible long before.
_STEPS = 100
# Files beside a corrected model.
RECORD, PAINT = "corrections.json", "corrections.npz"

_Model = TypeVar("_Model", bound=Classifier)
_PartModel = TypeVar("_PartModel", bound=PartClassifier)


def correct(
    model: _Model,
    images: Float[Tensor, "B 3 S1 S2"],
    shown: Tensor,
    hidden: Tensor,
    *,
    keep: float = 1.0,
    batch_size: int = 16,
) -> _Model:
    """Fit the prototypes of a model to what was painted on some images.

    Args:
        model: A model with parts; it stays as it is.
        images: Normalized images, on the device of the model.
        shown: True where "this" was painted, which belongs to the object: bool [B, H, W] on the grid of the patches, or
            on a finer one, where at least half of a patch must be painted to count.
        hidden: True where "not this" was painted, in the same shape.
        keep: Weight of a patch that was not painted, relative to one that was, to keep what the selector said of it.
        batch_size: Images at a time; affects speed only.

    Returns:
        A new model in evaluation mode. Weights other than the prototypes are not copied, but shared with the given one.

    Raises:
        IfamError: The model has no parts, nothing was painted, the same place was painted as both, or the shapes do not
            fit.
    """
    if not isinstance(model, PartClassifier):
        raise IfamError("Corrections move the parts of a model, but this one has none; give one of the method ifam.")
    device = device_of(model)
    with torch.no_grad(), evaluating(model):
        batches = images.to(device).split(batch_size)
        patches = torch.cat([model.selector.patches(batch) for batch in batches]) if len(images) else None
    if patches is None:
        raise IfamError("There is no image; paint on at least one.")
    return with_prototypes(model, fit_prototypes(model.selector, patches, shown, hidden, keep=keep))


def fit_prototypes(
    selector: Selector,
    patches: Float[Tensor, "B P D"],
    shown: Tensor,
    hidden: Tensor,
    *,
    keep: float = 1.0,
) -> Float[Tensor, "K1 D"]:
    """The prototypes that fit what was painted; see `correct`.

    Args:
        selector: The selector as it was.
        patches: Its tokens of the painted images (`Selector.patches`).
        shown: True where "this" was painted.
        hidden: True where "not this" was painted.
        keep: Weight of a patch that was not painted.
    """
    painted = _labels(selector, patches, shown, hidden, keep)
    tokens = patches.detach().float().flatten(0, 1)
    if not bool(tokens.isfinite().all()):
        raise IfamError("The tokens of an image are NaN or infinite; leave the image out, or train the model again.")
    before = selector.prototypes.detach().float()
    background = nn.functional.one_hot(torch.tensor(len(before) - 1, device=tokens.device), len(before))
    logits = _logits(tokens, before, selector.temperature)
    targets = logits.softmax(dim=1)
    targets[painted > 0] = nn.functional.pad(logits[painted > 0, :-1].softmax(dim=1), (0, 1))
    targets[painted < 0] = background.to(targets)
    weights = torch.where(painted == 0, keep, 1.0)
    total, hold = weights.sum(), PRIOR * tokens.square().sum(dim=1).mean()

    after = before.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([after], max_iter=_STEPS, line_search_fn="strong_wolfe", tolerance_change=1e-8)

    def loss() -> Tensor:
        optimizer.zero_grad()
        surprise = -(targets * _logits(tokens, after, selector.temperature).log_softmax(dim=1)).sum(dim=1)
        value = ((weights * surprise).sum() + hold * (after - before).square().sum(dim=1).mean()) / total
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return after.detach().to(selector.prototypes.dtype)


def has_enough_paint(
    selector: Selector, shown: Bool[Tensor, "B R C"], hidden: Bool[Tensor, "B R C"]
) -> Bool[Tensor, " B"]:
    """Which images have a patch of which enough is painted to count; see `correct`."""
    return _signs(selector, shown, hidden).any(dim=1)


def with_prototypes(model: _PartModel, prototypes: Float[Tensor, "K1 D"]) -> _PartModel:
    """A model with other prototypes, in evaluation mode; all other weights are shared with the given one."""
    replaced = model.selector.prototypes
    shared = {id(one): one for one in (*model.parameters(), *model.buffers()) if one is not replaced}
    other = copy.deepcopy(model, shared)
    with torch.no_grad():
        other.selector.prototypes.copy_(prototypes)
    return other.eval()


def save_corrected(
    model: PartClassifier,
    folder: str | Path,
    shown: Bool[Tensor, "B R C"],
    hidden: Bool[Tensor, "B R C"],
    images: Sequence[Mapping[str, Any]],
    *,
    before: PartClassifier,
    source: str = "",
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a corrected model to a new folder, with what was painted.

    The folder is complete or absent. Beside the model are `corrections.npz`, with `shown` and `hidden`, and
    `corrections.json`, with the images, the model before, and the time. The images themselves are not stored.

    Args:
        model: Result of `correct`.
        folder: A folder that does not exist yet.
        shown: What was painted as object.
        hidden: What was painted as background.
        images: What tells each image: its name and the SHA-256 of its file, for example.
        before: The model before the correction.
        source: Where that is.
        extra: What was saved beside it (`hub.read`); thresholds are left out, since they belong to its parts.

    Returns:
        The folder.

    Raises:
        IfamError: The folder exists or cannot be written.
    """
    folder = local_path(folder)
    if os.path.lexists(folder):
        raise IfamError(f"{folder} already exists, and a corrected model replaces nothing; choose another folder.")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    record = {
        "model": source,
        "weights": weights_digest(before.state_dict()),
        "images": [dict(image) for image in images],
        "painted": {"object": int(shown.sum()), "background": int(hidden.sum())},
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "ifam_version": __version__,
    }
    kept = {name: value for name, value in (extra or {}).items() if name != "thresholds"}
    try:
        model.save_pretrained(temporary, {**kept, "corrected": {"model": source, "images": len(images)}})
        np.savez_compressed(temporary / PAINT, shown=shown.cpu().numpy(), hidden=hidden.cpu().numpy())
        write_json(temporary / RECORD, record)
        temporary.rename(folder)
    except OSError as error:
        raise IfamError(f"{folder} cannot be written ({first_line(error)}); choose another folder.") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary)
    return folder


def _labels(
    selector: Selector,
    patches: Float[Tensor, "B P D"],
    shown: Tensor,
    hidden: Tensor,
    keep: float,
) -> Tensor:
    """1 for patches painted as object, -1 for those painted as background and 0 for others, [B P]."""
    grid = selector.backbone.grid
    for name, paint in (("shown", shown), ("hidden", hidden)):
        size = tuple(paint.shape)
        fits = len(size) == 3 and size[0] == len(patches) and size[1] >= grid[0] and size[2] >= grid[1]
        if paint.dtype != torch.bool or not fits:
            raise IfamError(
                f"{name} is {paint.dtype} of shape {list(paint.shape)}, but torch.bool of [{len(patches)}, {grid[0]}, "
                f"{grid[1]}] or a finer grid is expected: one mask for each image."
            )
    if shown.shape != hidden.shape:
        raise IfamError(f"shown has shape {list(shown.shape)}, but hidden has {list(hidden.shape)}; give both alike.")
    if bool((shown & hidden).any()):
        raise IfamError("Some places are painted both as object and as background; give each to one of them.")
    if not (isinstance(keep, int | float) and 0 <= keep < float("inf")):
        raise IfamError(f"keep is {keep!r}, but a weight of at least 0 is expected; 1 counts all patches alike.")
    labels = _signs(selector, shown, hidden)
    if not bool(labels.any()):
        raise IfamError("Nothing is painted, or less than half of each patch; paint at least one patch.")
    return labels.flatten().to(patches.device)


def _signs(selector: Selector, shown: Tensor, hidden: Tensor) -> Int[Tensor, "B P"]:
    """The labels of `_labels`, for each image."""
    positive, negative = (resize_mask(paint, selector.backbone.grid).flatten(1) for paint in (shown, hidden))
    return (positive & ~negative).int() - (negative & ~positive).int()


def _logits(tokens: Float[Tensor, "N D"], prototypes: Float[Tensor, "K1 D"], temperature: float) -> Tensor:
    """The selector's assignment logits, at its temperature."""
    return (2 * tokens @ prototypes.mT - prototypes.square().sum(dim=1)) / temperature
