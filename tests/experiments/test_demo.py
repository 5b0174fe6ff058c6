"""The demo on a few drawn birds: everything it leaves, and the bounds that its figures are held against."""

import copy
import importlib.util
import json
import math
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from ifam.cli.main import main
from ifam.data import load_benchmark
from ifam.errors import IfamError
from ifam.evaluation.accuracy import evaluate
from ifam.experiments import demo
from ifam.inference import predict
from ifam.model_files import weights_digest
from ifam.models.baselines import PlainViT
from ifam.models.ifam import IFAM
from ifam.training.fit import fit

pytestmark = pytest.mark.slow

CHECK = Path(__file__).parents[2] / ".ci" / "check_demo.py"
GROUPS = {f"{bird} on {place}" for bird in ("swimmer", "percher") for place in ("water", "forest")}
NUMBER = (int, float)


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """`ifam demo --quick true` over two seeds: its folder, what it returned, and what was trained."""
    fits = []
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        # A quarter of the images of --quick.
        data = {"num_train": 64, "num_val": 24, "num_test": 48}
        patch.setattr(demo, "_data", lambda seed, quick: {"seed": seed, **data})
        patch.setattr(demo, "fit", lambda *args, **options: _watched(fits, *args, **options))
        found = demo.run_demo(folder, seed=3, seeds=2, quick=True, threads=1)
    return folder, found, fits


def _watched(fits, model, benchmark, config, *args, **options):
    """Train, and note what the training began with."""
    weights = weights_digest(model.predictor.backbone.state_dict())
    fits.append(SimpleNamespace(model=model, benchmark=benchmark, config=config, backbone=weights))
    return fit(model, benchmark, config, *args, **options)


@pytest.fixture(scope="module")
def ran(demo_run):
    return demo_run[:2]


