"""`ifam compare`: several methods, trained and evaluated alike over several seeds, in one table.

A run is one method with one seed. Each is written to `runs.jsonl` as soon as it is done, and is not done again; the
table is made of the runs that are there.
"""

import json
import time
from collections.abc import Collection, Mapping, Sequence
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
from ifam.evaluation.accuracy import Evaluation, evaluate, hidden_influence
from ifam.evaluation.comparisons import ComparisonResult, MethodInfo, Run, summarize
from ifam.experiments.pictures import draw_pictures, with_files
from ifam.experiments.runs import Runs
from ifam.io import check_absent, ensure_writable, write_json
from ifam.models.base import Classifier
from ifam.models.registry import METHODS, build
from ifam.provenance import provenance
from ifam.serialization import flat, to_json
from ifam.training import last_layer, presets
from ifam.training.fit import check, fit, seed_everything

# After the name of a method: its last layer is fitted again to group-balanced validation images.
RETRAINED = "+dfr"
# The split that these are.
FITTED = "val"
RUNS, TABLE = "runs.jsonl", "compare.json"


@dataclass(frozen=True)
class Row:
    """A row of the table: a method and its settings.

    Attributes:
        name: What the table calls it.
        method: A name in `METHODS`.
        retrained: Whether its last layer is fitted again to validation images (see `ifam.training.last_layer`).
        model: The model; number and names of the classes come from the data.
        train: How it is trained; the seed comes with the run.
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
        """What it uses beside images and classes; without it, a table would be unfair to the others."""
        groups = self.retrained or self.train.group_dro is not None
        masks = getattr(METHODS[self.method].build, "needs_masks", False)
        return ["groups"] * groups + ["masks"] * masks

    @property
    def training(self) -> str:
        """What two rows have in common whose models are the same but for the last layer."""
        return json.dumps([self.method, asdict(self.model), asdict(self.train), asdict(self.loss)], default=str)


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        rows: The methods; differences are taken to the first.
        seeds: Seeds of weights and training, and of the data where these are drawn or cut by a seed.
        benchmark: Name of the data set.
        root: Where its files are.
        data: Its settings; a `seed` among them holds for all runs.
        split: Split to evaluate on; "test", or "val" where there is no test split.
        num_resamples: Resamples of the bootstrap intervals of each run.
        pictures: Test images of each group to draw, with what each method answers.
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

    def images(self, seed: int) -> Benchmark:
        """The data of one seed."""
        return load_benchmark(self.benchmark, self.root, self.options(seed))

    def digests(self) -> dict[int, str]:
        """What the images of each seed are: runs on files that have changed meanwhile are not mixed."""
        known: dict[str, str] = {}
        digests = {}
        for seed in self.seeds:
            options = json.dumps(self.options(seed), default=str)
            if options not in known:
                known[options] = fingerprint(self.images(seed))
            digests[seed] = known[options]
        return digests

    def eval_split(self, images: Benchmark) -> str:
        """The split that is evaluated."""
        return self.split or images.default_eval_split

    def settings(self, row: Row) -> dict[str, Any]:
        """All that a run of a row depends on but its seed, as JSON has it."""
        own = {key: value for key, value in asdict(row).items() if key != "name"}
        own["train"].pop("seed")
        shared = {"benchmark": self.benchmark, "root": self.root, "data": self.data, "split": self.split}
        settings: dict[str, Any] = json.loads(json.dumps({**shared, **own}, default=str))
        return settings

    def described(self, row: Row) -> MethodInfo:
        """What a table says of a row: its method, what it uses, and its settings that are not those of the first."""
        first, own = (dict(flat(self.settings(one))) for one in (self.rows[0], row))
        differs = {
            name: value
            for name, value in own.items()
            if first.get(name) != value and name not in ("method", "retrained")
        }
        again = "; its last layer fitted again to group-balanced validation images (DFR)" if row.retrained else ""
        about = METHODS[row.method].about + again
        return MethodInfo(row.name, row.method, about, row.uses, differs)


# ----------------------------------------------------------------------------------------------------- rows


def read_rows(
    methods: Sequence[str] | Mapping[str, Any],
    model: ModelConfig,
    train: TrainConfig,
    loss: LossConfig,
    given: Collection[str] = (),
) -> tuple[Row, ...]:
    """The rows of a configuration.

    Args:
        methods: Names of methods, each perhaps with "+dfr" behind it; or, by the name of the row, a dict with `method`
            (the name of the row where it is missing) and the fields of `model`, `train` and `loss` that differ.
        model: Settings common to all.
        train: Settings common to all. What makes a method goes before them, unless they were asked for, and what a row
            says before that.
        loss: Settings common to all.
        given: Names of the common settings that were asked for, such as "train.epochs".

    Raises:
        IfamError: There is no method, one is unknown or listed twice, or a setting is unknown or impossible.
    """
    if not methods:
        raise IfamError(f"There is no method to compare; list some of {', '.join(METHODS)} under `methods`.")
    if isinstance(methods, Mapping):
        return tuple(_row(str(name), own or {}, model, train, loss, given) for name, own in methods.items())
    if twice := [name for name in methods if methods.count(name) > 1]:
        raise IfamError(f"The method {twice[0]!r} is listed twice; list it once, or give rows names of their own.")
    return tuple(_row(name, {}, model, train, loss, given) for name in methods)


def _row(name: str, own: Any, model: ModelConfig, train: TrainConfig, loss: LossConfig, given: Collection[str]) -> Row:
    """One row, from what the configuration says of it."""
    known = ("method", "model", "train", "loss")
    if not isinstance(own, Mapping):
        raise IfamError(f"The row {name!r} is {own!r}, but a dict with some of {', '.join(known)} is expected.")
    if unknown := [key for key in own if key not in known]:
        raise IfamError(f"The row {name!r} has an unknown field {unknown[0]!r}; it can have {', '.join(known)}.")
    wanted = str(own.get("method", name))
    base = wanted.removesuffix(RETRAINED)
    # What makes the method, before what the row says of it.
    train = presets.apply_method_defaults(base, train, given)
    changed = [
        _changed(config, own.get(key) or {}, f"{key} of the row {name!r}")
        for key, config in (("model", model), ("train", train), ("loss", loss))
    ]
    return Row(name, base, wanted != base, *changed)


def _changed(config: Any, own: Any, where: str) -> Any:
    """A configuration with some fields changed, their types checked as on the command line."""
    from jsonargparse import ArgumentError, ArgumentParser

    names = [field.name for field in fields(config)]
    if not isinstance(own, Mapping):
        raise IfamError(f"The {where} is {own!r}, but a dict of settings is expected.")
    if unknown := [key for key in own if key not in names]:
        raise IfamError(f"The {where} has an unknown field {unknown[0]!r}; it can have {', '.join(names)}.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--it", type=type(config))
    try:
        return parser.instantiate(parser.parse_object({"it": {**asdict(config), **own}})).it
    except ArgumentError as error:
        reason = " ".join(str(error).split()).replace("it.", "", 1).rstrip(".")
        raise IfamError(f"The {where} has an impossible value ({reason}); change it.") from error


def check_rows(comparison: Comparison, images: Benchmark) -> None:
    """Refuse what would fail in the middle, before anything is trained.

    Args:
        comparison: What is compared.
        images: Its data, of one seed.

    Raises:
        IfamError: A row cannot be trained or evaluated on these images, or is no model.
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
                    f"The row {row.name!r} would be evaluated on the split {split!r}, to which its last layer is "
                    f"fitted; give data with a test split, name another --split, or leave the row out."
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
    """Train and evaluate what has not been done yet, and write the table.

    Args:
        comparison: What is compared.
        out: Folder for `runs.jsonl` (a line a run), `compare.json`, and the models.
        save_models: Keep each model in `models/ROW-SEED`; a row with "+dfr" that is added later then starts from it.
        device: Where to evaluate.
        overwrite: Train and evaluate again what is there under other settings or on other images.

    Returns:
        The table, which `compare.json` holds.

    Raises:
        IfamError: There is no seed, or one twice; a row cannot be trained on the data; or `out` cannot be written, or
            holds runs of the same names with other settings or on images that have changed since.
    """
    seeds, rows = comparison.seeds, comparison.rows
    if not seeds or len(set(seeds)) < len(seeds):
        raise IfamError(f"seeds is {list(seeds)}, but one or more different numbers are expected; change it.")
    folders = [_folder(row, seeds[0]) for row in rows]
    if save_models and (same := [row.name for row in rows if folders.count(_folder(row, seeds[0])) > 1]):
        raise IfamError(
            f"The models of {same[0]!r} and {same[1]!r} would be kept in one folder; rename one of the rows."
        )
    ensure_writable(out, folder=True)
    for name in () if (out / RUNS).exists() else (TABLE, "compare.html", "models"):
        check_absent([out / name], overwrite)
    check_rows(comparison, comparison.images(seeds[0]))
    settings = {row.name: comparison.settings(row) for row in rows}
    digests = comparison.digests()
    wanted = {(row.name, seed): {**settings[row.name], "images": digests[seed]} for seed in seeds for row in rows}
    runs = Runs(out / RUNS, wanted, overwrite=overwrite)
    for seed in seeds:
        missing = [row for row in rows if (row.name, seed) not in runs.done]
        if not missing:
            continue
        images = comparison.images(seed)
        # Rows that differ in nothing but the last layer share one training; those with the layer as trained go first.
        for training in dict.fromkeys(row.training for row in missing):
            sharing = sorted((row for row in missing if row.training == training), key=lambda row: row.retrained)
            _train_and_evaluate(comparison, sharing, seed, images, runs, save_models, device)
    shared = {key: value for key, value in settings[rows[0].name].items() if key not in ("method", "retrained")}
    conditions = {**shared, "seeds": list(seeds), "threads": torch.get_num_threads(), **provenance()}
    result = ComparisonResult(
        [comparison.described(row) for row in rows],
        summarize([with_files(runs.done[row.name, seed], out) for row in rows for seed in seeds]),
        conditions,
        comparison.about,
        max((row.model.num_parts for row in rows), default=0) if comparison.pictures else 0,
    )
    if rank_and_world_size()[0] == 0:
        write_json(out / TABLE, to_json(result))
    return result


