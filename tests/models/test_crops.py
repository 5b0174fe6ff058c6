"""A small transformer's attention chooses what of the image a large one sees."""

from dataclasses import replace

import pytest
import torch

from conftest import wake
from ifam.backbones.backbone import Backbone
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import load_benchmark
from ifam.models import registry
from ifam.models.crops import (
    FrozenCrops,
    Peaks,
    TrainedCrops,
    attended_tokens,
    attention_box,
    crop,
    equal_crops,
    peak_boxes,
)
from ifam.training import presets
from ifam.training.fit import fit
from ifam.training.module import Training, prepare

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
    crops = crop(images, box, (4, 4), (32, 32))
    assert torch.equal(crops[0], images[0])
    assert crops.shape == (6, 3, 32, 32)
    for i, (top, left, bottom, right) in enumerate(box.tolist()):
        inside = images[i, :, 8 * top : 8 * bottom, 8 * left : 8 * right]
        assert crops[i].amin() >= inside.amin()
        assert crops[i].amax() <= inside.amax()
        # Stretched evenly: corners stay corners.
        for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            torch.testing.assert_close(crops[i, :, *corner], inside[:, *corner])
        outside = torch.full_like(images[i], torch.nan)
        outside[:, 8 * top : 8 * bottom, 8 * left : 8 * right] = inside
        assert torch.equal(crop(outside[None], box[i : i + 1], (4, 4), (32, 32))[0], crops[i])


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


# --- frozen ----------------------------------------------------------------------------------------------

# 8 x 8 patches of 8 pixels, crops of 3 x 3 patches.
LARGE = ModelConfig("ifam_tiny", image_size=64, num_parts=3, backbone_kwargs={"depth": 2, "embed_dim": 32})


@pytest.fixture
def frozen():
    return wake(FrozenCrops(LARGE, pretrained=False)).eval()


@pytest.fixture
def large_images():
    return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_crops_are_around_the_highest_peaks():
    attention = torch.zeros(1, 9, 12)
    attention[0, 4, 5], attention[0, 2, 9], attention[0, 7, 2], attention[0, 6, 10] = 0.2, 0.5, 0.1, 0.2
    box, valid = peak_boxes(attention, 3, share=0.4)
    # At most 3.6 rows and 4.8 columns, an odd number: 3 x 3; of equal peaks the first one.
    assert box.tolist() == [[[1, 8, 4, 11], [3, 4, 6, 7], [5, 9, 8, 12]]]
    assert valid.all()


def test_a_patch_beside_a_higher_one_is_no_peak():
    attention = torch.linspace(1, 2, 81).view(1, 9, 9) / 1e6
    attention[0, 4, 4], attention[0, 4, 5], attention[0, 3, 3], attention[0, 6, 4], attention[0, 4, 7] = 5, 4, 3, 2, 1
    # Within one patch of the first: (4, 5) and (3, 3). Outside of its crop: (6, 4) and (4, 7).
    box, valid = peak_boxes(attention, 3, share=0.34)
    assert box[0].tolist() == [[3, 3, 6, 6], [5, 3, 8, 6], [3, 6, 6, 9]]
    assert valid.all()
    # A crop of everything holds these too.
    box, valid = peak_boxes(attention, 3, share=1.0)
    assert box[0, 0].tolist() == [0, 0, 9, 9]
    assert valid.tolist() == [[True, False, False]]


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (7, 7), (8, 5), (16, 37)])
def test_crops_are_inside_of_the_image_and_hold_their_peaks(grid):
    attention = torch.rand(20, *grid, generator=torch.Generator().manual_seed(2))
    box, valid = peak_boxes(attention, 4)
    top, left, bottom, right = box.unbind(2)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= grid[0]).all()
    assert (right <= grid[1]).all()
    for sides, size in ((bottom - top, grid[0]), (right - left, grid[1])):
        assert sides.unique().numel() == 1
        assert int(sides[0, 0]) % 2 == 1
        assert size / 2 - 2 < int(sides[0, 0]) <= max(1, size / 2)
    assert valid[:, 0].all()
    for i in range(20):
        y0, x0, y1, x1 = box[i, 0].tolist()
        assert attention[i, y0:y1, x0:x1].max() == attention[i].max()


def test_a_plateau_has_one_peak():
    box, valid = peak_boxes(torch.full((2, 8, 8), 1 / 64), 4)
    assert valid.tolist() == [[True, False, False, False]] * 2
    assert box[:, 0].tolist() == [[0, 0, 3, 3]] * 2


