"""The authors' checkpoints: every container, both layouts, what is inferred, and every kind of damage."""

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ifam.checkpoints.authors import PUBLISHED, from_official, to_official
from ifam.checkpoints.hub import convert, load, load_official
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.ifam import IFAM

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")

# timm's names of the backbones whose layout the authors use, and the input size of the test model.
NOREG, REG4, SCALED = (
    ("vit_tiny_patch16_224", 64),
    ("vit_small_patch14_reg4_dinov2", 56),
    ("vit_small_patch14_dinov2", 56),
)


@pytest.fixture(params=[NOREG, REG4, SCALED], ids=["noreg", "reg4", "layer scale"])
def model(request, make_model):
    """A tiny model of width 48 with 3 heads, which cannot be guessed."""
    return make_model(*request.param)


@pytest.fixture
def state(make_model):
    """The state dict of a model in the layout of the released checkpoints."""
    return to_official(make_model(*REG4))


def same_answers(model, expected):
    images = torch.randn(2, 3, *expected.image_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(model(images).logits, expected(images).logits)
    return True


def hub_folder(folder, state, **settings):
    """A folder like those that the authors pushed."""
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


# --- the published models --------------------------------------------------------------------------------


# Numbers of weights that the authors state.
STATED = {"cub-k8": 173_493_509, "imagenet-k1": 172_996_613, "metashift-k2": 171_465_989}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_the_size_of_its_recipe(name):
    short = name.partition("/ifam-")[2]
    recipe = yaml.safe_load((ROOT / "recipes" / f"{short.replace('-', '_')}.yaml").read_text())["model"]
    parts, classes = PUBLISHED[name]
    assert recipe["num_parts"] == parts
    # RAD-DINO has the shapes of this one.
    rad_dino = recipe["backbone"] == "microsoft/rad-dino"
    backbone = "vit_base_patch14_dinov2.lvd142m" if rad_dino else recipe["backbone"]
    with torch.device("meta"):
        model = IFAM(ModelConfig(**{**recipe, "backbone": backbone}, num_classes=classes), pretrained=False)
    weights = sum(tensor.numel() for tensor in to_official(model, "transformers" if rad_dino else "timm").values())
    assert weights == STATED.get(short, weights)
    assert f"| `{short}` | `recipes/{short.replace('-', '_')}.yaml` | {parts} | {classes:,} | {weights:,} |" in PAGE


# --- containers ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_snapshot_with_optimizer_state(model, tmp_path):
    optimizer = torch.optim.AdamW(model.parameters())
    model.predictor.head.weight.sum().backward()
    optimizer.step()
    snapshot = {
        "model_state": to_official(model),
        "optimizer_state": optimizer.state_dict(),
        "epoch": 89,
        "best": {"accuracy": 0.9, "name": "cub"},
    }
    torch.save(snapshot, tmp_path / "8_parts_cub_snapshot_best.pt")
    assert same_answers(load_official(tmp_path / "8_parts_cub_snapshot_best.pt", num_heads=3), model)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "_orig_mod.", "_orig_mod.module._orig_mod."])
def test_a_bare_state_dict_with_the_prefixes_of_wrappers(model, tmp_path, prefix):
    state = {prefix + name: tensor for name, tensor in to_official(model).items()}
    torch.save(state, tmp_path / "state.pt")
    assert same_answers(load_official(str(tmp_path / "state.pt"), num_heads=3), model)


@pytest.mark.slow
def test_an_averaged_model_and_a_mask_token(model, tmp_path):
    averaged = {"module.module." + name: tensor for name, tensor in to_official(model).items()}
    averaged |= {"n_averaged": torch.tensor(7), "module.module.stage_1.mask_token": torch.zeros(1, 48)}
    torch.save({"model_state": averaged}, tmp_path / "ema.pt")
    assert same_answers(load_official(tmp_path / "ema.pt", num_heads=3), model)


