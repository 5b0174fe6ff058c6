"""The logged values of a training as a CSV file that only grows, and goes on where the training does."""

import csv
import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from ifam.io import appending, replacing
from ifam.run_files import read_metrics

logger = logging.getLogger(__name__)


class MetricsFile(Logger):
    """A logger whose rows are lines of a CSV file: training and validation of an epoch are two.

    A row is added with one write. Only where it has a value that no row had before is the file written anew, so that a
    training of many epochs does not write each row as often as there are rows.

    Args:
        path: The file.

    Attributes:
        rows: Number of rows that were logged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows = 0
        self._columns: list[str] = []
        self._unwritten: list[dict[str, int | float]] = []

    @property
    def name(self) -> str:
        """Name of the file, which Lightning wants."""
        return self.path.name

    @property
    def version(self) -> str:
        """There is one version only."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, int | float], step: int | None = None) -> None:
        """Add a row."""
        self._unwritten.append({**metrics, "step": step or 0})
        self.rows += 1

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Settings are in `train.yaml`."""

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that were logged.

        Raises:
            IfamError: The file cannot be written.
        """
        columns = sorted({*self._columns, *(name for row in self._unwritten for name in row)})
        if columns != self._columns:
            with replacing(self.path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.written() if self._columns else ())
                writer.writerows(self._unwritten)
        elif self._unwritten:
            with appending(self.path) as file:
                csv.DictWriter(file, columns, lineterminator="\n").writerows(self._unwritten)
        self._columns, self._unwritten = columns, []

    def written(self) -> Iterator[dict[str, str]]:
        """The rows of the file."""
        return islice(read_metrics(self.path), self.rows - len(self._unwritten))

    @rank_zero_only
    def restore(self, rows: int) -> None:
        """Go on after a number of rows; those that were logged after them are removed.

        Raises:
            IfamError: The file cannot be written.
        """
        lines: list[bytes] = []
        if self.path.is_file():
            with self.path.open("rb") as file:
                lines = [line for line in islice(file, 1 + rows) if line.endswith(b"\n")]
            with appending(self.path) as table:
                table.truncate(sum(map(len, lines)))
        self._columns = lines[0].decode().strip().split(",") if lines else []
        self.rows = max(0, len(lines) - 1)
        if self.rows < rows:
            logger.warning("%s has lost %d rows, which are missing in the curves.", self.path, rows - self.rows)
