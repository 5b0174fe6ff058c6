"""Classifiers of every origin are loaded with their preprocessing, and answers that are none are refused."""

import logging
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from ifam.auditing.any_classifier import AnyClassifier, are_probabilities, compute_scores, load_any_classifier
from ifam.errors import IfamError

TINY = "test_vit"


@pytest.fixture
def model():
    """A real model of timm, of three classes, with random weights."""
    return timm.create_model(TINY, num_classes=3).eval()


@pytest.fixture
def pixels():
    return torch.rand(5, 3, 160, 160)


def normalized(images, model):
    mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    return (images - mean) / std


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_model_of_timm_answers_as_timm_itself(model, pixels, tmp_path, ending):
    path = tmp_path / f"weights{ending}"
    save_file(model.state_dict(), path) if ending == ".safetensors" else torch.save(model.state_dict(), path)
    loaded = load_any_classifier(f"timm:{TINY}", checkpoint=path)
    assert loaded.image_size == (160, 160)
    assert loaded.class_names == ()
    crop = model.pretrained_cfg["crop_pct"]
    assert loaded.resized == (int(160 / crop),) * 2
    with torch.no_grad():
        torch.testing.assert_close(compute_scores(loaded, [pixels]), model(normalized(pixels, model)))


def test_the_center_of_the_resized_image_is_what_it_sees():
    seen = AnyClassifier("x", lambda images: images.flatten(1)[:, :2], (4, 4), (0.0,) * 3, (1.0,) * 3, crop=0.5)
    assert seen.resized == (8, 8)
    image = torch.zeros(1, 3, 8, 8)
    image[..., 2:6, 2:6] = 1
    assert (seen.preprocess(image) == 1).all()


def test_a_folder_in_the_format_of_the_hub_has_its_class_names(model, pixels, tmp_path):
    names = {"label_names": ["ant", "bee", "cat"]}
    timm.models.save_for_hf(model, tmp_path, model_config=names, safe_serialization=True)
    loaded = load_any_classifier(f"hf:{tmp_path}")
    assert loaded.class_names == ("ant", "bee", "cat")
    with torch.no_grad():
        torch.testing.assert_close(compute_scores(loaded, [pixels]), model(normalized(pixels, model)))


def test_classes_of_imagenet_are_named(tmp_path):
    torch.save(timm.create_model(TINY).state_dict(), tmp_path / "weights.pth")
    names = load_any_classifier(f"timm:{TINY}", checkpoint=tmp_path / "weights.pth").class_names
    assert len(names) == 1000
    assert names[97] == "drake"


