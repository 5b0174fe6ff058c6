"""Any timm vision transformer, shown a part of its patches."""

from functools import partial

import pytest
import timm
import torch

from ifam.backbones.backbone import Backbone
from ifam.backbones.masked_pass import choose_layout
from ifam.backbones.token_layout import Packed, Padded
from ifam.backbones.vit import TINY
from ifam.errors import IfamError


def _all(backbone, batch=2):
    return torch.ones(batch, backbone.grid[0] * backbone.grid[1], dtype=torch.bool)


def _real(backbone, visible):
    """True where a token of padded rows is of an image."""
    counts = visible.sum(dim=1) + backbone.num_prefix_tokens
    return torch.arange(int(counts.max())) < counts[:, None]


def test_all_visible_is_the_plain_transformer(make_backbone, layout):
    backbone = make_backbone(*layout)
    images = torch.randn(2, 3, *backbone.image_size)
    tokens = backbone(images, _all(backbone))
    torch.testing.assert_close(tokens, backbone.vit.forward_features(images), rtol=0, atol=1e-5)
    assert torch.equal(backbone(images), backbone.vit.forward_features(images))


def test_visible_patches_equal_attention_with_minus_infinity_on_hidden_keys(make_backbone, layout, gated_tokens):
    backbone = make_backbone(*layout).double()
    images = torch.randn(3, 3, *backbone.image_size).double()
    visible = torch.rand(3, 16) > 0.5
    visible[1, :13] = False  # visible counts differ, so there is padding
    tokens = backbone(images, visible)
    real = _real(backbone, visible)
    oracle = gated_tokens(backbone.vit, images, visible.double())
    prefix = backbone.num_prefix_tokens
    assert real.sum(dim=1).tolist() == (visible.sum(dim=1) + prefix).tolist()
    for b in range(3):
        expected = torch.cat([oracle[b, :prefix], oracle[b, prefix:][visible[b]]])
        torch.testing.assert_close(tokens[b][real[b]], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "size", "prefix", "in_table", "class_token", "norm_pre"),
    [
        ("vit_tiny_patch16_224", 64, 1, 1, True, False),
        ("vit_small_patch14_reg4_dinov2", 56, 5, 0, True, False),
        ("vit_base_patch16_siglip_224", 64, 0, 0, False, False),
        ("vit_base_patch16_clip_224", 64, 1, 1, True, True),
    ],
)
def test_the_layouts_tried_differ(make_backbone, name, size, prefix, in_table, class_token, norm_pre):
    backbone = make_backbone(name, size)
    assert backbone.num_prefix_tokens == prefix
    assert backbone.has_class_token is class_token
    assert backbone.vit.pos_embed.shape[1] == 16 + in_table
    assert isinstance(backbone.vit.norm_pre, torch.nn.LayerNorm) is norm_pre


@pytest.mark.parametrize(
    "kwargs",
    [
        {"dynamic_img_size": True},
        {"pos_embed": "none"},
        {"qk_norm": True},
        {"reg_tokens": 3},
        {"reg_tokens": 3, "no_embed_class": True},
        {"embed_norm_layer": "layernorm"},
        {"class_token": False, "global_pool": "avg"},
        {"init_values": 1e-5, "patch_size": 8},
        {"mlp_ratio": 2.0, "qkv_bias": False},
    ],
    ids=str,
)
def test_constructor_arguments_of_timm(make_backbone, images, kwargs):
    backbone, images = make_backbone(**kwargs).double(), images.double()
    tokens = backbone(images, _all(backbone, 4))
    torch.testing.assert_close(tokens, backbone(images), rtol=0, atol=1e-10)


def test_distilled_transformers_have_two_prefix_tokens(make_backbone, images):
    backbone = make_backbone("deit_tiny_distilled_patch16_224")
    assert backbone.num_prefix_tokens == 2
    tokens = backbone(images, _all(backbone, 4))
    torch.testing.assert_close(tokens, backbone(images), rtol=0, atol=1e-5)


def test_no_class_is_swapped_and_no_weight_added(make_backbone):
    ours = make_backbone().vit
    timms = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, depth=2, embed_dim=48, num_heads=3)
    assert [(n, type(m)) for n, m in ours.named_modules()] == [(n, type(m)) for n, m in timms.named_modules()]
    assert list(ours.state_dict()) == list(timms.state_dict())
    assert all("forward" not in vars(module) for module in ours.modules())


def test_properties(make_backbone):
    backbone = make_backbone("vit_small_patch14_reg4_dinov2", 56)
    assert backbone.width == 48
    assert backbone.grid == (4, 4)
    assert backbone.patch_size == (14, 14)
    assert backbone.image_size == (56, 56)
    assert backbone.normalization == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert make_backbone("vit_base_patch16_siglip_224").normalization == ((0.5,) * 3, (0.5,) * 3)


def test_image_size_is_the_models_own_by_default():
    backbone = Backbone("vit_tiny_patch16_224", pretrained=False, depth=1, embed_dim=12, num_heads=1)
    assert backbone.image_size == (224, 224)


def test_embedded_backbone_needs_no_network():
    backbone = Backbone(TINY, pretrained=False)
    assert backbone.image_size == (80, 80)
    assert backbone.grid == (10, 10)
    assert backbone.num_prefix_tokens == 3
    assert backbone(torch.randn(1, 3, 80, 80)).shape == (1, 103, 128)
    assert Backbone(TINY, image_size=64, pretrained=False).grid == (8, 8)


