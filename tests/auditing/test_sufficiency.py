"""Parts taken away and put back, on a predictor whose logits are counted patches."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ifam.auditing.inputs import AuditInputs, compute_outputs
from ifam.auditing.sufficiency import dilate, erode, measure_parts, ranks
from ifam.models.ifam import IFAM
from ifam.types import Mask, Output, Selection


class Counting(IFAM):
    """Parts are columns 0, 1 and 2 of 4 patches each, column 3 is background; part k speaks with `worth[k]` a patch.

    Args:
        worth: What one visible patch of each column adds to the logit of class 0; class 1 has 2.
    """

    def __init__(self, worth):
        nn.Module.__init__(self)
        self.weight, self.worth = nn.Parameter(torch.zeros(())), torch.tensor([*worth, 0.0])

    def selector(self, images):
        logits = 9.0 * torch.eye(4)[:, None].expand(4, 4, 4).expand(len(images), 4, 4, 4)
        # The second image has no part 2.
        logits = logits.clone()
        logits[1:, 2, :, 2], logits[1:, 3, :, 2] = 0.0, 9.0
        width = torch.zeros(len(images), 4, 1)
        return Selection(logits, logits.softmax(1), logits, width, width[:, :3, :1], width[:, 0])

    def mask(self, selection):
        visible = selection.winners < 3
        return Mask(visible, visible.float())

    def predictor(self, images, mask, gate=None):
        first = (mask * self.worth).sum(dim=(1, 2))
        return torch.stack([first, torch.full_like(first, 2.0)], dim=1)

    def forward(self, images):
        selection = self.selector(images)
        visible = self.mask(selection).visible
        logits = self.predictor(images, visible)
        scores = selection.part_scores.expand(-1, -1, 2)
        selection = replace(selection, part_scores=scores, selector_logits=logits)
        return Output(logits, logits, visible, visible.float(), selection)


def measure(worth, labels=None):
    model = Counting(worth)
    inputs = AuditInputs(torch.zeros(2, 3, 8, 8), labels)
    return measure_parts(model, inputs, compute_outputs(model, inputs.images), batch_size=1)


def sure(*logits):
    """Mean probability of class 0, over images with these logits."""
    return (torch.tensor(logits) - 2).sigmoid().mean().item()


def test_every_figure_is_what_the_patches_are_worth():
    """Part 1 is worth 4, part 0 is worth 1, part 2 speaks against the answer with 0.8."""
    parts = measure((0.25, 1.0, -0.2), torch.tensor([0, 1]))
    assert [list(row) for row in parts.leave_one_out] == [
        pytest.approx([-1.0, -4.0, 0.8]),
        pytest.approx([-1.0, -4.0, 0.0]),
    ]
    # Kept: nothing, part 1, parts 1 and 0, all (without part 2 in the second image).
    steps = [sure(0.0, 0.0), sure(4.0, 4.0), sure(5.0, 5.0), sure(4.2, 5.0)]
    assert [s.probability for s in parts.insertion] == pytest.approx(steps)
    assert [s.agreement for s in parts.insertion] == [0, 1, 1, 1]
    assert [s.accuracy for s in parts.insertion] == [0.5, 0.5, 0.5, 0.5]
    assert [s.visible for s in parts.insertion] == [0, 0.25, 0.5, 0.625]
    assert parts.insertion_area == pytest.approx(sum(steps) / 4)
    gone = [sure(4.2, 5.0), sure(0.2, 1.0), sure(-0.8, 0.0), sure(0.0, 0.0)]
    assert [s.probability for s in parts.deletion] == pytest.approx(gone)
    assert [s.agreement for s in parts.deletion] == [1, 0, 0, 0]
    assert parts.deletion_area == pytest.approx(sum(gone) / 4)


def test_necessity_counts_only_images_that_show_the_part():
    parts = measure((0.25, 1.0, -0.2))
    assert [(p.part, p.images, p.patches) for p in parts.parts] == [(0, 2, 4.0), (1, 2, 4.0), (2, 1, 4.0)]
    assert [p.changed_answers for p in parts.parts] == [0.0, 1.0, 0.0]
    assert [p.logit_change for p in parts.parts] == pytest.approx([-1.0, -4.0, 0.8])
    assert all(s.accuracy is None for s in parts.insertion)


def test_a_part_that_nobody_shows_has_no_figures(tiny_model, images):
    """And the figures of the real model fit together."""
    outputs = compute_outputs(tiny_model, images)
    parts = measure_parts(tiny_model, AuditInputs(images), outputs)
    assert parts.insertion[-1].agreement == parts.deletion[0].agreement == 1
    assert parts.insertion[-1].visible == pytest.approx(outputs.mask.float().mean().item())
    assert parts.insertion[0] == parts.deletion[-1]
    with torch.no_grad():
        tiny_model.selector.prototypes[0] = 1e3 * torch.ones(48)
    gone = measure_parts(tiny_model, AuditInputs(images), compute_outputs(tiny_model, images))
    assert (gone.parts[0].images, gone.parts[0].changed_answers, gone.parts[0].logit_change) == (0, None, None)
    assert all(row[0] == 0 for row in gone.leave_one_out)


def test_leaving_a_part_out_is_what_the_intervention_does(tiny_model, images):
    from ifam.models.interventions import DropParts

    outputs = compute_outputs(tiny_model, images)
    parts = measure_parts(tiny_model, AuditInputs(images), outputs)
    with torch.no_grad():
        for k in range(3):
            dropped = tiny_model(images, [DropParts([k])]).logits
            change = (dropped - outputs.logits).gather(1, outputs.answers[:, None])[:, 0]
            shown = (outputs.winners == k).flatten(1).any(dim=1)
            expected = torch.where(shown, change, 0.0)
            torch.testing.assert_close(torch.tensor([row[k] for row in parts.leave_one_out]), expected)


def test_one_patch_less_or_more():
    """Columns 0 to 2 lose their outermost column; column 3 has no patch to add but is worth nothing."""
    parts = measure((0.25, 1.0, -0.2))
    assert (parts.eroded.visible, parts.dilated.visible) == ((8 + 4) / 32, (16 + 12) / 32)
    # The second image keeps column 0 alone: 1 is less than 2.
    assert parts.eroded.agreement == 0.5
    assert parts.unstable == (False, True)
    assert parts.dilated.agreement == 1


def test_erosion_and_dilation():
    mask = torch.zeros(1, 5, 5, dtype=torch.bool)
    mask[0, 1:4, 1:4] = True
    assert erode(mask).nonzero().tolist() == [[0, 2, 2]]
    assert dilate(erode(mask)).equal(mask)
    assert dilate(mask).all()
    assert erode(torch.ones_like(mask)).all()
    corner = torch.zeros_like(mask)
    corner[0, 0, 0] = True
    assert dilate(corner).sum() == 4


def test_ranks_put_the_most_needed_first_and_missing_parts_last():
    lost = torch.tensor([[-1.0, -4.0, 0.8, 0.0]])
    assert ranks(lost, torch.tensor([[True, True, True, False]])).tolist() == [[1, 0, 2, 3]]
