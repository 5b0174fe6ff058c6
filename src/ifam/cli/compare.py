"""`ifam compare`."""

from collections.abc import Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ifam import commands
from ifam.cli.common import check_resume, resolve_device
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.errors import IfamError
from ifam.io import ensure_writable

if TYPE_CHECKING:
    from ifam.experiments.comparison import Row


def compare(
    methods: list[str] | dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    benchmark: str = "pondbirds",
    root: Path | None = None,
    split: str | None = None,
    preset: Literal["auto", "laptop", "paper"] = "auto",
    out: Path = Path("runs/compare"),
    save_models: bool = False,
    num_resamples: int = 1000,
    pictures: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    model: ModelConfig = ModelConfig(),  # noqa: B008
    train: TrainConfig = TrainConfig(),  # noqa: B008
    loss: LossConfig = LossConfig(),  # noqa: B008
    data: dict[str, Any] | None = None,
    given: Collection[str] = (),
) -> None:
    """Train and evaluate several methods over several seeds, and summarize them in one table.

    Each run is saved as soon as it is done, and each training every ten minutes: run again, the command continues
    where it stopped.

    Args:
        methods: Names of methods, or a dict from the name of a row to its `method` and to the fields of `model`,
            `train` and `loss` that differ. With the suffix "+dfr", the last layer of a method is retrained on
            group-balanced validation images. By default "plain_vit" and "ifam".
        seeds: Seeds of weights and training, and of data that depend on a seed; by default 0.
        benchmark: Name of the data set.
        root: Folder of the images; may be given without its name, as in `ifam compare photos`. `{seed}` in it stands
            for the seed, so that each has images of its own.
        split: Split to evaluate on; by default "test", or "val" if there is no test split.
        preset: Settings of all methods for what is not set: "laptop" for minutes on a processor, "paper" for days on
            GPUs; by default "laptop" without a GPU or below 5,000 training images.
        out: Folder for the runs, the table and the page.
        save_models: Save the trained models, too.
        num_resamples: Resamples of the bootstrap intervals of each run, which the table does not show; 0 for none.
        pictures: Number of test images of each group to show on the page, with what each method saw and answered; not
            drawn for runs that were done before.
        device: Device to evaluate on: "auto" for a GPU if available, or "cpu", "cuda:1", ...
        overwrite: Repeat runs in `out` with other settings or on images that have changed since.
        resume: Go on where it was stopped, as without this option.
        model: The model, common to all.
        train: Training settings, common to all; the seed comes from `seeds`.
        loss: Weight of each loss term, common to all.
        data: Settings of the data set, by name.
        given: Names of the settings that were set explicitly, such as "train.epochs"; they are never overridden.
    """
    from ifam.distributed import rank_and_world_size
    from ifam.experiments.compare import TABLE, run_comparison
    from ifam.experiments.comparison import Comparison, read_rows
    from ifam.report.comparisons import print_comparison
    from ifam.report.results import write_report
    from ifam.training import presets

    check_resume(resume, overwrite)
    ensure_writable(out, folder=True)
    if "train.seed" in given:
        raise IfamError(f"train.seed is {train.seed}, but a comparison takes its seeds from --seeds; leave it out.")
    all_seeds = (0,) if seeds is None else tuple(seeds)
    images = Comparison((), all_seeds, benchmark, root, data or {}).images(all_seeds[0] if all_seeds else 0)
    chosen, reason = presets.choose(preset, len(images.split("train")), train.accelerator)
    complete = partial(presets.apply_preset, chosen, images=images)
    rows = read_rows(["plain_vit", "ifam"] if methods is None else methods, model, train, loss, given, complete)
    if rank_and_world_size()[0] == 0:
        print(presets.describe(chosen, reason, rows[0].model, rows[0].train))
    commands.complete(
        {
            "methods": {row.name: _complete_entry(row) for row in rows},
            "seeds": all_seeds,
            "benchmark": benchmark,
            "root": root,
            "data": data or {},
            "split": split,
            "preset": chosen,
            "save_models": save_models,
            "num_resamples": num_resamples,
            "pictures": pictures,
            "device": device,
        }
    )
    comparison = Comparison(rows, all_seeds, benchmark, root, data or {}, split, num_resamples, pictures)
    settings = {"save_models": save_models, "overwrite": overwrite}
    result = run_comparison(comparison, out, device=resolve_device(device), **settings)
    if rank_and_world_size()[0] > 0:
        # With several processes, only the first writes and prints.
        return
    try:
        print_comparison(result)
    finally:
        page = write_report([out / TABLE], out / "compare.html", overwrite=True)
    print(f"Open {page} to look; the figures are in {out / TABLE}.")


def _complete_entry(row: "Row") -> dict[str, Any]:
    """A row as `read_rows` takes it, with all of its settings."""
    from ifam.experiments.comparison import RETRAINED

    train = {name: value for name, value in asdict(row.train).items() if name != "seed"}
    settings = {"model": asdict(row.model), "train": train, "loss": asdict(row.loss)}
    return {"method": row.method + (RETRAINED if row.retrained else ""), **settings}
