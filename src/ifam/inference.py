"""Predict classes of image files: any number of them, as rows that are written as they are computed."""

import logging
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ifam.console import PlainConsole
from ifam.data.images import load_image as load_image
from ifam.errors import IfamError
from ifam.evaluation.conformal import Calibration, check_owner
from ifam.interruption import Interrupted
from ifam.io import local_path, printable, run_of
from ifam.models.base import Classifier
from ifam.models.interventions import Intervention
from ifam.prediction.classification import Rows, dealt, replicas
from ifam.prediction.output import OverlayFolder, Run, conditions_of, record_path, table_path
from ifam.prediction.reading import Item, ReadBatch, Reader, read_batches
from ifam.prediction.reading import display_crop as display_crop
from ifam.prediction.reading import preprocess as preprocess
from ifam.prediction.row import Prediction, in_words
from ifam.prediction.sources import STDIN, Found, ImageSources, path_key
from ifam.progress import ProgressBar

logger = logging.getLogger(__name__)

# Up to this many images, there is no progress bar, and one table of all.
_FEW = 20
# Ways in which values were scaled that are logged.
_TOLD = 3


def predict(
    model: Classifier,
    paths: str | Path | Iterable[str | Path],
    *,
    batch_size: int = 16,
    out: str | Path | None = None,
    overlays: str | Path | None = None,
    strict: bool = False,
    interventions: Sequence[Intervention] = (),
    overwrite: bool = False,
    white: int = 0,
    resume: bool = False,
    calibration: Calibration | None = None,
    workers: int = 0,
    devices: Sequence[torch.device | str] = (),
    path_column: str = "path",
) -> list[Prediction]:
    """Classify image files.

    Args:
        model: A model with parts; it runs in evaluation mode, and its mode is restored.
        paths: Files, folders that are searched recursively, patterns such as "photos/**/*.jpg", CSV files with a column
            of paths relative to their folders, or "-" for a list on standard input, one path a line. Or an iterator of
            paths of files, which is read as it goes. Each file is classified once.
        batch_size: Images that are classified at once.
        out: Table to write rows to after each batch, in the format of its ending: `.csv`, `.jsonl` or `.parquet` (the
            extra `parquet`); `predictions.csv` in a folder.
        overlays: Folder for a picture of each image; created if needed.
        strict: Stop at a file that cannot be read, instead of giving a row with its error.
        interventions: Changes to the selection of every image, see `ifam.models.interventions`.
        overwrite: Replace tables and pictures, of any origin; otherwise, only those of the same run.
        white: The value that is white in images of more than 8 bits, as in training (see
            `ifam.data.images.load_image`).
        resume: Go on after the last row in `out`, instead of starting over: images that have a row are left out.
        calibration: Also give the set of classes of each image, see `ifam.calibrate`.
        workers: Processes that read images; rows are the same for any number.
        devices: Devices that share the work, each with a copy of the model; that of the model where none is named.
        path_column: The column of the paths in CSV files.

    Returns:
        One row for each image, in the order of the paths; the files of a folder are sorted by name. Where `resume` goes
        on, those that are in the table come first.

    Raises:
        IfamError: A path is missing or has no images, the model has no parts or does not support interventions, `out`
            or `overlays` cannot be written or is of another run, or with `strict` a file cannot be read.
    """
    settings: dict[str, Any] = {"batch_size": batch_size, "out": out, "overlays": overlays, "strict": strict}
    settings |= {"interventions": interventions, "overwrite": overwrite, "white": white, "resume": resume}
    settings |= {"calibration": calibration, "workers": workers, "devices": devices, "path_column": path_column}
    return list(iter_predictions(model, paths, **settings))


def iter_predictions(
    model: Classifier,
    paths: str | Path | Iterable[str | Path],
    *,
    batch_size: int = 16,
    out: str | Path | None = None,
    overlays: str | Path | None = None,
    strict: bool = False,
    interventions: Sequence[Intervention] = (),
    overwrite: bool = False,
    white: int = 0,
    resume: bool = False,
    calibration: Calibration | None = None,
    workers: int = 0,
    devices: Sequence[torch.device | str] = (),
    path_column: str = "path",
) -> Iterator[Prediction]:
    """Classify any number of image files; rows come as they are computed, and memory does not grow with them.

    Arguments, rows and errors are those of `ifam.predict`. What can be checked before the first image is checked at
    once. Where the iteration ends early, rows in `out` are kept, and `resume` goes on after them.
    """
    _check(model, interventions, calibration, batch_size=batch_size, workers=workers, white=white)
    if resume and out is None:
        raise IfamError("resume goes on with the table in out, but there is none; give out, too.")
    folder = None if overlays is None else local_path(overlays)
    outside = () if folder is None else (folder.resolve(),)
    if isinstance(paths, str | Path):
        paths = [paths]
    # Of what is read as it goes, nobody knows whether it is the same another time.
    given = [*map(os.fspath, paths)] if isinstance(paths, Sequence) else [STDIN]
    sources = ImageSources(paths, path_column=path_column, outside=outside)
    run = drawing = None
    if out is not None or folder is not None:
        conditions = conditions_of(model, given, interventions, calibration, white)
        table = None if out is None else table_path(local_path(out))
        if folder is not None:
            resumed = run_of(record_path(table)) if resume and table is not None else None
            drawing = OverlayFolder(folder, conditions["run"], overwrite, resumed)
        if table is not None:
            run = Run(table, conditions, given, overwrite, resume)
            sources.done_at = run.done_at
    reader = Reader(model.image_size, model.mask_grid, model.normalization, white, drawing is not None)
    batches = _Batches(sources, reader, batch_size, workers, drawing)
    return _rows(replicas(model, devices), batches, Rows(interventions, calibration, white), run, strict)


