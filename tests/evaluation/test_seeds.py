"""Means and intervals over seeds against cases by hand, a table of quantiles, and coverage."""

import math

import numpy as np
import pytest

from ifam.evaluation.seeds import over_seeds, paired

# Student's t at 97.5 %, from a printed table, by degrees of freedom.
T = {1: 12.706, 2: 4.303, 4: 2.776}


def test_three_seeds_by_hand():
    found = over_seeds([0.2, 0.5, 0.8])
    reach = T[2] * 0.3 / math.sqrt(3)
    assert (found.n, found.mean) == (3, pytest.approx(0.5))
    assert (found.low, found.high) == (pytest.approx(0.5 - reach, abs=1e-4), pytest.approx(0.5 + reach, abs=1e-4))


def test_one_seed_has_no_interval():
    found = over_seeds([0.3])
    assert (found.n, found.mean, found.low, found.high) == (1, 0.3, None, None)


def test_equal_values_have_an_interval_of_no_width():
    found = over_seeds([0.7, 0.7, 0.7])
    assert [found.mean, found.low, found.high] == pytest.approx([0.7] * 3)


@pytest.mark.slow
def test_the_interval_covers_the_truth_in_95_of_100_cases():
    draws = np.random.default_rng(0).normal(0.6, 0.1, size=(2000, 4))
    covered = [found.low <= 0.6 <= found.high for found in map(over_seeds, draws.tolist())]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_differences_are_taken_seed_by_seed():
    """What both have of a seed drops out: the difference is known exactly, the figures are not."""
    ours, theirs = {0: 0.5, 1: 0.7, 2: 0.9}, {2: 0.8, 1: 0.6, 0: 0.4, 7: 0.0}
    found = paired(ours, theirs)
    assert found.n == 3
    assert found.mean == pytest.approx(0.1)
    assert found.high - found.low == pytest.approx(0, abs=1e-12)
    assert over_seeds(list(ours.values())).high > 1
    assert paired(ours, {5: 0.1}) is None
