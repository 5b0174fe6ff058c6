"""Several processes that share the work: which of them this is, and what they exchange.

They are started by `torchrun`, by Slurm or, where a training has several devices, by Lightning. The command line reads
this file, so torch is imported only where it is needed.
"""

import atexit
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ifam.errors import IfamError

if TYPE_CHECKING:
    from torch import Tensor

# Seconds that another process waits before it says what is wrong.
_FIRST_SPEAKS = 3.0

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def first_process() -> bool:
    """Whether this is the first of all processes, by the environment: it alone prints and writes."""
    return all(os.environ.get(name, "") in ("", "0") for name in _RANKS)


def wait_for_first() -> None:
    """Let the first process speak: if it fails for the same reason, it ends the others, and one message is shown."""
    if not first_process():
        time.sleep(_FIRST_SPEAKS)


def rank_and_world_size() -> tuple[int, int]:
    """Number of this process in its group, and of processes in all; (0, 1) without a group."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@contextmanager
def process_group() -> Iterator[bool]:
    """Join the other processes that `torchrun` has started, if it has; true in the first, which alone writes."""
    from torch import distributed

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield rank_and_world_size()[0] == 0
        return
    distributed.init_process_group("gloo")
    try:
        yield rank_and_world_size()[0] == 0
    finally:
        distributed.destroy_process_group()


def sum_over_processes(values: "Tensor") -> "Tensor":
    """The sum of a tensor over all processes; the tensor itself without a group."""
    from torch import distributed

    if rank_and_world_size()[1] > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


@contextmanager
def ended_together(launcher: Any) -> Iterator[None]:
    """Let none of the processes that Lightning has started outlive an error in this one, nor this one theirs.

    Args:
        launcher: Lightning's launcher, with the processes in `procs`; None, or without these, where it starts none.

    Raises:
        IfamError: Another process has ended with an error. What is raised here says nothing else: an exchange with a
            process that is gone.
    """

    def started() -> Sequence[subprocess.Popen[bytes]]:
        return getattr(launcher, "procs", ())

    def end() -> None:
        for process in started():
            process.kill()

    # They may still be at work with this one after the training.
    atexit.register(end)
    try:
        yield
    except RuntimeError as error:
        failed = _failed(started())
        end()
        if failed:
            raise IfamError("Another process of this training has ended with an error, which stands above.") from error
        raise
    except BaseException:
        end()
        raise


def _failed(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Whether one of the processes has ended with an error; one that is about to is waited for."""
    until = time.monotonic() + 2 * _FIRST_SPEAKS
    while processes and time.monotonic() < until:
        if any(process.poll() for process in processes):
            return True
        time.sleep(0.1)
    return False
