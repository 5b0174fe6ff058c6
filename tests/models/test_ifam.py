"""The two stages together: shapes, settings, errors."""

from dataclasses import replace

import pytest
import torch

from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.interventions import DropParts, KeepParts, UseMask
from ifam.ranges import check_types
from ifam.types import Output


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_shapes_of_every_output(make_model, layout, batch, training):
    model = make_model(*layout, num_parts=3, num_classes=5).train(training)
    out = model(torch.randn(batch, 3, *model.image_size))
    given = vars(out) | vars(out.selection)
    tensors = {name: value for name, value in given.items() if name != "selection" and value is not None}
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "predictor_logits": (batch, 5),
        "mask": (batch, 4, 4),
        "gate": (batch, 4, 4),
        "assignment_logits": (batch, 4, 4, 4),
        "initial_logits": (batch, 4, 4, 4),
        "part_maps": (batch, 4, 4, 4),
        "selector_logits": (batch, 5),
        "part_scores": (batch, 3, 5),
        "part_features": (batch, 4, 48),
        "similarity": (batch, 4, 4, 4),
    }
    assert out.mask.dtype == torch.bool
    assert all(value.isfinite().all() for value in tensors.values())
    torch.testing.assert_close(out.part_maps.sum(dim=1), torch.ones(batch, 4, 4))


@torch.no_grad()
def test_the_answer_is_the_predictors_on_the_mask(tiny_model, images):
    out = tiny_model(images)
    assert 0 < out.mask.sum() < out.mask.numel()
    assert torch.equal(out.mask, out.part_maps[:, :-1].amax(dim=1) >= out.part_maps[:, -1])
    assert torch.equal(out.logits, tiny_model.predictor(images, out.mask))
    selection = tiny_model.selector(images)
    assert torch.equal(out.selector_logits, selection.selector_logits)
    assert torch.equal(out.part_maps, selection.part_maps)


@pytest.mark.slow
def test_one_part(make_model, images):
    model = make_model(num_parts=1)
    out = model(images)
    assert out.part_maps.shape == (4, 2, 4, 4)
    assert torch.equal(model(images, [DropParts([0])]).mask, torch.zeros_like(out.mask))
    assert torch.equal(model(images, [KeepParts([0])]).mask, out.mask)
    with pytest.raises(IfamError, match="parts 0 to 0"):
        model(images, [DropParts([1])])


def test_the_predictors_backbone_may_differ(make_model, images):
    model = make_model(predictor_backbone="vit_base_patch16_siglip_224")
    assert model.selector.backbone.has_class_token
    assert not model.predictor.backbone.has_class_token
    assert model(images).logits.shape == (4, 5)


def test_the_stages_share_no_weight(tiny_model):
    ours = {p.data_ptr() for p in tiny_model.selector.parameters()}
    assert ours.isdisjoint(p.data_ptr() for p in tiny_model.predictor.parameters())


def test_heads_have_no_bias_and_fresh_norms_come_first(tiny_model):
    assert tiny_model.selector.classifier.bias is None
    assert tiny_model.predictor.head.bias is None
    assert tiny_model.selector.modulation.weight.shape == (48, 4)
    assert tiny_model.predictor.norm.weight.shape == (48,)


@pytest.mark.slow
@torch.no_grad()
def test_interventions_are_applied_in_order(tiny_model, images):
    mask = torch.rand(4, 4, 4) > 0.5
    dropped = tiny_model(images, [UseMask(mask), DropParts([0, 1, 2])])
    assert not dropped.mask.any()
    assert torch.equal(tiny_model(images, [DropParts([0, 1, 2]), UseMask(mask)]).mask, mask)
    again = tiny_model(images, (UseMask(mask),))
    assert torch.equal(again.logits, tiny_model.predictor(images, mask))
    # The selector's own classification has seen the image before any intervention.
    assert torch.equal(again.selector_logits, dropped.selector_logits)


def test_an_intervention_may_be_any_function(tiny_model, images):
    def show_all(selection):
        logits = selection.assignment_logits.clone()
        logits[:, -1] = -torch.inf
        return replace(selection, assignment_logits=logits)

    assert tiny_model(images, [show_all]).mask.all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_parts": 0}, "num_parts is 0, but a whole number of at least 1"),
        ({"num_classes": 0}, "num_classes is 0, but a whole number of at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0, but a number above 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"part_dropout": 1.0}, "part_dropout is 1.0, but a probability"),
        ({"mask_part_dropout": -0.1}, "mask_part_dropout is -0.1, but a probability"),
        ({"num_classes": 3, "class_names": ("a", "b")}, "class_names has 2 names for 3 classes"),
        ({"image_size": 70}, "image size 70"),
        ({"backbone": "vit_tiny_patch16_225"}, "There is no backbone"),
        ({"predictor_backbone": "vit_tiny_patch16_225"}, "There is no backbone"),
        ({"backbone_kwargs": {"dept": 1}}, "'dept'"),
    ],
    ids=str,
)
def test_settings_of_which_no_model_can_be_made(make_model, fields, message):
    with pytest.raises(IfamError, match=message):
        make_model(**fields)


def test_an_unknown_mask_gradient_is_refused():
    # Around the annotation, as a configuration file may.
    with pytest.raises(IfamError, match="mask_gradient is 'exact', but 'full' or 'visible' or 'none' is expected"):
        check_types(ModelConfig, {"mask_gradient": "exact"})


@pytest.mark.parametrize("shape", [(4, 3, 32, 64), (3, 64, 64), (4, 1, 64, 64), (4, 64, 64, 3)], ids=str)
def test_images_of_another_shape(tiny_model, shape):
    with pytest.raises(IfamError) as error:
        tiny_model(torch.randn(shape))
    assert f"{list(shape)}, but the model expects [B, 3, 64, 64]" in str(error.value)


def test_normalization_is_the_backbones_unless_given(make_model):
    assert make_model("vit_base_patch16_siglip_224").normalization == ((0.5,) * 3, (0.5,) * 3)
    given = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert make_model(**given).normalization == (given["mean"], given["std"])


def test_temperature_reaches_maps_and_gate(make_model, images):
    sharp, flat = make_model(temperature=0.1), make_model(temperature=10.0)
    assert torch.equal(sharp(images).mask, flat(images).mask)
    assert sharp(images).part_maps.amax(dim=1).mean() > flat(images).part_maps.amax(dim=1).mean() + 0.1
    gates = []
    for model in (sharp, flat):
        model.mask(model.selector(images)).gate.sum().backward()
        gates.append(model.selector.prototypes.grad.norm())
    assert gates[0] != gates[1]


def test_output_is_frozen_and_knows_what_is_empty(tiny_model, images, mask):
    out = tiny_model(images, [UseMask(mask)])
    assert isinstance(out, Output)
    assert out.empty.tolist() == [False, True, False, False]
    assert out.visible_fraction.tolist() == [3 / 16, 0, 1, 0.5]
    with pytest.raises(AttributeError):
        out.logits = None
