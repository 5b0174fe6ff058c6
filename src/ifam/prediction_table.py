"""The tables of `ifam predict`: rows on the disk as they are computed, from which a run that was stopped goes on."""

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

from ifam.errors import IfamError
from ifam.evaluation.conformal import Calibration, model_digest
from ifam.io import check_folder, replacing, run_digest
from ifam.model_files import read_json, weights_digest
from ifam.models.base import Classifier
from ifam.models.interventions import Intervention
from ifam.run_log import RunLog


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one file.

    Attributes:
        path: The file.
        label: Index of the most probable class.
        class_name: Its name.
        probability: Its probability.
        top: Names and probabilities of the most probable classes, at most five, best first.
        visible_fraction: Share of the patches in the mask: those that the predictor saw, if the model masks its
            input.
        empty: Whether there are none: the prediction is then the predictor's prior, if the model masks its input.
        overlay: The picture of input, parts and visible patches, if pictures were written.
        classes: Names of the classes in the image's set (`ifam.evaluation.conformal`), the most probable first; there
            is an answer only where it is one. None without a calibration.
        familiarity: Share of held-out images that are at least as unlike the training images; None if unknown.
    """

    path: Path
    label: int
    class_name: str
    probability: float
    top: tuple[tuple[str, float], ...]
    visible_fraction: float
    empty: bool
    overlay: Path | None
    classes: tuple[str, ...] | None = None
    familiarity: float | None = None


class PredictionTable:
    """Writes `predictions.csv` after each batch, and `predictions.json` in the end.

    In between, `predictions.jsonl` has every batch, from which a run that was stopped goes on: no row stays in memory.

    Args:
        folder: Their folder.
        files: The images, and the names of their pictures.
        model: The model.
        interventions: Changes to the selection of every image.
        pictures: Whether there is a picture of each image.
        overwrite: Whether files of another run may be replaced.
        resume: Whether to go on with the batches that this run has done before.
        calibration: What gives the sets of classes.

    Attributes:
        finished: Whether this run was finished before.
        rows: Number of rows that were written.
        skipped: Files that were left out, with the reason.

    Raises:
        IfamError: There are files of another run, or the folder is that of the images.
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[Path, str],
        model: Classifier,
        interventions: Sequence[Intervention],
        pictures: bool,
        overwrite: bool,
        resume: bool,
        calibration: Calibration | None = None,
    ) -> None:
        self.folder, self._is_new = folder, not folder.exists()
        self.csv, self.json = folder / "predictions.csv", folder / "predictions.json"
        if any(parent.resolve() == folder.resolve() for parent in {file.parent for file in files}):
            raise IfamError(f"{folder} is the folder of the images; choose another --out for the pictures of them.")
        weights = weights_digest(model.state_dict())
        self.conditions: dict[str, Any] = {
            "weights": weights,
            "model": model_digest(model, weights),
            "interventions": list(map(str, interventions)),
            "pictures": pictures,
            "images": len(files),
            "paths": _digest(files),
        }
        if calibration is not None:
            self.conditions |= {"error": calibration.error, "calibration": calibration.digest}
        self.conditions["run"] = run_digest(self.conditions)
        others = chain([self.csv.name], (f"{name}.png" for name in files.values() if pictures))
        check_folder(folder, self.json.name, others, self.conditions["run"], overwrite)
        journal = folder / "predictions.jsonl"
        if not resume:
            journal.unlink(missing_ok=True)
        self.log = RunLog(journal)
        whole = read_json(self.json) if resume else None
        self._whole = whole if whole is not None and whole.get("complete") else None
        self.finished = self._whole is not None
        self.rows = self._recorded = 0
        self._is_foreign = False
        self.skipped: list[tuple[Path, str]] = []

    def before(self) -> Iterator[Prediction]:
        """Rows of images that were done before, which are written to `predictions.csv` again."""
        for entry in self._entries() if self._whole is None else [self._whole]:
            try:
                rows = [_from_dict(row, self.folder) for row in entry["predictions"]]
                self.skipped += [(Path(one["path"]), str(one["reason"])) for one in entry["skipped"]]
            except (KeyError, TypeError, ValueError) as error:
                raise self._foreign() from error
            self._recorded = len(self.skipped)
            self._write_csv(rows)
            yield from rows

    def add(self, rows: Sequence[Prediction]) -> None:
        """Write the rows of a batch, before the next one may be interrupted."""
        if not self.rows:
            # Identifies the run before its other files are written.
            self._write_json(complete=False)
        skipped = [{"path": str(path), "reason": reason} for path, reason in self.skipped[self._recorded :]]
        self.log.add({"run": self.conditions["run"], "predictions": list(map(_as_dict, rows)), "skipped": skipped})
        self._recorded = len(self.skipped)
        self._write_csv(rows)

    def close(self, complete: bool) -> None:
        """Write `predictions.json`, also after a failure, to keep earlier predictions."""
        if self.rows and not self.finished:
            if self._recorded < len(self.skipped):
                self.add([])
            self._write_json(complete)
        if (complete or not self.rows) and not self._is_foreign:
            self.log.path.unlink(missing_ok=True)
        if self._is_new and not self.rows:
            with suppress(OSError):
                self.folder.rmdir()

    def _entries(self) -> Iterator[dict[str, Any]]:
        """The batches of this run in the journal."""
        for _, entry in self.log.entries():
            if not isinstance(entry, dict):
                raise self._foreign()
            if entry.get("run") == self.conditions["run"]:
                yield entry

    def _foreign(self) -> IfamError:
        self._is_foreign = True
        return IfamError(
            f"{self.log.path} or {self.json.name} beside it was not written by `ifam predict`; start over, without "
            f"--resume."
        )

    def _write_csv(self, rows: Sequence[Prediction]) -> None:
        """Add rows to `predictions.csv`."""
        first = not self.rows
        self.rows += len(rows)
        with self.csv.open("w" if first else "a", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, fieldnames=[field.name for field in fields(Prediction)])
            if first:
                writer.writeheader()
            for row in map(_as_dict, rows):
                top, classes = "; ".join(f"{name} {p:.4f}" for name, p in row["top"]), row["classes"]
                writer.writerow({**row, "top": top, "classes": None if classes is None else in_words(classes, "; ")})

    def _write_json(self, complete: bool) -> None:
        """Write `predictions.json` from the journal, a line for each row."""

        def lines(key: str) -> Iterator[str]:
            rows = (row for entry in self._entries() for row in entry[key])
            return (("" if number == 0 else ",\n") + _json(row) for number, row in enumerate(rows))

        with (
            replacing(self.json) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
        ):
            file.write(f'{{\n"complete": {_json(complete)},\n"predictions": [\n')
            file.writelines(lines("predictions"))
            file.write('\n],\n"skipped": [\n')
            file.writelines(lines("skipped"))
            file.write(f'\n],\n"conditions": {_json(self.conditions)}\n}}\n')


def in_words(classes: Sequence[str], separator: str = " or ") -> str:
    """A set of classes in words."""
    return separator.join(classes) or "(none)"


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False)


def _digest(files: Iterable[Path]) -> str:
    """A digest of the absolute paths of all images, in their order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(os.fsencode(file.absolute()) + b"\0")
    return digest.hexdigest()[:16]


def _as_dict(row: Prediction) -> dict[str, Any]:
    """A row for a table; its picture is named relative to the folder."""
    return {**asdict(row), "path": str(row.path), "overlay": row.overlay.name if row.overlay else None}


def _from_dict(row: dict[str, Any], folder: Path) -> Prediction:
    """The opposite of `_as_dict`."""
    top = tuple((str(name), float(probability)) for name, probability in row["top"])
    overlay = folder / row["overlay"] if row["overlay"] else None
    classes = None if row.get("classes") is None else tuple(map(str, row["classes"]))
    return Prediction(**{**row, "path": Path(row["path"]), "top": top, "overlay": overlay, "classes": classes})
