"""`ifam evaluate` and `thresholds` on the command line."""

import json
import logging
import re
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import miniatures
from ifam.checkpoints.hub import load
from ifam.cli.main import main
from ifam.data import load_benchmark
from ifam.errors import IfamError
from ifam.evaluation.accuracy import evaluate
from ifam.models.interventions import DropParts, DropUnsure, KeepParts
from ifam.models.token_cache import Place, cached_tokens

DATA = {"num_train": 30, "num_val": 4, "num_test": 12}
FEW = ["--num_resamples", "50", "--batch_size", "5"]


def run(*words):
    main([str(word) for word in words])


def fails(capsys, *words):
    """The one sentence of a command that must be refused; warnings may come before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    *before, sentence = said.err.splitlines()
    assert all(line.startswith("Warning: ") for line in before)
    assert sentence.startswith("ifam: ")
    return f"{sentence}\n"


@pytest.fixture
def save(make_model):
    """A function that saves a tiny model with random weights, and gives its folder back."""

    def save(folder, classes, extra=None, **fields):
        make_model(num_classes=classes, **fields).save_pretrained(folder, extra)
        return folder

    return save


@pytest.fixture
def model(tmp_path, save):
    """A model that remembers pondbirds."""
    return save(tmp_path / "model", 2, {"benchmark": "pondbirds", "data": DATA, "root": None})


def result(model, *words):
    """What `evaluate` writes."""
    target = model.parent / "found.json"
    run("evaluate", "--model", model, "--out", target, "--overwrite", "true", *FEW, *words)
    return json.loads(target.read_text())


def expected(model, split="test", **settings):
    return evaluate(load(model), load_benchmark("pondbirds", options=DATA), split, num_resamples=0, **settings)


def test_everything_that_a_result_depends_on_is_written(model, capsys):
    content = result(model, "--seed", 3)
    conditions = content["conditions"]
    assert conditions["config"]["num_parts"] == 3
    assert conditions["config"]["backbone"] == "vit_tiny_patch16_224"
    assert (conditions["seed"], conditions["split"], conditions["benchmark"]) == (3, "test", "pondbirds")
    assert conditions["note"].startswith("validation: 4 images")
    assert conditions["interventions"] == {}
    assert conditions["trained"]["data"] == DATA
    assert all(conditions[name] for name in ("ifam_version", "time"))
    assert "git_revision" in conditions
    assert "seed 3" in content["extra"]["intervals"]
    assert content["count"] == 12
    assert sum(row["count"] for row in content["predictor"]["groups"].values()) == 12
    for who in ("predictor", "selector"):
        assert set(content[who]["intervals"]) == {"average", "worst_group", "macro", "weighted_average", "auroc"}
        low, high = content[who]["intervals"]["average"]
        assert low <= content[who]["average"] <= high
    shown = capsys.readouterr().out
    for words in ("mean over classes", "AUROC", "worst group", "50 resamples"):
        assert words in shown
    assert "without part" not in shown


@pytest.mark.parametrize("kept_at", ["tokens", "../tokens"])
def test_tokens_of_the_run_or_of_its_comparison_are_used(tmp_path, save, caplog, kept_at):
    caplog.set_level(logging.INFO)
    where = {"benchmark": "pondbirds", "data": DATA, "root": None}
    model = save(tmp_path / "models" / "ifam-0", 2, where)
    with cached_tokens(load(model).selector, Place(model.parent / kept_at, 12)) as cache:
        cache(torch.zeros(1, 3, *load(model).image_size))
    result(model)
    assert "; 1 were known" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["--drop_parts", "[0,2]"], [DropParts([0, 2])]),
        (["--drop-parts", "[0,2]"], [DropParts([0, 2])]),
        (["--drop-parts=[0,2]"], [DropParts([0, 2])]),
        (["--keep_parts", "[1]"], [KeepParts([1])]),
        (["--keep-parts", "[1]", "--drop-parts", "[1]"], [DropParts([1]), KeepParts([1])]),
    ],
)
def test_parts_are_dropped_and_kept(model, words, changes):
    content, wanted = result(model, *words), expected(model, interventions=changes)
    assert content["predictor"]["average"] == wanted.predictor.average
    assert content["visible_fraction"] == wanted.visible_fraction
    assert content["visible_fraction"] < expected(model).visible_fraction
    assert set(content["conditions"]["interventions"]) == {
        w.split("=")[0][2:].replace("-", "_") for w in words if "--" in w
    }


@pytest.mark.slow
def test_unsure_patches_need_thresholds(model, capsys):
    before = load_file(model / "model.safetensors")
    said = fails(capsys, "evaluate", "--model", model, "--drop_unsure", "0.3")
    assert f"`ifam thresholds --model {model}`" in said
    run("thresholds", "--model", model, "--quantiles", "[0.1,0.3]", "--batch-size", "7")
    shown = capsys.readouterr().out
    assert "30 images of pondbirds, train" in shown
    assert all(torch.equal(value, before[name]) for name, value in load_file(model / "model.safetensors").items())
    kept = json.loads((model / "config.json").read_text())["extra"]["thresholds"]
    assert len(kept["values"]) == 2
    content = result(model, "--drop-unsure", "0.3")
    used = content["conditions"]["interventions"]
    assert used["drop_unsure"] == 0.3
    assert used["thresholds"]["values"] == kept["values"][1]
    assert (used["thresholds"]["split"], used["thresholds"]["images"]) == ("train", 30)
    limits = [float("-inf") if value is None else value for value in kept["values"][1]]
    wanted = expected(model, interventions=[DropUnsure(limits)])
    assert content["visible_fraction"] == wanted.visible_fraction < expected(model).visible_fraction
    assert "thresholds" not in content["conditions"]["trained"]
    assert "0.1, 0.3" in fails(capsys, "evaluate", "--model", model, "--drop_unsure", "0.2")


@pytest.mark.slow
def test_thresholds_are_replaced_by_the_same_or_when_asked(model, capsys, save):
    words = ["thresholds", "--model", model, "--batch-size", "7"]
    run(*words, "--quantiles", "[0.1]")
    kept = (model / "config.json").read_text()
    run(*words, "--quantiles", "[0.1]")
    assert (model / "config.json").read_text() == kept
    for more in (["--quantiles", "[0.2]"], ["--quantiles", "[0.1]", "--limit", "3"]):
        assert "--overwrite" in fails(capsys, *words, *more)
    assert (model / "config.json").read_text() == kept
    run(*words, "--quantiles", "[0.2]", "--overwrite", "true")
    run("evaluate", "--model", model, *FEW, "--drop_unsure", "0.2")
    # The weights of another model in the place of those that the thresholds are of.
    other = save(model.parent / "other", 2)
    tensors = load_file(other / "model.safetensors")
    tensors["selector.prototypes"] = tensors["selector.prototypes"] + 1
    save_file(tensors, model / "model.safetensors")
    said = fails(capsys, "evaluate", "--model", model, *FEW, "--drop_unsure", "0.2")
    assert "were computed with other weights" in said


@pytest.mark.slow
def test_leaving_each_part_out(model, capsys):
    content = result(model, "--leave-one-out", "true")
    assert list(content["leave_one_out"]) == [f"without part {part}" for part in range(3)]
    for part, row in enumerate(content["leave_one_out"].values()):
        wanted = expected(model, interventions=[DropParts([part])])
        assert row["predictor"]["average"] == wanted.predictor.average
        assert row["visible_fraction"] == wanted.visible_fraction
    shown = capsys.readouterr().out
    assert all(f"without part {part}" in shown for part in range(3))
    assert content["predictor"]["average"] == expected(model).predictor.average


@pytest.mark.slow
def test_the_true_mask_is_shown_instead(model, capsys):
    content = result(model, "--mask_from", "mask")
    assert content["mask_iou"] == 1
    assert content["visible_fraction"] == expected(model, true_masks=True).visible_fraction
    assert content["conditions"]["interventions"] == {"mask_from": "mask"}
    assert "'outline'" in fails(capsys, "evaluate", "--model", model, "--mask_from", "outline")


@pytest.mark.slow
def test_the_mask_is_a_column_of_a_list(tmp_path, capsys, save):
    """Two columns of masks: where the bird is, and where it is not."""
    miniatures.folder(tmp_path / "images")
    lines = ["path,label,split,bird,sky"]
    for path in sorted((tmp_path / "images").rglob("*.*")):
        miniatures.draw_mask(tmp_path / "masks" / f"{path.stem}.png")
        pixels = Image.open(tmp_path / "masks" / f"{path.stem}.png").point(lambda value: 255 - value)
        pixels.save(tmp_path / "masks" / f"{path.stem}-sky.png")
        split = ("train", "val", "test")[int(path.stem) % 3]
        lines.append(f"images/{path.parent.name}/{path.name},{path.parent.name},{split},"
                     f"masks/{path.stem}.png,masks/{path.stem}-sky.png")  # fmt: skip
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    model = save(tmp_path / "model", 2, class_names=("duck", "wren"))
    words = ["--benchmark", "folder", "--root", tmp_path, "--data.csv", "list.csv"]
    bird, sky = (result(model, *words, "--mask-from", name)["visible_fraction"] for name in ("bird", "sky"))
    assert 0 < bird < 1
    assert bird + sky == pytest.approx(1, abs=0.15)
    # What is shown is compared with the true mask, and not with itself.
    true = [*words, "--data.mask_column", "bird", "--mask-from"]
    assert (result(model, *true, "mask")["mask_iou"], result(model, *true, "bird")["mask_iou"]) == (1, 1)
    assert result(model, *true, "sky")["mask_iou"] < 0.1
    assert result(model, *words)["mask_iou"] is None
    assert "sea" in fails(capsys, "evaluate", "--model", model, *words, "--mask_from", "sea")
    assert "has no mask for image" in fails(capsys, "evaluate", "--model", model, *words, "--mask_from", "mask")


# --- what is kept ----------------------------------------------------------------------------------------


def kept(model):
    """The folders of the evaluations of a model."""
    return sorted(path.parent.name for path in model.glob("evaluations/*/results.json"))


@pytest.mark.slow
def test_results_under_other_conditions_are_kept_beside_each_other(model, save):
    names = set()
    for words in (
        [],
        ["--drop_parts", "[0,1]"],
        ["--split", "val", "--leave_one_out", "true"],
        ["--data.correlation", "0.5"],
        ["--data.background", "swapped"],
        ["--seed", "1"],
        ["--mask_from", "mask"],
    ):
        run("evaluate", "--model", model, *FEW, *words)
        names |= {name.rpartition("-")[0] for name in kept(model)}
    assert len(kept(model)) == 7
    assert names == {
        "pondbirds-test",
        "pondbirds-test-drop_parts-0-1",
        "pondbirds-val-leave_one_out",
        "pondbirds-test-mask_from-mask",
    }
    # The same conditions again, and speed, are the same run; other weights are another.
    run("evaluate", "--model", model, *FEW[:2], "--batch_size", "3")
    assert len(kept(model)) == 7
    save(model, 2, {"benchmark": "pondbirds", "data": DATA, "root": None}, num_parts=2)
    run("evaluate", "--model", model, *FEW)
    assert len(kept(model)) == 8


@pytest.mark.slow
def test_a_result_on_other_images_is_kept_beside_the_first(tmp_path, save):
    for name in ("a", "b"):
        miniatures.folder(tmp_path / name)
    model = save(
        tmp_path / "model", 2, {"benchmark": "folder", "root": str(tmp_path / "a")}, class_names=("duck", "wren")
    )
    words = ["evaluate", "--model", model, *FEW, "--split", "train"]
    run(*words)
    run(*words, "--root", tmp_path / "b")
    assert len(kept(model)) == 2
    # An image that has changed on disk counts as well.
    path = min((tmp_path / "a").rglob("*.*"))
    Image.new("RGB", (30, 30)).save(path)
    run(*words)
    assert len(kept(model)) == 3
    run(*words)
    assert len(kept(model)) == 3


@pytest.mark.slow
def test_a_file_is_replaced_by_the_same_run_or_when_asked(model, tmp_path, capsys):
    config = (model / "config.json").read_text()
    assert "is not a result of `ifam`" in fails(capsys, "evaluate", "--model", model, "--out", model / "config.json")
    assert (model / "config.json").read_text() == config
    words = ["evaluate", "--model", model, *FEW, "--out", tmp_path / "x.json"]
    run(*words)
    run(*words)
    before = (tmp_path / "x.json").read_text()
    assert "a result under other conditions" in fails(capsys, *words, "--drop_parts", "[0]")
    assert (tmp_path / "x.json").read_text() == before
    run(*words, "--drop_parts", "[0]", "--overwrite", "true")
    assert "drop_parts" in (tmp_path / "x.json").read_text()


def test_what_cannot_be_written_is_known_before_anything_is_measured(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("ifam.checkpoints.hub.load", lambda model: pytest.fail("the model was loaded"))
    for out in (tmp_path / "file" / "x.json", tmp_path):
        assert "choose another" in fails(capsys, "evaluate", "--model", model, "--out", out)
    (model / "evaluations").write_text("mine")
    assert "evaluations is a file" in fails(capsys, "evaluate", "--model", model)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_was_measured_is_printed_even_where_it_cannot_be_written(model, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run("evaluate", "--model", model, *FEW, "--out", "/dev/full")
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert "worst group" in said.out
    assert "/dev/full cannot be written (No space left" in said.err


def test_what_cannot_be_printed_is_written_even_so(model, tmp_path, monkeypatch):
    """As with `ifam evaluate | head -1`."""

    def closed(evaluation, title):
        raise BrokenPipeError

    monkeypatch.setattr("ifam.report.console.print_evaluation", closed)
    with pytest.raises((BrokenPipeError, SystemExit)):
        run("evaluate", "--model", model, *FEW, "--out", tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["count"] == 12


@pytest.mark.slow
def test_a_result_about_other_weights_than_those_beside_it_says_so(model, save, tmp_path, caplog):
    run("evaluate", "--model", model, *FEW, "--out", model / "results.json")
    run("evaluate", "--model", model, *FEW)
    run("report", model, "--out", tmp_path / "before.html")
    assert not caplog.records
    save(model, 2, {"benchmark": "pondbirds", "data": DATA, "root": None}, num_parts=2)
    run("evaluate", "--model", model, *FEW)
    assert "results.json was measured on other weights" in caplog.text
    run("report", model, "--out", tmp_path / "after.html")
    pages = [(tmp_path / name).read_text() for name in ("before.html", "after.html")]
    assert "weights of the model have changed since" not in pages[0]
    assert "weights of the model have changed since" in pages[1]


def test_images_that_are_no_longer_where_they_were_are_named(tmp_path, save, capsys):
    model = save(tmp_path / "model", 2, {"benchmark": "folder", "root": "photos"}, class_names=("duck", "wren"))
    said = fails(capsys, "evaluate", "--model", model)
    assert "photos, which does not exist here; give their folder with --root" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r", "imagenet_v2", "imagenet", "imagenet9"])
def test_a_model_of_a_thousand_classes(name, tmp_path, save):
    options = miniatures.MINIATURES[name](tmp_path / "data")
    model = save(tmp_path / "model", 1000)
    words = [word for key, value in options.items() for word in (f"--data.{key}", json.dumps(value))]
    content = result(model, "--benchmark", name, "--root", tmp_path / "data", "--split", "test", *words)
    wanted = evaluate(load(model), load_benchmark(name, tmp_path / "data", options), num_resamples=0)
    assert content["predictor"]["average"] == wanted.predictor.average
    assert (content["predictor"]["top5"] is None) == (name == "imagenet9")


def test_birds_of_cub_on_the_backgrounds_of_waterbirds(tmp_path, capsys, save):
    miniatures.waterbirds(tmp_path / "data")
    names = load_benchmark("cub", tmp_path / "data").class_names
    model = save(
        tmp_path / "model", 3, {"benchmark": "cub", "root": str(tmp_path / "data"), "data": {}}, class_names=names
    )
    words = ["--benchmark", "waterbirds", "--root", tmp_path / "data"]
    content = result(model, *words, "--data.labels", "species")
    assert content["count"] == 6
    assert set(content["predictor"]["classes"]) == set(names)
    assert all(" on " in name for name in content["predictor"]["groups"])
    assert "2 classes, but the model has 3" in fails(capsys, "evaluate", "--model", model, *words)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_sentence_whichever_process_meets_it(tmp_path, capsys, workers, save):
    miniatures.folder(tmp_path / "data")
    path = tmp_path / "data" / "wren" / "003.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    model = save(tmp_path / "model", 2, class_names=("duck", "wren"))
    words = ["--benchmark", "folder", "--root", tmp_path / "data", "--split", "train", "--data.check", "false"]
    said = fails(capsys, "evaluate", "--model", model, *words, "--workers", workers)
    assert said.startswith(f"ifam: {path} ")
    assert "Caught" not in said
    assert "worker" not in said


@pytest.mark.slow
def test_an_error_keeps_its_own_words(capsys, monkeypatch):
    for text in ("There is no x.", "a: b: c.", "ends with IfamError: y."):
        monkeypatch.setattr(
            "ifam.checkpoints.hub.read", lambda model, text=text: (_ for _ in ()).throw(IfamError(text))
        )
        assert fails(capsys, "evaluate") == f"ifam: {text}\n"


def test_an_unknown_device_is_named(model, capsys):
    for name in ("gpu", "cuda:99"):
        assert repr(name) in fails(capsys, "evaluate", "--model", model, "--device", name)


def test_the_revision_is_that_of_the_sources_and_of_no_repository_around_an_installation(tmp_path):
    from ifam.provenance import _revision

    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", *words], check=True)

    installed = tmp_path / ".venv" / "lib" / "site-packages" / "ifam"
    for folder in (installed, tmp_path / "src" / "ifam"):
        folder.mkdir(parents=True)
    assert _revision(Path("/")) is None
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "first")
    assert re.fullmatch("[0-9a-f]{7,}", _revision(tmp_path / "src" / "ifam"))
    assert _revision(installed) is None


def test_a_folder_without_splits_is_judged_whole_and_said_in_the_first_line(tmp_path, save, capsys):
    """One of the two classes that the model knows, and an image alone: as many as there are, by their names."""
    miniatures.folder(tmp_path / "trained")
    classes = {"benchmark": "folder", "root": str(tmp_path / "trained")}
    model = save(tmp_path / "model", 2, classes, class_names=("duck", "wren"))
    (tmp_path / "new" / "wren").mkdir(parents=True)
    Image.new("RGB", (70, 64)).save(tmp_path / "new" / "wren" / "only.png")
    capsys.readouterr()
    target = tmp_path / "new.json"
    run("evaluate", "--model", model, "--root", tmp_path / "new", "--out", target, *FEW)
    assert capsys.readouterr().out.splitlines()[0] == "1 image of 1 class, no split named"
    classes = json.loads(target.read_text())["predictor"]["classes"]
    assert {name: row["count"] for name, row in classes.items() if row["count"]} == {"wren": 1}
    # The folder that it was trained on: the images that were set aside, and no others.
    run("evaluate", "--model", model, *FEW)
    assert "validation: 20% of the training images" in capsys.readouterr().out.splitlines()[0]
