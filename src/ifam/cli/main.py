"""The command line: a dict from verb to function, whose docstrings are the help."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from inspect import signature
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from ifam.cli.comparison_verbs import compare, retrain
from ifam.cli.config_files import checked, config_files
from ifam.cli.stopped import what_is_left
from ifam.cli.verbs import challenge, check_free, evaluate, prepare, thresholds
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.distributed import first_process, wait_for_first
from ifam.errors import IfamError
from ifam.interruption import Interrupted, ignore_signals, interruptible
from ifam.io import check_absent, check_folder, ensure_writable, local_path, run_digest
from ifam.logs import shown
from ifam.ranges import COUNT, NATURAL, POSITIVE, QUANTILE, SEED, check_ranges
from ifam.yaml_text import decoded, encoded, loader


def train(
    benchmark: str = "pondbirds",
    root: Path | None = None,
    method: str = "ifam",
    out: Path | None = None,
    overwrite: bool = False,
    model: ModelConfig = ModelConfig(),  # noqa: B008
    train: TrainConfig = TrainConfig(),  # noqa: B008
    loss: LossConfig = LossConfig(),  # noqa: B008
    data: dict[str, Any] | None = None,
    allow_tiny_backbone: bool = False,
    given: Collection[str] = (),
) -> None:
    """Train a model on a benchmark or on your own folder of images.

    Args:
        benchmark: Name of the data set, or "folder" for your own `class/image` tree.
        root: Where the images are.
        method: "ifam", or what to compare it with: plain_vit, plain_vit_mean, plain_vit_attentive, attentive_probe,
            selector, late_mask, soft_mask, given_mask, frozen_predictor, group_dro, attention_crops
            (docs/comparisons.md).
        out: Folder for the model, its resolved configuration, logs and results; `runs/METHOD` where none is given.
        overwrite: Replace a model that is already there; it is removed as soon as training begins.
        model: The model. The number of classes and their names come from the data.
        train: How to train.
        loss: Weight of each loss term.
        data: Settings of the data set, by name.
        allow_tiny_backbone: Train the small embedded backbone where the weights of the default one cannot be fetched:
            good for trying things out, not for an answer to trust.
        given: Names of the settings that were asked for, such as "train.seed"; they win, or are refused.
    """
    from ifam.data import load_benchmark
    from ifam.data.eval_dataset import training_list
    from ifam.evaluation.accuracy import evaluate
    from ifam.model_files import weights_digest
    from ifam.models.base import PartClassifier
    from ifam.report.console import print_evaluation, write_results
    from ifam.training import presets as recipes
    from ifam.training.fit import augmentation, check, fit, seed_everything

    train, out = recipes.settle(method, train, given), out or Path("runs") / method
    check_free(out, overwrite)
    ensure_writable(out, folder=True)
    images = load_benchmark(benchmark, root, data)
    config = recipes.with_classes(model, images, given)
    seed_everything(train.seed)
    plan = recipes.build(config, train, loss, images, method, allow_tiny_backbone=allow_tiny_backbone, given=given)
    check(images, plan.train, plan.model)
    settings = {
        "method": method,
        "benchmark": benchmark,
        # Absolute: whoever judges the model may stand in another folder.
        "root": None if root is None else str(root.absolute()),
        "data": data or {},
        "model": asdict(plan.config),
        # With what was left open to the data.
        "train": {**asdict(plan.train), **asdict(augmentation(plan.train, images))},
        "loss": asdict(plan.losses),
    }
    recipes.begin_run(settings, out, overwrite)
    result = fit(plan.model, images, plan.train, plan.losses, out, label=f"training on {images.name}")
    remembered = {name: settings[name] for name in ("benchmark", "root", "data")} | training_list(images)
    if first_process():
        plan.model.save_pretrained(out, {**remembered, "seed": plan.train.seed, "best_epoch": result.best_epoch})
    split = images.judged
    found = evaluate(plan.model, images, split)
    conditions = {**settings, "split": split, "note": images.note, "weights": weights_digest(plan.model.state_dict())}
    try:
        print_evaluation(found, f"{images.name}, {split}")
    finally:
        if first_process():
            write_results(found, out / "results.json", conditions)
    try_out = f"predict --model {out} IMAGES" if isinstance(plan.model, PartClassifier) else f"evaluate --model {out}"
    print(f"The model is in {out}: try `ifam {try_out}`.")


def predict(
    images: list[str],
    model: str = "runs/ifam",
    out: Path = Path("predictions"),
    batch_size: int = 16,
    skip_bad: bool = False,
    drop_parts: list[int] | None = None,
    keep_parts: list[int] | None = None,
    overwrite: bool = False,
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
        overwrite: Replace what is in `out`; without that, only the predictions of the same model for the same images.
    """
    from ifam.checkpoints import hub
    from ifam.inference import predict, print_predictions
    from ifam.models.interventions import DropParts, Intervention, KeepParts

    ensure_writable(out, folder=True)
    changes: list[Intervention] = []
    if drop_parts:
        changes.append(DropParts(drop_parts))
    if keep_parts is not None:
        changes.append(KeepParts(keep_parts))
    net = hub.load_any(model)
    # Deep images are read as in training.
    white = int(hub.read_config(model)[1].get("data", {}).get("white", 0))
    kept: dict[str, Any] = {"out": out, "overwrite": overwrite, "white": white}
    rows = predict(net, images, batch_size=batch_size, skip_bad=skip_bad, interventions=changes, **kept)
    print_predictions(rows, hides=net.hides)
    print(f"Pictures and predictions.csv are in {out}.")


