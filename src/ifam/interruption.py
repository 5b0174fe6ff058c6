"""SIGINT and SIGTERM as an exception, so that a run ends with one sentence and nothing half-written. No torch here."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Seconds in which further signals are taken for the same request: `timeout` and batch systems send one to a process
# and another to its group.
_REPEATED = 2.0


class Interrupted(BaseException):
    """The process was asked to end.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_status(self) -> int:
        """Status of a process that the signal has ended, as shells have it: 130 or 143."""
        return 128 + self.number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted` in here; in other threads than the main one, nothing changes."""
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
        # Other threads, such as those of loaders and loggers, would show that what they work with is gone.
        _silence_threads()
        if not repeated:
            raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    except Exception as error:
        if not requests:
            raise
        # Ending early has failed somewhere, but that is not why the run ends.
        raise Interrupted(requests[0][0]) from error
    finally:
        sys.excepthook, threading.excepthook = hooks
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_nothing(*_: object) -> None:
    """Leave out what an error of a thread would print."""


def _silence_threads() -> None:
    """Show no more errors of other threads: multiprocessing's use `sys.excepthook`, all others that of `threading`."""
    sys.excepthook = threading.excepthook = _show_nothing


def _in_child(number: int) -> None:
    """What a signal does in a fork of the process, such as one that loads images: its parent ends it after Ctrl-C."""
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM from now on: the process ends anyway, and has said so.

    So does the end of processes that load images, of which PyTorch would raise an error.
    """
    _silence_threads()
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def handlers() -> dict[int, Any]:
    """What the signals do now, by number; nothing in other threads than the main one."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in SIGNALS}
