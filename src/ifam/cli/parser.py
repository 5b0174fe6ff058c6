"""Parses the command line: options are the arguments of the verbs, help is their docstrings."""

import json
import re
import sys
from argparse import SUPPRESS, Action
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import is_dataclass
from inspect import signature
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml

from ifam.cli.app import app
from ifam.cli.audit import audit
from ifam.cli.audit_any import runs_code
from ifam.cli.calibrate import calibrate
from ifam.cli.certify import certify
from ifam.cli.challenge import challenge
from ifam.cli.compare import compare
from ifam.cli.config_files import checked, config_files, last_value
from ifam.cli.convert import convert
from ifam.cli.demo import demo
from ifam.cli.evaluate import evaluate
from ifam.cli.export import export
from ifam.cli.predict import predict
from ifam.cli.prepare import prepare
from ifam.cli.push import push
from ifam.cli.repeat import repeat
from ifam.cli.report import report
from ifam.cli.retrain import retrain
from ifam.cli.thresholds import thresholds
from ifam.cli.train import train
from ifam.data_config import DATA_CONFIGS, DataConfig, any_config, check_names, config_type, refuse_function
from ifam.distributed import first_process
from ifam.errors import IfamError, suggestion
from ifam.importing import names_function
from ifam.io import local_path, one_line
from ifam.ranges import COUNT, NATURAL, PORT, POSITIVE, QUANTILE, SEED, SHARE, SIDE, Range, check_ranges
from ifam.yaml_text import loader

VERBS: dict[str, Any] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "retrain": retrain,
    "challenge": challenge,
    "thresholds": thresholds,
    "calibrate": calibrate,
    "predict": predict,
    "app": app,
    "audit": audit,
    "certify": certify,
    "report": report,
    "repeat": repeat,
    "export": export,
    "convert": convert,
    "push": push,
    "prepare": prepare,
}


# Former verbs that are now programs of the repository.
MOVED = {"pretrain-tiny": "tools.pretrain_tiny"}


for _verb, _function in VERBS.items():
    # With its original name, the parser would resolve `ifam.predict`, which imports PyTorch.
    _function.__qualname__ = f"{_verb}_verb"


# Option that a first word without a name stands for.
ABOUT = {
    **dict.fromkeys(("train", "compare"), "root"),
    **dict.fromkeys(
        ("evaluate", "audit", "certify", "thresholds", "calibrate", "retrain", "challenge", "export", "app"), "model"
    ),
    "prepare": "kind",
    "repeat": "result",
}

# Verbs whose required arguments are positional.
POSITIONAL = {"convert", "push"}


# Verbs that need to know which settings were set explicitly.
WANT_GIVEN = {"train", "compare"}


# Verbs that take files, with the name of that argument.
FILES = {"predict": "images", "report": "results"}
_FILES_HELP = {
    "predict": "Files, folders, patterns in quotes, CSV files with a column of paths, or - for a list on stdin.",
    "report": "Files, or folders of files.",
}


# Options that take several words.
SEVERAL = {"prepare": {"classes", "places"}, "export": {"examples"}}


# Verbs for one data set.
DATA_SETS = {"challenge": "imagenet9"}


# Ranges of numeric arguments.
RANGES = {
    "attack": NATURAL,
    "backgrounds": COUNT,
    "batch_size": COUNT,
    "correlation": SHARE,
    "draws": COUNT,
    "drop_parts": NATURAL,
    "drop_unsure": QUANTILE,
    "error": QUANTILE,
    "explain": COUNT,
    "keep_parts": NATURAL,
    "image_size": SIDE,
    "limit": COUNT,
    "max_flips": SHARE,
    "mean": SHARE,
    "num_heads": COUNT,
    "max_megabytes": POSITIVE,
    "max_megapixels": POSITIVE,
    "num_resamples": NATURAL,
    "pictures": NATURAL,
    "port": PORT,
    "quantiles": QUANTILE,
    "region": COUNT,
    "region_pixels": COUNT,
    "seed": SEED,
    "seeds": SEED,
    "std": POSITIVE,
    "steps": COUNT,
    "threads": COUNT,
    "threshold": SHARE,
    "width": COUNT,
    "workers": NATURAL,
}