def test_equal_crops_are_those_cut_out_one_by_one(large_images):
    box = torch.tensor([[0, 0, 3, 2], [5, 6, 8, 8], [2, 3, 5, 5]])
    image = torch.tensor([0, 3, 3])
    crops = equal_crops(large_images, image, box, (8, 8), (64, 48))
    assert torch.equal(crops, crop(large_images[image], box, (8, 8), (64, 48)))


def test_the_answer_is_the_linear_layer_on_the_mean_over_the_crops(frozen, large_images):
    with torch.no_grad():
        peaks = frozen.attend(large_images)
        small, large = frozen.selector.backbone, frozen.predictor.backbone
        _, attention = attended_tokens(small, large_images)
        assert torch.equal(peaks.attention, attention)
        box, valid = peak_boxes(attention, 3)
        assert torch.equal(peaks.box, box)
        assert torch.equal(peaks.valid, valid)
        peaks = Peaks(attention, box, valid & (torch.arange(3) <= torch.arange(5)[:, None]))
        assert peaks.valid.sum(dim=1).min() == 1
        answers = frozen.classify_crops(large_images, peaks)
        for i in range(5):
            pieces = crop(large_images[[i] * 3], box[i], (8, 8), (64, 64))[peaks.valid[i]]
            expected = frozen.last_layer(large.pool(large(pieces)).mean(dim=0))
            torch.testing.assert_close(answers[i], expected, atol=1e-5, rtol=1e-4)


def test_the_large_transformer_sees_the_crops_alone(frozen, large_images):
    with torch.no_grad():
        peaks = frozen.attend(large_images)
        before = frozen.classify_crops(large_images, peaks)
        assert torch.equal(frozen(large_images).logits, before)
        inside = torch.zeros(5, 1, 64, 64, dtype=torch.bool)
        for i in range(5):
            for top, left, bottom, right in peaks.box[i, peaks.valid[i]].tolist():
                inside[i, :, 8 * top : 8 * bottom, 8 * left : 8 * right] = True
        assert not inside.flatten(1).all(dim=1).any()
        for value in (0.5, torch.nan):
            assert torch.equal(frozen.classify_crops(torch.where(inside, large_images, value), peaks), before)
        assert (frozen.classify_crops(large_images + inside, peaks) != before).any(dim=1).all()


def test_frozen_transformers_stay_in_evaluation_mode_and_get_no_gradient(frozen, large_images):
    assert frozen.train() is frozen
    assert frozen.training
    assert not any(module.training for part in (frozen.selector, frozen.predictor) for module in part.modules())
    frozen(large_images).logits.sum().backward()
    assert [key for key, value in frozen.named_parameters() if value.grad is not None] == ["classifier.weight"]


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["none", "all"])
def test_only_the_linear_layer_is_trained(tuning):
    birds = load_benchmark("pondbirds", options={"num_train": 16, "num_val": 8, "num_test": 8})
    train = TrainConfig(epochs=2, batch_size=8, base_lr=1e-3, head_lr_factor=2.0, accelerator="cpu")
    # Even with settings that the registry would refuse.
    train = replace(train, selector_tuning=tuning, predictor_tuning=tuning)
    dropout = {"backbone_kwargs": {**LARGE.backbone_kwargs, "proj_drop_rate": 0.5}}
    model = FrozenCrops(replace(LARGE, **dropout), pretrained=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fit(model, birds, train)
    assert [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])] == ["classifier.weight"]


def test_the_optimizer_has_the_linear_layer_alone():
    birds = load_benchmark("pondbirds", options={"num_train": 8, "num_val": 8, "num_test": 8})
    model = registry.build("frozen_crops", LARGE, pretrained=False)
    prepare(model, presets.apply_method_defaults("frozen_crops", TrainConfig()))
    training = Training(model, presets.apply_method_defaults("frozen_crops", TrainConfig()), LossConfig(), birds, 8)
    assert [key for group in training.groups if group.trainable for key in group.parameters] == ["classifier.weight"]


def test_the_frozen_two_may_differ():
    other = ModelConfig(
        "vit_tiny_patch16_224", 96, predictor_backbone="vit_base_patch32_siglip_256", backbone_kwargs={"depth": 1}
    )
    model = FrozenCrops(other, pretrained=False)
    assert model(torch.randn(2, 3, 96, 96)).logits.shape == (2, 2)
    assert model.last_layer.in_features == 768
