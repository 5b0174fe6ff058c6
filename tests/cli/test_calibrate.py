"""`ifam calibrate` on the command line, and what `ifam predict` makes of it."""

import csv
import json
import re

import pytest
import torch
from PIL import Image

import ifam
from ifam.checkpoints.hub import read
from ifam.cli.main import main
from ifam.evaluation.conformal import load_calibration
from ifam.evaluation.coverage import CoverageResult
from ifam.models.registry import build
from ifam.serialization import from_json

DATA = {"num_train": 30, "num_val": 60, "num_test": 40}
ERROR = ["--error", "0.1"]


def run(*words):
    main([str(word) for word in words])


def fails(capsys, *words):
    """The one sentence of a command that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert caught.value.code == 2
    *_, sentence = capsys.readouterr().err.splitlines()
    assert sentence.startswith("ifam: ")
    return sentence


@pytest.fixture
def model(tmp_path, make_model):
    """A model that remembers pondbirds."""
    make_model(num_classes=2, class_names=("swimmer", "percher")).save_pretrained(
        tmp_path / "model", {"benchmark": "pondbirds", "data": DATA, "root": None}
    )
    return tmp_path / "model"


@pytest.fixture
def photo(tmp_path):
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_calibration_is_measured_stored_and_used(model, photo, tmp_path, capsys):
    run("calibrate", model, *ERROR)
    said = " ".join(capsys.readouterr().out.split())
    assert f"The calibration is in {model}: try `ifam predict IMAGES --model {model}`." in said
    assert "60 images of 2 classes, split val" in said
    assert re.search(r"Calibrated on 60 held-out images, at least \d+ of each class\. Of 40 test images, ", said)
    result = from_json(CoverageResult, json.loads((model / "calibration.json").read_text()))
    assert result.overall.count == sum(group.count for group in result.groups.values()) == 40
    assert result.worst[1].coverage == min(group.coverage for group in result.groups.values())
    for one in (result.overall, *result.groups.values()):
        assert one.answered + one.several + one.none == pytest.approx(1)
        assert one.interval[0] <= one.coverage <= one.interval[1]
        answered = [share for share, _ in one.risk_coverage]
        assert answered == sorted(answered)
        assert answered[-1] == 1
    assert result.conditions["command"]["verb"] == "calibrate"
    run("predict", photo, "--model", model, "--out", tmp_path / "out.csv")
    assert "at 0.1 error" in capsys.readouterr().out
    with (tmp_path / "out.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert set(json.loads(row["classes"])) <= {"swimmer", "percher"}
    assert ("no_class_in_set" in json.loads(row["flags"])) == (row["classes"] == "[]")
    assert 0 < float(row["familiarity"]) <= 1


def test_a_larger_error_gives_smaller_sets(model, photo, tmp_path, capsys):
    run("calibrate", model, *ERROR)
    sizes = []
    for error in (0.1, 0.5, 0.9):
        out = tmp_path / f"{error}.jsonl"
        run("predict", photo, "--model", model, "--out", out, "--error", error)
        sizes.append(len(json.loads(out.read_text())["classes"]))
    assert sizes == sorted(sizes, reverse=True)
    said = fails(capsys, "predict", photo, "--model", model, "--out", tmp_path / "x", "--error", 0.01)
    assert "An error of 0.01 takes at least 100 held-out images of each class, but" in said
    assert not (tmp_path / "x").exists()


def test_without_a_calibration_there_are_no_sets(model, photo, tmp_path, capsys):
    run("predict", photo, "--model", model, "--out", tmp_path / "out")
    assert "error" not in capsys.readouterr().out
    with (tmp_path / "out" / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["classes"] == row["familiarity"] == ""
    said = fails(capsys, "predict", photo, "--model", model, "--out", tmp_path / "x", "--error", 0.1)
    assert "is not calibrated" in said
    assert f"`ifam calibrate --model {model}`" in said


def test_the_sets_of_a_model_without_parts_come_from_python(model, make_model, tmp_path, capsys):
    settings = {"num_classes": 2, "class_names": ("swimmer", "percher")}
    plain, extra = build("plain_vit", make_model(**settings).config, pretrained=False), read(model).extra
    plain.save_pretrained(tmp_path / "plain", extra)
    run("calibrate", tmp_path / "plain", *ERROR)
    said = capsys.readouterr().out
    assert "ifam predict" not in said
    (call,) = re.findall(r"in Python, `(.*)` gives the set of each image\.", said)
    assert eval(call, {"ifam": ifam, "logits": torch.zeros(3, 2)}).shape == (3, 2)


def test_sets_hold_for_the_models_own_masks(model, photo, tmp_path, capsys):
    run("calibrate", model, *ERROR)
    words = ["predict", photo, "--model", model, "--out", tmp_path / "out", "--drop_parts", "[0]"]
    assert "own masks; leave interventions or the calibration away" in fails(capsys, *words, *ERROR)
    run(*words)
    assert "error" not in capsys.readouterr().out


def test_a_calibration_is_replaced_by_the_same_or_when_asked(model, capsys):
    run("calibrate", model, *ERROR)
    run("calibrate", model, *ERROR)
    other = ["calibrate", model, "--error", "0.2", "--class_conditional"]
    assert "is a result under other conditions; replace it with --overwrite." in fails(capsys, *other)
    assert load_calibration(model).error == 0.1
    run(*other, "--overwrite")
    # One that was stored from Python has no coverage beside it.
    (model / "calibration.json").unlink()
    said = fails(capsys, "calibrate", model, *ERROR)
    assert said.endswith("calibration.safetensors already exists; replace it with --overwrite.")
    assert (load_calibration(model).error, load_calibration(model).class_conditional) == (0.2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "train"], "was trained on the split 'train'; calibrate on held-out images"),
        (["--split", "none"], "has no split 'none'"),
        (["--error", "0.01"], "takes at least 100 held-out images of each class"),
        (["--error", "0"], "error is 0"),
        (["--error", "1"], "error is 1"),
        (["--error", "nan"], "error is nan"),
        (["--data.num_val", "2", *ERROR], "takes at least 10 held-out images of each class"),
    ],
)
def test_what_cannot_be_calibrated_is_a_sentence_and_writes_nothing(model, words, message, capsys):
    assert message in fails(capsys, "calibrate", model, *words)
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "model.safetensors"]


def test_a_calibration_of_another_model_is_refused(model, photo, make_model, tmp_path, capsys):
    run("calibrate", model, *ERROR)
    make_model(num_classes=2, num_parts=2).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "calibration.safetensors").write_bytes((model / "calibration.safetensors").read_bytes())
    said = fails(capsys, "predict", photo, "--model", tmp_path / "other", "--out", tmp_path / "out")
    assert "belongs to another model" in said


def test_a_page_shows_it(model, tmp_path):
    run("calibrate", model, *ERROR)
    run("report", model, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Sets of classes that miss at most" in page
    assert "swimmer on water" in page
    assert "<svg" in page
