"""`ifam_runtime` answers as the package does, where there is neither PyTorch nor the package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ifam
from conftest import wake
from ifam.exporting import export as exporting
from ifam.inference import preprocess
from miniatures import write_deep_png

onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
ifam_runtime = pytest.importorskip("ifam_runtime")

# Exporters trace with symbols in the place of numbers, which the check of shapes would take for numbers.
pytestmark = pytest.mark.shapes_unchecked

SOURCE = Path(ifam_runtime.__file__)
SIZES = [(80, 80), (81, 79), (40, 33), (640, 480), (1000, 61), (7, 3)]
# Runs the module in an environment where only what it may need can be imported.
ALONE = """
import importlib.abc, json, sys
class Refusing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "ifam", "scipy", "matplotlib", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Refusing())
sys.path.insert(0, sys.argv[1])
from ifam_runtime import Classifier
answer = Classifier(sys.argv[2])(sys.argv[3])
answer.overlay().save(sys.argv[4])
print(json.dumps([answer.class_name, answer.probability, answer.mask.tolist(), "torch" in sys.modules]))
"""


def photo(size, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, and its ONNX file."""
    folder = tmp_path_factory.mktemp("runtime")
    kwargs = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    config = ifam.ModelConfig("ifam_tiny", 80, 2, 2, backbone_kwargs=kwargs, class_names=("swan", "Möwe"))
    model = wake(ifam.IFAM(config, pretrained=False)).eval()
    (folder / "model.onnx").write_bytes(exporting.to_onnx(exporting.exportable(model)).SerializeToString())
    return model, folder / "model.onnx"


def test_it_is_short():
    assert len(SOURCE.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_images_are_prepared_in_the_same_bits(files, size):
    model, path = files
    image = photo(size)
    mean, std = (np.array(values)[:, None, None] for values in model.normalization)
    given = preprocess(image, model)
    expected = np.rint((given.numpy() * std + mean) * 255).transpose(1, 2, 0)
    answer = ifam_runtime.Classifier(path)(image)
    assert np.array_equal(answer.pixels, expected)
    with torch.no_grad():
        out = model(given[None])
    assert np.array_equal(answer.mask, out.mask[0].numpy())
    torch.testing.assert_close(
        list(answer.probabilities.values()), out.logits.softmax(1)[0].tolist(), atol=1e-4, rtol=0
    )


@pytest.mark.slow
def test_it_answers_without_pytorch(files, tmp_path):
    _, path = files
    photo((90, 120)).save(tmp_path / "ä photo.png")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "ifam_runtime.py").write_text(SOURCE.read_text(encoding="utf-8"), encoding="utf-8")
    words = [tmp_path / "alone", path, tmp_path / "ä photo.png", tmp_path / "overlay.png"]
    run = subprocess.run([sys.executable, "-c", ALONE, *map(str, words)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    name, probability, mask, torch_imported = json.loads(run.stdout)
    assert name in ("swan", "Möwe")
    assert not torch_imported
    assert 0.5 <= probability <= 1
    assert np.shape(mask) == (10, 10)
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert overlay.size == (3 * 240, 240)


@pytest.mark.slow
def test_a_given_mask_decides(files):
    model, path = files
    classifier, image = ifam_runtime.Classifier(path), photo((80, 80))
    shown = np.zeros((10, 10), bool)
    shown[3:5, 2:7] = True
    answer = classifier(image, shown)
    assert np.array_equal(answer.mask, shown)
    with torch.no_grad():
        expected = model.predictor(preprocess(image, model)[None], torch.from_numpy(shown)[None]).softmax(1)[0]
    torch.testing.assert_close(list(answer.probabilities.values()), expected.tolist(), atol=1e-4, rtol=0)
    for wrong in (shown[:3, :3], shown * np.uint8(255), shown * 0.9, np.full((10, 10), np.nan), shown * 256):
        with pytest.raises(ValueError, match=r"use_mask .*: 1, 0 or -1 for each of \[10, 10\] is expected"):
            classifier(image, wrong)


@pytest.mark.slow
def test_what_is_wrong_is_one_sentence(files, tmp_path):
    classifier = ifam_runtime.Classifier(files[1])
    (tmp_path / "text.jpg").write_text("hello", encoding="utf-8")
    Image.fromarray(np.full((9, 9), 4095, np.uint16)).save(tmp_path / "deep.png")
    write_deep_png(tmp_path / "colors.png", np.full((9, 9, 3), 4095))
    deep = [(name, "more than 8 bits") for name in ("deep.png", "colors.png")]
    for name, reason in (("text.jpg", "cannot identify"), *deep, ("none.jpg", "No such")):
        with pytest.raises(ValueError, match=f"{name} is not a readable image .*{reason}"):
            classifier(tmp_path / name)
    with pytest.raises(ValueError, match=r"is not an \.onnx file of `ifam export`"):
        ifam_runtime.Classifier(tmp_path / "text.jpg")
    # Transparent pixels are white, and photographs upright.
    clear = classifier(Image.new("RGBA", (80, 80), (9, 9, 9, 0)))
    assert (clear.pixels == 255).all()
