"""Backbones from folders in the layout of `transformers`: RAD-DINO and its kind, made up here in miniature."""

import json
import re
from dataclasses import asdict

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from ifam.backbones.backbone import Backbone
from ifam.backbones.vit import WeightsUnavailable
from ifam.checkpoints import hub
from ifam.checkpoints.authors import to_official
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.baselines import PlainViT
from ifam.models.ifam import IFAM
from parity import reference as numbers

GREY = {"image_mean": [0.53, 0.53, 0.53], "image_std": [0.26, 0.26, 0.26], "crop_size": {"height": 56, "width": 56}}
SETTINGS = {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 56,
    "patch_size": 14,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
REGISTERS = {"model_type": "dinov2_with_registers", "num_register_tokens": 4}
# What `transformers` calls the tensors of timm's block.
NAMES = {
    "norm1.": "norm1.",
    "norm2.": "norm2.",
    "attn.proj.": "attention.output.dense.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}


def write(folder, settings, tensors, preprocessor=GREY):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    return folder


def reference(name="vit_small_patch14_dinov2", **kwargs):
    """A tiny transformer of timm with random weights."""
    size = {"img_size": 56, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    vit = timm.create_model(name, **{**size, **kwargs})
    with torch.no_grad():
        for weight in vit.parameters():
            weight.normal_(std=0.2)
    return vit.eval()


def theirs(vit, swiglu=False):
    """The weights of a transformer of timm under the names of `transformers`, written down by hand."""
    tensors = {"embeddings.mask_token": torch.randn(1, 48)}
    for name, tensor in vit.state_dict().items():
        if block := re.match(r"blocks\.(\d+)\.(.*)", name):
            layer, rest = f"encoder.layer.{block[1]}.", block[2]
            if rest.startswith("attn.qkv."):
                kind = rest.rsplit(".", 1)[-1]
                for i, part in enumerate(("query", "key", "value")):
                    tensors[f"{layer}attention.attention.{part}.{kind}"] = tensor[48 * i : 48 * (i + 1)]
                continue
            old, new = next((old, new) for old, new in NAMES.items() if rest.startswith(old))
            if swiglu:
                new = new.replace("fc1", "weights_in").replace("fc2", "weights_out")
            tensors[layer + rest.replace(old, new)] = tensor
        elif name.startswith("patch_embed.proj."):
            tensors[name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")] = tensor
        elif name.startswith("norm."):
            tensors[name.replace("norm", "layernorm")] = tensor
    if vit.reg_token is None:
        return {**tensors, "embeddings.cls_token": vit.cls_token, "embeddings.position_embeddings": vit.pos_embed}
    # There the class token has a row in the position table; timm's own token is the sum of both.
    row = torch.randn(1, 1, 48)
    return {
        **tensors,
        "embeddings.cls_token": vit.cls_token - row,
        "embeddings.register_tokens": vit.reg_token,
        "embeddings.position_embeddings": torch.cat([row, vit.pos_embed], dim=1),
    }


@pytest.fixture
def folder(tmp_path):
    """A miniature of RAD-DINO."""
    return write(tmp_path / "rad-dino", SETTINGS, theirs(reference()))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "registers", "gated MLP", "no bias", "with a classifier"])
def test_the_transformer_is_that_of_timm_after_renaming(tmp_path, kind):
    settings, vit = dict(SETTINGS), reference()
    tensors = theirs(vit)
    if kind == "registers":
        settings, vit = {**SETTINGS, **REGISTERS}, reference("vit_small_patch14_reg4_dinov2")
        tensors = {f"dinov2_with_registers.{name}": tensor for name, tensor in theirs(vit).items()}
    elif kind == "gated MLP":
        # Two thirds of 4 x 48, in steps of eight, twice.
        settings, vit = {**SETTINGS, "use_swiglu_ffn": True}, reference("vit_giant_patch14_dinov2", mlp_ratio=256 / 48)
        tensors = theirs(vit, swiglu=True)
    elif kind == "no bias":
        settings, vit = {**SETTINGS, "qkv_bias": False}, reference(qkv_bias=False)
        tensors = theirs(vit)
    elif kind == "with a classifier":
        tensors = {f"dinov2.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {"classifier.weight": torch.randn(3, 96), "classifier.bias": torch.randn(3)}
    backbone = Backbone(str(write(tmp_path / "model", settings, tensors)))
    images = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(backbone(images), vit.forward_features(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_tokens_are_those_of_the_library_itself(tmp_path):
    """Numbers that `transformers` gave, from the stages of the parity fixtures."""
    weights, (data, _) = numbers.weights("tiny_hf"), numbers.read("tiny_hf")
    heads = ("stage_1.fc", "stage_1.modulation")
    tensors = {
        name.removeprefix("stage_1."): tensor
        for name, tensor in weights.items()
        if name.startswith("stage_1.") and not name.startswith(heads)
    }
    settings = {**SETTINGS, "hidden_size": 64, "num_attention_heads": 2}
    backbone = Backbone(str(write(tmp_path / "model", settings, tensors)))
    tokens = backbone(numbers.images("tiny_hf"))
    torch.testing.assert_close(tokens, data["eval.stage1_tokens_after_norm"], rtol=0, atol=1.5 * numbers.PARITY)


@torch.no_grad()
def test_size_and_normalization_are_the_folders(folder):
    backbone = Backbone(str(folder))
    assert backbone.image_size == (56, 56)
    assert backbone.normalization == ((0.53,) * 3, (0.26,) * 3)
    (folder / "preprocessor_config.json").unlink()
    assert Backbone(str(folder)).normalization[0] == (0.485, 0.456, 0.406)


@torch.no_grad()
def test_positions_are_resampled_for_other_sizes(folder):
    table = load_file(folder / "model.safetensors")["embeddings.position_embeddings"]
    backbone = Backbone(str(folder), image_size=(84, 42))
    assert backbone.grid == (6, 3)
    patches = table[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(patches, size=(6, 3), mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(backbone.vit.pos_embed[:, 1:], expected, rtol=0, atol=1e-5)
    assert torch.equal(backbone.vit.pos_embed[:, :1], table[:, :1])


def test_random_weights_need_the_settings_alone(folder):
    (folder / "model.safetensors").unlink()
    assert Backbone(str(folder), pretrained=False).width == 48
    with pytest.raises(IfamError, match=r"has no model.safetensors; give a folder with the weights"):
        Backbone(str(folder))


PAIRS = {
    "both": {},
    "the selector": {"predictor_backbone": "ifam_tiny", "predictor_kwargs": {"patch_size": 14}, "image_size": 56},
    "the selector, arguments shared": {"predictor_backbone": "vit_tiny_patch16_224", "image_size": 112},
    "the predictor": {"backbone": "ifam_tiny", "predictor_backbone": "folder", "image_size": 56},
    "both, the predictor at random depth": {"predictor_kwargs": {"drop_path_rate": 0.1}},
}


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("fields", PAIRS.values(), ids=PAIRS)
def test_a_saved_model_needs_no_folder(folder, tmp_path, fields):
    """Its configuration names timm's transformer, with what the folder said as arguments."""
    named = {name: str(folder) if value == "folder" else value for name, value in fields.items()}
    pretrained = "vit_tiny_patch16_224" not in named.values()
    model = IFAM(ModelConfig(**{"backbone": str(folder), **named}), pretrained=pretrained).eval()
    assert str(folder) not in json.dumps(asdict(model.config))
    model.save_pretrained(tmp_path / "saved")
    for file in folder.iterdir():
        file.unlink()
    again = IFAM.from_pretrained(tmp_path / "saved")
    assert again.normalization == model.normalization
    assert again.predictor.backbone.input_affine == model.predictor.backbone.input_affine
    images = torch.randn(2, 3, *model.image_size)
    assert torch.equal(again(images).logits, model(images).logits)
    assert again.config == model.config


@torch.no_grad()
def test_a_plain_transformer_of_the_folder_too(folder, tmp_path):
    config = ModelConfig("ifam_tiny", predictor_backbone=str(folder))
    plain = PlainViT(config).eval()
    assert plain.image_size == (56, 56)
    plain.save_pretrained(tmp_path / "saved")
    images = torch.randn(2, 3, 56, 56)
    assert torch.equal(hub.load(tmp_path / "saved")(images).logits, plain(images).logits)


def test_the_authors_layout_is_written_from_such_a_model(folder):
    official = to_official(IFAM(ModelConfig(str(folder))), "transformers")
    weights = load_file(folder / "model.safetensors")
    assert {name.removeprefix("stage_1.") for name in official if name.startswith("stage_1.e")} == {
        name for name in weights if name.startswith("e") and not name.endswith("mask_token")
    }
    for name in ("embeddings.cls_token", "encoder.layer.1.attention.attention.key.weight"):
        assert torch.equal(official[f"stage_2.{name}"], weights[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vit"}, r"model of type 'vit', but .* dinov2 and dinov2_with_registers .*give one of those"),
        ({"model_type": None, "architecture": "vit_base"}, r"give the name 'vit_base'"),
        ({"hidden_act": "relu"}, r"has hidden_act 'relu', but timm's DINOv2 needs"),
        ({"layer_norm_eps": 1e-5}, r"has layer_norm_eps 1e-05"),
        ({"hidden_size": None}, r"does not describe a Dinov2: a number in config.json is missing or invalid"),
        ({"hidden_size": 0}, r"does not describe a Dinov2: a number in config.json is missing or invalid"),
        ({"patch_size": 0}, r"does not describe a Dinov2: a number in config.json is missing or invalid"),
        ({"num_hidden_layers": 3}, r"\d+ keys are missing: blocks.2.*every tensor of the Dinov2 that config.json"),
        ({"hidden_size": 96}, r"of the wrong shape: cls_token \(expected \[1, 1, 96\], got \[1, 1, 48\]\)"),
        ({"num_attention_heads": 5}, r"num_heads is 5, but a divisor of the width 48"),
    ],
    ids=str,
)
def test_folders_that_hold_something_else(folder, changes, message):
    (folder / "config.json").write_text(json.dumps({**SETTINGS, **changes}))
    with pytest.raises(IfamError, match=message):
        Backbone(str(folder))


def test_folders_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(IfamError, match=r"There is no folder /nowhere/at/all; give an existing one, an id"):
        Backbone("/nowhere/at/all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(IfamError, match=r"empty has no config.json; give the folder of a Dinov2"):
        Backbone(str(tmp_path / "empty"))
    for name in ("microsoft/rad-dino-of-nobody", "hf-hub:microsoft/rad-dino-of-nobody"):
        with pytest.raises(WeightsUnavailable, match=r"no model of this id could be .*check the name and the network"):
            Backbone(name)
