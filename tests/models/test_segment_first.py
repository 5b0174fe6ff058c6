"""Baselines that segment first: what they see of an image, and what cannot matter to them."""

import pytest
import torch

from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.registry import build
from ifam.models.segment_first import object_boxes

METHODS = ("box_crop", "gray_background", "foreground_background")


def make(name):
    config = ModelConfig("ifam_tiny", image_size=32, backbone_kwargs={"depth": 2, "embed_dim": 32})
    torch.manual_seed(0)
    return build(name, config, pretrained=False).eval()


def example(count=3):
    """Images, and masks of a rectangle."""
    masks = torch.zeros(count, 32, 32, dtype=torch.bool)
    masks[:, 10:20, 4:14] = True
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)), masks


@torch.inference_mode()
def answers(model, images, masks):
    return model(images, masks=masks).logits


def test_a_box_has_a_margin_inside_of_the_image():
    masks = torch.zeros(4, 40, 60, dtype=torch.bool)
    masks[0, 10:20, 30:50] = True
    masks[1, 0:10, 55:60] = True
    masks[2, 7, 8] = True
    assert object_boxes(masks).tolist() == [[9, 28, 21, 52], [0, 55, 11, 60], [7, 8, 8, 9], [0, 0, 40, 60]]


@pytest.mark.parametrize("value", [1e30, torch.inf, torch.nan])
def test_background_has_no_influence_on_the_object_on_gray(value):
    images, masks = example()
    changed = torch.where(masks[:, None], images, value)
    model = make("gray_background")
    assert torch.equal(answers(model, changed, masks), answers(model, images, masks))
    assert not torch.equal(answers(model, images + masks[:, None], masks), answers(model, images, masks))


@pytest.mark.parametrize("value", [1e30, torch.inf, torch.nan])
def test_a_box_hides_what_is_outside_of_it_and_shows_the_background_inside(value):
    images, masks = example()
    model, before = make("box_crop"), answers(make("box_crop"), images, masks)
    inside = torch.zeros_like(masks)
    inside[:, 9:21, 3:15] = True
    assert torch.equal(answers(model, torch.where(inside[:, None], images, value), masks), before)
    assert not torch.equal(answers(model, torch.where(masks[:, None], images, 0.0), masks), before)


def test_object_and_background_both_count_where_both_are_classified():
    images, masks = example()
    model = make("foreground_background")
    before = answers(model, images, masks)
    for part in (masks, ~masks):
        assert not torch.equal(answers(model, images + part[:, None], masks), before)


def test_the_object_on_gray_is_the_plain_model_on_a_gray_picture():
    images, masks = example()
    model, plain = make("gray_background"), make("plain_vit")
    plain.load_state_dict(model.state_dict())
    with torch.inference_mode():
        expected = plain(torch.where(masks[:, None], images, 0.0)).logits
    assert torch.equal(answers(model, images, masks), expected)


@pytest.mark.parametrize("name", METHODS)
def test_a_mask_that_does_not_fit_its_image_is_refused(name):
    images, masks = example()
    model = make(name)
    for wrong in (masks[:, ::8, ::8], masks[:, :30, :30], masks[:1], masks[0]):
        with pytest.raises(IfamError, match=r"masks for .* \[3, 32, 32\] is expected"):
            answers(model, images, wrong)


@pytest.mark.parametrize("name", [*METHODS, "given_mask"])
def test_a_mask_that_is_not_binary_is_refused(name):
    images, masks = example()
    for wrong in (masks.float(), masks.byte() * 255):
        with pytest.raises(IfamError, match=r"torch\.bool is expected"):
            answers(make(name), images, wrong)


@pytest.mark.parametrize("name", [*METHODS, "given_mask"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_precision_and_no_image_at_all(name, dtype):
    images, masks = example()
    model = make(name).to(dtype)
    assert answers(model, images.to(dtype), masks).dtype == dtype
    assert answers(model, images[:0].to(dtype), masks[:0]).shape == (0, 2)


@pytest.mark.parametrize("name", METHODS)
def test_each_needs_masks_and_takes_empty_ones(name):
    images, masks = example()
    model = make(name)
    with pytest.raises(IfamError, match=f"{name} needs a mask of each image"):
        model(images)
    assert answers(model, images, torch.zeros_like(masks)).isfinite().all()
