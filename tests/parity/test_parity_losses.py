"""The losses and the affine transform against numbers of the authors' public code, values and gradients."""

import pytest
import torch
from torch.testing import assert_close

from ifam.training import losses
from ifam.training.affine import Affine, inverse_transform, sample_affine, transform
from parity import reference
from parity.reference import PARITY, images, read

# A loss alone is nearer than a whole model.
TOLERANCE = {"atol": PARITY / 10, "rtol": PARITY}
CASES = ("square", "nonsquare")
EQUIVARIANCE = [("square", i) for i in range(4)] + [("nonsquare", i) for i in range(2)]
OF_MAPS = {
    "enforced_presence.enforced_presence": losses.enforced_presence,
    "presence.original": losses.presence,
    "pixel_wise_entropy": losses.entropy,
    "total_variation.mean": losses.total_variation,
}
MAPS = [(case, name) for case in CASES for name in OF_MAPS] + [("square", "concentration")]
# Variants of their terms that the paper does not use.
ELSEWHERE = {
    *(f"enforced_presence.{kind}" for kind in ("log", "linear", "mse")),
    *(f"presence.{kind}" for kind in ("soft_constraint", "soft_constraint_beta0p5", "tanh", "soft_tanh")),
    "total_variation.sum",
}


def affine_of(settings, key="translate"):
    x, y = settings[key]
    return Affine(float(settings["angle"]), (float(x), float(y)), float(settings["scale"]))


@pytest.fixture(scope="module")
def fixtures():
    return read("losses")


def test_every_loss_of_the_fixtures_has_a_test(fixtures):
    tensors, _ = fixtures
    tested = {f"{case}.{name}.value" for case in CASES for name in (*OF_MAPS, "concentration", *ELSEWHERE)}
    tested |= {f"{case}.orthogonality.{kind}.value" for case in CASES
               for kind in ("between_parts", "as_in_reference_training")}  # fmt: skip
    tested |= {f"{case}.equivariance.{i}.value" for case, i in EQUIVARIANCE}
    assert {key for key in tensors if key.endswith(".value")} == tested


@pytest.mark.parametrize(("case", "name"), MAPS)
def test_losses_of_maps(fixtures, case, name):
    tensors, _ = fixtures
    maps = tensors[f"{case}.maps"].clone().requires_grad_()
    loss = (OF_MAPS | {"concentration": losses.concentration})[name](maps)
    (gradient,) = torch.autograd.grad(loss, maps)
    assert_close(loss, tensors[f"{case}.{name}.value"], **TOLERANCE)
    assert_close(gradient, tensors[f"{case}.{name}.grad"], **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["between_parts", "as_in_reference_training"])
def test_orthogonality(fixtures, case, kind):
    tensors, _ = fixtures
    features = tensors[f"{case}.features"].clone().requires_grad_()  # theirs are [B, D, K+1], ours [B, K+1, D]
    loss = losses.orthogonality(features.mT if kind == "between_parts" else features)
    (gradient,) = torch.autograd.grad(loss, features)
    assert_close(loss, tensors[f"{case}.orthogonality.{kind}.value"], **TOLERANCE)
    assert_close(gradient, tensors[f"{case}.orthogonality.{kind}.grad"], **TOLERANCE)


def test_our_orthogonality_is_between_parts_and_not_what_the_reference_trains(fixtures):
    tensors, _ = fixtures
    ours = losses.orthogonality(tensors["square.features"].mT)
    assert_close(ours, tensors["square.orthogonality.between_parts.value"], **TOLERANCE)
    assert (ours - tensors["square.orthogonality.as_in_reference_training.value"]).abs() > 0.1


def test_our_concentration_differs_only_where_the_grid_is_not_square(fixtures):
    tensors, _ = fixtures
    nonsquare = losses.concentration(tensors["nonsquare.maps"])
    assert (nonsquare - tensors["nonsquare.concentration.value"]).abs() > 0.01