@pytest.fixture(scope="module")
def fits(demo_run):
    return demo_run[2]


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location("check_demo", CHECK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_have_the_promised_structure(ran):
    folder, returned = ran
    found = json.loads((folder / "results.json").read_text())
    assert found == json.loads(json.dumps(returned))
    assert [run["seed"] for run in found["runs"]] == [3, 4]
    for run in found["runs"]:
        assert {"seed", "plain_vit", "selector", "ifam", "hidden_influence"} <= set(run)
        assert set(run["plain_vit"]) == set(run["selector"]) == {"average", "worst_group", "groups"}
        assert set(run["ifam"]) == {"average", "worst_group", "groups", "mask_iou", "visible_fraction"}
        for model in ("plain_vit", "selector", "ifam"):
            groups = run[model]["groups"]
            assert set(groups) == GROUPS
            assert sum(group["count"] for group in groups.values()) == 48
            assert run[model]["worst_group"] == min(group["accuracy"] for group in groups.values())
            right = sum(group["accuracy"] * group["count"] for group in groups.values())
            assert run[model]["average"] == pytest.approx(right / 48)
        assert run["hidden_influence"] == 0.0
        assert 0 <= run["ifam"]["mask_iou"] <= 1
        assert 0 < run["ifam"]["visible_fraction"] < 1
        assert all(isinstance(seconds, NUMBER) and seconds > 0 for seconds in run["seconds"].values())
    assert found["runs"][0]["ifam"] != found["runs"][1]["ifam"]
    worst = [run["ifam"]["worst_group"] for run in found["runs"]]
    assert found["summary"]["ifam"]["worst_group"] == {
        "mean": pytest.approx(sum(worst) / 2),
        "low": min(worst),
        "high": max(worst),
    }
    assert found["conditions"]["quick"] is True
    assert found["conditions"]["ifam_version"]


def test_the_report_stands_alone(ran):
    folder, found = ran
    assert {path.name for path in folder.iterdir()} >= {"report.html", "results.json", "model"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    # Nothing is fetched: pictures and styles are in the page, and no script, font or sheet is elsewhere.
    assert not re.findall(r"""<(?:script|link|iframe|object)\b[^>]*(?:src|href|data)=["'](?!data:)""", page)
    sources = re.findall(r"""src=["']([^"']*)["']""", page)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.findall(r"url\((?!['\"]?(?:data:|#))", page)
    assert "@import" not in page
    for name in GROUPS:
        assert name in page
    for run in found["runs"]:
        assert f"{100 * run['ifam']['worst_group']:.1f}" in page
    # A row of pictures with three views for each group, and curves.
    assert len(sources) >= 3 * len(GROUPS)
    assert "<svg" in page or "polyline" in page


def test_the_model_of_the_first_seed_is_there_and_predicts(ran, tmp_path):
    folder, found = ran
    model = IFAM.from_pretrained(folder / "model")
    options = json.loads((folder / "model" / "config.json").read_text())["extra"]["data"]
    assert options["seed"] == 3
    again = evaluate(model, load_benchmark("pondbirds", options=options))
    assert again.predictor.average == found["runs"][0]["ifam"]["average"]
    assert again.mask_iou == found["runs"][0]["ifam"]["mask_iou"]
    Image.new("RGB", (300, 200), (20, 90, 160)).save(tmp_path / "sea.jpg")
    (row,) = predict(model, tmp_path / "sea.jpg")
    assert row.class_name in ("swimmer", "percher")
    main(["evaluate", "--model", str(folder / "model"), "--out", str(tmp_path / "found.json")])
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["predictor"]["average"] == found["runs"][0]["ifam"]["average"]


def test_both_models_are_trained_alike(fits):
    """The same images, backbone, seed, epochs and batches: only learning rates and loss weights may differ."""
    assert [(type(fit.model), fit.config.seed) for fit in fits] == [(PlainViT, 3), (IFAM, 3), (PlainViT, 4), (IFAM, 4)]
    for plain, ours in zip(fits[::2], fits[1::2], strict=True):
        assert plain.benchmark is ours.benchmark
        assert plain.backbone == ours.backbone
        settings = [
            {name: value for name, value in asdict(fit.config).items() if not name.endswith(("base_lr", "lr_factor"))}
            for fit in (plain, ours)
        ]
        assert settings[0] == settings[1]
    assert fits[0].benchmark is not fits[2].benchmark


def test_no_seed_is_an_error(tmp_path):
    with pytest.raises(IfamError, match="seeds is 0"):
        demo.run_demo(tmp_path / "out", seeds=0)
    assert not (tmp_path / "out").exists()


# --- the bounds ------------------------------------------------------------------------------------------

GOOD = {
    "seed": 4,
    "plain_vit": {"worst_group": 0.45},
    "ifam": {"worst_group": 0.82, "average": 0.89, "mask_iou": 0.65},
    "hidden_influence": 0.0,
}
BROKEN = [
    ("plain_vit", "worst_group", 0.451, "plain ViT worst group 0.451"),
    ("ifam", "worst_group", 0.819, "iFAM worst group 0.819"),
    ("ifam", "average", 0.889, "iFAM average 0.889"),
    ("ifam", "mask_iou", 0.649, "mask IoU 0.649"),
    ("hidden_influence", None, 1e-30, "hidden influence 1e-30"),
]


def broken(model, name, value):
    run = copy.deepcopy(GOOD)
    if name is None:
        run[model] = value
    else:
        run[model][name] = value
    return run


def test_figures_on_the_bounds_hold(check):
    assert check.failures(GOOD) == []


@pytest.mark.parametrize(("model", "name", "value", "said"), BROKEN)
@pytest.mark.parametrize("nothing", [False, True])
def test_each_bound_that_is_broken_is_said(check, model, name, value, said, nothing):
    if nothing:
        # A figure that is no number breaks its bound.
        value, said = math.nan, said.rsplit(" ", 1)[0]
    found = check.failures(broken(model, name, value))
    assert len(found) == 1
    assert found[0].startswith(f"seed 4: {said}")


@pytest.mark.parametrize("runs", [[GOOD, broken("ifam", "mask_iou", 0.1)], [GOOD, GOOD]])
def test_the_check_fails_where_any_seed_does(tmp_path, runs):
    (tmp_path / "results.json").write_text(json.dumps({"runs": runs}))
    done = subprocess.run([sys.executable, CHECK, tmp_path / "results.json"], capture_output=True, text=True)
    good = runs[1] == GOOD
    assert done.returncode == (0 if good else 1)
    assert ("mask IoU 0.100" in done.stdout) is not good


def test_a_demo_that_left_no_runs_does_not_pass(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"runs": []}))
    done = subprocess.run([sys.executable, CHECK, tmp_path / "results.json"], capture_output=True, text=True)
    assert done.returncode != 0
