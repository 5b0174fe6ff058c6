"""Group distributionally robust optimization: train for the worst group (Sagawa et al., arXiv 1911.08731)."""

from collections.abc import Callable

import torch

from ifam._typing import Float, Int, Tensor
from ifam.distributed import sum_over_processes


def group_dro(
    losses: Float[Tensor, " B"],
    groups: Int[Tensor, " B"],
    weights: Float[Tensor, " G"],
    step_size: float,
    *,
    total: Callable[[Tensor], Tensor] = sum_over_processes,
) -> tuple[Float[Tensor, ""], Float[Tensor, " G"]]:
    """The robust loss of a batch, and the updated weights of the groups (algorithm 1).

    With L[g] the mean loss of the images of group g in the batch of all devices, 0 for groups without images, weights
    become `q[g] * exp(step_size * L[g])`, divided by their sum, and the loss is the sum of `q[g] * L[g]`.

    Args:
        losses: Loss of each image.
        groups: Group of each image.
        weights: Weights q before the batch, not negative, with a sum of 1.
        step_size: Step size eta of the weights; 0 leaves them unchanged.
        total: Sums a tensor over all devices.

    Returns:
        This device's share of the loss, times the number of devices, since trainers average gradients over these; and
        the weights after the batch, the same on each. They receive no gradient.
    """
    losses = losses.float() if losses.dtype in (torch.float16, torch.bfloat16) else losses
    zeros = losses.new_zeros(len(weights))
    sums = [zeros.index_add(0, groups, column) for column in (losses.detach(), torch.ones_like(losses))]
    loss_sums, counts = total(torch.stack(sums))
    devices = total(losses.new_ones(()))
    means = (loss_sums / counts.clamp_min(1)).to(weights.dtype)
    updated = (weights.log() + step_size * means).softmax(dim=0)
    each = (updated.to(losses.dtype) / counts.clamp_min(1))[groups]
    return devices * (each * losses).sum(), updated
