"""`ifam compare`, with real trainings of two steps: its figures, its table, and that nothing is trained twice."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import miniatures
from ifam.checkpoints import hub
from ifam.cli.main import main
from ifam.cli.parser import build_parser
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import TransformedDataset, collate, load_benchmark
from ifam.evaluation.accuracy import evaluate
from ifam.experiments.comparison import Comparison, check_rows, read_rows
from ifam.models.registry import METHODS, build
from ifam.serialization import to_json
from ifam.training import presets
from ifam.training.fit import fit, seed_everything
from ifam.training.last_layer import retrain
from ifam.training.module import epochs_of_method
from ifam.training.resume import Checkpoints

pytestmark = pytest.mark.slow

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "compare").glob("*.yaml"))
DATA = {"num_train": 32, "num_val": 32, "num_test": 16, "correlation": 0.75, "image_size": 40}
MODEL = {"backbone": "ifam_tiny", "image_size": 40, "num_parts": 3}
RATES = {"base_lr": 1e-3, "head_lr_factor": 2.0, "prototype_lr_factor": 40.0, "modulation_lr_factor": 20.0}
TRAIN = {"epochs": 1, "batch_size": 16, "monitor": "accuracy", "accelerator": "cpu", **RATES}
METHOD_ROWS = {"plain_vit": {}, "plain_vit+dfr": None, "one part": {"method": "ifam", "model": {"num_parts": 1}}}
SETTINGS = {"methods": METHOD_ROWS, "seeds": [0, 1], "data": DATA, "model": MODEL, "train": TRAIN, "num_resamples": 0}


def compare(folder, **changes):
    """Run the verb on a file of settings, and give the folder of its results."""
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump({**SETTINGS, "out": str(folder / "out"), **changes}, sort_keys=False))
    main(["compare", "--config", str(file)])
    return folder / "out"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A comparison of three rows with two seeds; its models are kept."""
    return compare(tmp_path_factory.mktemp("done"), save_models=True, pictures=1)


def lines(out):
    entries = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    return {(run["row"], run["seed"]): run for run in entries}


def table(out):
    return json.loads((out / "compare.json").read_text())


