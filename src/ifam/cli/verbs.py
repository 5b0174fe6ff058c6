"""Verbs of the command line that judge models and prepare what they are judged on (see `ifam.cli.main`)."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ifam.errors import IfamError
from ifam.io import check_folder, check_replaceable, ensure_writable, local_path, run_digest

if TYPE_CHECKING:
    import torch

    from ifam.config import ModelConfig
    from ifam.data import Benchmark
    from ifam.models.base import Classifier
    from ifam.models.interventions import Intervention


def evaluate(
    model: str = "runs/ifam",
    benchmark: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    out: Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    drop_parts: list[int] | None = None,
    keep_parts: list[int] | None = None,
    drop_unsure: float | None = None,
    mask_from: str | None = None,
    leave_one_out: bool = False,
    keypoint_regression: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
    data: dict[str, Any] | None = None,
) -> None:
    """Measure a model: accuracy by class and by group, worst group, and the quality of its mask and parts.

    Started with `torchrun`, the processes share the images, and the figures are exactly the same.

    Args:
        model: Folder or hub id of the model.
        benchmark: Name of the data set; the one the model was trained on where none is given.
        root: Where the images are.
        split: Split to measure; "test", or "val" where there is no test split. For imagenet9, all treatments of the
            images, one after another, and the gap due to the background.
        out: File for the results. Where none is given, `evaluations/BENCHMARK-SPLIT-RUN/results.json` beside a local
            model; RUN is short for all that the figures depend on, so results under other conditions are kept.
        batch_size: Images at a time; changes nothing but speed.
        workers: Processes that load images.
        device: Where to compute: "auto" for a GPU where there is one, or "cpu", "cuda:1", ...
        drop_parts: Parts to hide from the predictor.
        keep_parts: The only parts to show it.
        drop_unsure: Hide patches less similar to their part than this share of its patches on training images; needs
            `ifam thresholds` once.
        mask_from: Show the predictor the true mask instead: "mask", or the column of a CSV file with the masks.
        leave_one_out: Measure once more without each of the parts.
        keypoint_regression: Predict keypoints from parts too; looks at all training images.
        num_resamples: Resamples of the bootstrap intervals; 0 for none.
        seed: Seed of the resamples.
        overwrite: Replace the file named by `out`, whatever it is; without that, only a result of the same run.
        data: Settings of the data set, by name.
    """
    from ifam.checkpoints import hub
    from ifam.data.eval_dataset import load_eval_dataset, remembered_root
    from ifam.data.fingerprints import fingerprint
    from ifam.distributed import process_group
    from ifam.evaluation.accuracy import evaluate_variants
    from ifam.evaluation.background_gap import evaluate_treatments
    from ifam.model_files import weights_digest
    from ifam.models.interventions import DropParts
    from ifam.provenance import warn_if_other_weights

    beside = _beside(model)
    ensure_writable(beside / "evaluations" if out is None else out, folder=out is None)
    net, (config, extra) = hub.load_any(model), hub.read_config(model)
    chosen = _with_masks(extra, benchmark, mask_from, data)
    name, images, options = load_eval_dataset(extra, benchmark, root, chosen, config.class_names, split)
    check_classes(images, config)
    together = split is None and bool(images.treatments)
    if together and (leave_one_out or keypoint_regression):
        raise IfamError("Parts are left out and keypoints predicted on one split at a time; name it with --split.")
    split = split or images.judged
    if not together and os.environ.get("RANK", "0") == "0":
        print(images.describe(split))
    changes, record = _interventions(extra, model, net, drop_parts, keep_parts, drop_unsure)
    record |= {} if mask_from is None else {"mask_from": mask_from}
    variants: dict[str, list[Intervention]] = {"all": changes}
    if leave_one_out:
        variants |= {f"without part {k}": [*changes, DropParts([k])] for k in range(config.num_parts)}
    settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "true_masks": mask_from is not None}
    settings |= {"num_resamples": num_resamples, "seed": seed}
    split = "treatments" if together else split
    source = remembered_root(extra, benchmark, root)
    # All that the figures depend on.
    conditions: dict[str, Any] = {
        "weights": weights_digest(net.state_dict()),
        "benchmark": name,
        "root": None if source is None else str(source.absolute()),
        "split": split,
        "data": options,
        "images": fingerprint(images, [t for t in images.treatments if t in images.splits] if together else [split]),
        "interventions": record,
        "leave_one_out": leave_one_out,
        "keypoint_regression": keypoint_regression,
        "num_resamples": num_resamples,
        "seed": seed,
    }
    conditions["run"] = run_digest(conditions)
    target = out or beside / "evaluations" / _run_name(name, split, record, conditions) / "results.json"
    check_replaceable(target, conditions["run"], overwrite)
    with process_group() as first:
        net = net.to(chosen_device(device))
        found: Any
        if together:
            found = evaluate_treatments(net, images, interventions=changes, **settings)
        else:
            settings["keypoint_regression"] = keypoint_regression
            found = evaluate_variants(net, images, split, variants, **settings)
    if not first:
        return
    conditions |= {
        "model": str(model),
        "note": images.note,
        "method": net.method,
        "config": asdict(config),
        "trained": {key: value for key, value in extra.items() if key != "thresholds"},
    }
    title = ", ".join([name, split, *(_said(key, value) for key, value in record.items() if key != "thresholds")])
    _show(found, title, target, conditions)
    print(f"Written to {target}.")
    warn_if_other_weights(beside / "results.json", conditions["weights"])


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
    from ifam.report import console as tables
    from ifam.report.challenge_sheet import write_fooled

    out = out or _beside(model) / "challenge"
    ensure_writable(out, folder=True)
    net, (config, extra) = hub.load_any(model), hub.read_config(model)
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
    net = net.to(chosen_device(device))
    journal = out / "challenge.jsonl"
    if not journal.exists():
        # The journal of another run is refused by the name of what differs.
        check_folder(out, "challenge.json", ["fooled.webp"], run, overwrite)
    if overwrite:
        journal.unlink(missing_ok=True)
    found = run_challenge(net, images, things, scenes, journal, settings, batch_size=batch_size, seed=seed)
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
        tables.print_challenge(found, f"Backgrounds challenge, {note}")
    finally:
        tables.write_challenge(found, out / "challenge.json", {**conditions, "trained": trained})
    picture = write_fooled(found, things, scenes, out / "fooled.webp")
    print(f"Written to {out / 'challenge.json'}{'' if picture is None else f'; look at {picture}'}.")


def thresholds(
    model: str = "runs/ifam",
    benchmark: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    quantiles: list[float] | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    overwrite: bool = False,
    data: dict[str, Any] | None = None,
) -> None:
    """Compute how similar each part is to the patches it wins, for `ifam evaluate --drop_unsure`; kept with the model.

    Args:
        model: Folder of the model; its `config.json` is written.
        benchmark: Name of the data set; the one the model was trained on where none is given.
        root: Where the images are.
        split: Split to look at; "train", or all images where there are no splits.
        quantiles: Which quantiles; 0.01, 0.02, ..., 0.99 where none are given.
        limit: Images at most, evenly spread over the split.
        batch_size: Images at a time.
        device: Where to compute: "auto" for a GPU where there is one, or "cpu", "cuda:1", ...
        overwrite: Replace thresholds that were computed otherwise: of other quantiles, images or weights.
        data: Settings of the data set, by name.
    """
    from ifam.checkpoints import hub
    from ifam.data.eval_dataset import default_split, load_eval_dataset
    from ifam.data.fingerprints import fingerprint
    from ifam.evaluation.thresholds import QUANTILES, compute_thresholds, selector_digest, store

    net, (config, extra) = hub.load_any(model), hub.read_config(model)
    if not Path(model).expanduser().is_dir():
        raise IfamError(f"{model} is on the hub, where nothing can be kept; copy it to a folder and name that.")
    ensure_writable(local_path(model), folder=True)
    name, images, options = load_eval_dataset(extra, benchmark, root, data, config.class_names, split)
    split = split or default_split(images, "train")
    print(images.describe(split))
    chosen = QUANTILES if quantiles is None else quantiles
    made = {"benchmark": name, "split": split, "data": options, "quantiles": list(chosen), "limit": limit}
    run = run_digest({**made, "images": fingerprint(images, [split]), "selector": selector_digest(net)})
    if "thresholds" in extra and extra["thresholds"].get("source", {}).get("run") != run and not overwrite:
        raise IfamError(
            f"{model} has thresholds that were computed otherwise (of other quantiles, images or weights); replace "
            f"them with --overwrite true, or copy the model to another folder."
        )
    net = net.to(chosen_device(device))
    found = compute_thresholds(net, images, split, chosen, batch_size=batch_size, limit=limit)
    path = store(found, model, {"run": run})
    won = ", ".join(f"part {part}: {count}" for part, count in enumerate(found.patches))
    print(f"Patches won in {found.images} images of {name}, {split}: {won}.")
    print(f"Written to {path}: try `ifam evaluate --model {model} --drop_unsure {found.quantiles[0]:g}`.")


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


def _show(found: Any, title: str, target: Path, conditions: Mapping[str, Any]) -> None:
    """Print what was measured on a split, or on the treatments, and write it: whichever of the two fails."""
    from ifam.report import console as tables

    if not isinstance(found, dict):
        try:
            tables.print_treatments(found, title)
        finally:
            tables.write_treatments(found, target, conditions)
        return
    whole = found.pop("all")
    try:
        tables.print_evaluation(whole, title)
        if found:
            tables.print_leave_one_out(whole, found)
    finally:
        tables.write_results(whole, target, conditions, found)


# ------------------------------------------------------------------------------------------------- choices


def _with_masks(
    extra: Mapping[str, Any], benchmark: str | None, mask_from: str | None, data: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The settings, with the column of the masks where one is named."""
    options = dict(data or {})
    if mask_from in (None, "mask"):
        return options
    name = benchmark or extra.get("benchmark")
    if name != "folder":
        raise IfamError(f"{name} has no column {mask_from!r}; `--mask_from mask` shows the masks that it knows.")
    return {**options, "mask_column": mask_from}


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse a folder with a model in it, unless that is to be replaced."""
    if any((out / name).exists() for name in ("config.json", "model.safetensors")) and not overwrite:
        raise IfamError(f"{out} already holds a model; choose another --out, or replace it with --overwrite true.")


def check_classes(images: "Benchmark", config: "ModelConfig") -> None:
    """Refuse data whose classes the model does not know."""
    number, name = config.num_classes, images.name
    if images.class_of_logit is not None and number == len(images.class_of_logit):
        return
    if len(images.class_names) != number:
        raise IfamError(
            f"{name} has {len(images.class_names)} classes, but the model knows {number}; "
            f"give the data that it was trained for."
        )
    if config.class_names and config.class_names != images.class_names:
        here, there = next((h, t) for h, t in zip(images.class_names, config.class_names, strict=True) if h != t)
        raise IfamError(
            f"{name} has other classes than the model ({here!r} where it knows {there!r}); "
            f"give the data that it was trained for."
        )


def _interventions(
    extra: Mapping[str, Any],
    model: str,
    net: "Classifier",
    drop_parts: list[int] | None,
    keep_parts: list[int] | None,
    drop_unsure: float | None,
) -> tuple[list["Intervention"], dict[str, Any]]:
    """What is changed between selector and predictor, and a record of it."""
    from ifam.evaluation.thresholds import stored
    from ifam.models.interventions import DropParts, DropUnsure, KeepParts

    changes: list[Intervention] = []
    record: dict[str, Any] = {}
    if drop_unsure is not None:
        # First, while each patch still belongs to the part that the thresholds are about.
        known = stored(extra, model, net)
        limits = known.at(drop_unsure)
        changes.append(DropUnsure(limits))
        shown = [None if limit == float("-inf") else limit for limit in limits]
        record |= {
            "drop_unsure": drop_unsure,
            "thresholds": {"values": shown, "images": known.images, **known.source},
        }
    if drop_parts:
        changes.append(DropParts(drop_parts))
        record["drop_parts"] = drop_parts
    if keep_parts is not None:
        changes.append(KeepParts(keep_parts))
        record["keep_parts"] = keep_parts
    return changes, record


def chosen_device(name: str) -> "torch.device":
    """The device of this name; for "auto" the GPU of this process, where there is one."""
    import torch

    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise IfamError(f"There is no device {name!r} here ({reason}); give --device cpu or cuda.") from None
    return device


def _said(key: str, value: Any) -> str:
    """An intervention in a title."""
    return f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _run_name(name: str, split: str, record: Mapping[str, Any], conditions: Mapping[str, Any]) -> str:
    """Name of the folder of an evaluation: for people, and with the conditions in short, for all that it leaves out."""
    words = [_said(key, value) for key, value in record.items() if key != "thresholds"]
    words += ["leave_one_out"] if conditions["leave_one_out"] else []
    safe = ["".join(c if c.isalnum() or c in "._" else "-" for c in word) for word in (name, split, *words)]
    return f"{'-'.join(safe)[:150]}-{conditions['run']}"


def _beside(model: str) -> Path:
    """Where results about a model go: its folder, or the working directory for a model of the hub."""
    folder = local_path(model)
    return folder if folder.is_dir() else Path()
