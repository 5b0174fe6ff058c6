"""The dataclasses that flow between the stages."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from ifam.types import Batch


def test_batch_moves_what_it_has():
    batch = Batch(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), masks=torch.ones(2, 4, 4, dtype=torch.bool))
    moved = batch.to("meta")
    assert moved.images.device.type == moved.labels.device.type == moved.masks.device.type == "meta"
    assert moved.groups is None
    assert batch.images.device.type == "cpu"
    grouped = Batch(batch.images, batch.labels, groups=batch.labels).to("meta")
    assert grouped.groups.device.type == "meta"
    assert grouped.masks is None


def test_batch_can_be_pinned(monkeypatch):
    """PyTorch's loader pins what has this method; pinning itself needs a GPU."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.shape) or self)
    batch = Batch(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), groups=torch.tensor([0, 1]))
    copied = batch.pin_memory()
    assert sorted(map(tuple, pinned)) == [(2,), (2,), (2, 3, 4, 4)]
    assert copied.masks is None


def test_batch_is_frozen():
    batch = Batch(torch.zeros(1, 3, 4, 4), torch.tensor([0]))
    with pytest.raises(FrozenInstanceError):
        batch.labels = None


@pytest.mark.parametrize("logits", [[0.3, 0.1, 0.2], [0.2, 0.1, 0.2], [0.0, 0.2, 0.2], [0.1, 0.1, 0.2]])
def test_winners_give_a_tie_with_the_background_to_the_part(make_selection, logits):
    selection = make_selection(torch.tensor(logits).view(1, 3, 1, 1))
    assert selection.winners.item() == max(range(3), key=lambda k: (logits[k], -k))
