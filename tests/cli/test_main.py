"""The command line, from a folder of pictures to predictions; and every mistake one can make on it."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import yaml
from PIL import Image
from safetensors.torch import load_file

from ifam.checkpoints.hub import load
from ifam.cli.main import main
from ifam.cli.parser import VERBS, parse
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import load_benchmark
from ifam.models.registry import METHODS
from ifam.training.presets import TINY_TRAIN, apply_method_defaults, build

TINY_DATA = ["--data.num_train", "32", "--data.num_val", "8", "--data.num_test", "8"]
TINY = ["--model.backbone", "ifam_tiny", "--model.image_size", "80", "--train.accelerator", "cpu"]
QUICK = [*TINY, "--train.epochs", "1", "--train.batch_size", "4", "--train.base_lr", "1e-4"]
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def ifam(*words, cwd):
    """Run the installed program."""
    return subprocess.run(
        [sys.executable, "-m", "ifam.cli", *map(str, words)], capture_output=True, text=True, cwd=cwd, env=OFFLINE
    )


def fails(capsys, *words):
    """The one sentence of a command that must be refused; information may come before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    *before, sentence = said.err.splitlines()
    assert all(line.startswith("Augmentation: ") for line in before)
    assert sentence.startswith("ifam: ")
    return f"{sentence}\n"


