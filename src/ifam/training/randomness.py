"""Seeds of everything random in a training. Each is derived from what it is for, never from what was drawn before.

So numbers do not depend on the number of processes that load images, nor on where a training was stopped.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What random numbers are for."""

    ORDER = 0
    AUGMENTATION = 1
    STEP = 2


def derived_seed(seed: int, stream: Stream, *place: int) -> int:
    """The seed of a stream at one place.

    Args:
        seed: Seed of the training.
        stream: What the numbers are for.
        *place: Epoch and, within it, step and rank, or image; the same number of them for all places of a stream.
    """
    return int(np.random.SeedSequence([seed, stream, *place]).generate_state(1, np.uint64)[0])


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Draw PyTorch's random numbers on the processor from this seed within the block, and then as before it."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        yield