def parse(args: list[str]) -> tuple[str, dict[str, Any]]:
    """Verb and settings from the words of a command line, with types and ranges checked."""
    # Names that the terminal cannot show must not raise an error.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    words = _underscored(args)
    if words[:1] and words[0] in MOVED:
        raise IfamError(f"`ifam {words[0]}` has moved: run `python -m {MOVED[words[0]]}` in a clone of the repository.")
    if words[:1] == ["prepare"] and words[1:] and words[1] != "cutouts" and not words[1].startswith("-"):
        raise IfamError(
            f"`ifam prepare` makes benchmarks from cut-outs only (`ifam prepare cutouts`), not {words[1]!r}; X-rays of "
            f"SIIM-ACR are prepared by `python -m tools.prepare_siim_acr` in a clone of the repository."
        )
    if words[:1] and words[0] in VERBS:
        words = _with_earlier_settings(_joined(_named(words)))
        if words[0] in WANT_GIVEN and last_value(words, "root") and not last_value(words, "benchmark"):
            words.insert(1, "--benchmark=folder")
        name = last_value(words, "benchmark")
        _refuse_code(words, {"benchmark": name})
        if name is not None and names_function(name) and first_process():
            print(f"--benchmark {name} runs the code of this module with your rights.", file=sys.stderr)
        known = known_settings(words)
        words = checked(_flagged(words, known), words[0], known)
        if "data" in known:
            check_names(known["data"], [word[7:].partition("=")[0] for word in words if word.startswith("--data.")])
    parser = build_parser(words)
    settings = parser.instantiate(parser.parse_args(words))
    verb = settings.verb
    arguments = settings[verb].as_dict()
    for name in ("config", "print_config"):
        arguments.pop(name, None)
    given = parser.parse_args(words, defaults=False)[verb].as_dict()
    _refuse_code(words, arguments)
    if "data" in arguments:
        # Without defaults: a saved model has its own.
        arguments["data"] = given.get("data")
    check_ranges(arguments, _ranges(verb))
    if arguments.get("split") == "":
        raise IfamError("split is empty; name a split, or leave the option out.")
    arguments = {name: _expanded(name, value) for name, value in arguments.items()}
    if verb in WANT_GIVEN:
        arguments["given"] = frozenset(_dotted(given))
    return verb, arguments


