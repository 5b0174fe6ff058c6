"""Thresholds of unsure patches: the quantiles of what each part wins, and their way with the model."""

import json
import math

import pytest
import torch

from ifam.checkpoints.hub import load, read
from ifam.data import Benchmark, TransformedDataset
from ifam.errors import IfamError
from ifam.evaluation.thresholds import QUANTILES, Thresholds, compute_thresholds, store, stored
from ifam.models.baselines import PlainViT
from ifam.models.interventions import DropUnsure
from oracles import thresholds


class Random:
    """Random images."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return {"image": torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(index)), "label": 0}


@pytest.fixture
def noise():
    return Benchmark("noise", {"train": Random(), "test": Random()}, ("a", "b"), ("a", "b"), "no validation")


@pytest.fixture
def images(noise, tiny_model):
    prepared = TransformedDataset(noise.split("train"), tiny_model.image_size, tiny_model.normalization)
    return torch.stack([prepared[i]["image"] for i in range(len(prepared))])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_they_are_quantiles_of_what_each_part_wins(noise, tiny_model, images, batch_size):
    computed = compute_thresholds(tiny_model, noise, "train", [0.05, 0.5], batch_size=batch_size)
    with torch.no_grad():
        out = tiny_model(images)
    winners = out.part_maps.argmax(dim=1)
    for quantile in (0.05, 0.5):
        assert computed.at(quantile) == pytest.approx(thresholds(out.similarity, winners, quantile, 3), rel=1e-5)
    assert computed.patches == tuple(int((winners == k).sum()) for k in range(3))
    assert min(computed.patches) > 0
    assert (computed.images, computed.source["split"], computed.source["note"]) == (7, "train", "no validation")


def test_half_of_the_patches_are_below_the_median(noise, tiny_model, images):
    limits = compute_thresholds(tiny_model, noise, quantiles=[0.5]).at(0.5)
    with torch.no_grad():
        before, after = tiny_model(images), tiny_model(images, [DropUnsure(limits)])
    assert int(after.mask.sum()) == pytest.approx(int(before.mask.sum()) / 2, abs=2)


def test_a_part_that_wins_nothing_is_never_unsure(noise, tiny_model, images):
    with torch.no_grad():
        tiny_model.selector.prototypes[1] = 1e4
    computed = compute_thresholds(tiny_model, noise, quantiles=[0.3])
    assert computed.patches[1] == 0
    assert computed.values[0][1] is None
    assert computed.at(0.3)[1] == -math.inf


def test_a_limit_spreads_over_the_split(noise, tiny_model):
    seen = []
    one = Random.__getitem__

    class Watched(Random):
        def __getitem__(self, index):
            seen.append(index)
            return one(self, index)

    data = Benchmark("noise", {"train": Watched()}, ("a", "b"), ("a", "b"))
    assert compute_thresholds(tiny_model.train(), data, limit=3).images == 3
    assert seen == [0, 2, 4]
    assert tiny_model.training
    assert compute_thresholds(tiny_model, data, limit=100).images == 7


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantiles": [0.1, 1.5]}, "1.5 is not"),
        ({"quantiles": []}, "at least one is needed"),
        ({"limit": 0}, "limit is 0"),
        ({"split": "val"}, "no split 'val'"),
    ],
)
def test_impossible_settings(noise, tiny_model, settings, said):
    with pytest.raises(IfamError, match=said):
        compute_thresholds(tiny_model, noise, **settings)


def test_they_travel_with_the_model(noise, tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path, {"benchmark": "noise"})
    weights = load(tmp_path).state_dict()
    computed = compute_thresholds(tiny_model, noise)
    assert computed.quantiles == QUANTILES
    assert len(QUANTILES) == 99
    store(computed, tmp_path)
    extra = read(tmp_path).extra
    assert extra["benchmark"] == "noise"
    assert stored(extra, "x") == computed
    again = load(tmp_path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    # A copy keeps them.
    load(tmp_path).save_pretrained(tmp_path / "copy", extra)
    assert stored(read(tmp_path / "copy").extra, "x") == computed


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(IfamError, match=r"mine has no thresholds.*`ifam thresholds --model mine`"):
        stored({}, "mine")
    with pytest.raises(IfamError, match="compute them again"):
        stored({"thresholds": {"quantiles": 3}}, "mine")
    with pytest.raises(IfamError, match=f"{tmp_path} is not the folder of a model"):
        store(Thresholds((), (), (), 0, {}), tmp_path)
    few = Thresholds((0.1, 0.2), ((1.0,), (2.0,)), (5,), 1, {})
    assert few.at(0.1 + 1e-12) == [1.0]
    with pytest.raises(IfamError, match=r"0\.05, only for 0\.1, 0\.2;.*--quantiles \[0\.05\]"):
        few.at(0.05)
    many = Thresholds(QUANTILES, ((1.0,),) * 99, (5,), 1, {})
    with pytest.raises(IfamError, match=r"0\.01, 0\.02, 0\.03, \.\.\., 0\.98, 0\.99"):
        many.at(0.005)


def test_the_file_is_whole_or_as_it_was(noise, tiny_model, tmp_path, monkeypatch):
    tiny_model.save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_text()
    computed = compute_thresholds(tiny_model, noise, quantiles=[0.5])

    def full(self, target):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(IfamError, match="no space left"):
        store(computed, tmp_path)
    assert (tmp_path / "config.json").read_text() == before
    assert len(list(tmp_path.iterdir())) == 2
    assert json.loads(before)["extra"] == {}


def test_models_without_parts_have_none(noise, tiny_model):
    with pytest.raises(IfamError, match="The method plain_vit has no parts, and therefore no thresholds"):
        compute_thresholds(PlainViT(tiny_model.config, pretrained=False), noise)
