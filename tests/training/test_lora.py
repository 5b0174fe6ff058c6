"""Low-rank adapters: what they train, that every way of computing goes through them, and what is left of them."""

import copy
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from ifam.backbones.vit import TINY
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import load_benchmark
from ifam.errors import IfamError
from ifam.models.ifam import IFAM
from ifam.models.registry import build
from ifam.training.fit import check, fit, seed_everything
from ifam.training.lora import adapters
from ifam.training.optimization import parameter_groups
from ifam.training.resume import Checkpoints

TUNED = {"selector_tuning": "lora", "predictor_tuning": "lora", "lora_rank": 2}
TRAIN = TrainConfig(epochs=1, batch_size=8, base_lr=1e-3, accelerator="cpu", **TUNED)


@pytest.fixture(scope="module")
def birds():
    return load_benchmark("pondbirds", options={"num_train": 16, "num_val": 8, "num_test": 2})


def make():
    seed_everything(0)
    return build("ifam", ModelConfig(backbone=TINY, image_size=40, num_parts=2))


def moved(module):
    """Random values in the adapters, whose second matrix begins at zero."""
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    return module


def test_without_peft_a_sentence_names_the_extra(birds, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(IfamError, match=r"pip install 'ifam\[lora\]'"):
        check(birds, TRAIN)
    check(birds, replace(TRAIN, selector_tuning="all", predictor_tuning="none"))


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
@pytest.mark.parametrize("gradient", ["visible", "full"])
def test_every_way_of_computing_goes_through_the_adapters(make_model, backbone, gradient):
    """Also where a block would read the weights: for the queries of some tokens alone, and in Eva's attention."""
    pytest.importorskip("peft")
    size = 56 if "14" in backbone else 64
    model = make_model(backbone, image_size=size, mask_gradient=gradient, part_dropout=0.0, mask_part_dropout=0.0)
    model.requires_grad_(False)
    images = torch.randn(3, 3, size, size)
    before = model(images).logits
    answers, gradients = {}, {}
    with adapters(model, TRAIN):
        moved(model)
        for execution in ("dense", "padded", "packed"):
            model.predictor.execution = execution
            out = model(images)
            answers[execution] = out.logits
            gradients[execution] = torch.autograd.grad(
                out.logits.square().sum() + out.selector_logits.square().sum(),
                [parameter for name, parameter in model.named_parameters() if ".lora_" in name],
            )
    for execution in ("padded", "packed"):
        torch.testing.assert_close(answers[execution], answers["dense"], rtol=1e-4, atol=1e-5)
        for one, other in zip(gradients[execution], gradients["dense"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert all(bool(one.abs().sum() > 0) for one in gradients["dense"])
    # Merged, they are in the weights.
    assert not any("lora" in name for name in model.state_dict())
    torch.testing.assert_close(model(images).logits, answers["dense"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, answers["dense"], atol=1e-3)


def test_only_adapters_and_tokens_are_trained():
    pytest.importorskip("peft")
    model = make()
    with adapters(model, TRAIN):
        groups = {group.name: group for group in parameter_groups(model, TRAIN)}
    adapted = groups["predictor backbone adapters"]
    assert (adapted.lr_scale, adapted.weight_decay, adapted.trainable) == (10.0, True, True)
    # Two matrices in each of the four linear layers of a block.
    assert len(adapted.parameters) == 8 * len(model.predictor.backbone.vit.blocks)
    assert not groups["predictor backbone"].trainable
    assert groups["predictor backbone tokens"].trainable


@pytest.mark.slow
def test_a_trained_model_is_an_ordinary_one(birds, tmp_path):
    pytest.importorskip("peft")
    model = make()
    before = copy.deepcopy(model.state_dict())
    fit(model, birds, TRAIN, folder=tmp_path / "run")
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name in ("selector", "predictor"):
        key = f"{name}.backbone.vit.blocks.0.attn.qkv.weight"
        assert torch.linalg.matrix_rank(after[key] - before[key], rtol=1e-3) in (1, 2)
        norm = f"{name}.backbone.vit.norm.weight"
        assert torch.equal(after[norm], before[norm])
    model.save_pretrained(tmp_path / "saved")
    images = torch.rand(2, 3, 40, 40)
    loaded = IFAM.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded(images).logits, model(images).logits)
    assert [type(module) for module in model.modules()] == [type(module) for module in make().modules()]


class StoppedError(Exception):
    """Ends a training."""


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on(birds, tmp_path, monkeypatch, one_thread):
    pytest.importorskip("peft")
    config = replace(TRAIN, epochs=2)
    whole = make()
    fit(whole, birds, config, LossConfig(), folder=tmp_path / "whole")
    save = Checkpoints.save

    def stopping(self, trainer, name):
        save(self, trainer, name)
        if name == "last.ckpt":
            raise StoppedError

    stopped = make()
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stopping)
        with pytest.raises(StoppedError):
            fit(stopped, birds, config, LossConfig(), folder=tmp_path / "part")
    # An error leaves no adapters either.
    assert stopped.state_dict().keys() == whole.state_dict().keys()
    resumed = make()
    fit(resumed, birds, config, LossConfig(), folder=tmp_path / "part", resume=True)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