def _train_and_evaluate(
    comparison: Comparison,
    rows: Sequence[Row],
    seed: int,
    images: Benchmark,
    runs: Runs,
    save_models: bool,
    device: torch.device | str,
) -> None:
    """One training, and a run for each row that starts from it."""
    started, out = time.perf_counter(), runs.path.parent
    models = out / "models" if save_models else None
    runs.announce(rows[0].name, seed)
    model, facts = _trained(comparison, rows[0], seed, images, runs, models)
    model.to(device)
    for row in rows:
        if row is not rows[0]:
            runs.announce(row.name, seed)
        seconds, extra = facts["seconds"], {}
        if row.retrained:
            label = f"embedding for {row.name}, seed {seed}"
            again = last_layer.retrain(model, images, split=FITTED, seed=seed, label=label)
            seconds, extra = seconds + again.seconds, {"retraining": asdict(again)}
        split, label = comparison.eval_split(images), f"evaluating {row.name}, seed {seed}"
        evaluation = evaluate(model, images, split, num_resamples=comparison.num_resamples, label=label)
        if models is not None and rank_and_world_size()[0] == 0:
            root = None if comparison.root is None else str(comparison.root.absolute())
            remembered = {
                "benchmark": comparison.benchmark,
                "root": root,
                "data": comparison.options(seed),
                "seed": seed,
                **training_list(images),
            }
            hub.save(model, models / _folder(row, seed), {**remembered, "best_epoch": facts["best_epoch"], **extra})
        figures = {**_figures(evaluation), "seconds": seconds}
        if model.masks_input:
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
                parameters=facts["parameters"],
                best_epoch=facts["best_epoch"],
                history=facts["history"],
                retraining=extra.get("retraining"),
                elapsed=time.perf_counter() - started,
                evaluation=to_json(evaluation),
                settings=dict(runs.wanted[row.name, seed]),
                pictures=pictures,
                provenance=provenance(),
            )
        )
        started = time.perf_counter()


