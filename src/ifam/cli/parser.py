"""The command line's words as a verb and its settings: options are the verbs' arguments, help is their docstrings."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ifam.cli.audit import audit
from ifam.cli.challenge import challenge
from ifam.cli.compare import compare
from ifam.cli.config_files import checked, config_files
from ifam.cli.convert import convert
from ifam.cli.demo import demo
from ifam.cli.evaluate import evaluate
from ifam.cli.predict import predict
from ifam.cli.report import report
from ifam.cli.retrain import retrain
from ifam.cli.thresholds import thresholds
from ifam.cli.train import train
from ifam.errors import IfamError
from ifam.io import local_path
from ifam.ranges import COUNT, NATURAL, QUANTILE, SEED, check_ranges
from ifam.yaml_text import decoded, encoded, loader

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
}


# Verbs that became programs of the repository.
MOVED = {"prepare": "tools.prepare_siim_acr", "pretrain-tiny": "tools.pretrain_tiny"}


# What a first word without an option's name is: what the verb is about.
ABOUT = {
    **dict.fromkeys(("train", "compare"), "root"),
    **dict.fromkeys(("evaluate", "audit", "thresholds", "retrain", "challenge"), "model"),
}

# Verbs whose needed arguments come one after another, without names.
POSITIONAL = {"convert"}


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
    "num_heads": COUNT,
    "num_resamples": NATURAL,
    "pictures": NATURAL,
    "quantiles": QUANTILE,
    "seed": SEED,
    "seeds": SEED,
    "threads": COUNT,
    "workers": NATURAL,
}


def parse(args: list[str]) -> tuple[str, dict[str, Any]]:
    """Verb and settings, from the words of a command line; they are checked as far as they can be by themselves."""
    # A name that the terminal cannot show is no reason to stop.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    words = _underscored(args)
    if words[:1] and words[0] in MOVED:
        raise IfamError(f"`ifam {words[0]}` has moved: run `python -m {MOVED[words[0]]}` in a clone of the repository.")
    if words[:1] and words[0] in VERBS:
        words = checked(_flagged(_named(words), VERBS[words[0]]), words[0], VERBS[words[0]])
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
        if chosen["root"] is not None and "benchmark" not in chosen["given"]:
            chosen["benchmark"] = "folder"
    return verb, chosen


def _given(settings: Any) -> frozenset[str]:
    """Names of the settings that were given on the command line or in a file, "train.seed" for one."""

    def names(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
        for name, value in values.items():
            yield from names(value, f"{before}{name}.") if isinstance(value, Mapping) else [f"{before}{name}"]

    return frozenset(names(settings.as_dict()))


def _named(words: list[str]) -> list[str]:
    """`ifam train photos` means `--root photos`, `ifam evaluate runs/ifam` means `--model runs/ifam`."""
    verb, *rest = words
    if verb not in ABOUT or not rest or rest[0].startswith("-"):
        return words
    option = f"--{ABOUT[verb]}"
    if any(word.partition("=")[0] == option for word in rest):
        raise IfamError(f"{rest[0]!r} stands for {option}, which is given as well; give one of them.")
    return [verb, f"{option}={rest[0]}", *rest[1:]]


def _flagged(words: list[str], function: Callable[..., None]) -> list[str]:
    """Flags may stand alone: `--overwrite` means `--overwrite true`."""
    flags = {f"--{name}" for name, one in signature(function).parameters.items() if one.annotation is bool}
    values = {"true", "false", "yes", "no", "on", "off", "0", "1"}
    return [
        f"{word}=true" if word in flags and following.lower() not in values else word
        for word, following in zip(words, [*words[1:], ""], strict=True)
    ]


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


def _version() -> str:
    from ifam.version import __version__

    return __version__