def test_a_training_that_was_stopped_goes_on_where_it_was(done, tmp_path, monkeypatch):
    """The second training is stopped after its first step."""
    save, trained = Checkpoints.save, []

    def stopping(self, trainer, name):
        save(self, trainer, name)
        trained.append(trainer.global_step)
        if trained == [1, 2, 2, 2, 1]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "interval", 0.0)
        patch.setattr(Checkpoints, "save", stopping)
        # As Lightning ends a program.
        with pytest.raises(SystemExit):
            compare(tmp_path, seeds=[0])
    assert set(lines(tmp_path / "out")) == {("plain_vit", 0), ("plain_vit+dfr", 0)}
    (last,) = (tmp_path / "out").glob("unfinished/*/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 1
    out = compare(tmp_path, seeds=[0])
    assert not (out / "unfinished").exists()
    for key, run in lines(out).items():
        for name in ("evaluation", "history", "best_epoch", "groups"):
            assert run[name] == lines(done)[key][name], (key, name)


# --- figures ---------------------------------------------------------------------------------------------


def test_every_row_is_run_with_every_seed(done):
    assert set(lines(done)) == {(row, seed) for row in METHOD_ROWS for seed in (0, 1)}


def test_a_run_is_what_training_and_evaluation_by_hand_give(done):
    birds = load_benchmark("pondbirds", options={**DATA, "seed": 1})
    config = ModelConfig(**MODEL, num_classes=2, class_names=birds.class_names)
    seed_everything(1)
    model = build("plain_vit", config)
    fit(model, birds, TrainConfig(**TRAIN, seed=1), LossConfig())
    runs = lines(done)
    assert runs["plain_vit", 1]["evaluation"] == to_json(evaluate(model, birds, num_resamples=0))
    again = retrain(model, birds, seed=1)
    assert runs["plain_vit+dfr", 1]["evaluation"] == to_json(evaluate(model, birds, num_resamples=0))
    assert runs["plain_vit+dfr", 1]["retraining"]["strength"] == again.strength
    assert runs["plain_vit", 1]["figures"]["average"] == runs["plain_vit", 1]["evaluation"]["predictor"]["average"]


def test_the_last_layer_is_fitted_to_the_model_that_was_trained_already(done):
    runs = lines(done)
    for seed in (0, 1):
        first, second = runs["plain_vit", seed], runs["plain_vit+dfr", seed]
        took = second["retraining"]["seconds"]
        assert second["figures"]["seconds"] == first["figures"]["seconds"] + took
        assert second["best_epoch"] == first["best_epoch"]


def test_data_are_drawn_by_the_seed_of_the_run(done):
    runs = lines(done)
    assert hub.read(done / "models" / "plain_vit-1").extra["data"] == {**DATA, "seed": 1}
    assert runs["plain_vit", 0]["evaluation"] != runs["plain_vit", 1]["evaluation"]
    rows = read_rows(["ifam"], ModelConfig(), TrainConfig(), LossConfig())
    assert Comparison(rows, (3,), "pondbirds").options(3) == {"seed": 3}
    assert Comparison(rows, (3,), "pondbirds", data={"seed": 8}).options(3) == {"seed": 8}
    assert Comparison(rows, (3,), "imagenet9").options(3) == {}


def test_mean_interval_and_difference_are_those_of_the_runs(done):
    runs, rows = lines(done), {row["name"]: row for row in table(done)["rows"]}
    for name, row in rows.items():
        for figure, mean in row["figures"].items():
            a, b = (runs[name, seed]["figures"][figure] for seed in (0, 1))
            # With two seeds, t = 12.706 and the standard error is half of the distance.
            assert mean["mean"] == pytest.approx((a + b) / 2)
            assert mean["high"] - mean["mean"] == pytest.approx(12.7062 * abs(a - b) / 2, rel=1e-4, abs=1e-9)
            assert mean["n"] == 2
        for group, mean in row["groups"].items():
            values = [runs[name, seed]["groups"][group]["accuracy"] for seed in (0, 1)]
            assert mean["mean"] == pytest.approx(sum(values) / 2)
    gains = [runs["one part", s]["figures"]["average"] - runs["plain_vit", s]["figures"]["average"] for s in (0, 1)]
    assert rows["one part"]["differences"]["average"]["mean"] == pytest.approx(sum(gains) / 2)
    assert rows["plain_vit"]["differences"] == {}


def test_rows_say_what_they_are_told_and_where_they_differ(done):
    methods = {method["name"]: method for method in table(done)["methods"]}
    assert [method["uses"] for method in methods.values()] == [[], ["groups"], []]
    assert methods["one part"]["differs"] == {"model.num_parts": 1}
    assert methods["plain_vit+dfr"]["differs"] == {}
    robust, oracle, ours = read_rows(
        {"group_dro": {}, "given_mask+dfr": {}, "ours": {"method": "ifam", "train": {"group_dro": 0.1}}},
        ModelConfig(),
        TrainConfig(),
        LossConfig(),
    )
    assert (robust.uses, oracle.uses, ours.uses) == (["groups"], ["groups", "masks"], ["groups"])
    assert robust.train.group_dro == 0.01


def test_the_parameters_are_counted(done):
    by_name = {row["name"]: row["parameters"] for row in table(done)["rows"]}
    model = build("plain_vit", ModelConfig(**MODEL), pretrained=False)
    assert by_name["plain_vit"] == {key: sum(p.numel() for p in model.parameters()) for key in ("trained", "total")}
    assert by_name["one part"]["trained"] < by_name["one part"]["total"]


def test_pictures_are_the_first_images_of_each_group_with_the_answers_of_every_method(done):
    birds = load_benchmark("pondbirds", options={**DATA, "seed": 0})
    groups = birds.groups("test").tolist()
    first = {birds.group_names[group]: groups.index(group) for group in set(groups)}
    for name in METHOD_ROWS:
        pictures = lines(done)[name, 0]["pictures"]
        assert {picture["group"]: picture["index"] for picture in pictures} == first
        assert all((picture["parts"] is not None) == (name == "one part") for picture in pictures)
        files = [picture[key] for picture in pictures for key in ("image", "parts", "seen") if picture[key]]
        assert all((done / file).is_file() for file in files)
        assert lines(done)[name, 1]["pictures"] == []
    model = hub.load(done / "models" / "one-part-0")
    prepared = TransformedDataset(birds.split("test"), model.image_size, model.normalization)
    for picture in lines(done)["one part", 0]["pictures"]:
        with torch.inference_mode():
            logits = model(collate([prepared[picture["index"]]]).images).logits[0]
        probabilities = logits.softmax(0)
        assert birds.class_names[int(probabilities.argmax())] == picture["answer"]
        assert float(probabilities.max()) == pytest.approx(picture["confidence"], abs=1e-5)
        # The bars add up to the logit of the answer.
        assert picture["prior"] + sum(picture["contributions"]) == pytest.approx(float(logits.max()), abs=1e-4)
        assert len(picture["contributions"]) == model.config.num_parts


def test_photographs_are_drawn_too(tmp_path):
    """They are read as PIL images, and know no groups: their classes take the place."""
    miniatures.folder(tmp_path / "photos")
    changes = {"benchmark": "folder", "root": str(tmp_path / "photos"), "data": {}, "seeds": [0], "pictures": 1}
    train = {**TRAIN, "batch_size": 2}
    out = compare(tmp_path, methods={"plain_vit": {}, "ifam": {}}, train=train, **changes)
    pictures = lines(out)["ifam", 0]["pictures"]
    assert [picture["group"] for picture in pictures] == [picture["label"] for picture in pictures]
    assert all((out / picture[key]).is_file() for picture in pictures for key in ("image", "parts", "seen"))


def test_only_methods_with_a_mask_are_attacked_through_hidden_pixels(done):
    runs = lines(done)
    assert runs["one part", 0]["figures"]["hidden_influence"] == 0.0
    assert "hidden_influence" not in runs["plain_vit", 0]["figures"]


@pytest.mark.parametrize("method", ["given_mask", "box_crop"])
def test_methods_that_are_given_masks_are_compared_too(method, tmp_path):
    out = compare(tmp_path, methods=[method], seeds=[0], pictures=1)
    (row,) = table(out)["rows"]
    assert {"average", "flips", "group_gap"} <= row["figures"].keys()
    assert all(picture["parts"] is None for picture in row["pictures"])


def test_models_are_kept_when_asked(done):
    assert sorted(path.name for path in (done / "models").iterdir()) == sorted(
        f"{name}-{seed}" for name in ("plain_vit", "plain_vit+dfr", "one-part") for seed in (0, 1)
    )
    model = hub.load(done / "models" / "one-part-0")
    birds = load_benchmark("pondbirds", options={**DATA, "seed": 0})
    content = to_json(evaluate(model, birds, num_resamples=0))
    assert content == lines(done)["one part", 0]["evaluation"]
    assert "retraining" in hub.read(done / "models" / "plain_vit+dfr-0").extra


def test_the_page_shows_it(done):
    page = (done / "compare.html").read_text(encoding="utf-8")
    assert "3 methods on pondbirds, 2 seeds" in page
    assert "plain_vit+dfr (uses groups)" in page
    assert "model.num_parts = 1" in page
    assert "<svg" in page
    # A bar for the prior, for the one part, and for their sum, of each image of the model that sees parts.
    pictures = lines(done)["one part", 0]["pictures"]
    assert page.count('<div class="worth"') == len(pictures)
    assert page.count("--zero:") == 3 * len(pictures)


# --- going on --------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(done, capsys):
    before = (done / "runs.jsonl").read_bytes()
    capsys.readouterr()
    compare(done.parent, save_models=True)
    said = capsys.readouterr().out
    assert (done / "runs.jsonl").read_bytes() == before
    assert "Run " not in said
    assert "3 methods on pondbirds, 2 seeds" in said


def test_an_interrupted_comparison_goes_on_with_the_same_figures(done, tmp_path, caplog):
    caplog.set_level("INFO", "ifam")
    whole = (done / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out").mkdir()
    kept = "".join(whole[:4])
    (tmp_path / "out" / "runs.jsonl").write_text(kept + whole[4][:100])
    rows = {name: METHOD_ROWS[name] for name in ("plain_vit", "plain_vit+dfr")}
    out = compare(tmp_path, methods=rows)
    assert (out / "runs.jsonl").read_text().startswith(kept)
    assert re.findall(r"Run (\d) of 4", caplog.text) == ["4"]
    before, after = lines(done), lines(out)
    assert after["plain_vit+dfr", 1]["evaluation"] == before["plain_vit+dfr", 1]["evaluation"]


def test_a_row_that_is_added_starts_from_the_model_that_was_kept(done, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    kept = [run for (row, _), run in lines(done).items() if row == "plain_vit"]
    # Had it been trained again, its seconds would be those of now.
    kept[0]["figures"]["seconds"] = kept[1]["figures"]["seconds"] = 1000.0
    (out / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in kept))
    (out / "models").symlink_to(done / "models")
    rows = {name: METHOD_ROWS[name] for name in ("plain_vit", "plain_vit+dfr")}
    compare(tmp_path, methods=rows, save_models=True)
    before, after = lines(done), lines(out)
    for seed in (0, 1):
        assert after["plain_vit+dfr", seed]["figures"]["seconds"] > 1000
        assert after["plain_vit+dfr", seed]["evaluation"] == before["plain_vit+dfr", seed]["evaluation"]


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["plain_wit"]}, "There is no method 'plain_wit'; choose one of"),
        ({"methods": ["plain_wit+dfr"]}, "There is no method 'plain_wit'"),
        ({"methods": []}, "There is no method to compare; list some of"),
        ({"methods": {}}, "There is no method to compare"),
        ({"methods": ["ifam", "ifam"]}, "The method 'ifam' is listed twice"),
        ({"methods": {"ours": {"metod": "ifam"}}}, "The row 'ours' has an unknown field 'metod'"),
        ({"methods": {"ours": "ifam"}}, "The row 'ours' is 'ifam', but a dict"),
        ({"methods": {"ifam": {"model": {"parts": 3}}}}, "The model of the row 'ifam' has an unknown field 'parts'"),
        ({"methods": {"ifam": {"train": [1]}}}, "The train of the row 'ifam' is [1], but a dict"),
        ({"methods": {"ifam": {"train": {"epochs": "many"}}}}, "The train of the row 'ifam' has an invalid value"),
        ({"methods": {"ifam": {"model": {"num_parts": 0}}}}, "num_parts is 0"),
        ({"methods": ["plain_vit", "group_dro"], "train": {**TRAIN, "batch_size": 64}}, "fewer than a batch of 64"),
        ({"methods": ["ifam+dfr"], "data": {**DATA, "num_val": 4}}, "at least two are needed to retrain"),
        (
            {"methods": ["ifam", "ifam+dfr"], "split": "val"},
            "'ifam+dfr' would be evaluated on the split 'val'",
        ),
        (
            {"methods": {"a b": {"method": "ifam"}, "a-b": {"method": "ifam"}}, "save_models": True},
            "The models of 'a b' and 'a-b' would be saved in the same folder",
        ),
        ({"seeds": []}, "seeds is [], but"),
        ({"seeds": [0, 1, 0]}, "seeds is [0, 1, 0], but"),
        ({"split": "nowhere"}, "pondbirds has no split 'nowhere'"),
        ({"benchmark": "pondfish"}, "There is no benchmark 'pondfish'"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_trained(tmp_path, capsys, changes, said):
    with pytest.raises(SystemExit) as caught:
        compare(tmp_path, **changes)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert "Run " not in captured.out
    assert not (tmp_path / "out" / "runs.jsonl").exists()


def test_other_settings_in_the_same_folder_are_refused(done, capsys):
    with pytest.raises(SystemExit):
        compare(done.parent, train={**TRAIN, "weight_decay": 0.1})
    assert "'plain_vit', seed 0, with train.weight_decay 0.05, but now it is 0.1;" in capsys.readouterr().err


def test_runs_on_images_that_have_changed_are_refused(done, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    text = (done / "runs.jsonl").read_text()
    digest = lines(done)["plain_vit", 1]["settings"]["images"]
    (tmp_path / "out" / "runs.jsonl").write_text(text.replace(digest, "0" * 16))
    with pytest.raises(SystemExit):
        compare(tmp_path)
    said = capsys.readouterr()
    assert "'plain_vit', seed 1, on images that have changed since" in said.err
    assert "Run " not in said.out


def test_a_file_that_changes_on_disk_changes_the_digest(tmp_path):
    miniatures.folder(tmp_path)
    rows = read_rows(["plain_vit"], ModelConfig(), TrainConfig(), LossConfig())
    comparison = Comparison(rows, (0, 1), "folder", tmp_path)
    before = comparison.digests()
    # Another seed cuts other validation images.
    assert before[0] != before[1]
    assert Comparison(rows, (0, 1), "folder", tmp_path).digests() == before
    path = min(tmp_path.rglob("*.png"))
    Image.new("RGB", (30, 30)).save(path)
    after = comparison.digests()
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_each_seed_may_have_a_folder_of_its_own(tmp_path):
    for seed in (0, 1):
        miniatures.folder(tmp_path / f"photos-{seed}")
    path = min((tmp_path / "photos-1").rglob("*.png"))
    Image.new("RGB", (30, 30)).save(path)
    rows = read_rows(["plain_vit"], ModelConfig(), TrainConfig(), LossConfig())
    comparison = Comparison(rows, (0, 1), "folder", tmp_path / "photos-{seed}", {"seed": 3})
    assert [comparison.folder(seed) for seed in (0, 1)] == [tmp_path / "photos-0", tmp_path / "photos-1"]
    digests = comparison.digests()
    assert digests[0] != digests[1]
    assert all(tmp_path / "photos-1" in file.parents for file in comparison.images(1).split("train").paths)


def test_the_answers_that_change_with_the_background_are_counted(done):
    for run in lines(done).values():
        assert 0 <= run["figures"]["flips"] <= 1
    assert "flips" in table(done)["rows"][0]["figures"]


def test_a_table_that_no_run_here_has_made_stays(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "compare.json").write_text("mine")
    with pytest.raises(SystemExit):
        compare(tmp_path)
    assert "compare.json already exists" in capsys.readouterr().err
    assert (tmp_path / "out" / "compare.json").read_text() == "mine"


# --- recipes ---------------------------------------------------------------------------------------------


def parse(path):
    words = ["compare", "--config", str(path)]
    parser = build_parser(words)
    return parser.instantiate(parser.parse_args(words)).compare


def test_there_are_recipes():
    assert [path.stem for path in RECIPES] == ["certify", "demo", "digits", "parts", "photographs", "pondbirds"]


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem != "photographs"], ids=lambda path: path.stem)
def test_each_recipe_is_ready_to_train(path):
    settings = parse(path)
    header = dict(re.findall(r"^# (\w+): +(.+)$", path.read_text(), flags=re.MULTILINE))
    assert header["Command"] == f"ifam compare --config recipes/compare/{path.name}"
    assert header.keys() >= {"Hardware", "Time", "Expected"}
    rows = read_rows(settings.methods, settings.model, settings.train, settings.loss)
    small = {
        "num_train": 80,
        "num_val": 40,
        "num_test": 20,
        **({"correlation": 0.7} if path.stem != "digits" else {}),
    }
    comparison = Comparison(rows, tuple(settings.seeds), settings.benchmark, data=small)
    check_rows(comparison, comparison.images(0))
    assert (settings.model, settings.train) == (presets.TINY_MODEL, presets.TINY_TRAIN)
    assert settings.loss == presets.TINY_LOSS
    assert settings.out == Path("demo" if path.stem == "demo" else f"runs/compare-{path.stem}")


