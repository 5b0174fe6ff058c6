"""Signals as an exception, so that a run ends with one message and no partial files. Imports no torch."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from types import FrameType
from typing import Any

# SIGUSR1 is the warning of a batch system that a job is about to end (`sbatch --signal=USR1@90`).
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

# Seconds in which further signals count as the same request: `timeout` and batch systems signal a process and its
# group.
_REPEATED = 2.0

# Seconds that a process which loads images has left after a signal to its group: its parent finishes a step.
_GRACE = 30


class Interrupted(BaseException):
    """The process received SIGINT, SIGTERM or SIGUSR1, or nobody reads what it prints, which is SIGPIPE.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_status(self) -> int:
        """Exit status, as in shells: 130 for SIGINT, and 143 for SIGTERM and the warning that it will come."""
        return 128 + (signal.SIGTERM if str(self) == "SIGUSR1" else self.number)

    def __str__(self) -> str:
        return signal.Signals(self.number).name


class Stop:
    """A request to stop at the next good moment.

    Attributes:
        number: Number of the signal; None without a request.
    """

    number: int | None = None


# The innermost block of `deferred`.
_deferred: list[Stop] = []


@contextmanager
def deferred() -> Iterator[Stop]:
    """Keep the first signal within the block as a request, instead of raising `Interrupted`; a later one raises it.

    Only within `interruptible`. A request that is left at the end of the block raises `Interrupted` there.
    """
    stop = Stop()
    _deferred.append(stop)
    try:
        yield stop
    finally:
        _deferred.remove(stop)
    if stop.number is not None:
        raise Interrupted(stop.number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` on SIGINT, SIGTERM and SIGUSR1 within the block; no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process, requests = os.getpid(), list[tuple[int, float]]()
    hooks = sys.excepthook, threading.excepthook

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            _in_child(number)
            return
        now = time.monotonic()
        repeated = bool(requests) and now - requests[0][1] < _REPEATED
        requests.append((number, now))
        # Other threads, such as those of loaders and loggers, would show errors because of the interruption.
        _silence_threads()
        if _deferred and _deferred[-1].number is None:
            _deferred[-1].number = number
        elif not repeated:
            raise Interrupted(number)

    previous = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    except Exception as error:
        if not requests:
            raise
        # An error in the cleanup; the cause of the end is the signal.
        raise Interrupted(requests[0][0]) from error
    finally:
        sys.excepthook, threading.excepthook = hooks
        for number, handler in previous.items():
            signal.signal(number, handler)


def _show_nothing(*_: object) -> None:
    """Print nothing on an error in a thread."""


def _silence_threads() -> None:
    """Silence errors in other threads: those of multiprocessing use `sys.excepthook`, others that of `threading`."""
    sys.excepthook = threading.excepthook = _show_nothing


# When a process that loads images got its first signal.
_first_in_child: list[float] = []


def _in_child(number: int, deferred: bool = False) -> None:
    """Handle a signal in a fork of the process, such as a loader of images: its parent ends it, but for SIGTERM.

    A SIGTERM that comes a while after a signal is the parent's, which has waited for the end of this process.
    """
    now = time.monotonic()
    _first_in_child.append(now)
    if number != signal.SIGTERM:
        return
    if (deferred or _deferred) and now - _first_in_child[0] < _REPEATED:
        signal.alarm(_GRACE)
    else:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def follow_parent(worker: int = 0) -> None:
    """Prepare a process that loads images: it goes on until its parent ends it, or ends in whatever way.

    A signal to its group does not end it, and at the end of the parent it says nothing: errors in loading are raised
    there. PyTorch has it watch the process that has forked it. Where that is a fork server, as by default on Linux
    since Python 3.14, it is not the parent, and the two would wait for each other for ever.

    Args:
        worker: Number of the process, which PyTorch passes.
    """
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: _in_child(number, deferred=True))
    _silence_threads()
    parent = parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, name="ifam-parent", daemon=True).start()


def ignore_signals() -> None:
    """Ignore all of these signals from now on, when the process ends anyway.

    This includes the end of loader processes, for which PyTorch would raise an error.
    """
    _silence_threads()
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def handlers() -> dict[int, Any]:
    """The current handlers by signal number; empty outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in SIGNALS}
