"""`ifam evaluate`."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifam.errors import IfamError
from ifam.io import check_replaceable, ensure_writable, run_digest

if TYPE_CHECKING:
    from ifam.evaluation.accuracy import Evaluation
    from ifam.evaluation.background_gap import VariantResults
    from ifam.models.base import Classifier
    from ifam.models.interventions import Intervention
from ifam.cli.common import check_classes, folder_beside, resolve_device


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
    from ifam.data.eval_dataset import eval_options, load_eval_dataset, remembered_root
    from ifam.data.fingerprints import fingerprint
    from ifam.distributed import process_group
    from ifam.evaluation.accuracy import evaluate_variants
    from ifam.evaluation.background_gap import evaluate_treatments
    from ifam.model_files import weights_digest
    from ifam.models.interventions import DropParts
    from ifam.provenance import warn_if_other_weights

    beside = folder_beside(model)
    ensure_writable(beside / "evaluations" if out is None else out, folder=out is None)
    saved = hub.read(model)
    config, extra = saved.config, saved.extra
    chosen = _with_masks(extra, benchmark, mask_from, data)
    eval_options(extra, benchmark, chosen)
    net = hub.load(saved)
    name, images, options = load_eval_dataset(extra, benchmark, root, chosen, config.class_names, split)
    check_classes(images, config)
    together = split is None and bool(images.treatments)
    if together and (leave_one_out or keypoint_regression):
        raise IfamError("Parts are left out and keypoints predicted on one split at a time; name it with --split.")
    split = split or images.default_eval_split
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
        net = net.to(resolve_device(device))
        results: VariantResults | dict[str, Evaluation]
        if together:
            results = evaluate_treatments(net, images, interventions=changes, **settings)
        else:
            settings["keypoint_regression"] = keypoint_regression
            results = evaluate_variants(net, images, split, variants, **settings)
    if not first:
        return
    conditions |= {
        "model": str(model),
        "note": images.note,
        "method": net.method,
        "config": asdict(config),
        "trained": {key: value for key, value in extra.items() if key != "thresholds"},
    }
    title = ", ".join([name, split, *(_describe(key, value) for key, value in record.items() if key != "thresholds")])
    _show(results, title, target, conditions)
    print(f"Written to {target}.")
    warn_if_other_weights(beside / "results.json", conditions["weights"])


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


def _show(
    results: "VariantResults | dict[str, Evaluation]", title: str, target: Path, conditions: Mapping[str, Any]
) -> None:
    """Print what was measured on a split, or on the treatments, and write it: whichever of the two fails."""
    from ifam.report import console

    if not isinstance(results, dict):
        try:
            console.print_treatments(results, title)
        finally:
            console.write_treatments(results, target, conditions)
        return
    whole = results.pop("all")
    try:
        console.print_evaluation(whole, title)
        if results:
            console.print_leave_one_out(whole, results)
    finally:
        console.write_results(whole, target, conditions, results)


def _describe(key: str, value: Any) -> str:
    """An intervention in a title."""
    return f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _run_name(name: str, split: str, record: Mapping[str, Any], conditions: Mapping[str, Any]) -> str:
    """Name of the folder of an evaluation: for people, and with the conditions in short, for all that it leaves out."""
    words = [_describe(key, value) for key, value in record.items() if key != "thresholds"]
    words += ["leave_one_out"] if conditions["leave_one_out"] else []
    safe = ["".join(c if c.isalnum() or c in "._" else "-" for c in word) for word in (name, split, *words)]
    return f"{'-'.join(safe)[:150]}-{conditions['run']}"
