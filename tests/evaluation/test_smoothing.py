"""What a vote proves: held against every way in which the touched windows could vote instead."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ifam.evaluation.smoothing import (
    ABSTAINED,
    answers_of,
    certified_sizes,
    count_votes,
    patches_touched,
    pixels_covered,
    touched_windows,
    worst_leads,
)
from ifam.models.windows import all_windows


def certain(votes, kind, windows, size, classes):
    """Whether no other votes of the windows that a region touches change the answer, all of them tried."""
    before = int(answers_of(votes[None], classes))
    height, width = (windows.grid[0], size) if kind == "columns" else (size, size)
    for top, left in product(range(windows.grid[0] - height + 1), range(windows.grid[1] - width + 1)):
        # Window and region are sets of patches here, not corners.
        region = {(y, x) for y in range(top, top + height) for x in range(left, left + width)}
        touched = [
            number
            for number, (y, x) in enumerate(zip(windows.top.tolist(), windows.left.tolist(), strict=True))
            if region & set(product(range(y, y + windows.shape[0]), range(x, x + windows.shape[1])))
        ]
        for others in product(range(-1, classes), repeat=len(touched)):
            changed = votes.clone()
            changed[touched] = torch.tensor(others, dtype=torch.long)
            if int(answers_of(changed[None], classes)) != before:
                return False
    return True


@pytest.mark.parametrize(
    ("kind", "grid", "width", "classes"),
    [("columns", (2, 5), 2, 2), ("columns", (1, 4), 1, 3), ("columns", (1, 6), 3, 2), ("blocks", (3, 3), 2, 3),
     ("blocks", (2, 4), 1, 2), ("blocks", (2, 3), 1, 2)],
)  # fmt: skip
@given(data=st.data())
def test_certain_is_exactly_what_no_other_votes_can_change(kind, grid, width, classes, data):
    """Not too much, which would be false, and not too little: the bound is exact."""
    windows = all_windows(kind, width, grid)
    votes = torch.tensor(
        data.draw(st.lists(st.integers(-1, classes - 1), min_size=len(windows), max_size=len(windows)))
    )
    size = data.draw(st.integers(1, 2))
    leads = worst_leads(votes[None], touched_windows(windows, all_windows(kind, size, grid)), classes)
    assert bool((leads >= 0).all()) == certain(votes, kind, windows, size, classes)


@pytest.mark.parametrize("kind", ["columns", "blocks"])
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_region_touches_as_many_windows_as_in_the_paper_and_fewer_at_the_edges(kind, width, size):
    grid = (9, 10)
    touched = touched_windows(all_windows(kind, width, grid), all_windows(kind, size, grid)).sum(dim=1)
    side = width + size - 1
    assert int(touched.max()) == (side if kind == "columns" else side**2)
    # In the corner only those that begin there.
    assert int(touched[0]) == (size if kind == "columns" else size**2)


def test_windows_that_vote_constantly_are_certain_until_a_region_touches_half_of_them():
    windows = all_windows("columns", 2, (4, 10))
    votes = torch.full((1, 9), 1)
    # A region of p columns touches p + 1 of 9 bands: up to 4 of them leave 5 against 4.
    assert certified_sizes(votes, "columns", windows, 2).tolist() == [3]
    # With one class, there is nothing to change to.
    assert certified_sizes(torch.zeros(1, 9, dtype=torch.long), "columns", windows, 1).tolist() == [10]


def test_a_tied_vote_is_certain_nowhere():
    windows = all_windows("columns", 1, (2, 4))
    votes = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0], [-1, -1, -1, -1]])
    assert answers_of(votes, 2).tolist() == [0, 0, 0]
    assert certified_sizes(votes, "columns", windows, 2).tolist() == [0, 0, 0]


def test_a_lead_that_is_just_lost_is_no_proof_and_the_order_of_classes_decides_a_tie():
    """Of seven bands of one column, a change of one moves the lead by two: 4 to 2 becomes 3 to 3."""
    windows = all_windows("columns", 1, (1, 6))
    first, second = torch.tensor([[0, 0, 0, 0, 1, 1]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    touched = touched_windows(windows, all_windows("columns", 1, (1, 6)))
    # Class 0 wins the tie, class 1 loses it.
    assert (int(worst_leads(first, touched, 2).min()), int(worst_leads(second, touched, 2).min())) == (0, -1)
    assert certified_sizes(first, "columns", windows, 2).tolist() == [1]
    assert certified_sizes(second, "columns", windows, 2).tolist() == [0]
    # One vote more, and both are certain; an abstention is a vote that an attacker may add.
    assert certified_sizes(torch.tensor([[1, 1, 1, 1, 1, 0]]), "columns", windows, 2).tolist() == [1]
    assert certified_sizes(torch.tensor([[1, 1, 1, 0, -1, -1]]), "columns", windows, 2).tolist() == [0]
    assert certified_sizes(torch.tensor([[1, 1, 1, -1, -1, -1]]), "columns", windows, 2).tolist() == [1]


def test_abstentions_count_for_nobody():
    votes = torch.tensor([[ABSTAINED, 2, ABSTAINED, 2, 0]])
    assert count_votes(votes, 3).tolist() == [[1, 0, 2]]
    assert answers_of(votes, 3).tolist() == [2]


def test_larger_regions_are_never_more_certain():
    votes = torch.randint(-1, 3, (200, 8), generator=torch.Generator().manual_seed(0)).clamp_max(1)
    windows = all_windows("columns", 3, (10, 10))
    flags = [
        (worst_leads(votes, touched_windows(windows, all_windows("columns", size, (10, 10))), 2) >= 0).all(dim=1)
        for size in range(1, 11)
    ]
    assert all((larger <= smaller).all() for smaller, larger in pairwise(flags))
    assert certified_sizes(votes, "columns", windows, 2).tolist() == torch.stack(flags).sum(dim=0).tolist()


@given(st.integers(1, 40), st.integers(1, 16))
def test_pixels_that_begin_anywhere_touch_these_patches(pixels, patch):
    touched = max((start + pixels - 1) // patch - start // patch + 1 for start in range(patch))
    assert patches_touched(pixels, patch) == touched
    assert pixels_covered(touched, patch) >= pixels
    assert patches_touched(pixels_covered(touched, patch), patch) == touched
    assert patches_touched(pixels_covered(touched, patch) + 1, patch) == touched + 1
