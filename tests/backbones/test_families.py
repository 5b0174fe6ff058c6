"""Every family of timm's plain vision transformers, at sizes of one's own, against timm's own forward pass.

The reference is timm's: all patches are computed, and hidden keys are masked by its `attn_mask`. A gate on a key is its
logarithm in that mask, so the gradient of the gates is checked by finite differences of timm's own attention.
"""

import inspect
import subprocess
import sys
from functools import cache

import pytest
import timm
import torch

from ifam.backbones.backbone import Backbone
from ifam.backbones.vit import create_vit
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.ifam import IFAM

EXECUTIONS = ["padded", "packed", "dense"]
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 2}
# Name, and arguments other than `SMALL`.
FAMILIES = {
    "DINOv2": ("vit_small_patch14_dinov2", {}),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", {}),
    "DINOv3": ("vit_small_patch16_dinov3", {}),
    "CLIP": ("vit_base_patch16_clip_quickgelu_224", {}),
    "DeiT": ("deit_tiny_distilled_patch16_224", {}),
    "DeiT-III": ("deit3_small_patch16_224", {}),
    "SigLIP": ("vit_base_patch16_siglip_224", {}),
    "SigLIP with mean pooling": ("vit_base_patch16_siglip_gap_224", {}),
    "EVA": ("eva_giant_patch14_224", {}),
    "EVA-02": ("eva02_base_patch14_224", {}),
    "EVA-02, norm after": ("eva02_enormous_patch14_clip_224", {}),
    "Perception Encoder": ("vit_pe_core_base_patch16_224", {}),
    "learned frequencies": ("vit_small_patch16_rope_mixed_ape_224", {}),
    "fewer keys than queries": ("vit_base_patch16_sapiens2", {"num_heads": 4, "num_kv_heads": [4, 2]}),
    "parallel attention and MLP": ("vit_base_patch16_xp_224", {}),
    "parallel branches": ("vit_small_patch16_18x2_224", {}),
    "norm after": ("vit_base_patch16_rpn_224", {}),
    "differential attention": ("vit_dwee_patch16_reg1_gap_256", {}),
    "differential and parallel": ("vit_dpwee_patch16_reg1_gap_256", {}),
    "AIMv2": ("aimv2_large_patch14_224", {}),
}
GRIDS = {"square": (3, 3), "landscape": (2, 3)}
# Visible patches of three images, by place; the counts differ, so rows have padding.
SHOWN = ([0, 4, 5], [2], [0, 1, 2, 3])


@cache
def missing(family):
    """Why the installed timm cannot serve as reference for a family; empty where it can."""
    name, kwargs = FAMILIES[family]
    if not timm.is_model(name):
        return f"timm {timm.__version__} has no {name}"
    model = timm.create_model(name, **{**SMALL, **kwargs}, pretrained=False).double().eval()
    try:
        model.forward_features(torch.randn(1, 3, *model.patch_embed.img_size, dtype=torch.float64))
    except RuntimeError as error:
        return f"timm {timm.__version__} cannot run {name} in double precision: {error}"
    return ""


@pytest.fixture(params=FAMILIES)
def family(request):
    """Name and arguments of a tiny model of each family."""
    if why := missing(request.param):
        pytest.skip(why)
    name, kwargs = FAMILIES[request.param]
    return name, {**SMALL, **kwargs}


@pytest.fixture(params=GRIDS.values(), ids=GRIDS)
def backbone(request, family):
    """A tiny backbone of each family on a grid of its own, in double precision."""
    return build(*family, request.param)


def build(name, kwargs, grid=(2, 3)):
    patch = 14 if "patch14" in name else 16
    made = Backbone(name, image_size=(grid[0] * patch, grid[1] * patch), pretrained=False, **kwargs).double().eval()
    with torch.no_grad():
        for key, weight in made.named_parameters():
            # Scales near 1 and all else random: no layer scale, bias or token near zero hides an error.
            scales = weight.ndim == 1 and not key.endswith("bias") and "lambda" not in key
            spread = 0.3 if weight.ndim == 1 else weight[0].numel() ** -0.5
            weight.copy_(0.5 + torch.rand_like(weight) if scales else spread * torch.randn_like(weight))
    return made


