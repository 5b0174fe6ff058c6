"""The certificate, on predictors of which it is known what they see."""

import pytest
import torch

from fakes import PeekingPredictor
from ifam.auditing.certify import Setting, certify, merge, predictor_settings
from ifam.errors import IfamError
from ifam.evaluation.hidden_pixel_attacks import FILLINGS, ascend, differing, hidden_pixel_mask, replaced

FINITE = ("noise", "another image", "adversarial")


def visible_sum(images, mask):
    """A faithful answer: two logits from visible pixels alone."""
    shown = images.masked_fill(hidden_pixel_mask(mask, images), 0.0)
    return torch.stack([shown.sum(dim=(1, 2, 3)), shown[:, 0].sum(dim=(1, 2))], dim=1)


@pytest.fixture
def peeking(make_model):
    """It peeks in one execution and one mode."""
    return PeekingPredictor(make_model().predictor, size=1e-3, execution="padded", training=True)


@pytest.mark.parametrize("filling", FILLINGS)
def test_an_attack_changes_every_hidden_value_and_no_visible_one(images, mask, filling):
    """Also where the other image is the same, or the image holds the very value."""
    images[0] = images[1]
    images[1, :, :, :] = 1e30
    hidden = hidden_pixel_mask(mask, images)
    changed = replaced(images, hidden, filling, torch.Generator().manual_seed(0))
    assert (changed != images)[hidden].all()
    assert torch.equal(changed[~hidden], images[~hidden])
    assert differing(images, images, hidden)[hidden].ne(images[hidden]).all()


@pytest.mark.slow
def test_a_faithful_predictor_passes_in_every_setting(make_model, images, mask):
    result = certify(make_model().predictor, images, mask, mask.float(), settings=predictor_settings(), batch_size=3)
    assert result.passed
    assert len(result.settings) == 8
    assert not result.skipped
    assert {figures.attack for figures in result.attacks} == {*FILLINGS, "adversarial", "gradient"}
    assert all(figures.failing == figures.logit_change == figures.probability_change == 0 for figures in result.attacks)
    # Image 2 shows everything, image 1 nothing; 13, 16, 0 and 8 of 16 patches of 16 x 16 pixels are hidden.
    assert (result.images, result.certified, result.hides_nothing, result.hides_everything) == (4, 3, 1, 1)
    assert result.hidden_pixels == (13 + 16 + 8) * 16 * 16
    assert {figures.tried for figures in result.attacks} == {3 * 8}


@pytest.mark.slow
def test_a_predictor_that_looks_at_one_hidden_pixel_is_named(peeking, images, mask):
    """With the image, the attack and the one setting in which it looks."""
    mask[0, 0, 0] = True
    result = certify(peeking, images, mask, mask.float(), settings=predictor_settings())
    assert not result.passed
    # Images 0, 2 and 3 show that pixel: only image 1 is fooled.
    assert result.failing_images == (1,)
    assert result.failing == pytest.approx(1 / 3)
    assert {v.image for v in result.violations} == {1}
    assert {v.setting for v in result.violations} == {"padded, training"}
    assert {v.attack for v in result.violations} == {*FILLINGS, "adversarial", "gradient"}
    assert "image 1" in str(result.violations[0])
    assert "padded, training" in str(result.violations[0])
    by_name = {figures.attack: figures for figures in result.attacks}
    for name in by_name:
        assert by_name[name].failing == pytest.approx(1 / 24), name
    assert by_name["NaN"].not_finite == pytest.approx(1 / 24)
    assert by_name["noise"].not_finite == 0


def test_the_smallest_difference_fails(peeking, images, mask):
    """A change in the last bit is a change."""
    peeking.size = 1e-7
    result = certify(peeking, images, mask, settings=[Setting("padded", True)])
    assert not result.passed
    noise = next(f for f in result.attacks if f.attack == "noise")
    assert noise.failing > 0
    assert 0 < noise.logit_change < 1e-5


def test_the_predictor_is_left_as_it_was(peeking, images, mask):
    for training in (False, True):
        peeking.train(training).execution = "dense"
        certify(peeking, images, mask, settings=[Setting("packed", not training)])
        assert peeking.execution == "dense"
        assert peeking.training is training
        assert all(module.training is training for module in peeking.modules())


