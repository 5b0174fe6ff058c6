"""Results as JSON and back: dataclasses of numbers, text, lists and further dataclasses.

jsonargparse can build dataclasses too, but takes minutes for an audit of some hundred images.
"""

import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

# Metadata of a field that stays in memory: it is not written, and has its default when read.
IN_MEMORY: Mapping[str, bool] = {"json": False}


def to_json(value: Any) -> Any:
    """A result as what JSON knows: dataclasses become objects, tuples lists, paths text, NaN and infinity null."""
    if is_dataclass(value) and not isinstance(value, type):
        written = (field.name for field in fields(value) if field.metadata != IN_MEMORY)
        return {name: to_json(getattr(value, name)) for name in written}
    if isinstance(value, Mapping):
        return {str(key): to_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def from_json(kind: type[T], data: Any) -> T:
    """Build a dataclass from what `to_json` made of it; unknown fields are ignored, null for a number is NaN.

    Args:
        kind: A dataclass.
        data: What `json.loads` gave.

    Raises:
        ValueError: A field is missing or has a value of another type; the message says which.
    """
    built: T = _build(kind, data, kind.__name__)
    return built


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _build(kind: Any, data: Any, where: str) -> Any:
    """A value of a type; `where` names it in errors."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if is_dataclass(kind):
        return _dataclass(kind, _expect(data, Mapping, where), where)
    if origin in (Union, types.UnionType):
        return _one_of(inner, data, where)
    if origin is Literal:
        if data not in inner:
            raise ValueError(f"{where} is {data!r}, but one of {', '.join(map(repr, inner))} is expected")
        return data
    if issubclass(origin or kind, Mapping):
        keys, values = inner or (str, Any)
        return {
            keys(key) if keys is int else key: _build(values, one, f"{where}[{key!r}]")
            for key, one in _expect(data, Mapping, where).items()
        }
    if (origin or kind) in (list, tuple, Sequence):
        items = _expect(data, list, where)
        sequence = tuple if (origin or kind) is tuple else list
        if sequence is tuple and inner and inner[-1] is not Ellipsis:
            if len(items) != len(inner):
                raise ValueError(f"{where} has {len(items)} values, but {len(inner)} are expected")
            return tuple(
                _build(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(inner, items, strict=True))
            )
        return sequence(_build(inner[0] if inner else Any, item, f"{where}[{i}]") for i, item in enumerate(items))
    if kind is float:
        return math.nan if data is None else float(_expect(data, (int, float), where))
    if kind is Path:
        return Path(_expect(data, str, where))
    return _expect(data, kind, where)


def _dataclass(kind: Any, data: Mapping[str, Any], where: str) -> Any:
    """A dataclass from its fields by name."""
    values = {}
    for field in fields(kind):
        if field.name in data:
            values[field.name] = _build(_hints(kind)[field.name], data[field.name], f"{where}.{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where} has no {field.name!r}")
    return kind(**values)


def _one_of(kinds: Sequence[Any], data: Any, where: str) -> Any:
    """A value of the first type that fits."""
    if data is None and type(None) in kinds:
        return None
    errors = []
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return _build(kind, data, where)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _expect(data: Any, kind: Any, where: str) -> Any:
    """The value, if it has the type; true and false are no numbers."""
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        expected = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where} is {data!r}, but {expected} is expected")
    return data


def flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings on one level, with names such as `train.epochs`."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
