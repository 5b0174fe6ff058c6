"""`ifam compare`."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ifam.cli.common import resolve_device
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.errors import IfamError


def compare(
    methods: list[str] | dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    benchmark: str = "pondbirds",
    root: Path | None = None,
    split: str | None = None,
    out: Path = Path("runs/compare"),
    save_models: bool = False,
    num_resamples: int = 1000,
    pictures: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    model: ModelConfig = ModelConfig(),  # noqa: B008
    train: TrainConfig = TrainConfig(),  # noqa: B008
    loss: LossConfig = LossConfig(),  # noqa: B008
    data: dict[str, Any] | None = None,
    given: Collection[str] = (),
) -> None:
    """Train several methods over several seeds, evaluate them alike, and put them into one table.

    Each run is kept as soon as it is done: started again, the command goes on where it was stopped.

    Args:
        methods: Names of methods, or a dict from the name of a row to its `method` and to the fields of `model`,
            `train` and `loss` that differ. With "+dfr" behind a method its last layer is fitted again to group-balanced
            validation images. "plain_vit" and "ifam" where none are given.
        seeds: Seeds of weights and training, and of the data where these have one; 0 where none are given.
        benchmark: Name of the data set.
        root: Where the images are; may be given without its name, as in `ifam compare photos`.
        split: Split to evaluate on; "test", or "val" where there is no test split.
        out: Folder for the runs, the table and the page.
        save_models: Keep the trained models too.
        num_resamples: Resamples of the bootstrap intervals of each run, which the table does not show; 0 for none.
        pictures: Test images of each group to show on the page, with what each method saw and answered; of runs that
            were done before, none are drawn.
        device: Where to evaluate: "auto" for a GPU where there is one, or "cpu", "cuda:1", ...
        overwrite: Train and evaluate again what `out` has under other settings or on images that have changed since.
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
    comparison = Comparison(rows, chosen, benchmark, root, data or {}, split, num_resamples, pictures)
    kept = {"save_models": save_models, "overwrite": overwrite}
    result = run_comparison(comparison, out, device=resolve_device(device), **kept)
    if rank_and_world_size()[0] > 0:
        # Of the processes that a training on several devices has started, the first writes and prints.
        return
    try:
        print_comparison(result)
    finally:
        page = write_report([out / TABLE], out / "compare.html", overwrite=True)
    print(f"Open {page} to look; the figures are in {out / TABLE}.")
