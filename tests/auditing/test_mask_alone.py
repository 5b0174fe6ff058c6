"""What the mask alone tells a predictor, for predictors that read only the mask, or only the pixels."""

import pytest
import torch
from torch import nn

from ifam.auditing.inputs import AuditInputs, ModelOutputs
from ifam.auditing.mask_alone import bounding_boxes, measure_mask_alone, other_objects
from ifam.models.ifam import IFAM
from ifam.models.masking import enlarge

COUNT, GRID, SIDE = 24, 6, 24


class Answering(IFAM):
    """A model of which only the predictor is asked."""

    def __init__(self, read):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.zeros(()))
        self.predictor = read


def read_mask(images, mask, gate):
    """The class that is written into the mask: whether there is a gap in the middle of the object."""
    gap = (~mask[:, 2, 2]).float()
    return torch.stack([1 - gap, gap], dim=1)


def read_pixels(images, mask, gate):
    """The sign of the mean of the visible pixels; the first class where it is zero."""
    shown = enlarge(mask, (SIDE, SIDE))
    value = (images[:, 0] * shown).sum(dim=(1, 2))
    return torch.stack([-value, value], dim=1)


@pytest.fixture
def material():
    """Squares of two classes: of another color, and with a gap in the mask of the second."""
    labels = torch.arange(COUNT) % 2
    mask = torch.zeros(COUNT, GRID, GRID, dtype=torch.bool)
    mask[:, 1:4, 1:4] = True
    mask[:, 2, 2] = labels == 0
    images = (2.0 * labels - 1).view(-1, 1, 1, 1) * enlarge(mask, (SIDE, SIDE))[:, None]
    maps = torch.zeros(COUNT, 2, GRID, GRID)
    outputs = ModelOutputs(torch.zeros(COUNT, 2), mask, mask.float(), maps, maps[:, 0].long(), maps[:, 0])
    return AuditInputs(images.repeat(1, 3, 1, 1), labels, class_names=("a", "b")), outputs


def test_a_predictor_that_reads_a_code_in_the_mask_is_caught(material):
    own, dilated, box = measure_mask_alone(Answering(read_mask), *material)
    assert [one.mask for one in (own, dilated, box)] == ["the model's mask", "dilated by one patch", "its bounding box"]
    assert (own.pixels, own.constant, own.other, own.followed) == (1, 1, 1, 0)
    assert own.excess == 0.5
    assert own.above_chance
    # A mask that says less closes the gap, in which the code is.
    for coarse in (dilated, box):
        assert (coarse.pixels, coarse.constant, coarse.excess) == (0.5, 0.5, 0)
        assert not coarse.above_chance
    assert own.visible < box.visible < dilated.visible


def test_a_predictor_that_reads_the_pixels_has_no_excess(material):
    for one in measure_mask_alone(Answering(read_pixels), *material):
        assert (one.pixels, one.constant, one.excess) == (1, 0.5, 0)
        assert (one.other, one.followed) == (0, 1)
        assert one.low < 0.5 < one.high
        assert not one.above_chance


def test_images_that_show_nothing_do_not_count(material):
    inputs, outputs = material
    outputs.mask[:4] = False
    own = measure_mask_alone(Answering(read_pixels), inputs, outputs)[0]
    assert own.images == COUNT - 4
    assert own.pixels == 1


def test_without_two_classes_nothing_is_told(material):
    inputs, outputs = material
    assert measure_mask_alone(Answering(read_mask), AuditInputs(inputs.images), outputs) == ()
    one = AuditInputs(inputs.images, torch.zeros(COUNT, dtype=torch.long))
    assert measure_mask_alone(Answering(read_mask), one, outputs) == ()


def test_boxes_are_the_smallest_around_what_is_visible():
    mask = torch.zeros(2, 5, 6, dtype=torch.bool)
    mask[0, 1, 4] = mask[0, 3, 2] = True
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(bounding_boxes(mask)[0], expected)
    assert not bounding_boxes(mask)[1].any()


def test_other_objects_are_of_another_class_and_shown():
    labels, shown = torch.arange(30) % 3, torch.arange(30) % 4 > 0
    others = other_objects(labels, shown)
    assert (labels[others] != labels).all()
    assert shown[others].all()