def demo(
    out: Path = Path("demo"),
    seed: int = 0,
    seeds: int = 1,
    quick: bool = False,
    threads: int | None = None,
    overwrite: bool = False,
) -> None:
    """See it work, offline: train a plain ViT and this model, judge both, and write a report.

    Args:
        out: Folder for `report.html`, `results.json` and the model.
        seed: First seed, of data and training.
        seeds: How many seeds, counted up from the first.
        quick: A tenth of the images and one epoch: shows that everything runs, and nothing else.
        threads: CPU threads; all cores where none is given.
        overwrite: Replace what is in `out`; without that, only a demo of the same seeds and size.
    """
    from ifam.experiments.demo import print_demo, run_demo

    results = run_demo(out, seed=seed, seeds=seeds, quick=quick, threads=threads, overwrite=overwrite)
    print_demo(results["runs"])
    print(
        f"Open {out / 'report.html'} to look; the figures are in {out / 'results.json'}, the model in {out / 'model'}."
    )


def audit(
    model: str = "runs/ifam",
    benchmark: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    out: Path = Path("audit"),
    plain: Path | None = None,
    limit: int = 200,
    explain: int = 50,
    batch_size: int = 32,
    device: str = "auto",
    seed: int = 0,
    overwrite: bool = False,
    data: dict[str, Any] | None = None,
) -> None:
    """Prove what the answer rests on: attack hidden pixels, swap backgrounds, read masks, drop parts, compare.

    The exit status is 1 where a hidden pixel changes an answer.

    Args:
        model: Folder or hub id of the model.
        benchmark: Name of the data set; the one the model was trained on where none is given.
        root: Where the images are.
        split: Split to audit; "test", or "val" where there is no test split.
        out: Folder for audit.json, audit.html and the pictures.
        plain: Folder of a trained plain ViT, to explain after the fact; the model's own predictor where none is given.
        limit: Images at most, evenly spread over the split.
        explain: Images at most for explanations after the fact, which are slow.
        batch_size: Images at a time.
        device: Where to compute: "cpu", "cuda", or "auto" for a GPU where there is one.
        seed: Seed of everything random.
        overwrite: Replace what is in `out`; without that, only an audit under the same conditions.
        data: Settings of the data set, by name.
    """
    from ifam.auditing.run import audit, load_plain, write
    from ifam.cli.verbs import chosen_device
    from ifam.data.eval_dataset import load_eval_dataset, remembered_root
    from ifam.data.fingerprints import fingerprint
    from ifam.model_files import weights_digest
    from ifam.report.audit_tables import print_audit

    ensure_writable(out, folder=True)
    net, trained = _load(model)
    net.to(chosen_device(device))
    name, images, options = load_eval_dataset(trained, benchmark, root, data, net.config.class_names, split)
    split, source = split or images.judged, remembered_root(trained, benchmark, root)
    print(images.describe(split))
    other = None if plain is None else load_plain(plain)
    # All that the figures depend on.
    conditions: dict[str, Any] = {
        "benchmark": name,
        "root": None if source is None else str(source.absolute()),
        "split": split,
    }
    conditions |= {"data": options, "images": fingerprint(images, [split]), "weights": weights_digest(net.state_dict())}
    conditions |= {"plain_weights": None if other is None else weights_digest(other.state_dict())}
    run = run_digest({**conditions, "limit": limit, "explain": explain, "seed": seed})
    check_folder(out, "audit.json", ["audit.html", "audit_pictures"], run, overwrite)
    conditions |= {"run": run, "model": model, "note": images.note, **({} if plain is None else {"plain": str(plain)})}
    settings: dict[str, Any] = {"limit": limit, "explain": explain, "batch_size": batch_size, "seed": seed}
    result = audit(net, images, split=split, plain=other, conditions=conditions, **settings)
    try:
        print_audit(result.to_dict())
    finally:
        _, page = write(result, net, out)
    print(f"Open {page} to look; the figures are in {out / 'audit.json'}.")
    if not result.passed:
        sys.exit(1)


