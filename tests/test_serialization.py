"""Results as JSON and back: what was written is what is read, and what does not fit is refused by name."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from ifam.serialization import IN_MEMORY, flat, from_json, to_json


@dataclass(frozen=True)
class Row:
    name: str
    right: bool | None
    changes: tuple[float, ...]
    box: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Result:
    kind: Literal["small", "large"]
    rows: list[Row]
    by_seed: dict[int, float]
    by_name: dict[str, Row]
    mean: float = 0.5
    low: float | None = None
    folder: Path | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    pixels: object = field(default=None, compare=False, metadata=IN_MEMORY)


ROW = Row("first", None, (0.5, -1.0), (3, 4))
RESULT = Result(
    "small", [ROW, Row("second", True, ())], {3: 0.25}, {"one": ROW}, 1.0, 0.5, Path("a/b"), {"x": {"y": [1, None]}}
)


def through_text(result):
    return json.loads(json.dumps(to_json(result), allow_nan=False))


def test_what_was_written_is_read():
    assert from_json(Result, through_text(RESULT)) == RESULT


def test_what_stays_in_memory_is_not_written():
    data = through_text(replace(RESULT, pixels=object()))
    assert "pixels" not in data
    assert from_json(Result, data).pixels is None


def test_nested_settings_on_one_level():
    settings = {"train": {"epochs": 2, "crop": {}, "optimizer": {"lr": 0.1}}, "seed": 0}
    assert dict(flat(settings)) == {"train.epochs": 2, "train.crop": {}, "train.optimizer.lr": 0.1, "seed": 0}


def test_defaults_fill_what_an_older_version_did_not_write_and_newer_fields_are_ignored():
    data = {"kind": "large", "rows": [], "by_seed": {}, "by_name": {}, "of a newer version": 1}
    assert from_json(Result, data) == Result("large", [], {}, {})


def test_numbers_that_are_not_finite_are_null_and_come_back_as_nan():
    found = from_json(Row, through_text(Row("x", False, (math.inf, math.nan, 1.0))))
    assert [math.isnan(value) for value in found.changes] == [True, True, False]


def test_whole_numbers_are_numbers_and_true_is_none():
    assert from_json(Row, {"name": "x", "right": None, "changes": [1]}).changes == (1.0,)
    with pytest.raises(ValueError, match=r"Row.changes\[0\] is True, but int or float is expected"):
        from_json(Row, {"name": "x", "right": None, "changes": [True]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "medium"}, "Result.kind is 'medium', but one of 'small', 'large' is expected"),
        ({"rows": {}}, "Result.rows is {}, but list is expected"),
        ({"rows": [{"name": 3, "right": None, "changes": []}]}, r"Result.rows\[0\].name is 3, but str is expected"),
        ({"rows": [{"name": "x", "right": None}]}, r"Result.rows\[0\] has no 'changes'"),
        ({"by_name": {"one": {**to_json(ROW), "box": [1]}}}, r"by_name\['one'\].box has 1 values, but 2 are expected"),
        ({"mean": "much"}, "Result.mean is 'much', but int or float is expected"),
        ({"low": "much"}, "Result.low is 'much', but int or float is expected"),
        ({"by_seed": {"three": 1.0}}, "invalid literal for int"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        from_json(Result, {**to_json(RESULT), **change})
