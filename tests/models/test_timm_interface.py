"""The interface of timm's models: features, head, preprocessing, and a new head."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torchvision.utils import draw_segmentation_masks

import ifam
from ifam.checkpoints import hub
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.inference import preprocess
from ifam.models.registry import METHODS, build

WHOLE = [name for name, method in METHODS.items() if not method.build.needs_masks and "crops" not in name]


@pytest.mark.parametrize("method", WHOLE)
def test_the_head_gives_the_logits_of_the_features(method):
    model = build(method, ModelConfig("ifam_tiny", num_parts=3, num_classes=4)).eval()
    images = torch.randn(2, 3, 80, 80)
    with torch.no_grad():
        features = model.forward_features(images)
        assert features.shape == (2, model.num_features)
        assert torch.allclose(model.forward_head(features), model(images).logits, atol=1e-5)
        assert torch.equal(model.forward_head(features, pre_logits=True), features)


def test_the_features_of_a_sum_of_parts_give_its_logits(make_model, images):
    model = make_model(aggregation="sum")
    with torch.no_grad():
        logits = model.forward_head(model.forward_features(images))
        assert torch.allclose(logits, model(images).logits, atol=1e-4)


def test_the_mask_in_pixels_covers_what_is_seen(tiny_model, images):
    with torch.no_grad():
        out = tiny_model(images)
        hidden = ~out.mask_at(images.shape[2:])[:, None]
        shown = [ifam.UseMask(out.mask)]
        logits = [tiny_model(pixels, shown).logits for pixels in (images, images.masked_fill(hidden, 9.0))]
    assert torch.equal(*logits)
    assert hidden.any()


def test_the_mask_is_drawn_by_torchvision(tiny_model, images):
    with torch.no_grad():
        mask = tiny_model(images).mask_at((64, 64))
    pixels = torch.zeros(3, 64, 64, dtype=torch.uint8)
    drawn = draw_segmentation_masks(pixels, mask[0], alpha=1.0, colors="white")
    assert torch.equal(drawn[0] > 0, mask[0])
    with pytest.raises(IfamError, match="do not divide"):
        tiny_model(images).mask_at((63, 64))
    with pytest.raises(IfamError, match="no mask"):
        ifam.Output(torch.zeros(1, 2)).mask_at((64, 64))


def test_a_new_head_is_trained_and_saved(tiny_model, images, tmp_path):
    tiny_model.reset_classifier(7)
    assert tiny_model.num_classes == tiny_model.get_classifier().out_features == 7
    out = tiny_model(images)
    assert out.logits.shape == (4, 7)
    assert out.part_scores.shape[2] == 7
    tiny_model.save_pretrained(tmp_path / "model")
    loaded = hub.load(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, tiny_model.eval()(images).logits)
    with pytest.raises(IfamError, match="at least 1"):
        tiny_model.reset_classifier(0)
    with pytest.raises(IfamError, match="global_pool"):
        tiny_model.reset_classifier(3, "avg")


def test_timm_prepares_images_as_the_model_expects_them(tiny_model):
    pixels = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((180, 240))
    transform = create_transform(**resolve_model_data_config(tiny_model), is_training=False)
    theirs, ours = transform(image), preprocess(image, tiny_model)
    assert theirs.shape == ours.shape
    # Pillow and PyTorch round values of 8 bits differently.
    assert (theirs - ours).abs().max() < 2.5 / 255 / min(tiny_model.normalization[1])
