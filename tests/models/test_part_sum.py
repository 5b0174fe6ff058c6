"""The answer as a sum of parts: additive to the last bit, and no part knows of another."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from ifam.checkpoints import hub
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.ifam import IFAM
from ifam.models.interventions import DropParts, KeepParts, UseMask, UseParts
from ifam.models.part_sum import add_up, assigned_parts, part_masks
from ifam.models.registry import METHODS, build
from ifam.ranges import check_types

EXECUTIONS = ["auto", "padded", "packed", "dense"]
MODES = ["full", "visible", "none"]
FILLINGS = [torch.nan, torch.inf, -torch.inf, 1e30, 7.0]
# Parts 0 and 1, and the background, 3, in four images; part 2 is absent, and the last image is all background.
ROWS = [[0, 0, 1, 3], [3, 1, 1, 0], [0, 3, 3, 3], [3, 3, 3, 3]]
PARTS = torch.tensor(ROWS)[:, :, None].expand(4, 4, 4)


@pytest.fixture
def make_sum(make_model):
    """A tiny model whose predictor sees each part alone: 4 x 4 patches, 3 parts, 5 classes."""
    return lambda *layout, **fields: make_model(*layout, aggregation="sum", **fields)


def outside(images, shown, filling):
    """The images with other pixels wherever the patches, or cells, are not shown."""
    size = images.shape[-1] // shown.shape[-1]
    kept = shown.repeat_interleave(size, dim=1).repeat_interleave(size, dim=2)[:, None]
    other = {"noise": 100 * torch.randn_like(images), "another image": images.flip(0)}.get(filling)
    return torch.where(kept, images, torch.full_like(images, filling) if other is None else other)


def own_masks(out):
    """The visible patches of each part [B, K, H, W]."""
    return part_masks(out.patch_parts, 3) & out.mask[:, None]


# ----------------------------------------------------------------------------------------------------- claims


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_contribution_depends_on_the_pixels_of_its_part_alone(make_sum, layout, execution, training):
    """Whatever all other pixels hold, those of other parts too, no bit of it moves."""
    predictor = make_sum(*layout, execution=execution).predictor.train(training)
    images, shown = torch.randn(4, 3, *predictor.backbone.image_size), part_masks(PARTS, 3)
    gate = (PARTS < 3).float().requires_grad_() if training else None
    held = (PARTS < 3, gate, PARTS.clamp_max(2))
    expected, prior = predictor.contributions(images, *held)
    for part, filling in product(range(3), [*FILLINGS, "noise", "another image"]):
        found, found_prior = predictor.contributions(outside(images, shown[:, part], filling), *held)
        assert torch.equal(found[:, part], expected[:, part]), (part, filling)
        assert torch.equal(found_prior, prior)
        others = [k for k in range(2) if k != part]
        assert not torch.equal(found[0, others], expected[0, others]), "the others were changed"


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_the_whole_model_isolates_parts_that_are_held(make_sum, images, execution):
    """The selector sees all pixels, those that are NaN too; with its parts given, they cannot reach another part."""
    model = make_sum(execution=execution)
    expected = model(images, [UseParts(PARTS)])
    for part, filling in product(range(3), FILLINGS):
        changed = outside(images, own_masks(expected)[:, part], filling)
        found = model(changed, [UseParts(PARTS)])
        assert torch.equal(found.part_contributions[:, part], expected.part_contributions[:, part])


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_contributions_add_up_to_the_logits_bit_by_bit(make_sum, layout, training):
    """Prior, part 0, part 1, ...: added in this order, by another library, in float32."""
    model = make_sum(*layout, num_parts=6).train(training)
    out = model(torch.randn(4, 3, *model.image_size))
    total = np.broadcast_to(out.prior.detach().numpy(), (4, 5))
    for part in range(6):
        total = total + out.part_contributions[:, part].detach().numpy()
    assert total.dtype == np.float32
    assert np.array_equal(total, out.logits.detach().numpy())


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_an_absent_part_contributes_exactly_nothing(make_sum, images, execution, mode):
    for training in (False, True):
        model = make_sum(execution=execution, mask_gradient=mode).train(training)
        out = model(images, [UseMask(torch.zeros(4, 4, dtype=torch.bool))])
        assert not out.part_contributions.any()
        assert torch.equal(out.logits, out.prior.expand(4, -1))
    out = model.eval()(images, [UseParts(PARTS)])
    assert (out.part_contributions[:3, :2] != 0).any(dim=2).tolist() == [[True, True], [True, True], [True, False]]
    assert not out.part_contributions[:, 2].any()


def test_dropping_a_part_removes_its_term_and_nothing_else(make_sum, images):
    """Every bit where all rows have the same length; else the others keep all but the last bits."""
    for execution in EXECUTIONS:
        model = make_sum(execution=execution)
        out = model(images)
        assert (out.part_contributions[:, :2] != 0).any()
        same = torch.equal if execution == "dense" else lambda a, b: torch.allclose(a, b, atol=1e-5)
        for part in range(3):
            dropped, kept = (model(images, [change([part])]) for change in (DropParts, KeepParts))
            expected = out.part_contributions.clone()
            expected[:, part] = 0
            assert same(dropped.part_contributions, expected)
            assert same(dropped.logits, add_up(out.prior, expected))
            assert same(kept.part_contributions, out.part_contributions - expected)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_gradient_of_the_parts_gates_is_the_formula(make_sum, gated_logits, execution, mode):
    """Of each part's own row of gated attention: of all its patches, of the visible ones, or none."""
    predictor = make_sum(execution=execution, mask_gradient=mode).predictor.double()
    images, weight = torch.randn(4, 3, 64, 64).double(), torch.randn(4, 5).double()
    visible, own = PARTS < 3, part_masks(PARTS, 3)
    gates = own.double().requires_grad_()
    contributions, prior = predictor.contributions(images, visible, None, PARTS.clamp_max(2), gates)
    (add_up(prior, contributions) * weight).sum().backward()

    exact = own.double().flatten(2).requires_grad_()
    rows = [gated_logits(predictor, images, exact[:, part], None) for part in range(3)]
    empty = gated_logits(predictor, images, torch.zeros(4, 16).double(), None)
    logits = empty + sum(row - empty for row in rows)
    torch.testing.assert_close(add_up(prior, contributions), logits, rtol=0, atol=1e-10)
    (logits * weight).sum().backward()
    wanted = exact.grad.view_as(gates)
    assert (wanted.abs() > 1e-9).all()
    if mode == "full":
        torch.testing.assert_close(gates.grad, wanted, rtol=1e-7, atol=1e-10)
    elif mode == "visible":
        torch.testing.assert_close(gates.grad, wanted * own, rtol=1e-7, atol=1e-10)
    else:
        assert gates.grad is None


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_weights_are_those_of_the_sum(make_sum, gated_logits, mode):
    predictor = make_sum(mask_gradient=mode).predictor.double()
    images, own = torch.randn(4, 3, 64, 64).double(), part_masks(PARTS, 3)
    gates = own.double().requires_grad_()
    out = add_up(*predictor.contributions(images, PARTS < 3, None, PARTS.clamp_max(2), gates)[::-1])
    rows = [gated_logits(predictor, images, own[:, k].flatten(1).double(), None) for k in range(3)]
    oracle = sum(rows) - 2 * gated_logits(predictor, images, torch.zeros(4, 16).double(), None)
    parameters = list(predictor.parameters())
    found, wanted = (
        torch.autograd.grad(logits.square().sum(), parameters, allow_unused=True) for logits in (out, oracle)
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_reaches_the_selector_through_the_parts(make_sum, images, mode):
    model = make_sum(mask_gradient=mode).train()
    model(images).logits.square().sum().backward()
    gradient = model.selector.prototypes.grad
    assert gradient is None if mode == "none" else gradient.isfinite().all() and gradient.any()


def test_gates_of_the_parts_add_up_to_the_gate_of_the_mask(make_sum, images):
    """In value, and in what the probability of each part gets from them."""
    model = make_sum().train()
    selection = model.select(images)
    selection = replace(selection, assignment_logits=selection.assignment_logits.detach().requires_grad_())
    mask = model.mask(selection)
    assert torch.equal(mask.part_gates.sum(dim=1), mask.visible.float())
    assert torch.equal(mask.part_gates > 0, part_masks(mask.patch_parts, 3) & mask.visible[:, None])
    weight = torch.randn(4, 4, 4)
    of_parts, of_mask = (
        torch.autograd.grad((gate * w).sum(), selection.assignment_logits, retain_graph=True)[0]
        for gate, w in ((mask.part_gates, weight[:, None]), (mask.gate, weight))
    )
    torch.testing.assert_close(of_parts, of_mask)


@pytest.mark.parametrize("resolution", [4, 8])
@torch.no_grad()
def test_pixels_of_a_finer_mask_are_isolated_too(make_sum, images, resolution):
    """Neither hidden pixels of a part's visible patches nor another part's pixels matter."""
    model = make_sum(mask_resolution=resolution)
    out = model(images)
    size = (out.mask.shape[1], out.mask.shape[2])
    cells = torch.nn.functional.interpolate(part_masks(out.patch_parts, 3).float(), size).bool() & out.mask[:, None]
    held = (out.mask, None, out.patch_parts)
    expected, _ = model.predictor.contributions(images, *held)
    assert torch.equal(expected, out.part_contributions)
    assert 0 < cells.float().mean() < 1
    for part, filling in product(range(3), [*FILLINGS, "noise"]):
        found, _ = model.predictor.contributions(outside(images, cells[:, part], filling), *held)
        assert torch.equal(found[:, part], expected[:, part])


# ----------------------------------------------------------------------------------------------------- behaviour


@torch.no_grad()
def test_every_part_is_the_joint_predictors_answer_to_it_alone(make_sum, make_model, images):
    model, joint = make_sum(), make_model()
    joint.load_state_dict(model.state_dict())
    out = model(images)
    prior = joint.predictor(images, torch.zeros_like(out.mask))
    torch.testing.assert_close(out.prior.expand(4, -1), prior)
    for part in range(3):
        alone = joint.predictor(images, own_masks(out)[:, part])
        torch.testing.assert_close(out.part_contributions[:, part], alone - prior, atol=1e-5, rtol=0)
    assert joint(images).part_contributions is None
    assert joint(images).prior is None


@torch.no_grad()
def test_the_answer_from_mask_and_parts_alone(make_sum, images):
    model = make_sum()
    out = model(images)
    assert torch.equal(model.predictor(images, out.mask, patch_parts=out.patch_parts), out.logits)
    with pytest.raises(IfamError, match=r"give `out.patch_parts`"):
        model.predictor(images, out.mask)
    for wrong in (out.patch_parts[:2], out.patch_parts.float()):
        with pytest.raises(IfamError, match=r"whole numbers \[4, 4, 4\]"):
            model.predictor(images, out.mask, patch_parts=wrong)


def test_without_a_difference_between_parts_one_part_is_the_joint_model(make_sum, make_model, images):
    model, joint = make_sum(num_parts=1), make_model(num_parts=1)
    joint.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(images).logits, joint(images).logits, atol=1e-5, rtol=0)


