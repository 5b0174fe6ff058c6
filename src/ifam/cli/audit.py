"""`ifam audit`."""

import sys
from pathlib import Path
from typing import Any

from ifam.cli.audit_any import audit_any
from ifam.cli.common import resolve_device
from ifam.errors import IfamError
from ifam.io import check_folder, ensure_writable, run_digest


def audit(
    model: str = "runs/ifam",
    benchmark: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    out: Path = Path("audit"),
    plain: Path | None = None,
    limit: int = 200,
    explain: int = 50,
    batch_size: int = 32,
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
    data: dict[str, Any] | None = None,
    any: str | None = None,
    selector: str | None = None,
    checkpoint: Path | None = None,
    image_size: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    backgrounds: int = 4,
    max_flips: float | None = None,
) -> None:
    """Audit a model: attack hidden pixels, swap backgrounds, probe masks, drop parts, compare with attribution maps.

    The exit status is 1 if a hidden pixel changes an answer. With --any, another classifier is audited: objects are cut
    out and put before other backgrounds, and the answers that flip are counted; it is 1 above --max-flips.

    Args:
        model: Folder or hub id of the model.
        benchmark: Name of the data set; by default the one the model was trained on.
        root: Folder of the images.
        split: Split to audit; by default "test", or "val" if there is no test split.
        out: Folder for audit.json, audit.html and the pictures.
        plain: Folder of a trained plain ViT for post-hoc attribution; by default the model's own predictor.
        limit: Largest number of images, evenly spaced in the split.
        explain: Largest number of images for post-hoc attribution, which is slow.
        batch_size: Images at a time.
        device: Device to compute on: "cpu", "cuda", or "auto" for a GPU if available.
        seed: Seed of everything random.
        overwrite: Replace the content of `out`; otherwise only an audit under the same conditions is replaced.
        data: Settings of the data set, by name.
        any: Audit any classifier: "timm:NAME", "hf:OWNER/NAME" in timm's format, "MODEL.onnx", or
            "PACKAGE.MODULE:FUNCTION", whose code is run.
        selector: Folder or hub id of the model that cuts objects out for --any; by default the masks of the data set.
        checkpoint: State dict for "timm:NAME"; by default timm's pretrained weights.
        image_size: Side of the input of an ONNX file that leaves it open, or of a function; by default 224.
        mean: Channel means of the input for --any; by default as timm states, or those of ImageNet.
        std: Channel standard deviations, likewise.
        backgrounds: Backgrounds of other classes for each object with --any.
        max_flips: Largest share of answers that may flip with --any.
    """
    if any is not None:
        if plain is not None or model != "runs/ifam":
            raise IfamError("--any names what is audited; leave --model and --plain out, or name it with --selector.")
        audit_any(
            any,
            selector,
            load={"checkpoint": checkpoint, "image_size": image_size, "mean": mean, "std": std},
            where={"benchmark": benchmark, "root": root, "split": split, "data": data},
            measure={"backgrounds": backgrounds, "max_flips": max_flips, "limit": limit, "seed": seed},
            batch_size=batch_size,
            device=device,
            out=out,
            overwrite=overwrite,
        )
        return
    of_any = {"selector": selector, "checkpoint": checkpoint, "image_size": image_size, "max_flips": max_flips}
    if given := next((name for name, value in {**of_any, "mean": mean, "std": std}.items() if value is not None), None):
        raise IfamError(f"--{given} is for the audit of another classifier; name it with --any, or leave it out.")
    from ifam.auditing.run import audit, load_plain
    from ifam.checkpoints import hub
    from ifam.data.eval_dataset import eval_options, load_eval_dataset, remembered_root
    from ifam.data.fingerprints import fingerprint
    from ifam.model_files import weights_digest
    from ifam.models.ifam import IFAM
    from ifam.report.audit_tables import print_audit
    from ifam.report.results import write_audit

    ensure_writable(out, folder=True)
    saved = hub.read(model)
    trained = saved.extra
    eval_options(trained, benchmark, data)
    net = IFAM.from_saved(saved)
    net.to(resolve_device(device))
    name, images, options = load_eval_dataset(trained, benchmark, root, data, net.config.class_names, split)
    split, source = split or images.default_eval_split, remembered_root(trained, benchmark, root)
    print(images.describe(split))
    plain_model = None if plain is None else load_plain(plain)
    # Everything that the figures depend on.
    conditions: dict[str, Any] = {
        "benchmark": name,
        "root": None if source is None else str(source.absolute()),
        "split": split,
    }
    conditions |= {"data": options, "images": fingerprint(images, [split]), "weights": weights_digest(net.state_dict())}
    conditions |= {"plain_weights": None if plain_model is None else weights_digest(plain_model.state_dict())}
    run = run_digest({**conditions, "limit": limit, "explain": explain, "seed": seed})
    check_folder(out, "audit.json", ["audit.html", "audit_pictures"], run, overwrite)
    conditions |= {"run": run, "model": model, "note": images.note, **({} if plain is None else {"plain": str(plain)})}
    settings: dict[str, Any] = {"limit": limit, "explain": explain, "batch_size": batch_size, "seed": seed}
    result = audit(net, images, split=split, plain=plain_model, conditions=conditions, **settings)
    try:
        print_audit(result)
    finally:
        _, page = write_audit(result, out)
    print(f"Open {page} to look; the figures are in {out / 'audit.json'}.")
    if not result.passed:
        sys.exit(1)
