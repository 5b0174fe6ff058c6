"""`ifam challenge`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ifam.cli.common import check_classes, resolve_device, results_folder
from ifam.errors import IfamError
from ifam.io import check_folder, ensure_writable, run_digest


def challenge(
    model: str = "runs/ifam",
    root: Path | None = None,
    out: Path | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
    data: dict[str, Any] | None = None,
) -> None:
    """The backgrounds challenge: paste each object of ImageNet-9 on every background to find one that fools the model.

    The result is the share of objects for which no background does. Run again, the command continues where it stopped.

    Args:
        model: Folder or hub id of the model, of 9 or 1,000 classes.
        root: Folder of ImageNet-9.
        out: Folder for challenge.json, fooled.webp and the log challenge.jsonl; by default `challenge` in the folder of
            a local model.
        limit: Largest number of objects, evenly spaced among all.
        batch_size: Composites at a time.
        device: Device to compute on: "auto" for a GPU if available, or "cpu", "cuda:1", ...
        seed: Seed of the order of backgrounds; affects which fools first, not which objects are robust.
        overwrite: Start over and replace the content of `out`; otherwise only a run with the same settings continues.
        data: Settings of the data set, by name.
    """
    from ifam.checkpoints import hub
    from ifam.data import load_benchmark
    from ifam.data.base import evenly_spaced
    from ifam.data.benchmarks.imagenet9 import BACKGROUNDS, CutOuts, cut_outs
    from ifam.data.fingerprints import fingerprint
    from ifam.evaluation.challenge import run_challenge
    from ifam.model_files import weights_digest
    from ifam.report import console
    from ifam.report.challenge_sheet import write_fooled

    out = out or results_folder(model) / "challenge"
    ensure_writable(out, folder=True)
    saved = hub.read(model)
    net, config, extra = hub.load(saved), saved.config, saved.extra
    images = load_benchmark("imagenet9", root, {"variant": BACKGROUNDS, **(data or {})})
    check_classes(images, config)
    if limit is not None and limit < 1:
        raise IfamError(f"limit is {limit}, but at least 1 object is needed.")
    objects: Any = cut_outs(images)
    if limit is not None:
        objects = CutOuts([objects.records[i] for i in evenly_spaced(len(objects), limit)])
    backgrounds: Any = images.split(BACKGROUNDS)
    masked = sum(record.mask is not None for record in objects.records)
    note = f"{masked} objects by fg_mask, {len(objects) - masked} by nonblack pixels of only_fg"
    settings = {"root": None if root is None else str(root.absolute()), "limit": limit}
    settings |= {"images": fingerprint(images, [BACKGROUNDS])}
    weights = weights_digest(net.state_dict())
    run = run_digest({**settings, "weights": weights, "data": data or {}, "batch_size": batch_size, "seed": seed})
    net = net.to(resolve_device(device))
    log = out / "challenge.jsonl"
    if not log.exists():
        # If there is a log, `run_challenge` checks it and names the setting that differs.
        check_folder(out, "challenge.json", ["fooled.webp"], run, overwrite)
    if overwrite:
        log.unlink(missing_ok=True)
    result = run_challenge(net, images, objects, backgrounds, log, settings, batch_size=batch_size, seed=seed)
    conditions = {"model": str(model), "benchmark": "imagenet9", "data": data or {}, "objects": note, **settings}
    conditions |= {
        "batch_size": batch_size,
        "seed": seed,
        "weights": weights,
        "run": run,
        "method": net.method,
        "config": asdict(config),
    }
    trained = {key: value for key, value in extra.items() if key != "thresholds"}
    try:
        console.print_challenge(result, f"Backgrounds challenge, {note}")
    finally:
        console.write_challenge(result, out / "challenge.json", {**conditions, "trained": trained})
    picture = write_fooled(result, objects, backgrounds, out / "fooled.webp")
    print(f"Written to {out / 'challenge.json'}{'' if picture is None else f'; look at {picture}'}.")
