"""The demo on a few drawn birds: everything it leaves, and the bounds that its figures are held against."""

import copy
import importlib.util
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ifam.cli.main import main
from ifam.cli.parser import parse
from ifam.data import load_benchmark
from ifam.errors import IfamError
from ifam.evaluation.accuracy import evaluate
from ifam.evaluation.comparisons import ComparisonResult
from ifam.experiments import demo
from ifam.experiments.comparison import Comparison, read_rows
from ifam.inference import predict
from ifam.models.ifam import IFAM
from ifam.serialization import from_json

pytestmark = pytest.mark.slow

CHECK = Path(__file__).parents[2] / ".ci" / "check_demo.py"
RECIPE = Path(__file__).parents[2] / "recipes" / "compare" / "demo.yaml"
GROUPS = {f"{bird} on {place}" for bird in ("swimmer", "percher") for place in ("water", "forest")}
# A quarter of the images of --quick.
DATA = {"num_train": 64, "num_val": 24, "num_test": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`ifam demo --quick --seed 3 --seeds 2`, on fewer images."""
    with pytest.MonkeyPatch.context() as patch:
        make = demo.demo_comparison
        patch.setattr(demo, "demo_comparison", lambda *args: replace(make(*args), data=DATA))
        out = tmp_path_factory.mktemp("demo") / "out"
        main(["demo", "--quick", "--seed", "3", "--seeds", "2", "--threads", "1", "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def result(folder):
    return from_json(ComparisonResult, json.loads((folder / "compare.json").read_text()))


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location("check_demo", CHECK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_the_recipe():
    _, settings = parse(["compare", "--config", str(RECIPE)])
    rows = read_rows(*(settings[name] for name in ("methods", "model", "train", "loss")))
    options = {name: settings[name] for name in ("num_resamples", "pictures")}
    recipe = Comparison(rows, tuple(settings["seeds"]), settings["benchmark"], data=settings["data"] or {}, **options)
    assert replace(demo.demo_comparison(), about="") == recipe
    assert settings["save_models"]
    assert settings["out"] == Path("demo")


def test_both_models_are_trained_alike():
    """The same images, backbone, epochs, batches and rates, seed by seed."""
    plain, ours = demo.demo_comparison(3, 2).rows
    assert (plain.method, ours.method) == ("plain_vit", "ifam")
    assert (plain.model, plain.train) == (ours.model, ours.train)
    assert demo.demo_comparison(3, 2).seeds == (3, 4)


def test_the_table_has_both_methods_and_seeds(result):
    plain, ours = result.rows
    assert (plain.name, ours.name) == ("plain_vit", "ifam")
    for row in result.rows:
        assert set(row.groups) == GROUPS
        assert sum(group.count for group in row.groups.values()) == 48
        for seed in (3, 4):
            accuracies = [row.values[f"group: {name}"][seed] for name in GROUPS]
            assert row.values["worst_group"][seed] == min(accuracies)
    assert list(ours.values["hidden_influence"].values()) == [0.0, 0.0]
    assert 0 <= ours.figures["mask_iou"].mean <= 1
    assert 0 < ours.figures["visible_fraction"].mean < 1
    assert {"selector_worst_group", "selector_average"} <= set(ours.figures)
    assert len(set(ours.values["average"].values()) | set(plain.values["average"].values())) > 1
    assert result.conditions["ifam_version"]


def test_the_report_stands_alone(folder, result):
    assert {path.name for path in folder.iterdir()} >= {"report.html", "compare.json", "pictures.png", "models"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    # Nothing is fetched: pictures and styles are in the page, and no script, font or sheet is elsewhere.
    assert not re.findall(r"""<(?:script|link|iframe|object)\b[^>]*(?:src|href|data)=["'](?!data:)""", page)
    sources = re.findall(r"""src=["']([^"']*)["']""", page)
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.findall(r"url\((?!['\"]?(?:data:|#))", page)
    assert "@import" not in page
    for name in GROUPS:
        assert name in page
    # Up to three images of each group, with three views each, and curves.
    assert len(sources) == 3 * len(result.rows[1].pictures)
    assert "by epoch: plain_vit, ifam" in page


def test_the_model_of_the_first_seed_is_there_and_predicts(folder, result, tmp_path):
    model = IFAM.from_pretrained(folder / "models" / "ifam-3")
    options = json.loads((folder / "models" / "ifam-3" / "config.json").read_text())["extra"]["data"]
    assert options["seed"] == 3
    again = evaluate(model, load_benchmark("pondbirds", options=options))
    ours = result.rows[1].values
    assert again.predictor.average == ours["average"][3]
    assert again.mask_iou == ours["mask_iou"][3]
    Image.new("RGB", (300, 200), (20, 90, 160)).save(tmp_path / "sea.jpg")
    (row,) = predict(model, tmp_path / "sea.jpg")
    assert row.class_name in ("swimmer", "percher")


def test_it_goes_on_where_it_was(folder, capsys):
    before = (folder / "runs.jsonl").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        make = demo.demo_comparison
        patch.setattr(demo, "demo_comparison", lambda *args: replace(make(*args), data=DATA))
        main(["demo", "--quick", "--seed", "3", "--seeds", "2", "--threads", "1", "--out", str(folder)])
    assert (folder / "runs.jsonl").read_bytes() == before
    assert "2 methods on pondbirds, 2 seeds" in capsys.readouterr().out


def test_it_goes_on_without_pictures_that_were_removed(folder, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("runs.jsonl", "models"):
        (tmp_path / "out" / name).symlink_to(folder / name)
    comparison = replace(demo.demo_comparison(3, 2, True), data=DATA)
    threads = torch.get_num_threads()
    result = demo.run_demo(comparison, tmp_path / "out", threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert not any(row.pictures for row in result.rows)
    assert not (tmp_path / "out" / "pictures.png").exists()


def test_no_seed_is_an_error():
    with pytest.raises(IfamError, match="seeds is 0"):
        demo.demo_comparison(seeds=0)


# --- the bounds ------------------------------------------------------------------------------------------

GOOD = {
    "plain_vit": {"worst_group": {"4": 0.45}},
    "ifam": {
        "worst_group": {"4": 0.82},
        "average": {"4": 0.89},
        "mask_iou": {"4": 0.65},
        "hidden_influence": {"4": 0.0},
    },
}
BROKEN = [
    ("plain_vit", "worst_group", 0.451, "plain ViT worst group 0.451"),
    ("ifam", "worst_group", 0.819, "iFAM worst group 0.819"),
    ("ifam", "average", 0.889, "iFAM average 0.889"),
    ("ifam", "mask_iou", 0.649, "mask IoU 0.649"),
    ("ifam", "hidden_influence", 1e-30, "hidden influence 1e-30"),
]


def broken(model, name, value):
    rows = copy.deepcopy(GOOD)
    rows[model][name]["4"] = value
    return rows


def test_figures_on_the_bounds_hold(check):
    assert check.failures(GOOD, "4") == []


@pytest.mark.parametrize(("model", "name", "value", "said"), BROKEN)
@pytest.mark.parametrize("nothing", [False, True])
def test_each_bound_that_is_broken_is_said(check, model, name, value, said, nothing):
    if nothing:
        # A figure that is no number breaks its bound.
        value, said = math.nan, said.rsplit(" ", 1)[0]
    failures = check.failures(broken(model, name, value), "4")
    assert len(failures) == 1
    assert failures[0].startswith(f"seed 4: {said}")


@pytest.mark.parametrize("good", [True, False])
def test_the_check_fails_where_any_seed_does(tmp_path, good):
    rows = copy.deepcopy(GOOD)
    for values in (*rows["plain_vit"].values(), *rows["ifam"].values()):
        values["5"] = values["4"]
    if not good:
        rows["ifam"]["mask_iou"]["5"] = 0.1
    table = [{"name": name, "values": values} for name, values in rows.items()]
    (tmp_path / "compare.json").write_text(json.dumps({"rows": table}))
    done = subprocess.run([sys.executable, CHECK, tmp_path / "compare.json"], capture_output=True, text=True)
    assert done.returncode == (0 if good else 1)
    assert ("seed 5: mask IoU 0.100" in done.stdout) is not good


def test_a_demo_that_left_no_runs_does_not_pass(tmp_path):
    (tmp_path / "compare.json").write_text(json.dumps({"rows": []}))
    done = subprocess.run([sys.executable, CHECK, tmp_path / "compare.json"], capture_output=True, text=True)
    assert done.returncode != 0
