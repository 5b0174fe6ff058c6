import math

import pytest
import torch
from torch.testing import assert_close

from ifam.errors import IfamError
from ifam.training import losses
from ifam.training.affine import Affine

WEIGHTS = {
    "classification": 1.0,
    "selector_classification": 1.0,
    "presence": 1.0,
    "enforced_presence": 2.0,
    "total_variation": 1.0,
    "entropy": 1.0,
    "orthogonality": 1.0,
    "equivariance": 1.0,
    "concentration": 0.0,
}
MAP_LOSSES = {
    "presence": losses.presence,
    "enforced_presence": losses.enforced_presence,
    "total_variation": losses.total_variation,
    "concentration": losses.concentration,
    "entropy": losses.entropy,
    "equivariance": lambda m: losses.equivariance(m, m, Affine(30.0, (1.0, 0.0), 1.1)),
}


def two_channels(part):
    """Maps [B,2,H,W] of one part and the background."""
    part = torch.tensor(part)
    return torch.stack([part, 1 - part], dim=1)


def random_maps(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.manual_seed(0)).softmax(1)


# ---- each term by hand ----


def test_classification():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert_close(losses.classification(logits, torch.tensor([1, 0])), torch.tensor(expected))


def test_presence_is_the_best_pooled_patch_of_the_batch():
    # A 3 x 4 grid has two 3 x 3 windows. Image 0: means 3/9 and 5/9; image 1: 1/9 and 1/9.
    part = [
        [[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]],
        [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],
    ]
    assert_close(losses.presence(two_channels(part)), torch.tensor(1 - 5 / 9))


@pytest.mark.parametrize("sizes", [(4,), (2, 2), (1, 1, 1, 1)])
def test_presence_of_several_processes_is_that_of_the_total_batch(sizes):
    """The value in each is the same, and the mean of their gradients that of one, also at ties between processes."""
    whole = torch.rand(4, 4, 5, 5, dtype=torch.double)
    whole[1, 0], whole[3, 0, 1:] = 1.0, 1.0  # nine windows in one process are as high as six in another
    whole.requires_grad_()
    value = losses.presence(whole)
    value.backward()
    parts = [part.detach().clone().requires_grad_() for part in whole.split(sizes)]
    sent = []
    for part in parts:
        losses.presence(part, of_all=lambda own: sent.append(own) or own[None])
    for part in parts:
        other = losses.presence(part, of_all=lambda own: torch.stack(sent))
        assert_close(other, value)
        other.backward()
    assert_close(torch.cat([part.grad for part in parts]) / len(parts), whole.grad)


def test_presence_is_the_mean_over_foreground_parts_only():
    maps = torch.zeros(1, 3, 3, 3)
    maps[:, 0] = 1.0  # present everywhere; part 1 and the background nowhere
    assert_close(losses.presence(maps), torch.tensor(0.5))


def test_enforced_presence_wants_background_in_the_corners():
    # 5 x 5 pools to 3 x 3, whose weights are 1 in the corners, 1/2 at the edges and 0 in the centre.
    background = torch.zeros(1, 5, 5)
    background[:, 1:4, 1:4] = 1.0  # means 4/9 in the corners, 6/9 at the edges, 1 in the centre
    maps = torch.stack([1 - background, background], dim=1)
    assert_close(losses.enforced_presence(maps), torch.tensor(-math.log(4 / 9)))


def test_enforced_presence_is_the_mean_over_images():
    maps = two_channels([[[0.5]], [[0.75]]])
    assert_close(losses.enforced_presence(maps), torch.tensor((math.log(2) + math.log(4)) / 2))


def test_total_variation():
    # Vertical 0.1 + 0.6 + 0, horizontal 0.2 + 0.1 and 0.7 + 0.5, and as much again for the background.
    maps = two_channels([[[0.2, 0.4, 0.5], [0.3, 1.0, 0.5]]])
    expected = 2 * (0.7 + 0.3 + 1.2)
    assert_close(losses.total_variation(maps), torch.tensor(expected / 6))


def test_entropy():
    maps = two_channels([[[0.5, 1.0], [0.25, 0.0]]])
    quarter = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert_close(losses.entropy(maps), torch.tensor((math.log(2) + quarter) / 4))


def test_entropy_does_not_depend_on_the_scale_of_the_maps():
    maps = random_maps(2, 3, 4, 4)
    assert_close(losses.entropy(maps * 1.01), losses.entropy(maps))


