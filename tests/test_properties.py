"""Properties that hold whatever the numbers are: examples are found by hypothesis, the same ones in each run."""

import csv
import io
import math
from functools import cache

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conftest import TINY_VIT, wake
from ifam.config import ModelConfig
from ifam.data.source_files import read_csv
from ifam.evaluation.bootstrap import interval, mean, resamples
from ifam.evaluation.metrics import AccuracyByGroup, GroupAccuracy, MaskIoU
from ifam.io import one_line
from ifam.models.ifam import IFAM
from ifam.models.interventions import DropParts, DropUnsure, KeepParts, UseMask
from ifam.models.masking import enlarge, make_mask, patch_mask, patch_mean, resize_mask, resize_values
from ifam.models.pixel_mask import BLANK, blank_hidden, drop_sparse, guided_filter, visible_patches
from ifam.serialization import from_json, to_json
from ifam.types import Selection
from ifam.yaml_text import dump, loader

repeatable = settings(derandomize=True, deadline=None, max_examples=40, database=None)
often = settings(repeatable, max_examples=100)

PARTS, SIDE = 3, 4


def arrays(shape, elements):
    kind = bool if elements is None else np.float32
    return hnp.arrays(kind, shape, elements=elements).map(torch.from_numpy)


def masks(*shape):
    """Masks, with all and nothing visible among them."""
    extreme = st.sampled_from([torch.zeros(shape).bool(), torch.ones(shape).bool()])
    return st.one_of(arrays(shape, None), extreme)


# Small whole numbers, so that parts often tie; and values from an intervention or an overflow.
LOGITS = st.one_of(st.integers(-2, 2).map(float), st.sampled_from([-math.inf, -1e30, 1e30]))
SETS = st.sets(st.integers(0, PARTS - 1)).map(sorted)


@st.composite
def selections(draw):
    logits = draw(arrays((2, PARTS + 1, SIDE, SIDE), LOGITS))
    similarity = draw(arrays((2, PARTS + 1, SIDE, SIDE), st.integers(-3, 3).map(float)))
    maps = torch.nan_to_num(logits, neginf=-1e38).softmax(dim=1)
    scores = torch.zeros(2, PARTS, 5)
    return Selection(logits, maps, similarity, torch.zeros(2, PARTS + 1, 6), scores, scores.mean(dim=1), logits)


def shown(selection):
    return make_mask(selection).visible


# --- masks and interventions -----------------------------------------------------------------------------


@often
@given(selections())
def test_a_mask_is_binary_and_its_gate_is_the_same(selection):
    mask = make_mask(selection)
    assert mask.visible.dtype == torch.bool
    assert torch.equal(mask.gate, mask.visible.float())


@often
@given(selections(), masks(2, SIDE, SIDE), masks(2, SIDE, SIDE))
def test_of_two_given_masks_the_second_holds(selection, first, second):
    assert torch.equal(shown(UseMask(second)(UseMask(first)(selection))), second)


@often
@given(selections(), SETS)
def test_what_is_dropped_and_what_is_kept_are_all(selection, parts):
    """Dropping some parts and keeping them shows each visible patch once."""
    dropped, kept = shown(DropParts(parts)(selection)), shown(KeepParts(parts)(selection))
    assert not (dropped & kept).any()
    assert torch.equal(dropped | kept, shown(selection))


@often
@given(selections())
def test_all_and_nothing(selection):
    everything, nothing = range(PARTS), ()
    for same in (DropParts(nothing), KeepParts(everything), DropUnsure([-math.inf] * PARTS)):
        assert torch.equal(shown(same(selection)), shown(selection))
    for empty in (DropParts(everything), KeepParts(nothing), DropUnsure([math.inf] * PARTS)):
        assert not shown(empty(selection)).any()


@often
@given(selections(), SETS, SETS)
def test_parts_are_dropped_and_kept_in_any_order(selection, first, second):
    union, both = sorted({*first, *second}), sorted({*first} & {*second})
    assert torch.equal(shown(DropParts(second)(DropParts(first)(selection))), shown(DropParts(union)(selection)))
    assert torch.equal(shown(KeepParts(second)(KeepParts(first)(selection))), shown(KeepParts(both)(selection)))
    one = shown(KeepParts(second)(DropParts(first)(selection)))
    assert torch.equal(one, shown(DropParts(first)(KeepParts(second)(selection))))


@often
@given(selections(), arrays((PARTS,), st.floats(-4, 4, width=32)), st.floats(0, 3, width=32))
def test_a_higher_threshold_hides_more(selection, thresholds, more):
    before, after = shown(DropUnsure(thresholds)(selection)), shown(DropUnsure(thresholds + more)(selection))
    assert not (after & ~before).any()
    assert not (before & ~shown(selection)).any()


