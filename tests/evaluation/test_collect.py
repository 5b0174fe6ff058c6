"""Figures of whole splits: by hand, against scikit-learn, and the same however many processes share the images."""

import json
import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, top_k_accuracy_score
from torch import nn

from fakes import Told
from ifam.config import ModelConfig
from ifam.data import Benchmark, load_benchmark
from ifam.errors import IfamError
from ifam.evaluation import collect
from ifam.evaluation.accuracy import evaluate, evaluate_variants, summarize
from ifam.evaluation.bootstrap import resamples
from ifam.models.base import Classifier
from ifam.models.interventions import DropParts, KeepParts
from ifam.models.masking import patch_mask
from ifam.report.console import print_evaluation
from ifam.types import Output
from miniatures import MINIATURES
from processes import in_processes

SIZE = 64


class Numbered:
    """Images that are their number, with labels, groups and perhaps masks."""

    def __init__(self, labels, groups=None, masks=None, size=4):
        self.labels, self.masks, self.size = list(labels), masks, size
        self.groups = self.labels if groups is None else list(groups)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = torch.full((3, self.size, self.size), float(index))
        example = {"image": image, "label": self.labels[index], "group": self.groups[index]}
        return example | ({} if self.masks is None or self.masks[index] is None else {"mask": self.masks[index]})


def benchmark(labels, groups=None, classes=8, train=None, masks=None, size=4, kind=Numbered, **fields):
    names = tuple(f"class {c}" for c in range(classes))
    group_names = names if groups is None else tuple("wxyz")
    splits = {"test": kind(labels, groups, masks, size)} | ({} if train is None else {"train": train})
    return Benchmark("told", splits, names, group_names, **fields)


def test_each_figure_is_scikit_learns():
    logits, labels = torch.randn(60, 8), torch.arange(60) % 8 // 2 + torch.arange(60) % 5
    accuracy = evaluate(Told(logits), benchmark(labels.tolist()), num_resamples=0).predictor
    answers = logits.argmax(dim=1)
    assert sorted(set(labels.tolist())) == list(range(8))
    assert accuracy.macro == pytest.approx(balanced_accuracy_score(labels, answers))
    assert accuracy.macro != pytest.approx(accuracy.average)
    assert accuracy.top5 == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(8)))
    assert 0 < accuracy.top5 < 1
    assert accuracy.auroc is None
    assert accuracy.intervals == {}
    assert accuracy.classes["class 0"].low is None


@pytest.mark.parametrize(("classes", "known"), [(5, False), (6, True)])
def test_the_best_five_need_six_classes(classes, known):
    evaluation = evaluate(Told(torch.randn(4, classes)), benchmark([0, 1, 2, 3], classes=classes), num_resamples=9)
    assert (evaluation.predictor.top5 is not None) == known
    assert ("top5" in evaluation.predictor.intervals) == known


def test_two_classes_have_an_auroc():
    # Far apart: probabilities would all be rounded to 0 or 1, and tie.
    logits, labels = 1e4 * torch.randn(50, 2), torch.randint(2, (50,))
    accuracy = evaluate(Told(logits), benchmark(labels.tolist(), classes=2)).predictor
    assert accuracy.auroc == pytest.approx(roc_auc_score(labels, (logits[:, 1] - logits[:, 0]).double()))
    low, high = accuracy.intervals["auroc"]
    assert 0 <= low < accuracy.auroc < high <= 1
    alone = evaluate(Told(logits), benchmark([1] * 50, classes=2)).predictor
    assert alone.auroc is None
    assert "auroc" not in alone.intervals


def test_groups_are_weighted_by_their_sizes_in_training():
    # Of three groups with images, all, half and none are right.
    logits, groups = torch.eye(2)[[0, 0, 0, 1, 1, 1]], [0, 0, 1, 1, 3, 3]
    train = SimpleNamespace(groups=torch.tensor([0] * 60 + [1] * 30 + [2] * 500 + [3] * 10))
    data = benchmark([0] * 6, groups, classes=2, train=train)
    evaluation = evaluate(Told(logits), data)
    # The 500 images of a group that the split lacks do not count.
    assert evaluation.predictor.weighted_average == pytest.approx((60 * 1 + 30 * 0.5 + 10 * 0) / 100)
    assert "'train'" in evaluation.weighted_by
    assert evaluation.predictor.average == 0.5
    for other in (None, SimpleNamespace(), SimpleNamespace(groups=[0, 1, 1])):
        # Not known, or without one of the groups.
        evaluation = evaluate(Told(logits), replace(data, splits={"test": data.splits["test"], "train": other}))
        assert evaluation.predictor.weighted_average == pytest.approx(0.5)
        assert "'test'" in evaluation.weighted_by


