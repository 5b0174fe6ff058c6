"""Bootstrap intervals and weighted figures, against loops written out, scikit-learn and the normal approximation."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score

from ifam.evaluation import bootstrap


def rows(*weights):
    return torch.tensor(weights, dtype=torch.double)


def test_each_resample_draws_as_many_images_as_there_are():
    weights = torch.cat(list(bootstrap.resamples(20, 500)))
    assert weights.shape == (500, 20)
    assert (weights.sum(dim=1) == 20).all()
    assert (weights == weights.round()).all()
    # Drawn evenly and with replacement: a share of about 1/e of the images is not drawn.
    assert weights.mean(dim=0).sub(1).abs().max() < 5 / math.sqrt(500)
    assert (weights == 0).double().mean() == pytest.approx((1 - 1 / 20) ** 20, abs=0.02)


def test_the_seed_decides():
    first, again, other = (torch.cat(list(bootstrap.resamples(9, 7, seed))) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_large_sets_come_in_several_chunks(monkeypatch):
    monkeypatch.setattr(bootstrap, "_CHUNK", 30)
    chunks = list(bootstrap.resamples(10, 8))
    assert [len(chunk) for chunk in chunks] == [3, 3, 2]
    assert (torch.cat(chunks).sum(dim=1) == 10).all()
    assert len(torch.cat(chunks).unique(dim=0)) == 8


def test_the_interval_is_the_middle_95_percent():
    assert bootstrap.interval(torch.arange(1001).double()) == pytest.approx((25, 975))
    # Resamples in which a figure does not exist say nothing.
    assert bootstrap.interval(np.array([math.nan, *range(1001)])) == pytest.approx((25, 975))
    assert bootstrap.interval(torch.tensor([math.nan])) is None


def test_the_interval_of_a_share_is_about_the_normal_one():
    right = torch.arange(400) % 4 > 0
    drawn = torch.cat([bootstrap.mean(right, weights) for weights in bootstrap.resamples(400, 4000)])
    low, high = bootstrap.interval(drawn)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == (pytest.approx(0.75 - half, abs=0.006), pytest.approx(0.75 + half, abs=0.006))


def test_totals_by_hand():
    sums = bootstrap.totals(
        torch.tensor([True, False, True, True]), torch.tensor([0, 0, 2, 2]), 3, rows([1, 1, 1, 1], [2, 0, 0, 5])
    )
    assert sums.tolist() == [[1, 0, 2], [2, 0, 5]]


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_is_scikit_learns(levels):
    """With many ties and with few, unweighted and weighted."""
    scores = torch.randint(levels, (60,)).double()
    positive = torch.rand(60) < 0.3
    weights = torch.cat([torch.ones(1, 60).double(), torch.randint(4, (5, 60)).double()])
    areas = bootstrap.auroc(scores, positive, weights)
    expected = [roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    assert areas.tolist() == pytest.approx(expected, abs=1e-12)


def test_auroc_by_hand():
    scores, positive = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([False, True, False, True])
    # Pairs: 2 > 1, 2 = 2, 3 > 1, 3 > 2.
    assert bootstrap.auroc(scores, positive, rows([1, 1, 1, 1], [1, 1, 1, 0])).tolist() == [3.5 / 4, 1.5 / 2]
    assert bootstrap.auroc(scores, positive, rows([1, 0, 1, 0])).isnan().all()


def test_a_weighted_mean_is_scikit_learns():
    right, weights = torch.rand(30) < 0.6, torch.randint(3, (4, 30)).double()
    expected = [accuracy_score(torch.ones(30).bool(), right, sample_weight=row) for row in weights]
    assert bootstrap.mean(right, weights).tolist() == pytest.approx(expected)