@pytest.mark.parametrize(("case", "i"), EQUIVARIANCE)
def test_equivariance(fixtures, case, i):
    tensors, manifest = fixtures
    settings = manifest["cases"][case]
    parameters = settings["equivariance_parameters"][i]
    affine = affine_of(parameters, "translate_image_pixels")
    image_size = tuple(settings["image_size"])
    maps = tensors[f"{case}.maps"].clone().requires_grad_()
    moved = tensors[f"{case}.equiv_maps"].clone().requires_grad_()

    shift = affine.resized(image_size, tuple(maps.shape[2:])).translate
    assert shift == pytest.approx(parameters["translate_map_cells"])
    back = inverse_transform(moved, affine, image_size)
    assert torch.equal(back, tensors[f"{case}.equivariance.{i}.equiv_maps_transformed_back"])
    loss = losses.equivariance(maps, moved, affine, image_size)
    gradients = torch.autograd.grad(loss, (maps, moved))
    assert_close(loss, tensors[f"{case}.equivariance.{i}.value"], **TOLERANCE)
    assert_close(gradients[0], tensors[f"{case}.equivariance.{i}.grad"], **TOLERANCE)
    assert_close(gradients[1], tensors[f"{case}.equivariance.{i}.grad_equiv_maps"], **TOLERANCE)


@pytest.mark.parametrize("case", [f"{shape}.{i}" for shape in CASES for i in range(4)])
def test_affine(case):
    tensors, manifest = read("affine")
    assert len(manifest["cases"]) == 8
    affine = affine_of(manifest["cases"][case])
    image = tensors[f"{case.split('.')[0]}.image"]
    forward = transform(image, affine)
    assert_close(forward, tensors[f"{case}.forward"], **reference.TOLERANCE)
    assert_close(inverse_transform(image, affine), tensors[f"{case}.inverse"], **reference.TOLERANCE)
    assert_close(inverse_transform(forward, affine), tensors[f"{case}.inverse_of_forward"], **reference.TOLERANCE)


def test_sampled_affines():
    _, manifest = read("affine")
    for expected in manifest["sampled_parameters"]:
        sampled = sample_affine(
            tuple(expected["img_size"][::-1]),
            degrees=tuple(map(float, expected["degrees"])),
            translate=tuple(expected["translate"]),
            scale=tuple(expected["scale"]),
            generator=torch.Generator().manual_seed(expected["torch_manual_seed"]),
        )
        assert sampled.angle == pytest.approx(expected["angle"])
        assert sampled.translate == tuple(expected["translations"])
        assert sampled.scale == pytest.approx(expected["scale_factor"])


@pytest.mark.parametrize("model", ["tiny_reg4", "tiny_noreg"])
@pytest.mark.parametrize("scenario", ["train", "train_soft"])
def test_the_objective_of_a_whole_model(model, scenario):
    tensors, manifest = read(model)
    kinds = {
        "classification": "classification_stage2",
        "selector_classification": "classification_stage1",
        "presence": "presence",
        "enforced_presence": "enforced_presence",
        "total_variation": "total_variation",
        "entropy": "pixel_wise_entropy",
        "orthogonality": "orthogonality_between_parts",
        "equivariance": "equivariance",
        "concentration": "concentration",
    }
    weights = {name: manifest["loss_weights"][kind.removesuffix("_between_parts")] for name, kind in kinds.items()}
    features = tensors[f"{scenario}.features_mod"]
    terms = losses.all_terms(
        part_maps=tensors[f"{scenario}.part_maps"],
        part_features=features.mT,
        logits=tensors[f"{scenario}.stage2_logits"],
        selector_logits=tensors[f"{scenario}.stage1_logits_mean"],
        labels=tensors["train.labels"],
        equivariant_maps=tensors[f"{scenario}.equiv_part_maps"],
        affine=affine_of(manifest["affine"], "translate_pixels"),
        image_size=tuple(images(model).shape[2:]),
    )
    assert set(terms) == set(kinds)
    for name, kind in kinds.items():
        assert_close(terms[name], tensors[f"{scenario}.loss.{kind}"], **TOLERANCE, msg=name)
    total = tensors[f"{scenario}.total_with_orthogonality_between_parts"]
    assert_close(losses.weighted_sum(terms, weights), total, **TOLERANCE)

    theirs = terms | {"orthogonality": losses.orthogonality(features)}
    wanted = tensors[f"{scenario}.loss.orthogonality_as_in_reference_training"]
    assert_close(theirs["orthogonality"], wanted, **TOLERANCE)
    assert_close(losses.weighted_sum(theirs, weights), tensors[f"{scenario}.total"], **TOLERANCE)