def _trained(
    comparison: Comparison, row: Row, seed: int, images: Benchmark, runs: Runs, models: Path | None
) -> tuple[Classifier, dict[str, Any]]:
    """The model of a row before its last layer is fitted again: trained now, or kept from an earlier run."""
    if models is not None:
        for other in comparison.rows:
            run, folder = runs.done.get((other.name, seed)), models / _folder(other, seed)
            if other.training == row.training and not other.retrained and run is not None and folder.is_dir():
                facts = {key: getattr(run, key) for key in ("parameters", "best_epoch", "history")}
                return hub.load(folder), {**facts, "seconds": run.figures["seconds"]}
    seed_everything(seed)
    model = build(row.method, _model(row, images))
    result = fit(model, images, replace(row.train, seed=seed), row.loss, label=f"{row.name}, seed {seed}")
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    parameters = {"trained": sum(n for n, trained in sizes if trained), "total": sum(n for n, _ in sizes)}
    facts = {"best_epoch": result.best_epoch, "seconds": result.seconds, "history": result.history}
    return model, {"parameters": parameters, **facts}


def _figures(evaluation: Evaluation) -> dict[str, float]:
    """The figures of the table, those that there are."""
    answer, selector = evaluation.predictor, evaluation.selector
    figures = {
        "worst_group": answer.worst_group,
        "average": answer.average,
        "macro": answer.macro,
        "mask_iou": evaluation.mask_iou,
        "visible_fraction": evaluation.visible_fraction,
        "selector_worst_group": selector.worst_group if selector else None,
        "selector_average": selector.average if selector else None,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _folder(row: Row, seed: int) -> str:
    """Name of the folder of a model."""
    return f"{''.join(c if c.isalnum() or c in '._+' else '-' for c in row.name)}-{seed}"
