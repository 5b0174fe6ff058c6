"""Changes to a selection, and errors that name the fix."""

import itertools
from dataclasses import fields, replace

import pytest
import torch

from ifam.errors import IfamError
from ifam.models.interventions import DropParts, DropUnsure, KeepParts, UseMask, UseParts, _part_flags
from ifam.models.masking import make_mask


@pytest.fixture
def selection(make_selection):
    """Three parts and the background, each winning some of the 4 x 4 patches."""
    selection = make_selection(torch.randn(2, 4, 4, 4) * 3)
    assert set(selection.winners.unique().tolist()) == {0, 1, 2, 3}
    return selection


def _visible(selection):
    return make_mask(selection).visible


@pytest.mark.parametrize("parts", [[], [0], [2], [0, 2], [0, 1, 2], (1,), [1, 1]], ids=str)
def test_drop_hides_exactly_the_patches_that_the_parts_won(selection, parts):
    expected = torch.ones_like(selection.winners, dtype=torch.bool)
    for part in {*parts, 3}:
        expected &= selection.winners != part
    assert torch.equal(_visible(DropParts(parts)(selection)), expected)


@pytest.mark.parametrize("parts", [[], [0], [0, 2], [0, 1, 2]], ids=str)
def test_keep_shows_exactly_the_patches_that_the_parts_won(selection, parts):
    expected = torch.zeros_like(selection.winners, dtype=torch.bool)
    for part in parts:
        expected |= selection.winners == part
    assert torch.equal(_visible(KeepParts(parts)(selection)), expected)


def test_dropped_patches_become_background_and_the_others_stay(selection):
    changed = DropParts([1])(selection)
    lost = selection.winners == 1
    assert (changed.winners[lost] == 3).all()
    assert torch.equal(changed.winners[~lost], selection.winners[~lost])
    assert (changed.part_maps[:, 1] == 0).all()
    assert (changed.part_maps[:, 3][lost] == 1).all()
    torch.testing.assert_close(changed.part_maps.sum(dim=1), torch.ones(2, 4, 4))


def test_unsure_patches_are_hidden_by_the_threshold_of_their_winner(selection):
    thresholds = torch.tensor([0.3, -0.5, 100.0])
    visible = _visible(DropUnsure(thresholds)(selection))
    for b, row, column in itertools.product(range(2), range(4), range(4)):
        winner = int(selection.winners[b, row, column])
        sure = winner < 3 and selection.similarity[b, winner, row, column] >= thresholds[winner]
        assert bool(visible[b, row, column]) == bool(sure)
    assert not visible[selection.winners == 2].any()


def test_unsure_takes_a_list_and_the_threshold_itself_is_sure(selection):
    where = (selection.winners[0] == 0).nonzero()[0]
    exact = selection.similarity[0, 0, where[0], where[1]].item()
    assert _visible(DropUnsure([exact, 0.0, 0.0])(selection))[0, where[0], where[1]]
    assert torch.equal(_visible(DropUnsure([-1e9, -1e9, -1e9])(selection)), _visible(selection))


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 16), (4, 4), (1, 4, 4)], ids=str)
def test_use_mask_shows_exactly_the_mask(selection, shape):
    mask = torch.rand(shape) > 0.5
    changed = UseMask(mask)(selection)
    expected = mask.view(2, 4, 4) if mask.numel() == 32 else mask.expand(2, 4, 4)
    assert torch.equal(_visible(changed), expected)
    torch.testing.assert_close(changed.part_maps.sum(dim=1), torch.ones(2, 4, 4))
    assert torch.equal(changed.part_maps[:, 3] == 0, expected)


def test_use_mask_holds_in_training_too(selection):
    mask = torch.rand(2, 4, 4) > 0.5
    for _ in range(10):
        masked = make_mask(UseMask(mask)(selection), training=True, part_dropout=0.9)
        assert torch.equal(masked.visible, mask)
        assert torch.equal(masked.gate, mask.float())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_use_mask_holds_where_the_selector_has_nothing_to_say(make_selection, value):
    selection = make_selection(torch.full((2, 4, 4, 4), value))
    mask = torch.rand(2, 4, 4) > 0.5
    changed = UseMask(mask)(selection)
    masked = make_mask(changed)
    assert torch.equal(masked.visible, mask)
    assert torch.equal(masked.gate, mask.float())
    torch.testing.assert_close(changed.part_maps.sum(dim=1), torch.ones(2, 4, 4))


def test_patches_that_the_selector_cannot_place_stay_hidden_after_a_drop(make_selection):
    logits = torch.randn(1, 4, 4, 4)
    logits[0, :, 0] = torch.nan
    selection = make_selection(logits)
    for intervention in (DropParts([2]), DropParts([]), KeepParts([0, 1]), DropUnsure([0.0, 0.0, 0.0])):
        changed = intervention(selection)
        assert not _visible(changed)[0, 0].any()
        assert changed.part_maps.isfinite().all()


