"""Log the progress of long work: first after ten seconds, then once per minute. Imports no torch."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import ClassVar, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Pulse:
    """Logs progress from start to stop in a thread, on time however long a single step takes.

    Args:
        describe: Returns the progress as text; nothing is logged where it is empty.
    """

    # Seconds before the first line, and between lines.
    first: ClassVar[float] = 10.0
    interval: ClassVar[float] = 60.0

    def __init__(self, describe: Callable[[], str]) -> None:
        self._describe = describe
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ifam-pulse", daemon=True)

    def start(self) -> None:
        """Start logging."""
        self._thread.start()

    def stop(self) -> None:
        """Stop logging."""
        self._ended.set()

    def _run(self) -> None:
        seconds = self.first
        while not self._ended.wait(seconds):
            if line := self._describe():
                logger.info("%s", line)
            seconds = self.interval


def reported(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over items and log the progress if this takes long.

    Args:
        items: The items.
        label: Description of the work.
        total: Number of items; their length where it is None and they have one.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    begun = time.monotonic()
    due = begun + Pulse.first
    # Without a thread, which would not end if the iteration is abandoned.
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now >= due:
            logger.info("%s", described(label, count, total, now - begun))
            due = now + Pulse.interval


def described(label: str, done: int | float, total: int | float | None, seconds: float, before: int | float = 0) -> str:
    """Progress as text: "training: 120 of 400, 2.1/s, 2 min left".

    Args:
        label: Description of the work.
        done: Finished steps.
        total: Number of steps, if known.
        seconds: Elapsed time.
        before: Steps that were finished before this time.
    """
    count = f"{label}: {done:.0f}" + ("" if total is None else f" of {total:.0f}")
    if done <= before or seconds <= 0:
        return f"{count}, {duration(seconds)} gone"
    rate = (done - before) / seconds
    left = "" if total is None else f", {duration((total - done) / rate)} left"
    return f"{count}, {_per_time(rate)}{left}"


def _per_time(rate: float) -> str:
    """A rate in steps per second, or per minute where it is slow."""
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min"


def duration(seconds: float) -> str:
    """A duration in words: "45 s", "12 min", "3.5 h"."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
