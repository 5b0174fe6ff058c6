"""Evaluation of whole models, on examples whose right figures are known."""

import json
import math
from collections import Counter

import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score

from ifam.data import Benchmark, TransformedDataset, load_benchmark
from ifam.errors import IfamError
from ifam.evaluation.accuracy import Evaluation, evaluate, hidden_influence
from ifam.models.masking import patch_mask
from ifam.report.console import print_evaluation, write_results
from ifam.serialization import from_json

SIZE = 64
GROUPS = ("w", "x", "nobody", "z")


class Coloured:
    """Random images; label, group and mask as told."""

    def __init__(self, labels, groups, masks=None):
        self.images = torch.rand(len(labels), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
        self.labels, self.groups, self.masks = labels, groups, masks

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        mask = {} if self.masks is None else {"mask": self.masks[index]}
        return {"image": self.images[index], "label": self.labels[index], "group": self.groups[index], **mask}


def make_benchmark(labels, groups, masks=None):
    return Benchmark("coloured", {"test": Coloured(labels, groups, masks)}, tuple("abcde"), GROUPS)


def shares(table):
    """A table without its intervals."""
    return {name: (row.accuracy, row.count) for name, row in table.items()}


@pytest.fixture
def answers(tiny_model):
    """A function from a benchmark to what the model says about each image, asked one by one."""

    def ask(benchmark):
        prepared = TransformedDataset(benchmark.split("test"), tiny_model.image_size, tiny_model.normalization)
        with torch.no_grad():
            return [tiny_model(prepared[i]["image"][None]) for i in range(len(prepared))]

    return ask


def test_figures_are_those_counted_one_by_one(tiny_model, answers):
    groups = [0, 1, 1, 3, 3, 3, 0, 1, 3, 0]
    masks = torch.zeros(10, SIZE, SIZE, dtype=torch.bool)
    masks[:, :40, 10:50] = True
    outs = answers(make_benchmark([0] * 10, groups))
    said = [int(out.logits.argmax()) for out in outs]
    # Right for all but images 0, 1, 2 and 9, whatever the model says.
    labels = [(s + 1) % 5 if i in (0, 1, 2, 9) else s for i, s in enumerate(said)]
    benchmark = make_benchmark(labels, groups, masks)
    evaluation = evaluate(tiny_model, benchmark)
    assert evaluation.count == 10
    assert evaluation.predictor.average == pytest.approx(0.6)
    assert shares(evaluation.predictor.groups) == {
        "w": (pytest.approx(1 / 3), 3),
        "x": (pytest.approx(1 / 3), 3),
        "z": (1.0, 4),
    }
    assert evaluation.predictor.worst_group == pytest.approx(1 / 3)
    counts = Counter(labels)
    for label, name in enumerate("abcde"):
        if counts[label]:
            right = sum(s == t for s, t in zip(said, labels, strict=True) if t == label)
            assert shares(evaluation.predictor.classes)[name] == (pytest.approx(right / counts[label]), counts[label])
        else:
            assert name not in evaluation.predictor.classes
    assert evaluation.selector.average == pytest.approx(
        accuracy_score(labels, [int(out.selector_logits.argmax()) for out in outs])
    )
    shown = torch.cat([out.mask for out in outs])
    truth = patch_mask(masks, (4, 4))
    assert evaluation.mask_iou == pytest.approx(jaccard_score(truth.flatten(), shown.flatten()))
    assert evaluation.visible_fraction == pytest.approx(float(shown.float().mean()))
    assert evaluation.empty == sum(bool(out.empty) for out in outs)


def test_the_batch_size_changes_nothing(tiny_model):
    masks = torch.rand(10, SIZE, SIZE) > 0.5
    benchmark = make_benchmark([0, 1, 2, 3, 4] * 2, [0, 1, 3, 3, 0] * 2, masks)
    first = evaluate(tiny_model, benchmark, batch_size=64)
    for batch_size in (1, 3, 10):
        other = evaluate(tiny_model, benchmark, batch_size=batch_size)
        assert other.predictor == first.predictor
        assert other.selector == first.selector
        assert other.mask_iou == first.mask_iou
        assert other.visible_fraction == pytest.approx(first.visible_fraction, rel=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_judged_without_noise_and_keeps_its_mode(tiny_model, training):
    benchmark = make_benchmark([0, 1, 2, 3], [0, 1, 3, 3])
    expected = evaluate(tiny_model.eval(), benchmark)
    evaluation = evaluate(tiny_model.train(training), benchmark)
    assert tiny_model.training is training
    assert evaluation == expected


def test_without_true_masks_there_is_no_iou(tiny_model):
    evaluation = evaluate(tiny_model, make_benchmark([0, 1], [0, 1]))
    assert evaluation.mask_iou is None
    assert evaluation.selector is not None


def test_a_baseline_has_neither_selector_nor_mask():
    from ifam.config import ModelConfig
    from ifam.models.baselines import PlainViT

    kwargs = {"depth": 1, "embed_dim": 48, "num_heads": 3}
    config = ModelConfig("vit_tiny_patch16_224", image_size=SIZE, num_classes=5, backbone_kwargs=kwargs)
    evaluation = evaluate(
        PlainViT(config, pretrained=False), make_benchmark([0, 1, 2], [0, 1, 1], torch.ones(3, 64, 64))
    )
    assert evaluation.predictor.groups.keys() == {"w", "x"}
    assert (evaluation.selector, evaluation.mask_iou, evaluation.visible_fraction, evaluation.empty) == (None,) * 4


def test_images_of_which_nothing_is_visible_are_counted(tiny_model):
    with torch.no_grad():
        # The background is the nearest prototype of every patch.
        tiny_model.selector.prototypes.copy_(torch.full_like(tiny_model.selector.prototypes, 1e3))
        tiny_model.selector.prototypes[-1].zero_()
    evaluation = evaluate(tiny_model, make_benchmark([0, 1, 2], [0, 1, 1], torch.ones(3, SIZE, SIZE).bool()))
    assert (evaluation.empty, evaluation.visible_fraction, evaluation.mask_iou) == (3, 0.0, 0.0)
    # Where there is no object either, the two masks agree.
    nothing = evaluate(tiny_model, make_benchmark([0, 1, 2], [0, 1, 1], torch.zeros(3, SIZE, SIZE).bool()))
    assert nothing.mask_iou == 1.0


def test_an_unknown_split_is_an_error(tiny_model):
    with pytest.raises(IfamError, match="coloured has no split 'val'; it has test"):
        evaluate(tiny_model, make_benchmark([0], [0]), "val")


def test_the_table_names_every_group_and_class(tiny_model, capsys, tmp_path):
    evaluation = evaluate(tiny_model, make_benchmark([0, 1, 2, 3], [0, 1, 3, 3], torch.ones(4, SIZE, SIZE).bool()))
    capsys.readouterr()
    print_evaluation(evaluation, "a title")
    shown = capsys.readouterr().out
    assert all(
        word in shown for word in ("a title", "worst group", "selector alone", "mask IoU", "visible", "predictor")
    )
    lines = [line.split() for line in shown.splitlines()]
    for name, row in {**evaluation.predictor.groups, **evaluation.predictor.classes}.items():
        assert any(name in line and str(row.count) in line and f"{row.accuracy:.1%}" in line for line in lines)
    assert "nobody" not in shown
    write_results(evaluation, tmp_path / "deep" / "results.json", {"split": "test"})
    written = json.loads((tmp_path / "deep" / "results.json").read_text())
    assert from_json(Evaluation, written) == evaluation
    assert written["predictor"]["groups"]["w"].keys() == {"accuracy", "count", "low", "high"}
    assert written["conditions"]["split"] == "test"
    assert written["conditions"]["ifam_version"]


# --- hidden influence ------------------------------------------------------------------------------------


def test_hidden_pixels_have_exactly_no_influence(tiny_model):
    examples = load_benchmark("pondbirds", options={"num_train": 2, "num_val": 2, "num_test": 8}).split("test")
    influence = hidden_influence(tiny_model, examples)
    assert influence == 0.0
    assert isinstance(influence, float)


def leak(model, how):
    """Let the predictor see something of what is hidden."""
    honest = model.predictor.forward

    def forward(images, mask, gate=None):
        return honest(images, mask, gate) + how(images, mask)

    model.predictor.forward = forward
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "least"),
    [
        (lambda images, mask: images.mean(), math.inf),  # NaN in, NaN out
        (lambda images, mask: images.nan_to_num(0, 0, 0).clamp(-1, 1).mean(), 1e-4),  # a faint, tame leak
        (lambda images, mask: images.isnan().any().float() * 1e-6, 1e-8),  # only one of the fillings shows it
        (lambda images, mask: (images == 1e30).any().float() * 1e-6, 1e-8),
        (lambda images, mask: images.isinf().any().float() * 1e-6, 1e-8),
    ],
)
def test_a_leak_shows(tiny_model, how, least):
    examples = Coloured([0] * 4, [0] * 4)
    assert hidden_influence(tiny_model, examples) == 0.0
    # Something is hidden, or nothing could leak.
    assert not tiny_model(torch.randn(4, 3, SIZE, SIZE)).mask.all()
    assert hidden_influence(leak(tiny_model, how), examples) >= least


def test_a_leak_of_the_visible_part_is_none(tiny_model):
    """What depends on visible pixels only is as it should be."""

    def visible_only(images, mask):
        shown = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
        return torch.where(shown, images, 0.0).sum()

    assert hidden_influence(leak(tiny_model, visible_only), Coloured([0] * 4, [0] * 4)) == 0.0


def test_only_the_first_images_are_asked(tiny_model):
    seen = []
    tiny_model.selector.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    hidden_influence(tiny_model, Coloured([0] * 6, [0] * 6), count=3)
    assert seen == [3]
