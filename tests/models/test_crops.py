"""A small transformer's attention chooses what of the image a large one sees."""

import pytest
import torch

from conftest import wake
from ifam.backbones.backbone import Backbone
from ifam.config import ModelConfig
from ifam.models.crops import TrainedCrops, attended_tokens, attention_box, crop

MODEL = ModelConfig("ifam_tiny", image_size=32, backbone_kwargs={"depth": 2, "embed_dim": 32})


@pytest.fixture
def model():
    return wake(TrainedCrops(MODEL, pretrained=False)).eval()


@pytest.fixture
def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_box_holds_the_fewest_patches_with_the_share():
    attention = torch.zeros(3, 4, 5)
    attention[0, 1, 2], attention[0, 2, 4], attention[0, 3, 0] = 0.5, 0.3, 0.2
    attention[1, 3, 1] = 1.0
    attention[2] = 1 / 20
    # top, left, bottom, right
    assert attention_box(attention, share=0.6).tolist() == [[1, 2, 3, 5], [3, 1, 4, 2], [0, 0, 3, 5]]
    assert attention_box(attention, share=0.9)[0].tolist() == [1, 0, 4, 5]
    assert attention_box(attention, share=0.4)[0].tolist() == [1, 2, 2, 3]
    # A share is one of the attention that there is.
    assert torch.equal(attention_box(7 * attention), attention_box(attention))


def test_a_crop_is_the_box_and_nothing_else(images):
    box = torch.tensor([[0, 0, 4, 4], [1, 2, 3, 4], [0, 0, 1, 1], [2, 1, 4, 2], [3, 3, 4, 4], [0, 1, 4, 3]])
    found = crop(images, box, (8, 8), (32, 32))
    assert torch.equal(found[0], images[0])
    assert found.shape == (6, 3, 32, 32)
    for i, (top, left, bottom, right) in enumerate(box.tolist()):
        inside = images[i, :, 8 * top : 8 * bottom, 8 * left : 8 * right]
        assert found[i].amin() >= inside.amin()
        assert found[i].amax() <= inside.amax()
        # Stretched evenly: corners stay corners.
        for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            torch.testing.assert_close(found[i, :, *corner], inside[:, *corner])
        outside = torch.full_like(images[i], torch.nan)
        outside[:, 8 * top : 8 * bottom, 8 * left : 8 * right] = inside
        assert torch.equal(crop(outside[None], box[i : i + 1], (8, 8), (32, 32))[0], found[i])


@pytest.mark.parametrize("class_token", [True, False])
def test_the_attention_is_that_of_the_last_block(class_token, images):
    """Against the block written out, by the class token, or by all tokens where there is none."""
    kwargs = {} if class_token else {"class_token": False, "global_pool": "avg"}
    backbone = wake(Backbone("ifam_tiny", image_size=32, pretrained=False, **MODEL.backbone_kwargs, **kwargs)).eval()
    with torch.no_grad():
        tokens, attention = attended_tokens(backbone, images)
        assert torch.equal(tokens, backbone(images))
        inputs = []
        hook = backbone.vit.blocks[-1].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        backbone(images)
        hook.remove()
        block = backbone.vit.blocks[-1]
        qkv = block.attn.qkv(block.norm1(inputs[0])).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].mT * 8**-0.5).softmax(dim=-1).mean(dim=1)
        prefix = backbone.num_prefix_tokens
        patches = (weights[:, 0] if class_token else weights.mean(dim=1))[:, prefix:]
        torch.testing.assert_close(attention, (patches / patches.sum(1, keepdim=True)).view(6, 4, 4))
    assert attention.flatten(1).std(dim=1).min() > 1e-4


@pytest.mark.slow
def test_the_large_transformer_sees_the_box_alone(model, images):
    with torch.no_grad():
        attended = model.attend(images)
        assert torch.equal(attended.box, attention_box(attended.attention))
        assert torch.equal(model(images).logits, model.classify_crop(images, attended.box))
        inside = torch.zeros(6, 1, 32, 32, dtype=torch.bool)
        for flags, (top, left, bottom, right) in zip(inside, attended.box.tolist(), strict=True):
            flags[:, 8 * top : 8 * bottom, 8 * left : 8 * right] = True
        assert not inside.all()
        for value in (0.5, torch.nan):
            changed = torch.where(inside, images, value)
            assert torch.equal(model.classify_crop(changed, attended.box), model.classify_crop(images, attended.box))
        assert not torch.equal(
            model.classify_crop(images + inside, attended.box), model.classify_crop(images, attended.box)
        )


def test_the_small_transformer_reads_the_whole_image(model, images):
    with torch.no_grad():
        torch.testing.assert_close(model.attend(images).logits, model.selector.forward_full(images))


def test_no_gradient_passes_through_the_crop(model, images):
    model.train()(images).logits.sum().backward()
    assert all(parameter.grad is None for parameter in model.selector.parameters())
    assert all(parameter.grad is not None for parameter in model.predictor.parameters())


def test_the_two_may_differ(images):
    other = ModelConfig(
        "vit_tiny_patch16_224", 64, predictor_backbone="vit_small_patch32_224", backbone_kwargs={"depth": 1}
    )
    model = TrainedCrops(other, pretrained=False).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 64, 64)).logits.shape == (2, 2)
    assert model.last_layer is model.predictor.head