def test_orthogonality_between_parts():
    # Cosines of (1, 0), (0, 2), (3, 3): 0, 1/sqrt(2), 1/sqrt(2); 4 of 9 entries are 1/2 when squared.
    features = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]])
    assert_close(losses.orthogonality(features), torch.tensor(2 / 9))


def test_orthogonal_parts_are_perfect_only_by_our_definition():
    features = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]]])
    assert losses.orthogonality(features) == 0
    # Two of the four features are always 0, so their self-cosine is 0 instead of 1.
    assert_close(losses.orthogonality(features.mT), torch.tensor(2 / 16))


def test_equivariance_is_zero_where_the_maps_move_with_the_image():
    maps = two_channels([[[0.1, 0.9, 0.0], [0.4, 0.2, 0.0]]])
    moved = torch.zeros_like(maps)
    moved[..., 1:] = maps[..., :-1]  # one cell to the right, and nothing is lost but a column of zeros
    shift = Affine(translate=(1.0, 0.0))
    assert_close(losses.equivariance(maps, moved, shift), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(losses.equivariance(maps, maps, Affine()), torch.tensor(0.0), atol=1e-6, rtol=0)
    # 14 pixels of an image with patches of 14 are the same shift.
    in_pixels = losses.equivariance(maps, moved, Affine(translate=(14.0, 0.0)), image_size=(28, 42))
    assert_close(in_pixels, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_equivariance_by_hand():
    # Part 0: cos((1, 0), (3, 4)) = 3/5. Part 1: cos((1, 1), (0, 2)) = 1/sqrt(2). The background is ignored.
    maps = torch.tensor([[1.0, 0.0], [1.0, 1.0], [9.0, 0.0]]).reshape(1, 3, 1, 2)
    other = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 9.0]]).reshape(1, 3, 1, 2)
    expected = 1 - (0.6 + 1 / math.sqrt(2)) / 2
    assert_close(losses.equivariance(maps, other, Affine()), torch.tensor(expected))


def test_concentration():
    # Part at (0, 0) and (1, 3) of a 2 x 4 grid, half each: offsets of 1/2 row and 3/2 columns.
    part = torch.zeros(1, 2, 4)
    part[0, 0, 0] = part[0, 1, 3] = 0.5
    maps = torch.stack([part, 1 - part], dim=1)
    assert_close(losses.concentration(maps), torch.tensor(((0.5 / 2) ** 2 + (1.5 / 4) ** 2) / 8))


# ---- gradients ----


@pytest.mark.slow
@pytest.mark.parametrize("name", MAP_LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    # Random values are at no tie, where the maximum and the absolute value have subgradients only.
    maps = random_maps(2, 3, 4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(MAP_LOSSES[name], maps)


def test_gradient_of_orthogonality():
    features = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(losses.orthogonality, features)


def test_gradient_of_both_maps_of_equivariance():
    maps = random_maps(1, 3, 4, 5, dtype=torch.float64).requires_grad_()
    other = random_maps(2, 3, 4, 5, dtype=torch.float64)[1:].requires_grad_()
    affine = Affine(20.0, (0.5, -0.5), 0.9)
    assert torch.autograd.gradcheck(lambda a, b: losses.equivariance(a, b, affine), (maps, other))


# ---- degenerate cases ----


@pytest.mark.parametrize("name", MAP_LOSSES)
@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 2, 2, 2), (1, 3, 1, 7), (2, 4, 5, 2), (1, 2, 3, 3)])
def test_any_grid_has_finite_losses_and_gradients(name, shape):
    maps = random_maps(*shape).requires_grad_()
    loss = MAP_LOSSES[name](maps)
    loss.backward()
    assert loss.isfinite()
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("name", MAP_LOSSES)
@pytest.mark.parametrize("winner", [0, 1, 2])
def test_maps_of_zeros_and_ones_have_finite_losses_and_gradients(name, winner):
    # All of one part, all of another (part 0 then is nowhere), or all background.
    maps = torch.zeros(2, 3, 4, 4)
    maps[:, winner] = 1.0
    maps.requires_grad_()
    loss = MAP_LOSSES[name](maps)
    loss.backward()
    assert loss.isfinite()
    assert maps.grad.isfinite().all()


def test_the_pooling_window_shrinks_to_a_small_grid():
    maps = two_channels([[[0.2, 0.4], [0.6, 0.8]]])
    assert_close(losses.presence(maps), torch.tensor(1 - 0.5))
    assert_close(losses.enforced_presence(maps), torch.tensor(-math.log(0.5)))