def test_the_weights_are_those_of_waterbirds(tmp_path, capsys):
    data = load_benchmark("waterbirds", tmp_path, MINIATURES["waterbirds"](tmp_path))
    model = Shown(1)
    model.register_forward_hook(lambda module, images, out: Output(torch.eye(2)[[0] * 3 + [1] * (len(out.logits) - 3)]))
    evaluation = evaluate(model, data, num_resamples=0)
    counts = np.bincount(data.splits["train"].groups, minlength=4)
    rights = [evaluation.predictor.groups[name].accuracy for name in data.group_names]
    assert evaluation.weighted_by == "group sizes in the split 'train'"
    assert evaluation.predictor.weighted_average == pytest.approx(np.average(rights, weights=counts))
    assert evaluation.predictor.weighted_average != pytest.approx(evaluation.predictor.average)
    print_evaluation(evaluation, "waterbirds")
    assert "by group sizes in the split 'train'" in " ".join(capsys.readouterr().out.split())


class Shown(Classifier):
    """A baseline that gives every image the same logits, highest for one class."""

    image_size, normalization = (16, 16), ((0.0,) * 3, (1.0,) * 3)

    def __init__(self, best, classes=2):
        super().__init__(ModelConfig())
        self.logits = nn.Parameter(torch.eye(classes)[best])

    def forward(self, images, interventions=(), masks=None):
        return Output(self.logits.expand(len(images), -1))


def test_long_tables_show_the_lowest_classes(capsys):
    labels = torch.arange(50)
    logits = torch.eye(50)
    logits[40] = logits[7]
    evaluation = evaluate(Told(logits), benchmark(labels.tolist(), classes=50), num_resamples=0)
    print_evaluation(evaluation, "many")
    shown = capsys.readouterr().out
    assert "class 40" in shown
    assert "class 49" not in shown
    assert "(40 more)" in shown
    assert "weighted" not in shown


def test_on_imagenet_a_only_its_classes_compete(tmp_path):
    data = load_benchmark("imagenet_a", tmp_path, MINIATURES["imagenet_a"](tmp_path))
    stray = next(c for c in range(1000) if c not in data.logit_classes)
    model = Shown(stray, 1000)
    first = data.splits["test"].labels[0]
    with torch.no_grad():
        model.logits[first] = 0.5
    accuracy = evaluate(model, data, num_resamples=0).predictor
    # Two images of each of three classes.
    assert accuracy.average == pytest.approx(1 / 3)
    assert accuracy.classes[data.class_names[first]].accuracy == 1
    # Tied for four further places are 199 classes, but none of those outside.
    assert 1 / 3 <= accuracy.top5 <= 1
    with torch.no_grad():
        model.logits.fill_(0)
        model.logits[[c for c in range(1000) if c not in data.logit_classes]] = 9.0
        model.logits[data.splits["test"].labels] = 1.0
    assert evaluate(model, data, num_resamples=0).predictor.top5 == 1


def test_on_imagenet_9_finer_answers_are_translated(tmp_path):
    data = load_benchmark("imagenet9", tmp_path, MINIATURES["imagenet9"](tmp_path))
    accuracy = evaluate(Shown(13, 1000), data, num_resamples=0).predictor  # stands for class 3
    assert accuracy.average == pytest.approx(1 / 9)
    assert accuracy.classes["reptile"].accuracy == 1
    assert accuracy.top5 is None
    assert evaluate(Shown(19, 1000), data, num_resamples=0).predictor.average == 0  # stands for none
    assert evaluate(Shown(3, 9), data, num_resamples=0).predictor.top5 is not None
    with pytest.raises(IfamError, match="9 or 1000 classes"):
        evaluate(Shown(3, 10), data)


# --- intervals -------------------------------------------------------------------------------------------


