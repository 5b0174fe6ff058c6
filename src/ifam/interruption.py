"""SIGINT and SIGTERM as an exception, so that a run ends with a sentence and nothing half-done. No torch here."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted` in here; in other threads than the main one, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _raise) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def handlers() -> dict[int, Any]:
    """What the signals do now, by number; nothing in other threads than the main one."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in SIGNALS}
