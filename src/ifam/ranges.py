"""Types and ranges of settings, and their checks. Imports no torch."""

import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ifam.errors import IfamError

LARGEST_SEED = 2**32 - 1  # of NumPy


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; NaN, infinity and integers of more than 64 bits are in no range.

    Attributes:
        expected: The range in words, for messages.
        low: Least value.
        high: Greatest value.
        open_low: Whether `low` itself is excluded.
        open_high: Whether `high` itself is excluded.
        whole: Whether only whole numbers are in it.
    """

    expected: str
    low: int | float = 0
    high: int | float = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False

    def __contains__(self, value: Any) -> bool:
        number = isinstance(value, Integral if self.whole else Real) and not isinstance(value, bool)
        if not number:
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        finite = value.bit_length() < 64 if isinstance(value, int) else math.isfinite(value)
        return above and below and finite


COUNT = Range("a whole number of at least 1", low=1, whole=True)
NATURAL = Range("a whole number of at least 0", whole=True)
SEED = Range("a whole number from 0 to 4294967295", high=LARGEST_SEED, whole=True)
FINITE = Range("a number", low=-math.inf)
POSITIVE = Range("a number above 0", open_low=True)
NOT_NEGATIVE = Range("0 or a positive number")
OFF_OR_POSITIVE = Range("0 (off) or a positive number")
SHARE = Range("a share from 0 to 1", high=1)
POSITIVE_SHARE = Range("a share above 0, up to 1", high=1, open_low=True)
PROBABILITY = Range("a probability from 0 to below 1", high=1, open_high=True)
SIDE = Range("a whole number from 1 to 16384", low=1, high=16384, whole=True)  # pixels
PORT = Range("a port from 1 to 65535", low=1, high=65535, whole=True)
QUANTILE = Range("a share between 0 and 1", high=1, open_low=True, open_high=True)


def check_ranges(values: Mapping[str, Any], ranges: Mapping[str, Range], prefix: str = "") -> None:
    """Refuse numbers out of their range; None, text and names without a range pass.

    Args:
        values: Settings by name; of a list, every element counts.
        ranges: Range of each setting.
        prefix: Prefix of the name in the message, as in "train.epochs".

    Raises:
        IfamError: A number is out of its range.
    """
    for name, expected in ranges.items():
        given = values.get(name)
        for value in given if isinstance(given, list | tuple) else [given]:
            if isinstance(value, Real) and not isinstance(value, bool) and value not in expected:
                raise IfamError(f"{prefix}{name} is {value}, but {expected.expected} is expected.")


def check_numbers(expected: Range, **values: Any) -> None:
    """Refuse arguments of a function that are no numbers, or not in their range.

    Args:
        expected: Their range.
        **values: Arguments by name.

    Raises:
        IfamError: One is of another type, or out of its range.
    """
    for name, value in values.items():
        if value not in expected:
            raise IfamError(f"{name} is {value!r}, but {expected.expected} is expected.")


def check_types(kind: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse values that are not of the types of a dataclass's fields.

    Args:
        kind: The dataclass; its `ranges`, if it has some, say what is expected.
        values: Values of some or all of its fields.
        prefix: Prefix of the name in the message, as in "train.epochs".

    Raises:
        IfamError: A value is of another type; true and false are no numbers, unlike in Python.
    """
    ranges: Mapping[str, Range] = getattr(kind, "ranges", {})
    hints = _hints(kind)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            expected = ranges[name].expected if name in ranges else _words(hints[name])
            raise IfamError(f"{prefix}{name} is {value!r}, but {expected} is expected.")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; lists are tuples, too, since JSON and YAML have no others."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        same = [inner[0]] * len(value) if isinstance(value, list | tuple) and inner[-1] is ... else inner
        return (
            isinstance(value, list | tuple)
            and len(value) == len(same)
            and all(_fits(one, wanted) for one, wanted in zip(value, same, strict=True))
        )
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def _words(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_words, get_args(kind)))
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a list of names" if str in get_args(kind) else "a list of numbers"
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "nothing"}
    return plain.get(kind, "a table of settings")
