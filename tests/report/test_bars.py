"""Bars of parts: each begins where the one before it ends, and the last is the logit of the answer."""

import numpy as np
import pytest

from ifam.evaluation.comparisons import ComparisonResult, MethodInfo, Picture, RowSummary
from ifam.report.bars import change_bar, contribution_bars, draw_bars, waterfall
from ifam.report.overlays import part_colors


def ends(bar):
    return float(bar.left), float(bar.left) + float(bar.width)


def test_bars_add_up():
    prior, first, second, third, total = waterfall(1.0, [2.0, -4.0, 0.0], (-1.0, 3.0))
    # The prior from 0 to 1, part 0 to 3, part 1 back to -1, where the absent part 2 stays; all from 0 to -1.
    assert [ends(bar) for bar in (prior, first, second)] == [(25, 50), (50, 100), (0, 100)]
    assert ends(third) == (0, 0)
    assert ends(total) == (0, 25)
    assert [bar.text for bar in (prior, first, second, third, total)] == ["+1.00", "+2.00", "-4.00", "–", "-1.00"]
    assert [bar.name for bar in (prior, first, second, third, total)] == ["prior", "part 0", "part 1", "part 2", "sum"]
    assert {bar.zero for bar in (prior, first, second, third, total)} == {"25.0"}


def test_a_track_is_as_long_as_its_bars():
    assert waterfall(1.0, [2.0, -4.0]) == waterfall(1.0, [2.0, -4.0], (-1.0, 3.0))
    assert [ends(bar) for bar in waterfall(0.0, [0.0])] == [(0, 0)] * 3


@pytest.mark.parametrize("size", [(320, 320), (640, 200), (320, 900)])
def test_bars_are_drawn_as_long_as_they_are(size):
    bars = waterfall(0.0, [3.0, -1.0, 0.0])
    pixels = np.asarray(draw_bars(bars, size))
    assert pixels.shape == (size[1], size[0], 3)
    first, second = ((pixels == color).all(axis=2).any(axis=0).sum() for color in part_colors(2))
    assert first == pytest.approx(3 * second, abs=4)
    assert not (pixels == part_colors(3)[2]).all(axis=2).any()


def picture(index, contributions, prior=0.5):
    return Picture(index, "a", "a", "image.webp", "a", 0.9, prior=prior, contributions=contributions)


def test_bars_of_all_pictures_have_one_scale():
    rows = [
        RowSummary("ifam", {}, {}, {}, {}, {}, pictures=[picture(3, (1.0, 1.0)), picture(4, (-3.0, 0.5), None)]),
        RowSummary("plain_vit", {}, {}, {}, {}, {}, pictures=[picture(3, (), None)]),
    ]
    bars = contribution_bars(ComparisonResult([MethodInfo("ifam", "ifam", "", [], {})], rows, {}))
    assert set(bars) == {("ifam", 3), ("ifam", 4)}
    # From -3 to 2.5: the largest sum of one image, and the smallest of the other.
    assert ends(bars["ifam", 3][-1]) == pytest.approx((54.5, 100), abs=0.1)
    assert ends(bars["ifam", 4][1]) == pytest.approx((0, 54.5), abs=0.1)


@pytest.mark.parametrize(("value", "left", "width"), [(1.0, 50, 25), (-2.0, 0, 50), (0.0, 50, 0)])
def test_changes_begin_in_the_middle(value, left, width):
    assert ends(change_bar(value, (0, 0, 0), 2.0)) == (left, left + width)
