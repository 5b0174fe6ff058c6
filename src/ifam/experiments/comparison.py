"""A comparison: its rows, seeds and data, read from settings and checked before anything is trained."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import Benchmark, load_benchmark
from ifam.data.fingerprints import fingerprint
from ifam.data_config import config_type
from ifam.errors import IfamError
from ifam.evaluation.comparisons import MethodInfo
from ifam.models.registry import METHODS, build
from ifam.serialization import flat
from ifam.training import last_layer, presets
from ifam.training.fit import check

# Suffix of a method whose last layer is retrained on group-balanced validation images (DFR).
RETRAINED = "+dfr"
# The split that the last layer is retrained on.
FITTED = "val"
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
            model = build(row.method, model_of(row, images), pretrained=False)
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


def model_of(row: Row, images: Benchmark) -> ModelConfig:
    """The model of a row, for the classes of the data."""
    return presets.with_classes(row.model, images)
