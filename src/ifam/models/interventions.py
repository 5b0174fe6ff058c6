"""Interventions between selector and predictor: functions `Selection -> Selection` that do not modify their input."""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from ifam._typing import Bool, Float, Tensor
from ifam.errors import IfamError
from ifam.types import PixelSelection, Selection

_HINT = " (a mask of pixels has three dimensions: give `mask[None]`)"

# Anything that turns a selection into another one.
Intervention = Callable[[Selection], Selection]


@dataclass(frozen=True)
class DropParts:
    """Hide the patches assigned to the given parts; they become background.

    Args:
        parts: Indices of foreground parts, from 0 to K - 1.
    """

    parts: Sequence[int]

    def __call__(self, selection: Selection) -> Selection:
        """A copy of the selection without these parts."""
        dropped = _part_flags(self.parts, selection)
        winners = selection.winners
        hidden = dropped[winners]
        allowed = ~dropped[None, :, None, None].expand_as(selection.assignment_logits).clone()
        allowed[:, :-1] &= ~hidden[:, None]
        return _restrict(selection, allowed)


@dataclass(frozen=True)
class KeepParts:
    """Hide the patches of every other foreground part.

    Args:
        parts: Indices of the foreground parts to keep, from 0 to K - 1.
    """

    parts: Sequence[int]

    def __call__(self, selection: Selection) -> Selection:
        """A copy of the selection with only these parts."""
        keep = _part_flags(self.parts, selection)
        return DropParts([k for k in range(len(keep) - 1) if not keep[k]])(selection)


@dataclass(frozen=True)
class DropUnsure:
    """Hide the patches whose similarity to their part is below the threshold of the part.

    Args:
        thresholds: One threshold [K] for each foreground part, in units of `Output.similarity`.
    """

    thresholds: Float[Tensor, " K"] | Sequence[float]

    def __call__(self, selection: Selection) -> Selection:
        """A copy of the selection without unsure patches."""
        similarity = selection.similarity
        try:
            thresholds = torch.as_tensor(self.thresholds, dtype=similarity.dtype, device=similarity.device)
        except (TypeError, ValueError, RuntimeError):
            raise IfamError(f"The thresholds {self.thresholds!r} are not numbers; give one for each part.") from None
        num_parts = similarity.shape[1] - 1
        if tuple(thresholds.shape) != (num_parts,):
            raise IfamError(
                f"DropUnsure got thresholds of shape {list(thresholds.shape)}, but the model has {num_parts} parts; "
                f"give one threshold for each."
            )
        if bool(thresholds.isnan().any()):
            raise IfamError("DropUnsure got a threshold that is NaN; give a number, or -inf to keep all of a part.")
        winners = selection.winners[:, None]
        # The background has the threshold -inf and is never hidden.
        limits = torch.cat([thresholds, thresholds.new_tensor([-torch.inf])])
        unsure = similarity.gather(1, winners)[:, 0] < limits[winners[:, 0]]
        allowed = torch.ones_like(similarity, dtype=torch.bool)
        allowed[:, :-1] &= ~unsure[:, None]
        return _restrict(selection, allowed)


@dataclass(frozen=True)
class UseMask:
    """Show exactly the patches of a given mask, regardless of the selection.

    Args:
        mask: True for visible patches, bool [B, H, W] or [B, P]; [H, W] and [1, H, W] apply to every image. The grid is
            the selector's; for a mask on a different grid of the predictor, call `model.predictor(images, mask)`. A
            model that masks pixels (`ModelConfig.mask_resolution`) also takes a mask of pixels, [B, S1, S2], or
            [1, S1, S2] for every image.
    """

    mask: Tensor

    def __call__(self, selection: Selection) -> PixelSelection:
        """A copy of the selection that yields this mask."""
        batch, _, rows, columns = selection.assignment_logits.shape
        if not isinstance(self.mask, Tensor):
            raise IfamError(f"UseMask got a {type(self.mask).__name__}, but a tensor of torch.bool is expected.")
        mask = self.mask.to(selection.assignment_logits.device)
        if mask.dtype != torch.bool:
            raise IfamError(
                f"UseMask got a mask of {mask.dtype}, but torch.bool is expected: compare it (`mask > 0.5`)."
            )
        if tuple(mask.shape) == (rows, columns) or (mask.ndim == 3 and len(mask) == 1):
            mask = mask.expand(batch, -1, -1)
        # With two dimensions, a mask of pixels could be taken for one of patches, [B, P].
        if mask.ndim == 3 and len(mask) == batch and mask.shape[1] > rows and mask.shape[2] > columns:
            # Patches of which any pixel is visible belong to a part, so that later interventions apply to them.
            patches = F.adaptive_max_pool2d(mask.float()[:, None], (rows, columns))[:, 0] > 0
            return replace(UseMask(patches)(selection), pixels=mask)
        if tuple(mask.shape) not in {(batch, rows, columns), (batch, rows * columns)}:
            raise IfamError(
                f"UseMask got a mask of shape {list(self.mask.shape)}, but [{batch}, {rows}, {columns}] is expected: "
                f"one value for each of the selector's patches, for every image{_HINT if mask.ndim == 2 else ''}."
            )
        visible = mask.reshape(batch, 1, rows, columns)
        allowed = visible.expand_as(selection.assignment_logits).clone()
        allowed[:, -1] = ~visible[:, 0]
        return PixelSelection(**vars(_restrict(selection, allowed)) | {"pixels": visible[:, 0]})


