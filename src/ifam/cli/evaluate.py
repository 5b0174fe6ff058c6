"""`ifam evaluate`."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ifam.errors import IfamError
from ifam.io import check_replaceable, ensure_writable, run_digest

if TYPE_CHECKING:
    from ifam.evaluation.accuracy import Evaluation
    from ifam.evaluation.background_gap import VariantResults
    from ifam.models.base import Classifier
    from ifam.models.interventions import Intervention
from ifam.cli.common import check_classes, resolve_device, results_folder


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
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] | None = None,
    overwrite: bool = False,
    data: dict[str, Any] | None = None,
) -> None:
    """Measure a model: accuracy by class and by group, worst group, and the quality of its mask and parts.

    With `torchrun`, the processes share the images, and the figures are exactly the same.

    Args:
        model: Folder or hub id of the model.
        benchmark: Name of the data set; by default the one the model was trained on.
        root: Folder of the images.
        split: Split to evaluate; by default "test", or "val" if there is no test split. For imagenet9, by default all
            treatments of the images and the background gap.
        out: File for the results; by default `evaluations/BENCHMARK-SPLIT-RUN/results.json` in the folder of a local
            model, where RUN is a digest of everything the figures depend on, so other results are not replaced.
        batch_size: Images at a time; changes nothing but speed.
        workers: Processes that load images.
        device: Device to compute on: "auto" for a GPU if available, or "cpu", "cuda:1", ...
        drop_parts: Parts to hide from the predictor.
        keep_parts: The only parts to show to it.
        drop_unsure: Hide patches less similar to their part than this share of its patches on training images; requires
            `ifam thresholds`.
        mask_from: Show the predictor another mask instead: the true one ("mask"), or that of a column of a CSV file,
            such as that of a segmentation model; it is compared with the true one.
        leave_one_out: Also evaluate without each of the parts.
        keypoint_regression: Also predict keypoints from parts; runs on all training images.
        num_resamples: Resamples of the bootstrap intervals; 0 for none.
        seed: Seed of the resamples.
        precision: Precision of the computation, "32-true" or "bf16-mixed"; by default that of the training. It is
            "32-true" where the processor has no use for fewer bits.
        overwrite: Replace any existing file; otherwise only a result of the same run is replaced.
        data: Settings of the data set, by name.
    """
    from ifam.checkpoints import hub
    from ifam.data.eval_dataset import eval_options, load_eval_dataset, remembered_root
    from ifam.data.fingerprints import fingerprint
    from ifam.distributed import first_process, process_group
    from ifam.evaluation.accuracy import evaluate_variants
    from ifam.evaluation.background_gap import evaluate_treatments
    from ifam.model_files import weights_digest
    from ifam.models.interventions import DropParts
    from ifam.models.token_cache import TOKENS, reused_tokens
    from ifam.provenance import warn_if_other_weights

    folder = results_folder(model)
    ensure_writable(folder / "evaluations" if out is None else out, folder=out is None)
    saved = hub.read(model)
    config, extra = saved.config, saved.extra
    requested = _with_mask_column(extra, benchmark, mask_from, data)
    eval_options(extra, benchmark, requested)
    net = hub.load(saved)
    name, images, options = load_eval_dataset(extra, benchmark, root, requested, config.class_names, split)
    check_classes(images, config)
    all_treatments = split is None and bool(images.treatments)
    if all_treatments and (leave_one_out or keypoint_regression):
        raise IfamError("leave_one_out and keypoint_regression need a single split; name it with --split.")
    split = split or images.default_eval_split
    if not all_treatments and first_process():
        print(images.describe(split))
    changes, record = _interventions(extra, model, net, drop_parts, keep_parts, drop_unsure)
    record |= {} if mask_from is None else {"mask_from": mask_from}
    variants: dict[str, list[Intervention]] = {"all": changes}
    if leave_one_out:
        variants |= {f"without part {k}": [*changes, DropParts([k])] for k in range(config.num_parts)}
    settings: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "true_masks": mask_from is not None}
    computed = precision or str(extra.get("precision", "32-true"))
    settings |= {"num_resamples": num_resamples, "seed": seed, "precision": computed}
    split = "treatments" if all_treatments else split
    source = remembered_root(extra, benchmark, root)
    splits = [name for name in images.treatments if name in images.splits] if all_treatments else [split]
    # Everything that the figures depend on.
    conditions: dict[str, Any] = {
        "weights": weights_digest(net.state_dict()),
        "benchmark": name,
        "root": None if source is None else str(source.absolute()),
        "split": split,
        "data": options,
        "images": fingerprint(images, splits),
        "interventions": record,
        "leave_one_out": leave_one_out,
        "keypoint_regression": keypoint_regression,
        "num_resamples": num_resamples,
        "seed": seed,
        "precision": computed,
    }
    conditions["run"] = run_digest(conditions)
    target = out or folder / "evaluations" / _run_name(name, split, record, conditions) / "results.json"
    check_replaceable(target, conditions["run"], overwrite)
    with process_group() as is_first:
        net = net.to(resolve_device(device))
        results: VariantResults | dict[str, Evaluation]
        if all_treatments:
            results = evaluate_treatments(net, images, interventions=changes, **settings)
        else:
            settings["keypoint_regression"] = keypoint_regression
            # Beside the run, or beside the models of a comparison.
            beside = [place / TOKENS for place in (folder.parent, folder.parent.parent)]
            tokens = next((place for place in beside if place.is_dir()), beside[0])
            with reused_tokens(net, tokens, len(images.split(split)), computed):
                results = evaluate_variants(net, images, split, variants, **settings)
    if not is_first:
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
    warn_if_other_weights(folder / "results.json", conditions["weights"])


def _with_mask_column(
    extra: Mapping[str, Any], benchmark: str | None, mask_from: str | None, data: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The settings of the data, with the column of the masks if one is given."""
    options = dict(data or {})
    if mask_from in (None, "mask"):
        return options
    name = benchmark or extra.get("benchmark")
    if name != "folder":
        raise IfamError(f"{name} has no column {mask_from!r}; `--mask_from mask` uses the masks of the data set.")
    return {**options, "given_mask_column": mask_from}


