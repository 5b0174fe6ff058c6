"""A table of several methods over several seeds, against cases by hand."""

import json

import pytest

from ifam.evaluation.comparisons import ComparisonResult, Run, summarize
from ifam.evaluation.metrics import GroupAccuracy
from ifam.serialization import from_json, to_json

# Student's t at 97.5 % with one degree of freedom, from a printed table, times half of the distance of the values.
REACH = 12.706 * 0.1


def run(row, seed, worst, **figures):
    groups = {"a": GroupAccuracy(worst, 3 + seed), "b": GroupAccuracy(1.0, 9)}
    return Run(row, seed, {"worst_group": worst, **figures}, groups, {}, history=[{"val/accuracy": worst}])


RUNS = [run("one", 0, 0.2), run("one", 1, 0.4), run("two", 0, 0.5, iou=0.3), run("two", 1, 0.9, iou=0.5)]


def test_a_table():
    first, second = summarize(RUNS)
    assert (first.name, second.name) == ("one", "two")
    worst = first.figures["worst_group"]
    assert (worst.n, worst.mean) == (2, pytest.approx(0.3))
    assert (worst.low, worst.high) == (pytest.approx(0.3 - REACH, abs=1e-4), pytest.approx(0.3 + REACH, abs=1e-4))
    assert first.differences == {}
    assert second.differences["worst_group"].mean == pytest.approx(0.4)
    assert second.differences["worst_group"].high == pytest.approx(0.4 + REACH, abs=1e-4)
    assert second.differences["group: b"].mean == 0
    assert "iou" not in second.differences
    assert second.figures["iou"].mean == pytest.approx(0.4)
    assert (second.groups["a"].count, second.groups["a"].mean) == (3, pytest.approx(0.7))
    assert second.values["worst_group"] == {0: 0.5, 1: 0.9}


def test_curves_are_those_of_the_first_seed():
    assert summarize(RUNS)[1].history == [{"val/accuracy": 0.5}]


def test_a_table_is_read_back_as_it_was():
    result = ComparisonResult([], summarize(RUNS), {"seeds": [0, 1]})
    assert from_json(ComparisonResult, json.loads(json.dumps(to_json(result)))) == result
