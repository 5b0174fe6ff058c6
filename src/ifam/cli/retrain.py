"""`ifam retrain`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ifam.cli.common import check_classes, check_free, resolve_device
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
    """Fit the last layer of a trained model again, to group-balanced validation images (DFR), and judge the result.

    It is judged on test images, or on validation images where there are none; never on those that were fitted to.

    Args:
        model: Folder or hub id of the model, of any method.
        out: Folder for the result.
        benchmark: Name of the data set; the one the model was trained on where none is given.
        root: Where the images are.
        split: Images to fit to, on which the model must not have been trained; "val", or all where there are no splits.
        draws: Group-balanced draws whose coefficients are averaged.
        seed: Seed of the draws.
        batch_size: Images at a time; changes nothing but speed.
        workers: Processes that load images.
        device: Where to compute: "auto" for a GPU where there is one, or "cpu", "cuda:1", ...
        num_resamples: Resamples of the bootstrap intervals; 0 for none.
        overwrite: Replace a model that is already there.
        data: Settings of the data set, by name.
    """
    from ifam.checkpoints import hub
    from ifam.data.eval_dataset import default_split, eval_options, load_eval_dataset, remembered_root
    from ifam.evaluation.accuracy import evaluate
    from ifam.model_files import weights_digest
    from ifam.report.console import print_evaluation, write_results
    from ifam.training.last_layer import retrain

    check_free(out, overwrite)
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
    done = asdict(retrain(net, images, split=split, draws=draws, seed=seed, **shared))
    (out / "results.json").unlink(missing_ok=True)
    hub.save(net, out, {**extra, "retraining": {"from": model, "benchmark": name, **done}})
    print(
        f"Penalty C = {done['strength']}, {done['nonzero']:.0%} of the weights are not zero, {done['seconds']:.1f} s."
    )
    judged = images.default_eval_split
    if judged == split:
        # Figures on what the layer was fitted to would say nothing, and look like any others.
        print(f"Not judged: {name} has no test images but those that were fitted to. The model is in {out}.")
        return
    print(f"Judged on {images.describe(judged)}.")
    evaluation = evaluate(net, images, judged, num_resamples=num_resamples, **shared)
    source = remembered_root(extra, benchmark, root)
    conditions = {
        "model": model,
        "benchmark": name,
        "root": None if source is None else str(source.absolute()),
        "weights": weights_digest(net.state_dict()),
        "split": judged,
        "data": options,
        "note": images.note,
        "seed": seed,
        "config": asdict(config),
    }
    try:
        print_evaluation(evaluation, f"{name}, {judged}, last layer fitted again")
    finally:
        write_results(evaluation, out / "results.json", {**conditions, "method": net.method, "retraining": done})
    print(f"The model is in {out}.")