def _refuse_code(words: list[str], arguments: Mapping[str, Any]) -> None:
    """Refuse a function that only a settings file names: files may be a stranger's, and its code would run."""
    for option, is_code in (("any", runs_code), ("benchmark", names_function)):
        name = arguments.get(option)
        # The words of the command line itself: `--any=NAME`, or `--any NAME`.
        typed = {*words, *(word.removeprefix(f"--{option}=") for word in words)}
        if name is not None and is_code(name) and name not in typed:
            refuse_function(name, "A settings file", option)


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Names of settings on all levels, such as "train.seed"."""
    for name, value in values.items():
        yield from _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [f"{prefix}{name}"]


def known_settings(words: list[str]) -> dict[str, Any]:
    """Type of each setting of the verb of a command line, with the settings of its data set.

    Raises:
        IfamError: The data set does not exist.
    """
    known = {name: one.annotation for name, one in signature(VERBS[words[0]]).parameters.items() if name != "given"}
    return known | {"data": _data_type(words)} if "data" in known else known


def _data_type(words: list[str]) -> type[DataConfig]:
    """Settings type of the data set of a command line; of all data sets if it is unknown."""
    default = "pondbirds" if words[0] in WANT_GIVEN else ""
    model = last_value(words, "model") or "runs/ifam"
    if words[0] == "audit" and last_value(words, "any"):
        # The images of `--any` are a folder, or those of the selector.
        default = "folder" if last_value(words, "root") else ""
        model = last_value(words, "selector") or ""
    if name := DATA_SETS.get(words[0]) or last_value(words, "benchmark") or default:
        return config_type(name)
    try:
        path = local_path(model) / "config.json"
        name = str(json.loads(path.read_text(encoding="utf-8"))["extra"]["benchmark"])
    except (OSError, ValueError, KeyError, TypeError):
        return any_config()
    if not {"-h", "--help", "--help-all"} & {*words}:
        refuse_function(name, f"The model {model}")
    return config_type(name) if name in DATA_CONFIGS else any_config()


def _named(words: list[str]) -> list[str]:
    """Name the first word: `ifam train photos` means `--root photos`, `ifam evaluate runs/ifam` `--model runs/ifam`."""
    verb, *rest = words
    if verb not in ABOUT or not rest or rest[0].startswith("-"):
        return words
    option = f"--{ABOUT[verb]}"
    if any(word.partition("=")[0] == option for word in rest):
        raise IfamError(f"{rest[0]!r} stands for {option}, which is given as well; give one of them.")
    return [verb, f"{option}={rest[0]}", *rest[1:]]


def _with_earlier_settings(words: list[str]) -> list[str]:
    """Add the settings file of the training that `ifam train --resume` goes on with; what is given overrides it."""
    given = last_value(words, "resume")
    if words[0] != "train" or given is None or given.lower() in ("false", "no", "off", "0"):
        return words
    out = local_path(last_value(words, "out") or Path("runs", last_value(words, "method") or "ifam"))
    file = out / "train.yaml"
    return [words[0], f"--config={file}", *words[1:]] if file.is_file() else words


def _joined(words: list[str]) -> list[str]:
    """Join the words of an option that takes several: `--classes a=x b=y` means `--classes=["a=x", "b=y"]`."""
    joined: list[str] = []
    several: list[str] | None = None
    taken = set()
    for word in words:
        if word.startswith("--"):
            if several:
                joined.append(f"{joined.pop()}={json.dumps(several, ensure_ascii=False)}")
            option, equals, value = word[2:].partition("=")
            several = None
            if option in SEVERAL.get(words[0], ()) and not value.startswith(("[", "{")):
                several, word = [value] if equals else [], f"--{option}"
            if option in taken:
                raise IfamError(f"--{option} is given twice; give all its values after one.")
            taken |= {option} & SEVERAL.get(words[0], set())
        elif several == [] and word.startswith(('["', "['")):
            # They are a list already.
            several = None
        if several is not None and not word.startswith("--"):
            several.append(word)
        else:
            joined.append(word)
    return [*joined[:-1], f"{joined[-1]}={json.dumps(several, ensure_ascii=False)}"] if several else joined


def _flagged(words: list[str], known: Mapping[str, Any]) -> list[str]:
    """Add the value of flags: `--overwrite` means `--overwrite true`."""
    kinds = dict(known)
    for name, kind in known.items():
        if is_dataclass(kind):
            kinds |= {f"{name}.{below}": inner for below, inner in get_type_hints(kind).items()}
    flags = {f"--{name}" for name, kind in kinds.items() if bool in (get_args(kind) or (kind,))}
    # Only for verbs with positional arguments, the next word may be a file or folder.
    values = {"true", "false", "yes", "no", "on", "off", "0", "1"} if words[0] in {*FILES, *POSITIONAL} else None
    return [
        f"{word}=true" if word in flags and _is_no_value(following, values) else word
        for word, following in zip(words, [*words[1:], "--"], strict=True)
    ]


def _is_no_value(word: str, values: Collection[str] | None) -> bool:
    return word.startswith("--") or (values is not None and word.lower() not in values)


def _expanded(name: str, value: Any) -> Any:
    """A setting with its paths expanded as by a shell."""
    if isinstance(value, Path):
        return local_path(value)
    if name in ("model", "source") and isinstance(value, str):
        return str(local_path(value))
    # Images may be a pattern, or a list on standard input.
    return [str(local_path(file)) for file in value] if name == FILES["report"] else value


def build_parser(args: list[str] | None = None) -> Any:
    """The parser of all verbs: options are the functions' arguments, help is their docstrings.

    Args:
        args: Words to parse: only their verb gets options, since adding all takes seconds. All verbs if None.
    """
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader, set_loader

    mode = "yaml"
    if args and args[0] in VERBS:
        set_loader(mode := "ifam", loader(get_loader("yaml"), known_settings(args)), (yaml.YAMLError,))

    class Parser(ArgumentParser):
        """A parser that reports errors in one sentence, without the usage."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            print(f"ifam: {one_line(_sentence(message, args or [], options))}", file=sys.stderr)
            sys.exit(2)

    class Formatter(DefaultHelpFormatter):
        """Shorter help for flags, lists and types."""

        def _format_action_invocation(self, action: Action) -> str:
            text = str(super()._format_action_invocation(action))
            if "+ " in text:  # --drop_parts+ adds to a list
                text = f"{action.option_strings[0]} {text.rpartition('+ ')[2]}"
            if action.default is False:
                text = text.removesuffix(" {true,false}")
            return text if len(text) <= 78 else f"{action.option_strings[0]} {action.dest.rpartition('.')[2].upper()}"

        def _expand_help(self, action: Action) -> str:
            text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", super()._expand_help(action))
            if "{" in self._format_action_invocation(action):  # the choices are listed already
                text = re.sub(r"type: Literal\[.*?\](, )?", "", text)
            return text.removesuffix(" (type: bool, default: False)").removesuffix(" ()").replace(", default: )", ")")

    options: list[str] = []
    shared: dict[str, Any] = {"parser_mode": mode, "allow_abbrev": False, "formatter_class": Formatter}
    parser = Parser(
        prog="ifam",
        version=_version(),
        description="Image classifiers whose mask is the answer's only input.",
        **shared,
    )
    verbs = parser.add_subcommands(dest="verb")
    for verb, function in VERBS.items():
        summary = (function.__doc__ or "").splitlines()[0]
        one = Parser(description=summary, usage=_usage(verb, function), **shared)
        verbs.add_subcommand(verb, one, help=summary)
        if args is not None and verb not in args[:1]:
            continue
        one.add_argument("--help-all", action="help", help="Show this message with all settings, rare ones too.")
        one.add_argument("--config", action="config", help="A YAML file with any of these settings.")
        if verb in FILES:
            # Several files, as expanded by a shell.
            one.add_argument(FILES[verb], nargs="+", type=str, help=_FILES_HELP[verb])
        # No groups: `train` is both a verb and one of its arguments.
        skipped: set[str | int] = {*FILES.values(), "given", "data"}
        one.add_function_arguments(function, as_group=False, as_positional=verb in POSITIONAL, skip=skipped)
        known = known_settings(args if args else [verb])
        if "data" in known:
            one.add_class_arguments(known["data"], "data")
        for action in one._actions:
            if action.dest.startswith("data.") and verb not in WANT_GIVEN:
                # The defaults apply to training only.
                action.default = SUPPRESS
            if {"-h", "--help"} & {*(args or [])} and not _is_common(action.dest, known):
                action.help = SUPPRESS
        options += one._option_string_actions
    return parser


