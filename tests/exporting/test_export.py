"""Exported files answer as the model, and hidden pixels change no bit of it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ifam
from ifam.cli.main import main
from ifam.errors import IfamError
from ifam.exporting import export as exporting
from ifam.exporting.page import export_page

onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# Exporters trace with symbols in the place of numbers, which the check of shapes would take for numbers.
pytestmark = pytest.mark.shapes_unchecked

TINY = {"depth": 1, "embed_dim": 48, "num_heads": 3}
# What a graph has to hold: joint and added parts, patches and pixels, a selector of another size.
MODELS = {
    "joint": {"class_names": ("a", "b", "ü", "d", "e")},
    "sum of pixels": {
        "aggregation": "sum",
        "mask_resolution": 4,
        "edge_aware": False,
        "selector_image_size": 48,
        "min_visible": 0.2,
    },
}


def build(**fields):
    from conftest import wake

    config = ifam.ModelConfig("vit_tiny_patch16_224", 64, 3, 5, backbone_kwargs=TINY, **fields)
    torch.manual_seed(0)
    return wake(ifam.IFAM(config, pretrained=False)).eval()


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(opened, images, **given):
    values = opened.run(None, {"images": images.numpy(), **{name: one.numpy() for name, one in given.items()}})
    return {one.name: torch.from_numpy(value) for one, value in zip(opened.get_outputs(), values, strict=True)}


def varied(count=64, size=64):
    """Noise of several scales and strengths, flat images among them."""
    generator = torch.Generator().manual_seed(3)
    images = []
    for index in range(count):
        side = (2, 5, 16, 64)[index % 4]
        noise = torch.randn(1, 3, side, side, generator=generator) * (index % 7) / 3
        images.append(torch.nn.functional.interpolate(noise, size, mode="bilinear"))
    return torch.cat(images)


# In int8, parts that are added would change one another, and are refused.
FILES = [(name, "float") for name in MODELS] + [("joint", "int8")]
each_file = pytest.mark.parametrize(("exported", "kind"), FILES, indirect=["exported"], scope="module")


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """A model, and its ONNX files in float32 and int8, which share one trace."""
    folder, model = tmp_path_factory.mktemp("exported"), build(**MODELS[request.param])
    graph = exporting.exportable(model)
    proto = exporting.to_onnx(graph)
    (folder / "float.onnx").write_bytes(proto.SerializeToString())
    if not graph.adds_parts:
        (folder / "int8.onnx").write_bytes(exporting.quantized(proto).SerializeToString())
    return model, folder


@pytest.mark.slow
@each_file
def test_the_file_answers_as_the_model(exported, kind):
    model, folder = exported
    opened, images = session(folder / f"{kind}.onnx"), varied()
    with torch.no_grad():
        out = model(images)
    found = run(opened, images)
    assert torch.equal(found["mask"], out.mask)
    assert out.mask.any()
    assert not out.mask.all()
    torch.testing.assert_close(found["part_maps"], out.part_maps, atol=1e-4, rtol=0)
    torch.testing.assert_close(found["selector_logits"], out.selector_logits, atol=1e-4, rtol=1e-4)
    within = 1e-4 if kind == "float" else 0.3 * float(out.logits.std())
    torch.testing.assert_close(found["logits"], out.logits, atol=within, rtol=0)
    if out.part_contributions is not None:
        torch.testing.assert_close(found["part_contributions"], out.part_contributions, atol=within, rtol=0)
        assert torch.equal(ifam.models.part_sum.add_up(found["prior"], found["part_contributions"]), found["logits"])
    for batch in (1, 2, 7):
        few = run(opened, images[:batch])
        assert torch.equal(few["mask"], out.mask[:batch])
        torch.testing.assert_close(few["logits"], out.logits[:batch], atol=within, rtol=0)


@pytest.mark.slow
@each_file
@pytest.mark.parametrize("value", [0.0, 1e30, np.nan, np.inf])
def test_hidden_pixels_change_no_bit(exported, kind, value):
    opened, images = session(exported[1] / f"{kind}.onnx"), varied(8)
    found = run(opened, images)
    mask = found["mask"].clone()
    mask[-1], mask[-2] = False, True
    given = {"use_mask": mask.to(torch.int8)}
    if "prior" in found:
        given["use_parts"] = found["patch_parts"].to(torch.int8)
    shown = torch.nn.functional.interpolate(mask[:, None].float(), 64, mode="nearest") > 0
    first = run(opened, images, **given)
    other = run(opened, torch.where(shown, images, value), **given)
    assert torch.equal(first["mask"], mask)
    assert first["logits"].isfinite().all()
    assert torch.equal(first["logits"], other["logits"])
    # That there is something to see.
    assert not torch.equal(first["logits"], run(opened, torch.where(shown, -images, images), **given)["logits"])


@pytest.mark.slow
def test_a_given_mask_replaces_the_models_own(exported):
    model, folder = exported
    opened, images = session(folder / "float.onnx"), varied(4)
    own = run(opened, images)
    # One mask for all images, with the model's own choice in one half.
    half = torch.full((1, *own["mask"].shape[1:]), -1, dtype=torch.int8)
    half[:, : half.shape[1] // 2] = 1
    found = run(opened, images, use_mask=half)
    rows = half.shape[1] // 2
    assert found["mask"][:, :rows].all()
    assert torch.equal(found["mask"][:, rows:], own["mask"][:, rows:])
    parts = {"patch_parts": found["patch_parts"]} if "prior" in found else {}
    with torch.no_grad():
        expected = model.predictor(images, found["mask"], **parts)
    torch.testing.assert_close(found["logits"], expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_command_writes_a_file_that_says_what_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    build(**MODELS["joint"]).save_pretrained("model")
    main(["export", "--model", "model", "--out", "new/model.onnx"])
    said = capsys.readouterr().out
    assert "the masks are equal" in said
    assert "hidden pixels change no bit" in said
    opened = session("new/model.onnx")
    stated = json.loads(opened.get_modelmeta().custom_metadata_map["ifam"])
    assert stated["class_names"] == ["a", "b", "ü", "d", "e"]
    assert stated["preprocessing"] == ifam.IFAM.from_pretrained("model").preprocessing
    assert [one.name for one in opened.get_inputs()] == ["images"]
    assert [one.name for one in opened.get_overridable_initializers()] == ["use_mask"]
    before = Path("new/model.onnx").read_bytes()
    with pytest.raises(SystemExit):
        main(["export", "--model", "model", "--out", "new/model.onnx"])
    assert "already exists" in capsys.readouterr().err
    assert Path("new/model.onnx").read_bytes() == before
    main(["export", "--model", "model", "--out", "small.onnx", "--quantize", "int8"])
    assert "the masks are equal" in capsys.readouterr().out
    assert Path("small.onnx").stat().st_size < len(before)
    # A file that answers otherwise, such as that of another model, is not left behind.
    other = build(**MODELS["joint"])
    other.predictor.head.weight.data += 0.1
    monkeypatch.setattr(exporting, "to_onnx", lambda graph: onnx.load("new/model.onnx"))
    with pytest.raises(IfamError, match=r"wrong.onnx was not written: its logits differ"):
        ifam.export(other, "new/wrong.onnx")
    assert [one.name for one in Path("new").iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_a_program_of_torch_export_answers_as_the_model(tmp_path):
    model, images = build(**MODELS["joint"]), varied(7)
    agreement = ifam.export(model, tmp_path / "model.pt2")
    assert agreement.cells == 0
    assert agreement.logits < 1e-4
    files = {"ifam.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=files).module()
    assert json.loads(files["ifam.json"])["num_parts"] == 3
    with torch.no_grad():
        out = model(images)
        logits, mask, *_ = program(images, torch.full((7, 4, 4), -1, dtype=torch.int8))
    assert torch.equal(mask, out.mask)
    torch.testing.assert_close(logits, out.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("path", "settings", "reason"),
    [
        ("model.pb", {}, "ends in '.pb', but .onnx or .pt2 is expected"),
        ("model", {}, "ends in 'nothing'"),
        ("model.pt2", {"quantize": "int8"}, "cannot be quantized"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(tmp_path, path, settings, reason):
    with pytest.raises(IfamError, match=reason):
        ifam.export(build(), tmp_path / path, **settings)
    assert not list(tmp_path.iterdir())


def test_a_model_that_sees_everything_is_refused(tmp_path):
    model = ifam.PlainViT(ifam.ModelConfig("vit_tiny_patch16_224", 64, backbone_kwargs=TINY), pretrained=False)
    with pytest.raises(IfamError, match="does not answer from visible patches"):
        ifam.export(model, tmp_path / "model.onnx")


def test_parts_that_are_added_are_not_quantized(tmp_path):
    for write, name in ((ifam.export, "model.onnx"), (export_page, "model.html")):
        with pytest.raises(IfamError, match="would change what the others contribute; export it without quantize"):
            write(build(**MODELS["sum of pixels"]), tmp_path / name, quantize="int8")
    assert not list(tmp_path.iterdir())


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(IfamError, match=r"pip install 'ifam\[export\]'"):
        ifam.export(build(), tmp_path / "model.onnx")
