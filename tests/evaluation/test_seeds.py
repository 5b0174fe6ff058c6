"""Means and intervals over seeds against cases by hand, a table of quantiles, and coverage."""

import math

import numpy as np
import pytest

from ifam.evaluation.seeds import over_seeds, paired

# Student's t at 97.5 %, from a printed table, by degrees of freedom.
T = {1: 12.706, 2: 4.303, 4: 2.776}


def test_three_seeds_by_hand():
    mean = over_seeds([0.2, 0.5, 0.8])
    reach = T[2] * 0.3 / math.sqrt(3)
    assert (mean.n, mean.mean) == (3, pytest.approx(0.5))
    assert (mean.low, mean.high) == (pytest.approx(0.5 - reach, abs=1e-4), pytest.approx(0.5 + reach, abs=1e-4))


def test_one_seed_has_no_interval():
    mean = over_seeds([0.3])
    assert (mean.n, mean.mean, mean.low, mean.high) == (1, 0.3, None, None)


def test_equal_values_have_an_interval_of_no_width():
    mean = over_seeds([0.7, 0.7, 0.7])
    assert [mean.mean, mean.low, mean.high] == pytest.approx([0.7] * 3)


@pytest.mark.slow
def test_the_interval_covers_the_truth_in_95_of_100_cases():
    draws = np.random.default_rng(0).normal(0.6, 0.1, size=(2000, 4))
    covered = [mean.low <= 0.6 <= mean.high for mean in map(over_seeds, draws.tolist())]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_differences_are_taken_seed_by_seed():
    """What both have of a seed drops out: the difference is known exactly, the figures are not."""
    ours, theirs = {0: 0.5, 1: 0.7, 2: 0.9}, {2: 0.8, 1: 0.6, 0: 0.4, 7: 0.0}
    mean = paired(ours, theirs)
    assert mean.n == 3
    assert mean.mean == pytest.approx(0.1)
    assert mean.high - mean.low == pytest.approx(0, abs=1e-12)
    assert over_seeds(list(ours.values())).high > 1
    assert paired(ours, {5: 0.1}) is None
