import ast
import hashlib
import inspect
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tools.pretrain_tiny.__main__ import main
from tools.pretrain_tiny.pretraining import build_tiny_vit, normalize, pretrain_tiny
from tools.pretrain_tiny.textures import draw_scenes, patch_coverage

import ifam
from ifam.backbones.vit import TINY_ARCH
from ifam.errors import IfamError
from tools.pretrain_tiny import pretraining

WEIGHTS = Path(ifam.__file__).parent / "assets" / "tiny_vit.safetensors"


def test_shipped_weights_match_their_stated_hash_and_size():
    content, record = WEIGHTS.read_bytes(), json.loads(WEIGHTS.with_suffix(".json").read_text())
    assert hashlib.sha256(content).hexdigest() == record["sha256"]
    assert len(content) == record["bytes"] <= 4_000_000
    assert record["arch"] == TINY_ARCH


def test_shipped_weights_fit_the_architecture():
    vit = build_tiny_vit()
    vit.load_state_dict(load_file(WEIGHTS), strict=True)
    assert sum(weight.numel() for weight in vit.parameters()) == 832_256


def test_shipped_weights_separate_thing_from_background():
    vit = build_tiny_vit().eval()
    vit.load_state_dict(load_file(WEIGHTS))
    scenes = draw_scenes(64, torch.Generator().manual_seed(2**40))
    with torch.no_grad():
        tokens = vit.forward_features(normalize(scenes.images))[:, vit.num_prefix_tokens :]
    covered = patch_coverage(scenes.foreground, TINY_ARCH["patch_size"]) >= 0.25
    # The nearest of two prototypes, the mean of each kind on the first half, tells it on the second.
    known, asked = slice(0, 32), slice(32, None)
    prototypes = torch.stack([tokens[known][~covered[known]].mean(0), tokens[known][covered[known]].mean(0)])
    predicted = torch.cdist(tokens[asked], prototypes.expand(32, -1, -1)).argmin(-1).bool()
    iou = (predicted & covered[asked]).sum() / (predicted | covered[asked]).sum()
    assert iou > 0.6


def test_two_steps_write_finite_repeatable_weights(tmp_path):
    first = pretrain_tiny(tmp_path / "a.safetensors", steps=2, batch_size=4, threads=1)
    again = pretrain_tiny(tmp_path / "new" / "b.safetensors", steps=2, batch_size=4, threads=1)
    other = pretrain_tiny(tmp_path / "c.safetensors", steps=2, batch_size=4, threads=1, seed=1)
    assert all(torch.tensor(value).isfinite() for value in first["losses"].values())
    assert first["sha256"] == again["sha256"] != other["sha256"]
    assert first["steps"] == 2
    assert (tmp_path / "new" / "b.json").exists()
    weights = load_file(tmp_path / "a.safetensors")
    build_tiny_vit().load_state_dict(weights, strict=True)
    assert all(value.isfinite().all() for value in weights.values())


def test_pretraining_leaves_the_global_random_state_and_threads_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    threads = torch.get_num_threads()
    pretrain_tiny(tmp_path / "a.safetensors", steps=1, batch_size=2, threads=1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), expected)


def test_full_view_is_what_timm_computes():
    student = pretraining._Student().eval()
    images = torch.rand(2, 3, 80, 80)
    torch.testing.assert_close(student.encode(images, None), student.vit.forward_features(images))


def test_hidden_patches_have_no_influence_on_a_padded_view():
    student = pretraining._Student().eval()
    coverage = torch.zeros(2, 100)
    coverage[0, 40:47] = 1
    coverage[1, 10:30] = 1
    view = pretraining._region_view(coverage, torch.Generator().manual_seed(0))
    visible = torch.zeros(2, 100, dtype=torch.bool).scatter(1, view.index, view.valid)
    images = torch.rand(2, 3, 80, 80)
    shown = visible.view(2, 1, 10, 10).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = torch.where(shown, images, torch.rand(2, 3, 80, 80))
    before, after = (student.encode(x, view)[:, :3] for x in (images, changed))
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"out": Path("weights.pt")}, "weights.pt"),
        ({"out": Path("w.safetensors"), "steps": 0}, "steps"),
        ({"out": Path("w.safetensors"), "minutes": 0.0}, "minutes"),
        ({"out": Path("w.safetensors"), "batch_size": 1}, "batch_size"),
    ],
)
def test_bad_input_is_one_sentence(arguments, named):
    with pytest.raises(IfamError, match=named):
        pretrain_tiny(**arguments)


def test_the_command_prints_the_record_and_replaces_nothing_unasked(tmp_path, capsys):
    out = tmp_path / "w.safetensors"
    words = ["--out", str(out), "--steps", "1", "--batch_size", "2", "--threads", "1"]
    main(words)
    assert json.loads(capsys.readouterr().out)["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    for kept in (out.with_suffix(".json"), out):
        with pytest.raises(SystemExit, match=r"already exists.*--overwrite"):
            main(words)
        kept.unlink()
    Path(tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="file"):
        main(["--out", str(tmp_path / "file" / "w.safetensors"), "--steps", "1"])


def test_imports_no_benchmark():
    tree = ast.parse(inspect.getsource(pretraining))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name for name in imported if name.startswith(("ifam", "tools"))} == {
        "ifam._typing",
        "ifam.backbones.vit",
        "ifam.errors",
        "ifam.io",
        "ifam.progress",
        "tools.pretrain_tiny.textures",
    }
