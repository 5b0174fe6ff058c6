"""A selector and a predictor that differ: in patch size, width, family and normalization; and images of any shape."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from PIL import Image

from ifam.auditing.run import audit
from ifam.checkpoints import hub
from ifam.cli.main import main
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import load_benchmark
from ifam.errors import IfamError
from ifam.evaluation.accuracy import evaluate
from ifam.evaluation.hidden_pixel_attacks import hidden_pixel_mask
from ifam.inference import predict
from ifam.models.ifam import IFAM
from ifam.models.interventions import DropParts, UseMask
from ifam.models.masking import resize_mask, resize_values
from ifam.models.registry import METHODS, build
from ifam.training.fit import fit
from ifam.training.module import Training, prepare
from ifam.types import Batch

MODES = ["full", "visible", "none"]
EXECUTIONS = ["padded", "packed", "dense"]
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 2}
# Patches of selector and predictor, image, and the grids that follow.
PAIRS = {
    "finer": (16, 8, (48, 48), (3, 3), (6, 6)),
    "coarser": (8, 16, (48, 64), (6, 8), (3, 4)),
    "across": (16, 14, (112, 112), (7, 7), (8, 8)),
}


@pytest.fixture(params=PAIRS.values(), ids=PAIRS)
def pair(request, make_model):
    """A model whose stages have patches of two sizes, its image size, and both grids."""
    first, second, size, own, other = request.param
    model = make_model(
        image_size=size,
        backbone_kwargs={"patch_size": first},
        predictor_backbone="vit_small_patch14_reg4_dinov2",
        predictor_kwargs={"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": second},
    )
    return model, size, own, other


@pytest.mark.slow
@torch.no_grad()
def test_the_answer_rests_on_the_mask_of_the_predictors_patches(pair):
    model, size, own, other = pair
    images = torch.randn(4, 3, *size)
    # Parts and background are patches of these images, so that all of them win some.
    model.selector.prototypes.copy_(model.selector.patches(images)[range(4), range(4)])
    out = model(images)
    assert model.image_size == size
    assert model.selector.backbone.width == 48
    assert model.predictor.backbone.width == 32
    assert tuple(out.part_maps.shape[2:]) == own
    assert tuple(out.mask.shape[1:]) == other
    assert torch.equal(model.predictor(images, out.mask), out.logits)
    selected = out.part_maps[:, :-1].amax(dim=1) >= out.part_maps[:, -1]
    assert torch.equal(out.mask, resize_mask(selected, other))
    assert 0 < out.visible_fraction.mean() < 1
    assert model(images, [DropParts([0, 1, 2])]).empty.all()


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_hidden_pixels_have_no_influence(pair, training):
    """Bit by bit, in every execution and mode, whatever the hidden pixels hold."""
    model, size, own, other = pair
    images, given = torch.randn(4, 3, *size), torch.rand(4, *own) > 0.5
    visible = resize_mask(given, other)
    hidden = hidden_pixel_mask(visible, images)
    assert 0 < hidden.float().mean() < 1
    fillings = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, 7.0])
    changed = torch.where(hidden, fillings[torch.randint(5, images.shape)], images)
    model.train(training)
    for execution, mode in product(EXECUTIONS, MODES):
        model.predictor.execution, model.predictor.mask_gradient = execution, mode
        gate = visible.float().requires_grad_()
        assert torch.equal(model.predictor(changed, visible, gate), model.predictor(images, visible, gate))
        # The selector sees the changed pixels too; only its mask is held.
        expected, output = (model(pixels, [UseMask(given)]) for pixels in (images, changed))
        assert torch.equal(output.mask, visible)
        assert torch.equal(expected.mask, visible)
        assert torch.equal(output.logits, expected.logits)
        assert not torch.equal(output.selector_logits, expected.selector_logits)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_the_predictors_gradient_reaches_the_selector_as_that_of_mean_gates(pair, mode):
    model, size, _, other = pair
    model.predictor.mask_gradient = mode
    model.double()
    images = torch.randn(4, 3, *size, dtype=torch.float64)
    selection = model.selector(images)
    foreground = selection.assignment_logits.softmax(dim=1)[:, :-1].sum(dim=1)
    mask = model.mask(selection)
    labels = torch.arange(4)
    loss = torch.nn.functional.cross_entropy(model.predictor(images, mask.visible, mask.gate), labels)
    prototypes = model.selector.prototypes
    (gradient,) = torch.autograd.grad(loss, prototypes, allow_unused=True, retain_graph=True)
    if mode == "none":
        assert gradient is None
        return
    gate = mask.visible.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model.predictor(images, mask.visible, gate), labels)
    (slope,) = torch.autograd.grad(loss, gate)
    (expected,) = torch.autograd.grad((resize_values(foreground, other) * slope).sum(), prototypes)
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-12)


def test_a_mask_of_the_wrong_grid_is_named(pair):
    model, size, own, other = pair
    images = torch.randn(2, 3, *size)
    with pytest.raises(IfamError, match=rf"\[2, {own[0]}, {own[1]}\] is expected: one value for each"):
        model(images, [UseMask(torch.ones(2, *other, dtype=torch.bool))])
    with pytest.raises(IfamError, match=rf"\[2, {other[0]}, {other[1]}\] or"):
        model.predictor(images, torch.ones(2, *own, dtype=torch.bool))


@pytest.mark.slow
def test_saved_and_loaded_again(pair, tmp_path):
    model, size, *_ = pair
    model.save_pretrained(tmp_path)
    again = IFAM.from_pretrained(tmp_path)
    assert again.config == model.config
    assert again.config.image_size == size
    images = torch.randn(2, 3, *size)
    assert torch.equal(again(images).logits, model(images).logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_trained_on_two_grids(name):
    """One step of each method with other stages, on images that are no squares."""
    config = ModelConfig(
        "vit_tiny_patch16_224",
        image_size=(32, 48),
        num_parts=2,
        backbone_kwargs=SMALL,
        predictor_backbone="ifam_tiny",
        predictor_kwargs={"depth": 1, "embed_dim": 32, "num_heads": 2},
    )
    model = build(name, config, pretrained=False)
    prepare(model, TrainConfig(**METHODS[name].train))
    training = Training(model, TrainConfig(**METHODS[name].train), LossConfig(), benchmark(), 16)
    batch = Batch(torch.randn(4, 3, 32, 48), torch.tensor([0, 1, 0, 1]), torch.arange(4), torch.rand(4, 32, 48) > 0.3)
    sum(training.terms(batch).values()).backward()
    gradients = [weight.grad for weight in training.parameters() if weight.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def benchmark():
    return load_benchmark("pondbirds", options={"num_train": 16, "num_val": 8, "num_test": 8})


# ---------------------------------------------------------------------------------------- two normalizations

CLIP = {"predictor_backbone": "vit_base_patch16_clip_224"}


def test_each_stage_is_given_the_normalization_of_its_own_weights(make_model):
    model = make_model(**CLIP).double()
    colours = torch.rand(3, 3, 64, 64, dtype=torch.float64)
    mask = torch.rand(3, 4, 4) > 0.4

    def normalized(backbone):
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in backbone.normalization)
        return (colours - mean) / std

    logits = model.predictor(normalized(model.selector.backbone), mask)
    assert model.normalization == model.selector.backbone.normalization != model.predictor.backbone.normalization
    images = normalized(model.predictor.backbone)
    model.predictor.backbone.input_affine = None
    torch.testing.assert_close(logits, model.predictor(images, mask), rtol=0, atol=1e-10)
    assert not torch.allclose(logits, model.predictor(normalized(model.selector.backbone), mask))


def test_a_normalization_of_ones_own_holds_for_both_stages(make_model):
    own = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)}
    assert make_model(**CLIP, **own).predictor.backbone.input_affine is None
    assert make_model().predictor.backbone.input_affine is None
    scale, shift = make_model(**CLIP, mean=own["mean"]).predictor.backbone.input_affine
    assert shift == (0, 0, 0)
    assert scale != (1, 1, 1)


def test_hidden_pixels_have_no_influence_where_images_are_normalized_again(make_model, mask):
    model = make_model(**CLIP)
    images = torch.randn(4, 3, 64, 64)
    changed = torch.where(hidden_pixel_mask(mask, images), torch.nan, images)
    assert torch.equal(model.predictor(changed, mask), model.predictor(images, mask))


def test_the_predictor_takes_the_size_of_the_selectors_images():
    config = ModelConfig("vit_tiny_patch16_224", backbone_kwargs=SMALL, predictor_backbone="ifam_tiny")
    assert IFAM(config, pretrained=False).predictor.backbone.image_size == (224, 224)
    with pytest.raises(
        IfamError, match=r"image size 80 is not a multiple of the 14 px patches of vit_small_patch14_dinov2"
    ):
        IFAM(replace(config, image_size=80, predictor_backbone="vit_small_patch14_dinov2"), pretrained=False)


# ---------------------------------------------------------------------------------------- from training to the audit


@pytest.mark.slow
def test_training_evaluation_prediction_and_audit_on_two_grids_of_images_that_are_no_squares(tmp_path):
    config = ModelConfig(
        "ifam_tiny",
        image_size=(64, 96),
        num_parts=2,
        predictor_kwargs={"patch_size": 16},
        class_names=("swimmer", "percher"),
    )
    model, images = IFAM(config), benchmark()
    fit(model, images, TrainConfig(epochs=1, batch_size=8, base_lr=1e-4, accelerator="cpu"))
    evaluation = evaluate(model, images, "test")
    assert 0 <= evaluation.visible_fraction <= 1
    Image.new("RGB", (300, 200), "green").save(tmp_path / "green.png")
    (row,) = predict(model, tmp_path / "green.png", out=tmp_path / "out")
    with Image.open(row.overlay) as picture:
        assert picture.width > 3 * 1.4 * 200
    result = audit(model, images, limit=8, explain=2)
    assert result.certificate.passed, result.certificate.violations[:3]
    assert result.certificate.settings[-1] == "whole model, evaluation"
    assert not result.certificate.skipped


@pytest.mark.slow
def test_the_command_line_takes_height_and_width(tmp_path):
    out, picture = tmp_path / "run", tmp_path / "bird.png"
    settings = tmp_path / "settings.yaml"
    settings.write_text("model:\n  image_size: [48, 64]\n", encoding="utf-8")
    given = ["--data", json.dumps({"num_train": 16, "num_val": 8, "num_test": 8}), "--train.batch_size", "8"]
    given += ["--train.epochs", "1", "--train.accelerator", "cpu", "--model.backbone", "ifam_tiny"]
    main(
        [
            "train",
            "--config",
            str(settings),
            *given,
            "--model.predictor_kwargs",
            '{"patch_size": 16}',
            "--out",
            str(out),
        ]
    )
    assert hub.read(out).config.image_size == (48, 64)
    Image.new("RGB", (90, 70)).save(picture)
    main(["predict", str(picture), "--model", str(out), "--out", str(tmp_path / "predictions")])
    main(["train", *given, "--model.image_size", "[64, 48]", "--out", str(out), "--overwrite", "true"])
    assert hub.load(out).predictor.backbone.grid == (8, 6)
