"""Predict classes of image files, with a picture of the parts and the mask behind each prediction."""

import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.table import Table
from torchvision.transforms import v2

from ifam._typing import Float, Tensor
from ifam.console import PlainConsole
from ifam.data.base import FitAndCrop
from ifam.data.files import list_images
from ifam.data.images import load_image
from ifam.errors import IfamError
from ifam.evaluation.conformal import Calibration
from ifam.evaluation.features import features_of, recorded_features
from ifam.interruption import Interrupted
from ifam.io import ensure_writable, local_path, printable, replacing
from ifam.models.base import Classifier, device_of, evaluating, finite_logits
from ifam.models.interventions import Intervention
from ifam.prediction_table import Prediction, PredictionTable, in_words
from ifam.progress import ProgressBar
from ifam.report.overlays import triptych
from ifam.types import Output

logger = logging.getLogger(__name__)

_TOP = 5
# Largest side of displayed images in pixels, the input size of the paper's models.
_DISPLAY = 518
# Up to this many images, there is no progress bar, and one table of all.
_FEW = 20


@dataclass(frozen=True)
class _Item:
    """A file that was read: the model's input, and the same crop in a resolution for display, if it is drawn."""

    path: Path
    name: str
    pixels: Tensor
    display: Image.Image | None


def predict(
    model: Classifier,
    paths: str | Path | Sequence[str | Path],
    *,
    batch_size: int = 16,
    out: str | Path | None = None,
    skip_bad: bool = False,
    interventions: Sequence[Intervention] = (),
    overwrite: bool = False,
    white: int = 0,
    resume: bool = False,
    pictures: bool = True,
    calibration: Calibration | None = None,
) -> list[Prediction]:
    """Classify image files.

    Args:
        model: A model with parts; it runs in evaluation mode, and its mode is restored.
        paths: Files, or folders that are searched recursively.
        batch_size: Images that are classified at once.
        out: Folder for a picture of each image and for `predictions.csv` and `predictions.json`; created if needed.
            Rows are written to `predictions.csv` after each batch.
        skip_bad: Leave out files that are not images, with a warning, instead of stopping.
        interventions: Changes to the selection of every image, see `ifam.models.interventions`.
        overwrite: Replace files in `out`, of any origin; otherwise, only those of the same run.
        white: The value that is white in images of more than 8 bits, as in training (see
            `ifam.data.images.load_image`).
        resume: Go on where the same run was stopped in `out`, instead of starting over.
        pictures: Write a picture of each image to `out`, beside the tables.
        calibration: Also give the set of classes of each image, see `ifam.calibrate`.

    Returns:
        One row for each image, in the order of the paths; the files of a folder are sorted by name.

    Raises:
        IfamError: A path is missing, a file is not an image, there are no images, the model has no parts or does not
            support interventions, or `out` cannot be written or contains the images or files of another run.
    """
    settings: dict[str, Any] = {"batch_size": batch_size, "out": out, "skip_bad": skip_bad, "white": white}
    settings |= {"interventions": interventions, "overwrite": overwrite, "resume": resume, "pictures": pictures}
    settings["calibration"] = calibration
    return list(iter_predictions(model, paths, **settings))


def iter_predictions(
    model: Classifier,
    paths: str | Path | Sequence[str | Path],
    *,
    batch_size: int = 16,
    out: str | Path | None = None,
    skip_bad: bool = False,
    interventions: Sequence[Intervention] = (),
    overwrite: bool = False,
    white: int = 0,
    resume: bool = False,
    pictures: bool = True,
    calibration: Calibration | None = None,
) -> Iterator[Prediction]:
    """Classify any number of image files; rows come as they are computed, and memory does not grow with them.

    Arguments, rows and errors are those of `ifam.predict`. What can be checked before the first image is checked at
    once. Where the iteration ends early, rows in `out` are kept, and `resume` goes on after them.
    """
    if not model.selects_parts:
        raise IfamError(
            f"The method {model.method} has no parts to draw; predict with a model of another method, such as ifam, "
            f"selector, late_mask or soft_mask (`ifam evaluate` supports every method)."
        )
    model.check_interventions(interventions)
    if interventions and calibration is not None:
        raise IfamError("Sets of classes hold for the model's own masks; leave interventions or the calibration away.")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise IfamError(f"batch_size is {batch_size!r}, but a whole number of at least 1 is needed.")
    folder = None if out is None else local_path(out)
    if folder:
        ensure_writable(folder, folder=True)
    files = _find([paths] if isinstance(paths, str | Path) else paths, folder)
    table = None
    if folder is not None:
        table = PredictionTable(folder, files, model, interventions, pictures, overwrite, resume, calibration)

    def classified(batch: Sequence[_Item]) -> list[Prediction]:
        return _classify(batch, model, folder if pictures else None, interventions, calibration)

    def read(files: Iterable[tuple[Path, str]], skipped: list[tuple[Path, str]], total: int) -> Iterator[_Item]:
        return _read(files, total, model, skipped if skip_bad else None, white, folder is not None and pictures)

    return _rows(files, table, read, classified, batch_size)


