"""Distributed processes: their rank, their exchange of tensors, and their joint end.

They are started by `torchrun`, by Slurm or, in training on several devices, by Lightning. The command line imports this
module, so torch is imported only where it is needed.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from ifam.errors import IfamError, ReportedError
from ifam.launch import launched

if TYPE_CHECKING:
    from torch import Tensor

# Seconds that other processes wait before they report an error, where they have no connection yet.
_FIRST_REPORTS = 5.0
# Seconds in which a process ends by itself after another one has failed or was stopped.
_GRACE = 10.0

# Environment variable with the number of the process that has started another one for a device.
_PARENT = "IFAM_PARENT"

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
# Keys under which processes that fail, and those that were stopped, are counted.
_FAILED, _STOPPED = "ifam/failed", "ifam/stopped"
# Whether this process is the one to report an error; None as long as it has none.
_announced: bool | None = None

# Processes that Lightning has started from this one.
_started: list[subprocess.Popen[bytes]] = []
# Whether they are being ended by this one.
_ending = threading.Event()


def first_process() -> bool:
    """Whether this is the first of all processes, by the environment: it alone prints and writes."""
    # Those of `torchrun` may be numbered in another order than Slurm's, which starts it on each machine.
    names = _RANKS[:1] if os.environ.get("RANK") else _RANKS
    return all(os.environ.get(name, "") in ("", "0") for name in names)


def is_one_of_several() -> bool:
    """Whether this process may be one of several, by the environment."""
    return any(name in os.environ for name in _RANKS)


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process in its group, and number of processes; (0, 1) without a group."""
    if "torch" not in sys.modules:
        return 0, 1
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@contextmanager
def process_group() -> Iterator[bool]:
    """Join the processes that `torchrun` or `srun` has started, if any; true in the first, which alone writes.

    Raises:
        IfamError: A variable that Slurm sets for each process is missing.
    """
    from torch import distributed

    launch = launched()
    if launch is None or launch.processes == 1 or distributed.is_initialized():
        yield rank_and_world_size()[0] == 0
        return
    if launch.program == "srun":
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment()
        # Sets the variables of both for PyTorch, as it does in training.
        os.environ.update(MASTER_ADDR=slurm.main_address, MASTER_PORT=str(slurm.main_port))
    distributed.init_process_group("gloo", rank=launch.rank, world_size=launch.processes)
    # On an error, whoever reports it leaves the group afterwards: the others would end it at once.
    yield launch.rank == 0
    leave_group()


def leave_group() -> None:
    """Leave the group of processes, if there is one; PyTorch would end a process that does not with a crash."""
    from torch import distributed

    if rank_and_world_size()[1] > 1:
        with suppress(RuntimeError):
            distributed.destroy_process_group()


# ------------------------------------------------------------------------------------------------- exchange


def sum_over_processes(values: "Tensor") -> "Tensor":
    """The sum of a tensor over all processes; the tensor itself without a group."""
    from torch import distributed

    if rank_and_world_size()[1] > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


def of_processes(values: "Tensor") -> "Tensor":
    """The tensors of all processes, stacked; they have the same shape, and no gradient."""
    import torch

    _, processes = rank_and_world_size()
    if processes == 1:
        return values.detach()[None]
    stacked = [torch.empty_like(values) for _ in range(processes)]
    torch.distributed.all_gather(stacked, values.detach().contiguous())
    return torch.stack(stacked)


def objects_of_processes(value: Any) -> list[Any]:
    """Any objects of all processes, in the order of their ranks."""
    from torch import distributed

    _, processes = rank_and_world_size()
    if processes == 1:
        return [value]
    values = [None] * processes
    distributed.all_gather_object(values, value)
    return values


# ------------------------------------------------------------------------------------------------ joint end


@contextmanager
def ended_together(launcher: Any = None) -> Iterator[None]:
    """End all processes on an error in one of them, which alone reports it.

    Args:
        launcher: Lightning's launcher, with the processes that it starts in `procs`; None where it starts none.

    Raises:
        ReportedError: Another process has ended with an error, so that communication in this one failed.
        IfamError: Another process was killed.
    """
    end_with_parent()
    forget_error()
    if hasattr(launcher, "procs"):
        threading.Thread(target=_watch, args=(launcher,), daemon=True).start()
        # They may still run after the training, together with this one.
        atexit.register(end_started)
    try:
        with _known_as_parent():
            yield
    except RuntimeError as error:
        cause = _cause(error)
        if cause is None:
            announce_error()
        end_started()
        if cause is None:
            raise
        raise cause from error
    except BaseException as error:
        if isinstance(error, Exception):
            announce_error()
        end_started()
        raise


