"""`ifam compare`: several methods, trained and evaluated the same way over several seeds.

A run is one method with one seed. It is written to `runs.jsonl` as soon as it is done, and not repeated later; the
table summarizes all runs. A training that was stopped goes on from its last checkpoint.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ifam.checkpoints import hub
from ifam.data import Benchmark
from ifam.data.eval_dataset import training_list
from ifam.distributed import rank_and_world_size
from ifam.errors import IfamError
from ifam.evaluation.accuracy import Evaluation, hidden_influence, summarize_rows
from ifam.evaluation.collect import collect
from ifam.evaluation.comparisons import ComparisonResult, Run, summarize
from ifam.evaluation.conformal import ERROR, Calibration, calibrate
from ifam.evaluation.flips import flip_rate, has_swaps
from ifam.experiments.comparison import FITTED, Comparison, Row, check_rows, model_of
from ifam.experiments.pictures import draw_pictures, with_files
from ifam.experiments.runs import Runs
from ifam.io import check_absent, ensure_writable, run_digest, write_json
from ifam.models.base import Classifier
from ifam.models.registry import build
from ifam.models.token_cache import TOKENS, reused_tokens
from ifam.provenance import provenance, record
from ifam.run_files import kept_status
from ifam.serialization import to_json
from ifam.training import last_layer
from ifam.training.fit import fit, seed_everything
from ifam.training.loggers import refuse_lost

RUNS, TABLE = "runs.jsonl", "compare.json"
# Folder of the checkpoints of a training that is not finished.
UNFINISHED = "unfinished"
# ----------------------------------------------------------------------------------------------------- runs


def run_comparison(
    comparison: Comparison,
    out: Path,
    *,
    save_models: bool = False,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
) -> ComparisonResult:
    """Train and evaluate all missing runs, and write the table.

    Args:
        comparison: The comparison.
        out: Folder for `runs.jsonl` (a line per run), `compare.json`, and the models.
        save_models: Save each model in `models/ROW-SEED`; a row with "+dfr" that is added later starts from it.
        device: Device to evaluate on.
        overwrite: Repeat existing runs with other settings or on other images.

    Returns:
        The table, as in `compare.json`.

    Raises:
        IfamError: There is no seed, or a duplicate one; a row cannot be trained on the data; or `out` cannot be
            written, or contains runs of the same names with other settings or on images that have changed since.
    """
    seeds, rows = comparison.seeds, comparison.rows
    if not seeds or len(set(seeds)) < len(seeds):
        raise IfamError(f"seeds is {list(seeds)}, but one or more distinct numbers are expected; change it.")
    folders = [_folder(row, seeds[0]) for row in rows]
    if save_models and (same := [row.name for row in rows if folders.count(_folder(row, seeds[0])) > 1]):
        raise IfamError(
            f"The models of {same[0]!r} and {same[1]!r} would be saved in the same folder; rename one of the rows."
        )
    for row in rows:
        refuse_lost(row.train.loggers)
    ensure_writable(out, folder=True)
    for name in () if (out / RUNS).exists() else (TABLE, "compare.html", "models"):
        check_absent([out / name], overwrite)
    check_rows(comparison, comparison.images(seeds[0]))
    settings = {row.name: comparison.settings(row) for row in rows}
    digests = comparison.digests()
    wanted = {(row.name, seed): {**settings[row.name], "images": digests[seed]} for seed in seeds for row in rows}
    runs = Runs(out / RUNS, wanted, overwrite=overwrite)
    with kept_status(out, list(wanted)):
        for seed in seeds:
            _run_seed(comparison, seed, runs, save_models, device)
        shared = {key: value for key, value in settings[rows[0].name].items() if key not in ("method", "retrained")}
        images_of = {str(seed): digests[seed] for seed in seeds}
        conditions = {**shared, "seeds": list(seeds), "images": images_of, **record()}
        result = ComparisonResult(
            [comparison.describe(row) for row in rows],
            summarize([with_files(runs.done[row.name, seed], out) for row in rows for seed in seeds]),
            conditions,
            comparison.about,
            max((row.model.num_parts for row in rows), default=0) if comparison.pictures else 0,
        )
        if rank_and_world_size()[0] == 0:
            write_json(out / TABLE, to_json(result))
            shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    return result


def _run_seed(comparison: Comparison, seed: int, runs: Runs, save_models: bool, device: torch.device | str) -> None:
    """The missing runs of a seed."""
    missing = [row for row in comparison.rows if (row.name, seed) not in runs.done]
    if not missing:
        return
    images = comparison.images(seed)
    # Rows that differ in the last layer only share one training; rows without retraining come first.
    for training in dict.fromkeys(row.training for row in missing):
        sharing = sorted((row for row in missing if row.training == training), key=lambda row: row.retrained)
        _train_and_evaluate(comparison, sharing, seed, images, runs, save_models, device)


def _train_and_evaluate(
    comparison: Comparison,
    rows: Sequence[Row],
    seed: int,
    images: Benchmark,
    runs: Runs,
    save_models: bool,
    device: torch.device | str,
) -> None:
    """One training, and a run for each row that uses it."""
    started, out = time.perf_counter(), runs.path.parent
    models = out / "models" if save_models else None
    runs.announce(rows[0].name, seed)
    model, training = _trained(comparison, rows[0], seed, images, runs, models)
    model.to(device)
    for row in rows:
        if row is not rows[0]:
            runs.announce(row.name, seed)
        seconds, extra = training["seconds"], {}
        if row.retrained:
            label = f"embedding for {row.name}, seed {seed}"
            retraining = last_layer.retrain(model, images, split=FITTED, seed=seed, label=label)
            seconds, extra = seconds + retraining.seconds, {"retraining": asdict(retraining)}
        calibration = None
        split, label = comparison.eval_split(images), f"evaluating {row.name}, seed {seed}"
        swaps = has_swaps(images, split)
        count, precision = len(images.split(split)) * (2 if swaps else 1), row.train.precision
        flips = {}
        with reused_tokens(model, out / TOKENS, count, precision):
            (collected,) = collect(model, images, split, [()], precision=precision, label=label)
            evaluation = summarize_rows(model, collected, images, split, comparison.num_resamples)
            if swaps:
                answers, label = collected["predictor.answer"], f"swapping backgrounds for {row.name}, seed {seed}"
                flips["flips"] = flip_rate(model, images, split, answers=answers, precision=precision, label=label)
        if models is not None and rank_and_world_size()[0] == 0:
            folder = comparison.folder(seed)
            root = None if folder is None else str(folder.absolute())
            training_data = {
                "benchmark": comparison.benchmark,
                "root": root,
                "data": comparison.options(seed),
                "seed": seed,
                "precision": precision,
                **training_list(images),
            }
            hub.save(
                model, models / _folder(row, seed), {**training_data, "best_epoch": training["best_epoch"], **extra}
            )
            calibration = None if row.retrained else _calibrated(model, images, models / _folder(row, seed))
        figures = {**_figures(evaluation), **flips, "seconds": seconds}
        if model.masks_input and not model.needs_masks:
            figures["hidden_influence"] = hidden_influence(model, images.split(split))
        pictures = []
        if comparison.pictures and seed == comparison.seeds[0] and rank_and_world_size()[0] == 0:
            pictures = draw_pictures(model, images, split, comparison.pictures, out, _folder(row, seed), calibration)
        runs.add(
            Run(
                row=row.name,
                seed=seed,
                figures=figures,
                groups=evaluation.predictor.groups,
                parameters=training["parameters"],
                best_epoch=training["best_epoch"],
                history=training["history"],
                retraining=extra.get("retraining"),
                elapsed=time.perf_counter() - started,
                evaluation=to_json(evaluation),
                settings=dict(runs.wanted[row.name, seed]),
                pictures=pictures,
                provenance=provenance(),
            )
        )
        started = time.perf_counter()
    if rank_and_world_size()[0] == 0:
        shutil.rmtree(_unfinished(rows[0], seed, runs), ignore_errors=True)


def _calibrated(model: Classifier, images: Benchmark, folder: Path) -> Calibration | None:
    """The calibration of a saved model, stored with it; None where there are too few validation images."""
    labels = torch.as_tensor(getattr(images.splits.get("val"), "labels", ()), dtype=torch.long)
    if int(labels.bincount(minlength=len(images.class_names)).min()) < 1 / ERROR:
        return None
    calibration = calibrate(model, images)
    calibration.save(folder)
    return calibration


def _unfinished(row: Row, seed: int, runs: Runs) -> Path:
    """Folder of the checkpoints of a training, until all of its runs are done."""
    key = {"training": row.training, "images": runs.wanted[row.name, seed]["images"]}
    return runs.path.parent / UNFINISHED / f"{row.method}-{seed}-{run_digest(key)}"


def _trained(
    comparison: Comparison, row: Row, seed: int, images: Benchmark, runs: Runs, models: Path | None
) -> tuple[Classifier, dict[str, Any]]:
    """The model of a row before retraining its last layer: trained now, or saved by an earlier run."""
    if models is not None:
        for earlier in comparison.rows:
            run, folder = runs.done.get((earlier.name, seed)), models / _folder(earlier, seed)
            if earlier.training == row.training and not earlier.retrained and run is not None and folder.is_dir():
                facts = {key: getattr(run, key) for key in ("parameters", "best_epoch", "history")}
                return hub.load(folder), {**facts, "seconds": run.figures["seconds"]}
    seed_everything(seed)
    model = build(row.method, model_of(row, images))
    label, tokens = f"{row.name}, seed {seed}", runs.path.parent / TOKENS
    settings: dict[str, Any] = {"folder": _unfinished(row, seed, runs), "resume": True}
    result = fit(model, images, replace(row.train, seed=seed), row.loss, label=label, tokens=tokens, **settings)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    parameters = {"trained": sum(n for n, trained in sizes if trained), "total": sum(n for n, _ in sizes)}
    facts = {"best_epoch": result.best_epoch, "seconds": result.seconds, "history": result.history}
    return model, {"parameters": parameters, **facts}


def _figures(evaluation: Evaluation) -> dict[str, float]:
    """The available figures of the table."""
    answer, selector = evaluation.predictor, evaluation.selector
    figures = {
        "worst_group": answer.worst_group,
        "average": answer.average,
        "macro": answer.macro,
        "group_gap": answer.group_gap,
        "mask_iou": evaluation.mask_iou,
        "pixel_iou": evaluation.pixel_iou,
        "stray": evaluation.stray,
        "visible_fraction": evaluation.visible_fraction,
        "selector_worst_group": selector.worst_group if selector else None,
        "selector_average": selector.average if selector else None,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _folder(row: Row, seed: int) -> str:
    """Name of the folder of a model."""
    return f"{''.join(c if c.isalnum() or c in '._+' else '-' for c in row.name)}-{seed}"
