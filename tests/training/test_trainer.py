"""What a training has used is freed at its end, without waiting for Python's collector of cycles."""

import gc
import weakref

import pytest
import torch

from ifam.backbones.vit import TINY
from ifam.config import ModelConfig, TrainConfig
from ifam.data import load_benchmark
from ifam.errors import IfamError
from ifam.models.registry import build
from ifam.training.fit import fit


@pytest.fixture
def no_collector():
    """Cycles are not collected within the test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def train(weak, **settings):
    """Train a model, and add what must not stay to a list of weak references."""
    birds = load_benchmark("pondbirds", options={"num_train": 16, "num_val": 8, "num_test": 8})
    model = build("ifam", ModelConfig(TINY, image_size=40, num_parts=2, num_classes=2))
    weak += map(weakref.ref, (model, birds, *model.parameters()))
    fit(model, birds, TrainConfig(**{"epochs": 1, "batch_size": 8, "accelerator": "cpu", **settings}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"workers": 1}, {"ema_decay": 0.9}, {"selector_tuning": "none"}, {"group_dro": 0.01, "accumulate": 2}],
    ids=["plain", "workers", "averages", "tokens", "groups"],
)
def test_model_and_images_are_freed_at_the_end_of_a_training(no_collector, settings):
    weak = []
    train(weak, **settings)
    assert not [one for one in weak if one() is not None]


@pytest.mark.slow
def test_they_are_freed_after_an_error_too(no_collector):
    weak = []
    with pytest.raises(IfamError, match="no longer finite"):
        train(weak, base_lr=1e30, clip_norm=0.0, epochs=9)
    assert not [one for one in weak if one() is not None]


@pytest.mark.slow
def test_no_tensor_of_a_training_stays(no_collector):
    """Nor copies of weights, optimizer state or batches; the counters of metrics are small."""
    sizes = []
    for _ in range(3):
        train([])
        tensors = {id(one): one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)}
        sizes.append(sum(one.numel() for one in tensors.values()))
        tensors.clear()
    assert sizes[2] - sizes[1] < 1000