def contents(folder):
    """Every file below a folder with its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def photograph(name):
    """A photograph of scikit-image, read by Pillow: its own reader needs versions of Pillow that ours may not be."""
    return Image.open(Path(skimage.data.__file__).with_name(f"{name}.png"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of six small pictures, in JPEG and PNG."""
    root = tmp_path_factory.mktemp("pictures")
    chance = np.random.default_rng(0)
    for name, colour in (("brick", (180, 60, 40)), ("grass", (40, 160, 60))):
        (root / name).mkdir()
        for i in range(6):
            pixels = np.array(colour) + chance.integers(-30, 30, (60 + 10 * i, 90, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    return root


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """A model trained on them by the command line."""
    out = tmp_path_factory.mktemp("runs") / "model"
    main(["train", "--benchmark", "folder", "--root", str(pictures), "--out", str(out), *QUICK])
    return out


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Real photographs of three shapes."""
    folder = tmp_path_factory.mktemp("photographs")
    photograph("astronaut").save(folder / "astronaut.png")
    photograph("chelsea").save(folder / "cat.jpg")
    photograph("coffee").save(folder / "coffee.jpeg")
    return folder


# --- help ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_for_every_option(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert re.match(rf"usage: ifam .*\b{verb}\b", shown)
    # Each option line is followed by a sentence.
    options = re.findall(r"^  (?:--)?(\S+)(?: [^\n]*)?\n? +(.*)", shown, re.MULTILINE)
    assert len(options) >= 2
    parameters = {name for name in VERBS[verb].__annotations__ if name != "return"}
    for name in parameters - {"model", "train", "loss"}:
        assert re.search(rf"\b{name}\b", shown), name
    # Sections of the docstring are no part of a sentence.
    assert "Args:" not in shown
    assert "Attributes:" not in shown


def test_help_of_the_program_lists_the_verbs(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


def test_the_version(capsys):
    from ifam import __version__

    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert __version__ in capsys.readouterr().out


# --- from a folder to predictions ------------------------------------------------------------------------


@pytest.mark.slow
def test_what_training_leaves(trained, pictures):
    assert {path.name for path in trained.iterdir()} == {
        "model.safetensors",
        "config.json",
        "train.yaml",
        "results.json",
        "checkpoints",
        "logs",
    }
    config = json.loads((trained / "config.json").read_text())
    assert config["class_names"] == ["brick", "grass"]
    assert config["extra"]["benchmark"] == "folder"
    results = json.loads((trained / "results.json").read_text())
    assert results["conditions"]["split"] == "val"
    assert results["count"] == 2
    assert set(results["predictor"]["classes"]) == {"brick", "grass"}
    resolved = yaml.safe_load((trained / "train.yaml").read_text())
    assert resolved["root"] == str(pictures)
    assert resolved["train"]["epochs"] == 1
    assert resolved["train"]["clip_norm"] == 2.0  # defaults are written down too
    assert resolved["model"]["num_classes"] == 2


@pytest.mark.slow
def test_the_resolved_configuration_gives_the_same_weights_again(trained, tmp_path):
    done = ifam("train", "--config", trained / "train.yaml", "--out", tmp_path / "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, again = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path / "again"))
    assert first.keys() == again.keys()
    assert all(first[name].equal(again[name]) for name in first)
    assert yaml.safe_load((tmp_path / "again" / "train.yaml").read_text()) == yaml.safe_load(
        (trained / "train.yaml").read_text()
    )
    # A user reads no warnings but those on the model.
    assert "Warning" not in done.stderr.replace("Warning: training on folder: ", "")
    assert "brick" in done.stdout
    assert "worst group" in done.stdout


@pytest.mark.slow
def test_evaluate_knows_what_the_model_was_trained_on(trained, capsys, tmp_path):
    main(["evaluate", "--model", str(trained), "--out", str(tmp_path / "found.json")])
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["predictor"] == json.loads((trained / "results.json").read_text())["predictor"]
    assert "brick" in capsys.readouterr().out


def test_evaluate_writes_beside_the_model(trained, pictures):
    words = ["evaluate", "--model", trained, "--benchmark", "folder", "--root", pictures, "--split", "train"]
    try:
        main([str(word) for word in words])
        (path,) = trained.glob("evaluations/folder-train-*/results.json")
        assert json.loads(path.read_text())["count"] == 10
    finally:
        shutil.rmtree(trained / "evaluations")


@pytest.mark.slow
def test_predict_on_photographs(trained, photographs, tmp_path, capsys):
    files = [photographs / "astronaut.png", photographs / "cat.jpg", photographs / "coffee.jpeg"]
    words = ["predict", *files, "--model", trained, "--out", tmp_path / "out.jsonl", "--overlays", tmp_path / "drawn"]
    main([str(word) for word in words])
    names = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert names == {"astronaut.png", "cat.png", "coffee.png", "overlays.json"}
    rows = list(map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()))
    assert [Path(row["path"]).name for row in rows] == ["astronaut.png", "cat.jpg", "coffee.jpeg"]
    for row in rows:
        assert row["class_name"] in ("brick", "grass")
        assert 0.5 <= row["probability"] <= 1
        with Image.open(row["overlay"]) as picture:
            # Three views side by side.
            assert picture.width > 2 * picture.height
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("class", "probability", "visible"))


@pytest.mark.slow
def test_predict_on_a_folder_with_parts_dropped(trained, photographs, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    main(["predict", str(photographs), "--model", str(trained), "--out", str(out), "--drop_parts", "[0,1,2,3]"])
    rows = list(map(json.loads, out.read_text().splitlines()))
    assert [row["visible_fraction"] for row in rows] == [0, 0, 0]
    assert "nothing" in capsys.readouterr().out


@pytest.mark.slow
def test_training_on_pondbirds_judges_the_test_set(tmp_path):
    main(["train", *QUICK, *TINY_DATA, "--train.batch_size", "16", "--out", str(tmp_path / "run")])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["conditions"]["split"] == "test"
    assert results["count"] == 8
    assert results["mask_iou"] is not None
    assert set(results["predictor"]["groups"]) == {
        f"{bird} on {place}" for bird in ("swimmer", "percher") for place in ("water", "forest")
    }
    main(["evaluate", "--model", str(tmp_path / "run")])
    (path,) = (tmp_path / "run").glob("evaluations/pondbirds-test-*/results.json")
    content = json.loads(path.read_text())
    # The settings of the data travel with the model.
    assert content["predictor"] == results["predictor"]


# --- other methods ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    """A model of another method, by the command line."""
    out = tmp_path_factory.mktemp("runs") / "late"
    main(["train", "--method", "late_mask", *QUICK, *TINY_DATA, "--train.batch_size", "16", "--out", str(out)])
    return out


def test_help_and_documentation_name_every_method(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    page = (Path(__file__).parents[2] / "docs" / "comparisons.md").read_text()
    for name in METHODS:
        assert re.search(rf"\b{name}\b", shown), name
        assert f"| `{name}` |" in page
        assert re.search(rf"^### .*\b{name}\b", page, re.MULTILINE) or name == "ifam"


@pytest.mark.slow
def test_another_method_is_trained_saved_and_judged(late, tmp_path):
    assert yaml.safe_load((late / "train.yaml").read_text())["method"] == "late_mask"
    assert json.loads((late / "config.json").read_text())["method"] == "late_mask"
    results = json.loads((late / "results.json").read_text())
    assert results["conditions"]["method"] == "late_mask"
    main(["evaluate", "--model", str(late), "--out", str(tmp_path / "found.json")])
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["conditions"]["method"] == "late_mask"
    assert (content["predictor"], content["mask_iou"]) == (results["predictor"], results["mask_iou"])
    main(["evaluate", "--model", str(late), "--drop_parts", "[0,1,2,3]", "--out", str(tmp_path / "without.json")])
    assert json.loads((tmp_path / "without.json").read_text())["mask_iou"] == 0


@pytest.mark.slow
def test_a_run_of_another_method_is_repeated_by_its_settings(late, tmp_path):
    main(["train", "--config", str(late / "train.yaml"), "--out", str(tmp_path / "again")])
    first, again = (load_file(folder / "model.safetensors") for folder in (late, tmp_path / "again"))
    assert first.keys() == again.keys()
    assert all(first[name].equal(again[name]) for name in first)


@pytest.mark.slow
def test_a_recipe_trains_frozen_crops(tmp_path):
    recipe = Path(__file__).parents[2] / "recipes" / "pondbirds.yaml"
    words = ["--config", str(recipe), "--method", "frozen_crops", *QUICK, *TINY_DATA, "--train.batch_size", "16"]
    main(["train", *words, "--out", str(tmp_path)])
    trained = yaml.safe_load((tmp_path / "train.yaml").read_text())
    assert (trained["train"]["selector_tuning"], trained["train"]["predictor_tuning"]) == ("none", "none")
    model = load(tmp_path)
    small, large = model.selector.backbone.state_dict(), model.predictor.backbone.state_dict()
    assert small.keys() == large.keys()
    assert all(small[name].equal(large[name]) for name in small)


def test_a_former_name_of_a_method_is_refused_with_the_new_one(capsys, tmp_path):
    said = fails(capsys, "train", "--method", "attention_crops", "--out", tmp_path / "new")
    assert said == "ifam: The method 'attention_crops' is called 'trained_crops' now; use that name.\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_models_go_to_a_folder_named_by_their_method(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*QUICK, *TINY_DATA, "--train.batch_size", "16"]
    main(["train", "--method", "attentive_probe", *words])
    assert (tmp_path / "runs" / "attentive_probe" / "model.safetensors").is_file()
    # It is told what can be done with it, and what cannot.
    said = capsys.readouterr().out
    assert "ifam evaluate --model runs/attentive_probe" in said
    resolved = yaml.safe_load((tmp_path / "runs" / "attentive_probe" / "train.yaml").read_text())
    assert resolved["train"]["predictor_tuning"] == "none"
    model = ["--model", "runs/attentive_probe"]
    Image.new("RGB", (30, 30)).save(tmp_path / "x.png")
    assert "no parts to draw" in fails(capsys, "predict", "x.png", *model)
    assert "no thresholds" in fails(capsys, "thresholds", *model)
    assert "'attentive_probe', but one of 'ifam'" in fails(capsys, "audit", *model, *TINY_DATA)
    assert "does not support interventions" in fails(capsys, "evaluate", *model, "--drop_parts", "[0]")


# --- what is there stays ---------------------------------------------------------------------------------


def test_a_model_is_not_overwritten_unasked(trained, pictures, capsys):
    before = contents(trained)
    said = fails(capsys, "train", "--benchmark", "folder", "--root", pictures, "--out", trained, *QUICK)
    assert str(trained) in said
    assert "--overwrite" in said
    assert contents(trained) == before


@pytest.mark.slow
def test_a_model_is_overwritten_when_asked(pictures, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    for name in ("calibration.safetensors", "calibration.json"):
        (tmp_path / "copy" / name).write_text("of the model before")
    words = ["train", "--benchmark", "folder", "--root", pictures, "--out", tmp_path / "copy", *QUICK]
    main([str(word) for word in [*words, "--overwrite", "true", "--train.seed", "1"]])
    before, after = contents(trained), contents(tmp_path / "copy")
    assert before["model.safetensors"] != after["model.safetensors"]
    assert yaml.safe_load((tmp_path / "copy" / "train.yaml").read_text())["train"]["seed"] == 1
    assert {path.name for path in (tmp_path / "copy" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert not [name for name in after if "calibration" in name]


@pytest.fixture
def stopped(trained, tmp_path):
    """What is left of the training where it was stopped at the end of its last epoch."""
    shutil.copytree(trained, tmp_path / "stopped")
    for name in ("config.json", "model.safetensors", "results.json"):
        (tmp_path / "stopped" / name).unlink()
    return tmp_path / "stopped"


def test_a_training_that_was_stopped_is_gone_on_with_by_its_folder(trained, stopped, capsys):
    main(["train", "--out", str(stopped), "--resume"])
    assert "Preset laptop, as in the run: " in capsys.readouterr().out
    before, after = contents(trained), contents(stopped)
    for name in ("config.json", "model.safetensors", "train.yaml", "logs/metrics.csv"):
        assert after[name] == before[name], name
    results = [json.loads((folder / "results.json").read_text()) for folder in (trained, stopped)]
    assert results[0]["predictor"] == results[1]["predictor"]


def test_a_training_that_is_finished_says_so_and_changes_nothing(trained, capsys):
    before = contents(trained)
    main(["train", "--out", str(trained), "--resume"])
    assert capsys.readouterr().out == f"The training in {trained} is finished, and nothing was changed.\n"
    assert contents(trained) == before


def test_where_there_is_nothing_to_go_on_with_training_begins(pictures, tmp_path, capsys):
    assert f"There is no training in {tmp_path / 'new'} to go on with, and no images" in fails(
        capsys, "train", "--out", tmp_path / "new", "--resume"
    )
    assert not (tmp_path / "new").exists()
    main(["train", str(pictures), "--out", str(tmp_path / "new"), *QUICK, "--resume"])
    assert f"There is no checkpoint in {tmp_path / 'new'}, so that the training starts" in capsys.readouterr().out
    assert (tmp_path / "new" / "results.json").exists()


def test_without_its_settings_a_training_does_not_go_on_with_others(stopped, capsys):
    (stopped / "train.yaml").unlink()
    before = contents(stopped)
    said = fails(capsys, "train", "--out", stopped, "--resume")
    assert f"{stopped} has no train.yaml with the settings to go on with, and no images are named; check --out" in said
    assert contents(stopped) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a training that was stopped; go on with --resume, or start over with --overwrite"),
        (
            ["--resume", "--train.epochs", "2"],
            "has a training with train.epochs 1, but now it is 2; leave it as it was",
        ),
        (["--resume", "--model.num_parts", "2"], "has a training with model.num_parts 4, but now it is 2"),
        (["--resume", "--preset", "paper"], "has a training with preset 'laptop', but now it is 'paper'; leave it"),
        (["--resume", "--overwrite"], "--resume goes on with what is there, and --overwrite starts over"),
    ],
)
def test_a_training_that_was_stopped_is_not_lost(words, said, stopped, pictures, capsys):
    before = contents(stopped)
    assert said in fails(capsys, "train", pictures, "--out", stopped, *QUICK, *words)
    assert contents(stopped) == before


# Verb, what lies in the folder already, and what the verb would write there.
IN_THE_WAY = {
    "train, results": (["train", *QUICK, *TINY_DATA, "--out", "x"], "x/results.json"),
    "train, settings": (["train", *QUICK, *TINY_DATA, "--out", "x"], "x/train.yaml"),
    "train, logs": (["train", *QUICK, *TINY_DATA, "--out", "x"], "x/logs/mine.txt"),
    "train, weights": (["train", *QUICK, *TINY_DATA, "--out", "x"], "x/model.safetensors"),
    "retrain": (["retrain", "--model", "MODEL", "--out", "x"], "x/config.json"),
    "retrain, results": (["retrain", "--model", "MODEL", "--out", "x"], "x/results.json"),
    "evaluate": (["evaluate", "--model", "MODEL", "--out", "x/photo.jpg"], "x/photo.jpg"),
    "audit": (["audit", "--model", "MODEL", "--out", "x"], "x/audit.json"),
    "audit, page": (["audit", "--model", "MODEL", "--out", "x"], "x/audit.html"),
    "audit, pictures": (["audit", "--model", "MODEL", "--out", "x"], "x/audit_pictures/00000-input.webp"),
    "report": (["report", "MODEL", "--out", "x/photo.jpg"], "x/photo.jpg"),
    "convert": (["convert", "MODEL", "x"], "x/config.json"),
    "convert, weights": (["convert", "MODEL", "x"], "x/model.safetensors"),
    "convert onto itself": (["convert", "MODEL", "MODEL", "--to", "official"], None),
    "demo": (["demo", "--quick", "true", "--out", "x"], "x/compare.json"),
    "demo, page": (["demo", "--quick", "true", "--out", "x"], "x/report.html"),
    "demo, pictures": (["demo", "--quick", "true", "--out", "x"], "x/pictures.png"),
    "compare": (["compare", *QUICK, *TINY_DATA, "--out", "x"], "x/compare.json"),
    "compare, page": (["compare", *QUICK, *TINY_DATA, "--out", "x"], "x/compare.html"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("words", "there"), IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_nothing_that_is_there_is_replaced_unasked(words, there, trained, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if there is not None:
        Path(there).parent.mkdir(parents=True)
        Path(there).write_bytes(b"\xff\xd8 mine")
    before = contents(tmp_path), contents(trained)
    said = fails(capsys, *(str(trained) if word == "MODEL" else word for word in words))
    assert "choose another" in said
    assert "--overwrite" in said
    assert (contents(tmp_path), contents(trained)) == before


@pytest.mark.slow
def test_images_are_found_again_from_another_folder(pictures, tmp_path, monkeypatch):
    """A root that was given relative to one folder is known in any."""
    monkeypatch.chdir(pictures.parent)
    out = tmp_path / "model"
    main(["train", "--benchmark", "folder", "--root", pictures.name, "--out", str(out), *QUICK])
    monkeypatch.chdir(tmp_path)
    main(["evaluate", "--model", "model"])
    (path,) = out.glob("evaluations/folder-val-*/results.json")
    assert json.loads(path.read_text())["conditions"]["root"] == str(pictures)
    assert yaml.safe_load((out / "train.yaml").read_text())["root"] == str(pictures)


# Verb, and a place that nobody can write to: below a file.
BELOW_A_FILE = {
    "train": ["train", *QUICK, *TINY_DATA, "--out", "file/x"],
    "retrain": ["retrain", "--model", "nowhere", "--out", "file/x"],
    "evaluate": ["evaluate", "--model", "nowhere", "--out", "file/x.json"],
    "predict": ["predict", "nowhere.jpg", "--model", "nowhere", "--out", "file/x"],
    "audit": ["audit", "--model", "nowhere", "--out", "file"],
    "challenge": ["challenge", "--model", "nowhere", "--root", "nowhere", "--out", "file/x"],
    "report": ["report", "nowhere", "--out", "file/x.html"],
    "convert": ["convert", "nowhere", "file"],
    "demo": ["demo", "--quick", "true", "--out", "file"],
    "compare": ["compare", *QUICK, *TINY_DATA, "--out", "file/x"],
}


@pytest.mark.parametrize("words", BELOW_A_FILE.values(), ids=BELOW_A_FILE)
def test_where_nothing_can_be_written_is_known_before_anything_is_read(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine", encoding="utf-8")
    said = fails(capsys, *words)
    assert "file" in said
    assert "choose another" in said
    # Models and images come later: that they are missing is not the first complaint.
    assert "nowhere" not in said
    assert contents(tmp_path).keys() == {"file"}


@pytest.mark.slow
def test_a_training_that_fails_leaves_no_model_beside_the_settings_of_another(trained, pictures, tmp_path, capsys):
    """Whoever stops it: the folder has the settings and logs of one run, and a model of the same one or none."""
    shutil.copytree(trained, tmp_path / "copy")
    words = ["train", "--benchmark", "folder", "--root", pictures, "--out", tmp_path / "copy", *QUICK]
    said = fails(capsys, *words, "--overwrite", "true", "--train.base_lr", "1e30", "--train.clip_norm", "0")
    assert "no longer finite" in said
    left = {path.name for path in (tmp_path / "copy").iterdir()}
    assert not left & {"config.json", "model.safetensors", "results.json"}
    assert yaml.safe_load((tmp_path / "copy" / "train.yaml").read_text())["train"]["base_lr"] == 1e30
    # What a stopped run has left is replaced by the same run, and by another only when asked.
    assert "train.yaml already exists" in fails(capsys, *words)
    main([str(word) for word in [*words, "--overwrite", "true"]])
    assert json.loads((tmp_path / "copy" / "results.json").read_text())["conditions"]["weights"]


# --- bad input -------------------------------------------------------------------------------------------

BAD = {
    "no verb": ([], "verb"),
    "unknown verb": (["trian"], "'trian'"),
    "a verb that has moved": (["pretrain-tiny"], "run `python -m tools.pretrain_tiny` in a clone"),
    "unknown field": (["train", "--train.epoks", "3"], "--train.epoks"),
    "unknown option": (["evaluate", "--modle", "x"], "--modle"),
    "a word for a number": (["train", "--train.epochs", "many"], "many"),
    "unknown choice": (["train", "--train.monitor", "loss"], "worst_group"),
    "unknown mask gradient": (["train", "--model.mask_gradient", "half"], "half"),
    "unknown benchmark": (["train", "--benchmark", "pondbeasts"], "pondbirds, digits, folder"),
    "unknown setting of a benchmark": (["train", "--data.colour", "red"], "hue_spread"),
    "impossible setting": (["train", "--data.correlation", "1.5"], "correlation is 1.5, but a share from 0 to 1"),
    "no root": (["train", "--benchmark", "folder"], "--root DIR"),
    "missing root": (["train", "--benchmark", "folder", "--root", "nowhere"], "nowhere"),
    "unknown backbone": (["train", "--model.backbone", "vit_tini", *TINY_DATA], "'vit_tini'"),
    "size that the patches do not divide": (["train", *TINY, "--model.image_size", "81", *TINY_DATA], "80 or 88"),
    "no parts": (["train", *TINY, "--model.num_parts", "0", *TINY_DATA], "num_parts is 0"),
    "batch larger than the data": (["train", *TINY, *TINY_DATA, "--train.batch_size", "33"], "batch of 33"),
    "unknown method": (["train", "--method", "ifamm"], "'ifamm'; choose one of ifam, plain_vit"),
    "a setting against the method": (
        ["train", "--method", "frozen_predictor", "--train.predictor_tuning", "tokens", *TINY_DATA],
        "train.predictor_tuning = 'none', not 'tokens'",
    ),
    "a mean of bytes": (["train", *TINY, "--model.mean", "[124, 116, 104]"], "mean is 124.0, but a share from 0 to 1"),
    "an argument that is none of timm's": (
        ["train", *TINY, "--model.predictor_kwargs", "{pretrained: false}", *TINY_DATA],
        "predictor_kwargs has 'pretrained'",
    ),
    "one number for a list": (
        ["evaluate", "--drop_parts", "0"],
        "drop_parts is 0, but list[int] or null is expected (in brackets, such as '[0, 1]'), each a whole",
    ),
    "a word in a list": (["evaluate", "--drop_parts", "[0, x]"], "drop_parts is [0, 'x'], but list[int] or null"),
    "a word for a truth value": (["train", "--train.flip", "maybe"], "train.flip is maybe, but bool or null is"),
    "a word for a size": (["train", "--model.image_size", "x"], "is x, but int or tuple[int, int] or null is"),
    "a fraction of a pixel": (
        ["train", "--model.selector_image_size", "32.5"],
        "is 32.5, but int or tuple[int, int] or null is",
    ),
    "three sizes": (
        ["train", "--model.selector_image_size", "[32, 32, 32]"],
        "is [32, 32, 32], but int or tuple[int, int] or null is",
    ),
    "another aspect ratio": (
        ["train", *TINY, "--model.selector_image_size", "[40, 80]", *TINY_DATA],
        "selector_image_size is 40 x 80, but the images of 80 x 80 pixels have another aspect ratio; use 40 x 40",
    ),
    "fewer seeds than none": (["demo", "--seeds", "-1"], "seeds is -1, but a whole number of at least 1"),
    "an empty folder's name": (["convert", "nowhere", ""], "An empty path is given to `ifam convert`"),
    "a split without a name": (["evaluate", "--split", ""], "split is empty"),
    "no epochs": (["train", *QUICK, *TINY_DATA, "--train.epochs", "0"], "epochs is 0"),
    "missing configuration": (["train", "--config", "no.yaml"], "no.yaml"),
    "evaluating no model": (["evaluate", "--model", "nowhere"], "nowhere"),
    "predicting without a model": (["predict", "x.png", "--model", "nowhere"], "nowhere"),
    "predicting nothing": (["predict", "--model", "nowhere"], "images"),
    "converting nothing": (["convert", "nowhere.pt", "out"], "nowhere.pt"),
    "no seed at all": (["demo", "--seeds", "0"], "seeds is 0"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("words", "named"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = ["--out", "new"] if words[:1] == ["train"] else []
    assert named in fails(capsys, *words, *out)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--train.precision", "16-mixed"], ["--train.accelerator", "gpu"]])
def test_a_model_is_not_removed_for_settings_that_cannot_be_trained(words, trained, pictures, capsys, tmp_path):
    model = shutil.copytree(trained, tmp_path / "model")
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    where = ["--benchmark", "folder", "--root", pictures, "--out", model, "--overwrite"]
    assert f"{words[0].removeprefix('--')}" in fails(capsys, "train", *where, *QUICK, *words)
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


def test_what_a_verb_is_about_needs_no_name(pictures, trained, capsys, tmp_path):
    _, chosen = parse(["train", str(pictures), "--train.epochs", "2"])
    assert (chosen["root"], chosen["benchmark"], chosen["train"].epochs) == (pictures, "folder", 2)
    assert parse(["train", "--root", str(pictures)])[1]["benchmark"] == "folder"
    assert parse(["train", str(pictures), "--benchmark", "cub"])[1]["benchmark"] == "cub"
    assert parse(["train"])[1]["benchmark"] == "pondbirds"
    recipe = str(Path(__file__).parents[2] / "recipes" / "waterbirds_k4.yaml")
    assert parse(["train", str(pictures), "--config", recipe])[1]["benchmark"] == "waterbirds"
    assert parse(["evaluate", str(trained), "--split", "val"])[1]["model"] == str(trained)
    assert "stands for --root, which is given as well" in fails(capsys, "train", "x", "--root", pictures)
    assert "--root is an empty path" in fails(capsys, "train", "")
    drawn = fails(capsys, "train", pictures, "--benchmark", "pondbirds", *QUICK)
    assert f"pondbirds is drawn and has no files, but {pictures} is given" in drawn


def test_a_device_that_holds_no_numbers_is_refused(trained, capsys):
    assert "There is no device 'meta' here" in fails(capsys, "evaluate", "--model", trained, "--device", "meta")


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--train.precision", "--train.accelerator", "--train.strategy", "--train.devices"])
def test_what_lightning_refuses_is_a_sentence_too(option, capsys, tmp_path):
    said = fails(capsys, "train", *QUICK, *TINY_DATA, option, "bogus", "--out", tmp_path / "new")
    # Lightning does not repeat what it was given as devices.
    assert "bogus" in said or option == "--train.devices"
    assert option.removeprefix("--") in said
    assert not (tmp_path / "new" / "config.json").exists()


def test_the_field_of_a_configuration_file_that_is_unknown_is_named(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("train:\n  epoks: 3\n")
    assert "epoks" in fails(capsys, "train", "--config", tmp_path / "mine.yaml", "--out", tmp_path / "new")
    (tmp_path / "mine.yaml").write_text("train: [unclosed\n")
    assert "config" in fails(capsys, "train", "--config", tmp_path / "mine.yaml", "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_class_folder_without_an_image(pictures, capsys, tmp_path):
    shutil.copytree(pictures, tmp_path / "copy")
    (tmp_path / "copy" / "hollow").mkdir()
    words = ["train", "--benchmark", "folder", "--root", tmp_path / "copy", "--out", tmp_path / "new", *QUICK]
    assert "hollow" in fails(capsys, *words)
    (tmp_path / "copy" / "hollow" / "x.jpg").write_text("hello")
    assert "x.jpg" in fails(capsys, *words)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_predict_refuses_what_it_cannot_read(trained, photographs, capsys, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    (tmp_path / "empty").mkdir()
    words = ["predict", "--model", trained, "--out", tmp_path / "out.jsonl", "--strict", "true"]
    for given, named in ((tmp_path / "gone.png", "gone.png"), (text, "notes.txt"), (tmp_path / "empty", "empty")):
        assert named in fails(capsys, *words, given)
        assert not (tmp_path / "out.jsonl").exists()
    main([str(word) for word in [*words[:-2], text, photographs / "cat.jpg"]])
    bad, good = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert (Path(bad["path"]).name, bad["error"]) == ("notes.txt", "cannot identify image file")
    assert (Path(good["path"]).name, good["error"]) == ("cat.jpg", None)


@pytest.mark.parametrize("option", ["--drop_parts", "--keep_parts"])
def test_a_part_that_is_not_there_names_the_range(option, trained, photographs, capsys, tmp_path):
    words = ["predict", photographs / "cat.jpg", "--model", trained, "--out", tmp_path / "out", option, "[7]"]
    said = fails(capsys, *words)
    assert "7" in said
    assert re.search(r"0 (to|\.\.) 3", said)


def test_evaluate_refuses_other_classes(trained, pictures, capsys, tmp_path):
    for names in (("brick", "grass", "water"), ("brick", "water")):
        root = tmp_path / "-".join(names)
        for name in names:
            (root / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (20, 20)).save(root / name / f"{i}.png")
        said = fails(capsys, "evaluate", "--model", trained, "--benchmark", "folder", "--root", root)
        assert "has a class 'water', but only brick, grass are known from the model" in said
    said = fails(capsys, "evaluate", "--model", trained, "--root", pictures, "--split", "test")
    assert "no split 'test'" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--train.epoks", "3"], "`ifam train --help`"),
        (["--data.hue_spread", "wide"], "data.hue_spread is wide, but 0 or a positive number is expected"),
    ],
)
def test_the_program_itself_prints_one_line_and_no_traceback(tmp_path, words, named):
    done = ifam("train", *words, "--out", "new", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    *before, sentence = done.stderr.splitlines()
    assert all(": still working, " in line for line in before)
    assert sentence.startswith("ifam: ")
    assert named in sentence
    assert not list(tmp_path.iterdir())


# --- without a network -----------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network, and nothing that was fetched earlier."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.slow
def test_without_a_network_the_embedded_backbone_takes_the_defaults_place(offline, pictures, tmp_path, capsys):
    words = ["train", "--benchmark", "folder", "--root", str(pictures), "--out", str(tmp_path / "new")]
    words += ["--train.epochs", "1", "--model.num_parts", "2", "--train.seed", "0"]
    # Never by itself: the error names the three ways out.
    refused = fails(capsys, *words)
    assert re.search(
        r"weights of vit_small_patch14_reg4_dinov2\.lvd142m are unavailable \(.*network.*--model\.backbone DIR"
        r".*--model\.backbone ifam_tiny .*--allow-tiny-backbone",
        refused,
    )
    assert not (tmp_path / "new").exists()
    main([*words, "--allow-tiny-backbone"])
    said = capsys.readouterr().err
    assert "Warning: The pretrained weights of vit_small_patch14_reg4_dinov2.lvd142m" in said
    assert "ifam_tiny" in said
    resolved = yaml.safe_load((tmp_path / "new" / "train.yaml").read_text())
    assert resolved["model"]["backbone"] == "ifam_tiny"
    assert resolved["model"]["image_size"] == 80
    # What was asked for holds.
    assert resolved["model"]["num_parts"] == 2
    assert resolved["train"]["epochs"] == 1
    # The rest suits a small backbone and ten images.
    assert resolved["train"]["batch_size"] == 2
    assert resolved["train"]["selector_tuning"] == TINY_TRAIN.selector_tuning
    assert resolved["train"]["base_lr"] == TINY_TRAIN.base_lr


@pytest.mark.slow
def test_the_embedded_backbone_takes_the_defaults_place_for_other_methods(offline):
    images = load_benchmark("pondbirds", options={"num_train": 8, "num_val": 8, "num_test": 8})
    config = ModelConfig(num_classes=2)
    for method in ("trained_crops", "frozen_crops", "attentive_probe"):
        plan = build(
            config, apply_method_defaults(method, TrainConfig()), LossConfig(), images, method, allow_tiny_backbone=True
        )
        assert plan.model.method == method
        assert plan.config.backbone == "ifam_tiny"
        assert plan.train.base_lr == TINY_TRAIN.base_lr
        assert plan.train.predictor_tuning == ("all" if method == "trained_crops" else "none")


def test_true_masks_that_are_missing_are_missed_before_training(pictures, capsys, tmp_path):
    words = ["train", "--method", "given_mask", "--benchmark", "folder", "--root", pictures, "--out", tmp_path / "new"]
    assert "given_mask needs true masks, and folder has none" in fails(capsys, *words, *QUICK)
    assert not (tmp_path / "new").exists()


def test_a_backbone_that_was_asked_for_is_never_replaced(offline, pictures, tmp_path, capsys):
    words = ["train", "--benchmark", "folder", "--root", pictures, "--out", tmp_path / "new"]
    name = "vit_small_patch14_dinov2.lvd142m"
    said = fails(capsys, *words, "--model.backbone", name)
    assert f"The pretrained weights of {name} are unavailable" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("joined", [False, True])
def test_a_yaml_file_with_a_mistake_is_named(tmp_path, capsys, joined):
    path = tmp_path / "wrong.yaml"
    path.write_text("benchmark: [never closed\n")
    words = [f"--config={path}"] if joined else ["--config", str(path)]
    with pytest.raises(SystemExit) as caught:
        main(["train", *words])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert f"in {path}, line 1" in said
    assert "unicode" not in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_name_that_the_terminal_cannot_show_does_not_end_the_run(trained, tmp_path):
    name = os.fsdecode("größe.png".encode())
    Image.new("RGB", (30, 30)).save(tmp_path / name)
    words = ["predict", tmp_path / name, "--model", trained, "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "ifam.cli", *map(str, words)],
        capture_output=True,
        cwd=tmp_path,
        env={**OFFLINE, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert b"gr" in done.stdout


# --- what was asked for ----------------------------------------------------------------------------------

_FROZEN = "train.predictor_tuning = 'none', not 'all'"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--method", "frozen_predictor", "--train.predictor_tuning", "all"],
            "train.predictor_tuning = 'none', not 'all'",
        ),
        (["--method", "attentive_probe", "--train.predictor_tuning=all"], _FROZEN),
        (["--method", "group_dro", "--train.group_dro", "null"], "train.group_dro = 0.01, not None"),
        (["--model.num_classes", "2", "--data.num_classes", "3"], "model.num_classes is 2, but pondbirds has 3"),
        (["--model.num_classes", "7"], "model.num_classes is 7, but pondbirds has 2"),
        (["--model.class_names", "[a, b]"], "model.class_names is"),
    ],
)
def test_what_was_asked_for_is_never_overridden_in_silence(words, said, capsys, tmp_path):
    assert said in fails(capsys, "train", *QUICK, *TINY_DATA, *words, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_was_asked_for_in_a_file_counts_too(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("method: frozen_predictor\ntrain:\n  predictor_tuning: all\n")
    said = fails(capsys, "train", *QUICK, *TINY_DATA, "--config", tmp_path / "mine.yaml", "--out", tmp_path / "new")
    assert "train.predictor_tuning = 'none', not 'all'" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train.seed", "3"], "train.seed is 3, but a comparison takes its seeds from --seeds"),
        (
            ["--methods", "[frozen_predictor]", "--train.predictor_tuning", "all"],
            "predictor_tuning = 'none', not 'all'",
        ),
    ],
)
def test_a_comparison_overrides_nothing_in_silence(words, said, capsys, tmp_path):
    assert said in fails(capsys, "compare", *QUICK, *TINY_DATA, *words, "--out", tmp_path / "new")


def test_flags_stand_alone_or_with_a_value():

    for words in (
        ["--overwrite"],
        ["--overwrite", "true"],
        ["--overwrite=true"],
        ["--overwrite", "--train.epochs", "3"],
    ):
        assert parse(["train", *words])[1]["overwrite"] is True
    for words in ([], ["--overwrite", "false"], ["--overwrite=false"]):
        assert parse(["train", *words])[1]["overwrite"] is False
    assert parse(["predict", "x.png", "--strict"])[1]["strict"] is True
    assert parse(["train", "--allow_tiny_backbone"])[1]["allow_tiny_backbone"] is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "--batch_size", "0"], "batch_size is 0, but a whole number of at least 1 is expected"),
        (["evaluate", "--workers=-1"], "workers is -1"),
        (["evaluate", "--seed=-1"], "seed is -1, but a whole number from 0 to 4294967295 is expected"),
        (["evaluate", "--num_resamples=-5"], "num_resamples is -5"),
        (["evaluate", "--drop_unsure", ".nan"], "drop_unsure is nan, but a share between 0 and 1 is expected"),
        (["evaluate", "--drop_unsure", "nan"], "drop_unsure is nan, but a share between 0 and 1 is expected"),
        (["evaluate", "--drop_parts", "[-1]"], "drop_parts is -1"),
        (["audit", "--limit", "0"], "limit is 0"),
        (["audit", "--explain=-1"], "explain is -1"),
        (["thresholds", "--quantiles", "[0.5, 1.0]"], "quantiles is 1.0"),
        (["thresholds", "--quantiles", "[nan]"], "such as '[0, 1]'), each a share between 0 and 1;"),
        (["retrain", "--draws", "0"], "draws is 0"),
        (["compare", "--seeds", "[0, -1]"], "seeds is -1"),
        (["demo", "--seeds", "nan"], "seeds is nan, but a whole number of at least 1 is expected"),
        (["demo", "--threads", "0"], "threads is 0"),
        (["train", "--train.clip_norm=-1"], "train.clip_norm is -1.0, but 0 (off) or a positive number is expected"),
        (["train", "--loss.entropy=-1"], "loss.entropy is -1.0, but 0 (off) or a positive number is expected"),
        (["train", "--loss.entropy=nan"], "loss.entropy is nan, but 0 (off) or a positive number is expected"),
        (["train", "--train.clip_norm", "inf"], "train.clip_norm is inf, but 0 (off) or a positive number is expected"),
        (["train", "--model.mask_resolution=nan"], "is nan, but 'patch' or a whole number of at least 1 is expected"),
    ],
)
def test_numbers_out_of_their_range_are_refused_before_work_begins(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in fails(capsys, *words)
    assert not list(tmp_path.iterdir())