def test_the_recipe_of_photographs_is_ready_to_train(tmp_path):
    path = next(path for path in RECIPES if path.stem == "photographs")
    settings = parse(path)
    assert f"# Command:   ifam compare --config recipes/compare/{path.name}" in path.read_text()
    model = replace(settings.model, backbone="ifam_tiny")
    # Patches of 8 pixels, 21 x 21 of them, of which squares of 2 pixels are a quarter of a side.
    rows = read_rows(settings.methods, model, replace(settings.train, batch_size=4), settings.loss)
    miniatures.folder(tmp_path / "photographs-95-0")
    comparison = Comparison(rows, tuple(settings.seeds), settings.benchmark, tmp_path / settings.root)
    masked = {"given_mask", "box_crop", "gray_background", "foreground_background"}
    images = comparison.images(0)
    # The miniature has neither masks nor test images.
    simple = tuple(row for row in rows if row.method not in masked and not row.retrained)
    check_rows(replace(comparison, rows=simple), images)
    assert masked < {row.method for row in rows}
    assert rows[0].method == "plain_vit"
    epochs = {epochs_of_method(row.train, build(row.method, row.model, pretrained=False)).epochs for row in rows[:4:3]}
    assert epochs == {4, 8}


def test_one_recipe_has_every_method():
    path = next(path for path in RECIPES if path.stem == "pondbirds")
    rows = read_rows(parse(path).methods, ModelConfig(), TrainConfig(), LossConfig())
    assert {row.method for row in rows} == set(METHODS)
    assert replace(rows[0], name="") not in rows[1:]
