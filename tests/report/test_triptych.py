"""The picture of one answer: its panels side by side, with the bars of a model that adds up its parts."""

import numpy as np
import pytest
import torch
from PIL import Image

from ifam.errors import IfamError
from ifam.report.bars import draw_bars, waterfall
from ifam.report.overlays import enlarge, part_overlay, predictor_view
from ifam.report.triptych import triptych


@pytest.fixture
def photo():
    """Noise that holds neither gray of the checker."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 200, (80, 80, 3), dtype=np.uint8))


@pytest.fixture
def maps():
    """Two of three parts, each in a corner of the foreground."""
    maps = torch.zeros(4, 10, 10)
    maps[-1] = 0.5
    maps[0, 2:5, 2:5] = 0.9
    maps[1, 5:8, 2:5] = 0.9
    return maps


def visible(maps):
    return maps.argmax(dim=0) < len(maps) - 1


def shows(picture, panel):
    """Whether a panel stands somewhere in a picture, pixel by pixel."""
    picture, panel = np.asarray(picture), np.asarray(panel)
    windows = np.lib.stride_tricks.sliding_window_view(picture, panel.shape)[:, :, 0]
    corner = (windows[:, :, 100, 100] == panel[100, 100]).all(axis=-1)
    return any((windows[r, c] == panel).all() for r, c in np.argwhere(corner))


def test_panels_are_side_by_side(photo, maps):
    picture = triptych(photo, maps, visible(maps), title="a swimmer", caption="18 % visible")
    large = enlarge(photo)
    assert all(shows(picture, one) for one in (large, part_overlay(large, maps), predictor_view(large, visible(maps))))


def test_what_each_part_adds_is_a_panel_more(photo, maps):
    bars = waterfall(0.5, [2.0, -1.0, 0.0])
    without, picture = triptych(photo, maps, visible(maps)), triptych(photo, maps, visible(maps), bars=bars)
    assert picture.width > without.width
    assert picture.height == without.height
    assert shows(picture, draw_bars(bars, (320, 320)))


def test_there_is_room_for_long_texts_and_legends(photo):
    maps = torch.rand(13, 10, 10, generator=torch.Generator().manual_seed(0))
    plain = triptych(photo, maps, visible(maps))
    names = [f"part number {k}" * 4 for k in range(12)]
    named = triptych(photo, maps, visible(maps), title="word " * 200, part_names=names)
    assert named.width == plain.width
    assert named.height > plain.height


def test_part_names_must_fit(photo, maps):
    with pytest.raises(IfamError, match="2 names for 3 parts"):
        triptych(photo, maps, visible(maps), part_names=["a", "b"])
