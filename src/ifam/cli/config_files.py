"""Checks of settings files: mistakes that YAML would ignore are errors with file, line and key."""

import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from ifam.errors import IfamError, first_line, suggestion
from ifam.io import local_path
from ifam.yaml_text import CODE, compose, names_code

_NULL = "tag:yaml.org,2002:null"


def config_files(words: list[str]) -> Iterator[tuple[int, str]]:
    """The settings files on a command line: position and name of each."""
    for place, word in enumerate(words):
        if word.startswith("--config="):
            yield place, word.removeprefix("--config=")
        elif word == "--config" and place + 1 < len(words):
            yield place + 1, words[place + 1]


def last_value(words: list[str], name: str) -> str | None:
    """The last value of a setting on a command line or in its settings files.

    Files that cannot be read are skipped here; `checked` reports them.
    """
    value = None
    for place, word in enumerate(words):
        option, equals, text = word.partition("=")
        if not equals:
            text = next(iter(words[place + 1 : place + 2]), "")
        if option == f"--{name}":
            value = None if text == "null" else text
        elif option == "--config" and text and (path := local_path(text)).is_file():
            try:
                node = compose(path.read_text(encoding="utf-8-sig"))
            except (OSError, UnicodeDecodeError, yaml.YAMLError):
                continue
            for key, _, content in _pairs(node) if isinstance(node, yaml.MappingNode) else ():
                if key == name and isinstance(content, yaml.ScalarNode):
                    value = None if content.tag == _NULL else content.value
    return value


def checked(words: list[str], verb: str, known: Mapping[str, Any]) -> list[str]:
    """The words of a command line, with its settings files checked and their paths expanded as by a shell.

    Args:
        words: The words.
        verb: The first of them.
        known: Type of each of its settings.

    Raises:
        IfamError: A file cannot be read, is empty, or has a duplicate or unknown key; or a path on the command line is
            empty.
    """
    words = list(words)
    paths = {name for name, kind in known.items() if _is_path(name, kind)}
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        given = value if equals else next(iter(words[place + 1 : place + 2]), None)
        if option.removeprefix("--") in paths and option.startswith("--") and given is not None and not given.strip():
            raise IfamError(f"{option} is an empty path; write one, or leave the option out.")
        if option.startswith("--") and CODE in option:
            raise IfamError(f"{option} names code, which settings do not run; leave it out.")
        if not word.strip() and place and not words[place - 1].startswith("--"):
            raise IfamError(f"An empty path is given to `ifam {verb}`; write one, or leave it out.")
    for place, name in config_files(words):
        path = local_path(name)
        check(path, verb, known)
        words[place] = f"--config={path}" if words[place].startswith("--config=") else str(path)
    return words