@pytest.mark.slow
def test_old_files_of_torch(model, tmp_path):
    torch.save({"model_state": to_official(model)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same_answers(load_official(tmp_path / "old.pt", num_heads=3), model)


@pytest.mark.slow
def test_a_safetensors_file(model, tmp_path):
    save_file(to_official(model), tmp_path / "weights.safetensors")
    assert same_answers(load_official(tmp_path / "weights.safetensors", num_heads=3), model)


@pytest.mark.slow
def test_a_hub_folder(model, tmp_path):
    settings = {
        "img_size": model.image_size[0],
        "num_landmarks": 3,
        "num_classes": 5,
        "gumbel_softmax": False,
    }
    settings |= {"num_heads": 3, "softmax_temperature": 0.5, "something": {"else": [1]}}
    loaded = load_official(hub_folder(tmp_path / "hub", to_official(model), **settings))
    assert not loaded.config.gumbel_noise
    assert loaded.config.temperature == 0.5
    expected = IFAM(replace(loaded.config, temperature=0.5), pretrained=False).eval()
    expected.load_state_dict(model.state_dict())
    assert same_answers(loaded, expected)


@pytest.mark.slow
def test_half_precision_becomes_single(state, tmp_path):
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.pt")
    loaded = load_official(tmp_path / "half.pt", num_heads=3)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_the_loaded_model_is_ready(state):
    """In evaluation mode, with parameters to train, and with its normalization in the configuration."""
    model = from_official(state, num_heads=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert not model.training
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())
    assert model.normalization == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    plain = from_official(state, num_heads=3).normalization
    assert plain == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# --- what is inferred ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_but_the_heads_is_inferred(model):
    config = from_official(to_official(model), num_heads=3).config
    assert (config.num_parts, config.num_classes) == (3, 5)
    assert config.image_size == model.image_size[0]
    rebuilt = IFAM(config, pretrained=False)
    rebuilt.load_state_dict(model.state_dict())
    assert same_answers(rebuilt.eval(), model)
    assert rebuilt.selector.backbone.vit.blocks[0].attn.num_heads == 3


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 1, 4])
@pytest.mark.parametrize("in_table", [True, False])
def test_registers_and_the_class_token_in_or_out_of_the_position_table(make_model, registers, in_table):
    kwargs = {"reg_tokens": registers, "no_embed_class": not in_table}
    model = make_model("vit_small_patch14_dinov2", 70, backbone_kwargs=kwargs, num_parts=1, num_classes=2)
    loaded = from_official(to_official(model), num_heads=3)
    assert loaded.config.backbone_kwargs["reg_tokens"] == registers
    assert loaded.config.backbone_kwargs["no_embed_class"] == (not in_table)
    assert same_answers(loaded, model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kwargs",
    [
        {"mlp_ratio": 2.7},
        {"qkv_bias": False},
        {"patch_size": 8},
        {"depth": 1},
        {"embed_dim": 128, "num_heads": 2},
    ],
    ids=str,
)
def test_other_shapes(make_model, kwargs):
    model = make_model("vit_tiny_patch16_224", 64, backbone_kwargs=kwargs)
    # Width 128 is a multiple of 64, and its heads are as in DINOv2.
    assert same_answers(from_official(to_official(model), num_heads=None if "num_heads" in kwargs else 3), model)


def test_a_gated_mlp_as_in_the_giant(make_model):
    model = make_model("vit_giant_patch14_dinov2", 56, backbone_kwargs={"mlp_ratio": 4.0})
    loaded = from_official(to_official(model), num_heads=3)
    assert loaded.config.backbone == "vit_giant_patch14_dinov2"
    assert same_answers(loaded, model)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["small_patch14_reg4", "base_patch14", "base_patch14_reg4", "large_patch14"])
def test_published_architectures_are_named(which):
    name = f"vit_{which}_dinov2.lvd142m"
    with torch.device("meta"):
        state = to_official(IFAM(ModelConfig(backbone=name, image_size=224, num_parts=8), pretrained=False))
    config = from_official(state).config
    assert (config.backbone, config.backbone_kwargs, config.image_size) == (name, {}, 224)