@pytest.mark.parametrize("layout_in_memory", ["channels last", "transposed", "strided"])
def test_layout_of_the_images_in_memory_does_not_matter(make_backbone, images, layout_in_memory):
    backbone = make_backbone()
    other = {
        "channels last": images.to(memory_format=torch.channels_last),
        "transposed": images.mT.contiguous().mT,
        "strided": images.repeat_interleave(2, dim=3)[..., ::2],
    }[layout_in_memory]
    assert not other.is_contiguous()
    visible = torch.rand(4, 16) > 0.4
    assert torch.equal(backbone(images, visible), backbone(other, visible))


def test_unknown_name_suggests_a_similar_one():
    with pytest.raises(IfamError, match=r"There is no backbone 'vit_tiny_patch16_244'.*vit_tiny_patch16_224"):
        Backbone("vit_tiny_patch16_244", pretrained=False)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("vit_tiny_r_s16_p8_224", "VisionTransformer on a convolutional stem"),
        ("samvit_base_patch16", "VisionTransformerSAM"),
    ],
)
def test_not_a_plain_vision_transformer(name, kind):
    kwargs = {"depths": (1, 1, 1, 1)} if name.startswith("swin") else {"depth": 1}
    with pytest.raises(IfamError, match=rf"'{name}' is a {kind}, but a timm VisionTransformer on plain patches"):
        Backbone(name, pretrained=False, **kwargs)


def test_a_convolutional_network_is_refused_by_name():
    with pytest.raises(IfamError, match=r"'resnet18'.*vision transformer"):
        Backbone("resnet18", image_size=64, pretrained=False)


def test_argument_that_timm_does_not_know_is_named():
    with pytest.raises(IfamError, match=r"'vit_tiny_patch16_224'.*'dept'.*backbone_kwargs"):
        Backbone("vit_tiny_patch16_224", pretrained=False, dept=2)


@pytest.mark.parametrize(
    ("name", "size", "fix"),
    [
        ("vit_tiny_patch16_224", 70, "16 px patches of vit_tiny_patch16_224; use 64 or 80"),
        ("vit_small_patch14_reg4_dinov2", 64, "14 px.*use 56 or 70"),
        (TINY, 81, "8 px patches of ifam_tiny; use 80 or 88"),
        ("flexivit_small", 60, "16 px patches of flexivit_small; use 48 or 64"),
        ("vit_tiny_patch16_224", 0, "use 16 or 32"),
        ("vit_tiny_patch16_224", -16, "use 16 or 32"),
    ],
)
def test_image_size_that_the_patch_does_not_divide(name, size, fix):
    with pytest.raises(IfamError, match=f"image size {size} is not a multiple of the {fix}" if size > 0 else fix):
        Backbone(name, image_size=size, pretrained=False, depth=1)


@pytest.mark.parametrize("rate", ["patch_drop_rate", "pos_drop_rate", "attn_drop_rate"])
def test_dropout_of_tokens_is_refused(rate):
    with pytest.raises(IfamError, match=rf"{rate} is 0.5"):
        Backbone("vit_tiny_patch16_224", image_size=64, pretrained=False, depth=1, **{rate: 0.5})


@pytest.mark.parametrize(
    "shape",
    [(4, 3, 32, 32), (4, 3, 64, 80), (3, 64, 64), (4, 1, 64, 64), (4, 64, 64, 3), (4, 16, 768)],
    ids=str,
)
def test_images_of_another_shape(make_backbone, shape):
    backbone = make_backbone()
    for call in (backbone, lambda x: backbone(x, torch.ones(4, 16, dtype=torch.bool))):
        with pytest.raises(IfamError) as error:
            call(torch.randn(shape))
        assert f"{list(shape)}, but the model expects [B, 3, 64, 64]" in str(error.value)


def test_images_that_are_not_normalized_numbers(make_backbone):
    with pytest.raises(IfamError, match=r"images are torch.uint8"):
        make_backbone()(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("counts", "packs"),
    [
        ([5, 60, 70, 196], True),  # long and of different lengths
        ([100, 98, 100, 99], False),  # hardly any padding
        ([5, 20, 10, 30], False),  # short: copies in each block cost more than the padding
        ([0, 0, 0, 0], False),
    ],
)
def test_auto_packs_where_it_pays(make_model, counts, packs):
    """On a processor; whatever is chosen, the numbers are the same (test_predictor.py)."""
    backbone = make_model(image_size=224).predictor.backbone
    visible = torch.arange(196) < torch.tensor(counts)[:, None]
    layout = partial(choose_layout, backbone.vit, visible)
    assert isinstance(layout("auto"), Packed if packs else Padded)
    assert isinstance(layout("padded"), Padded)
    assert isinstance(layout("packed"), Packed)
    assert isinstance(layout("auto", compiled=True), Padded)  # rectangles of few sizes


def test_patches_are_those_of_the_whole_transformer(make_model, layout):
    """Although the last block computes no prefix token."""
    backbone = make_model(*layout).selector.backbone
    images = torch.randn(2, 3, *backbone.image_size)
    expected = backbone.vit.forward_features(images)[:, backbone.num_prefix_tokens :]
    torch.testing.assert_close(backbone(images, queries="patches"), expected, rtol=0, atol=1e-5)