def check(path: Path, verb: str, known: Mapping[str, Any]) -> None:
    """Check a settings file; types of values are checked by the parser.

    Args:
        path: The file.
        verb: The verb that it is for.
        known: Type of each setting of the verb.

    Raises:
        IfamError: It cannot be read, is empty, has a duplicate or unknown key, or lacks a required value.
    """
    if not path.is_file():
        what = "is a folder, but a file is expected" if path.is_dir() else "does not exist"
        raise IfamError(f"The settings file {path} {what}; give a YAML file with --config.")
    try:
        node = compose(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise IfamError(f"The settings file {path} is not a text in UTF-8 ({error.reason}); save it as one.") from error
    except OSError as error:
        raise IfamError(f"The settings file {path} cannot be read ({error.strerror}); give another.") from error
    except yaml.YAMLError as error:
        raise IfamError(_syntax(path, error)) from error
    if not isinstance(node, yaml.MappingNode):
        what = "is empty" if node is None else "contains no settings"
        raise IfamError(f"The settings file {path} {what}; write lines such as `seed: 1` into it.")
    _check_keys(node, path)
    _check_dotted(node, path)
    if names_code(node):
        raise IfamError(f"{path} has a key {CODE}, which names code; settings do not run any, so remove it.")
    for name, key, value in _pairs(node):
        if "." in name and name.partition(".")[0] in known:
            # `train.epochs: 3` is an alternative form of a nested setting, which the parser accepts.
            continue
        _check_name(path, key, name, known, f"`ifam {verb}`")
        if name == "data" and value.tag == _NULL:
            continue
        if is_dataclass(known[name]):
            if not isinstance(value, yaml.MappingNode):
                raise IfamError(f"{_place(path, value)}: {name} is one value, but settings below it are expected.")
            inner = typing.get_type_hints(known[name])
            inner = {field.name: inner[field.name] for field in fields(known[name])}
            for below, place, content in _pairs(value):
                _check_name(path, place, below, inner, getattr(known[name], "benchmark", "") or name)
                _check_value(path, f"{name}.{below}", content, inner[below])
        else:
            _check_value(path, name, value, known[name])


def _pairs(node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Name, key and value of each entry."""
    for key, value in node.value:
        yield str(key.value), key, value


def _check_keys(node: yaml.Node, path: Path) -> None:
    """Raise an error for a duplicate key on any level; YAML would silently use the last."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for name, key, value in _pairs(node):
            if not isinstance(key, yaml.ScalarNode):
                raise IfamError(f"{_place(path, key)}: a list or settings are given as a name; write one word.")
            if name in seen:
                raise IfamError(f"{_place(path, key)}: {name} was already set in line {seen[name]}; remove one.")
            seen[name] = key.start_mark.line + 1
            _check_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value, path)


def _check_dotted(node: yaml.MappingNode, path: Path) -> None:
    """Raise an error for a setting that is given twice, as `train.epochs: 3` and as `epochs: 4` below `train`."""
    nested = {
        f"{name}.{below}": place
        for name, _, value in _pairs(node)
        for below, place, _ in (_pairs(value) if isinstance(value, yaml.MappingNode) else ())
    }
    for name, key, _ in _pairs(node):
        if name in nested:
            line = nested[name].start_mark.line + 1
            raise IfamError(f"{_place(path, key)}: {name} is also set in line {line}; remove one.")


def _check_name(path: Path, key: yaml.Node, name: str, known: Mapping[str, Any], where: str) -> None:
    """Raise an error for an unknown key."""
    if name not in known:
        hint = suggestion(name, known)
        raise IfamError(f"{_place(path, key)}: {where} has no setting {name!r}{hint}; it has {', '.join(known)}.")


def _check_value(path: Path, name: str, value: yaml.Node, kind: Any) -> None:
    """Raise an error for an empty value or path that is required."""
    kinds = typing.get_args(kind) or (kind,)
    if value.tag == _NULL and type(None) not in kinds and kind is not Any:
        raise IfamError(f"{_place(path, value)}: {name} has no value; write one, or remove the line.")
    if _is_path(name, kind) and isinstance(value, yaml.ScalarNode) and value.tag != _NULL and not value.value.strip():
        raise IfamError(f"{_place(path, value)}: {name} is an empty path; write one, or remove the line.")


def _is_path(name: str, kind: Any) -> bool:
    """Whether a setting is a path, or a model, which may also be an id on the hub."""
    return Path in (typing.get_args(kind) or (kind,)) or (name == "model" and kind is str)


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path}, line {node.start_mark.line + 1}"


def _syntax(path: Path, error: yaml.YAMLError) -> str:
    """A syntax error of a file as one sentence."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if problem and "<stream end>" in problem:
        # Something is not closed: report where it begins, not the end of the file.
        mark = getattr(error, "context_mark", None) or mark
    line = "" if mark is None else f", line {mark.line + 1}"
    if problem and "'\\t'" in problem:
        problem = "a tab is used instead of spaces"
    return f"The settings file {path} is not valid YAML ({problem or first_line(error)}, in {path}{line}); correct it."
