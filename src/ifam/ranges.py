"""Ranges of numeric settings, and their check. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ifam.errors import IfamError

LARGEST_SEED = 2**32 - 1  # of NumPy


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; NaN and infinity are in no range.

    Attributes:
        expected: The range in words, for messages.
        low: Least value.
        high: Greatest value.
        open_low: Whether `low` itself is excluded.
        open_high: Whether `high` itself is excluded.
    """

    expected: str
    low: int | float = 0
    high: int | float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: int | float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)


COUNT = Range("a whole number of at least 1", low=1)
NATURAL = Range("a whole number of at least 0")
SEED = Range("a whole number from 0 to 4294967295", high=LARGEST_SEED)
POSITIVE = Range("a number above 0", open_low=True)
NOT_NEGATIVE = Range("0 or a positive number")
OFF_OR_POSITIVE = Range("0 (off) or a positive number")
SHARE = Range("a share from 0 to 1", high=1)
POSITIVE_SHARE = Range("a share above 0, up to 1", high=1, open_low=True)
PROBABILITY = Range("a probability from 0 to below 1", high=1, open_high=True)
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
            if isinstance(value, int | float) and not isinstance(value, bool) and value not in expected:
                raise IfamError(f"{prefix}{name} is {value}, but {expected.expected} is expected.")
