"""Convert the files of the SIIM-ACR challenge to the sets of `--benchmark siim_acr`.

    python -m tools.prepare_siim_acr --root siim --tubes cxr_tube_dict.pkl

The root is expected to contain, as in the archive of the challenge:

    train-rle.csv                          ImageId, EncodedPixels: -1, or runs of pixels; several lines per image
    dicom-images-train/*/*/<ImageId>.dcm

and, anywhere, the tube annotations: a pickle or a JSON file of a dict from ImageId to 0 or 1.

X-rays with a tube annotation are the test set, all other labeled ones are for training. Where an image has several
lines, its mask is their union. Runs go down the columns of the image. The paper's code uses the first line
only, and puts the runs along the rows, which mirrors the masks about the diagonal; labels and sets are the same.
"""

import io
import json
import os
import pickle
import shutil
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

from ifam.data.benchmarks.siim_acr import MASKS, SETS
from ifam.data.dicom import dicom_size, require_pydicom
from ifam.data.files import image_files
from ifam.data.source_files import find_root, read_csv
from ifam.errors import IfamError
from ifam.io import ensure_writable, replacing
from ifam.progress import ProgressBar

SOURCE = "https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation"
TUBES = "https://github.com/khaledsaab/spatial_specificity"


# Python 2 wrote `__builtin__`; older protocols have no opcode for sets.
_PLAIN: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
    ("collections", "OrderedDict"): OrderedDict,
}


def prepare(root: Path, out: Path | None = None, tubes: Path | None = None) -> dict[str, int]:
    """Sort the challenge's X-rays into sets, and draw their masks.

    Files are linked where the file system supports it, and copied elsewhere. Existing files are kept, so an interrupted
    run can be restarted.

    Args:
        root: Folder of `train-rle.csv` and `dicom-images-train`.
        out: Folder for the sets; the root by default.
        tubes: Tube annotations; `cxr_tube_dict.pkl` below the root by default.

    Returns:
        Number of X-rays in each set.

    Raises:
        IfamError: A file is missing or is not as expected.
    """
    out = root if out is None else out
    ensure_writable(out, folder=True)
    root = find_root("siim_acr", root, ("train-rle.csv", "dicom-images-train"), SOURCE)
    require_pydicom()
    runs = _read_runs(root / "train-rle.csv")
    with_tube = _read_tubes(root / "cxr_tube_dict.pkl" if tubes is None else tubes)
    files = {path.name[: -len(".dcm")]: path for path in image_files(root / "dicom-images-train", {".dcm"})}
    missing = next((name for name in runs if name not in files), None)
    if missing is not None:
        raise IfamError(
            f"{root / 'dicom-images-train'} lacks {missing}.dcm, which train-rle.csv lists; get the data from {SOURCE}."
        )
    counts = dict.fromkeys(SETS.values(), 0)
    with ProgressBar() as bar:
        task = bar.add_task("preparing siim_acr", total=len(runs))
        for name, encoded in runs.items():
            label = int(bool(encoded))
            for folder in _sets_of(label, with_tube.get(name)):
                _link(files[name], out / folder / str(label))
                counts[folder] += 1
            target = out / MASKS / f"{name}.png"
            if not target.exists():
                mask = draw_runs(encoded, dicom_size(files[name]), f"{root / 'train-rle.csv'}, {name}")
                with replacing(target) as temporary:
                    Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, format="PNG")
            bar.advance(task)
    for folder in counts:
        for label in (0, 1):
            (out / folder / str(label)).mkdir(parents=True, exist_ok=True)
    return counts


def _sets_of(label: int, tube: int | None) -> list[str]:
    """The sets that an X-ray belongs to."""
    if tube is None:
        return [SETS["train"]]
    return [SETS["test"], SETS["non_robust"] if tube == label else SETS["robust"]]


def _read_runs(path: Path) -> dict[str, list[str]]:
    """The encoded masks of each image, none for the healthy."""
    runs_of_image: dict[str, list[str]] = {}
    for line, row in read_csv(path, ("ImageId", "EncodedPixels")):
        if not row["EncodedPixels"]:
            raise IfamError(f"{path}, line {line} has no EncodedPixels (-1 for the healthy); re-download it.")
        runs = runs_of_image.setdefault(row["ImageId"], [])
        if row["EncodedPixels"] != "-1":
            runs.append(row["EncodedPixels"])
    return runs_of_image


def _read_tubes(path: Path) -> dict[str, int]:
    """Whether an X-ray shows a chest tube, by its ImageId."""
    if not path.is_file():
        raise IfamError(f"There are no tube annotations {path}; get cxr_tube_dict.pkl from {TUBES}.")
    if path.suffix == ".json":
        try:
            table: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise IfamError(f"{path} is not a JSON file ({error}); write a dict from ImageId to 0 or 1.") from None
    else:
        table = read_plain_pickle(path, "write the same dict from ImageId to 0 or 1 as a JSON file")
    if not (isinstance(table, Mapping) and all(isinstance(k, str) and v in (0, 1) for k, v in table.items())):
        raise IfamError(f"{path} is not a dict from ImageId to 0 or 1; get cxr_tube_dict.pkl from {TUBES}.")
    return {name.removesuffix(".dcm"): int(value) for name, value in table.items()}


def draw_runs(encoded: Sequence[str], size: tuple[int, int], where: str) -> np.ndarray:
    """The mask [H, W] of some runs.

    Args:
        encoded: Each a list of pairs, "3 2 10 4": skip three pixels, two are true, skip ten more, four are true.
            Pixels are counted down the columns.
        size: Width and height of the mask.
        where: Their source, for messages.

    Raises:
        IfamError: They are not such pairs, or do not fit into the image.
    """
    width, height = size
    flat = np.zeros(width * height, bool)
    for text in encoded:
        try:
            numbers = np.array([int(number) for number in text.split()]).reshape(-1, 2)
        except ValueError:
            raise IfamError(f"{where}: the runs are not pairs of whole numbers; re-download the file.") from None
        ends = numbers.sum(axis=1).cumsum()
        if (numbers < 0).any() or (len(ends) and ends[-1] > flat.size):
            raise IfamError(f"{where}: the runs do not fit into {width} x {height} pixels; re-download the file.")
        for end, length in zip(ends, numbers[:, 1], strict=True):
            flat[end - length : end] = True
    return flat.reshape(width, height).T


def _link(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.name
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        with replacing(target) as temporary:
            shutil.copy2(source, temporary)


class _PlainUnpickler(pickle.Unpickler):
    """Loads only the containers in `_PLAIN`, so that no code can be run."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The container of that name."""
        if (module_name, global_name) not in _PLAIN:
            raise pickle.UnpicklingError(f"it needs {module_name}.{global_name}")
        return _PLAIN[module_name, global_name]


def read_plain_pickle(path: Path, fix: str) -> Any:
    """The content of a pickle of containers, numbers and strings.

    Args:
        path: The file.
        fix: What the user can do if it contains anything else.

    Raises:
        IfamError: It contains anything else, or is not a pickle.
    """
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise IfamError(
            f"{path} is not a pickle of plain containers, numbers and strings ({error or type(error).__name__}), and "
            f"anything else is not read because it could run code; {fix}."
        ) from None


def main(args: list[str] | None = None) -> None:
    """Prepare, and print how many X-rays are in each set."""
    try:
        counts = auto_cli(prepare, as_positional=False, args=args, prog="python -m tools.prepare_siim_acr")
    except IfamError as error:
        sys.exit(str(error))
    print(", ".join(f"{name}: {count} images" for name, count in counts.items()))


if __name__ == "__main__":
    main()