def test_vanishing_background_costs_much_but_not_infinity():
    maps = two_channels([[[1.0]]])
    assert 87 < losses.enforced_presence(maps) < 88


def test_a_part_moved_out_of_the_image_has_no_similarity():
    maps = random_maps(1, 2, 3, 3)
    assert_close(losses.equivariance(maps, maps, Affine(translate=(99.0, 0.0))), torch.tensor(1.0))


def test_features_of_zeros_have_finite_gradients():
    features = torch.zeros(1, 2, 3, requires_grad=True)
    loss = losses.orthogonality(features)
    loss.backward()
    assert_close(loss, torch.tensor(2 / 4))
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_half_precision_is_computed_in_single(name):
    maps = random_maps(2, 4, 6, 6).bfloat16()
    expected = MAP_LOSSES[name](maps.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = MAP_LOSSES[name](maps)
    assert loss.dtype == torch.float32
    assert_close(loss, expected)


def test_orthogonality_under_autocast_is_computed_in_single():
    features = torch.randn(2, 5, 16, generator=torch.manual_seed(0))
    expected = losses.orthogonality(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(losses.orthogonality(features), expected)
        assert losses.classification(features[:, 0].bfloat16(), torch.tensor([0, 1])).dtype == torch.float32


# ---- errors ----


@pytest.mark.parametrize("name", ["presence", "equivariance", "concentration"])
def test_a_background_alone_is_an_error(name):
    with pytest.raises(IfamError, match="at least one part"):
        MAP_LOSSES[name](torch.ones(1, 1, 3, 3))


# ---- all of them, and their sum ----


def inputs(**changes):
    generator = torch.manual_seed(0)
    given = {
        "part_maps": random_maps(2, 4, 5, 6),
        "part_features": torch.randn(2, 4, 8, generator=generator),
        "logits": torch.randn(2, 3, generator=generator),
        "selector_logits": torch.randn(2, 3, generator=generator),
        "labels": torch.tensor([2, 0]),
        "equivariant_maps": random_maps(3, 4, 5, 6)[1:],
        "affine": Affine(15.0, (14.0, -7.0), 1.2),
        "image_size": (70, 84),
    }
    return given | changes


def test_all_terms_are_the_functions_of_their_names():
    given = inputs()
    maps, features, labels = given["part_maps"], given["part_features"], given["labels"]
    terms = losses.all_terms(**given)
    assert set(terms) == set(WEIGHTS)
    assert terms["classification"] == losses.classification(given["logits"], labels)
    assert terms["selector_classification"] == losses.classification(given["selector_logits"], labels)
    assert terms["orthogonality"] == losses.orthogonality(features)
    assert terms["equivariance"] == losses.equivariance(
        maps, given["equivariant_maps"], given["affine"], given["image_size"]
    )
    for name in ("presence", "enforced_presence", "total_variation", "entropy", "concentration"):
        assert terms[name] == getattr(losses, name)(maps), name


def test_without_a_second_pass_there_is_no_equivariance():
    terms = losses.all_terms(**inputs(equivariant_maps=None, affine=None))
    assert set(terms) == set(WEIGHTS) - {"equivariance"}
    with pytest.raises(IfamError, match="equivariance was not computed"):
        losses.weighted_sum(terms, WEIGHTS)
    with pytest.raises(IfamError, match="both, or neither"):
        losses.all_terms(**inputs(affine=None))


def test_the_sum_is_weighted():
    terms = {"a": torch.tensor(2.0), "b": torch.tensor(3.0), "c": torch.tensor(float("nan"))}
    total = losses.weighted_sum(terms, {"a": 1.5, "b": -1.0, "c": 0.0, "d": 0.0})
    assert_close(total, torch.tensor(0.0))


def test_the_sum_reaches_every_input():
    names = ("part_maps", "part_features", "logits", "selector_logits", "equivariant_maps")
    given = inputs()
    for name in names:
        given[name].requires_grad_()
    losses.weighted_sum(losses.all_terms(**given), WEIGHTS).backward()
    for name in names:
        assert given[name].grad.abs().sum() > 0, name


def test_every_term_needs_a_weight_and_one_a_nonzero_weight():
    terms = {"a": torch.tensor(2.0)}
    with pytest.raises(IfamError, match="No weight for the loss a"):
        losses.weighted_sum(terms, {})
    with pytest.raises(IfamError, match="weight 0"):
        losses.weighted_sum(terms, {"a": 0.0})
