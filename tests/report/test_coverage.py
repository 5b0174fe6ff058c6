"""The section of a calibration: figures as they are, the worst group first."""

from ifam.evaluation.coverage import Coverage, CoverageResult
from ifam.report.coverage import coverage_section


def one(coverage, count=100):
    return Coverage(count, coverage, (coverage - 0.1, 1.0), 0.9, 0.06, 0.04, 0.02, ((0.5, 0.0), (1.0, 0.1)))


def test_the_lowest_coverage_comes_first():
    groups = {"easy": one(0.99), "hard": one(0.5)}
    section = coverage_section(CoverageResult(0.05, False, {"a": 30, "b": 40}, True, one(0.745, 200), groups))
    assert section.title == "Sets of classes that miss at most 5\u00a0%"
    assert "Calibrated on 70 held-out images, at least 30 of each class." in section.lead
    assert "in the group with the fewest (hard) 50.0\u00a0%" in section.lead
    (table,) = section.tables
    assert [row[0] for row in table.rows] == ["hard", "easy", "all"]
    assert table.rows[0][2] == "50.0\u00a0% (40.0\u00a0% to 100.0\u00a0%)"
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert "hard" in section.chart
    assert "on average over classes" in section.notes[0]


def test_it_says_what_is_missing():
    section = coverage_section(CoverageResult(0.1, True, {"a": 30, "b": 40}, False))
    assert "There are no test images to measure its coverage on." in section.lead
    assert not section.tables
    assert "of each class" in section.notes[0]
    assert "not told apart" in section.notes[-1]