@pytest.mark.parametrize("batch", [None, 2])
def test_an_onnx_file_answers_as_the_model_that_was_exported(model, pixels, tmp_path, batch):
    """Also where it states how many images it takes; 5 is no multiple of 2."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    dynamic = {0: torch.export.Dim("batch")} if batch is None else None
    export(model, torch.rand(batch or 2, 3, 160, 160), path, dynamic)
    loaded = load_any_classifier(str(path), mean=model.pretrained_cfg["mean"], std=model.pretrained_cfg["std"])
    assert loaded.image_size == (160, 160)
    with torch.no_grad():
        scores = model(normalized(pixels, model))
    torch.testing.assert_close(compute_scores(loaded, [pixels]), scores, atol=1e-4, rtol=1e-4)
    with pytest.raises(IfamError, match="takes images of 160 x 160 pixels, but --image_size is 80"):
        load_any_classifier(str(path), image_size=80)


def export(model, images, path, dynamic):
    """As a user would; the exporter warns and logs of its own insides."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shapes = None if dynamic is None else (dynamic,)
            torch.onnx.export(model, (images,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    finally:
        logging.disable(logging.NOTSET)


def test_without_onnxruntime_its_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(IfamError, match=r"pip install 'ifam\[onnx\]'"):
        load_any_classifier(str(tmp_path / "model.onnx"))


def test_a_function_is_found_in_the_working_directory_and_gets_224_pixels(tmp_path, monkeypatch):
    (tmp_path / "their_classifier.py").write_text("def scores(images):\n    return images.mean((2, 3))\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    loaded = load_any_classifier("their_classifier:scores", mean=(0.0,) * 3, std=(1.0,) * 3)
    assert sys.path == path
    assert loaded.image_size == (224, 224)
    images = torch.rand(3, 3, 224, 224)
    torch.testing.assert_close(compute_scores(loaded, images.split(2)), images.mean((2, 3)))


class Fickle:
    """One that has another number of classes each time."""

    def __init__(self):
        self.classes = 1

    def __call__(self, images):
        self.classes += 1
        return torch.zeros(len(images), self.classes)


def raises(images):
    raise RuntimeError("the weights are on the moon")


def ends(images):
    sys.exit(0)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda images: torch.zeros(len(images)), r"shape \[2\] for 2 images, but a tensor of 2 rows"),
        (lambda images: torch.zeros(len(images), 3, 4), r"shape \[2, 3, 4\] for 2 images"),
        (lambda images: torch.zeros(1, 3), r"shape \[1, 3\] for 2 images"),
        (lambda images: torch.zeros(len(images), 1), "returned 1 score for each image.*two columns"),
        (lambda images: torch.full((len(images), 3), torch.nan), "returned NaN or infinity"),
        (lambda images: torch.full((len(images), 3), torch.inf), "returned NaN or infinity"),
        (lambda images: "a duck", "returned a str, but a tensor of 2 rows"),
        (lambda images: None, "returned a NoneType"),
        (lambda images: {"logits": 1}, "returned a dict"),
        (raises, r"raised RuntimeError for images of shape \[2, 3, 8, 8\] \(the weights are on the moon\)"),
        (Fickle(), "returned scores of 3 classes, but 2 are expected"),
        (ends, r"ended the program \(SystemExit: 0\), but is expected to return; take calls such as `sys.exit` out"),
    ],
)
def test_what_is_no_answer_is_refused_in_a_sentence(answer, says):
    with pytest.raises(IfamError, match=says) as refused:
        compute_scores(AnyClassifier("theirs", answer, (8, 8)), torch.rand(4, 3, 8, 8).split(2))
    assert str(refused.value).removeprefix("The code of ").startswith("theirs ")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import torch\ntorch.nothing_here", r"cannot be imported \(AttributeError: .*'nothing_here'\)"),
        ("import sys\nsys.exit(0)", r"^The code of broken_of_test:f ended the program \(SystemExit: 0\)"),
        ("raise SystemExit", r"^The code of broken_of_test:f ended the program \(SystemExit: None\)"),
    ],
)
def test_what_a_module_does_on_import_is_named(code, says, tmp_path, monkeypatch):
    (tmp_path / "broken_of_test.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IfamError, match=says):
        load_any_classifier("broken_of_test:f")


def test_another_number_of_classes_than_it_names_is_refused():
    other = AnyClassifier("theirs", lambda images: torch.zeros(len(images), 3), (8, 8), class_names=("a", "b"))
    with pytest.raises(IfamError, match="scores of 3 classes, but 2 are expected"):
        compute_scores(other, [torch.rand(2, 3, 8, 8)])


def test_arrays_are_answers_too():
    scores = compute_scores(
        AnyClassifier("x", lambda images: images.mean((2, 3)).numpy(), (8, 8)), [torch.rand(2, 3, 8, 8)]
    )
    assert scores.shape == (2, 3)


def test_answers_in_the_same_memory_are_kept():
    memory = torch.zeros(2, 3)
    reused = AnyClassifier("x", lambda images: memory.copy_(images.mean((2, 3))).numpy(), (8, 8))
    images = torch.rand(4, 3, 8, 8)
    fresh = AnyClassifier("x", lambda images: images.mean((2, 3)), (8, 8))
    torch.testing.assert_close(compute_scores(reused, images.split(2)), compute_scores(fresh, images.split(2)))


def test_probabilities_are_told_from_logits():
    assert are_probabilities(torch.tensor([[0.2, 0.8], [1.0, 0.0]]))
    assert not are_probabilities(torch.tensor([[0.2, 0.8], [1.5, -0.5]]))
    assert not are_probabilities(torch.tensor([[0.2, 0.9]]))


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("timm:resnet_50", {}, r"timm has no model 'resnet_50' \(did you mean 'resnet50'\?\)"),
        ("resnet50", {}, "--any is 'resnet50', but timm:NAME, hf:OWNER/NAME"),
        ("a/b", {}, "is expected"),
        ("nowhere.onnx", {}, "There is no file nowhere.onnx"),
        ("no_such_module:f", {}, "no_such_module:f cannot be imported"),
        ("math:no_such_function", {}, "math has no 'no_such_function'"),
        ("math:pi", {}, "math:pi is a float, but a function"),
        ("timm:resnet18", {"image_size": 80}, "--image_size is for ONNX files and functions"),
        ("math:sqrt", {"image_size": 0}, "image_size is 0, but a whole number from 1 to 16384 is expected"),
        ("math:sqrt", {"std": (1.0, 0.0, 1.0)}, "std is .* but a number above 0 is expected for each of 3 channels"),
        ("math:sqrt", {"mean": (1.0, 0.0)}, "mean is .* expected for each of 3 channels"),
        ("math:sqrt", {"checkpoint": Path("x")}, "--checkpoint gives weights to a model of timm"),
    ],
)
def test_names_of_nothing_are_refused(name, settings, says):
    with pytest.raises(IfamError, match=says):
        load_any_classifier(name, **settings)


def test_weights_that_do_not_fit_and_files_that_are_none_are_refused(model, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(IfamError, match=r"model\.onnx is not a valid ONNX file"):
        load_any_classifier(str(tmp_path / "model.onnx"))
    with pytest.raises(IfamError, match="give a state dict with --checkpoint"):
        load_any_classifier("timm:resnet18", checkpoint=tmp_path / "nothing")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(IfamError, match="is no state dict"):
        load_any_classifier("timm:resnet18", checkpoint=tmp_path / "list.pth")
    torch.save(model.state_dict(), tmp_path / "other.pth")
    with pytest.raises(IfamError, match="have no last layer 'fc'"):
        load_any_classifier("timm:resnet18", checkpoint=tmp_path / "other.pth")
    del (weights := model.state_dict())["norm.weight"]
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(IfamError, match="The weights do not fit timm's test_vit"):
        load_any_classifier(f"timm:{TINY}", checkpoint=tmp_path / "part.pth")


@pytest.mark.parametrize(("name", "says"), [(f"timm:{TINY}", "--checkpoint"), ("hf:owner/name", "timm's format")])
def test_without_a_hub_the_name_and_the_mend_are_said(name, says, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(IfamError, match=f"could not be loaded by timm .*check .*name and .*network.*{says}"):
        load_any_classifier(name)
