"""Lines in the log that say how far long work is: the first one early, then one a minute. No torch here."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import ClassVar, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Pulse:
    """Logs how far some work is from start to stop, from a thread: on time, however long a single step takes.

    Args:
        describe: Says how far the work is; nothing is logged where it says nothing.
    """

    # Seconds before the first line, and from one to the next.
    first: ClassVar[float] = 10.0
    interval: ClassVar[float] = 60.0

    def __init__(self, describe: Callable[[], str]) -> None:
        self._describe = describe
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ifam-pulse", daemon=True)

    def start(self) -> None:
        """Begin to log."""
        self._thread.start()

    def stop(self) -> None:
        """Log no more."""
        self._ended.set()

    def _run(self) -> None:
        seconds = self.first
        while not self._ended.wait(seconds):
            if line := self._describe():
                logger.info("%s", line)
            seconds = self.interval


def reported(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """The items one after another; how far they are is logged if that takes long.

    Args:
        items: What is worked on.
        label: What is done with them.
        total: How many there are; their length where it is None and they have one.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    begun = time.monotonic()
    due = begun + Pulse.first
    # Not from a thread, which would go on where nobody takes the other items.
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now >= due:
            logger.info("%s", described(label, count, total, now - begun))
            due = now + Pulse.interval


def described(label: str, done: int | float, total: int | float | None, seconds: float, before: int | float = 0) -> str:
    """How far some work is: "training: 120 of 400, 2.1/s, 2 min left".

    Args:
        label: What is done.
        done: Steps that are done.
        total: Steps in all, where that is known.
        seconds: How long it has taken.
        before: Steps that had been done before that.
    """
    count = f"{label}: {done:.0f}" + ("" if total is None else f" of {total:.0f}")
    if done <= before or seconds <= 0:
        return f"{count}, {duration(seconds)} gone"
    rate = (done - before) / seconds
    left = "" if total is None else f", {duration((total - done) / rate)} left"
    return f"{count}, {_per_time(rate)}{left}"


def _per_time(rate: float) -> str:
    """A rate in steps a second, or a minute where it is slow."""
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min"


def duration(seconds: float) -> str:
    """A duration in words: "45 s", "12 min", "3.5 h"."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
