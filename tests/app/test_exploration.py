"""One image with edits: the answer is the model's own, and each edit costs one pass of the predictor."""

import time

import numpy as np
import pytest
import torch
from PIL import Image

import ifam
from ifam.app.exploration import Exploration
from ifam.evaluation.conformal import Calibration
from ifam.inference import preprocess


@pytest.fixture
def photo():
    """An image that is not square."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def exploration(tiny_model, photo):
    return Exploration(tiny_model, photo)


@torch.no_grad()
def direct(model, photo, *interventions):
    return model(preprocess(photo, model)[None], interventions)


def test_without_edits_it_is_the_answer_of_the_model(tiny_model, photo, exploration):
    answer, expected = exploration.answer(), direct(tiny_model, photo)
    assert torch.equal(answer.output.logits, expected.logits)
    assert torch.equal(answer.mask, expected.mask[0])
    assert answer.prediction == int(expected.logits.argmax())
    assert answer.confidence == pytest.approx(float(expected.logits.softmax(1).max()))
    assert not answer.edited


def test_hidden_parts_are_an_intervention(tiny_model, photo, exploration):
    for parts in ([0], [1, 2], [0, 1, 2], []):
        exploration.drop(parts)
        expected = direct(tiny_model, photo, ifam.DropParts(parts))
        answer = exploration.answer()
        assert torch.equal(answer.output.logits, expected.logits)
        assert torch.equal(answer.mask, expected.mask[0])
        assert answer.edited == bool(parts)
    exploration.drop([0, 1, 2])
    assert exploration.answer().empty


def test_paint_decides_about_its_patches_alone(tiny_model, photo, exploration):
    found = exploration.answer().mask
    exploration.paint([(0, 0), (3, 3), (9, 9), (-1, 0)], "this")
    exploration.paint([(1, 1)], "not this")
    wanted = found.clone()
    wanted[0, 0] = wanted[3, 3] = True
    wanted[1, 1] = False
    answer = exploration.answer()
    assert torch.equal(answer.mask, wanted)
    # Bit by bit what the predictor says of this mask, however it came about.
    expected = tiny_model.predictor(preprocess(photo, tiny_model)[None], wanted[None])
    assert torch.equal(answer.output.logits, expected)
    exploration.paint([(row, column) for row in range(4) for column in range(4)], "as found")
    assert torch.equal(exploration.answer().mask, found)
    assert not exploration.edited


def test_paint_comes_after_parts_and_belongs_to_a_part(exploration):
    """A patch that is painted in shows even if its part is hidden, and counts for the part that it is most like."""
    parts = exploration.answer().part_of_patch
    row, column = (parts < 3).nonzero()[0].tolist()
    exploration.drop([int(parts[row, column])])
    assert not exploration.answer().mask[row, column]
    exploration.paint([(row, column)], "this")
    answer = exploration.answer()
    assert answer.mask[row, column]
    assert answer.part_of_patch[row, column] == parts[row, column]
    exploration.reset()
    assert torch.equal(exploration.answer().part_of_patch, parts)


@pytest.mark.parametrize(("radius", "cells"), [(0, 1), (1, 5), (2, 11)])
def test_a_brush_has_a_size(exploration, radius, cells):
    exploration.paint([(1, 1)], "this", radius)
    assert int(exploration.shown.sum()) == cells


def test_the_selector_runs_once_and_an_edit_is_one_pass_of_the_predictor(tiny_model, photo):
    calls = {"selector": 0, "predictor": 0}

    def count(name):
        return lambda *_: calls.__setitem__(name, calls[name] + 1)

    hooks = [getattr(tiny_model, name).backbone.register_forward_pre_hook(count(name)) for name in calls]
    exploration = Exploration(tiny_model, photo)
    for edit in (lambda: None, lambda: exploration.drop([0]), lambda: exploration.paint([(1, 2)], "this")):
        edit()
        exploration.answer()
    assert calls == {"selector": 1, "predictor": 3}
    for hook in hooks:
        hook.remove()


def test_an_edit_is_quick_with_the_embedded_model():
    """15 ms on an idle core; the bound leaves room for a busy one."""
    torch.manual_seed(0)
    model = ifam.IFAM(ifam.ModelConfig(backbone="ifam_tiny", num_parts=4, num_classes=2)).eval()
    exploration = Exploration(model, Image.new("RGB", (80, 80), "olive"))
    exploration.paint([(row, column) for row in range(6) for column in range(10)], "this")
    exploration.answer()
    seconds = []
    for column in range(9):
        exploration.paint([(9, column)], "this")
        started = time.perf_counter()
        exploration.answer()
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.15


def test_bars_add_up_after_edits(exploration):
    exploration.drop([1])
    exploration.paint([(0, 0)], "this")
    answer = exploration.answer()
    assert torch.equal(exploration.contributions(answer).total(), answer.output.logits)


def test_pixels_are_painted_where_the_mask_is_finer(make_model, photo):
    model = make_model(mask_resolution=4)
    exploration = Exploration(model, photo)
    assert exploration.grid == (16, 16)
    found = exploration.answer().mask
    exploration.paint([(row, column) for row in range(4) for column in range(4, 6)], "this")
    exploration.paint([(8, 8)], "not this")
    answer = exploration.answer()
    assert answer.mask[:4, 4:6].all()
    assert not answer.mask[8, 8]
    rest = torch.ones_like(found)
    rest[:4, 4:8] = rest[8:12, 8:12] = False
    assert torch.equal(answer.mask[rest], found[rest])


@pytest.mark.parametrize("fields", [{"selector_image_size": 80}, {"aggregation": "sum"}, {"min_visible": 0.3}])
def test_other_kinds_of_models_are_explored_too(make_model, photo, fields):
    model = make_model(backbone_kwargs={"dynamic_img_size": True} if "selector_image_size" in fields else {}, **fields)
    exploration = Exploration(model, photo)
    assert torch.equal(exploration.answer().output.logits, direct(model, photo).logits)
    exploration.paint([(0, 0)], "this", radius=1)
    exploration.drop([0])
    answer = exploration.answer()
    assert answer.mask[0, 0]
    assert torch.equal(exploration.contributions(answer).total(), answer.output.logits)


def test_sets_are_those_of_the_calibration_until_something_is_edited(tiny_model, photo):
    calibration = Calibration(torch.linspace(0, 3, 100).double(), torch.arange(100) % 5, tuple("abcde"), error=0.05)
    exploration = Exploration(tiny_model, photo, calibration)
    answer = exploration.answer()
    inside = calibration.sets(answer.output.logits)[0]
    assert set(answer.classes) == set(inside.nonzero()[:, 0].tolist())
    assert list(answer.classes) == sorted(answer.classes, key=lambda c: -float(answer.probabilities[c]))
    exploration.drop([0])
    assert exploration.answer().classes is None


def test_a_corrected_model_uses_the_tokens_that_are_there(tiny_model, photo, exploration):
    hidden = exploration.answer().mask[None].clone()
    pixels = preprocess(photo, tiny_model)[None]
    after = ifam.correct(tiny_model, pixels, torch.zeros_like(hidden), hidden)
    exploration.use(after)
    assert torch.equal(exploration.answer().mask, after(pixels).mask[0])


def test_what_is_no_part_or_brush_is_a_sentence(exploration):
    with pytest.raises(ifam.IfamError, match="no part 7"):
        exploration.drop([7])
    assert exploration.dropped == ()
    with pytest.raises(ifam.IfamError, match="no brush 'red'"):
        exploration.paint([(0, 0)], "red")