@often
@given(selections(), SETS, masks(2, SIDE, SIDE), st.permutations(range(3)))
def test_maps_are_shares_after_any_interventions(selection, parts, mask, order):
    changes = [DropParts(parts), UseMask(mask), DropUnsure([0.0] * PARTS)]
    before = {name: value.clone() for name, value in vars(selection).items()}
    changed = selection
    for place in order:
        changed = changes[place](changed)
    assert (changed.part_maps >= 0).all()
    assert torch.allclose(changed.part_maps.sum(dim=1), torch.ones(2, SIDE, SIDE), atol=1e-5)
    assert all(torch.equal(getattr(selection, name), value) for name, value in before.items())


# --- the predictor ---------------------------------------------------------------------------------------

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@cache
def model(execution="auto"):
    config = ModelConfig("vit_tiny_patch16_224", 64, PARTS, 5, backbone_kwargs=TINY_VIT, execution=execution)
    torch.manual_seed(0)
    return wake(IFAM(config, pretrained=False)).eval().requires_grad_(False)


@repeatable
@given(masks(3, SIDE, SIDE))
def test_rows_without_padding_give_the_same_numbers(mask):
    padded, *others = (model(way).predictor(IMAGES, mask) for way in ("padded", "packed", "dense", "auto"))
    for other in others:
        assert torch.allclose(padded, other, atol=1e-5)


@repeatable
@given(masks(3, SIDE, SIDE), st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 0.0]))
def test_hidden_pixels_cannot_matter(mask, value):
    hidden = ~enlarge(mask, (64, 64))[:, None]
    for way in ("padded", "packed", "dense"):
        predictor = model(way).predictor
        assert torch.equal(predictor(IMAGES, mask), predictor(IMAGES.masked_fill(hidden, value), mask))


@repeatable
@given(masks(3, SIDE, SIDE), st.permutations(range(3)))
def test_an_answer_does_not_depend_on_its_place(mask, order):
    answers = model().predictor(IMAGES, mask)
    assert torch.allclose(model().predictor(IMAGES[list(order)], mask[list(order)]), answers[list(order)], atol=1e-5)


@repeatable
@given(masks(3, SIDE, SIDE))
def test_a_given_mask_is_what_the_predictor_sees(mask):
    out = model()(IMAGES, [UseMask(mask)])
    assert torch.equal(out.mask, mask)
    assert torch.equal(out.logits, model().predictor(IMAGES, mask))
    assert torch.equal(out.empty, ~mask.flatten(1).any(dim=1))


def test_everything_visible_is_no_mask():
    everything = torch.ones(3, SIDE, SIDE, dtype=torch.bool)
    assert torch.allclose(model().predictor(IMAGES, everything), model().predictor.forward_full(IMAGES), atol=1e-5)


# --- other grids -----------------------------------------------------------------------------------------

GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


@often
@given(GRIDS, GRIDS, st.floats(-100, 100, width=32))
def test_constant_maps_stay_constant(old, new, value):
    assert torch.allclose(resize_values(torch.full((1, *old), value), new), torch.full((1, *new), value), rtol=1e-5)
    for flag in (True, False):
        assert bool((resize_mask(torch.full((1, *old), flag), new) == flag).all())


@often
@given(st.data(), GRIDS, GRIDS)
def test_values_of_another_grid_stay_within_their_range_and_keep_their_mean(data, old, new):
    values = data.draw(arrays((1, *old), st.floats(-10, 10, width=32)))
    found = resize_values(values, new)
    assert found.min() >= values.min() - 1e-4
    assert found.max() <= values.max() + 1e-4
    assert torch.allclose(found.mean(), values.mean(), atol=1e-4)


@often
@given(st.data(), GRIDS, GRIDS)
def test_a_mask_of_another_grid_grows_with_it(data, old, new):
    mask, more = data.draw(masks(1, *old)), data.draw(masks(1, *old))
    assert torch.equal(resize_mask(mask, old), mask)
    assert not (resize_mask(mask, new) & ~resize_mask(mask | more, new)).any()
    # Half of the area counts as visible, so that no patch is hidden in a mask and in its complement.
    assert (resize_mask(mask, new) | resize_mask(~mask, new)).all()


@often
@given(st.data(), st.tuples(st.integers(1, 5), st.integers(1, 5)), st.integers(1, 4))
def test_a_mask_of_patches_comes_back_from_its_pixels(data, grid, factor):
    mask = data.draw(masks(2, *grid))
    pixels = enlarge(mask, (grid[0] * factor, grid[1] * factor))
    assert torch.equal(patch_mask(pixels, grid), mask)
    assert torch.equal(patch_mean(pixels, grid), mask.float())
    assert torch.equal(visible_patches(pixels, grid), mask)


# --- masks of pixels -------------------------------------------------------------------------------------


@often
@given(masks(1, 8, 8), st.sampled_from([math.nan, math.inf, 1e30, 3.0]))
def test_hidden_pixels_are_blank_and_visible_ones_as_they_were(cells, value):
    images, pixels = IMAGES[:1], enlarge(cells, (64, 64))[:, None].expand(1, 3, 64, 64)
    shown = blank_hidden(torch.where(pixels, images, value), cells)
    assert torch.equal(shown[pixels], images[pixels])
    assert (shown[~pixels] == BLANK).all()


