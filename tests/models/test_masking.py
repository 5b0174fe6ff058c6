"""From a selection to the mask."""

import itertools
import math

import pytest
import torch

from ifam.models.masking import make_mask, patch_mask, resize_gated_mask, resize_mask, resize_values
from ifam.types import Mask


@pytest.fixture
def logits():
    return torch.randn(3, 4, 4, 4, dtype=torch.float64) * 3


def test_visible_where_a_part_is_at_least_as_probable_as_the_background(make_selection, logits):
    mask = make_mask(make_selection(logits))
    maps = logits.softmax(dim=1)
    for b, row, column in itertools.product(range(3), range(4), range(4)):
        best = max(maps[b, k, row, column].item() for k in range(3))
        assert bool(mask.visible[b, row, column]) == (best >= maps[b, 3, row, column].item())
    assert 0 < mask.visible.sum() < mask.visible.numel()
    assert torch.equal(mask.gate, mask.visible.double())


def test_visible_compares_the_best_part_not_the_sum_of_parts(make_selection):
    # Background 0.4, three parts 0.2 each: the parts together hold more, none holds as much.
    mask = make_mask(make_selection(torch.tensor([0.2, 0.2, 0.2, 0.4]).log().view(1, 4, 1, 1)))
    assert not mask.visible.any()


@pytest.mark.parametrize("tie", [0.0, -3.0, 200.0, -200.0])
def test_a_tie_is_visible(make_selection, tie):
    selection = make_selection(torch.tensor([-500.0, tie, tie]).view(1, 3, 1, 1))
    assert make_mask(selection).visible.all()
    assert selection.winners.item() == 1


def test_logits_so_low_that_probabilities_vanish_still_decide(make_selection):
    # Two parts far above the third patch value: neither of the last two has a probability above 0 in float32.
    logits = torch.tensor([[300.0, -100.0, -101.0], [-101.0, -100.0, 300.0]]).T.reshape(1, 3, 1, 2)
    assert make_mask(make_selection(logits)).visible.flatten().tolist() == [True, False]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_gate_is_a_number_whatever_the_logits_hold(make_selection, training, temperature):
    """A patch that can belong to nothing is hidden, as one of which nothing is known; infinity wins."""
    inf, nan = torch.inf, torch.nan
    columns = [([-inf] * 3, False), ([nan] * 3, False), ([0.0, nan, -1.0], False), ([inf, 0.0, 5.0], True)]
    columns += [([inf, inf, inf], True), ([0.0, 0.0, inf], False), ([-inf, 0.0, -inf], True), ([inf, -inf, nan], False)]
    logits = torch.tensor([values for values, _ in columns]).T.reshape(1, 3, 1, -1).requires_grad_()
    mask = make_mask(make_selection(logits), training=training, temperature=temperature)
    assert mask.visible.flatten().tolist() == [visible for _, visible in columns]
    assert torch.equal(mask.gate, mask.visible.float())
    mask.gate.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_gradient_of_the_gate_is_that_of_the_foreground_probability(make_selection, logits, temperature):
    logits.requires_grad_()
    weight = torch.randn(3, 4, 4, dtype=torch.float64)
    mask = make_mask(make_selection(logits), temperature=temperature)
    (actual,) = torch.autograd.grad((mask.gate * weight).sum(), logits)
    # d(1 - y_K) / dl_k = y_k y_K / tau for a part, and -y_K (1 - y_K) / tau for the background.
    y = (logits.detach() / temperature).softmax(dim=1)
    expected = y * y[:, -1:]
    expected[:, -1] = -y[:, -1] * (1 - y[:, -1])
    torch.testing.assert_close(actual, expected * weight[:, None] / temperature)


def test_gate_is_exactly_binary(make_selection):
    selection = make_selection(torch.randn(64, 9, 8, 8) * 4)
    mask = make_mask(selection, training=True, part_dropout=0.3)
    assert torch.equal(mask.gate, mask.visible.float())
    assert set(mask.gate.unique().tolist()) == {0.0, 1.0}


def test_no_noise_and_no_dropout_outside_of_training(make_selection, logits):
    selection = make_selection(logits)
    plain = make_mask(selection)
    for seed in range(5):
        torch.manual_seed(seed)
        again = make_mask(selection, training=False, gumbel_noise=True, part_dropout=0.9)
        assert torch.equal(again.visible, plain.visible)


def test_samples_follow_the_probabilities(make_selection):
    # The winner of Gumbel noise is part k with its softmax probability: background here with 0.7.
    logits = torch.tensor([0.2, 0.1, 0.7]).log().view(1, 3, 1, 1).expand(100, 3, 10, 10)
    visible = make_mask(make_selection(logits), training=True).visible
    assert visible.float().mean() == pytest.approx(0.3, abs=0.025)


def test_part_dropout_hides_whole_parts_without_rescaling(make_selection, logits):
    logits.requires_grad_()
    mask = make_mask(make_selection(logits), training=True, gumbel_noise=False, part_dropout=0.5)
    (total,) = torch.autograd.grad(mask.gate.sum(), logits)
    maps = logits.softmax(dim=1)
    seen = set()
    for b in range(3):
        matches = []
        for kept in itertools.product([False, True], repeat=3):
            keep = torch.tensor(kept)[:, None, None]
            visible = (maps[b, :-1] * keep).amax(dim=0) > maps[b, -1]
            (gradient,) = torch.autograd.grad((maps[b, :-1] * keep).sum(), logits, retain_graph=True)
            if torch.equal(visible, mask.visible[b]) and torch.allclose(gradient[b], total[b], atol=1e-12):
                matches.append(kept)
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 1  # drawn for each image on its own