@pytest.mark.slow
def test_where_the_heads_come_from():
    """The argument first, then the architecture that is named, then the number that is stated, then width / 64."""
    name = "vit_small_patch14_dinov2.lvd142m"
    with torch.device("meta"):
        state = to_official(IFAM(ModelConfig(backbone=name, image_size=56), pretrained=False))
    assert from_official(state, num_heads=4).config.backbone_kwargs == {"num_heads": 4}
    assert from_official(state, {"num_heads": 4}).config.backbone_kwargs == {"num_heads": 4}
    assert from_official(state, {"num_heads": 2}, num_heads=4).config.backbone_kwargs == {"num_heads": 4}
    named = from_official(state, {"model_arch": name, "num_heads": 4}).config
    assert (named.backbone, named.backbone_kwargs) == (name, {})


def test_a_named_architecture_gives_the_heads():
    name = "vit_tiny_patch16_224.augreg_in21k"
    with torch.device("meta"):
        state = to_official(IFAM(ModelConfig(backbone=name, image_size=224), pretrained=False))
    assert from_official(state, {"model_arch": name}).config.backbone == name


def test_chest_x_rays_have_no_name_in_timm_but_its_shape():
    """RAD-DINO is a ViT-B/14 without registers, in the layout of transformers."""
    config = ModelConfig(backbone="vit_base_patch14_dinov2.lvd142m", image_size=518, num_parts=8)
    with torch.device("meta"):
        state = to_official(IFAM(config, pretrained=False), "transformers")
    settings = {"base_model_name_or_path": "microsoft/rad-dino", "img_size": 518, "num_landmarks": 8}
    inferred = from_official(state, settings).config
    assert (inferred.backbone, inferred.backbone_kwargs, inferred.image_size) == (config.backbone, {}, 518)


def test_unknown_heads_are_asked_for(state):
    with pytest.raises(IfamError, match=r"width 48 is not a multiple of 64; give it with num_heads="):
        from_official(state)
    with pytest.raises(IfamError, match=r"timm has no model 'vit_of_ours'; give it with num_heads="):
        from_official(state, {"model_arch": "vit_of_ours"})
    assert from_official(state, {"model_arch": "vit_of_ours"}, num_heads=3)


@pytest.mark.parametrize("heads", [5, -1])
def test_heads_that_do_not_divide_the_width(state, heads):
    with pytest.raises(IfamError, match=rf"num_heads is {heads}, but a divisor of the width 48"):
        from_official(state, num_heads=heads)


def test_a_table_that_fits_two_grids(make_model):
    """9 rows: 3 x 3 patches, or 2 x 2 with a class token and four registers."""
    kwargs = {"reg_tokens": 4, "no_embed_class": True}
    model = make_model("vit_small_patch14_dinov2", 42, backbone_kwargs=kwargs)
    with pytest.raises(IfamError, match=r"fits images of 28 or 42 pixels; give one with image_size="):
        from_official(to_official(model), num_heads=3)
    assert same_answers(from_official(to_official(model), num_heads=3, image_size=42), model)
    assert same_answers(from_official(to_official(model), {"img_size": 42}, num_heads=3), model)


def test_a_grid_that_is_not_square(state):
    for stage in ("stage_1", "stage_2"):
        state[f"{stage}.pos_embed"] = torch.zeros(1, 12, 48)
    with pytest.raises(IfamError, match=r"position table has 12 rows, but a square number"):
        from_official(state, num_heads=3)


# --- the way back ----------------------------------------------------------------------------------------


def test_the_transformers_layout_there_and_back(make_model):
    model = make_model(*SCALED)
    state = to_official(model, "transformers")
    assert "stage_2.encoder.layer.1.attention.attention.query.bias" in state
    assert not any("blocks" in name or "qkv" in name for name in state)
    assert same_answers(from_official(state, num_heads=3), model)


@pytest.mark.parametrize("layout", [NOREG, REG4])
def test_models_that_the_transformers_layout_has_no_names_for(make_model, layout):
    with pytest.raises(IfamError, match=r"only for a ViT without registers, with layer scale.*layout='timm'"):
        to_official(make_model(*layout), "transformers")


