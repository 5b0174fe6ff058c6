"""Random numbers of training: Gumbel noise, and parts that are dropped.

Of several processes, each draws the numbers for the images of all, from the same seed, and takes those of its own. So
the noise of an image does not depend on the number of processes: image i of process r of n is image `i n + r` of the
total batch (`ifam.training.batches.EpochSampler`).
"""

from collections.abc import Callable

import torch

from ifam._typing import Bool, Tensor
from ifam.distributed import rank_and_world_size


def gumbel_like(logits: Tensor) -> Tensor:
    """Gumbel(0, 1) noise of the same shape, whose first dimension is the images."""
    # -log of an exponential sample; the clamp keeps a sample that underflowed to 0 finite.
    noise = _drawn(torch.empty_like(logits), Tensor.exponential_)
    return -noise.clamp_min(torch.finfo(logits.dtype).tiny).log()


def uniform_like(values: Tensor) -> Tensor:
    """Uniform numbers from 0 to below 1 of the same shape, whose first dimension is the images."""
    return _drawn(torch.empty_like(values), Tensor.uniform_)


def kept_parts(parts: Tensor, dropout: float) -> Bool[Tensor, "B K"]:
    """Which parts of each image are kept, each with the probability `1 - dropout`.

    Args:
        parts: Values of parts [B, K, ...], for shape and device.
        dropout: Probability that a part is dropped.
    """
    return _drawn(torch.empty(parts.shape[:2], device=parts.device), Tensor.uniform_) >= dropout


def dropped_parts(features: Tensor, dropout: float) -> Tensor:
    """Features [B, K, D] of parts, of which whole parts are dropped and the others scaled, as `torch.nn.Dropout1d`."""
    if dropout == 0:
        return features
    kept = _drawn(features.new_empty(*features.shape[:2], 1), lambda values: values.bernoulli_(1 - dropout))
    return features * kept.div(1 - dropout)


def _drawn(empty: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
    """Random values in the place of an empty tensor [B, ...]: those of this process, of all in the total batch."""
    rank, processes = rank_and_world_size()
    if processes == 1:
        return draw(empty)
    # The same order in memory, in which values are drawn.
    strides = (empty[0].numel(), *empty.stride()[1:])
    shape = (len(empty) * processes, *empty.shape[1:])
    return draw(empty.new_empty_strided(shape, strides))[rank::processes]