def test_part_dropout_has_its_probability(make_selection):
    # Every patch is all but surely part 0: it is hidden exactly when part 0 is dropped.
    logits = torch.tensor([50.0, -50.0, 0.0]).view(1, 3, 1, 1).expand(4000, 3, 2, 2)
    visible = make_mask(make_selection(logits), training=True, part_dropout=0.3).visible.flatten(1)
    assert torch.equal(visible.any(dim=1), visible.all(dim=1))
    assert visible[:, 0].float().mean() == pytest.approx(0.7, abs=0.03)


def test_every_part_dropped_is_all_hidden_not_a_tie(make_selection):
    logits = torch.tensor([50.0, -torch.inf]).view(1, 2, 1, 1).expand(200, 2, 2, 2).clone()
    logits[:, 1] = -60.0
    visible = make_mask(make_selection(logits), training=True, part_dropout=0.5).visible.flatten(1)
    assert {tuple(row.tolist()) for row in visible} == {(True,) * 4, (False,) * 4}


def test_patch_mask_counts_the_share_of_object_in_each_patch():
    pixels = torch.zeros(1, 8, 8, dtype=torch.bool)
    pixels[0, :2, :2] = True  # 4 of 16 pixels of the first patch
    pixels[0, 4, 4:7] = True  # 3 of 16 pixels of the last
    assert patch_mask(pixels, (2, 2), threshold=0.25).flatten().tolist() == [True, False, False, False]
    assert patch_mask(pixels, (2, 2), threshold=0.15).flatten().tolist() == [True, False, False, True]


# ---------------------------------------------------------------------------------------- another grid

GRIDS = [((4, 4), (8, 8)), ((8, 6), (4, 3)), ((7, 7), (8, 8)), ((3, 5), (2, 3)), ((37, 37), (32, 32)), ((2, 2), (1, 1))]


def pixels(values, grid):
    """The same picture in pixels that fit both grids."""
    rows, columns = (math.lcm(a, b) for a, b in zip(values.shape[1:], grid, strict=True))
    return values.repeat_interleave(rows // values.shape[1], 1).repeat_interleave(columns // values.shape[2], 2)


def counted(values, grid):
    """Sum over the pixels in each patch of a grid, and how many these are."""
    drawn = pixels(values, grid).unfold(1, *2 * [math.lcm(values.shape[1], grid[0]) // grid[0]])
    drawn = drawn.unfold(2, *2 * [math.lcm(values.shape[2], grid[1]) // grid[1]])
    return drawn.sum(dim=(3, 4)), drawn.shape[3] * drawn.shape[4]


@pytest.mark.parametrize(("old", "new"), GRIDS, ids=str)
def test_a_patch_of_another_grid_is_visible_when_half_of_its_pixels_are(old, new):
    visible = torch.rand(20, *old) > 0.5
    resized = resize_gated_mask(Mask(visible, visible.float()), new)
    count, area = counted(visible.long(), new)
    assert torch.equal(resized.visible, 2 * count >= area)
    assert torch.equal(resized.gate, resized.visible.float())
    assert torch.equal(resized.visible, resize_mask(visible, new))
    assert 0 < resized.visible.float().mean() < 1


@pytest.mark.parametrize(("old", "new"), GRIDS, ids=str)
def test_means_over_another_grid_are_those_of_the_pixels(old, new):
    values = torch.rand(4, *old, dtype=torch.float64)
    count, area = counted(values, new)
    torch.testing.assert_close(resize_values(values, new), count / area)


def test_half_a_patch_is_visible_and_a_little_less_is_not():
    half = torch.tensor([[[True, False, True], [False, True, False]]])
    assert resize_mask(half, (1, 1)).item()
    assert not resize_mask(half & torch.tensor([True, True, False]), (1, 1)).any()
    # 7 patches over 2: the fourth is shared. Three and a half of seven columns are half of the area.
    columns = torch.tensor([[[True] * 3 + [False] * 4]])
    assert resize_mask(columns, (1, 2)).tolist() == [[[True, False]]]
    assert not resize_mask(columns.roll(2, 2) & ~columns, (1, 1)).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_round_what_is_half(dtype):
    visible = torch.rand(20, 37, 37) > 0.5
    expected = resize_mask(visible, (32, 32))
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(resize_mask(visible, (32, 32)), expected)


@pytest.mark.parametrize(("old", "new"), GRIDS, ids=str)
def test_gradient_through_another_grid_is_that_of_the_mean(old, new):
    visible = torch.rand(2, *old) > 0.5
    gate, plain = (visible.double().requires_grad_() for _ in range(2))
    weight = torch.randn(2, *new, dtype=torch.float64)
    (resize_gated_mask(Mask(visible, gate), new).gate * weight).sum().backward()
    count, area = counted(plain, new)
    (count / area * weight).sum().backward()
    torch.testing.assert_close(gate.grad, plain.grad)


def test_on_the_same_grid_nothing_happens():
    mask = Mask(torch.rand(2, 4, 6) > 0.5, torch.rand(2, 4, 6))
    assert resize_gated_mask(mask, (4, 6)) is mask
    assert resize_values(mask.gate, (4, 6)) is mask.gate
    assert resize_mask(mask.visible, (4, 6)) is mask.visible


def test_small_visible_parts_may_leave_a_coarser_mask_empty():
    visible = torch.zeros(1, 8, 8, dtype=torch.bool)
    visible[0, ::4, ::4] = True
    assert not resize_mask(visible, (2, 2)).any()
