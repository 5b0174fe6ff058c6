"""Tokens of a frozen selector, computed once: the same losses, and nothing stale, foreign or damaged is used."""

import logging
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from ifam.backbones.backbone import Backbone
from ifam.config import LossConfig, ModelConfig
from ifam.data import load_benchmark
from ifam.models import token_cache
from ifam.models.baselines import PlainViT
from ifam.models.crops import FrozenCrops, TrainedCrops
from ifam.models.ifam import IFAM
from ifam.models.token_cache import Place, TokenCache, backbone_key, cached_tokens
from ifam.training.fit import fit
from ifam.training.presets import TINY_TRAIN

FROZEN = replace(TINY_TRAIN, epochs=2, batch_size=8, selector_tuning="none")


def tiny(**changes):
    return IFAM(ModelConfig(backbone="ifam_tiny", num_parts=3, num_classes=2, **changes)).eval()


@pytest.fixture(scope="module")
def birds():
    return load_benchmark("pondbirds", options={"num_train": 24, "num_val": 8, "num_test": 8})


@pytest.fixture
def images():
    return torch.randn(6, 3, 80, 80, generator=torch.Generator().manual_seed(0))


def files(folder):
    return sorted(folder.glob("*/*.npy"))


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-6), ("bf16-mixed", 1e-3)])
def test_losses_are_those_without_a_cache(birds, tmp_path, precision, tolerance):
    histories = []
    for changes in ({"cache_tokens": False}, {}, {}):
        torch.manual_seed(0)
        model = tiny()
        config = replace(FROZEN, precision=precision, **changes)
        histories.append(fit(model, birds, config, folder=tmp_path / "run", tokens=tmp_path / "tokens").history)
    plain, fresh, reused = histories
    names = [name for name in plain[0] if name.startswith("train/") or name == "val/loss"]
    assert {"train/total", "train/equivariance", "train/classification"} <= {*names}
    for other in (fresh, reused):
        for before, after in zip(plain, other, strict=True):
            for name in names:
                assert after[name] == pytest.approx(before[name], rel=tolerance, abs=tolerance), name


def test_each_image_is_processed_once(birds, tmp_path, monkeypatch):
    model, seen = tiny(), []
    backbone = model.selector.backbone
    monkeypatch.setattr(backbone, "forward", counted(backbone.forward, seen))
    fit(model, birds, replace(FROZEN, epochs=3), folder=tmp_path / "run", tokens=tmp_path / "tokens")
    # Mirror images and transformed images are made of the same tokens; validation images are seen once, too.
    assert sum(seen) == 24 + 8
    assert model.selector.token_cache is None


@pytest.mark.parametrize("kind", [FrozenCrops, TrainedCrops, PlainViT])
def test_methods_without_a_selector_of_parts_are_trained_as_usual(birds, tmp_path, kind):
    config = replace(FROZEN, epochs=1, predictor_tuning="none")
    fit(kind(tiny().config), birds, config, folder=tmp_path / "run", tokens=tmp_path / "tokens")
    assert not files(tmp_path / "tokens")


def counted(forward, seen):
    def run(images, **kwargs):
        seen.append(len(images))
        return forward(images, **kwargs)

    return run


