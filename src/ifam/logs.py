"""What the package logs and warns of, shown on standard error by the command line. No torch here."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ifam.distributed import first_process

logger = logging.getLogger("ifam")


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


def _log_warning(message: Warning | str, *about: Any, **more: Any) -> None:
    """Log a warning without the file and line that Python would name: users of the command line see no code."""
    logger.warning("%s", message)


@contextmanager
def shown() -> Iterator[None]:
    """Show what is logged and warned of; of several processes, the first shows it and prints."""
    handler = _StandardError()
    handler.setFormatter(_Sentence())
    before = logger.level
    logger.setLevel(logging.INFO if first_process() else logging.ERROR)
    logger.addHandler(handler)
    stdout = sys.stdout
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, warnings.catch_warnings():
            warnings.showwarning = _log_warning
            if not first_process():
                sys.stdout = nowhere
            yield
    finally:
        sys.stdout = stdout
        logger.removeHandler(handler)
        logger.setLevel(before)