@often
@given(masks(2, 8, 8))
def test_sparse_patches_are_hidden_once(cells):
    once = drop_sparse(cells, (SIDE, SIDE))
    assert not (once & ~cells).any()
    assert torch.equal(drop_sparse(once, (SIDE, SIDE)), once)
    assert torch.equal(visible_patches(once, (SIDE, SIDE)), visible_patches(cells, (SIDE, SIDE)))


@repeatable
@given(st.floats(0, 1, width=32), st.integers(1, 3), st.integers(0, 1000))
def test_an_outline_that_is_nowhere_follows_no_edge(value, radius, seed):
    guide = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    constant = torch.full((1, 2, 12, 12), value)
    assert torch.allclose(guided_filter(constant, guide, radius, 2e-3), constant, atol=1e-4)


@repeatable
@given(masks(3, 16, 16), st.sampled_from([math.nan, math.inf, 1e30]))
def test_hidden_pixels_of_visible_patches_cannot_matter(cells, value):
    config = ModelConfig("vit_tiny_patch16_224", 64, PARTS, 5, backbone_kwargs=TINY_VIT, mask_resolution=4)
    predictor = _with_pixels(config).predictor
    hidden = ~enlarge(cells, (64, 64))[:, None]
    assert torch.equal(predictor(IMAGES, cells), predictor(IMAGES.masked_fill(hidden, value), cells))


def _with_pixels(config, made=[]):  # noqa: B006
    if not made:
        torch.manual_seed(0)
        made.append(wake(IFAM(config, pretrained=False)).eval().requires_grad_(False))
    return made[0]


# --- figures ---------------------------------------------------------------------------------------------

SCORES = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=20)


@often
@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 100), st.floats(-5, 5))
def test_a_resample_has_as_many_images(images, number, seed, value):
    weights = torch.cat([*resamples(images, number, seed)])
    assert weights.shape == (number, images)
    assert (weights.sum(dim=1) == images).all()
    assert torch.allclose(mean(torch.full((images,), value), weights), torch.full((number,), value).double())


@often
@given(st.lists(st.one_of(st.floats(-100, 100), st.just(math.nan)), max_size=30))
def test_an_interval_lies_within_its_values(values):
    found = interval(np.array(values))
    known = [value for value in values if not math.isnan(value)]
    assert (found is None) == (not known)
    if found is not None:
        low, high = found
        assert min(known) <= low <= high <= max(known)


@often
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=30), st.data())
def test_accuracy_by_group_does_not_depend_on_batches(rows, data):
    cut = data.draw(st.integers(0, len(rows)))
    logits = torch.eye(3)[[answer for answer, _, _ in rows]]
    labels, groups = torch.tensor([label for _, label, _ in rows]), torch.tensor([group for _, _, group in rows])
    whole, parts = AccuracyByGroup(4), AccuracyByGroup(4)
    whole.update(logits, labels, groups)
    for one in (slice(cut), slice(cut, None)):
        parts.update(logits[one], labels[one], groups[one])
    assert torch.equal(whole.compute().nan_to_num(-1), parts.compute().nan_to_num(-1))
    assert 0 <= whole.worst() <= whole.average() <= 1


@often
@given(masks(2, 3, 3), masks(2, 3, 3))
def test_iou_is_a_share_and_one_for_the_same(first, second):
    both, swapped, same = MaskIoU(), MaskIoU(), MaskIoU()
    both.update(first, second)
    swapped.update(second, first)
    same.update(first, first)
    assert 0 <= both.compute() == swapped.compute() <= 1
    assert same.compute() == 1


# --- files -----------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@often
@given(rows=st.lists(st.tuples(TEXT, TEXT), max_size=5))
def test_a_list_is_read_as_it_was_written(rows, separator, tmp_path_factory):
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows([("path", "label"), *rows])
    path = tmp_path_factory.getbasetemp() / "list.csv"
    path.write_bytes(text.getvalue().encode())
    expected = [{"path": a.strip(), "label": b.strip()} for a, b in rows if a.strip() or b.strip()]
    assert [row for _, row in read_csv(path, ["path", "label"])] == expected


@often
@given(TEXT)
def test_settings_that_are_text_stay_text(text):
    read = loader(yaml.safe_load, {"label_column": str})
    assert read(dump({"label_column": text})) == {"label_column": text}


@often
@given(st.text(max_size=50))
def test_a_sentence_is_one_printable_line(text):
    line = one_line(text)
    assert "\n" not in line
    assert all(c.isprintable() or c in "\u00a0\u202f\u200c\u200d" for c in line)
    assert one_line(line) == line.strip()


@often
@given(st.floats(0, 1), st.integers(0, 1000), st.one_of(st.none(), st.floats(0, 1)))
def test_figures_come_back_from_their_file(accuracy, count, low):
    figure = GroupAccuracy(accuracy, count, low, low)
    assert from_json(GroupAccuracy, to_json(figure)) == figure
