"""What can be read from masks, on masks that carry a label, a background, or nothing."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ifam.auditing.inputs import AuditInputs, compute_outputs
from ifam.auditing.mask_leakage import background_of, measure_leakage, probe
from ifam.models.ifam import IFAM
from ifam.types import Mask, Output, Selection


class Copyist(IFAM):
    """A model whose mask is random but for one patch, which is visible where the image is bright: the background."""

    def __init__(self):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.zeros(()))

    def selector(self, images):
        noise = images[:, 1, ::4, ::4]
        logits = torch.stack([noise, torch.zeros_like(noise)], dim=1)
        logits[:, 0, 0, 0] = images[:, 0, 0, 0]
        empty = torch.zeros(len(images), 2, 1)
        return Selection(logits, logits.softmax(1), logits, empty, empty[:, :1], empty[:, 0])

    def mask(self, selection):
        visible = selection.assignment_logits[:, 0] > 0
        return Mask(visible, visible.float())

    def forward(self, images):
        selection = self.selector(images)
        mask = self.mask(selection)
        logits = torch.zeros(len(images), 2)
        return Output(logits, logits, mask.visible, mask.gate, selection)


def above_chance(reading):
    return reading.low > max(reading.chance, reading.shuffled_high)


@pytest.fixture
def inputs():
    """80 images of noise whose first colour is bright or dark: group = class x background."""
    images = torch.randn(80, 3, 16, 16)
    labels, backgrounds = torch.arange(80) % 2, torch.arange(80) // 2 % 2
    images[:, 0] = (2.0 * backgrounds - 1)[:, None, None]
    names = ("a on dark", "a on bright", "b on dark", "b on bright")
    return AuditInputs(images, labels, 2 * labels + backgrounds, class_names=("a", "b"), group_names=names)


@pytest.mark.slow
def test_a_selector_that_copies_the_background_into_the_mask_is_caught(inputs):
    """In the mask and in the part maps; and the class, which it does not copy, is not."""
    leakage = measure_leakage(inputs, compute_outputs(Copyist(), inputs.images), shuffles=6)
    readings = {(r.target, r.source): r for r in leakage.readings}
    assert set(readings) == {(t, s) for t in ("class", "background") for s in ("mask", "part maps")}
    assert leakage.notes == ()
    for source in ("mask", "part maps"):
        caught = readings["background", source]
        assert above_chance(caught)
        assert caught.accuracy > 0.9
        assert caught.low <= caught.accuracy <= caught.high
        assert caught.chance == 0.5
        assert 0.35 < caught.shuffled < 0.65
        assert caught.images == 80
        assert not above_chance(readings["class", source])
        assert readings["class", source].accuracy < 0.7


def test_reading_is_cross_validated():
    """A model that has 400 numbers for 200 labels fits them all; on images it has not seen it knows nothing."""
    result = probe(torch.randn(200, 400), torch.arange(200) % 2, shuffles=5)
    assert result.accuracy < 0.6
    assert result.low < 0.5 < result.high
    assert not above_chance(result)


def test_masks_that_are_all_the_same_give_nothing_away():
    result = probe(torch.ones(40, 9), torch.arange(40) % 2, shuffles=2)
    assert not above_chance(result)
    assert result.accuracy <= 0.5


def test_an_uneven_share_is_no_finding():
    """Always naming the frequent value is right for nine of ten: chance says so."""
    values = (torch.arange(100) % 10 == 0).long()
    result = probe(torch.randn(100, 4), values, shuffles=5)
    assert result.chance == 0.9
    assert result.accuracy == pytest.approx(0.9, abs=0.02)
    assert not above_chance(result)


def test_the_interval_shrinks_with_more_images():
    def width(count):
        values = torch.arange(count) % 2
        features = values[:, None] + torch.randn(count, 1)
        result = probe(features, values, shuffles=1)
        return result.high - result.low

    assert width(1600) < 0.4 * width(100)


def test_rare_classes_are_left_out_and_too_few_are_said(inputs):
    labels = torch.tensor([0] * 30 + [1] * 30 + [2] * 4)
    assert probe(torch.randn(64, 3), labels, shuffles=1).images == 60
    few = probe(torch.randn(10, 3), torch.arange(10), target="class")
    assert few.startswith("class: fewer than two values have 5 images")
    outputs = compute_outputs(Copyist(), inputs.images)
    unknown = measure_leakage(AuditInputs(inputs.images), outputs)
    assert unknown.readings == ()
    assert len(unknown.notes) == 2
    assert all("unknown" in note for note in unknown.notes)


def test_backgrounds_are_found_in_groups_of_class_times_background(inputs):
    assert background_of(inputs).tolist() == (torch.arange(80) // 2 % 2).tolist()
    assert background_of(replace(inputs, groups=inputs.groups.flip(0))) is None
    assert background_of(replace(inputs, group_names=("a", "b", "c"))) is None
    assert background_of(replace(inputs, groups=None)) is None


def test_figures_repeat(inputs):
    features = torch.randn(80, 5)
    first = probe(features, inputs.labels, seed=3, shuffles=2)
    assert probe(features, inputs.labels, seed=3, shuffles=2) == first
    assert probe(features, inputs.labels, seed=4, shuffles=2) != first
