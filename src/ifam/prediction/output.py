"""What a run of `ifam predict` writes: its table with a record of the run beside it, and a folder of pictures."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from ifam.data.files import OVERLAYS
from ifam.errors import IfamError
from ifam.evaluation.conformal import Calibration, model_digest
from ifam.io import (
    check_absent,
    check_replaceable,
    ensure_writable,
    printable,
    replacing,
    run_digest,
    run_of,
    write_json,
)
from ifam.model_files import read_json, weights_digest
from ifam.models.base import Classifier
from ifam.models.interventions import Intervention
from ifam.prediction.reading import Item
from ifam.prediction.row import Prediction
from ifam.prediction.sources import STDIN, Found
from ifam.prediction.tables import TABLES, table_of
from ifam.provenance import provenance

# The table of an --out that is a folder.
DEFAULT_TABLE = "predictions.csv"
# Conditions that a run that goes on must have in common with the one before it.
_SAME = ("model", "interventions", "error", "calibration", "white", "working folder")


def table_path(out: Path) -> Path:
    """The table of an `--out`: itself, or `predictions.csv` in a folder."""
    is_folder = not out.suffix or (out.is_dir() and out.suffix.lower() not in TABLES)
    return out / DEFAULT_TABLE if is_folder else out


def record_path(table: Path) -> Path:
    """The record of the run that wrote a table."""
    return table.with_name(f"{table.name}.run.json")


def conditions_of(
    model: Classifier,
    given: Sequence[str],
    interventions: Sequence[Intervention],
    calibration: Calibration | None,
    white: int,
) -> dict[str, Any]:
    """What identifies a run.

    Args:
        model: The model.
        given: What its images were given as.
        interventions: Changes to the selection.
        calibration: What gives the sets of classes.
        white: The value that is white in images of more than 8 bits.
    """
    relative = any(one == STDIN or not os.path.isabs(one) for one in given)
    conditions: dict[str, Any] = {
        "model": model_digest(model, weights_digest(model.state_dict())),
        "interventions": [*map(str, interventions)],
        "error": None if calibration is None else calibration.error,
        "calibration": None if calibration is None else calibration.digest,
        "white": white,
        # Paths that are relative to another one are other files.
        "working folder": os.getcwd() if relative else None,
        "images": run_digest({"given": [*given]}),
    }
    return {**conditions, "run": run_digest(conditions)}


class Run:
    """The table of a run, and its record.

    Args:
        path: The table.
        conditions: Those of the run (`conditions_of`).
        given: What its images were given as.
        overwrite: Whether the table of another run may be replaced.
        resume: Whether to go on with the table that is there.

    Attributes:
        done_at: When the table that is gone on with was last written; infinity where there is none.

    Raises:
        IfamError: The table cannot be written, is one of the images or of another run, or cannot be gone on with.
    """

    def __init__(
        self, path: Path, conditions: Mapping[str, Any], given: Sequence[str], overwrite: bool, resume: bool
    ) -> None:
        self.table, self.record, self._conditions = table_of(path), record_path(path), dict(conditions)
        ensure_writable(path)
        if os.path.abspath(path) in map(os.path.abspath, given):
            raise IfamError(f"{path} is one of the lists of images; choose another --out.")
        self.done_at = _last_change(path) if resume else math.inf
        earlier = read_json(self.record) if resume else None
        if earlier is not None:
            self._check_same(earlier)
            self.table.go_on()
        elif STDIN in given or not self.record.exists():
            # Nobody knows whether another list has the same images.
            check_absent([path], overwrite)
        else:
            check_replaceable(self.record, self._conditions["run"], overwrite)
        self._begun = earlier is not None
        self.counts = {"rows": 0, "errors": 0}

    def _check_same(self, earlier: Mapping[str, Any]) -> None:
        """Refuse to go on with a run under other conditions."""
        before = earlier.get("conditions")
        if not isinstance(before, dict) or not {*_SAME} <= before.keys():
            raise IfamError(f"{self.record} is not a record of `ifam predict`; start over with --overwrite.")
        for name in _SAME:
            if before[name] != self._conditions[name]:
                raise IfamError(
                    f"{self.table.path} was begun with another {name} ({before[name]!r}, not "
                    f"{self._conditions[name]!r}); give the same to go on, choose another --out, or start over with "
                    f"--overwrite."
                )

    def before(self) -> Iterator[Prediction]:
        """The rows that are there, counted."""
        for row in self.table.rows():
            self._count([row])
            yield row

    def add(self, rows: Sequence[Prediction]) -> None:
        """Write the rows of a batch, before the next one may be interrupted."""
        if not self._begun:
            self.table.discard()
            self._write_record(complete=False)
            self._begun = True
        self.table.add(rows)
        self._count(rows)

    def close(self, complete: bool) -> None:
        """Finish the table, also after a failure, to keep its rows."""
        if self._begun and not self.table.empty:
            self.table.close(complete)
            self._write_record(complete)

    def _count(self, rows: Sequence[Prediction]) -> None:
        self.counts["rows"] += len(rows)
        self.counts["errors"] += sum(row.error is not None for row in rows)

    def _write_record(self, complete: bool) -> None:
        content = {"complete": complete, **self.counts, "conditions": self._conditions}
        write_json(self.record, {**content, "provenance": provenance()})


def _last_change(table: Path) -> float:
    """When a table was last written; a Parquet file that is not finished has its rows beside it."""
    times = [path.stat().st_mtime for path in (table, table.with_name(f"{table.name}.jsonl")) if path.is_file()]
    return max(times, default=math.inf)


class OverlayFolder:
    """A folder of pictures.

    Args:
        folder: The folder.
        run: Digest of the run.
        overwrite: Whether pictures of another run may be replaced.
        resumed: Digest of the run that goes on, whose pictures may be there; None for none.

    Attributes:
        missing: Number of earlier rows without a picture.

    Raises:
        IfamError: It cannot be written, or has other files.
    """

    def __init__(self, folder: Path, run: str, overwrite: bool, resumed: str | None) -> None:
        self.folder, self._real = folder, os.path.realpath(folder)
        self._marker, self._run = folder / OVERLAYS, run
        self.missing = 0
        self._taken: set[str] = set()
        self._looked_at = ""
        self._lock, self._marked, self._goes_on = Lock(), False, self._marker.exists()
        ensure_writable(folder, folder=True, option="--overlays")
        if self._goes_on:
            if resumed is None or run_of(self._marker) != resumed:
                check_replaceable(self._marker, run, overwrite)
        elif not overwrite and folder.is_dir() and any(folder.iterdir()):
            raise IfamError(
                f"{folder} has files that are not pictures of `ifam predict`; choose another --overlays, or draw among "
                f"them with --overwrite."
            )

    def keep(self, row: Prediction) -> None:
        """Leave the picture of an earlier row as it is; count those that are missing."""
        if row.error is None and (row.overlay is None or not row.overlay.is_file()):
            self.missing += 1
        if row.overlay is not None:
            self._taken.add(row.overlay.stem.lower())
            if self._goes_on:
                self._mark()

    def named(self, found: Found) -> Found:
        """An image with the name of its picture: with a number if another has it already (`a.png` and `a.jpg`).

        Raises:
            IfamError: It lies in the folder, where pictures could replace it.
        """
        parent = os.path.dirname(os.path.abspath(found.path))
        if parent != self._looked_at and os.path.realpath(parent) == self._real:
            raise IfamError(f"{self.folder} is the folder of the images; choose another --overlays.")
        self._looked_at = parent
        # File systems allow 255 bytes; some are case-insensitive.
        short = printable(found.name)[-60:]
        number, unique = 1, short
        while unique.lower() in self._taken:
            number += 1
            unique = f"{short}-{number}"
        self._taken.add(unique.lower())
        return found._replace(name=unique)

    def draw(self, row: Prediction, item: Item) -> Prediction:
        """The row with its picture, which is written to the folder; several threads may draw at once."""
        if item.display is None:
            return row
        self._mark()
        path = self.folder / f"{item.found.name}.png"
        picture = row.draw(item.display)
        with replacing(path) as temporary:
            picture.save(temporary)
        return replace(row, overlay=path)

    def _mark(self) -> None:
        """Say whose pictures are in the folder: those of this run."""
        with self._lock:
            if not self._marked:
                write_json(self._marker, {"conditions": {"run": self._run}})
                self._marked = True
