"""YAML in which text stays text: a column called `0` or `no`, a class called `1e3`, there and back."""

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

# Settings of data sets that are text; `--data` is a dict, whose types the parser does not know.
_COLUMNS = ("path_column", "label_column", "group_column", "split_column", "mask_column")
_OTHERS = ("csv", "labels", "variant", "mapping", "split_list", "split", "content", "background")
DATA_TEXT = frozenset((*_COLUMNS, *_OTHERS))
# The parser reads a text in a dict a second time, as YAML, so such text goes through it in letters and digits.
_MARK = "ifam-text-"
_STR, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


def text_settings(function: Callable[..., Any]) -> dict[str, bool]:
    """Names of the settings of a verb that are text, on any level, and whether each may be null."""
    names = dict.fromkeys(DATA_TEXT, False)
    for name, parameter in inspect.signature(function).parameters.items():
        _collect(name, parameter.annotation, names)
    return names


def _collect(name: str, kind: Any, names: dict[str, bool]) -> None:
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        for field in fields(kind):
            _collect(field.name, hints[field.name], names)
        return
    union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    kinds = set(typing.get_args(kind)) if union else {kind}
    plain = {str, Path, list[str], tuple[str, ...], list[str] | dict[str, Any]}
    if kinds & plain and not kinds & {int, float, bool}:
        names[name] = names.get(name, False) or type(None) in kinds


def loader(read: Callable[[str], Any], function: Callable[..., Any]) -> Callable[[str], Any]:
    """A reader of YAML that keeps keys, and the settings of a verb that are text, as they are written.

    Args:
        read: The parser's own reader.
        function: The verb.
    """
    names = text_settings(function)

    def load(text: str) -> Any:
        if ":" not in text or text.strip().endswith(":"):
            # A value, not settings. A path in another encoding than the locale's is none that YAML knows.
            return text if _has_surrogates(text) else read(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            return read(text)
        _make_text_below(node, names)
        return read(yaml.serialize(node, allow_unicode=True))

    return load


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _make_text_below(node: yaml.Node, names: Mapping[str, bool]) -> None:
    """Put quotes around keys and settings that are text."""
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _make_text_below(value, names)
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        _make_text(key, nullable=False)
        if key.value == "data" and isinstance(value, yaml.MappingNode):
            _encode_below(value)
        elif key.value in names and not isinstance(value, yaml.MappingNode):
            for item in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                _make_text(item, names[key.value])
        else:
            _make_text_below(value, names)


def _encode_below(node: yaml.MappingNode) -> None:
    """Encode the settings of a data set that are text."""
    for key, value in node.value:
        _make_text(key, nullable=False)
        # A value that is missing is reported as such.
        if key.value in DATA_TEXT and isinstance(value, yaml.ScalarNode) and (value.value or value.style):
            value.tag, value.style, value.value = _STR, '"', _encode(value.value)


def _make_text(node: yaml.Node, nullable: bool) -> None:
    # What has quotes is text already, "<<" merges, and a value that is missing is reported as such.
    if not isinstance(node, yaml.ScalarNode) or node.style is not None or node.value in ("", "<<"):
        return
    if not (nullable and node.tag == _NULL):
        node.tag, node.style = _STR, '"'


def _encode(text: str) -> str:
    return _MARK + text.encode("utf-8", "surrogateescape").hex()


def encoded(words: list[str]) -> list[str]:
    """The words of a command line, with the text of data sets encoded (`--data.label_column 0`)."""
    changed: list[str] = []
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        before = words[place - 1] if place else ""
        if equals and _is_text(option):
            word = f"{option}={_encode(value)}"
        elif _is_text(before):
            word = _encode(word)
        elif option == "--data" and equals:
            word = f"{option}={_encoded_dict(value)}"
        elif before == "--data":
            word = _encoded_dict(word)
        changed.append(word)
    return changed


def _is_text(option: str) -> bool:
    return option.startswith("--data.") and option.removeprefix("--data.") in DATA_TEXT


def _encoded_dict(value: str) -> str:
    """The value of `--data`, if it is a dict."""
    try:
        node = yaml.compose(value, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return value  # the parser says what is wrong with it
    if not isinstance(node, yaml.MappingNode):
        return value
    _encode_below(node)
    return str(yaml.serialize(node, allow_unicode=True))


def decoded(data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a data set, once the parser has read them."""
    return {name: _decode(value) for name, value in data.items()}


def _decode(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(_MARK):
        return value
    return bytes.fromhex(value.removeprefix(_MARK)).decode("utf-8", "surrogateescape")


class _Dumper(yaml.SafeDumper):
    """Quotes everything that some reader of YAML might take for a number."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML quotes what it reads as something else itself, but `1e3` is a number to others.
    doubtful = re.search(r"^[-+.\d]|[\x00-\x1f\x7f-\x9f\u2028\u2029]", text)
    return dumper.represent_scalar(_STR, text, style='"' if doubtful else None)


_Dumper.add_representer(str, _represent)


def dump(settings: Mapping[str, Any]) -> str:
    """Settings as YAML, in their order."""
    return str(yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf")))
