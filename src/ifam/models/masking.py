"""From a selection to the mask: sampled in training, the most probable part at inference."""

import torch
from torch.nn import functional as F

from ifam._typing import Bool, Float, Tensor
from ifam.models.noise import gumbel_like, kept_parts
from ifam.types import Mask, Selection


def make_mask(
    selection: Selection,
    *,
    training: bool = False,
    temperature: float = 1.0,
    gumbel_noise: bool = True,
    part_dropout: float = 0.0,
) -> Mask:
    """Hide the patches of the background (arXiv 2506.08915, section 3.2).

    A patch is visible when its most probable part is at least as probable as the background. In training, the
    probabilities are a second Gumbel sample, independent of the part maps, from which whole parts are dropped.

    Args:
        selection: Parts of each image.
        training: Sample, and drop parts; otherwise the mask is deterministic.
        temperature: Softmax temperature of the sample.
        gumbel_noise: Whether training samples.
        part_dropout: Probability that a part is hidden, in training.

    Returns:
        The binary mask, and a gate of the same value whose gradient is that of the foreground's probability.
    """
    logits, probabilities = sample_assignment(selection, training, temperature, gumbel_noise, part_dropout)
    return assignment_mask(logits, probabilities.sum(dim=1))


def sample_assignment(
    selection: Selection, training: bool, temperature: float, gumbel_noise: bool, part_dropout: float
) -> tuple[Float[Tensor, "B K1 H W"], Float[Tensor, "B K H W"]]:
    """The logits that decide which patches are visible, and the probability of each part; see `make_mask`."""
    logits = _defined(selection.assignment_logits, temperature)
    if training and gumbel_noise:
        logits = logits + gumbel_like(logits)
    probabilities = (logits / temperature).softmax(dim=1)
    if training and part_dropout > 0:
        keep = kept_parts(logits[:, :-1], part_dropout)[:, :, None, None]
        parts = logits[:, :-1].masked_fill(~keep, -torch.inf)
        return torch.cat([parts, logits[:, -1:]], dim=1), probabilities[:, :-1] * keep
    return logits, probabilities[:, :-1]


def _defined(logits: Float[Tensor, "B K1 H W"], temperature: float) -> Float[Tensor, "B K1 H W"]:
    """Logits whose softmax is a number: a patch that can belong to nothing, or has a NaN, belongs to the background."""
    background = logits.new_full((logits.shape[1], 1, 1), -torch.inf)
    background[-1] = 0.0
    logits = torch.where(logits.amax(dim=1, keepdim=True) > -torch.inf, logits, background)
    # Infinity is how an intervention may say that a patch belongs to a part.
    return logits.clamp(max=torch.finfo(logits.dtype).max * min(1.0, temperature))


def assignment_mask(logits: Float[Tensor, "B K1 H W"], foreground: Float[Tensor, "B H W"]) -> Mask:
    """The mask of logits and probabilities of the foreground."""
    # Compared as logits: two probabilities may both round to zero, two logits do not.
    visible = logits[:, :-1].amax(dim=1) >= logits[:, -1]
    # The difference is exactly 0, so the gate stays exactly 0 or 1.
    return Mask(visible, visible.to(foreground.dtype) + (foreground - foreground.detach()))


def resize_gated_mask(mask: Mask, grid: tuple[int, int]) -> Mask:
    """A mask on another grid over the same image.

    A new patch is visible when at least half of its area is. Its gate has that value, and the gradient of the mean
    of the gates over its area. Where less than half of every new patch is visible, nothing is.

    Args:
        mask: The mask.
        grid: Rows and columns of the new patches.

    Returns:
        The mask on that grid; unchanged where it has this grid already.
    """
    if tuple(mask.visible.shape[1:]) == tuple(grid):
        return mask
    visible, share = resize_mask(mask.visible, grid), resize_values(mask.gate, grid)
    return Mask(visible, visible.to(share.dtype) + (share - share.detach()))


def resize_mask(visible: Bool[Tensor, "B H W"], grid: tuple[int, int]) -> Bool[Tensor, "B H2 W2"]:
    """The patches of another grid of which at least half the area is visible."""
    if tuple(visible.shape[1:]) == tuple(grid):
        return visible
    # Counted in whole numbers, to distinguish exactly one half from almost one half.
    return 2 * _covered(visible.float(), grid) >= visible.shape[1] * visible.shape[2]


def resize_values(values: Float[Tensor, "B H W"], grid: tuple[int, int]) -> Float[Tensor, "B H2 W2"]:
    """The mean of the values of patches over the area of each patch of another grid; unchanged on the same grid."""
    if tuple(values.shape[1:]) == tuple(grid):
        return values
    return _covered(values, grid) / (values.shape[1] * values.shape[2])


def _covered(values: Float[Tensor, "B H W"], grid: tuple[int, int]) -> Float[Tensor, "B H2 W2"]:
    """The sum of the values over the area of each patch of another grid; full cover gives H W times the value."""
    down, across = (_overlaps(new, old).to(values) for new, old in zip(grid, values.shape[1:], strict=True))
    # Autocast would round the counts.
    with torch.autocast(values.device.type, enabled=False):
        return down @ values @ across.mT


def _overlaps(new: int, old: int) -> Float[Tensor, "N M"]:
    """Overlap of each of `new` equal intervals with each of `old`, in units of 1 / (new old) of the total length."""
    rows, columns = torch.arange(new + 1)[:, None] * old, torch.arange(old + 1) * new
    shared = torch.minimum(rows[1:], columns[1:]) - torch.maximum(rows[:-1], columns[:-1])
    return shared.clamp_min(0).float()


def patch_mask(mask: torch.Tensor, grid: tuple[int, int], threshold: float = 0.5) -> torch.Tensor:
    """Convert a mask of pixels to a mask of patches.

    Args:
        mask: Pixels [B, S1, S2], True on the object.
        grid: Rows and columns of patches.
        threshold: Share of a patch that must be object for it to count.

    Returns:
        Mask of patches [B, H, W].
    """
    return patch_mean(mask, grid) >= threshold


def patch_mean(pixels: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The mean of the pixels of each patch.

    Args:
        pixels: Values [B, S1, S2]; booleans count as 0 and 1.
        grid: Rows and columns of patches.

    Returns:
        Means [B, H, W].
    """
    values = pixels if pixels.dtype == torch.float64 else pixels.float()
    mean: torch.Tensor = F.adaptive_avg_pool2d(values[:, None], grid)[:, 0]
    return mean


def enlarge(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Repeat each value over its pixels.

    Args:
        values: Values of patches or cells [B, H, W].
        size: Rows and columns of the result, multiples of H and W.

    Returns:
        Values [B, S1, S2].
    """
    height, width = size[0] // values.shape[1], size[1] // values.shape[2]
    return values.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2)