def test_patches_of_another_grid_belong_to_the_part_with_most_of_them():
    probabilities = torch.zeros(1, 3, 4, 4)
    # A quarter of the first patch belongs to part 2, half of it to part 1, and hardly any of the rest to part 0.
    probabilities[0, 2, 0, 0] = probabilities[0, 1, 0, 1] = probabilities[0, 1, 1, 0] = 0.9
    probabilities[0, 0] += 0.05
    logits = torch.cat([probabilities, torch.full((1, 1, 4, 4), 0.5)], dim=1).log()
    assert assigned_parts(logits, probabilities, (2, 2)).tolist() == [[[1, 0], [0, 0]]]
    assert assigned_parts(logits, probabilities, (4, 4))[0, :2, :2].tolist() == [[2, 1], [1, 0]]


@pytest.mark.parametrize("size", [32, 80])
def test_a_selector_on_another_grid(make_sum, images, size):
    model = make_sum(selector_image_size=size)
    out = model(images)
    assert out.patch_parts.shape == out.mask.shape == (4, 4, 4)
    assert torch.equal(add_up(out.prior, out.part_contributions), out.logits)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_one(make_sum, images, execution, batch):
    out = make_sum(execution=execution)(images[:batch])
    assert out.part_contributions.shape == (batch, 3, 5)
    assert out.logits.shape == (batch, 5)


def test_saved_and_loaded_and_exchanged_with_joint_models(make_sum, images, tmp_path):
    model = make_sum()
    model.save_pretrained(tmp_path)
    loaded = hub.load(tmp_path)
    assert loaded.config.aggregation == "sum"
    # Weights that lie elsewhere in memory may change the last bit on some processors.
    torch.testing.assert_close(loaded(images).logits, model(images).logits, rtol=0, atol=1e-5)
    joint = IFAM(replace(model.config, aggregation="joint"), pretrained=False)
    joint.load_state_dict(model.state_dict())


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"ifam", "frozen_predictor"}))
def test_methods_that_show_no_part_alone_refuse(method):
    config = ModelConfig("ifam_tiny", image_size=80, aggregation="sum")
    with pytest.raises(IfamError, match="aggregation is 'sum', but the method"):
        build(method, config, pretrained=False)


def test_other_aggregations_are_refused():
    with pytest.raises(IfamError, match="aggregation is 'mean', but 'joint' or 'sum' is expected"):
        check_types(ModelConfig, {"aggregation": "mean"})