def report(results: list[str], out: Path = Path("report.html"), overwrite: bool = False) -> None:
    """Put results on one page that opens without a network.

    Args:
        results: Files that audit, compare, evaluate, train or demo wrote, or folders that hold some.
        out: The page.
        overwrite: Replace whatever is there; without that, only a page on the same results.
    """
    from ifam.report.results import write_report

    print(f"Open {write_report(results, out, overwrite=overwrite)} to look.")


def convert(
    source: str,
    folder: Path,
    to: Literal["ifam", "official"] = "ifam",
    layout: Literal["timm", "transformers"] = "timm",
    num_heads: int | None = None,
    overwrite: bool = False,
) -> None:
    """Turn the authors' checkpoints into models of this package, or back.

    Args:
        source: File, folder or hub id of a checkpoint.
        folder: Where the result goes.
        to: "ifam", or "official" for the authors' names.
        layout: Which of the authors' two layouts to write.
        num_heads: Attention heads, where the checkpoint does not say.
        overwrite: Replace a model that is already in the folder.
    """
    from ifam.checkpoints import hub

    print(hub.convert(source, folder, to=to, layout=layout, num_heads=num_heads, overwrite=overwrite))


def pretrain_tiny(
    out: Path = Path("tiny_vit.safetensors"),
    minutes: float = 9.0,
    seed: int = 0,
    steps: int | None = None,
    overwrite: bool = False,
) -> None:
    """Pretrain the embedded backbone again, on drawn textures that hold no bird.

    Args:
        out: File for the weights; a description with the ending .json goes beside it.
        minutes: How long, where `steps` does not say.
        seed: Seed of images and weights.
        steps: Steps to take.
        overwrite: Replace files that are already there.
    """
    from ifam.pretraining import pretrain_tiny

    if out.suffix == ".json":
        raise IfamError(f"out is {out}, but the ending .json is that of the description; choose another, .safetensors.")
    ensure_writable(out)
    check_absent([out, out.with_suffix(".json")], overwrite)

    print(json.dumps(pretrain_tiny(out, minutes=minutes, seed=seed, steps=steps), indent=2, default=str))


VERBS: dict[str, Any] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "retrain": retrain,
    "challenge": challenge,
    "thresholds": thresholds,
    "predict": predict,
    "audit": audit,
    "report": report,
    "convert": convert,
    "prepare": prepare,
    "pretrain-tiny": pretrain_tiny,
}

# Verbs whose needed arguments come one after another, without names.
POSITIONAL = {"convert", "prepare"}

# Verbs that must know which settings were asked for.
WANT_GIVEN = {"train", "compare"}

# Verbs that take files, and the name of that argument.
FILES = {"predict": "images", "report": "results"}