def test_later_runs_and_other_methods_compute_nothing(images, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        with cached_tokens(tiny().selector, Place(tmp_path, 6)) as cache:
            cache(images)
    assert (cache.computed, cache.found) == (0, 6)
    assert "were computed" not in caplog.text


def test_order_batch_and_repetition_do_not_matter(images, tmp_path):
    model = tiny()
    with torch.no_grad(), cached_tokens(model.selector, Place(tmp_path, 6)) as cache:
        twice = model.selector.patches(images[[3, 3, 0]])
        again = model.selector.patches(images.flip(0))
    assert torch.equal(twice[0], twice[1])
    assert torch.equal(again[[2, 5]], twice[[0, 2]])
    assert cache.computed == 6
    with torch.no_grad():
        torch.testing.assert_close(again.flip(0), model.selector.patches(images))


@pytest.mark.parametrize("room", [0, 6])
def test_the_first_use_has_the_values_that_are_kept(images, tmp_path, room):
    """Tokens so small that float16 rounds them: a training that finds them is the one that computed them."""
    backbone = tiny().selector.backbone
    backbone.vit.norm.weight.data.mul_(1e-5)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        computed = backbone(images, queries="patches").float()
        first = TokenCache(backbone, Place(tmp_path, room), half=True)(images)
        cache = TokenCache(backbone, Place(tmp_path, 6), half=True)
        kept, found = cache(images), cache(images)
    assert torch.equal(first, kept)
    assert torch.equal(kept, found)
    assert not torch.equal(computed, kept)


def test_a_batch_is_written_as_a_whole(images, tmp_path, monkeypatch):
    """Of a process that is killed, all images of a batch are known or none: the others are computed with the same."""
    cache = TokenCache(tiny().selector.backbone, Place(tmp_path, 6))
    monkeypatch.setattr(token_cache, "_BUFFER", 2 * cache.bytes_per_image)
    cache(images[:3])
    (file,) = files(tmp_path)
    assert len(np.load(file)) == 3


@pytest.mark.parametrize("change", ["weights", "size", "image", "precision", "normalization"])
def test_whatever_differs_is_computed_again(images, tmp_path, change, caplog):
    caplog.set_level(logging.INFO)
    with cached_tokens(tiny().selector, Place(tmp_path, 6)) as cache:
        cache(images)
    other = tiny(selector_image_size=64) if change == "size" else tiny()
    if change == "weights":
        next(other.selector.backbone.parameters()).data[0] += 1e-3
    if change == "normalization":
        other.selector.backbone.input_affine = ((2.0,) * 3, (0.0,) * 3)
    changed = images.clone()
    if change == "image":
        changed[2, 0, 0, 0] += 1e-4
    half = change == "precision"
    with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.no_grad():
        expected = other.selector.patches(changed)
        with cached_tokens(other.selector, Place(tmp_path, 6), half) as cache:
            tokens = cache(changed)
    assert cache.computed == (1 if change == "image" else 6)
    torch.testing.assert_close(tokens, expected, rtol=1e-3, atol=1e-3)
    if change in ("weights", "size", "normalization"):
        assert "are not used" in caplog.text
    if change == "image":
        assert "Tokens of 1 image with new or changed pixels were computed; 6 were known." in caplog.text


@pytest.mark.parametrize("kwargs", [{"num_heads": 1}, {"act_layer": "relu"}])
def test_the_same_weights_in_another_architecture_are_computed_again(images, tmp_path, kwargs):
    with cached_tokens(tiny().selector, Place(tmp_path, 6)) as cache:
        cache(images)
    other = tiny(backbone_kwargs=kwargs)
    with torch.no_grad(), cached_tokens(other.selector, Place(tmp_path, 6)) as cache:
        torch.testing.assert_close(cache(images), other.selector.patches(images))
    assert cache.computed == 6


def test_the_same_architecture_built_again_has_the_same_key(layout):
    name, size = layout
    keys = []
    for seed in range(2):
        torch.manual_seed(0)
        backbone = Backbone(name, image_size=size, pretrained=False, depth=1)
        backbone.train(seed == 0)
        backbone.vit.set_grad_checkpointing(seed == 0)
        keys.append(backbone_key(backbone))
    assert keys[0] == keys[1]


def test_a_file_that_is_cut_off_while_it_is_used_is_made_again(images, tmp_path, caplog):
    with cached_tokens(tiny().selector, Place(tmp_path, 6)) as cache:
        expected = cache(images)
        cache.flush()
        os.truncate(files(tmp_path)[0], 200)
        assert (cache(images) == expected).all()
    assert cache.computed == 12
    assert "are damaged" in caplog.text


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut off":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = b""
    elif how == "other content":
        content = b"tokens"
    elif how == "header":
        content[content.index(b"'")] ^= 1
    elif how == "shape":
        content = content.replace(b"(6,), }" + b" " * 19, b"(%d,), }" % (10**20 - 1))
    elif how == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        return
    else:
        content[-5] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut off", "empty", "other content", "pickle", "header", "shape", "a flipped bit"])
def test_damaged_files_are_made_again(images, tmp_path, caplog, how):
    model = tiny()
    with cached_tokens(model.selector, Place(tmp_path, 6)) as cache:
        before = cache(images)
    damage(files(tmp_path)[0], how)
    for computed in ((1 if how == "a flipped bit" else 6), 0):
        with cached_tokens(model.selector, Place(tmp_path, 6)) as cache:
            after = cache(images)
        assert cache.computed == computed
        torch.testing.assert_close(after, before)
    assert "computed again" in caplog.text


@pytest.mark.parametrize("fails", ["reading", "removal"])
def test_files_that_cannot_be_read_or_removed_cost_nothing_but_time(images, tmp_path, caplog, monkeypatch, fails):
    model = tiny()
    with cached_tokens(model.selector, Place(tmp_path, 6)) as cache:
        before = cache(images)
    (file,) = files(tmp_path)
    if fails == "removal":
        damage(file, "cut off")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(*((np, "load") if fails == "reading" else (type(file), "unlink")), refuse)
    cache = TokenCache(model.selector.backbone, Place(tmp_path, 6))
    torch.testing.assert_close(cache(images), before)
    assert cache.computed == 6
    assert "computed again" in caplog.text
    assert file.is_file()


def test_a_disk_that_is_too_small_is_said_before(images, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(token_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**6})())
    with cached_tokens(tiny().selector, Place(tmp_path, 1000)) as cache:
        assert cache is None
    assert "computed again in each epoch: " in caplog.text
    assert "but 0 MB are free besides 1,074 MB" in caplog.text
    assert not files(tmp_path)


