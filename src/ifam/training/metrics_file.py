"""The logged values of a training as a CSV file that is never half-written, and goes on where the training does."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from ifam.io import write_text


class MetricsFile(Logger):
    """A logger whose rows are a CSV file, written as a whole each time: training and validation of an epoch are two.

    Args:
        path: The file.

    Attributes:
        rows: Values by name, with the step.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, float]] = []

    @property
    def name(self) -> str:
        """Name of the file, which Lightning wants."""
        return self.path.name

    @property
    def version(self) -> str:
        """There is one version only."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row."""
        self.rows.append({**metrics, "step": step or 0})

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Settings are in `train.yaml`."""

    @rank_zero_only
    def save(self) -> None:
        """Write the file.

        Raises:
            IfamError: It cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, sorted({name for row in self.rows for name in row}), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())
