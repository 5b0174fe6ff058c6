"""Models that version 0.1.0 saved answer as they did then: one of each class, small and with random weights."""

import json
from pathlib import Path

import pytest
import torch

from ifam.checkpoints import hub
from ifam.saved_models import RENAMED_METHODS

SAVED = Path(__file__).parent / "saved"
LOGITS = json.loads((SAVED / "logits.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", LOGITS)
def test_models_of_before_answer_as_they_did(method):
    model = hub.load(SAVED / method)
    assert model.method == RENAMED_METHODS.get(method, method)
    assert model.config.class_names == ("a", "b", "c")
    images = (torch.arange(2 * 3 * 40 * 40) * 0.37).sin().reshape(2, 3, 40, 40)
    mask = torch.zeros(2, 5, 5, dtype=torch.bool)
    mask[:, 1:4, 1:3] = True
    with torch.no_grad():
        logits = model(images, masks=mask).logits
    torch.testing.assert_close(logits, torch.tensor(LOGITS[method]), atol=1e-4, rtol=0)


def test_every_class_is_among_them():
    assert {folder.name for folder in SAVED.iterdir() if folder.is_dir()} == {*LOGITS}