@dataclass(frozen=True)
class UseParts:
    """Assign every patch to a given part, regardless of the selector.

    Args:
        parts: Part of each patch on the selector's grid, whole numbers [B, H, W], or [H, W] for every image; the number
            of parts, K, is the background (`Selection.winners`).
    """

    parts: Tensor

    def __call__(self, selection: Selection) -> Selection:
        """A copy of the selection with these parts."""
        batch, kinds, rows, columns = selection.assignment_logits.shape
        given = torch.as_tensor(self.parts, device=selection.assignment_logits.device)
        if tuple(given.shape) == (rows, columns):
            given = given.expand(batch, -1, -1)
        whole = not (given.is_floating_point() or given.dtype == torch.bool)
        if tuple(given.shape) != (batch, rows, columns) or not whole:
            raise IfamError(
                f"UseParts got {given.dtype} of shape {list(given.shape)}, but whole numbers [{batch}, {rows}, "
                f"{columns}] are expected: the part of each of the selector's patches, for every image."
            )
        if given.numel() and not 0 <= int(given.min()) <= int(given.max()) < kinds:
            raise IfamError(
                f"UseParts got parts from {int(given.min())} to {int(given.max())}, but this model has parts 0 to "
                f"{kinds - 2}, and the background, {kinds - 1}."
            )
        return _restrict(selection, F.one_hot(given.long(), kinds).movedim(3, 1).bool())


def _part_flags(parts: Sequence[Any], selection: Selection) -> Bool[Tensor, " K1"]:
    """True at the given parts, which are checked."""
    num_parts = selection.assignment_logits.shape[1] - 1
    indices = []
    if not isinstance(parts, Iterable):
        raise IfamError(f"The parts are {parts!r}, but a list of them is expected, such as [0, 1].")
    for part in parts:
        try:
            indices.append(operator.index(part))
            if isinstance(part, bool):
                raise TypeError
        except TypeError:
            raise IfamError(
                f"{part!r} is not a valid part; parts are whole numbers from 0 to {num_parts - 1}."
            ) from None
        if not 0 <= part < num_parts:
            raise IfamError(
                f"There is no part {part}: this model has parts 0 to {num_parts - 1} "
                f"(the background, {num_parts}, can be neither dropped nor kept)."
            )
    flags = torch.zeros(num_parts + 1, dtype=torch.bool, device=selection.assignment_logits.device)
    flags[indices] = True
    return flags


def _restrict(selection: Selection, allowed: Bool[Tensor, "B K1 H W"]) -> Selection:
    """A copy of the selection in which each patch can belong to the allowed parts only."""
    # Where no allowed part has a finite logit (a NaN, or excluded by an earlier intervention), the patch goes to the
    # background if that is allowed, and otherwise to the allowed parts in equal shares.
    logits = torch.nan_to_num(selection.assignment_logits, nan=-torch.inf, neginf=-torch.inf)
    logits = logits.masked_fill(~allowed, -torch.inf)
    heirs = allowed.clone()
    heirs[:, :-1] &= ~allowed[:, -1:]
    undecided = logits.amax(dim=1, keepdim=True) == -torch.inf
    maps = torch.where(allowed, torch.nan_to_num(selection.part_maps, nan=0.0), 0.0)
    total = maps.sum(dim=1, keepdim=True)
    even = heirs / heirs.sum(dim=1, keepdim=True)
    return replace(
        selection,
        assignment_logits=logits.masked_fill(undecided & heirs, 0.0),
        part_maps=torch.where(total > 0, maps / total.clamp_min(torch.finfo(maps.dtype).tiny), even),
    )
