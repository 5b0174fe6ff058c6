"""What training says about a selector that has not learned what it should."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from ifam.backbones.vit import TINY
from ifam.config import LossConfig, ModelConfig
from ifam.data import load_benchmark
from ifam.models.ifam import IFAM
from ifam.models.masking import make_mask
from ifam.models.selector import show_at_least
from ifam.training.diagnostics import SelectorFigures, SelectorMetric, above_chance, problems
from ifam.training.fit import fit, seed_everything
from ifam.training.module import Training
from ifam.training.presets import TINY_TRAIN
from ifam.types import Output
from processes import in_two_processes

# Two parts and the background, in 100 images of two classes.
GOOD = SelectorFigures(0.2, (0.1, 0.1, 0.8), (70, 60, 100), right=80, labels=(50, 50), answers=(50, 50))
GRID = (37, 37)


def found(grid=GRID, losses=None, **changes):
    return problems(replace(GOOD, **changes), LossConfig(**(losses or {})), grid)


def test_of_a_good_selector_nothing_is_said():
    assert found() == []


@pytest.mark.parametrize(
    ("visible", "shown"),
    [(0.0, "0.0%"), (0.012, "1.2%"), (0.0201, ""), (0.89, ""), (0.92, "92.0%"), (1.0, "100.0%")],
)
def test_a_mask_that_shows_nearly_nothing_or_nearly_everything(visible, shown):
    texts = found(visible=visible)
    assert len(texts) == bool(shown)
    for text in texts:
        assert f"shows {shown} of the patches of 100 validation images" in text
        what, change = ("nothing", "lower") if visible < 0.5 else ("everything", "raise")
        assert f"nearly {what}." in text
        assert f"{change} --loss.enforced_presence (now 2)" in text


@pytest.mark.parametrize("visible", [0.01, 0.99])
def test_on_a_coarse_grid_total_variation_is_named_first(visible):
    (text,) = found((10, 10), visible=visible)
    assert "too much for 10 x 10 patches: set --loss.total_variation 0.8 (now 1)" in text
    assert "enforced_presence" not in text
    (text,) = found((10, 10), {"total_variation": 0.8}, visible=visible)
    assert "total_variation" not in text


def test_parts_that_never_win_are_named_with_the_number_that_is_enough():
    (text,) = found(images=(0, 60, 100))
    assert "Of the parts 0 to 1, 0 wins no patch in any of 100 validation images" in text
    assert "--model.num_parts 1, or raise --loss.presence (now 1)" in text
    (text,) = found(images=(0, 60, 1, 2, 0, 100))
    assert "Of the parts 0 to 4, 0, 2 and 4 win a patch in at most 1 of 100 validation images" in text
    assert "--model.num_parts 2," in text


def test_where_no_part_wins_only_the_mask_is_mentioned():
    (text,) = found(visible=0.0, images=(0, 0, 100), right=50)
    assert text.startswith("The selector's own mask shows 0.0%")
    assert "--loss.enforced_presence" in text


def test_a_selector_at_chance_is_the_cause_of_the_rest():
    texts = found(visible=0.99, images=(0, 60, 100), right=53)
    assert [text.split()[0] for text in texts] == ["The", "Of", "The"]
    assert "right for 53.0% of 100 validation images, and would be for 50.0%" in texts[-1]
    for text in texts:
        assert text.endswith("too little training: raise --train.base_lr or --train.epochs.")


def test_a_classifier_that_was_not_trained_is_not_judged():
    assert found(right=53, losses={"selector_classification": 0.0}) == []


def test_with_few_images_nothing_is_said_about_chance():
    few = {"labels": (5, 5), "answers": (5, 5), "images": (7, 6, 10), "right": 5}
    assert found(**few) == []
    assert len(found(**{**few, "labels": (10, 10), "answers": (10, 10), "right": 10})) == 1


@pytest.mark.parametrize(
    ("right", "labels", "answers", "chance"),
    [
        (90, (90, 10), (100, 0), True),  # always the frequent class
        (82, (90, 10), (90, 10), True),  # its share, at random
        (60, (90, 10), (50, 50), False),  # fewer right than the frequent class has, but all rare ones are
        (58, (50, 50), (50, 50), True),
        (59, (50, 50), (50, 50), False),
        (100, (100, 0), (100, 0), True),
        (12, (5,) * 200, (5,) * 200, False),  # of 200 classes
        (8, (5,) * 200, (5,) * 200, True),
    ],
)
def test_chance_is_that_of_the_same_answers_in_random_order(right, labels, answers, chance):
    assert bool(found(right=right, labels=labels, answers=answers)) == chance


def test_above_chance_is_what_all_orders_say():
    """Mean and deviation of the right answers over all 5040 orders of seven answers."""
    labels, answers = [0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1, 2]
    rights = [sum(a == b for a, b in zip(labels, order, strict=True)) for order in itertools.permutations(answers)]
    mean = sum(rights) / len(rights)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in rights) / len(rights))
    figures = replace(GOOD, right=5, labels=(3, 2, 2), answers=(2, 4, 1))
    assert above_chance(figures) == pytest.approx((5 - mean) / deviation)


# --- counting --------------------------------------------------------------------------------------------


def outputs(make_selection):
    """Three images of four patches, two parts and two classes; the first is won by part 0 in one patch."""
    logits = torch.zeros(3, 3, 2, 2)
    logits[:, 2] = 1.0
    logits[0, 0, 0, 0] = 2.0
    logits[1, 0, 0] = 2.0
    selection = replace(make_selection(logits, classes=2), selector_logits=torch.eye(3)[:, :2])
    return Output(mask=logits.argmax(dim=1) < 2, selection=selection), torch.tensor([0, 0, 1])


# The answers are 0, 1 and, at a tie, 0.
COUNTED = SelectorFigures(0.25, (0.25, 0.0, 0.75), (2, 0, 3), right=1, labels=(2, 1), answers=(2, 1))


def test_figures_of_an_output_by_hand(make_selection):
    metric = SelectorMetric(2, 2)
    metric.update(*outputs(make_selection))
    assert metric.figures() == COUNTED
    metric.reset()
    metric.update(*outputs(make_selection))
    metric.update(*outputs(make_selection))
    assert metric.figures() == replace(COUNTED, images=(4, 0, 6), right=2, labels=(4, 2), answers=(4, 2))


def test_patches_that_min_visible_shows_are_not_counted(make_selection):
    out, labels = outputs(make_selection)
    forced = show_at_least(0.5, out.selection.assignment_logits)
    selection = replace(out.selection, assignment_logits=forced, initial_logits=forced)
    metric = SelectorMetric(2, 2)
    metric.update(replace(out, mask=make_mask(selection).visible, selection=selection), labels)
    assert metric.figures() == COUNTED


def _process(rank, make_selection):
    """Both devices count the same images."""
    metric = SelectorMetric(2, 2)
    metric.update(*outputs(make_selection))
    for _ in range(2):
        assert metric.figures() == replace(COUNTED, images=(4, 0, 6), right=2, labels=(4, 2), answers=(4, 2))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_figures_are_those_of_all_devices(tmp_path, make_selection):
    in_two_processes(_process, tmp_path, make_selection)


# --- real training ---------------------------------------------------------------------------------------

TRAIN = replace(TINY_TRAIN, epochs=2, batch_size=16, base_lr=1e-3)


@pytest.fixture(scope="module")
def birds():
    return load_benchmark("pondbirds", options={"num_train": 64, "num_val": 40, "num_test": 8})


def trained(birds, caplog, change=None, train=None, model=None, **losses):
    """What a short training warns of."""
    seed_everything(0)
    model = IFAM(ModelConfig(**{"backbone": TINY, "image_size": 80, "num_parts": 3, **(model or {})}))
    with torch.no_grad():
        if change is not None:
            change(model.selector.prototypes)
    settings = LossConfig(**{"total_variation": 0.3, **losses})
    result = fit(model, birds, replace(TRAIN, **(train or {})), settings, label="a run")
    assert all(record.levelname == "WARNING" for record in caplog.records)
    return result, caplog.messages


@pytest.mark.slow
def test_a_good_training_warns_of_nothing(birds, caplog):
    assert trained(birds, caplog)[1] == []


@pytest.mark.slow
def test_a_mask_without_background_is_said(birds, caplog):
    result, (text,) = trained(birds, caplog, enforced_presence=0.0)
    shown = result.history[result.best_epoch - 1]["val/visible_fraction"]
    assert text.startswith(f"a run: The selector's own mask shows {shown:.1%} of the patches of 40 validation images")
    assert "raise --loss.enforced_presence (now 0)" in text


@pytest.mark.slow
def test_maps_made_constant_by_total_variation_are_said(birds, caplog):
    assert any("set --loss.total_variation 0.8 (now 50)" in m for m in trained(birds, caplog, total_variation=50.0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, {"min_visible": 0.05}, {"min_visible": 0.05, "mask_resolution": 2}])
def test_an_empty_mask_is_said(birds, caplog, model):
    """Prototypes of parts that are far from every patch, and stay there."""
    settings = {"train": {"prototype_lr_factor": 0.0}, "model": model}
    _, (text,) = trained(birds, caplog, change=lambda prototypes: prototypes[:-1].mul_(1000), **settings)
    start = "a run: The selector's own mask shows 0.0% of the patches of 40 validation images, nearly nothing"
    assert text.startswith(start)


@pytest.mark.slow
def test_parts_that_are_too_many_are_said(birds, caplog):
    (text,) = trained(birds, caplog, model={"num_parts": 12})[1]
    assert "Of the parts 0 to 11, " in text
    assert "--model.num_parts" in text


@pytest.mark.slow
def test_without_learning_the_selector_is_at_chance(birds, caplog):
    assert "own classifier is no better than chance" in trained(birds, caplog, train={"base_lr": 0.0})[1][-1]


@pytest.mark.slow
def test_the_figures_are_those_of_the_weights_that_are_kept(birds, caplog, monkeypatch):
    """The second of three epochs is the best."""
    monkeypatch.setattr(Training, "is_best", lambda module, rank: module.current_epoch == 1)
    kept = []
    monkeypatch.setattr("ifam.training.fit.problems", lambda figures, *_: kept.append(figures) or [])
    result, _ = trained(birds, caplog, train={"epochs": 3})
    shown = [row["val/visible_fraction"] for row in result.history]
    assert result.best_epoch == 2
    assert len(set(shown)) == 3
    assert [figures.visible for figures in kept] == pytest.approx([shown[1]])
