"""Saving, loading and pushing."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import ifam
from hub_server import SHA
from ifam import model_files
from ifam.checkpoints import hub
from ifam.checkpoints.authors import to_official
from ifam.errors import IfamError
from ifam.models.ifam import IFAM

TINY_VIT = {"depth": 2, "embed_dim": 48, "num_heads": 3}  # of `tiny_model`


def rewrite(folder, **changes):
    """Change fields of a saved configuration; None removes one."""
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))


@pytest.fixture
def saved(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model", extra={"thresholds": [0.5, 1.0, 2.0]})
    return tmp_path / "model"


# --- save and load -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_saved_model_gives_bit_equal_answers(make_model, layout, tmp_path):
    model = make_model(*layout, class_names=tuple("abcde"), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    images = torch.randn(2, 3, *model.image_size)
    model.save_pretrained(str(tmp_path / "a" / "b"))
    loaded = IFAM.from_pretrained(tmp_path / "a" / "b")
    assert loaded.config == model.config
    assert not loaded.training
    assert all(p.device.type == "cpu" and p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded(images).logits, model(images).logits)


def test_what_a_folder_holds(saved, tiny_model):
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors"}
    settings = json.loads((saved / "config.json").read_text())
    assert settings["ifam_version"] == ifam.__version__
    assert settings["method"] == "ifam"
    assert set(settings) == {"method", *asdict(tiny_model.config), "preprocessing", "ifam_version", "extra"}
    assert set(load_file(saved / "model.safetensors")) == set(tiny_model.state_dict())


def test_preprocessing_is_saved_and_compared_with_what_this_version_does(saved, tiny_model):
    known = json.loads((saved / "config.json").read_text())["preprocessing"]
    assert known == tiny_model.preprocessing
    mean, std = (list(values) for values in tiny_model.normalization)
    way = {"resize": "cover", "crop": "center", "interpolation": "bilinear", "antialias": True}
    assert known == {"size": [64, 64], **way, "mean": mean, "std": std}
    for name, other in {"interpolation": "bicubic", "mean": [0.0, 0.0, 0.0], "size": [32, 32], "gamma": 2.2}.items():
        rewrite(saved, preprocessing={**known, name: other})
        with pytest.raises(IfamError, match=rf"config\.json states preprocessing with {name} = .*answers would differ"):
            hub.load(saved)
    rewrite(saved, preprocessing=[7])
    with pytest.raises(IfamError, match=r"\[7\] under `preprocessing`"):
        hub.load(saved)
    # Models from before it was saved.
    rewrite(saved, preprocessing=...)
    hub.load(saved)


def test_extra_travels_with_the_model(saved, tiny_model, tmp_path):
    read = hub.read(saved)
    config, extra = read.config, read.extra
    assert (config, extra) == (tiny_model.config, {"thresholds": [0.5, 1.0, 2.0]})
    hub.convert(saved, tmp_path / "copy")
    assert hub.read(tmp_path / "copy").extra == extra
    with pytest.raises(IfamError, match="choose another folder, or replace it with --overwrite"):
        hub.convert(saved, tmp_path / "copy")


def test_saving_again_replaces_the_model(saved, make_model):
    other = make_model(num_classes=7)
    other.save_pretrained(saved)
    assert IFAM.from_pretrained(saved).config.num_classes == 7


def test_loading_leaves_the_random_state_alone(saved):
    before = torch.get_rng_state()
    IFAM.from_pretrained(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_stays(tiny_model, tmp_path):
    tiny_model.bfloat16().save_pretrained(tmp_path)
    assert IFAM.from_pretrained(tmp_path).predictor.head.weight.dtype == torch.bfloat16


# --- failures leave nothing --------------------------------------------------------------------------------


def test_extra_that_is_nothing_for_json(tiny_model, tmp_path):
    with pytest.raises(IfamError, match=r"cannot be written as JSON .*set.*numbers, strings"):
        tiny_model.save_pretrained(tmp_path / "new", extra={"a": {1, 2}})
    assert not (tmp_path / "new").exists()


def test_a_failure_leaves_no_new_folder_and_no_half_of_a_file(tiny_model, tmp_path, monkeypatch):
    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_files, "save_file", fail)
    with pytest.raises(IfamError, match=r"could not be written .*No space left.*another folder"):
        tiny_model.save_pretrained(tmp_path / "new" / "er")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_older_model(saved, make_model, monkeypatch):
    expected = IFAM.from_pretrained(saved)

    def fail(tensors, path, metadata):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_files, "save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        make_model(num_classes=7).save_pretrained(saved)
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors"}
    assert IFAM.from_pretrained(saved).config == expected.config


def test_at_no_moment_are_the_files_of_two_models_side_by_side(saved, make_model, monkeypatch):
    replace = Path.replace

    def fail_once_the_weights_are_there(self, target):
        replace(self, target)
        if target.name == "model.safetensors":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail_once_the_weights_are_there)
    with pytest.raises(IfamError, match="could not be written"):
        make_model(num_classes=7).save_pretrained(saved)
    # No model is better than the settings of the one before with the weights of the one after.
    assert {path.name for path in saved.iterdir()} == {"model.safetensors"}


def test_a_file_in_the_place_of_the_folder(tiny_model, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(IfamError, match="could not be written"):
        tiny_model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


# --- damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(IfamError, match=rf"has no {name}; give"):
        hub.load(saved)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00"])
def test_a_configuration_that_is_none(saved, content):
    (saved / "config.json").write_text(content)
    with pytest.raises(IfamError, match=r"config\.json (cannot be read as JSON|contains a list)"):
        hub.load(saved)


def test_unknown_fields(saved):
    rewrite(saved, colour="red", shape="round")
    with pytest.raises(IfamError, match=r"2 unknown fields \('colour', 'shape'\).*written by ifam"):
        hub.load(saved)


def test_a_configuration_of_something_else(saved):
    rewrite(saved, ifam_version=...)
    with pytest.raises(IfamError, match=r"not written by ifam.*load_official"):
        hub.load(saved)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_parts": 0}, "num_parts is 0"),
        ({"num_parts": "three"}, "does not describe a model"),
        ({"backbone": "vit_enormous"}, "There is no backbone 'vit_enormous'"),
        ({"image_size": 65}, "65"),
        (
            {"num_classes": 6},
            r"wrong shape: selector\.classifier\.weight \(expected \[6, 48\], got \[5, 48\]\)",
        ),
    ],
)
def test_a_configuration_that_fits_no_model_or_not_the_weights(saved, changes, message):
    rewrite(saved, **changes)
    with pytest.raises(IfamError, match=message):
        hub.load(saved)


STRANGE = {
    "a model of the hub": {"backbone": "hf-hub:owner/model"},
    "an id of the hub": {"backbone": "owner/model"},
    "a tag that is a place": {"backbone": "vit_tiny_patch16_224.hf-hub:owner/model"},
    "a folder": {"backbone": "dinov2"},
    "a folder by timm's prefix": {"predictor_backbone": "local-dir:dinov2"},
    "a checkpoint": {"backbone_kwargs": {**TINY_VIT, "checkpoint_path": "evil.pt"}},
    "a checkpoint of the predictor": {"predictor_kwargs": {**TINY_VIT, "checkpoint_path": "evil.pt"}},
    "a cache": {"backbone_kwargs": {**TINY_VIT, "cache_dir": "cache"}},
    "weights": {"backbone_kwargs": {**TINY_VIT, "pretrained_cfg_overlay": {"file": "evil.pt"}}},
    "weights of the hub": {"backbone_kwargs": {**TINY_VIT, "pretrained_cfg": {"hf_hub_id": "owner/model"}}},
    "a wrapper": {"backbone_kwargs": {**TINY_VIT, "features_only": True}},
    "an object": {"backbone_kwargs": {**TINY_VIT, "block_fn": {"class_path": "os.system", "init_args": {}}}},
    "a function": {"backbone_kwargs": {**TINY_VIT, "block_fn": "os.system"}},
    "a size that fills the memory": {"image_size": 10**9},
}


@pytest.mark.parametrize("what", STRANGE)
def test_settings_of_a_stranger_name_nothing_that_is_opened_downloaded_or_called(saved, stub, monkeypatch, what):
    (saved.parent / "dinov2").mkdir()
    (saved.parent / "dinov2" / "config.json").write_text('{"model_type": "dinov2"}')
    monkeypatch.chdir(saved.parent)
    rewrite(saved, **STRANGE[what])
    # A word in the place of a class cannot be called; the rest is refused before anything is built.
    words = rf"^({saved / 'config.json'} (cannot be used: There is|gives the|does not)|timm cannot build the).*[.]$"
    with pytest.raises(IfamError, match=words):
        hub.load(saved)
    assert stub.asked == []


def test_where_weights_came_from_is_not_saved_with_the_model(make_model, tmp_path):
    """Loading would read them again, or fail where they are gone."""
    source = make_model()
    torch.save(source.selector.backbone.vit.state_dict(), tmp_path / "weights.pt")
    overlay = {"mean": [0.1, 0.2, 0.3], "file": str(tmp_path / "weights.pt")}
    kwargs = {"checkpoint_path": str(tmp_path / "weights.pt"), "pretrained_cfg_overlay": overlay}
    model = make_model(backbone_kwargs=kwargs)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "weights.pt").unlink()
    loaded = hub.load(tmp_path / "model")
    assert loaded.config.backbone_kwargs == {**TINY_VIT, "pretrained_cfg_overlay": {"mean": [0.1, 0.2, 0.3]}}
    assert loaded.normalization == model.normalization


def test_missing_and_surplus_weights_are_counted_and_the_first_named(saved):
    weights = load_file(saved / "model.safetensors")
    blocks = [name for name in weights if ".blocks.1." in name]
    kept = {name: tensor for name, tensor in weights.items() if name not in blocks}
    save_file({**kept, "stranger": torch.zeros(1)}, saved / "model.safetensors")
    more = len(blocks) - 3
    with pytest.raises(
        IfamError,
        match=rf"{len(blocks)} keys are missing: .*blocks\.1.* and {more} more; 1 key is surplus: stranger",
    ):
        hub.load(saved)


@pytest.mark.parametrize("size", [0, 4, 1000])
def test_truncated_weights(saved, size):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(IfamError, match="not a valid safetensors file"):
        hub.load(saved)


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "/no/where/else", "model.pt", "a/model.safetensors"])
def test_a_source_that_does_not_exist(source):
    with pytest.raises(IfamError, match="no file or folder"):
        hub.load(source)


def test_a_file_for_a_folder(saved):
    with pytest.raises(IfamError, match=r"is a file, but a folder.*load_official"):
        hub.load(saved / "model.safetensors")


# --- the hub -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_push_and_load(stub, tiny_model, images):
    url = tiny_model.push_to_hub("someone/birds", extra={"note": "hello"}, card="# Birds")
    assert url.endswith(f"/someone/birds/commit/{SHA}")
    assert {path.name for path in (stub.root / "someone/birds").iterdir()} >= {
        "config.json",
        "model.safetensors",
    }
    assert (stub.root / "someone/birds/README.md").read_text() == "# Birds"
    loaded = IFAM.from_pretrained("someone/birds")
    assert torch.equal(loaded(images).logits, tiny_model(images).logits)
    assert hub.read("someone/birds").extra == {"note": "hello"}


def test_a_push_that_is_refused(stub, tiny_model):
    with pytest.raises(IfamError, match=r"could not be pushed to 'someone/forbidden'.*check the id"):
        tiny_model.push_to_hub("someone/forbidden")


def test_an_official_model_on_the_hub(stub, tiny_model, images):
    """Only the two files that are needed are fetched."""
    folder = stub.root / "someone" / "ifam-birds"
    folder.mkdir(parents=True)
    save_file(to_official(tiny_model), folder / "model.safetensors")
    settings = {"img_size": 64, "num_landmarks": 3, "num_classes": 5, "gumbel_softmax": True, "num_heads": 3}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "evil.pkl").write_bytes(b"never fetched")
    loaded = hub.load_official("someone/ifam-birds")
    assert torch.equal(loaded(images).logits, tiny_model(images).logits)
    assert not any("evil" in request for request in stub.asked)


def test_a_model_that_is_not_the_one_of_its_name(stub, tiny_model):
    folder = stub.root / "ananthu-aniraj" / "ifam-waterbirds-k4"
    folder.mkdir(parents=True)
    save_file(to_official(tiny_model), folder / "model.safetensors")
    with pytest.raises(IfamError, match=r"has 3 parts and 5 classes, but 4 and 2 are expected"):
        hub.load_official("ananthu-aniraj/ifam-waterbirds-k4", num_heads=3)


@pytest.mark.slow
def test_the_endpoint_comes_from_the_environment(stub, tiny_model, tmp_path):
    """As a user sets it, in a process of its own."""
    folder = stub.root / "someone" / "birds"
    tiny_model.save_pretrained(folder)
    code = "from ifam.models.ifam import IFAM; print(IFAM.from_pretrained('someone/birds').config.num_parts)"
    here = {"HF_ENDPOINT": stub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **here}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "3", done.stderr


def test_a_model_that_the_hub_does_not_have(stub):
    for load in (hub.load, hub.load_official):
        with pytest.raises(IfamError, match=r"no folder 'nobody/nothing' here.*check the name"):
            load("nobody/nothing")


def test_a_repository_without_weights(stub):
    folder = stub.root / "someone" / "empty"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("nothing")
    with pytest.raises(IfamError, match=r"has neither model\.safetensors nor config\.json"):
        hub.load_official("someone/empty")
    folder = stub.root / "someone" / "half"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with pytest.raises(IfamError, match=r"has no model\.safetensors"):
        hub.load_official("someone/half")


def test_no_network(stub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(IfamError, match=r"no model of this id could be downloaded.*check the name and the network"):
        hub.load("someone/birds")


def test_an_id_that_is_none(stub):
    with pytest.raises(IfamError, match="no model of this id could be downloaded"):
        hub.load("some--one/.birds..")
