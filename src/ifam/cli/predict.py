"""`ifam predict`."""

from pathlib import Path
from typing import Any

from ifam.cli.common import check_resume
from ifam.errors import IfamError
from ifam.io import ensure_writable


def predict(
    images: list[str],
    model: str = "runs/ifam",
    out: Path = Path("predictions"),
    batch_size: int = 16,
    skip_bad: bool = False,
    drop_parts: list[int] | None = None,
    keep_parts: list[int] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    pictures: bool = True,
    error: float | None = None,
) -> None:
    """Classify image files, and draw the parts and the visible patches of each.

    Rows are printed and written to `predictions.csv` as they are computed.

    Args:
        images: Files, or folders of files.
        model: Folder or hub id of the model.
        out: Folder for the pictures and `predictions.csv`.
        batch_size: Images at a time.
        skip_bad: Skip files that are not valid images, instead of stopping.
        drop_parts: Parts to hide from the predictor.
        keep_parts: The only parts to show to it.
        overwrite: Replace the content of `out`; otherwise only predictions of the same model for the same images.
        resume: Go on where the same command was stopped.
        pictures: Draw a picture of each image; without, only the tables are written.
        error: Also give the set of classes of each image, which misses its class in at most this share of images: one
            class, several, or none; requires `ifam calibrate`, and is by default what the model was calibrated for.
    """
    from ifam.checkpoints import hub
    from ifam.evaluation.conformal import load_calibration
    from ifam.inference import iter_predictions, print_predictions
    from ifam.models.interventions import DropParts, Intervention, KeepParts

    check_resume(resume, overwrite)
    ensure_writable(out, folder=True)
    changes: list[Intervention] = []
    if drop_parts:
        changes.append(DropParts(drop_parts))
    if keep_parts is not None:
        changes.append(KeepParts(keep_parts))
    saved = hub.read(model)
    net = hub.load(saved)
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
    settings: dict[str, Any] = {"out": out, "overwrite": overwrite, "white": white, "resume": resume}
    settings |= {"batch_size": batch_size, "skip_bad": skip_bad, "pictures": pictures}
    rows = iter_predictions(net, images, interventions=changes, calibration=calibration, **settings)
    print_predictions(rows, hides=net.masks_input, error=None if calibration is None else calibration.error)
    print(f"{'Pictures and predictions.csv are' if pictures else 'predictions.csv is'} in {out}.")