def test_keys_and_shapes_of_the_authors(make_model):
    state = to_official(make_model(*REG4))
    assert state["stage_1.fc_landmarks.weight"].shape == (4, 48, 1, 1)
    assert state["stage_1.modulation.weight"].shape == (48, 4)
    assert torch.equal(state["stage_2.prefix_attn_mask"], torch.ones(1, 5))
    assert {name.split(".")[0] for name in state} == {"stage_1", "stage_2"}


def test_a_copy_is_given(model):
    to_official(model)["stage_2.head.weight"].zero_()
    assert model.predictor.head.weight.any()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_convert_there_and_back(make_model, tmp_path, layout):
    model = make_model(*SCALED)
    model.save_pretrained(tmp_path / "ours")
    said = convert(tmp_path / "ours", tmp_path / "theirs", to="official", layout=layout)
    assert "3 parts, 5 classes" in said
    assert "official" in said
    expected = to_official(model, layout)
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    assert {name: t.shape for name, t in tensors.items()} == {name: t.shape for name, t in expected.items()}
    assert "ifam" in convert(str(tmp_path / "theirs"), str(tmp_path / "back"))
    assert same_answers(load(tmp_path / "back"), model)


# --- damage ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_every_missing_key_is_named(make_model, layout):
    state = to_official(make_model(*SCALED, backbone_kwargs={"depth": 1}), layout)
    for name in state:
        damaged = {other: tensor for other, tensor in state.items() if other != name}
        with pytest.raises(IfamError, match="does not fit the model") as error:
            from_official(damaged, num_heads=3)
        assert name in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_every_wrong_shape_is_named(make_model, layout):
    state = to_official(make_model(*SCALED), layout)
    # The second block has the names of the first.
    for name, tensor in ((name, tensor) for name, tensor in state.items() if ".1." not in name):
        damaged = {**state, name: torch.cat([tensor, tensor[..., :1]], dim=-1)}
        with pytest.raises(IfamError, match="does not fit the model") as error:
            from_official(damaged, num_heads=3)
        assert f"{name} (expected {list(tensor.shape)}, got {list(damaged[name].shape)})" in str(error.value)


def test_surplus_keys_are_counted_and_the_first_named(state):
    surplus = {f"stage_1.blocks.0.extra.{i}": torch.zeros(2) for i in range(5)}
    with pytest.raises(IfamError, match=r"5 keys are surplus: stage_1\.blocks\.0\.extra\.0, .* and 2 more; "):
        from_official({**state, **surplus}, num_heads=3)


def test_missing_keys_are_counted(state):
    half = {name: tensor for name, tensor in state.items() if not name.startswith("stage_2.blocks.1.")}
    missing = len(state) - len(half)
    with pytest.raises(IfamError, match=rf"{missing} keys are missing: stage_2\.blocks\.1\..* and {missing - 3} more"):
        from_official(half, num_heads=3)


def test_another_kind_of_number(state):
    state["stage_2.head.weight"] = state["stage_2.head.weight"].to(torch.int8)
    with pytest.raises(IfamError, match=r"cannot hold weights: stage_2\.head\.weight \(torch\.int8\)"):
        from_official(state, num_heads=3)


def test_a_key_with_and_without_a_prefix(state):
    state["module.stage_2.head.weight"] = state["stage_2.head.weight"]
    with pytest.raises(IfamError, match=r"holds 'stage_2\.head\.weight' twice"):
        from_official(state, num_heads=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_landmarks": 8}, "num_landmarks is 8, but 3 in the tensors"),
        ({"num_classes": "5"}, "num_classes is '5', but 5 in the tensors"),
        ({"img_size": 518}, "img_size is 518, but 56 in the tensors"),
        ({"img_size": [56, 70]}, r"img_size is \[56, 70\], but"),
        (
            {"model_arch": "vit_base_patch14_reg4_dinov2.lvd142m"},
            "embed_dim is 768, but 48 in the tensors",
        ),
    ],
)
def test_settings_that_contradict_the_tensors(state, tmp_path, settings, message):
    with pytest.raises(IfamError, match=f"config.json contradicts the tensors: .*{message}"):
        load_official(hub_folder(tmp_path / "hub", state, **settings), num_heads=3)


