"""Group distributionally robust optimisation: train for the worst group (Sagawa et al., arXiv 1911.08731)."""

from collections.abc import Callable

import torch
from torch import distributed

from ifam._typing import Float, Int, Tensor


def over_devices(values: Tensor) -> Tensor:
    """The sum over all devices, where `torch.distributed` knows several."""
    if distributed.is_available() and distributed.is_initialized():
        values = values.clone()
        distributed.all_reduce(values)
    return values


def group_dro(
    losses: Float[Tensor, " B"],
    groups: Int[Tensor, " B"],
    weights: Float[Tensor, " G"],
    step_size: float,
    *,
    total: Callable[[Tensor], Tensor] = over_devices,
) -> tuple[Float[Tensor, ""], Float[Tensor, " G"]]:
    """The robust loss of a batch, and the weights of the groups that go with it (algorithm 1).

    With L[g] the mean loss of the images of group g in the batch of all devices, the groups in it get weights
    proportional to `q[g] * exp(step_size * L[g])`, keeping what they had together, and the loss is the sum of
    `q[g] * L[g]` over them. The weights of groups without an image in the batch stay: nothing was learnt of those.

    Args:
        losses: Loss of each image.
        groups: Group of each image.
        weights: Weights q before the batch, not negative.
        step_size: Step size eta of the weights; with 0 they stay.
        total: Sums a tensor over all devices.

    Returns:
        This device's share of the loss, times the number of devices, since trainers average gradients over these; and
        the weights after the batch, the same on each, with the same sum as before. They receive no gradient.
    """
    losses = losses.float() if losses.dtype in (torch.float16, torch.bfloat16) else losses
    zeros = losses.new_zeros(len(weights))
    sums = [zeros.index_add(0, groups, column) for column in (losses.detach(), torch.ones_like(losses))]
    found, counts = total(torch.stack(sums))
    devices = total(losses.new_ones(()))
    there = counts > 0
    means = (found / counts.clamp_min(1)).to(weights.dtype)
    # Subtracting the largest changes no share, and keeps the exponential finite.
    raised = weights * (step_size * (means - means[there].max())).exp() * there
    share = weights[there].sum() / raised.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    updated = torch.where(there, raised * share, weights)
    each = (updated.to(losses.dtype) / counts.clamp_min(1))[groups]
    return devices * (each * losses).sum(), updated