def draw(backbone):
    """Three images, and which of their patches are visible."""
    patches = backbone.grid[0] * backbone.grid[1]
    visible = torch.zeros(3, patches, dtype=torch.bool)
    for row, shown in zip(visible, SHOWN, strict=True):
        row[shown] = True
    return torch.randn(3, 3, *backbone.image_size, dtype=torch.float64), visible


def timms(backbone, images, gates):
    """Tokens by timm's own forward pass, with gates [B, P] on the patches as keys."""
    gates = torch.cat([gates.new_ones(len(gates), backbone.num_prefix_tokens), gates], dim=1)
    mask = gates.log()[:, None, None].expand(-1, 1, gates.shape[1], -1)
    return backbone.vit.forward_features(images, attn_mask=mask)


def read(backbone, tokens, visible):
    """What is read of the tokens of all patches."""
    if backbone.has_class_token:
        return tokens[:, 0]
    shown = visible[:, :, None].to(tokens)
    return (tokens[:, backbone.num_prefix_tokens :] * shown).sum(dim=1) / shown.sum(dim=1)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_visible_tokens_are_those_of_timm_with_the_hidden_keys_masked(backbone, execution):
    images, visible = draw(backbone)
    tokens = backbone(images, visible, execution=execution)
    reference, prefix = timms(backbone, images, visible.double()), backbone.num_prefix_tokens
    shown = torch.nn.functional.pad(visible, (prefix, 0), value=True)
    counts = shown.sum(dim=1, keepdim=True)
    real = shown if execution == "dense" else torch.arange(tokens.shape[1]) < counts
    assert execution == "dense" or tokens.shape[1] == counts.max()
    for row, own, expected, kept in zip(tokens, real, reference, shown, strict=True):
        torch.testing.assert_close(row[own], expected[kept], rtol=0, atol=1e-9)
    summary = backbone(images, visible, queries="pooled", execution=execution)
    torch.testing.assert_close(summary, read(backbone, reference, visible), rtol=0, atol=1e-9)


@pytest.mark.slow
@torch.no_grad()
def test_whole_images_are_those_of_timm(backbone):
    images, _ = draw(backbone)
    reference = backbone.vit.forward_features(images)
    assert torch.equal(backbone(images), reference)
    torch.testing.assert_close(
        backbone(images, queries="patches"), reference[:, backbone.num_prefix_tokens :], rtol=0, atol=1e-9
    )
    nothing = torch.zeros(3, len(reference[0]) - backbone.num_prefix_tokens, dtype=torch.float64)
    torch.testing.assert_close(backbone(images, bias=nothing), reference, rtol=0, atol=1e-9)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_hidden_pixels_have_no_influence(family, execution):
    backbone = build(*family)
    images, visible = draw(backbone)
    size = backbone.patch_size[0]
    hidden = ~visible.unflatten(1, backbone.grid).repeat_interleave(size, dim=1).repeat_interleave(size, dim=2)
    expected = backbone(images, visible, queries="pooled", execution=execution)
    assert expected.isfinite().all()
    for filling in (torch.nan, torch.inf, 1e30):
        changed = torch.where(hidden[:, None], filling, images)
        assert torch.equal(backbone(changed, visible, queries="pooled", execution=execution), expected)


