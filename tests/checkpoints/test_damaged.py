"""Files from elsewhere that are damaged, or not what their names say: one sentence that names the file."""

import io
import json
import zipfile
from dataclasses import replace

import pytest
import torch

from ifam.backbones.vit import create_vit
from ifam.checkpoints import hub
from ifam.checkpoints.safe_pickle import read_pickle
from ifam.cli.main import main
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.experiments.runs import Runs
from ifam.model_files import read_json, read_safetensors
from ifam.models.ifam import IFAM

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html><html><body>404</body></html>"
FOREIGN = [(b"", "empty"), (LFS, "git lfs pull"), (PAGE, "web page")]


@pytest.mark.parametrize(("content", "words"), FOREIGN)
@pytest.mark.parametrize("read", [read_json, read_pickle, read_safetensors])
def test_what_stands_in_the_place_of_a_file_is_named(tmp_path, read, content, words):
    (tmp_path / "file.xyz").write_bytes(content)
    with pytest.raises(IfamError, match=rf"file\.xyz .*{words}"):
        read(tmp_path / "file.xyz")


def test_a_compressed_checkpoint_is_refused_before_it_fills_the_memory(tmp_path):
    """A kilobyte may hold a megabyte of zeros; torch would read it."""
    torch.save({"model_state": {"a": torch.zeros(300_000)}}, tmp_path / "large.pt")
    assert set(read_pickle(tmp_path / "large.pt")) == {"model_state"}
    with (
        zipfile.ZipFile(tmp_path / "large.pt") as large,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for record in large.infolist():
            small.writestr(record.filename, large.read(record))
    assert (tmp_path / "small.pt").stat().st_size < 10_000
    with pytest.raises(IfamError, match=r"small\.pt is not a valid checkpoint \(its content is compressed"):
        read_pickle(tmp_path / "small.pt")


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}',
        b'{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4]}}',
    ],
)
def test_safetensors_that_state_more_than_they_hold_are_refused(tmp_path, header):
    for length in (len(header), 1 << 60):
        (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + header + bytes(4))
        with pytest.raises(IfamError, match=r"model\.safetensors is not a valid safetensors file"):
            read_safetensors(tmp_path / "model.safetensors")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub that holds one file of weights."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(name, content):
        repository = tmp_path / "models--timm--vit_tiny_patch16_224.augreg_in21k"
        commit = repository / "snapshots" / ("a" * 40)
        for folder in (repository / "refs", commit):
            folder.mkdir(parents=True)
        (repository / "refs" / "main").write_text("a" * 40)
        (commit / name).write_bytes(content)

    return put


def cut_off():
    """The beginning of a file that torch wrote."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(100)}, buffer)
    return buffer.getvalue()[:300]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"", b"abc" * 100, LFS, cut_off()], ids=["empty", "junk", "pointer", "cut"])
def test_damaged_weights_in_the_cache_are_named(cache, name, content):
    cache(name, content)
    with pytest.raises(IfamError, match=rf"weights of vit_tiny.*{name} are damaged .*remove that file"):
        create_vit("vit_tiny_patch16_224.augreg_in21k", 224, True, {})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model."""
    folder = tmp_path_factory.mktemp("saved")
    config = ModelConfig(backbone="ifam_tiny", image_size=80, class_names=("a", "b"))
    hub.save(IFAM(config, pretrained=False), folder, {"benchmark": "pondbirds", "data": {}})
    return folder


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_names", [1, 2]),
        ("mean", [1]),
        ("mean", "abc"),
        ("std", [0, 0, 0]),
        ("std", [None, None, None]),
        ("temperature", float("nan")),
        ("num_parts", True),
        ("extra", None),
        ("extra", {"data": 3}),
        ("extra", {"root": 7}),
        ("method", ["ifam"]),
    ],
)
def test_settings_of_a_model_that_are_impossible_are_named(saved, tmp_path, field, value, capsys):
    settings = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**settings, field: value}))
    (tmp_path / "model.safetensors").symlink_to(saved / "model.safetensors")
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--model", str(tmp_path)])
    assert stopped.value.code == 2
    assert str(tmp_path / "config.json") in capsys.readouterr().err


def test_settings_with_a_byte_order_mark_are_read(saved, tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + (saved / "config.json").read_bytes())
    assert hub.read(tmp_path) == replace(hub.read(saved), folder=tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"[]\n", b"{}\n", b"\0\n", b"\xe9\n", LFS, b'{"row": 1, "seed": "x", "settings": {}, "elapsed": 1}\n'],
)
def test_damaged_runs_are_named(tmp_path, content):
    (tmp_path / "runs.jsonl").write_bytes(content)
    with pytest.raises(IfamError, match=r"runs\.jsonl.*choose another --out"):
        Runs(tmp_path / "runs.jsonl", {})


@pytest.mark.parametrize("content", [b'{"kind": "comparison", "rows": []}', b"[" * 100_000, b'{"predictor": NaN}', LFS])
def test_damaged_results_are_named(tmp_path, content, capsys):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(tmp_path / "results.json"), "--out", str(tmp_path / "page.html")])
    assert stopped.value.code == 2
    assert "results.json cannot be read as" in capsys.readouterr().err
