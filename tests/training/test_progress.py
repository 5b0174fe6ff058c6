"""Progress of a training in a log: its epochs, and the validation of each."""

import logging
import re

import pytest

from ifam.config import ModelConfig, TrainConfig
from ifam.data import load_benchmark
from ifam.models.registry import build
from ifam.training.fit import fit
from ifam.training.progress import TrainingProgress


@pytest.mark.slow
def test_a_training_of_many_epochs_does_not_log_each(caplog, monkeypatch):
    monkeypatch.setattr(TrainingProgress, "many", 3)
    caplog.set_level(logging.INFO, "ifam")
    birds = load_benchmark("pondbirds", options={"num_train": 8, "num_val": 4, "num_test": 8})
    model = build("plain_vit", ModelConfig("ifam_tiny", image_size=40, num_classes=2))
    fit(model, birds, TrainConfig(6, 8, accelerator="cpu"))
    assert [line[:12] for line in caplog.messages if line.startswith("epoch")] == ["epoch 1 of 6", "epoch 6 of 6"]


@pytest.mark.slow
def test_training_and_its_validation_say_how_far_they_are(often, capsys):
    birds = load_benchmark("pondbirds", options={"num_train": 16, "num_val": 64, "num_test": 8})
    often.clear()
    model = build("plain_vit", ModelConfig("ifam_tiny", image_size=40, num_classes=2))
    fit(model, birds, TrainConfig(1, 8, accelerator="cpu"), label="training on birds")
    lines = "\n".join(often.messages)
    assert re.search(r"^training on birds: [012] of 2, ", lines, re.MULTILINE)
    assert re.search(r"^validation of epoch 1: \d of \d, ", lines, re.MULTILINE)
    assert re.search(r"^epoch 1 of 1: val accuracy \d", lines, re.MULTILINE)
    assert capsys.readouterr().out == ""