def test_interventions_compose_in_order(selection):
    mask = torch.rand(2, 4, 4) > 0.5
    everything = torch.ones(4, 4, dtype=torch.bool)
    chains = [
        ((UseMask(everything), DropParts([0, 1, 2])), torch.zeros_like(mask)),
        ((UseMask(everything), UseMask(mask)), mask),
        ((UseMask(~everything), UseMask(mask)), mask),
        ((DropParts([0, 1, 2]), UseMask(mask)), mask),
        ((UseMask(mask), KeepParts([])), torch.zeros_like(mask)),
        ((UseMask(mask), DropParts([])), mask),
        ((DropParts([0]), DropParts([1])), selection.winners == 2),
        ((KeepParts([0, 1]), DropParts([0])), selection.winners == 1),
    ]
    for chain, expected in chains:
        changed = selection
        for intervention in chain:
            changed = intervention(changed)
        masked = make_mask(changed)
        assert torch.equal(masked.visible, expected), chain
        assert torch.equal(masked.gate, expected.float()), chain
        assert changed.part_maps.isfinite().all(), chain


@pytest.mark.parametrize(
    "intervention",
    [
        DropParts([0, 2]),
        KeepParts([1]),
        DropUnsure([0.5, 0.0, -0.5]),
        UseMask(torch.arange(16).view(4, 4) % 3 == 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_input_is_left_as_it_was(selection, intervention):
    before = {field.name: getattr(selection, field.name).clone() for field in fields(selection)}
    changed = intervention(selection)
    changed.assignment_logits.zero_()  # not even through shared memory
    changed.part_maps.zero_()
    for name, value in before.items():
        assert torch.equal(getattr(selection, name), value), name


def test_given_masks_and_thresholds_are_left_as_they_were(selection):
    mask, thresholds = torch.rand(2, 4, 4) > 0.5, torch.randn(3)
    copies = mask.clone(), thresholds.clone()
    UseMask(mask)(selection).assignment_logits.zero_()
    DropUnsure(thresholds)(selection)
    assert torch.equal(mask, copies[0])
    assert torch.equal(thresholds, copies[1])


@pytest.mark.parametrize("kind", [DropParts, KeepParts])
@pytest.mark.parametrize("part", [3, 7, -1])
def test_a_part_out_of_range_names_the_range(selection, kind, part):
    with pytest.raises(IfamError, match=rf"no part {part}: this model has parts 0 to 2 .*background, 3"):
        kind([0, part])(selection)


def test_a_part_that_is_no_number(selection):
    assert _part_flags([torch.tensor(1)], selection).tolist() == [False, True, False, False]
    for part in (1.5, "head"):
        with pytest.raises(IfamError, match=r"is not a valid part; parts are whole numbers from 0 to 2"):
            _part_flags([part], selection)


@pytest.mark.parametrize("shape", [(2, 5, 4), (3, 4, 4), (2, 15), (16,), (2, 1, 4, 4), (5, 4)], ids=str)
def test_a_mask_of_another_shape_is_named(selection, shape):
    with pytest.raises(IfamError) as error:
        UseMask(torch.ones(shape, dtype=torch.bool))(selection)
    assert f"mask of shape {list(shape)}, but [2, 4, 4] is expected" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8], ids=str)
def test_a_mask_that_is_not_binary(selection, dtype):
    with pytest.raises(IfamError, match=rf"mask of {dtype}, but torch.bool is expected"):
        UseMask(torch.ones(2, 4, 4, dtype=dtype))(selection)


@pytest.mark.parametrize("count", [2, 4])
def test_thresholds_of_another_number(selection, count):
    with pytest.raises(IfamError, match=rf"shape \[{count}\], but the model has 3 parts"):
        DropUnsure([0.0] * count)(selection)


def test_use_parts_assigns_every_patch(make_selection):
    selection = make_selection(torch.randn(2, 4, 2, 3))
    parts = torch.tensor([[[0, 1, 2], [3, 3, 0]], [[2, 2, 2], [1, 0, 3]]])
    changed = UseParts(parts)(selection)
    assert torch.equal(changed.winners, parts)
    assert torch.equal(changed.part_maps, torch.nn.functional.one_hot(parts, 4).movedim(3, 1).float())
    assert torch.equal(UseParts(parts[0])(selection).winners, parts[:1].expand(2, -1, -1))
    broken = replace(selection, assignment_logits=torch.full((2, 4, 2, 3), torch.nan))
    assert torch.equal(UseParts(parts)(broken).winners, parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (torch.zeros(2, 3), r"whole numbers \[2, 2, 3\]"),
        (torch.zeros(3, 2, dtype=torch.long), r"of shape \[3, 2\]"),
        (torch.full((2, 3), 4), "from 4 to 4, but this model has parts 0 to 2, and the background, 3"),
        (torch.full((2, 3), -1), "from -1 to -1"),
    ],
)
def test_use_parts_refuses_what_is_no_part(make_selection, parts, message):
    with pytest.raises(IfamError, match=message):
        UseParts(parts)(make_selection(torch.randn(2, 4, 2, 3)))
