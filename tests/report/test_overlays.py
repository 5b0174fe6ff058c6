"""The pictures: fixed colors, and nothing of the input where it was hidden."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from ifam.report.overlays import HIDDEN_COLORS, enlarge, part_colors, part_overlay, predictor_view

# Linear RGB as seen without red, green or blue cones (Machado et al. 2009, severity 1).
COLOUR_VISIONS = {
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
    "usual": np.eye(3).tolist(),
}


def photo(width: int = 80, height: int = 80, seed: int = 0) -> Image.Image:
    """Noise that holds neither gray of the checker."""
    pixels = np.random.default_rng(seed).integers(0, 200, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def maps_with_background(rows: int = 10, columns: int = 10, parts: int = 3) -> torch.Tensor:
    maps = torch.zeros(parts + 1, rows, columns)
    maps[-1] = 0.5
    maps[0, 2:5, 2:5] = 0.9
    maps[1, 5:8, 2:5] = 0.9
    return maps


def visible(maps: torch.Tensor) -> torch.Tensor:
    return maps.argmax(dim=0) < len(maps) - 1


def test_colours_do_not_depend_on_the_number_of_parts():
    assert part_colors(4) == part_colors(30)[:4]
    assert part_colors(2) == [(230, 159, 0), (86, 180, 233)]
    assert len(set(part_colors(64))) == 64


@pytest.mark.parametrize("vision", COLOUR_VISIONS)
def test_first_colours_stay_apart_for_every_colour_vision(vision):
    colors = np.array(part_colors(8)) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(COLOUR_VISIONS[vision]).T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
    distance = deltaE_ciede2000(lab[:, None], lab[None])
    assert distance[~np.eye(8, dtype=bool)].min() > 8


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 80), (320, 320), (333, 250), (37, 90)])
def test_hidden_area_holds_nothing_of_the_image(size):
    mask = visible(maps_with_background())
    image, other = photo(*size), photo(*size, seed=1)
    over = mask.numpy()[np.ix_(np.arange(size[1]) * 10 // size[1], np.arange(size[0]) * 10 // size[0])]
    mixed = Image.fromarray(np.where(over[..., None], np.asarray(image), np.asarray(other)))
    view = np.asarray(predictor_view(image, mask))
    assert (view == np.asarray(predictor_view(mixed, mask))).all()
    assert {tuple(c) for c in view[~over].tolist()} <= set(HIDDEN_COLORS)
    assert (view[over] == np.asarray(image)[over]).all()


@pytest.mark.parametrize("value", [True, False])
def test_view_of_a_full_and_an_empty_mask(value):
    image = photo()
    view = np.asarray(predictor_view(image, torch.full((10, 10), value)))
    assert (view == np.asarray(image)).all() if value else {*map(tuple, view.reshape(-1, 3))} == set(HIDDEN_COLORS)


def test_parts_are_outlined_in_their_colours_at_patch_edges():
    image = enlarge(photo(), 320)
    overlay = np.asarray(part_overlay(image, maps_with_background()))
    first, second = map(list, part_colors(2))
    # Patches are 32 px: part 0 starts at 64, part 1 at row 160.
    assert overlay[64, 100].tolist() == first
    assert overlay[159, 100].tolist() == first
    assert overlay[160, 100].tolist() == second
    assert overlay[100, 64].tolist() == first
    assert overlay[63, 100].tolist() not in (first, second)


def test_part_overlay_keeps_the_image_and_pales_the_background():
    image = photo()
    before = np.asarray(image).copy()
    overlay = np.asarray(part_overlay(image, maps_with_background()))
    assert (np.asarray(image) == before).all()
    assert overlay.shape == before.shape
    assert overlay[:10].min() >= 140 - 1  # 0.55 of white
    only_background = torch.tensor([0.0, 1.0])[:, None, None].expand(2, 10, 10)
    assert np.asarray(part_overlay(image, only_background)).min() >= 140 - 1


def test_maps_may_be_half_precision_and_carry_gradient():
    maps = maps_with_background().half().requires_grad_()
    assert part_overlay(photo(), maps).size == (80, 80)


def test_enlarge_uses_whole_pixels_and_leaves_large_images():
    small = photo()
    large = enlarge(small, 320)
    assert large.size == (320, 320)
    assert (np.asarray(large)[::4, ::4] == np.asarray(small)).all()
    assert enlarge(photo(400, 330)).size == (400, 330)
    assert enlarge(Image.new("L", (1, 1))).mode == "RGB"
