"""`ifam retrain`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ifam.cli.common import check_classes, ensure_no_model, resolve_device
from ifam.io import check_absent, ensure_writable


def retrain(
    model: str = "runs/ifam",
    out: Path = Path("runs/ifam-dfr"),
    benchmark: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    draws: int = 10,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    device: str = "auto",
    num_resamples: int = 1000,
    overwrite: bool = False,
    data: dict[str, Any] | None = None,
) -> None:
    """Retrain the last layer of a model on group-balanced validation images (DFR), and evaluate the result.

    It is evaluated on test images, or on validation images if there are none; never on those that it was fitted to.

    Args:
        model: Folder or hub id of the model, of any method.
        out: Output folder.
        benchmark: Name of the data set; by default the one the model was trained on.
        root: Folder of the images.
        split: Images to fit to, on which the model must not have been trained; by default "val", or all without splits.
        draws: Number of group-balanced draws whose coefficients are averaged.
        seed: Seed of the draws.
        batch_size: Images at a time; changes nothing but speed.
        workers: Processes that load images.
        device: Device to compute on: "auto" for a GPU if available, or "cpu", "cuda:1", ...
        num_resamples: Resamples of the bootstrap intervals; 0 for none.
        overwrite: Replace an existing model.
        data: Settings of the data set, by name.
    """
    from ifam.checkpoints import hub
    from ifam.data.eval_dataset import default_split, eval_options, load_eval_dataset, remembered_root
    from ifam.evaluation.accuracy import evaluate
    from ifam.model_files import weights_digest
    from ifam.report.console import print_evaluation, write_results
    from ifam.training.last_layer import retrain

    ensure_no_model(out, overwrite)
    check_absent([out / "results.json"], overwrite)
    ensure_writable(out, folder=True)
    saved = hub.read(model)
    config, extra = saved.config, saved.extra
    eval_options(extra, benchmark, data)
    net = hub.load(saved)
    name, images, options = load_eval_dataset(extra, benchmark, root, data, config.class_names, split)
    check_classes(images, config)
    split = split or default_split(images, "val")
    print(f"Fitted to {images.describe(split)}.")
    net.to(resolve_device(device))
    shared: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    retraining = asdict(retrain(net, images, split=split, draws=draws, seed=seed, **shared))
    (out / "results.json").unlink(missing_ok=True)
    hub.save(net, out, {**extra, "retraining": {"from": model, "benchmark": name, **retraining}})
    print(
        f"Penalty C = {retraining['strength']}, {retraining['nonzero']:.0%} of the weights are nonzero, "
        f"{retraining['seconds']:.1f} s."
    )
    eval_split = images.default_eval_split
    if eval_split == split:
        # Figures on images that the layer was fitted to would be misleading.
        print(f"Not evaluated: {name} has no test images except those that were fitted to. The model is in {out}.")
        return
    print(f"Evaluated on {images.describe(eval_split)}.")
    # As `ifam evaluate` does with the model that is saved here.
    precision = str(extra.get("precision", "32-true"))
    evaluation = evaluate(net, images, eval_split, num_resamples=num_resamples, precision=precision, **shared)
    source = remembered_root(extra, benchmark, root)
    conditions = {
        "model": model,
        "benchmark": name,
        "root": None if source is None else str(source.absolute()),
        "weights": weights_digest(net.state_dict()),
        "split": eval_split,
        "data": options,
        "note": images.note,
        "seed": seed,
        "config": asdict(config),
    }
    try:
        print_evaluation(evaluation, f"{name}, {eval_split}, last layer retrained")
    finally:
        write_results(evaluation, out / "results.json", {**conditions, "method": net.method, "retraining": retraining})
    print(f"The model is in {out}.")