def test_intervals_are_those_of_a_loop():
    """Each resample written out: which images were drawn, and what they say."""
    right = torch.rand(40) < 0.6
    labels, groups = torch.randint(3, (40,)), torch.randint(4, (40,))
    rows = {"label": labels, "group": groups, "predictor.right": right}
    data = benchmark([], [], classes=3)
    accuracy = summarize(rows, data, "test", 200, seed=5).predictor
    drawn = {name: [] for name in ("average", "worst_group", "macro", "w")}
    for weights in torch.cat(list(resamples(40, 200, 5))):
        images = torch.arange(40).repeat_interleave(weights.long())
        assert len(images) == 40
        by_group = [right[images][groups[images] == g].double().mean() for g in range(4)]
        by_class = [right[images][labels[images] == c].double().mean() for c in range(3)]
        drawn["average"].append(right[images].double().mean())
        drawn["worst_group"].append(min(value for value in by_group if not value.isnan()))
        drawn["macro"].append(np.nanmean(by_class))
        drawn["w"].append(by_group[0])
    for name in ("average", "worst_group", "macro"):
        assert accuracy.intervals[name] == pytest.approx(tuple(np.nanquantile(drawn[name], [0.025, 0.975]))), name
    assert (accuracy.groups["w"].low, accuracy.groups["w"].high) == pytest.approx(
        tuple(np.nanquantile(drawn["w"], [0.025, 0.975]))
    )


def test_a_group_of_one_image_may_be_missing_from_a_resample():
    rows = {
        "label": torch.zeros(9, dtype=torch.long),
        "group": torch.tensor([0] * 8 + [1]),
        "predictor.right": torch.tensor([True] * 8 + [False]),
    }
    accuracy = summarize(rows, benchmark([], [], classes=2), "test", 300).predictor
    # Where its only image is not drawn, the others are the worst group.
    assert accuracy.worst_group == 0
    assert accuracy.intervals["worst_group"] == (0, 1)
    assert (accuracy.groups["x"].low, accuracy.groups["x"].high) == (0, 0)


def test_the_seed_and_the_number_of_resamples_are_on_record(tiny_model):
    data = benchmark([0, 1, 2, 3] * 3, classes=5, size=SIZE)
    evaluations = [evaluate(tiny_model, data, num_resamples=50, seed=seed) for seed in (1, 1, 2)]
    assert evaluations[0] == evaluations[1]
    assert evaluations[0].extra["intervals"] == "bootstrap, 50 resamples, 95%, seed 1"
    assert evaluations[0].predictor.average == evaluations[2].predictor.average
    assert set(evaluations[0].intervals) == {"visible_fraction"}
    json.dumps(asdict(evaluations[0]), allow_nan=False)


# --- interventions ---------------------------------------------------------------------------------------


def masks(count):
    pixels = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    for i in range(count):
        pixels[i, : 16 * (1 + i % 3), 16:48] = True
    return pixels


def test_each_variant_is_what_the_model_says(tiny_model):
    data = benchmark([0, 1, 2, 3, 4] * 2, classes=5, masks=masks(10), size=SIZE, kind=Noisy)
    variants = {"all": [], "without 0": [DropParts([0])], "only 1": [KeepParts([1])]}
    evaluations = evaluate_variants(tiny_model, data, "test", variants, num_resamples=0, batch_size=3)
    images = torch.stack([data.splits["test"][i]["image"] for i in range(10)])
    normal = torch.tensor(tiny_model.normalization)
    images = (images - normal[0][:, None, None]) / normal[1][:, None, None]
    shares = []
    for name, interventions in variants.items():
        with torch.no_grad():
            out = tiny_model(images, interventions)
        expected = (out.logits.argmax(dim=1) == torch.arange(5).repeat(2)).double().mean()
        assert evaluations[name].predictor.average == pytest.approx(float(expected))
        assert evaluations[name].visible_fraction == pytest.approx(float(out.mask.float().mean()))
        assert evaluations[name] == evaluate(tiny_model, data, interventions=interventions, num_resamples=0)
        shares.append(evaluations[name].visible_fraction)
    assert len(set(shares)) == 3


class Noisy(Numbered):
    """The same with random pixels."""

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {**super().__getitem__(index), "image": torch.rand(3, self.size, self.size, generator=generator)}