@pytest.mark.slow
def test_what_is_random_in_training_is_held_equal(make_model, images, mask):
    """Stochastic depth draws the same for every call; packed execution cannot have it, and is reported."""
    predictor = make_model(backbone_kwargs={"drop_path_rate": 0.4}).predictor
    state = torch.get_rng_state()
    result = certify(predictor, images, mask, mask.float(), settings=predictor_settings())
    assert result.passed
    assert torch.equal(state, torch.get_rng_state())
    assert len(result.skipped) == 1
    assert result.skipped[0].startswith("packed, training: execution='packed'")
    assert len(result.settings) == 7


def test_any_function_can_be_certified(images, mask):
    assert certify(visible_sum, images, mask).passed
    everything = certify(lambda x, m: visible_sum(x, torch.ones_like(m)), images, mask)
    assert everything.failing == 1
    by_name = {figures.attack: figures for figures in everything.attacks}
    assert by_name["infinity"].not_finite == by_name["infinity"].changed_answers == 1
    assert by_name["gradient"].failing == 1
    assert all(by_name[name].logit_change > 1 for name in FINITE)
    # The adversary does at least what noise does.
    assert by_name["adversarial"].changed_answers >= by_name["noise"].changed_answers


def test_logits_that_are_never_finite_are_no_answer(images, mask):
    """NaN equals nothing: an answer that is NaN with and without the attack has not kept anything."""
    result = certify(lambda x, m: torch.full((len(x), 2), torch.nan), images, mask)
    assert not result.passed
    infinite = certify(lambda x, m: torch.full((len(x), 2), torch.inf), images, mask)
    assert not infinite.passed


def test_a_gradient_without_effect_is_found_too(images, mask):
    """A hidden pixel that cannot change a rounded answer still receives gradient."""

    def rounded(x, m):
        logits = visible_sum(x, m)
        return logits + (x[:, 0, 0, 0] - x[:, 0, 0, 0].detach())[:, None] * torch.tensor([1.0, 2.0])

    finite = certify(rounded, images, mask)
    by_name = {figures.attack: figures for figures in finite.attacks}
    # Image 3 shows that pixel.
    assert by_name["gradient"].failing == pytest.approx(2 / 3)
    assert finite.failing_images == (0, 1)
    assert by_name["noise"].failing == 0
    silent = certify(rounded, images, mask, settings=[Setting(no_gradient=False)])
    assert "gradient" not in {figures.attack for figures in silent.attacks}


def test_the_ascent_climbs(images, mask):
    """Away from the answer, step by step, and not at all where the gradient is zero."""
    hidden = hidden_pixel_mask(mask, images)

    def run(x):
        return visible_sum(x, torch.ones_like(mask))

    expected = run(images)
    rows = hidden.flatten(1).any(dim=1)
    gaps = []
    for steps in (1, 3):
        climbed, slope = ascend(run, images, hidden, expected, steps)
        assert torch.equal(climbed[~hidden], images[~hidden])
        assert (slope[~hidden] == 0).all()
        own = expected.argmax(dim=1, keepdim=True)
        logits = run(climbed)
        gaps.append((logits.gather(1, 1 - own) - logits.gather(1, own))[rows])
    assert (gaps[1] > gaps[0]).all()
    still, slope = ascend(lambda x: visible_sum(x, mask), images, hidden, expected, 3)
    assert torch.equal(still, images)
    assert not slope.any()


def test_where_nothing_is_hidden_nothing_is_certified(images, mask):
    """A model that shows everything has proved nothing."""
    result = certify(visible_sum, images, torch.ones_like(mask))
    assert (result.certified, result.hides_nothing, result.hidden_pixels) == (0, 4, 0)
    assert not result.passed
    assert not result.violations
    nothing = certify(visible_sum, images, torch.zeros_like(mask))
    assert nothing.passed
    assert nothing.hides_everything == 4


def test_images_that_are_not_finite_are_refused(images, mask):
    images[0, 0, 0, 0] = torch.nan
    with pytest.raises(IfamError, match="NaN or infinity"):
        certify(visible_sum, images, mask)


def test_merging_keeps_every_failure(images, mask):
    good = certify(visible_sum, images, mask)
    bad = certify(lambda x, m: visible_sum(x, torch.ones_like(m)), images, mask, settings=[Setting(label="whole")])
    both = merge("both", [good, bad])
    assert not both.passed
    assert both.failing_images == bad.failing_images
    assert both.settings == ("as it is, evaluation", "whole, evaluation")
    noise = next(f for f in both.attacks if f.attack == "noise")
    assert noise.tried == 6
    assert noise.failing == pytest.approx(0.5)
    assert noise.logit_change == max(f.logit_change for f in bad.attacks if f.attack == "noise")