@contextmanager
def _known_as_parent() -> Iterator[None]:
    """Tell processes that are started in the block which one has started them."""
    os.environ[_PARENT] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(_PARENT, None)


def end_with_parent() -> None:
    """End this process when the one that started it for another device ends, in whatever way.

    By itself, it would wait for the others until the time limit of a communication, which is half an hour. A process
    that nobody has started for this purpose goes on without its parent.
    """
    parent = os.environ.pop(_PARENT, None)
    if parent is None and "TORCHELASTIC_RUN_ID" in os.environ:
        parent = str(os.getppid())
    if parent is not None:
        _follow(int(parent))


@cache
def _follow(parent: int) -> None:
    """End this process as soon as that is no longer its parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="ifam-parent", daemon=True).start()


def forget_error() -> None:
    """Begin anew: an error that this process has announced was caught, as a notebook does."""
    global _announced
    _announced = None


def announce_error() -> bool:
    """Whether this process, which ends with an error, is the one to report it: the first that says so in its group.

    Without a group, the first process is given time: if it fails too, it ends the others.
    """
    global _announced
    if _announced is None:
        try:
            store = _store()
            _announced = store is None or store.add(_FAILED, 1) == 1
        except RuntimeError:
            # The first process, which keeps the store, has ended before this one.
            _announced = first_process()
        if store is None and not first_process():
            time.sleep(_FIRST_REPORTS)
    return _announced


def reported_elsewhere() -> bool:
    """Whether another process ends with an error, and reports it."""
    if any(process.poll() == 2 for process in _started):
        return True
    try:
        store = _store()
        return store is not None and bool(store.check([_FAILED]))
    except RuntimeError:
        # As above.
        return not first_process()


def await_stopped() -> None:
    """Let the first process, which keeps the store, end last of those that are stopped together.

    Another one that still asks for errors would take its end for one. Those that this one has started are ended by it.
    """
    deadline = time.monotonic() + _GRACE
    with suppress(RuntimeError):
        store = _store()
        if store is not None and not _started:
            stopped = store.add(_STOPPED, 1)
            while first_process() and stopped < rank_and_world_size()[1] and time.monotonic() < deadline:
                time.sleep(0.05)
                stopped = store.add(_STOPPED, 0)


def end_started() -> None:
    """End the processes that Lightning has started from this one."""
    _ending.set()
    for process in _started:
        process.kill()


def _store() -> Any:
    """What the processes of a group share besides tensors; None without a group."""
    if rank_and_world_size()[1] == 1:
        return None
    from torch import distributed

    world = distributed.group.WORLD
    return None if world is None else world.get_group_store()


def _cause(error: RuntimeError) -> IfamError | None:
    """Why communication failed; None for an error of another kind."""
    from torch import distributed

    if rank_and_world_size()[1] == 1 or not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
        return None
    deadline = time.monotonic() + _FIRST_REPORTS
    while not (reported := reported_elsewhere()) and not _killed() and time.monotonic() < deadline:
        time.sleep(0.05)
    if reported:
        return ReportedError("Another process ended with an error, which is shown above.")
    return IfamError(
        f"{_killed() or 'The connection to another process was lost: it was probably killed'}, for lack of memory or "
        f"by the system; start again, after a training with --resume."
    )


def _killed() -> str:
    """Which process that was started from this one has ended without a report; empty if none."""
    for number, process in enumerate(_started, 1):
        if status := process.poll():
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            return f"Process {number} of this training was ended ({how})"
    return ""


def _watch(launcher: Any) -> None:
    """Take over the processes that Lightning starts, and end this one if one of them fails and it does not notice.

    Lightning would kill this process without a word, within five seconds.
    """
    while not _ending.wait(0.1):
        while launcher.procs:
            _started.append(launcher.procs.pop(0))
        if any(process.poll() for process in _started) and not _ending.wait(_GRACE):
            # It waits for a GPU, or for a connection.
            if not reported_elsewhere():
                print(f"ifam: {_killed()}; start again, after a training with --resume.", file=sys.stderr, flush=True)
            for process in _started:
                process.kill()
            os._exit(2)
