"""`ifam compare`: several methods, trained and evaluated the same way over several seeds.

A run is one method with one seed. It is written to `runs.jsonl` as soon as it is done, and not repeated later; the
table summarizes all runs. A training that was stopped goes on from its last checkpoint.
"""

import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from ifam.checkpoints import hub
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import Benchmark, load_benchmark
from ifam.data.eval_dataset import training_list
from ifam.data.fingerprints import fingerprint
from ifam.data_config import config_type
from ifam.distributed import rank_and_world_size
from ifam.errors import IfamError
from ifam.evaluation.accuracy import Evaluation, hidden_influence, summarize_rows
from ifam.evaluation.collect import collect
from ifam.evaluation.comparisons import ComparisonResult, MethodInfo, Run, summarize
from ifam.evaluation.flips import flip_rate, has_swaps
from ifam.experiments.pictures import draw_pictures, with_files
from ifam.experiments.runs import Runs
from ifam.io import check_absent, ensure_writable, run_digest, write_json
from ifam.models.base import Classifier
from ifam.models.registry import METHODS, build
from ifam.models.token_cache import TOKENS, reused_tokens
from ifam.provenance import provenance, record
from ifam.run_files import kept_status
from ifam.serialization import flat, to_json
from ifam.training import last_layer, presets
from ifam.training.fit import check, fit, seed_everything

# Suffix of a method whose last layer is retrained on group-balanced validation images (DFR).
RETRAINED = "+dfr"
# The split that the last layer is retrained on.
FITTED = "val"
RUNS, TABLE = "runs.jsonl", "compare.json"
# Folder of the checkpoints of a training that is not finished.
UNFINISHED = "unfinished"
# In the name of a folder, for the seed.
SEED = "{seed}"

# Completes settings of model, training and losses; `given` are the names of those that were set.
Complete = Callable[..., tuple[ModelConfig, TrainConfig, LossConfig]]


@dataclass(frozen=True)
class Row:
    """A row of the table: a method and its settings.

    Attributes:
        name: Its name in the table.
        method: A name in `METHODS`.
        retrained: Whether its last layer is retrained on validation images (see `ifam.training.last_layer`).
        model: The model; number and names of the classes are those of the data.
        train: Training settings; the seed is that of the run.
        loss: Weight of each loss term.
    """

    name: str
    method: str
    retrained: bool
    model: ModelConfig
    train: TrainConfig
    loss: LossConfig

    @property
    def uses(self) -> list[str]:
        """Supervision beyond class labels: "groups", "masks"."""
        groups = self.retrained or self.train.group_dro is not None
        masks = getattr(METHODS[self.method].build, "needs_masks", False)
        return ["groups"] * groups + ["masks"] * masks

    @property
    def training(self) -> str:
        """A key that is equal for rows whose models differ in the last layer only."""
        return json.dumps([self.method, asdict(self.model), asdict(self.train), asdict(self.loss)], default=str)


@dataclass(frozen=True)
class Comparison:
    """Settings of a comparison.

    Attributes:
        rows: The methods; differences are taken to the first.
        seeds: Seeds of weights and training, and of data that depend on a seed.
        benchmark: Name of the data set.
        root: Folder of its files; `{seed}` in it stands for the seed, so that each has images of its own.
        data: Its settings; a `seed` among them applies to all runs.
        split: Split to evaluate on; by default "test", or "val" if there is no test split.
        num_resamples: Resamples of the bootstrap intervals of each run.
        pictures: Number of test images of each group to draw with the answers of each method.
        about: A sentence or two on the data, for the page.
    """

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    benchmark: str
    root: Path | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    num_resamples: int = 1000
    pictures: int = 0
    about: str = ""

    def options(self, seed: int) -> dict[str, Any]:
        """Settings of the data for one seed."""
        known = fields(config_type(self.benchmark))
        return {**({"seed": seed} if "seed" in {field.name for field in known} else {}), **self.data}

    def folder(self, seed: int) -> Path | None:
        """The folder of the data of one seed."""
        return None if self.root is None else Path(str(self.root).replace(SEED, str(seed)))

    def images(self, seed: int) -> Benchmark:
        """The data of one seed."""
        return load_benchmark(self.benchmark, self.folder(seed), self.options(seed))

    def digests(self) -> dict[int, str]:
        """Digest of the images of each seed, to detect changed files."""
        cache: dict[str, str] = {}
        digests = {}
        for seed in self.seeds:
            options = json.dumps([self.options(seed), self.folder(seed)], default=str)
            if options not in cache:
                cache[options] = fingerprint(self.images(seed))
            digests[seed] = cache[options]
        return digests

    def eval_split(self, images: Benchmark) -> str:
        """The split that is evaluated."""
        return self.split or images.default_eval_split

    def settings(self, row: Row) -> dict[str, Any]:
        """Everything that a run of a row depends on except its seed, ready for JSON."""
        row_settings = {key: value for key, value in asdict(row).items() if key != "name"}
        row_settings["train"].pop("seed")
        shared = {"benchmark": self.benchmark, "root": self.root, "data": self.data, "split": self.split}
        settings: dict[str, Any] = json.loads(json.dumps({**shared, **row_settings}, default=str))
        return settings

    def describe(self, row: Row) -> MethodInfo:
        """Description of a row: its method, supervision, and settings that differ from the first row."""
        first, settings = (dict(flat(self.settings(one))) for one in (self.rows[0], row))
        differs = {
            name: value
            for name, value in settings.items()
            if first.get(name) != value and name not in ("method", "retrained")
        }
        dfr = "; last layer retrained on group-balanced validation images (DFR)" if row.retrained else ""
        about = METHODS[row.method].about + dfr
        return MethodInfo(row.name, row.method, about, row.uses, differs)


