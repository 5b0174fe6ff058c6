"""Distributed processes: their rank, their exchange of tensors, and their joint end.

They are started by `torchrun`, by Slurm or, in training on several devices, by Lightning. The command line imports this
module, so torch is imported only where it is needed.
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

# Seconds that other processes wait before they report an error.
_FIRST_REPORTS = 3.0

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def first_process() -> bool:
    """Whether this is the first of all processes, by the environment: it alone prints and writes."""
    return all(os.environ.get(name, "") in ("", "0") for name in _RANKS)


def wait_for_first() -> None:
    """Let the first process report an error: if it fails too, it ends the others, and only one message is shown."""
    if not first_process():
        time.sleep(_FIRST_REPORTS)


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process in its group, and number of processes; (0, 1) without a group."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@contextmanager
def process_group() -> Iterator[bool]:
    """Join the processes that `torchrun` has started, if any; true in the first, which alone writes."""
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
    """End the processes that Lightning has started on an error in this one, and this one on an error in theirs.

    Args:
        launcher: Lightning's launcher, with the processes in `procs`; None, or without these, where it starts none.

    Raises:
        IfamError: Another process has ended with an error, so that communication in this one failed.
    """

    def started() -> Sequence[subprocess.Popen[bytes]]:
        return getattr(launcher, "procs", ())

    def end() -> None:
        for process in started():
            process.kill()

    # They may still run after the training, together with this one.
    atexit.register(end)
    try:
        yield
    except RuntimeError as error:
        failed = _failed(started())
        end()
        if failed:
            raise IfamError("Another process of this training ended with an error, which is shown above.") from error
        raise
    except BaseException:
        end()
        raise


def _failed(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Whether one of the processes has ended with an error; waits a few seconds for it."""
    deadline = time.monotonic() + 2 * _FIRST_REPORTS
    while processes and time.monotonic() < deadline:
        if any(process.poll() for process in processes):
            return True
        time.sleep(0.1)
    return False
