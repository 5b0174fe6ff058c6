"""Show log messages and warnings of the package on standard error. Imports no torch."""

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
    """Writes to the current `sys.stderr`, which progress bars replace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        self.stream = sys.stderr
        super().emit(record)


class _Sentence(logging.Formatter):
    """The message, after its level if that is above INFO."""

    def format(self, record: logging.LogRecord) -> str:
        """The message of a record."""
        prefix = f"{record.levelname.capitalize()}: " if record.levelno > logging.INFO else ""
        return prefix + super().format(record)


def _log_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    """Log a warning without the file and line of the code."""
    logger.warning("%s", message)


@contextmanager
def shown() -> Iterator[None]:
    """Show log messages and warnings; of several processes, only the first one prints."""
    handler = _StandardError()
    handler.setFormatter(_Sentence())
    level = logger.level
    logger.setLevel(logging.INFO if first_process() else logging.ERROR)
    logger.addHandler(handler)
    stdout = sys.stdout
    try:
        with open(os.devnull, "w", encoding="utf-8") as devnull, warnings.catch_warnings():
            warnings.showwarning = _log_warning
            # Pillow's, for photographs of 90 megapixels and more; `ifam.data.images.MAX_PIXELS` is the limit here.
            warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")
            if not first_process():
                sys.stdout = devnull
            yield
    finally:
        sys.stdout = stdout
        logger.removeHandler(handler)
        logger.setLevel(level)