def _rows(
    files: Mapping[Path, str],
    table: PredictionTable | None,
    read: Callable[[Iterable[tuple[Path, str]], list[tuple[Path, str]], int], Iterator[_Item]],
    classified: Callable[[Sequence[_Item]], list[Prediction]],
    batch_size: int,
) -> Iterator[Prediction]:
    """Rows of the files that were done before, and of the others, which are read and classified in batches."""
    count, complete = 0, False
    try:
        for row in () if table is None else table.before():
            count += 1
            yield row
        skipped = [] if table is None else table.skipped
        done = count + len(skipped)
        items = read(islice(files.items(), done, None), skipped, len(files) - done)
        while batch := list(islice(items, batch_size)):
            rows = classified(batch)
            if table is not None:
                table.add(rows)
            count += len(rows)
            yield from rows
        complete = True
    finally:
        if table is not None:
            table.close(complete)
    if not count:
        raise IfamError(f"None of the files is a readable image (the first is {next(iter(files))}); check the paths.")
    if skipped:
        _report(skipped)


def print_predictions(rows: Iterable[Prediction], *, hides: bool = True, error: float | None = None) -> None:
    """Print a table of a few images, or a line for each of many as it comes.

    Args:
        rows: The rows.
        hides: Whether the model masks its input.
        error: Error of the sets of classes; None where there are none.
    """
    rows = iter(rows)
    columns = ["image", "class", "probability", "visible" if hides else "in the mask, which hides nothing"]
    columns += [] if error is None else [f"at {error:.3g} error"]
    few = list(islice(rows, _FEW + 1))
    if len(few) > _FEW:
        for cells in chain([columns], map(_cells, chain(few, rows))):
            _print("  ".join(cells))
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
    visible = "nothing" if row.empty else f"{row.visible_fraction:.0%}"
    sets = () if row.classes is None else (printable(in_words(row.classes)),)
    return printable(row.path), printable(row.class_name), f"{row.probability:.1%}", visible, *sets


def preprocess(image: Image.Image, model: Classifier) -> Float[Tensor, "3 S1 S2"]:
    """The model's input from an image: the shorter side resized, the center cropped, normalized.

    Args:
        image: An image of any size and mode.
        model: The model, for its image size and normalization.

    Returns:
        Normalized pixels.
    """
    mean, std = model.normalization
    pixels = FitAndCrop(model.image_size)(v2.functional.to_image(image.convert("RGB")))
    pixels = v2.functional.to_dtype(pixels, torch.float32, scale=True)
    return torch.as_tensor(v2.functional.normalize(pixels, list(mean), list(std)))


def display_crop(image: Image.Image, model: Classifier) -> Image.Image:
    """The crop that the model sees, in the resolution of the original up to 518 pixels.

    Args:
        image: An image of any size and mode.
        model: The model, for its image size.

    Returns:
        An RGB image, at least as large as the model's input, with a whole number of pixels per patch of the predictor.
    """
    rows, columns = model.mask_grid
    height, width = model.image_size
    scale = max(1.0, min(_DISPLAY / min(height, width), image.height / height, image.width / width))
    # Rounded down to patches, so that all are drawn equally large.
    size = rows * int(scale * height / rows), columns * int(scale * width / columns)
    cropped: Image.Image = FitAndCrop(size)(image.convert("RGB"))
    return cropped


def _find(paths: Iterable[str | Path], out: Path | None) -> dict[Path, str]:
    """The image files, each with a unique name for its picture."""
    files: dict[Path, str] = {}
    seen: set[str] = set()
    for given in map(local_path, paths):
        if not given.exists():
            raise IfamError(f"{given} does not exist; give image files or folders of images.")
        if not (given.is_dir() or given.is_file()):
            raise IfamError(f"{given} is not a regular file; give image files or folders of images.")
        for file in _images_in(given, out) if given.is_dir() else [given]:
            if os.path.abspath(file) in seen:
                continue
            seen.add(os.path.abspath(file))
            inside = file.name if file == given else str(file.relative_to(given))
            files.setdefault(file, Path(inside).with_suffix("").as_posix().replace("/", "_"))
    if not files:
        raise IfamError("No path was given; give image files or folders of images.")
    taken: set[str] = set()
    for file, name in files.items():
        # Long names are truncated at the front: file systems allow 255 bytes.
        files[file] = _unused(name[-60:], taken)
    return files