def _check(
    model: Classifier,
    interventions: Sequence[Intervention],
    calibration: Calibration | None,
    **numbers: int,
) -> None:
    """Refuse what cannot be predicted."""
    if not model.selects_parts:
        raise IfamError(
            f"The method {model.method} has no parts to draw; predict with a model of another method, such as ifam, "
            f"selector, late_mask or soft_mask (`ifam evaluate` supports every method)."
        )
    model.check_interventions(interventions)
    if interventions and calibration is not None:
        raise IfamError("Sets of classes hold for the model's own masks; leave interventions or the calibration away.")
    if calibration is not None:
        check_owner(calibration, model)
    for name, number in numbers.items():
        least = int(name == "batch_size")
        if not isinstance(number, int) or number < least:
            raise IfamError(f"{name} is {number!r}, but a whole number of at least {least} is needed.")


@dataclass(frozen=True)
class _Batches:
    """The images, read in batches as they are needed."""

    sources: ImageSources
    reader: Reader
    batch_size: int
    workers: int
    drawing: OverlayFolder | None

    def __iter__(self) -> Iterator[ReadBatch]:
        told: set[str] = set()
        with closing(read_batches(self.reader, self._found(), self.batch_size, self.workers)) as batches:
            for batch in batches:
                for item in batch.items:
                    _tell_scaling(item, told)
                yield batch

    def _found(self) -> Iterator[Found]:
        for found in self.sources:
            yield found if self.drawing is None else self.drawing.named(found)


def _tell_scaling(item: Item, told: set[str]) -> None:
    """Log how values of more than 8 bits are scaled, the first ways of it."""
    if item.scaling and item.scaling not in told and len(told) < _TOLD:
        told.add(item.scaling)
        logger.warning(
            "%s: values are brought to 8 bits by %s. The column `scaling` says it of every image.",
            *(item.found.path, item.scaling),
        )


def _rows(
    models: Sequence[Classifier], batches: _Batches, rows: Rows, run: Run | None, strict: bool
) -> Iterator[Prediction]:
    """Rows of the files that were done before, and of the others, which are read and classified in batches."""
    sources, drawing, complete = batches.sources, batches.drawing, False

    def classified(model: Classifier, batch: ReadBatch) -> list[Prediction]:
        pairs = rows.of(model, batch)
        return [row if drawing is None else drawing.draw(row, item) for item, row in pairs]

    try:
        for row in () if run is None else run.before():
            sources.done.add(path_key(row.path))
            if drawing is not None:
                drawing.keep(row)
            yield row
        few = sources.count is not None and sources.count <= _FEW
        with ProgressBar(disable=few) as bar, closing(dealt(batches, models, classified)) as results:
            task = bar.add_task("predicting", total=sources.count, completed=len(sources.done))
            for result in results:
                # What stands before a file at which the run stops is kept.
                bad = next((i for i, row in enumerate(result) if strict and row.error is not None), len(result))
                if run is not None and bad:
                    run.add(result[:bad])
                bar.advance(task, bad)
                yield from result[:bad]
                if bad < len(result):
                    raise _stopped_at(result[bad])
        complete = True
    finally:
        if run is not None:
            run.close(complete)
    if sources.repeated:
        logger.warning("Images that were given again, and have one row each: %d.", sources.repeated)
    changed, first = sources.changed
    if first is not None:
        logger.warning(
            "Images that were changed after their row was written, which stays as it was: %d, the first is %s. Remove "
            "these rows, or start over with --overwrite.",
            *(changed, printable(first)),
        )
    if drawing is not None and drawing.missing:
        logger.warning(
            "Rows of earlier without a picture, which are not drawn again: %d. Remove these rows, or start over with "
            "--overwrite.",
            drawing.missing,
        )
    if sources.done:
        logger.warning("Rows in the table of images that were not given now: %d.", len(sources.done))


def _stopped_at(row: Prediction) -> IfamError:
    return IfamError(
        f"{row.path} is not a readable image ({row.error}); remove it, or leave --strict out for a row with the error."
    )


def print_predictions(
    rows: Iterable[Prediction], *, hides: bool = True, error: float | None = None, at_once: bool = False
) -> None:
    """Print a table of a few images, or a line for each of many as it comes.

    Args:
        rows: The rows.
        hides: Whether the model masks its input.
        error: Error of the sets of classes; None where there are none.
        at_once: A line for each row as it comes, however few there are.
    """
    rows = iter(rows)
    columns = ["image", "class", "probability", "visible" if hides else "in the mask, which hides nothing"]
    columns += [] if error is None else [f"at {error:.3g} error"]
    few = [] if at_once else list(islice(rows, _FEW + 1))
    if at_once or len(few) > _FEW:
        for cells in chain([columns], map(_cells, chain(few, rows))):
            _print("  ".join(filter(None, cells)))
        return
    table = Table(*columns)
    for row in few:
        table.add_row(*_cells(row))
    PlainConsole().print(table)


def _print(line: str) -> None:
    """Print a line at once."""
    try:
        print(line, flush=True)
    except BrokenPipeError as error:
        # As in `ifam predict photos | head`.
        raise Interrupted(signal.SIGPIPE) from error


def _cells(row: Prediction) -> tuple[str, ...]:
    if row.probability is None:
        return printable(row.path), f"not read: {printable(row.error)}", "", ""
    visible = "nothing" if row.empty else f"{row.visible_fraction:.0%}"
    sets = () if row.classes is None else (printable(in_words(row.classes)),)
    return printable(row.path), printable(row.class_name), f"{row.probability:.1%}", visible, *sets
