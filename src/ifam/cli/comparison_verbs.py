"""Verbs of the command line that compare methods, and fit the last layer of a model again (see `ifam.cli.main`)."""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ifam.cli.verbs import check_classes, check_free, chosen_device
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.errors import IfamError
from ifam.io import check_absent, ensure_writable


def compare(
    methods: list[str] | dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    benchmark: str = "pondbirds",
    root: Path | None = None,
    split: str | None = None,
    out: Path = Path("runs/compare"),
    save_models: bool = False,
    num_resamples: int = 1000,
    device: str = "auto",
    overwrite: bool = False,
    model: ModelConfig = ModelConfig(),  # noqa: B008
    train: TrainConfig = TrainConfig(),  # noqa: B008
    loss: LossConfig = LossConfig(),  # noqa: B008
    data: dict[str, Any] | None = None,
    given: Collection[str] = (),
) -> None:
    """Train several methods over several seeds, judge them alike, and put them into one table.

    Each run is kept as soon as it is done: started again, the command goes on where it was stopped.

    Args:
        methods: Names of methods, or a dict from the name of a row to its `method` and to the fields of `model`,
            `train` and `loss` that differ. With "+dfr" behind a method its last layer is fitted again to group-balanced
            validation images. "plain_vit" and "ifam" where none are given.
        seeds: Seeds of weights and training, and of the data where these have one; 0 where none are given.
        benchmark: Name of the data set.
        root: Where the images are.
        split: Split to judge on; "test", or "val" where there is no test split.
        out: Folder for the runs, the table and the page.
        save_models: Keep the trained models too.
        num_resamples: Resamples of the bootstrap intervals of each run, which the table does not show; 0 for none.
        device: Where to judge: "auto" for a GPU where there is one, or "cpu", "cuda:1", ...
        overwrite: Train and judge again what `out` has under other settings or on images that have changed since.
        model: The model, common to all.
        train: How to train, common to all; the seed comes from `seeds`.
        loss: Weight of each loss term, common to all.
        data: Settings of the data set, by name.
        given: Names of the settings that were asked for, such as "train.epochs"; they win, or are refused.
    """
    from ifam.distributed import rank_and_world_size
    from ifam.experiments.compare import TABLE, Comparison, read_rows, run_comparison
    from ifam.report.comparisons import print_comparison
    from ifam.report.results import write_report

    if "train.seed" in given:
        raise IfamError(f"train.seed is {train.seed}, but a comparison takes its seeds from --seeds; leave it out.")
    rows = read_rows(["plain_vit", "ifam"] if methods is None else methods, model, train, loss, given)
    chosen = (0,) if seeds is None else tuple(seeds)
    comparison = Comparison(rows, chosen, benchmark, root, data or {}, split, num_resamples)
    kept = {"save_models": save_models, "overwrite": overwrite}
    found = run_comparison(comparison, out, device=chosen_device(device), **kept)
    if rank_and_world_size()[0] > 0:
        # Of the processes that a training on several devices has started, the first writes and prints.
        return
    try:
        print_comparison(found)
    finally:
        page = write_report([out / TABLE], out / "compare.html", overwrite=True)
    print(f"Open {page} to look; the figures are in {out / TABLE}.")


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
    from ifam.data.eval_dataset import default_split, load_eval_dataset, remembered_root
    from ifam.evaluation.accuracy import evaluate
    from ifam.model_files import weights_digest
    from ifam.report.console import print_evaluation, write_results
    from ifam.training.last_layer import retrain

    check_free(out, overwrite)
    check_absent([out / "results.json"], overwrite)
    ensure_writable(out, folder=True)
    net, (config, extra) = hub.load_any(model), hub.read_config(model)
    name, images, options = load_eval_dataset(extra, benchmark, root, data, config.class_names, split)
    check_classes(images, config)
    split = split or default_split(images, "val")
    print(f"Fitted to {images.describe(split)}.")
    net.to(chosen_device(device))
    shared: dict[str, Any] = {"batch_size": batch_size, "workers": workers}
    done = asdict(retrain(net, images, split=split, draws=draws, seed=seed, **shared))
    (out / "results.json").unlink(missing_ok=True)
    hub.save(net, out, {**extra, "retraining": {"from": model, "benchmark": name, **done}})
    print(
        f"Penalty C = {done['strength']}, {done['nonzero']:.0%} of the weights are not zero, {done['seconds']:.1f} s."
    )
    judged = images.judged
    if judged == split:
        # Figures on what the layer was fitted to would say nothing, and look like any others.
        print(f"Not judged: {name} has no test images but those that were fitted to. The model is in {out}.")
        return
    print(f"Judged on {images.describe(judged)}.")
    found = evaluate(net, images, judged, num_resamples=num_resamples, **shared)
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
        print_evaluation(found, f"{name}, {judged}, last layer fitted again")
    finally:
        write_results(found, out / "results.json", {**conditions, "method": net.method, "retraining": done})
    print(f"The model is in {out}.")
