"""The input and output of the last layer: what the head is applied to, image by image."""

import pickle

import pytest
import torch

from ifam.data import Benchmark
from ifam.evaluation.features import last_layer_of
from ifam.models.registry import METHODS
from ifam.models.timm_interface import features_of, recorded_features


class Noise:
    """Random images of five classes."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(index))
        return {"image": image, "label": index % 5, "mask": torch.ones(64, 64, dtype=torch.bool)}


NAMES = tuple("abcde")
NOISE = Benchmark("noise", {"test": Noise()}, NAMES, NAMES)


@pytest.mark.parametrize(
    ("method", "settings"), [*((method, {}) for method in METHODS), ("ifam", {"aggregation": "sum"})]
)
def test_the_head_of_the_features_gives_the_logits(make_model, method, settings):
    """It is called once in a forward pass, so the features are defined."""
    config = make_model(**settings).config
    torch.manual_seed(0)
    model = METHODS[method].build(config, False).train()
    rows = last_layer_of(model, NOISE, "test", batch_size=3)
    assert rows.features.shape == (7, model.last_layer.in_features)
    with torch.no_grad():
        torch.testing.assert_close(model.last_layer(rows.features), rows.logits, atol=1e-5, rtol=1e-5)
    assert rows.labels.tolist() == rows.groups.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert model.training


def test_some_images_are_those_of_all(tiny_model):
    some, every = (last_layer_of(tiny_model, NOISE, "test", indices=which) for which in ([1, 4], None))
    torch.testing.assert_close(some.features, every.features[[1, 4]])
    assert some.labels.tolist() == [1, 4]


def test_features_do_not_depend_on_hidden_pixels(tiny_model, images, mask):
    """Bit by bit, like the answer."""
    hidden = ~mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].expand_as(images)
    seen = []
    for value in (0.0, 1e30, float("nan")):
        with torch.no_grad(), recorded_features(tiny_model) as inputs:
            tiny_model.predictor(images.masked_fill(hidden, value), mask)
        seen.append(features_of(tiny_model, inputs, len(images)))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_nothing_is_left_on_the_model(tiny_model):
    """No hook, which would keep every later batch: the layer is the same in all that is pickled of it."""
    before = pickle.dumps(tiny_model.last_layer)
    last_layer_of(tiny_model, NOISE, "test")
    assert pickle.dumps(tiny_model.last_layer) == before
