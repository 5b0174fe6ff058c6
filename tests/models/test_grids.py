"""A selector and a predictor that differ: in image and patch size, width, family, normalization; any image shape."""

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
from ifam.models.crops import equal_crops
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
# Patches of selector and predictor, image, the selector's own image, and the grids that follow.
PAIRS = {
    "finer": (16, 8, (48, 48), None, (3, 3), (6, 6)),
    "coarser": (8, 16, (48, 64), None, (6, 8), (3, 4)),
    "across": (16, 14, (112, 112), None, (7, 7), (8, 8)),
    "fewer pixels": (16, 16, (64, 96), (32, 48), (2, 3), (4, 6)),
    "more pixels": (16, 16, (48, 64), (96, 128), (6, 8), (3, 4)),
    "an image that the selector's patches do not divide": (16, 14, (70, 70), 48, (3, 3), (5, 5)),
}


@pytest.fixture(params=PAIRS.values(), ids=PAIRS)
def pair(request, make_model):
    """A model whose stages have images or patches of two sizes, its image size, and both grids."""
    first, second, size, selector_size, own, other = request.param
    model = make_model(
        image_size=size,
        selector_image_size=selector_size,
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
@pytest.mark.parametrize("selector_size", [None, (48, 64)], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_trained_on_two_grids(name, selector_size):
    """One step of each method with other stages, on images that are no squares."""
    config = ModelConfig(
        "vit_tiny_patch16_224",
        image_size=(32, 48),
        selector_image_size=selector_size,
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


# ---------------------------------------------------------------------------------------- two image sizes


def test_the_selector_sees_its_own_size_and_the_predictor_that_of_the_images(make_model):
    model, alone = make_model(selector_image_size=32), make_model(image_size=32)
    alone.load_state_dict(
        model.state_dict() | {k: v for k, v in alone.state_dict().items() if k == "predictor.backbone.vit.pos_embed"}
    )
    images = torch.randn(4, 3, 64, 64)
    halved = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    out, expected = model(images), alone(halved)
    assert model.image_size == model.predictor.backbone.image_size == (64, 64)
    assert model.selector.backbone.image_size == (32, 32)
    assert model.mask_grid == (4, 4)
    assert torch.equal(out.part_maps, expected.part_maps)
    assert torch.equal(out.selector_logits, expected.selector_logits)
    assert torch.equal(out.mask, expected.mask.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2))
    with pytest.raises(IfamError, match=r"\[4, 3, 32, 32\], but the model expects \[B, 3, 64, 64\]"):
        model(halved)


def test_the_same_size_for_both_changes_nothing(make_model, images):
    model, other = make_model(), make_model(selector_image_size=64)
    assert torch.equal(model(images).logits, other(images).logits)
    assert other.selector.backbone.prepare_images(images) is images


def test_without_an_image_size_it_is_the_backbones_own(make_model):
    model = make_model(image_size=None, selector_image_size=112, backbone_kwargs={"depth": 1})
    assert model.image_size == model.predictor.backbone.image_size == (224, 224)
    assert model.selector.backbone.grid == (7, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [32, 128])
def test_images_are_resized_in_single_precision_at_least(make_model, dtype, size):
    model, images = make_model(selector_image_size=size), torch.randn(4, 3, 64, 64).to(dtype)
    backbone = model.selector.backbone
    expected = torch.nn.functional.interpolate(images.double(), (size, size), mode="bilinear", antialias=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = backbone.prepare_images(images)
    assert found.dtype == dtype
    # Rounded once, at the end: half a unit in the last place.
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps / 2, atol=1e-6)
    assert torch.equal(backbone.prepare_images(images[1:2])[0], found[1])


def test_a_selector_of_fewer_pixels_in_half_precision(make_model):
    model, images = make_model(selector_image_size=32).train(), torch.randn(4, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images)
        loss = torch.nn.functional.cross_entropy(out.logits.float(), torch.arange(4))
    loss.backward()
    assert out.part_maps.dtype == torch.float32
    assert model.selector.prototypes.grad.isfinite().all()
    assert model.selector.prototypes.grad.any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0, "selector_image_size is 0, but a whole number of at least 1 is expected"),
        (-14, "selector_image_size is -14, but a whole number of at least 1"),
        ((32, 0), "selector_image_size is 0, but a whole number of at least 1"),
        (40, "The selector_image_size 40 is not a multiple of the 16 px patches of vit_tiny_patch16_224; use 32 or 48"),
        ((32, 64), "is 32 x 64, but the images of 64 x 64 pixels have another aspect ratio; use 32 x 32"),
        ((64, 16), "is 64 x 16, but the images of 64 x 64 pixels have another aspect ratio; use 64 x 64"),
    ],
    ids=str,
)
def test_a_selector_image_size_that_is_refused(make_model, given, message):
    with pytest.raises(IfamError) as error:
        make_model(selector_image_size=given)
    assert message in str(error.value)
    assert str(error.value).count(". ") == 0