def _images_in(folder: Path, out: Path | None) -> list[Path]:
    """Image files anywhere below a folder, without our pictures in `out`; files that are left out are logged."""
    outside = set() if out is None or out.resolve() == folder.resolve() else {out.resolve()}
    listing = list_images(folder, outside=outside)
    listing.require_images(folder)
    listing.warn(folder)
    return listing.paths


def _unused(name: str, taken: set[str]) -> str:
    """The name, with a number if another file has it already (`a.png` and `a.jpg`)."""
    number, unique = 1, name
    # Some file systems are case-insensitive.
    while unique.lower() in taken:
        number += 1
        unique = f"{name}-{number}"
    taken.add(unique.lower())
    return unique


def _read(
    files: Iterable[tuple[Path, str]],
    total: int,
    model: Classifier,
    skipped: list[tuple[Path, str]] | None,
    white: int,
    drawn: bool,
) -> Iterator[_Item]:
    """Read the files one by one; bad ones are added to `skipped`, or raise where it is None."""
    with ProgressBar(disable=total <= _FEW) as bar:
        task = bar.add_task("predicting", total=total)
        for path, name in files:
            try:
                image = load_image(path, white)
            except IfamError as error:
                if skipped is None:
                    raise
                skipped.append((path, str(error.__cause__)))
            else:
                yield _Item(path, name, preprocess(image, model), display_crop(image, model) if drawn else None)
            bar.advance(task)


@torch.inference_mode()
def _classify(
    batch: Sequence[_Item],
    model: Classifier,
    folder: Path | None,
    interventions: Sequence[Intervention],
    calibration: Calibration | None,
) -> list[Prediction]:
    """Rows for a batch of images, their pictures written to the folder."""
    device = device_of(model)
    images = torch.stack([item.pixels for item in batch]).to(device)
    with evaluating(model), recorded_features(model) as features:
        output = model(images, interventions)
    probabilities = finite_logits(output.logits).softmax(dim=1).cpu()
    sets, familiarity = None, None
    if calibration is not None:
        familiarity = calibration.familiarity(features_of(model, features, len(batch)))
        sets = calibration.sets(output.logits, familiarity)
    classes = model.config.class_names or tuple(f"class {c}" for c in range(model.config.num_classes))
    visible, empty = output.visible_fraction.tolist(), output.empty.tolist()
    rows = []
    for i, item in enumerate(batch):
        best = probabilities[i].topk(min(_TOP, len(classes)))
        top = [(classes[c], p) for p, c in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
        row = Prediction(item.path, int(best.indices[0]), *top[0], tuple(top), visible[i], empty[i], None)
        if sets is not None:
            ordered = [c for c in probabilities[i].argsort(descending=True).tolist() if sets[i, c]]
            row = replace(row, classes=tuple(classes[c] for c in ordered))
        if familiarity is not None:
            row = replace(row, familiarity=float(familiarity[i].max()))
        rows.append(row if folder is None else _draw(row, item, output, i, folder, model))
    return rows


def _draw(row: Prediction, item: _Item, output: Output, i: int, folder: Path, model: Classifier) -> Prediction:
    """The row with its picture, which is written to the folder."""
    assert output.mask is not None, "only models that select parts are drawn"
    assert item.display is not None, "a picture is drawn of what was read for it"
    if not model.masks_input:
        seen = f"{row.visible_fraction:.0%} of the patches in the mask, which hides nothing"
    elif row.empty:
        seen = "nothing visible: the answer is the predictor's prior"
    else:
        seen = f"{row.visible_fraction:.0%} of the {'pixels' if model.masks_pixels else 'patches'} visible"
    if row.classes is not None:
        seen += f" · set: {printable(in_words(row.classes))}"
    picture = triptych(
        item.display,
        output.part_maps[i],
        output.mask[i],
        title=f"{row.class_name} · {row.probability:.1%}",
        caption=f"{printable(row.path.name)} · {seen}",
    )
    path = folder / f"{item.name}.png"
    with replacing(path) as temporary:
        picture.save(temporary)
    return replace(row, overlay=path)


def _report(skipped: Sequence[tuple[Path, str]]) -> None:
    """Log which files were left out."""
    what = "1 file that is" if len(skipped) == 1 else f"{len(skipped)} files that are"
    names = ", ".join(str(path) for path, _ in skipped[:5]) + (", ..." if len(skipped) > 5 else "")
    logger.warning("Skipped %s not a readable image: %s", what, names)
