"""SIGINT and SIGTERM as an exception, so that a run ends with one message and no partial files. Imports no torch."""

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

# Seconds in which further signals count as the same request: `timeout` and batch systems signal a process and its
# group.
_REPEATED = 2.0


class Interrupted(BaseException):
    """The process received SIGINT or SIGTERM.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_status(self) -> int:
        """Exit status of a process that was ended by the signal, as in shells: 130 or 143."""
        return 128 + self.number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` on SIGINT and SIGTERM within the block; no effect outside the main thread."""
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
        if not repeated:
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


def _in_child(number: int) -> None:
    """Handle a signal in a fork of the process, such as a loader of images: its parent ends it after Ctrl-C."""
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM from now on, when the process ends anyway.

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
