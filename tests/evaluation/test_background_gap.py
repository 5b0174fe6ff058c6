"""Several treatments of the same objects, and the gap due to the background."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import miniatures
from fakes import Told
from ifam.checkpoints.hub import load
from ifam.cli.main import main
from ifam.data import Benchmark, load_benchmark
from ifam.evaluation.accuracy import evaluate
from ifam.evaluation.background_gap import evaluate_treatments
from ifam.evaluation.bootstrap import resamples
from ifam.report.results import write_report


def told(right):
    """A model that is right about the images named."""
    return Told(torch.stack([right.float(), 1 - right.float()], dim=1))


class Numbered:
    """Images of class 0 with numbers, of objects that may have names."""

    def __init__(self, numbers, objects=None):
        self.numbers = numbers
        if objects is not None:
            self.objects = objects

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return {"image": torch.full((3, 4, 4), float(self.numbers[index])), "label": 0}


def make(first, second, **more):
    treatments = {"treatments": ("plain", "same", "rand", "none"), "gap": ("same", "rand"), **more}
    return Benchmark("told", {"same": first, "rand": second}, ("a", "b"), ("a", "b"), **treatments)


RIGHT = torch.rand(40, generator=torch.Generator().manual_seed(3)) < 0.6


def test_the_gap_is_drawn_by_object():
    """Objects are drawn, and each counts in both treatments as often as it was."""
    names = [f"object {i}" for i in range(20)]
    order = np.random.default_rng(0).permutation(18)  # two objects are in the first only
    data = make(Numbered(list(range(20)), names), Numbered([20 + int(i) for i in order], [names[i] for i in order]))
    results = evaluate_treatments(told(RIGHT), data, num_resamples=200, seed=2)
    first, second = RIGHT[:20].double(), RIGHT[20:38].double()
    assert results.gap.predictor == pytest.approx(float(first.mean() - second.mean()))
    drawn = [
        float((weights @ first) / 20 - (weights[:18] @ second) / weights[:18].sum())
        for weights in torch.cat(list(resamples(20, 200, 2)))
    ]
    assert results.gap.intervals["predictor"] == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert results.gap.pairing == "paired by object: 18 of 20 objects are in both"
    assert results.gap.selector is None
    assert results.missing == ("plain", "none")
    assert list(results.treatments) == ["same", "rand"]
    for name in results.treatments:
        assert results.treatments[name] == evaluate(told(RIGHT), data, name, num_resamples=200, seed=2)


def test_what_is_hard_about_an_object_does_not_widen_the_gap():
    names = [f"object {i}" for i in range(20)]
    right = torch.cat([RIGHT[:20], RIGHT[:20]])
    right[20] = ~right[20]
    splits = Numbered(list(range(20))), Numbered(list(range(20, 40)))
    apart = evaluate_treatments(told(right), make(*splits), num_resamples=300).gap
    for split in splits:
        split.objects = names
    paired = evaluate_treatments(told(right), make(*splits), num_resamples=300).gap
    assert apart.pairing == "independent: objects unknown"
    assert paired.predictor == apart.predictor
    widths = [ends[1] - ends[0] for ends in (paired.intervals["predictor"], apart.intervals["predictor"])]
    assert widths[0] < widths[1] / 2


def test_without_one_of_its_treatments_there_is_no_gap(capsys):
    data = make(Numbered([0, 1]), Numbered([2, 3]), gap=("same", "none"))
    assert evaluate_treatments(told(RIGHT), data, num_resamples=5).gap is None
    assert evaluate_treatments(told(RIGHT), make(Numbered([0]), Numbered([1])), num_resamples=0).gap.intervals == {}


@pytest.mark.slow
def test_imagenet_9_on_the_command_line(tmp_path, capsys, make_model, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    root = tmp_path / "data"
    miniatures.imagenet9(root)
    # Backgrounds that differ, or the treatments would not.
    for path in (root / "mixed_rand").rglob("*.JPEG"):
        Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).point(lambda v: 255 - v).save(path)
    make_model(num_classes=9).save_pretrained(tmp_path / "model")
    words = ["evaluate", "--model", str(tmp_path / "model"), "--benchmark", "imagenet9", "--root", str(root)]
    main([*words, "--num-resamples", "20"])
    shown = " ".join(capsys.readouterr().out.split())
    (path,) = (tmp_path / "model").glob("evaluations/imagenet9-treatments-*/results.json")
    content = json.loads(path.read_text())
    assert list(content["treatments"]) == ["original", "mixed_same", "mixed_rand"]
    assert content["missing"] == ["mixed_next", "only_fg", "no_fg", "only_bg_b", "only_bg_t"]
    model, data = load(tmp_path / "model"), load_benchmark("imagenet9", root)
    wanted = {name: evaluate(model, data, name, num_resamples=0) for name in content["treatments"]}
    for name, one in wanted.items():
        for who in ("predictor", "selector"):
            assert content["treatments"][name][who]["average"] == getattr(one, who).average
    for who in ("predictor", "selector"):
        same, rand = (getattr(wanted[name], who).average for name in ("mixed_same", "mixed_rand"))
        assert content["gap"][who] == pytest.approx(same - rand)
        low, high = content["gap"]["intervals"][who]
        assert low <= same - rand <= high
    assert content["gap"]["pairing"] == "paired by object: 18 of 18 objects are in both"
    assert "gap: mixed_same - mixed_rand" in shown
    assert "missing: mixed_next, only_fg" in shown
    assert content["conditions"]["split"] == "treatments"
    page = write_report([tmp_path / "model"], tmp_path / "report.html").read_text()
    assert "mixed_same minus mixed_rand" in page
    assert page.count("imagenet9, mixed_rand: accuracy by group") == 1
    with pytest.raises(SystemExit):
        main([*words, "--leave-one-out", "true"])
    assert "name it with --split" in capsys.readouterr().err
    main([*words, "--num-resamples", "0", "--split", "mixed_rand"])
    (path,) = (tmp_path / "model").glob("evaluations/imagenet9-mixed_rand-*/results.json")
    one = json.loads(path.read_text())
    assert one["predictor"]["average"] == wanted["mixed_rand"].predictor.average
