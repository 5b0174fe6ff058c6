"""What the package logs, shown on standard error by the command line. No torch here."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment: progress bars put something else in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        self.stream = sys.stderr
        super().emit(record)


class _Sentence(logging.Formatter):
    """The message, and what it is if it is more than information."""

    def format(self, record: logging.LogRecord) -> str:
        """The message of a record."""
        before = f"{record.levelname.capitalize()}: " if record.levelno > logging.INFO else ""
        return before + super().format(record)


def first_process() -> bool:
    """Whether this is the first of the processes that a launcher has started, by its environment; alone, it is."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((os.environ[name] for name in names if os.environ.get(name)), "0") == "0"


@contextmanager
def shown() -> Iterator[None]:
    """Show what is logged; of several processes, the first shows it and prints."""
    logger, handler = logging.getLogger("ifam"), _StandardError()
    handler.setFormatter(_Sentence())
    before = logger.level
    logger.setLevel(logging.INFO if first_process() else logging.ERROR)
    logger.addHandler(handler)
    stdout = sys.stdout
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            if not first_process():
                sys.stdout = nowhere
            yield
    finally:
        sys.stdout = stdout
        logger.removeHandler(handler)
        logger.setLevel(before)
