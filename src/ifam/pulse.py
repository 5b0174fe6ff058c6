"""Progress of long work as text: in the log first after ten seconds, then once per minute. Imports no torch."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import ClassVar, TypeVar

from rich.console import Console

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Describe the work that is under way, the innermost last.
_under_way: list[Callable[[], str]] = []


@contextmanager
def under_way(describe: Callable[[], str]) -> Iterator[None]:
    """Let `progress` describe work within the block.

    Args:
        describe: Returns the progress as text; empty where there is nothing to say.
    """
    _under_way.append(describe)
    try:
        yield
    finally:
        _under_way.remove(describe)


def progress() -> str:
    """Progress of the work that is under way in this process, the innermost that says something; or empty."""
    return next(filter(None, (describe() for describe in reversed(_under_way))), "")


def say(line: str) -> None:
    """Log a line; in a notebook whose log nobody has set up, print it."""
    if logger.isEnabledFor(logging.INFO) or not Console().is_jupyter:
        logger.info("%s", line)
    else:
        print(line, flush=True)


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
                say(line)
            seconds = self.interval


@contextmanager
def still_working(what: str) -> Iterator[None]:
    """Log that work goes on within the block, where nothing else describes it.

    Args:
        what: Name of the work.
    """
    begun = time.monotonic()
    pulse = Pulse(lambda: "" if progress() else f"{what}: still working, {duration(time.monotonic() - begun)} gone")
    pulse.start()
    try:
        yield
    finally:
        pulse.stop()


def reported(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over items and log the progress if this takes long.

    Args:
        items: The items.
        label: Description of the work.
        total: Number of items; their length where it is None and they have one.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    begun = time.monotonic()
    due, count = begun + Pulse.first, 0

    def describe() -> str:
        return described(label, count, total, time.monotonic() - begun)

    # Without a thread, which would not end if the iteration is abandoned.
    with under_way(describe):
        for item in items:
            yield item
            count += 1
            if (now := time.monotonic()) >= due:
                say(describe())
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