def _usage(verb: str, function: Callable[..., None]) -> str:
    """The usage line of a verb."""
    required = [name for name, one in signature(function).parameters.items() if one.default is one.empty]
    about = [ABOUT[verb].upper() if ABOUT[verb] in required else f"[{ABOUT[verb].upper()}]"] if verb in ABOUT else []
    named = verb not in {*FILES, *POSITIONAL}
    others = [f"--{name} DIR" if named else name.upper() for name in required if name != ABOUT.get(verb)]
    return " ".join(["ifam", verb, "[options]", *about, *others, *(["..."] if verb in FILES else [])])


def _is_common(name: str, known: Mapping[str, Any]) -> bool:
    """Whether `--help` shows an option, or only `--help-all`."""
    first, _, below = name.partition(".")
    if is_dataclass(known.get(first)):
        return below in known[first].common
    return name != "print_config"


def _sentence(message: str, words: list[str], options: list[str]) -> str:
    """The message of the parser in one sentence, with a pointer to the help."""
    unknown = re.match(r"(?:unrecognized arguments: --|Subcommand '\w+' does not accept option ')([^\s=']+)", message)
    if unknown:
        before, dot, name = unknown[1].rpartition(".")
        candidates = [
            option.removeprefix(f"--{before}{dot}") for option in options if option.startswith(f"--{before}{dot}")
        ]
        message = f"There is no --{unknown[1]}{suggestion(name, candidates)}"
    if surplus := re.match(r"unrecognized arguments: (?!--)(\S+)", message):
        message = (
            f"{surplus[1]} is not expected here; give files one after the other, before the options, and one whose "
            f"name begins with a dash as ./-NAME"
        )
    # YAML's name for a file that was read from a string.
    files = [name for _, name in config_files(words)]
    message = message.replace('"<unicode string>"', files[-1] if files else "the settings")
    if key := re.search(r'key "([\w.]+)"', message):
        last = key[1].rpartition(".")[2]
        named = [file for file in files if re.search(rf"\b{last}\b", Path(file).read_text(encoding="utf-8-sig"))]
        message = message.replace(key[0], f"{key[0]} in {named[-1]}" if named else key[0], 1)
    if files:
        message = message.replace("Problems parsing config", f"The settings file {files[-1]} cannot be read")
    message = _plain_types(" ".join(message.split()), words)
    verb = next((word for word in words[:1] if word in VERBS), "")
    return f"{message.rstrip('.')}; `ifam {verb + ' ' if verb else ''}--help` lists the options."