def _interventions(
    extra: Mapping[str, Any],
    model: str,
    net: "Classifier",
    drop_parts: list[int] | None,
    keep_parts: list[int] | None,
    drop_unsure: float | None,
) -> tuple[list["Intervention"], dict[str, Any]]:
    """The interventions, and a record of them."""
    from ifam.evaluation.thresholds import stored
    from ifam.models.interventions import DropParts, DropUnsure, KeepParts

    changes: list[Intervention] = []
    record: dict[str, Any] = {}
    if drop_unsure is not None:
        # First, while each patch is still assigned to its original part.
        thresholds = stored(extra, model, net)
        limits = thresholds.at(drop_unsure)
        changes.append(DropUnsure(limits))
        values = [None if limit == float("-inf") else limit for limit in limits]
        record |= {
            "drop_unsure": drop_unsure,
            "thresholds": {"values": values, "images": thresholds.images, **thresholds.source},
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
    """Print and write the results of a split or of all treatments; written even if printing fails."""
    from ifam.report import console

    if not isinstance(results, dict):
        try:
            console.print_treatments(results, title)
        finally:
            console.write_treatments(results, target, conditions)
        return
    all_parts = results.pop("all")
    try:
        console.print_evaluation(all_parts, title)
        if results:
            console.print_leave_one_out(all_parts, results)
    finally:
        console.write_results(all_parts, target, conditions, results)


def _describe(key: str, value: Any) -> str:
    """An intervention in a title."""
    return f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _run_name(name: str, split: str, record: Mapping[str, Any], conditions: Mapping[str, Any]) -> str:
    """Name of the folder of an evaluation: readable, and unique by a digest of the conditions."""
    words = [_describe(key, value) for key, value in record.items() if key != "thresholds"]
    words += ["leave_one_out"] if conditions["leave_one_out"] else []
    safe = ["".join(c if c.isalnum() or c in "._" else "-" for c in word) for word in (name, split, *words)]
    return f"{'-'.join(safe)[:150]}-{conditions['run']}"