@pytest.mark.slow
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_gradient_of_the_gates_is_the_slope_of_timms_own_attention(family, execution):
    """For every patch in "full", for the visible ones in "visible", and the same with checkpoints between blocks."""
    backbone = build(*family)
    images, visible = draw(backbone)
    weight = torch.randn(3, backbone.width, dtype=torch.float64)
    slopes = finite_differences(backbone, images, visible, weight)
    assert (slopes.abs() > 1e-4).float().mean() > 0.9
    wanted = (("visible", slopes * visible, False), ("full", slopes, False), ("full", slopes, True))
    for mode, expected, checkpointing in wanted:
        backbone.vit.set_grad_checkpointing(checkpointing)
        gate = visible.double().requires_grad_()
        (
            backbone(images, visible, gate, queries="pooled", mask_gradient=mode, execution=execution) * weight
        ).sum().backward()
        torch.testing.assert_close(gate.grad, expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def finite_differences(backbone, images, visible, weight, step=1e-7):
    """Slope of the weighted summary in each patch's gate, seen from 0 and 1 towards the inside of the interval."""
    patches = visible.shape[1]
    direction = torch.where(visible, -1.0, 1.0).double()
    values = []
    for steps in (0, 1, 2):
        gates = visible.double()[:, None] + steps * step * torch.diag_embed(direction)
        repeated = [t.repeat_interleave(patches, dim=0) for t in (images, visible, weight)]
        tokens = timms(backbone, repeated[0], gates.flatten(0, 1))
        values.append((read(backbone, tokens, repeated[1]) * repeated[2]).sum(dim=1).view(3, patches))
    return direction * (-3 * values[0] + 4 * values[1] - values[2]) / (2 * step)


@pytest.mark.slow
def test_every_weight_is_used(family):
    """Pooling of timm's own that nothing here reads is left out: no weight stays without a gradient."""
    backbone = build(*family)
    images, visible = draw(backbone)
    total = (
        backbone(images, queries="patches").square().sum() + backbone(images, visible, queries="pooled").square().sum()
    )
    names, weights = zip(*backbone.named_parameters(), strict=True)
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    assert not [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_gap_224", "vit_wee_patch16_reg1_gap_256"])
def test_a_norm_of_the_mean_token_becomes_one_of_each_token(name):
    backbone = build(name, SMALL)
    images, _ = draw(backbone)
    norm = backbone.vit.norm
    assert isinstance(norm, torch.nn.LayerNorm)
    patches = (backbone(images, queries="patches") - norm.bias) / norm.weight
    torch.testing.assert_close(patches.mean(dim=2), torch.zeros(3, 6).double(), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------- positions


@pytest.mark.skipif(
    "rope_rescale_coords" not in inspect.signature(timm.models.eva.Eva).parameters, reason="needs a newer timm"
)
def test_rotary_positions_resampled_in_training_are_those_of_the_hidden_patches_too():
    """Some models draw angles in training: one draw for a pass, in evaluation none."""
    backbone = build("vit_small_patch16_dinov3", {**SMALL, "rope_rescale_coords": 4.0})
    images, visible = draw(backbone)
    assert torch.equal(backbone(images, visible, queries="pooled"), backbone(images, visible, queries="pooled"))
    backbone.train()
    drawn = [backbone(images, visible, queries="pooled") for _ in range(2)]
    assert not torch.allclose(*drawn)
    gradients = []
    for mode in ("full", "visible"):
        torch.manual_seed(5)
        gate = visible.double().requires_grad_()
        backbone(images, visible, gate, queries="pooled", mask_gradient=mode).square().sum().backward()
        gradients.append((gate.grad, torch.get_rng_state()))
    (full, state), (shown, other_state) = gradients
    assert torch.equal(state, other_state)  # hidden patches draw nothing of their own
    torch.testing.assert_close(full[visible], shown[visible], rtol=0, atol=1e-9)


# Run on its own: the shape checks of these tests are code that the compiler cannot read.
COMPILED = """
import torch
from ifam.backbones.backbone import Backbone
torch.manual_seed(0)
backbone = Backbone("vit_small_patch16_dinov3", image_size=64, pretrained=False, depth=2, embed_dim=48, num_heads=2)
for weight in backbone.parameters():
    weight.data.normal_(std=0.3)
images, visible, passes = torch.randn(3, 3, 64, 64), torch.rand(3, 16) > 0.5, []
for _ in range(2):
    gate = visible.float().requires_grad_()
    summary = backbone(images, visible, gate, queries="pooled", mask_gradient="visible", execution="padded")
    summary.square().sum().backward()
    passes.append((summary.detach(), gate.grad))
    backbone.compile_blocks(backend="eager")
for plain, compiled in zip(*passes):
    assert (compiled - plain).norm() <= 1e-4 * plain.norm() > 0
print("the same")
"""


@pytest.mark.slow
def test_compiled_blocks_turn_queries_and_keys_alike():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.stdout == "the same\n", done.stderr


@pytest.mark.parametrize("grid", [(10, 10), (8, 12), (5, 4)], ids=str)
def test_embedded_positions_are_resampled_once_and_row_by_row(grid):
    made = create_vit("ifam_tiny", (8 * grid[0], 8 * grid[1]), True, {})
    own = create_vit("ifam_tiny", None, True, {})
    table = own.pos_embed.detach().unflatten(1, (10, 10)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(table, size=grid, mode="bicubic", antialias=True)
    torch.testing.assert_close(made.pos_embed.detach(), expected.flatten(2).mT, rtol=0, atol=1e-5)
    assert not made.dynamic_img_size


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_tiny_patch16_224"])
def test_images_have_one_size_even_where_timm_would_take_any(name):
    backbone = build(name, {**SMALL, "dynamic_img_size": True}, (2, 3))
    assert backbone.image_size == (32, 48)
    assert not backbone.vit.dynamic_img_size
    with pytest.raises(IfamError, match=r"expects \[B, 3, 32, 48\]"):
        backbone(torch.randn(1, 3, 48, 32))


# ---------------------------------------------------------------------------------------- sizes and refusals


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            (64, 90),
            "image size 64 x 90 is not a multiple of the 16 px patches of vit_tiny_patch16_224; use 64 x 80 or 64 x 96",
        ),
        ((70, 90), "use 64 x 80 or 80 x 96"),
        ((64,), r"image_size is \(64,\), but pixels are expected; give one side, or height and width"),
        ([70, 64], "use 64 x 64 or 80 x 64"),
        ((0, 32), "use 16 x 32 or 32 x 32"),
    ],
    ids=str,
)
def test_sizes_that_make_no_grid(size, message):
    with pytest.raises(IfamError, match=message):
        Backbone("vit_tiny_patch16_224", image_size=size, pretrained=False, **SMALL)


def test_patches_that_are_no_squares_are_refused():
    with pytest.raises(IfamError, match=r"patches of vit_tiny_patch16_224 have 16 x 8 pixels.*give one side"):
        Backbone("vit_tiny_patch16_224", image_size=64, pretrained=False, patch_size=(16, 8), **SMALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "beit_base_patch16_224",
        "naflexvit_base_patch16_gap",
        "vit_relpos_base_patch16_224",
        "vitamin_base_224",
        "cait_s24_224",
    ],
)
def test_other_transformers_are_refused_in_one_sentence(name):
    with pytest.raises(IfamError, match=rf"backbone '{name}'.*choose"), torch.device("meta"):
        Backbone(name, pretrained=False)


# ---------------------------------------------------------------------------------------- whole models


@pytest.mark.slow
def test_a_model_of_each_family_is_trained_saved_and_loaded(family, tmp_path):
    name, kwargs = family
    patch = 14 if "patch14" in name else 16
    config = ModelConfig(name, image_size=(2 * patch, 3 * patch), num_parts=2, backbone_kwargs=kwargs)
    model = IFAM(config, pretrained=False)
    images, labels = torch.randn(4, 3, *model.image_size), torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = {key: value.clone() for key, value in model.named_parameters()}
    out = model(images)
    cross_entropy = torch.nn.functional.cross_entropy
    (cross_entropy(out.logits, labels) + cross_entropy(out.selector_logits, labels)).backward()
    optimizer.step()
    assert [key for key, value in model.named_parameters() if torch.equal(value, before[key])] == []
    model.eval().save_pretrained(tmp_path)
    again = IFAM.from_pretrained(tmp_path)
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(images).logits, model(images).logits)
    # What no file holds is there again, too.
    buffers = dict(model.named_buffers())
    assert all(torch.equal(value, buffers[key]) for key, value in again.named_buffers())