def test_settings_that_are_none(state, tmp_path):
    with pytest.raises(IfamError, match="softmax_temperature 'hot', but a number"):
        load_official(hub_folder(tmp_path / "hub", state, softmax_temperature="hot"), num_heads=3)
    (tmp_path / "hub" / "config.json").write_text("not json")
    with pytest.raises(IfamError, match="cannot be read as JSON"):
        load_official(tmp_path / "hub", num_heads=3)


class Trap:
    """Unpickling it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch", "old torch", "pickle"])
def test_code_is_refused_and_not_run(state, tmp_path, how):
    content = {"model_state": state, "extra": Trap(tmp_path / "sprung")}
    if how == "pickle":
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(content["extra"], protocol=2))
    else:
        torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(IfamError, match=r"contains? code.* is not run"):
        load_official(tmp_path / "evil.pt", num_heads=3)
    assert not (tmp_path / "sprung").exists()


def test_a_pickled_module_is_code(model, tmp_path):
    torch.save(model, tmp_path / "module.pt")
    with pytest.raises(IfamError, match=r"contains? code.* is not run"):
        load_official(tmp_path / "module.pt")


def test_scalars_of_numpy_are_no_code(state, tmp_path):
    """What trainers like to keep beside the weights."""
    torch.save({"model_state": state, "best": np.float64(0.5), "epoch": np.int64(3)}, tmp_path / "best.pt")
    assert load_official(tmp_path / "best.pt", num_heads=3)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello world" * 100, bytes(range(256)) * 8, b"\x80\x02}q\x00.", b"\x80\x02]q\x00."],
    ids=["empty", "text", "bytes", "empty dict", "list"],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_files_that_are_no_checkpoint(tmp_path, content, suffix):
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(content)
    with pytest.raises(IfamError, match=r"checkpoint|safetensors file"):
        load_official(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_truncated_files(state, tmp_path, share, suffix):
    path = tmp_path / f"file.{suffix}"
    torch.save(state, path) if suffix == "pt" else save_file(state, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(IfamError, match="is not a valid"):
        load_official(path, num_heads=3)


def test_archives_and_tensors_and_other_models(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(IfamError, match="is not a valid checkpoint"):
        load_official(tmp_path / "archive.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(IfamError, match="holds a Tensor, but a snapshot"):
        load_official(tmp_path / "tensor.pt")
    torch.save({"model_state": {"conv1.weight": torch.zeros(3)}, "epoch": 1}, tmp_path / "resnet.pt")
    with pytest.raises(IfamError, match=r"`stage_1\.\*` and `stage_2\.\*` are expected, got 'conv1\.weight'"):
        load_official(tmp_path / "resnet.pt")
    torch.save({"epoch": 1, "weights": {"a": torch.zeros(3)}}, tmp_path / "other.pt")
    with pytest.raises(IfamError, match="holds a int under 'epoch', but a tensor is expected"):
        load_official(tmp_path / "other.pt")


def test_models_of_our_own_are_pointed_to_their_loader(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(IfamError, match=r"written by ifam itself; `IFAM\.from_pretrained` reads it"):
        load_official(tmp_path)
    with pytest.raises(IfamError, match=r"`IFAM\.from_pretrained` reads this one"):
        load_official(tmp_path / "model.safetensors")


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(IfamError, match=r"has no model\.safetensors"):
        load_official(tmp_path)


def test_a_plain_pickle_with_code_is_refused_and_not_run(tmp_path):
    """Written by `pickle`, not by torch: other opcodes, the same answer, and no advice to run it."""
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return Path.touch, (marker,)

    for protocol in (2, 4, 5):
        path = tmp_path / f"trap{protocol}.pt"
        path.write_bytes(pickle.dumps({"model_state": Trap()}, protocol=protocol))
        with pytest.raises(IfamError, match="code") as caught:
            load_official(path)
        assert "weights_only" not in str(caught.value)
        assert str(caught.value).count("\n") == 0
    assert not marker.exists()
