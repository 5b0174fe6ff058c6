"""`ifam calibrate`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ifam.cli.common import check_classes, resolve_device
from ifam.errors import IfamError
from ifam.io import check_absent, check_replaceable, ensure_writable, local_path, run_digest, write_json


def calibrate(
    model: str = "runs/ifam",
    benchmark: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    error: float = 0.05,
    class_conditional: bool = False,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    data: dict[str, Any] | None = None,
) -> None:
    """Calibrate a model on held-out images, so that it answers with sets of classes of a stated error.

    The calibration is stored with the model, and `ifam predict` uses it if the model has parts. Its coverage is
    measured on the test images, if there are some, and written to `calibration.json`.

    Args:
        model: Folder of the model.
        benchmark: Name of the data set; by default the one the model was trained on.
        root: Folder of the images.
        split: Held-out images, on which the model was not trained; by default "val", or all images without splits.
        error: Largest share of images whose set of classes may miss their class.
        class_conditional: Keep to the error in each class, and not only on average.
        batch_size: Images at a time; changes nothing but speed.
        workers: Processes that load images.
        device: Device to compute on: "auto" for a GPU if available, or "cpu", "cuda:1", ...
        overwrite: Replace a calibration of other images, weights or settings.
        data: Settings of the data set, by name.
    """
    from ifam.checkpoints import hub
    from ifam.console import PlainConsole
    from ifam.data.eval_dataset import default_split, eval_options, load_eval_dataset
    from ifam.data.fingerprints import fingerprint
    from ifam.evaluation.conformal import calibrate
    from ifam.evaluation.coverage import CoverageResult, measure_coverage
    from ifam.model_files import CALIBRATION, weights_digest
    from ifam.provenance import record
    from ifam.report.coverage import coverage_section
    from ifam.report.tables import print_section
    from ifam.serialization import to_json

    saved = hub.read(model)
    config, extra = saved.config, saved.extra
    eval_options(extra, benchmark, data)
    net = hub.load(saved)
    folder = local_path(model)
    if not folder.is_dir():
        raise IfamError(f"{model} is on the hub, where nothing can be stored; copy it to a folder and give that.")
    ensure_writable(folder, folder=True, option="--model")
    name, images, options = load_eval_dataset(extra, benchmark, root, data, config.class_names, split)
    check_classes(images, config)
    white, read = ((given or {}).get("white", 0) for given in (options, extra.get("data")))
    if white != read:
        raise IfamError(
            f"`ifam predict` reads images of this model with white = {read}, as in training, but data.white is "
            f"{white}; leave it away."
        )
    split = split or default_split(images, "val")
    print(images.describe(split))
    conditions: dict[str, Any] = {
        "model": model,
        "method": net.method,
        "weights": weights_digest(net.state_dict()),
        "benchmark": name,
        "held_out": split,
        "data": options,
        "images": fingerprint(images, list(images.splits)),
        "error": error,
        "class_conditional": class_conditional,
    }
    conditions["run"] = run_digest(conditions)
    target = folder / CALIBRATION.replace(".safetensors", ".json")
    check_replaceable(target, conditions["run"], overwrite, option="")
    if not target.exists():
        check_absent([folder / CALIBRATION], overwrite, option="")
    net.to(resolve_device(device))
    settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    calibration = calibrate(net, images, split=split, error=error, class_conditional=class_conditional, **settings)
    counts = calibration.labels.bincount(minlength=len(images.class_names)).tolist()
    held_out = dict(zip(images.class_names, counts, strict=True))
    result = CoverageResult(error, class_conditional, held_out, calibration.tells_unfamiliar)
    if (other := images.default_eval_split) not in ("train", split):
        conditions["split"] = other
        overall, groups = measure_coverage(net, calibration, images, other, **settings)
        result = replace(result, overall=overall, groups=groups)
    result = replace(result, conditions={**conditions, **record()})
    calibration.save(folder)
    write_json(target, to_json(result))
    print_section(PlainConsole(), coverage_section(result))
    use = f"try `ifam predict IMAGES --model {model}`"
    if not net.selects_parts:
        # `ifam predict` draws parts.
        use = f"in Python, `ifam.load_calibration({str(folder)!r}).sets(logits)` gives the set of each image"
    print(f"The calibration is in {folder}: {use}.")