def test_one_side_alone_is_refused_for_images_that_are_no_squares(make_model):
    with pytest.raises(IfamError, match=r"is 64 x 64, but the images of 96 x 192 pixels.*; use 64 x 128"):
        make_model(image_size=(96, 192), selector_image_size=64)
    # Rounded to patches, the ratio cannot be kept exactly.
    for size in ((32, 48), (64, 80)):
        assert make_model(image_size=(64, 80), selector_image_size=size).selector.backbone.image_size == size
    with pytest.raises(IfamError, match="32 x 64, but"):
        make_model(image_size=(64, 80), selector_image_size=(32, 64))


def test_crops_are_chosen_in_the_selectors_image_and_cut_from_the_given_one():
    """Of 64 pixels, a patch of a 3 x 3 grid has 21 1/3: each box begins and ends at a whole pixel."""
    config = ModelConfig("ifam_tiny", 64, backbone_kwargs={"depth": 1, "embed_dim": 32}, selector_image_size=24)
    images = torch.randn(2, 3, 64, 64)
    box = torch.tensor([[0, 1, 2, 3], [2, 0, 3, 1]])
    model = build("trained_crops", config, pretrained=False).eval()
    assert model.selector.backbone.grid == (3, 3)
    assert model.image_size == (64, 64)
    pieces = [images[:1, :, :42, 21:], images[1:, :, 42:, :21]]
    resized = [torch.nn.functional.interpolate(p, (64, 64), mode="bilinear", antialias=True) for p in pieces]
    assert torch.equal(model.classify_crop(images, box), model.predictor.forward_full(torch.cat(resized)))
    crops = equal_crops(images, torch.tensor([1]), box[1:], (3, 3), (64, 64))
    torch.testing.assert_close(crops[0, :, 0, 0], images[1, :, 42, 0])
    assert build("frozen_crops", config, pretrained=False)(images).logits.shape == (2, 2)


def test_methods_without_a_first_stage_ignore_the_selectors_size(images):
    config = ModelConfig("ifam_tiny", 64, backbone_kwargs={"depth": 1}, selector_image_size=32)
    for name in ("plain_vit", "given_mask"):
        model = build(name, config, pretrained=False)
        assert model.image_size == model.predictor.backbone.image_size == (64, 64)
        assert model.mask_grid == (8, 8)
    alone = build("selector", config, pretrained=False).eval()
    assert alone.image_size == (64, 64)
    assert tuple(alone(images).mask.shape[1:]) == alone.mask_grid == (4, 4)


def test_a_folder_from_before_there_was_a_selector_image_size(make_model, images, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    assert settings.pop("selector_image_size") is None
    file.write_text(json.dumps(settings), encoding="utf-8")
    again = IFAM.from_pretrained(tmp_path)
    assert again.config.selector_image_size is None
    assert torch.equal(again(images).logits, model(images).logits)


def test_the_authors_layout_has_no_room_for_two_image_sizes(make_model):
    model = make_model("vit_small_patch14_dinov2", 56, selector_image_size=28)
    with pytest.raises(IfamError, match="two identical transformers, on square images"):
        hub.to_official(model)


# ---------------------------------------------------------------------------------------- from training to the audit


@pytest.mark.slow
@pytest.mark.parametrize(
    "stages",
    [{"predictor_kwargs": {"patch_size": 16}}, {"selector_image_size": (32, 48)}, {"selector_image_size": (96, 144)}],
    ids=["patches", "fewer pixels", "more pixels"],
)
def test_training_evaluation_prediction_and_audit_on_two_grids_of_images_that_are_no_squares(tmp_path, stages):
    config = ModelConfig("ifam_tiny", image_size=(64, 96), num_parts=2, class_names=("swimmer", "percher"), **stages)
    model, images = IFAM(config), benchmark()
    fit(model, images, TrainConfig(epochs=1, batch_size=8, base_lr=1e-4, accelerator="cpu"))
    evaluation = evaluate(model, images, "test")
    assert 0 <= evaluation.visible_fraction <= 1
    Image.new("RGB", (300, 200), "green").save(tmp_path / "green.png")
    (row,) = predict(model, tmp_path / "green.png", overlays=tmp_path / "out")
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