def _plain_types(message: str, words: list[str]) -> str:
    """The message of the parser for a value of the wrong type, with the range or the type that is expected."""
    if config := re.match(r'Parser key "(\w+)": Unable to load config (.*?) - (.*)', message):
        message = config[3]
        if not message.startswith(f'Parser key "{config[1]}.'):
            return f"{config[1]} is {config[2]}, but settings, such as '{{seed: 1}}', or a file of them are expected"
    wrong = re.fullmatch(
        r'Parser key "(?P<key>[\w.]+)"(?P<where>[^:]*): '
        r"(?:Expected an? (?P<one>.*?)\.|.*?Subtypes: \[(?P<several>.*)\] Errors: .*) "
        r"(?:Got|Given) value: ?(?P<value>.*)",
        message,
    )
    if not wrong:
        return message
    names = re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.(\w+)", r"\1\2", wrong["one"] or wrong["several"])
    names = re.sub(r"Literal\[(.*?)\]", lambda choices: choices[1].replace(", ", " or "), names)
    kinds = re.split(r", (?![^\[]*\])", names.replace("NoneType", "null"))
    hint = " (in brackets, such as '[0, 1]')" if any(kind.startswith(("list", "tuple")) for kind in kinds) else ""
    # `null` last, independent of the version of the parser.
    expected = " or ".join(sorted(kinds, key="null".__eq__))
    if (limits := _range(wrong["key"], words)) is not None:
        # YAML's NaN is `.nan`: `nan` is a word to the parser, and its type alone would say that NaN is no number.
        expected, hint = (expected, f"{hint}, each {limits.expected}") if hint else (limits.expected, "")
    return f"{wrong['key']}{wrong['where']} is {wrong['value'] or 'empty'}, but {expected} is expected{hint}"


def _range(name: str, words: list[str]) -> Range | None:
    """The range of a setting of a command line, such as "train.epochs"; None where it has none."""
    first, _, below = name.partition(".")
    if below:
        return getattr(known_settings(words).get(first), "ranges", {}).get(below)
    return _ranges(words[0]).get(first)


def _ranges(verb: str) -> dict[str, Range]:
    """Range of each numeric argument of a verb."""
    # A demo has a number of seeds, a comparison a list of them.
    return RANGES | ({"seeds": COUNT} if verb == "demo" else {})


def _underscored(words: list[str]) -> list[str]:
    """Accept options with dashes instead of underscores."""
    return [re.sub("^--(?!help-all$)[^=]+", lambda name: "--" + name[0][2:].replace("-", "_"), word) for word in words]


def _version() -> str:
    from ifam.version import __version__

    return __version__
