"""YAML in which text stays text, such as a column `0` or `no` or a class `1e3`, when read and written."""

import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

# The parser imports and calls what stands under this key, in settings of any type.
CODE = "class_path"
_STR, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
# Values in a text, with those that `*name` repeats: a few lines could stand for billions of them.
_MOST_VALUES = 100_000


def compose(text: str) -> yaml.Node | None:
    """The nodes of a YAML text; None where it is empty.

    Raises:
        yaml.YAMLError: It is not valid, or too large or too deep to be read.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    nodes, count = [root], 0
    while nodes:
        node = nodes.pop()
        count += 1
        if count > _MOST_VALUES:
            raise yaml.YAMLError(f"with what `*name` repeats, it has more than {_MOST_VALUES:,} values")
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            nodes += [one for pair in node.value for one in pair]
    return root


def text_settings(known: Mapping[str, Any]) -> dict[str, bool]:
    """Names of the settings that are text, on any level, and whether each may be null.

    Args:
        known: Type of each setting; of a dataclass, all fields count.
    """
    names: dict[str, bool] = {}
    for name, kind in known.items():
        _collect(name, kind, names)
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


def loader(read: Callable[[str], Any], known: Mapping[str, Any]) -> Callable[[str], Any]:
    """A reader of YAML that keeps keys, and settings that are text, as written.

    Args:
        read: The parser's own reader.
        known: Type of each setting.
    """
    names = text_settings(known)

    def value(text: str) -> Any:
        try:
            return read(text)
        except (ValueError, AttributeError, RecursionError) as error:
            # A date that does not exist, a number of thousands of digits, a text with the tag of a number.
            raise yaml.YAMLError("a number or date in it is not valid; write another") from error

    def load(text: str) -> Any:
        if ":" not in text or text.strip().endswith(":"):
            # A value, not settings. YAML does not support paths in another encoding than the locale's.
            return text if _has_surrogates(text) else value(text)
        node = compose(text)
        if names_code(node):
            raise yaml.YAMLError(f"{CODE} names code, which settings do not run; remove it")
        if not isinstance(node, yaml.MappingNode):
            return value(text)
        # `data: null`, in files from before these settings were typed, means no settings.
        node.value = [(key, value) for key, value in node.value if key.value != "data" or value.tag != _NULL]
        _make_text_below(node, names)
        return value(yaml.serialize(node, allow_unicode=True))

    return load


def names_code(node: yaml.Node | None) -> bool:
    """Whether a key anywhere in a node contains `class_path`, whose value the parser would import and call."""
    if isinstance(node, yaml.SequenceNode):
        return any(map(names_code, node.value))
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return any(CODE in str(key.value) or names_code(value) for key, value in pairs)


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _make_text_below(node: yaml.Node, names: Mapping[str, bool]) -> None:
    """Put quotes around keys and settings that are text."""
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _make_text_below(value, names)
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        _make_text(key, nullable=False)
        if key.value in names and not isinstance(value, yaml.MappingNode):
            for item in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                _make_text(item, names[key.value])
        else:
            _make_text_below(value, names)


def _make_text(node: yaml.Node, nullable: bool) -> None:
    # Quoted values are text already, "<<" merges, and missing values are reported elsewhere.
    if not isinstance(node, yaml.ScalarNode) or node.style is not None or node.value in ("", "<<"):
        return
    if not (nullable and node.tag == _NULL):
        node.tag, node.style = _STR, '"'


class _Dumper(yaml.SafeDumper):
    """Quotes everything that some YAML reader might parse as a number."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML quotes what itself would parse differently, but `1e3` is a number for other readers.
    doubtful = re.search(r"^[-+.\d]|[\x00-\x1f\x7f-\x9f\u2028\u2029]", text)
    return dumper.represent_scalar(_STR, text, style='"' if doubtful else None)


_Dumper.add_representer(str, _represent)


def dump(settings: Mapping[str, Any]) -> str:
    """Settings as YAML, in their order."""
    return str(yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf")))