def test_the_true_mask_takes_the_place_of_the_selectors(tiny_model):
    truth = masks(6)
    data = benchmark([0, 1, 2, 3, 4, 0], classes=5, masks=truth, size=SIZE)
    own, given = (evaluate(tiny_model, data, true_masks=on, num_resamples=20) for on in (False, True))
    assert own.mask_iou < 1
    assert given.mask_iou == 1
    assert given.visible_fraction == pytest.approx(float(patch_mask(truth, (4, 4)).float().mean()))
    assert given.selector == own.selector
    fewer = evaluate(tiny_model, data, true_masks=True, interventions=[DropParts([0, 1, 2])], num_resamples=0)
    assert fewer.visible_fraction == 0
    with pytest.raises(IfamError, match=r"told has no mask for image 4 of its split 'test'"):
        evaluate(tiny_model, benchmark([0] * 6, masks=[*truth[:4], None, None], size=SIZE, classes=5), true_masks=True)


def test_a_baseline_has_no_parts():
    for settings in ({"interventions": [DropParts([0])]}, {"true_masks": True}):
        with pytest.raises(IfamError, match="told does not support interventions"):
            evaluate(Told(torch.randn(2, 8)), benchmark([0, 1]), **settings)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_images_without_a_mask_leave_their_neighbours_judged(tiny_model, batch_size):
    truth = [None, *masks(3), None, None]
    data = benchmark([0] * 6, classes=5, masks=truth, size=SIZE)
    evaluation = evaluate(tiny_model, data, batch_size=batch_size, num_resamples=0)
    intersection = union = 0
    for i in range(1, 4):
        image = torch.full((3, SIZE, SIZE), float(i))
        normal = torch.tensor(tiny_model.normalization)
        with torch.no_grad():
            shown = tiny_model(((image - normal[0][:, None, None]) / normal[1][:, None, None])[None]).mask
        target = patch_mask(truth[i][None], (4, 4))
        intersection, union = intersection + int((shown & target).sum()), union + int((shown | target).sum())
    assert evaluation.mask_iou == pytest.approx(intersection / union)


def test_a_model_keeps_its_mode_when_an_image_is_bad(tiny_model):
    data = benchmark([0], size=SIZE, kind=Longer)
    with pytest.raises(IndexError):
        evaluate(tiny_model.train(), data)
    assert tiny_model.training


class Longer(Numbered):
    """Says that it has an image more than it does."""

    def __len__(self):
        return super().__len__() + 1


# --- several processes -----------------------------------------------------------------------------------


def _process(rank, folder, model, data):
    evaluation = evaluate(model, data, batch_size=2, num_resamples=40)
    (folder / f"{rank}.json").write_text(json.dumps(asdict(evaluation)))


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(("count", "processes"), [(7, 2), (7, 3), (1, 3)])
def test_several_processes_find_exactly_what_one_finds(tiny_model, tmp_path, one_thread, count, processes):
    """Seven images are batches of two, two, two and one; of a single one, all processes but one have none."""
    some = [None, *masks(6)][-count:]
    data = benchmark([0, 1, 2, 3, 4, 0, 1][:count], classes=5, masks=some, size=SIZE, kind=Noisy)
    in_processes(processes, _process, tmp_path, tmp_path, tiny_model, data)
    expected = json.loads(json.dumps(asdict(evaluate(tiny_model, data, batch_size=2, num_resamples=40))))
    assert expected["count"] == count
    for rank in range(processes):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


def test_an_image_that_is_missing_or_counted_twice_is_noticed():
    for indices in ([0, 2], [0, 1, 1, 2]):
        with pytest.raises(AssertionError, match="counted twice"):
            collect.gather([{"index": torch.tensor(indices)}], 3)
    shuffled = {"index": torch.tensor([2, 0, 1]), "label": torch.tensor([20, 0, 10])}
    assert collect.gather([shuffled], 3)["label"].tolist() == [0, 10, 20]


def test_no_batch_is_no_batch(tiny_model):
    with pytest.raises(IfamError, match="batch_size is 0"):
        evaluate(tiny_model, benchmark([0], size=SIZE), batch_size=0)


def test_nothing_is_not_a_number_in_the_results(tiny_model):
    evaluation = evaluate(tiny_model, benchmark([1, 1], classes=5, size=SIZE), num_resamples=10)
    assert math.isfinite(evaluation.predictor.macro)
    json.dumps(asdict(evaluation), allow_nan=False)
