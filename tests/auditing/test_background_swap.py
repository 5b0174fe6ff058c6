"""Swapped backgrounds, on models that follow the object, the background, or an oracle."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ifam.auditing.background_swap import change, donors, fill_holes, montage, swap_backgrounds
from ifam.auditing.inputs import AuditInputs, compute_outputs
from ifam.models.ifam import IFAM
from ifam.models.masking import patch_mean
from ifam.types import Mask


class Oracle(IFAM):
    """A model whose mask and answer are written out: objects are bright red, backgrounds dark red or dark blue.

    Args:
        leak: Where background enters: "nowhere", through "pixels" that the predictor should not see, or through the
            "mask" alone.
        grow: Whether the mask has one column of patches too many.
    """

    def __init__(self, leak="nowhere", grow=False):
        nn.Module.__init__(self)
        self.leak, self.grow, self.weight = leak, grow, nn.Parameter(torch.zeros(()))

    def selector(self, images):
        size = images.shape[2] // 4
        level = nn.functional.max_pool2d(images[:, :1], size)[:, 0]
        visible = level > 0.5
        if self.grow:
            visible = visible | visible.roll(1, dims=2)
        if self.leak == "mask":
            blue = images[:, 2].amax(dim=(1, 2)) > 0.15
            visible = visible.clone()
            visible[:, 3, 3] |= blue
        logits = torch.stack([visible.float(), 0.5 * torch.ones_like(level)], dim=1)
        return SimpleNamespace(assignment_logits=logits)

    def mask(self, selection):
        visible = selection.assignment_logits[:, 0] > 0.5
        return Mask(visible, visible.float())

    def predictor(self, images, mask, gate=None):
        if self.leak == "mask":
            extra = mask[:, 3, 3].float() * 10
            return torch.stack([extra, 5 - extra], dim=1)
        shown = mask.repeat_interleave(images.shape[2] // 4, 1).repeat_interleave(images.shape[3] // 4, 2)[:, None]
        seen = images if self.leak == "pixels" else images * shown
        blue = seen[:, 2].sum(dim=(1, 2))
        return torch.stack([blue, 1 - blue], dim=1)

    def forward(self, images):
        selected = self.selector(images)
        mask = self.mask(selected)
        maps = torch.stack([mask.gate, 1 - mask.gate], dim=1)
        selection = SimpleNamespace(assignment_logits=selected.assignment_logits, part_maps=maps)
        logits = self.predictor(images, mask.visible)
        return SimpleNamespace(logits=logits, mask=mask.visible, gate=mask.gate, selection=selection, part_maps=maps)


@pytest.fixture
def inputs():
    """Eight images of 16 x 16 pixels: a bright object of 2 x 2 patches on dark red (group 0) or dark blue (group 1)."""
    images, truth = torch.zeros(8, 3, 16, 16), torch.zeros(8, 16, 16, dtype=torch.bool)
    for i in range(8):
        images[i, 0 if i % 2 == 0 else 2] = 0.2 + 0.01 * i
        truth[i, 4:12, 4:12] = True
    images[:, 0][truth] = 1.0
    images[:, 2][truth] = 0.0
    labels, groups = torch.zeros(8, dtype=torch.long), torch.arange(8) % 2
    return AuditInputs(
        images, labels, groups, truth, indices=tuple(range(8)), class_names=("a", "b"), group_names=("red", "blue")
    )


def swap(model, inputs, **kwargs):
    outputs = compute_outputs(model, inputs.images)
    return swap_backgrounds(model, inputs, outputs, **kwargs)


def test_an_oracle_mask_lets_nothing_in(inputs):
    """Every figure is exactly 0, and the two masks are the same."""
    backgrounds = swap(Oracle(), inputs, batch_size=3)
    assert backgrounds.passed
    assert backgrounds.source == "ground truth"
    assert (backgrounds.mixed, backgrounds.stray, backgrounds.visible, backgrounds.mask_iou) == (0, 0, 0.25, 1)
    for name in ("hidden", "without_mixed", "fixed", "through_mask", "recomputed"):
        assert getattr(backgrounds, name) == change(torch.eye(2), torch.eye(2))
    assert backgrounds.influence == (0.0,) * 8
    assert not any(backgrounds.changed)


def test_a_predictor_that_sees_hidden_background_fails(inputs):
    """Swapping hidden patches alone is enough to tell."""
    backgrounds = swap(Oracle("pixels"), inputs)
    assert not backgrounds.passed
    assert backgrounds.hidden.answers == backgrounds.fixed.answers == 1
    assert backgrounds.through_mask.answers == 0
    assert backgrounds.recomputed.answers == 1


def test_background_that_enters_through_the_mask_is_told_apart(inputs):
    """Nothing changes while the mask is held, everything once it is made anew."""
    backgrounds = swap(Oracle("mask"), inputs)
    assert backgrounds.passed
    assert backgrounds.fixed.answers == 0
    assert backgrounds.through_mask.answers == backgrounds.recomputed.answers == 1
    # 4 patches in common, 5 in one of the masks.
    assert backgrounds.mask_iou == pytest.approx(0.8)
    assert all(backgrounds.changed)
    assert min(backgrounds.influence) > 0.9


def test_stray_and_mixed_patches_are_counted(inputs):
    """Visible patches of background only let background in while the mask is held; mixed ones are told apart."""
    grown = swap(Oracle(grow=True), inputs)
    assert grown.passed
    assert grown.stray == pytest.approx(1 / 3)
    assert grown.mixed == 0
    assert grown.without_mixed.any_bit == grown.fixed.any_bit == 1
    inputs.truth[:, :, 10:] = False
    inputs.images[:, :, :, 10:] = inputs.images[:, :, :1, :1]
    cut = swap(Oracle(), inputs)
    assert cut.passed
    assert cut.mixed == pytest.approx(0.5)
    assert cut.stray == 0
    assert cut.without_mixed.any_bit == 0
    assert cut.fixed.any_bit == 1


def test_accuracy_by_group_has_the_worst_first(inputs):
    """On red the answer is 1 (wrong), on blue 0 (right), and swapping turns that round."""
    backgrounds = swap(Oracle("pixels"), inputs)
    rows = {row.name: (row.count, row.before, row.fixed, row.recomputed) for row in backgrounds.groups}
    assert rows == {"red": (4, 0.0, 1.0, 1.0), "blue": (4, 1.0, 0.0, 0.0)}
    assert [row.name for row in backgrounds.groups] == ["blue", "red"]
    unlabelled = swap(Oracle(), AuditInputs(inputs.images, truth=inputs.truth))
    assert unlabelled.groups == ()


def test_without_truth_the_own_mask_cuts_out(inputs):
    backgrounds = swap(Oracle(), AuditInputs(inputs.images))
    assert backgrounds.source == "own mask"
    assert (backgrounds.mixed, backgrounds.stray) == (0, 0)
    assert backgrounds.fixed.any_bit == 0


def test_backgrounds_of_the_benchmark_are_preferred(inputs):
    swapped = inputs.images.flip(1)
    backgrounds = swap(Oracle("pixels"), AuditInputs(**{**vars(inputs), "swapped": swapped}))
    assert backgrounds.source == "benchmark"
    # The object's own pixels are held, whatever the benchmark painted there.
    assert swap(Oracle(), AuditInputs(**{**vars(inputs), "swapped": swapped})).fixed.any_bit == 0


def test_a_montage_takes_background_only():
    """Where the first giver shows its object, the next one's background is taken, or the first one's mean."""
    images = torch.arange(1.0, 5.0)[:, None, None, None].expand(4, 3, 2, 2).clone()
    objects = torch.zeros(4, 2, 2, dtype=torch.bool)
    objects[0, 0, 0] = objects[1, 0, 1] = objects[2, 0, 1] = objects[1, 1, 1] = True
    images[1, :, 0, 1] = 99.0
    composites = montage(images, objects, torch.tensor([[1, 2], [3, 0], [0, 1], [1, 0]]))
    assert composites[0, 0].tolist() == [[1.0, 2.0], [2.0, 3.0]]
    assert composites[3, 0].tolist() == [[2.0, 1.0], [2.0, 1.0]]
    assert composites[1, 0].tolist() == [[4.0, 99.0], [4.0, 2.0]]


def test_backgrounds_come_from_other_groups_first(inputs):
    chosen = donors(inputs)
    assert chosen.shape == (8, 7)
    for i in range(8):
        assert i not in chosen[i]
        assert (chosen[i, :4] % 2 != i % 2).all()


def test_coverage_is_the_share_of_each_patch():
    pixels = torch.zeros(1, 4, 4, dtype=torch.bool)
    pixels[0, 0, :3] = True
    assert patch_mean(pixels, (2, 2)).tolist() == [[[0.5, 0.25], [0.0, 0.0]]]


def test_nothing_of_what_a_hole_held_is_left():
    levels = torch.tensor([0.1, 0.9]).view(2, 1, 1, 1)
    images, holes = levels.expand(2, 3, 20, 31).clone(), torch.zeros(2, 20, 31, dtype=torch.bool)
    holes[:, 4:15, 7:30] = True
    for held in (0.5, 1e30):
        filled = fill_holes(torch.where(holes[:, None], held, images), holes)
        torch.testing.assert_close(filled, images)


def test_a_hole_is_filled_from_what_is_near():
    image = torch.zeros(1, 3, 20, 31)
    image[..., 15:] = 1
    hole = torch.zeros(1, 20, 31, dtype=torch.bool)
    hole[:, 5:15, 2:29] = True
    row = fill_holes(image, hole)[0, 0, 10]
    assert row[3] < 0.2
    assert row[27] > 0.8
    assert 0 <= row.min() <= row.max() <= 1