# Numbers that are arguments of verbs.
RANGES = {
    "batch_size": COUNT,
    "draws": COUNT,
    "drop_parts": NATURAL,
    "drop_unsure": QUANTILE,
    "explain": COUNT,
    "keep_parts": NATURAL,
    "limit": COUNT,
    "minutes": POSITIVE,
    "num_heads": COUNT,
    "num_resamples": NATURAL,
    "quantiles": QUANTILE,
    "seed": SEED,
    "seeds": SEED,
    "steps": COUNT,
    "threads": COUNT,
    "workers": NATURAL,
}


def main(args: list[str] | None = None) -> None:
    """Run a verb; errors of the input are one sentence on standard error, and exit status 2."""
    begun, alone = time.time(), args is None
    if args is None:
        _use_utf8()
    chosen: dict[str, Any] = {}
    verb = ""
    try:
        with shown(), interruptible():
            verb, chosen = parse(sys.argv[1:] if args is None else args)
            VERBS[verb](**chosen)
    except IfamError as error:
        wait_for_first()
        print(f"ifam: {_plain(error)}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as interrupted:
        if alone:
            ignore_signals()
        if first_process():
            left = what_is_left(verb, chosen, begun)
            print(f"ifam: Stopped by {interrupted}: {left}.", file=sys.stderr)
        sys.exit(interrupted.exit_status)


def parse(args: list[str]) -> tuple[str, dict[str, Any]]:
    """Verb and settings, from the words of a command line; they are checked as far as they can be by themselves."""
    # A name that the terminal cannot show is no reason to stop.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    words = _underscored(args)
    if words[:1] and words[0] in VERBS:
        words = checked(_flagged(words, VERBS[words[0]]), words[0], VERBS[words[0]])
    parser = build_parser(words)
    # jsonargparse 4.49 has a shorter name for it, and warns of the old one.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    # Text that looks like a number stays text, unless the settings are only shown.
    said = words if "--print_config" in words else encoded(words)
    settings = instantiate(parser.parse_args(said))
    verb = settings.verb
    chosen = settings[verb].as_dict()
    for name in ("config", "print_config"):
        chosen.pop(name, None)
    if chosen.get("data"):
        chosen["data"] = decoded(chosen["data"])
    # One number of seeds, or the seeds themselves.
    check_ranges(chosen, RANGES | ({"seeds": COUNT} if isinstance(chosen.get("seeds"), int) else {}))
    if chosen.get("split") == "":
        raise IfamError("split is empty; name a split, or leave the option out.")
    chosen = {name: _expanded(name, value) for name, value in chosen.items()}
    if verb in WANT_GIVEN:
        chosen["given"] = _given(parser.parse_args(said, defaults=False)[verb])
    return verb, chosen


def _given(settings: Any) -> frozenset[str]:
    """Names of the settings that were given on the command line or in a file, "train.seed" for one."""

    def names(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
        for name, value in values.items():
            yield from names(value, f"{before}{name}.") if isinstance(value, Mapping) else [f"{before}{name}"]

    return frozenset(names(settings.as_dict()))


def _flagged(words: list[str], function: Callable[..., None]) -> list[str]:
    """Flags may stand alone: `--overwrite` means `--overwrite true`."""
    flags = {f"--{name}" for name, one in signature(function).parameters.items() if one.annotation is bool}
    values = {"true", "false", "yes", "no", "on", "off", "0", "1"}
    return [
        f"{word}=true" if word in flags and following.lower() not in values else word
        for word, following in zip(words, [*words[1:], ""], strict=True)
    ]


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale knows no more than ASCII or another single alphabet.

    Names of files and classes would otherwise be different texts than in any other locale, or none at all.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and not sys.flags.utf8_mode:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-X", "utf8", "-m", "ifam.cli", *sys.argv[1:]])


def _expanded(name: str, value: Any) -> Any:
    """A setting with its paths as a shell would have expanded them, wherever they were written."""
    if isinstance(value, Path):
        return local_path(value)
    if name in ("model", "source") and isinstance(value, str):
        return str(local_path(value))
    return [str(local_path(file)) for file in value] if name in FILES.values() else value


def build_parser(args: list[str] | None = None) -> Any:
    """The parser of all verbs: options are the functions' arguments, help is their docstrings.

    Args:
        args: What will be parsed: only its verb gets options, since reading those of all takes seconds; all do where
            it is None.
    """
    from jsonargparse import ArgumentParser, get_loader, set_loader

    mode = "yaml"
    if args and args[0] in VERBS:
        set_loader(mode := "ifam", loader(get_loader("yaml"), VERBS[args[0]]), (yaml.YAMLError,))

    class Parser(ArgumentParser):
        """A parser whose errors are one sentence: pages of usage would bury it."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            print(f"ifam: {_sentence(message, args or [])}", file=sys.stderr)
            sys.exit(2)

    parser = Parser(
        prog="ifam",
        version=_version(),
        description="Image classifiers whose mask is the answer's only input.",
        parser_mode=mode,
    )
    verbs = parser.add_subcommands(dest="verb")
    for verb, function in VERBS.items():
        summary = (function.__doc__ or "").splitlines()[0]
        one = Parser(description=summary, parser_mode=mode)
        verbs.add_subcommand(verb, one, help=summary)
        if args is not None and verb not in args[:1]:
            continue
        one.add_argument("--config", action="config", help="A YAML file with any of these settings.")
        if verb in FILES:
            # Several files after one another, as a shell expands them.
            one.add_argument(FILES[verb], nargs="+", type=str, help="Files, or folders of files.")
        # Groups of their own would clash: `train` is a verb and one of its arguments.
        one.add_function_arguments(
            function, as_group=False, as_positional=verb in POSITIONAL, skip={*FILES.values(), "given"}
        )
    return parser


def _sentence(message: str, words: list[str]) -> str:
    """The parser's message, and where the answer is."""
    # YAML's own words for a file that was read from a string.
    files = [name for _, name in config_files(words)]
    message = message.replace('"<unicode string>"', files[-1] if files else "the settings")
    if key := re.search(r'key "([\w.]+)"', message):
        last = key[1].rpartition(".")[2]
        named = [file for file in files if re.search(rf"\b{last}\b", Path(file).read_text(encoding="utf-8-sig"))]
        message = message.replace(key[0], f"{key[0]} in {named[-1]}" if named else key[0], 1)
    message = _plain_types(" ".join(message.split()))
    verb = next((word for word in words[:1] if word in VERBS), "")
    return f"{message.rstrip('.')}; `ifam {verb + ' ' if verb else ''}--help` lists what there is."


def _plain_types(message: str) -> str:
    """The parser's message on a value of the wrong type as one sentence, in the words of settings files."""
    wrong = re.fullmatch(
        r'Parser key "(?P<key>[\w.]+)"(?P<where>[^:]*): '
        r"(?:Expected an? (?P<one>.*?)\.|.*?Subtypes: \[(?P<several>.*)\] Errors: .*) "
        r"(?:Got|Given) value: (?P<value>.*)",
        message,
    )
    if not wrong:
        return message
    names = re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.(\w+)", r"\1\2", wrong["one"] or wrong["several"])
    kinds = re.split(r", (?![^\[]*\])", names.replace("NoneType", "null"))
    hint = " (in brackets, such as '[0, 1]')" if any(kind.startswith(("list", "tuple")) for kind in kinds) else ""
    # Null, which is what most are where they are left out, comes last in any version of the parser.
    expected = " or ".join(sorted(kinds, key="null".__eq__))
    return f"{wrong['key']}{wrong['where']} is {wrong['value']}, but {expected} is expected{hint}"


def _underscored(words: list[str]) -> list[str]:
    """Options may be spelled with dashes, too."""
    return [re.sub("^--[^=]+", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in words]


def _plain(error: IfamError) -> str:
    """The sentence of an error; raised in a process that loads images, it comes wrapped into a traceback."""
    return str(error).rpartition(f"{IfamError.__module__}.{IfamError.__name__}: ")[2].strip()


def _version() -> str:
    from ifam.version import __version__

    return __version__


def _load(model: str) -> tuple[Any, Mapping[str, Any]]:
    """A model, and what it remembers of its training."""
    from ifam.checkpoints import hub

    return hub.load(model), hub.read_config(model)[1]
