"""`ifam challenge`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ifam.cli.common import check_classes, folder_beside, resolve_device
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
    """The backgrounds challenge: paste each object of ImageNet-9 on every background, and see if one fools the model.

    The figure is the share of objects that none fools it about. Started again, it goes on where it was stopped.

    Args:
        model: Folder or hub id of the model, of 9 or 1,000 classes.
        root: Where ImageNet-9 is.
        out: Folder for challenge.json, fooled.webp and the journal challenge.jsonl; `challenge` beside a local model
            where none is given.
        limit: Objects at most, evenly spread over all of them.
        batch_size: Composites at a time.
        device: Where to compute: "auto" for a GPU where there is one, or "cpu", "cuda:1", ...
        seed: Seed of the order of backgrounds; changes who fools first, not who is robust.
        overwrite: Begin anew, and replace what is in `out`; without that, only a run under the same conditions goes on.
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

    out = out or folder_beside(model) / "challenge"
    ensure_writable(out, folder=True)
    saved = hub.read(model)
    net, config, extra = hub.load(saved), saved.config, saved.extra
    images = load_benchmark("imagenet9", root, {"variant": BACKGROUNDS, **(data or {})})
    check_classes(images, config)
    if limit is not None and limit < 1:
        raise IfamError(f"limit is {limit}, but at least 1 object is needed.")
    things: Any = cut_outs(images)
    if limit is not None:
        things = CutOuts([things.records[i] for i in evenly_spaced(len(things), limit)])
    scenes: Any = images.split(BACKGROUNDS)
    masked = sum(record.mask is not None for record in things.records)
    note = f"{masked} objects by fg_mask, {len(things) - masked} by what is not black in only_fg"
    settings = {"root": None if root is None else str(root.absolute()), "limit": limit}
    settings |= {"images": fingerprint(images, [BACKGROUNDS])}
    weights = weights_digest(net.state_dict())
    run = run_digest({**settings, "weights": weights, "data": data or {}, "batch_size": batch_size, "seed": seed})
    net = net.to(resolve_device(device))
    journal = out / "challenge.jsonl"
    if not journal.exists():
        # The journal of another run is refused by the name of what differs.
        check_folder(out, "challenge.json", ["fooled.webp"], run, overwrite)
    if overwrite:
        journal.unlink(missing_ok=True)
    outcome = run_challenge(net, images, things, scenes, journal, settings, batch_size=batch_size, seed=seed)
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
        console.print_challenge(outcome, f"Backgrounds challenge, {note}")
    finally:
        console.write_challenge(outcome, out / "challenge.json", {**conditions, "trained": trained})
    picture = write_fooled(outcome, things, scenes, out / "fooled.webp")
    print(f"Written to {out / 'challenge.json'}{'' if picture is None else f'; look at {picture}'}.")
