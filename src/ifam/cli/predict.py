"""`ifam predict`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifam.cli.common import check_resume, resolve_device
from ifam.errors import IfamError
from ifam.io import ensure_writable, printable

if TYPE_CHECKING:
    from ifam.prediction.row import Prediction


def predict(
    images: list[str],
    model: str = "runs/ifam",
    out: Path = Path("predictions.csv"),
    overlays: Path | None = None,
    path_column: str = "path",
    batch_size: int = 16,
    workers: int = 0,
    device: str = "auto",
    strict: bool = False,
    drop_parts: list[int] | None = None,
    keep_parts: list[int] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    error: float | None = None,
) -> None:
    """Classify image files: a row for each, printed and written as it is computed.

    Args:
        images: Files, folders, patterns such as 'photos/**/*.jpg', CSV files with a column of paths, or - for a list on
            standard input, one path a line.
        model: Folder or hub id of the model.
        out: Table of the rows, in the format of its ending: .csv, .jsonl or .parquet; predictions.csv in a folder.
        overlays: Folder for a picture of each image: input, parts, and what the predictor saw.
        path_column: Column of the paths in CSV files.
        batch_size: Images at a time.
        workers: Processes that read images; rows are the same for any number.
        device: Device, or several with commas between them, such as cuda:0,cuda:1; "auto" is the GPU, if there is one.
        strict: Stop at a file that cannot be read, instead of writing a row with its error.
        drop_parts: Parts to hide from the predictor.
        keep_parts: The only parts to show to it.
        overwrite: Replace `out` and `overlays`; otherwise only those of the same model for the same images.
        resume: Go on after the last row in `out`; images that have a row are left out.
        error: Also give the set of classes of each image, which misses its class in at most this share of images: one
            class, several, or none; requires `ifam calibrate`, and is by default what the model was calibrated for.
    """
    from ifam.checkpoints import hub
    from ifam.evaluation.conformal import load_calibration
    from ifam.inference import iter_predictions, print_predictions
    from ifam.models.interventions import DropParts, Intervention, KeepParts
    from ifam.prediction.output import table_path
    from ifam.prediction.sources import STDIN

    check_resume(resume, overwrite)
    ensure_writable(table_path(out))
    changes: list[Intervention] = []
    if drop_parts:
        changes.append(DropParts(drop_parts))
    if keep_parts is not None:
        changes.append(KeepParts(keep_parts))
    devices = [resolve_device(name.strip()) for name in device.split(",")]
    saved = hub.read(model)
    net = hub.load(saved).to(devices[0])
    calibration = load_calibration(saved.folder, net) if error is not None or not changes else None
    if error is not None:
        if calibration is None:
            raise IfamError(
                f"{model} is not calibrated, so it has no sets of classes; calibrate it on held-out images with `ifam "
                f"calibrate --model {model}`."
            )
        calibration = calibration.at(error)
    # Images with more than 8 bits are scaled as in training.
    white = saved.extra.get("data", {}).get("white", 0)
    settings: dict[str, Any] = {"out": out, "overlays": overlays, "overwrite": overwrite, "resume": resume}
    settings |= {"batch_size": batch_size, "workers": workers, "devices": devices, "strict": strict, "white": white}
    settings |= {"interventions": changes, "calibration": calibration, "path_column": path_column}
    count = _Count()
    rows = count.of(iter_predictions(net, images, **settings))
    error = None if calibration is None else calibration.error
    print_predictions(rows, hides=net.masks_input, error=error, at_once=STDIN in images)
    count.report(table_path(out))


class _Count:
    """Counts rows, and remembers the first that has an error."""

    def __init__(self) -> None:
        self.rows = self.errors = 0
        self.first: Prediction | None = None

    def of(self, rows: "Iterable[Prediction]") -> "Iterator[Prediction]":
        for row in rows:
            self.rows += 1
            if row.error is not None:
                self.errors += 1
                self.first = self.first or row
            yield row

    def report(self, table: Path) -> None:
        """Say where the rows are.

        Raises:
            IfamError: No image could be read, or there was none.
        """
        if not self.rows:
            raise IfamError("No image was given; give some in the list.")
        if self.first is not None and self.errors == self.rows:
            raise IfamError(
                f"None of the files is a readable image (the first is {self.first.path}: {self.first.error}); check "
                f"the paths. {table} has the error of each."
            )
        print(f"{self.rows:,} row{'s are' if self.rows != 1 else ' is'} in {printable(table)}.")
        if self.first is not None:
            print(f"Without an answer: {self.errors:,}, the first is {printable(self.first.path)}.")
