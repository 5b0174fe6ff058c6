"""`ifam audit --any`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ifam.cli.common import resolve_device
from ifam.errors import IfamError
from ifam.importing import names_function
from ifam.io import check_folder, ensure_writable, run_digest


def runs_code(name: str) -> bool:
    """Whether `--any NAME` imports a module and runs its code."""
    return names_function(name) and name.partition(":")[0] not in ("timm", "hf") and not name.endswith(".onnx")


def audit_any(
    name: str,
    selector: str | None,
    *,
    load: Mapping[str, Any],
    where: Mapping[str, Any],
    measure: Mapping[str, Any],
    batch_size: int,
    device: str,
    out: Path,
    overwrite: bool,
) -> None:
    """Measure how often the answers of any classifier flip with the background.

    Args:
        name: The classifier.
        selector: Folder or hub id of the model that cuts objects out; the data's masks where it is None.
        load: What the classifier is loaded with.
        where: Name, root, split and settings of the images.
        measure: What the figures depend on beside these.
        batch_size: Images at a time.
        device: Device to compute on.
        out: Folder for reliance.json, reliance.html and the pictures.
        overwrite: Replace the content of `out`.
    """
    from ifam.auditing.any_classifier import load_any_classifier
    from ifam.auditing.audit_any import audit_any
    from ifam.checkpoints import hub
    from ifam.data.eval_dataset import load_eval_dataset, remembered_root
    from ifam.data.fingerprints import fingerprint
    from ifam.model_files import weights_digest
    from ifam.report.reliance import RELIANCE, print_reliance
    from ifam.report.results import write_reliance

    ensure_writable(out, folder=True)
    root, given = where["root"], where["benchmark"]
    if root is None and given is None and selector is None:
        raise IfamError("--any has no images; give a folder of them with --root, or a data set with --benchmark.")
    saved = None if selector is None else hub.read(selector)
    if runs_code(name):
        print(f"--any {name} runs the code of this module with your rights.")
    classifier = load_any_classifier(name, **load, device=resolve_device(device))
    # The images of the selector's training, or others, of which it does not matter whether it was trained on them.
    extra = saved.extra if saved is not None and root is None and given is None else {}
    given = "folder" if root is not None and given is None else given
    benchmark, images, options = load_eval_dataset(extra, given, root, where["data"], split=where["split"])
    split, source = where["split"] or images.default_eval_split, remembered_root(extra, given, root)
    print(images.describe(split))
    model = None if saved is None else hub.load(saved).to(resolve_device(device))
    conditions: dict[str, Any] = {
        **{"model": name, "benchmark": benchmark, "split": split, "data": options},
        **{"root": None if source is None else str(source.absolute()), "images": fingerprint(images, [split])},
        "preprocessing": {"image_size": classifier.image_size, "mean": classifier.mean, "std": classifier.std},
        "selector": None if model is None else weights_digest(model.state_dict()),
    }
    run = run_digest({**conditions, **measure, "checkpoint": load["checkpoint"]})
    check_folder(out, RELIANCE, ["reliance.html", "reliance_pictures"], run, overwrite)
    result = audit_any(
        classifier, images, model, split=split, batch_size=batch_size, conditions={**conditions, "run": run}, **measure
    )
    try:
        print_reliance(result)
    finally:
        _, page = write_reliance(result, out)
    print(f"Open {page} to look; the figures are in {out / RELIANCE}.")
    if not result.passed:
        sys.exit(1)
