"""`ifam prepare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ifam.errors import IfamError
from ifam.io import ensure_writable

if TYPE_CHECKING:
    pass


def prepare(
    benchmark: Literal["siim_acr"], root: Path | None = None, out: Path | None = None, tubes: Path | None = None
) -> None:
    """Bring the files of a data set into the layout that `--benchmark` reads.

    Args:
        benchmark: Name of the data set: "siim_acr" is the only one that needs it.
        root: Where its files are: for siim_acr, `train-rle.csv` and `dicom-images-train`.
        out: Folder for the result; the root where none is given.
        tubes: The chest tube annotations; `cxr_tube_dict.pkl` below the root where none are given.
    """
    from ifam.data import prepare_siim_acr
    from ifam.progress import ProgressBar

    if root is None:
        raise IfamError(f"Preparing {benchmark} needs to know where its files are; give --root DIR.")
    target = out or root
    ensure_writable(target, folder=True)
    with ProgressBar() as bar:
        task = bar.add_task(f"preparing {benchmark}", total=None)
        counts = prepare_siim_acr(
            root, target, tubes, lambda done, total: bar.update(task, completed=done, total=total)
        )
    print(", ".join(f"{name}: {count} images" for name, count in counts.items()))
    print(f"Written to {target}: try `ifam train --benchmark {benchmark} --root {target}`.")
