"""The tables of `ifam predict`: rows on the disk as they are computed, from which a run that was stopped goes on."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ifam.errors import IfamError
from ifam.io import check_folder, run_digest, write_json
from ifam.model_files import read_json, weights_digest
from ifam.models.base import Classifier
from ifam.models.interventions import Intervention
from ifam.run_log import RunLog


@dataclass(frozen=True)
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
    """

    path: Path
    label: int
    class_name: str
    probability: float
    top: tuple[tuple[str, float], ...]
    visible_fraction: float
    empty: bool
    overlay: Path | None


class PredictionTable:
    """Writes `predictions.csv` after each batch, and `predictions.json` in the end.

    In between, `predictions.jsonl` has every batch, from which a run that was stopped goes on.

    Args:
        folder: Their folder.
        files: The images, and the names of their pictures.
        model: The model.
        interventions: Changes to the selection of every image.
        overwrite: Whether files of another run may be replaced.
        resume: Whether to go on with the batches that this run has done before.

    Raises:
        IfamError: There are files of another run, or the folder is that of the images.
    """

    def __init__(
        self,
        folder: Path,
        files: dict[Path, str],
        model: Classifier,
        interventions: Sequence[Intervention],
        overwrite: bool,
        resume: bool,
    ) -> None:
        self.folder = folder
        self.csv, self.json = folder / "predictions.csv", folder / "predictions.json"
        self.rows: list[dict[str, Any]] = []
        if any(file.absolute().parent.resolve() == folder.resolve() for file in files):
            raise IfamError(f"{folder} is the folder of the images; choose another --out for the pictures of them.")
        self.conditions: dict[str, Any] = {
            "weights": weights_digest(model.state_dict()),
            "interventions": list(map(str, interventions)),
            "images": [str(file.absolute()) for file in files],
        }
        self.conditions["run"] = run_digest(self.conditions)
        others = ["predictions.csv", *(f"{name}.png" for name in files.values())]
        check_folder(folder, "predictions.json", others, self.conditions["run"], overwrite)
        journal = folder / "predictions.jsonl"
        if not resume:
            journal.unlink(missing_ok=True)
        self.log = RunLog(journal)
        # As in `predictions.json`, whose rows are those of a run that is finished.
        entries = [entry for _, entry in self.log.entries() if entry["run"] == self.conditions["run"]]
        whole = read_json(self.json) if resume else None
        if whole is not None and whole["complete"]:
            entries = [whole]
        self.before = [row for entry in entries for row in entry["predictions"]]
        self.skipped = entries[-1]["skipped"] if entries else []

    def done(self) -> tuple[list[Prediction], list[tuple[Path, str]]]:
        """Rows of images that were done before, and files that were left out; rows are written again."""
        rows = [_from_dict(row, self.folder) for row in self.before]
        if rows:
            self._write_csv(rows)
        return rows, [(Path(one["path"]), one["reason"]) for one in self.skipped]

    def add(self, rows: Sequence[Prediction], skipped: Sequence[tuple[Path, str]]) -> None:
        """Write the rows of a batch, before the next one may be interrupted."""
        if not self.rows:
            # Identifies the run before its other files are written.
            self._write_json([], complete=False)
        self.log.add({"run": self.conditions["run"], **_content(list(map(_as_dict, rows)), skipped)})
        self._write_csv(rows)

    def _write_csv(self, rows: Sequence[Prediction]) -> None:
        """Add rows to `predictions.csv`."""
        first = not self.rows
        self.rows += [_as_dict(row) for row in rows]
        with self.csv.open("w" if first else "a", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, fieldnames=[field.name for field in fields(Prediction)])
            if first:
                writer.writeheader()
            for row in self.rows[-len(rows) :]:
                writer.writerow({**row, "top": "; ".join(f"{name} {p:.4f}" for name, p in row["top"])})

    def close(self, skipped: Sequence[tuple[Path, str]], complete: bool) -> None:
        """Write `predictions.json`, also after a failure, to keep earlier predictions."""
        if self.rows:
            self._write_json(skipped, complete)
        if complete or not self.rows:
            self.log.path.unlink(missing_ok=True)

    def _write_json(self, skipped: Sequence[tuple[Path, str]], complete: bool) -> None:
        write_json(self.json, {"complete": complete, **_content(self.rows, skipped), "conditions": self.conditions})


def _content(rows: list[dict[str, Any]], skipped: Sequence[tuple[Path, str]]) -> dict[str, Any]:
    return {"predictions": rows, "skipped": [{"path": str(path), "reason": reason} for path, reason in skipped]}


def _as_dict(row: Prediction) -> dict[str, Any]:
    """A row for a table; its picture is named relative to the folder."""
    return {**vars(row), "path": str(row.path), "overlay": row.overlay.name if row.overlay else None}


def _from_dict(row: dict[str, Any], folder: Path) -> Prediction:
    """The opposite of `_as_dict`."""
    top = tuple((str(name), float(probability)) for name, probability in row["top"])
    overlay = folder / row["overlay"] if row["overlay"] else None
    return Prediction(**{**row, "path": Path(row["path"]), "top": top, "overlay": overlay})
