"""The command line: a dict from verb to function, whose docstrings are the help."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.errors import IfamError


def train(
    benchmark: str = "pondbirds",
    root: Path | None = None,
    out: Path = Path("runs/ifam"),
    overwrite: bool = False,
    model: ModelConfig = ModelConfig(),  # noqa: B008
    train: TrainConfig = TrainConfig(),  # noqa: B008
    loss: LossConfig = LossConfig(),  # noqa: B008
    data: dict[str, Any] | None = None,
) -> None:
    """Train a model on a benchmark or on your own folder of images.

    Args:
        benchmark: Name of the data set, or "folder" for your own `class/image` tree.
        root: Where the images are.
        out: Folder for the model, its resolved configuration, logs and results.
        overwrite: Replace a model that is already there.
        model: The model. The number of classes and their names come from the data.
        train: How to train.
        loss: Weight of each loss term.
        data: Settings of the data set, by name.
    """
    from ifam import recipes
    from ifam.data import load_benchmark
    from ifam.evaluation.groups import evaluate
    from ifam.evaluation.tables import print_evaluation, write_results
    from ifam.training import check, fit, seed_everything

    if (out / "config.json").exists() and not overwrite:
        raise IfamError(f"{out} already holds a model; choose another --out, or replace it with --overwrite true.")
    images = load_benchmark(benchmark, root, data)
    config = replace(model, num_classes=len(images.class_names), class_names=images.class_names)
    seed_everything(train.seed)
    plan = recipes.build(config, train, loss, images)
    check(images, plan.train)
    settings = {
        "benchmark": benchmark,
        "root": None if root is None else str(root),
        "data": data or {},
        "model": asdict(plan.config),
        "train": asdict(plan.train),
        "loss": asdict(plan.losses),
    }
    recipes.save_settings(settings, out)
    result = fit(plan.model, images, plan.train, plan.losses, out, label=f"training on {images.name}")
    remembered = {name: settings[name] for name in ("benchmark", "root", "data")}
    plan.model.save_pretrained(out, {**remembered, "best_epoch": result.best_epoch})
    split = "test" if "test" in images.splits else "val"
    found = evaluate(plan.model, images, split)
    write_results(found, out / "results.json", {**settings, "split": split, "note": images.note})
    print_evaluation(found, f"{images.name}, {split}")
    print(f"The model is in {out}: try `ifam predict --model {out} IMAGES`.")


def evaluate(
    model: str = "runs/ifam",
    benchmark: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    out: Path | None = None,
    batch_size: int = 64,
    data: dict[str, Any] | None = None,
) -> None:
    """Measure a model: accuracy by class and by group, worst group, and the quality of its mask.

    Args:
        model: Folder or hub id of the model.
        benchmark: Name of the data set; the one the model was trained on where none is given.
        root: Where the images are.
        split: Split to measure; "test", or "val" where there is no test split.
        out: File for the results; `results-BENCHMARK-SPLIT.json` beside a local model where none is given.
        batch_size: Images at a time.
        data: Settings of the data set, by name.
    """
    from ifam.data import load_benchmark
    from ifam.evaluation.groups import evaluate
    from ifam.evaluation.tables import print_evaluation, write_results

    net, trained = _load(model)
    name = benchmark or str(trained.get("benchmark", "pondbirds"))
    same = name == trained.get("benchmark")
    options = {**(trained.get("data", {}) if same else {}), **(data or {})}
    source = root or (Path(trained["root"]) if same and trained.get("root") else None)
    images = load_benchmark(name, source, options)
    if len(images.class_names) != net.config.num_classes:
        raise IfamError(
            f"{name} has {len(images.class_names)} classes, but the model knows {net.config.num_classes}; "
            f"give the data that it was trained for."
        )
    if net.config.class_names and net.config.class_names != images.class_names:
        raise IfamError(
            f"{name} has the classes {', '.join(images.class_names)}, but the model knows "
            f"{', '.join(net.config.class_names)}; give the data that it was trained for."
        )
    split = split or ("test" if "test" in images.splits else "val")
    found = evaluate(net, images, split, batch_size=batch_size)
    folder = Path(model) if Path(model).is_dir() else Path()
    target = out or folder / f"results-{name}-{split}.json"
    conditions = {
        "model": str(model),
        "benchmark": name,
        "split": split,
        "data": options,
        "note": images.note,
    }
    write_results(found, target, conditions)
    print_evaluation(found, f"{name}, {split}")
    print(f"Written to {target}.")


def predict(
    images: list[str],
    model: str = "runs/ifam",
    out: Path = Path("predictions"),
    batch_size: int = 16,
    skip_bad: bool = False,
    drop_parts: list[int] | None = None,
    keep_parts: list[int] | None = None,
) -> None:
    """Classify image files, and draw what each answer rests on.

    Args:
        images: Files, or folders of files.
        model: Folder or hub id of the model.
        out: Folder for the pictures and `predictions.csv`.
        batch_size: Images at a time.
        skip_bad: Leave out files that are no images, instead of stopping.
        drop_parts: Parts to hide from the predictor.
        keep_parts: The only parts to show it.
    """
    from ifam.evaluation.tables import print_predictions
    from ifam.interventions import DropParts, Intervention, KeepParts
    from ifam.prediction import predict

    changes: list[Intervention] = []
    if drop_parts:
        changes.append(DropParts(drop_parts))
    if keep_parts is not None:
        changes.append(KeepParts(keep_parts))
    net, _ = _load(model)
    rows = predict(net, images, batch_size=batch_size, out=out, skip_bad=skip_bad, interventions=changes)
    print_predictions(rows)
    print(f"Pictures and predictions.csv are in {out}.")


def demo(
    out: Path = Path("demo"), seed: int = 0, seeds: int = 1, quick: bool = False, threads: int | None = None
) -> None:
    """See it work, offline: train a plain ViT and this model, judge both, and write a report.

    Args:
        out: Folder for `report.html`, `results.json` and the model.
        seed: First seed, of data and training.
        seeds: How many seeds, counted up from the first.
        quick: A tenth of the images and one epoch: shows that everything runs, and nothing else.
        threads: CPU threads; all cores where none is given.
    """
    from ifam.demo import run_demo

    run_demo(out, seed=seed, seeds=seeds, quick=quick, threads=threads)


def convert(
    source: str,
    folder: Path,
    to: Literal["ifam", "official"] = "ifam",
    layout: Literal["timm", "transformers"] = "timm",
    num_heads: int | None = None,
) -> None:
    """Turn the authors' checkpoints into models of this package, or back.

    Args:
        source: File, folder or hub id of a checkpoint.
        folder: Where the result goes.
        to: "ifam", or "official" for the authors' names.
        layout: Which of the authors' two layouts to write.
        num_heads: Attention heads, where the checkpoint does not say.
    """
    from ifam import hub

    print(hub.convert(source, folder, to=to, layout=layout, num_heads=num_heads))


def pretrain_tiny(
    out: Path = Path("tiny_vit.safetensors"), minutes: float = 9.0, seed: int = 0, steps: int | None = None
) -> None:
    """Pretrain the embedded backbone again, on drawn textures that hold no bird.

    Args:
        out: File for the weights.
        minutes: How long, where `steps` does not say.
        seed: Seed of images and weights.
        steps: Steps to take.
    """
    from ifam.pretraining import pretrain_tiny

    print(json.dumps(pretrain_tiny(out, minutes=minutes, seed=seed, steps=steps), indent=2, default=str))


VERBS: dict[str, Any] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "convert": convert,
    "pretrain-tiny": pretrain_tiny,
}


def main(args: list[str] | None = None) -> None:
    """Run a verb; errors of the input are one sentence on standard error, and exit status 2."""
    try:
        parser = build_parser(args)
        # jsonargparse 4.49 has a shorter name for it, and warns of the old one.
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        settings = instantiate(parser.parse_args(args))
        chosen = settings[settings.verb].as_dict()
        for name in ("config", "print_config"):
            chosen.pop(name, None)
        VERBS[settings.verb](**chosen)
    except IfamError as error:
        print(f"ifam: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("ifam: stopped.", file=sys.stderr)
        sys.exit(130)


def build_parser(args: list[str] | None = None) -> Any:
    """The parser of all verbs: options are the functions' arguments, help is their docstrings.

    Args:
        args: What will be parsed, for error messages that name the right help; the command line where None.
    """
    from jsonargparse import ArgumentParser

    words = sys.argv[1:] if args is None else args

    class Parser(ArgumentParser):
        """A parser whose errors are one sentence: pages of usage would bury it."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            print(f"ifam: {_sentence(message, words)}", file=sys.stderr)
            sys.exit(2)

    parser = Parser(
        prog="ifam", version=_version(), description="Image classifiers whose mask is the answer's only input."
    )
    verbs = parser.add_subcommands(dest="verb")
    for verb, function in VERBS.items():
        summary = (function.__doc__ or "").splitlines()[0]
        one = Parser(description=summary)
        one.add_argument("--config", action="config", help="A YAML file with any of these settings.")
        if verb == "predict":
            # Several files after one another, as a shell expands them.
            one.add_argument("images", nargs="+", type=str, help="Files, or folders of files.")
        # Groups of their own would clash: `train` is a verb and one of its arguments.
        one.add_function_arguments(function, as_group=False, as_positional=verb == "convert", skip={"images"})
        verbs.add_subcommand(verb, one, help=summary)
    return parser


def _sentence(message: str, words: list[str]) -> str:
    """The parser's message, and where the answer is."""
    verb = next((word for word in words[:1] if word in VERBS), "")
    return f"{' '.join(message.split()).rstrip('.')}; `ifam {verb + ' ' if verb else ''}--help` lists what there is."


def _version() -> str:
    from ifam import __version__

    return __version__


def _load(model: str) -> tuple[Any, Mapping[str, Any]]:
    """A model, and what it remembers of its training."""
    from ifam import hub

    return hub.load(model), hub.read_config(model)[1]


if __name__ == "__main__":
    main()
