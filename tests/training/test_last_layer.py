"""Last-layer retraining: what is embedded, what is fitted, and that the result is a model like any other."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ifam.checkpoints import hub
from ifam.cli.main import main
from ifam.config import ModelConfig
from ifam.data import Benchmark, TransformedDataset, collate, load_benchmark
from ifam.errors import IfamError
from ifam.models.registry import build
from ifam.training.last_layer import LastLayerFitter, retrain

MODEL = ModelConfig("ifam_tiny", image_size=40, num_parts=3, backbone_kwargs={"depth": 1, "embed_dim": 32})
DATA = {"num_train": 4, "num_val": 40, "num_test": 12, "correlation": 0.75}


@pytest.fixture(scope="module")
def birds():
    return load_benchmark("pondbirds", options=DATA)


def make(name="plain_vit", classes=2):
    from conftest import wake

    torch.manual_seed(0)
    return wake(build(name, replace(MODEL, num_classes=classes), pretrained=False)).eval()


def a_batch(benchmark, model, split="val", count=8):
    prepared = TransformedDataset(benchmark.split(split), model.image_size, model.normalization)
    return collate([prepared[i] for i in range(count)])


def logits(model, batch):
    with torch.inference_mode():
        out = model.predict_batch(batch)
    return out.logits


# --- the fit ---------------------------------------------------------------------------------------------


def made_up(seed=0, sizes=(400, 20, 20, 400)):
    """One feature tells the class weakly, one the background, one nothing; groups are class x background."""
    chance = np.random.default_rng(seed)
    groups = np.repeat(np.arange(4), sizes)
    labels, background = groups // 2, groups % 2
    columns = [
        labels * 2 - 1 + 0.8 * chance.normal(size=len(groups)),
        5 * (background * 2 - 1),
        chance.normal(size=len(groups)),
    ]
    return np.stack([5 + 0 * columns[0], *columns], axis=1), labels, groups


def test_balanced_draws_have_as_many_of_each_group_and_none_twice():
    features, labels, groups = made_up()
    fit = LastLayerFitter(features, labels, groups, 2, bias=False)
    rows = np.arange(10, 840)
    drawn = list(fit.balanced(rows, 5, seed=0))
    assert len(drawn) == 5
    for one in drawn:
        assert np.bincount(groups[one]).tolist() == [20] * 4
        assert len(set(one)) == len(one)
        assert one.min() >= 10
    assert not np.array_equal(drawn[0], drawn[1])


def test_the_background_that_balanced_groups_make_useless_is_not_read():
    features, labels, groups = made_up()
    fit = LastLayerFitter(features, labels, groups, 2, bias=False)
    everything = np.arange(len(labels))
    weight, bias = fit.averaged(everything, 0.3, 10, seed=0)
    assert abs(weight[1, 1]) > 20 * abs(weight[1, 2])
    assert not bias.any()
    worst, _ = fit.worst_group(weight, bias, everything)
    plain = LogisticRegression(C=0.3, l1_ratio=1.0, solver="liblinear", fit_intercept=False).fit(features, labels)
    shortcut = np.concatenate([-plain.coef_, plain.coef_]) / 2
    assert worst > 0.8 > fit.worst_group(shortcut, bias, everything)[0]


@pytest.mark.parametrize("bias", [False, True])
def test_standardisation_is_folded_into_the_weights(bias):
    """With balanced groups every draw is everything, so the average is the fit of scikit-learn itself."""
    features, labels, groups = made_up(sizes=(30,) * 4)
    weight, offset = LastLayerFitter(features, labels, groups, 2, bias).averaged(np.arange(120), 0.3, 2, seed=3)
    scaler = StandardScaler(with_mean=False).fit(features)
    direct = LogisticRegression(C=0.3, l1_ratio=1.0, solver="liblinear", fit_intercept=bias, tol=1e-6, random_state=0)
    direct.fit(scaler.transform(features), labels)
    scores = features @ weight.T + offset
    expected = direct.decision_function(scaler.transform(features))
    assert scores[:, 1] - scores[:, 0] == pytest.approx(expected, abs=0.02)
    assert np.abs(expected).max() > 1


def test_three_classes():
    chance = np.random.default_rng(0)
    groups = np.repeat(np.arange(6), [60, 12, 12, 60, 60, 12])
    labels = groups // 2
    centres = np.array([[3.0, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]])
    features = centres[labels] + 0.5 * chance.normal(size=(len(labels), 4))
    features = np.concatenate([features, 9 * (groups % 2)[:, None]], axis=1)
    fit = LastLayerFitter(features, labels, groups, 3, bias=False)
    weight, bias = fit.averaged(np.arange(len(labels)), 1.0, 3, seed=0)
    assert weight.shape == (3, 5)
    assert fit.worst_group(weight, bias, np.arange(len(labels)))[0] > 0.9


def test_draws_of_a_single_class_are_refused():
    # Groups that are not made of classes: two of forty images are drawn, and not the only one of the second class.
    labels, groups = np.eye(1, 40, dtype=np.int64)[0], np.repeat([0, 1], [38, 2])
    fit = LastLayerFitter(np.ones((40, 1)), labels, groups, 2, bias=False)
    with pytest.raises(IfamError, match="a single class"):
        fit.averaged(np.arange(40), 1.0, 1, seed=0)


def test_a_class_without_an_image_is_named_before_anything_is_computed():
    class Listed:
        labels, groups = [0, 0, 0, 0], [0, 0, 1, 1]

        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise AssertionError("no image is needed")

    pets = Benchmark("pets", {"val": Listed()}, ("cat", "dog"), ("indoors", "outdoors"))
    with pytest.raises(IfamError, match="The class 'dog' of pets has no image in the split 'val'"):
        retrain(make(), pets)


def test_the_worst_group_is_the_lowest_and_ties_are_broken_by_the_mean():
    fit = LastLayerFitter(
        np.array([[1.0], [-1.0], [1.0], [1.0]]), np.array([1, 1, 1, 0]), np.array([0, 0, 1, 2]), 2, bias=False
    )
    assert fit.worst_group(np.array([[-1.0], [1.0]]), np.zeros(2), np.arange(4)) == (0.0, pytest.approx(0.5))


# --- models ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain_vit", "selector", "ifam"])
def test_only_the_last_layer_changes_and_by_the_seed_alone(birds, name):
    weights = {}
    for run, seed in enumerate((0, 0, 1)):
        model = make(name)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        done = retrain(model, birds, draws=2, strengths=[0.3, 1.0], seed=seed)
        after = model.state_dict()
        changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
        assert changed == {"selector.classifier.weight" if name == "selector" else "predictor.head.weight"}
        assert done.strength in done.worst_groups
        assert list(done.worst_groups) == [0.3, 1.0]
        assert done.groups == {
            "swimmer on water": 15,
            "swimmer on forest": 5,
            "percher on water": 5,
            "percher on forest": 15,
        }
        weights[run] = model.last_layer.weight.clone()
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_strength_is_the_one_with_the_best_worst_group(birds):
    done = retrain(make(), birds, strengths=[1e-4, 1.0], draws=2)
    # So strong a penalty leaves no weight: everything is the first class, and a group of the other has nothing right.
    assert done.worst_groups[1e-4] == 0
    assert done.strength == (1.0 if done.worst_groups[1.0] > 0 else 1e-4)
    assert done.worst_groups[1.0] > 0


@pytest.mark.slow
def test_a_group_without_an_image_is_named(birds):
    lone = load_benchmark("pondbirds", options={**DATA, "correlation": 1.0})
    lone = replace(lone, splits={**lone.splits, "train": birds.split("val")})
    with pytest.raises(
        IfamError, match=r"group 'swimmer on forest' of pondbirds has no images in the split 'val', but"
    ):
        retrain(make(), lone)


@pytest.mark.slow
def test_groups_that_only_the_test_has_are_left_out(birds):
    lone = load_benchmark("pondbirds", options={**DATA, "correlation": 1.0})
    assert {"swimmer on forest", "percher on water"} <= set(lone.group_names)
    assert retrain(make(), lone, draws=1).groups == {"swimmer on water": 20, "percher on forest": 20}


def test_classes_that_the_model_does_not_know_are_refused(birds):
    with pytest.raises(IfamError, match="The model has 3 classes, and 2 of the 2 of pondbirds"):
        retrain(make(classes=3), birds)


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"strengths": []}, {"strengths": [0.0]}])
def test_impossible_numbers_are_refused(birds, wrong):
    with pytest.raises(IfamError, match="draws is"):
        retrain(make(), birds, **wrong)


# --- the verb --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ifam", "plain_vit_mean"])
def test_the_result_is_saved_as_a_model_of_the_same_method(birds, name, tmp_path, capsys):
    model = make(name)
    source, out = tmp_path / "model", tmp_path / "again"
    model.save_pretrained(source, {"benchmark": "pondbirds", "data": DATA, "root": None, "seed": 7})
    words = ["retrain", "--model", str(source), "--out", str(out), "--draws", "2", "--num_resamples", "0"]
    main(words)
    again = hub.load(out)
    assert type(again) is type(model)
    expected = make(name)
    done = retrain(expected, birds, draws=2)
    batch = a_batch(birds, model, "test")
    assert torch.equal(logits(again, batch), logits(expected, batch))
    if name == "ifam":
        assert torch.equal(again(batch.images).mask, model(batch.images).mask)
    extra = hub.read(out).extra
    assert extra["seed"] == 7
    assert extra["retraining"]["from"] == str(source)
    assert extra["retraining"]["strength"] == done.strength
    assert extra["retraining"]["groups"] == done.groups
    result = json.loads((out / "results.json").read_text())
    assert result["conditions"]["retraining"]["draws"] == 2
    assert result["count"] == 12
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "already contains a model" in capsys.readouterr().err


@pytest.mark.slow
def test_nothing_is_judged_on_what_was_fitted_to(tmp_path, capsys):
    source, out = tmp_path / "model", tmp_path / "again"
    make().save_pretrained(source, {"benchmark": "pondbirds", "data": DATA})
    main(["retrain", "--model", str(source), "--out", str(out), "--draws", "1", "--split", "test"])
    assert "Not evaluated: pondbirds has no test images except" in capsys.readouterr().out
    assert (out / "config.json").exists()
    assert not (out / "results.json").exists()


def test_groups_that_the_data_do_not_know_are_the_classes():
    class Pets:
        def __len__(self):
            return 8

        def __getitem__(self, index):
            generator = torch.Generator().manual_seed(index)
            return {"image": torch.rand(3, 40, 40, generator=generator), "label": index % 2}

    done = retrain(make(), Benchmark("pets", {"val": Pets()}, ("cat", "dog"), ("cat", "dog")), draws=1)
    assert done.groups == {"cat": 4, "dog": 4}