def test_on_a_full_disk_known_tokens_are_used_and_none_are_added(images, tmp_path, monkeypatch, caplog):
    model = tiny()
    with cached_tokens(model.selector, Place(tmp_path, 6)) as cache:
        cache(images[:4])
    before = files(tmp_path)
    monkeypatch.setattr(token_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**6})())
    # No more images than are known, but others.
    with cached_tokens(model.selector, Place(tmp_path, 4)) as cache:
        cache(images[2:])
    assert (cache.computed, cache.found) == (2, 2)
    assert files(tmp_path) == before
    assert "computed again in each epoch, but for those that are known: " in caplog.text


def test_a_disk_that_fills_up_costs_nothing_but_time(images, tmp_path, caplog):
    model, blocked = tiny(), tmp_path / "blocked"
    with torch.no_grad(), cached_tokens(model.selector, Place(blocked, 6)) as cache:
        blocked.write_text("a file where the folder should be")
        tokens = model.selector.patches(images)
    torch.testing.assert_close(tokens, model.selector.patches(images))
    assert cache.computed == 6
    assert "can no longer be kept" in caplog.text


def test_no_more_tokens_are_kept_than_there_is_room_for(images, tmp_path):
    with cached_tokens(tiny().selector, Place(tmp_path, 4)) as cache:
        cache(images)
        cache(images)
    assert cache.computed == 6 + 2
    (file,) = files(tmp_path)
    assert len(np.load(file)) == 4


def test_tokens_that_are_written_leave_the_memory(images, tmp_path):
    cache = TokenCache(tiny().selector.backbone, Place(tmp_path, 6))
    tokens = cache(images)
    cache.flush()
    assert len(cache.records) == 6
    assert all(isinstance(record.base, np.memmap) for record in cache.records.values())
    assert torch.equal(cache(images), tokens)


def test_two_runs_share_a_folder(images, tmp_path):
    model = tiny()
    first, second = (TokenCache(model.selector.backbone, Place(tmp_path, 6)) for _ in range(2))
    a = first(images[:4])
    first.flush()
    b = second(images)
    assert second.found == 4
    second.flush()
    assert torch.equal(b[:4], a)
    assert len(files(tmp_path)) == 2
    third = TokenCache(model.selector.backbone, Place(tmp_path, 6))
    assert torch.equal(third(images), b)
    assert third.computed == 0


def test_random_backbones_are_not_cached(tmp_path):
    model = tiny(backbone_kwargs={"drop_path_rate": 0.5})
    with cached_tokens(model.selector, Place(tmp_path, 6)) as cache:
        assert cache is None


def test_values_that_half_precision_cannot_hold_are_computed_each_time(images, tmp_path):
    model = tiny()
    with torch.no_grad():
        model.selector.backbone.vit.norm.weight.mul_(1e6)
        expected = model.selector.patches(images)
        with cached_tokens(model.selector, Place(tmp_path, 6), half=True) as cache:
            assert torch.isfinite(cache(images)).all()
            torch.testing.assert_close(cache(images), expected)
    assert not files(tmp_path)


def test_crops_are_not_cached(birds, tmp_path, caplog):
    config = replace(FROZEN, epochs=1, crop=0.5)
    fit(tiny(), birds, config, LossConfig(), tmp_path / "run", tokens=tmp_path / "tokens")
    assert "computed again in each epoch" in caplog.text
    assert not files(tmp_path / "tokens")
