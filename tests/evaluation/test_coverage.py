"""Coverage by group, on sets that are known."""

import pytest
import torch

from ifam.evaluation.conformal import Calibration, surprise
from ifam.evaluation.coverage import CoverageResult, coverage_by_group
from ifam.evaluation.features import LastLayer

NAMES = ("at home", "abroad", "nowhere")


@pytest.fixture
def calibration():
    """Every class with a probability of at least 0.3 is in the set."""
    scores = surprise(torch.tensor([[0.3, 0.7]]).log())[0, :1].repeat(40)
    return Calibration(scores, torch.arange(40) % 2, ("a", "b"), error=0.1)


def images(probabilities, labels, groups):
    logits = torch.tensor([[p, 1 - p] for p in probabilities]).log()
    return LastLayer(torch.zeros(len(labels), 3), logits, torch.tensor(labels), torch.tensor(groups))


def test_each_group_is_counted_on_its_own(calibration):
    # Sets: a; a and b; b; a. The last one is wrong.
    rows = images([0.9, 0.6, 0.1, 0.8], [0, 1, 1, 1], [0, 0, 1, 1])
    overall, groups = coverage_by_group(calibration, rows, NAMES)
    assert list(groups) == ["at home", "abroad"]
    assert (overall.count, overall.coverage, overall.answered, overall.several, overall.none) == (
        4,
        0.75,
        0.75,
        0.25,
        0,
    )
    assert overall.error == pytest.approx(1 / 3)
    assert [groups[name].coverage for name in groups] == [1.0, 0.5]
    assert [groups[name].error for name in groups] == [0.0, 0.5]
    assert CoverageResult(0.1, False, {}, False, overall, groups).worst[0] == "abroad"


def test_without_answers_there_are_no_wrong_ones(calibration):
    overall, _ = coverage_by_group(calibration, images([0.5, 0.5], [0, 1], [0, 1]), NAMES)
    assert (overall.answered, overall.error, overall.several, overall.coverage) == (0, None, 1, 1)


def test_risk_falls_with_coverage_where_sure_answers_are_right(calibration):
    generator = torch.Generator().manual_seed(0)
    sure = 0.5 + 0.5 * torch.rand(500, generator=generator)
    labels = (torch.rand(500, generator=generator) > sure).long()
    overall, _ = coverage_by_group(calibration, images(sure.tolist(), labels.tolist(), [0] * 500), NAMES)
    shares, risks = zip(*overall.risk_coverage, strict=True)
    assert shares[-1] == 1
    assert risks[-1] == pytest.approx(float((labels == 1).double().mean()))
    assert sorted(shares) == list(shares)
    assert risks[len(risks) // 4] < risks[-1]


def test_the_interval_is_exact(calibration):
    """Of a binomial share, by Clopper and Pearson: 0.025 of the tail on each side."""
    overall, _ = coverage_by_group(calibration, images([0.9] * 20, [0] * 20, [0] * 20), NAMES)
    assert overall.interval == pytest.approx((0.025 ** (1 / 20), 1.0))