# ----------------------------------------------------------------------------------------------------- rows


def read_rows(
    methods: Sequence[str] | Mapping[str, Any],
    model: ModelConfig,
    train: TrainConfig,
    loss: LossConfig,
    given: Collection[str] = (),
    complete: Complete | None = None,
) -> tuple[Row, ...]:
    """The rows of a configuration.

    Args:
        methods: Names of methods, optionally with the suffix "+dfr"; or, by the name of the row, a dict with `method`
            (by default the name of the row) and the fields of `model`, `train` and `loss` that differ.
        model: Settings common to all.
        train: Settings common to all. Settings that define a method override them unless set explicitly, and settings
            of a row override both.
        loss: Settings common to all.
        given: Names of the common settings that were set explicitly, such as "train.epochs".
        complete: Completes the settings of each row by those of a preset, given the names of all that were set.

    Raises:
        IfamError: There is no method, one is unknown or listed twice, or a setting is unknown or invalid.
    """
    if not methods:
        raise IfamError(f"There is no method to compare; list some of {', '.join(METHODS)} under `methods`.")
    if isinstance(methods, Mapping):
        return tuple(
            _row(str(name), entry or {}, model, train, loss, given, complete) for name, entry in methods.items()
        )
    if twice := [name for name in methods if methods.count(name) > 1]:
        raise IfamError(f"The method {twice[0]!r} is listed twice; list it once, or give the rows different names.")
    return tuple(_row(name, {}, model, train, loss, given, complete) for name in methods)


def _row(
    name: str,
    entry: Any,
    model: ModelConfig,
    train: TrainConfig,
    loss: LossConfig,
    given: Collection[str],
    complete: Complete | None,
) -> Row:
    """One row, from its entry in the configuration."""
    known = ("method", "model", "train", "loss")
    if not name.strip():
        raise IfamError("A row of the comparison has no name; write one.")
    if not isinstance(entry, Mapping):
        raise IfamError(f"The row {name!r} is {entry!r}, but a dict with some of {', '.join(known)} is expected.")
    if unknown := [key for key in entry if key not in known]:
        raise IfamError(f"The row {name!r} has an unknown field {unknown[0]!r}; it can have {', '.join(known)}.")
    if "seed" in (entry.get("train") or {}):
        raise IfamError(f"The row {name!r} sets train.seed, but a comparison takes its seeds from --seeds; remove it.")
    full_name = str(entry.get("method", name))
    method = full_name.removesuffix(RETRAINED)
    # Settings of the method first, so that those of the row override them.
    train = presets.apply_method_defaults(method, train, given)
    changed = [
        _with_changes(config, entry.get(key) or {}, f"{key} of the row {name!r}")
        for key, config in (("model", model), ("train", train), ("loss", loss))
    ]
    if complete is not None:
        of_row = [f"{key}.{field}" for key in known[1:] for field in entry.get(key) or {}]
        changed[:] = complete(*changed, given=[*given, *of_row])
    return Row(name, method, full_name != method, *changed)


def _with_changes(config: Any, changes: Any, where: str) -> Any:
    """A configuration with some fields changed; types are checked as on the command line."""
    from jsonargparse import ArgumentError, ArgumentParser

    names = [field.name for field in fields(config)]
    if not isinstance(changes, Mapping):
        raise IfamError(f"The {where} is {changes!r}, but a dict of settings is expected.")
    if unknown := [key for key in changes if key not in names]:
        raise IfamError(f"The {where} has an unknown field {unknown[0]!r}; it can have {', '.join(names)}.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=type(config))
    try:
        return parser.instantiate(parser.parse_object({"it": {**asdict(config), **changes}})).it
    except ArgumentError as error:
        reason = " ".join(str(error).split()).replace("it.", "", 1).rstrip(".")
        raise IfamError(f"The {where} has an invalid value ({reason}); change it.") from error


def check_rows(comparison: Comparison, images: Benchmark) -> None:
    """Check all rows before anything is trained.

    Args:
        comparison: The comparison.
        images: Its data for one seed.

    Raises:
        IfamError: A row cannot be trained or evaluated on these images, or is not a valid model.
    """
    split = comparison.eval_split(images)
    images.split(split)
    for row in comparison.rows:
        with torch.device("meta"):
            model = build(row.method, _model(row, images), pretrained=False)
        check(images, row.train, model)
        if model.needs_masks:
            images.require_masks(split, f"The row {row.name!r}")
        if row.retrained:
            if split == FITTED:
                raise IfamError(
                    f"The row {row.name!r} would be evaluated on the split {split!r}, on which its last layer is "
                    f"retrained; give data with a test split, name another --split, or leave the row out."
                )
            last_layer.check(images, FITTED)


def _model(row: Row, images: Benchmark) -> ModelConfig:
    """The model of a row, for the classes of the data."""
    return presets.with_classes(row.model, images)


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
        figures = {**_figures(evaluation), **flips, "seconds": seconds}
        if model.masks_input and not model.needs_masks:
            figures["hidden_influence"] = hidden_influence(model, images.split(split))
        pictures = []
        if comparison.pictures and seed == comparison.seeds[0] and rank_and_world_size()[0] == 0:
            pictures = draw_pictures(model, images, split, comparison.pictures, out, _folder(row, seed))
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
    model = build(row.method, _model(row, images))
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
