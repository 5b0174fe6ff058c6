"""Heat maps of vision transformers of timm, on models that read one patch, and of our own models."""

import pytest
import timm
import torch
from PIL import Image
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import ifam
from conftest import TINY_VIT, wake
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.explanation import explain
from ifam.models import attribution
from ifam.models.attribution import METHODS
from ifam.models.registry import build

# Without torchcam and captum, the tests of the maps have nothing to test.
pytestmark = pytest.mark.skipif(not attribution.has_libraries(), reason="the extra `explain` is not installed")

PATCH = 8
LAYOUTS = {
    "class token": {},
    "registers": {"reg_tokens": 3},
    "a grid that is no square": {"img_size": (16, 32)},
    "any size": {"dynamic_img_size": True},
    "mean of the patches": {"class_token": False, "global_pool": "avg"},
    "class token, mean of the patches": {"global_pool": "avg"},
    "distilled": {"kind": VisionTransformerDistilled},
}


def reads_one_patch(place, kind=VisionTransformer, size=None, **layout):
    """A transformer of timm whose class 1 is the brightness of one patch; class 0 is nothing.

    Number 0 of a token marks that patch, number 1 is its brightness. Every token attends to the marked one, and writes
    its brightness to number 2, which the head reads.
    """
    settings = {"img_size": (32, 32), "patch_size": PATCH, "depth": 2, "embed_dim": 8, "num_heads": 1}
    vit = kind(**{**settings, "num_classes": 2, "norm_layer": nn.Identity, **layout}).eval()
    for weight in vit.parameters():
        nn.init.zeros_(weight)
    columns = vit.patch_embed.grid_size[1]
    with torch.no_grad():
        vit.patch_embed.proj.weight[1] = 1 / (3 * PATCH**2)
        vit.pos_embed[0, (0 if vit.no_embed_class else vit.num_prefix_tokens) + place[0] * columns + place[1], 0] = 1
        last = vit.blocks[-1].attn
        last.qkv.bias[0] = 30.0  # every query
        last.qkv.weight[8, 0] = 1.0  # the key of the mark
        last.qkv.weight[17, 1] = 1.0  # the value is the brightness
        last.proj.weight[2, 1] = 1.0
        for head in (vit.head, getattr(vit, "head_dist", vit.head)):
            head.weight[1, 2] = 1.0
    return vit


CASES = [
    pytest.param(method, layout, id=f"{method}, {name}")
    for method in METHODS
    for name, layout in LAYOUTS.items()
    # Where patches are averaged, each of them holds what attention read from one.
    if not (layout.get("global_pool") == "avg" and "cam" in method)
]


def bright(size=(32, 32), count=3):
    """Images with values in 0..1, brighter in patch (1, 2)."""
    images = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))
    # Grad-CAM takes every bright patch for one that is read.
    images[:, :, PATCH : 2 * PATCH, 2 * PATCH : 3 * PATCH] += 1.0
    return images


@pytest.mark.parametrize(("method", "layout"), CASES)
def test_the_patch_that_is_read_is_the_hottest(method, layout):
    size = layout.get("img_size", (32, 32))
    result = explain(reads_one_patch((1, 2), **layout), bright(size), method=method, target=1)
    rows, columns = size[0] // PATCH, size[1] // PATCH
    assert result.maps.shape == (3, rows, columns)
    assert result.maps.flatten(1).argmax(dim=1).tolist() == [columns + 2] * 3
    assert (result.maps >= 0).all()
    if method in ("layercam", "integrated_gradients", "saliency", "occlusion"):
        others = result.maps.flatten(1).sum(dim=1) - result.maps[:, 1, 2]
        assert (others < 1e-3 * result.maps[:, 1, 2]).all()


def test_of_averaged_patches_it_is_the_class_activation_map():
    """Each patch's own part of the logit, where nothing but the mean of the patches is read (arXiv 1512.04150)."""
    model = reads_one_patch((0, 0), class_token=False, global_pool="avg")
    with torch.no_grad():
        model.head.weight[1] = torch.eye(8)[1]
    images = bright() - 0.5
    brightness = nn.functional.avg_pool2d(images.mean(dim=1), PATCH)
    result = explain(model, images, method="gradcam", target=1)
    torch.testing.assert_close(result.maps, brightness.relu() / 16)


def test_images_of_any_size_where_the_model_takes_them():
    model = reads_one_patch((1, 2), dynamic_img_size=True, dynamic_img_pad=True)
    for method in ("gradcam", "occlusion", "saliency"):
        assert explain(model, bright((30, 43)), method=method).maps.shape == (3, 4, 6)
    # Of the pixels that are there, not of those that are padded.
    model = reads_one_patch((3, 3), dynamic_img_size=True, dynamic_img_pad=True)
    one = explain(model, torch.ones(1, 3, 32, 28), method="occlusion", target=1).maps[0]
    assert one[3, 3] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 32}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 28}),
        ("vit_small_patch16_dinov3", {"img_size": 32}),
        ("vit_medium_patch16_gap_256", {"img_size": 32}),
        ("vit_base_patch16_siglip_224", {"img_size": 32}),
        ("vit_base_patch16_xp_224", {"img_size": 32}),
        ("vit_srelpos_small_patch16_224", {"img_size": 32}),
        ("beit_base_patch16_224", {"img_size": 32}),
    ],
)
def test_any_vision_transformer_of_timm(name, settings):
    """Grad-CAM is its formula: activations weighted by the mean of their gradients over patches, cut at 0."""
    sizes = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    model = wake(timm.create_model(name, num_classes=5, **sizes, **settings)).eval()
    images, prefix = torch.randn(2, 3, settings["img_size"], settings["img_size"]), model.num_prefix_tokens
    result = explain(model, images)
    assert (result.method, result.maps.shape) == ("gradcam", (2, 2, 2))
    torch.testing.assert_close(result.logits, model(images).detach())
    assert torch.equal(result.targets, result.logits.argmax(dim=1))
    last, seen = model.blocks[-1], []
    layer = getattr(last, "norm1", None) or last.in_norm if model.global_pool == "token" else last
    with layer.register_forward_hook(lambda module, args, out: seen.append(out)):
        scores = model(images)[[0, 1], result.targets]
    (slope,) = torch.autograd.grad(scores.sum(), seen)
    values, slopes = (tokens.detach()[:, prefix:] for tokens in (seen[0], slope))
    wanted = (values * slopes.mean(dim=1, keepdim=True)).sum(dim=2).relu().view(2, 2, 2)
    torch.testing.assert_close(result.maps, wanted)


def test_an_answer_is_explained_in_batches_as_at_once():
    model, images = reads_one_patch((1, 2)), bright(count=5)
    targets = torch.tensor([0, 1, 1, 0, 1])
    at_once = explain(model, images, method="occlusion", target=targets)
    result = explain(model, images, method="occlusion", target=targets, batch_size=2)
    assert torch.equal(result.maps, at_once.maps)
    assert torch.equal(result.targets, targets)
    assert (result.maps.flatten(1).sum(dim=1) > 0).tolist() == [False, True, True, False, True]
    assert explain(model, images[:0]).maps.shape == (0, 4, 4)


def test_the_model_is_left_as_it_was():
    model = reads_one_patch((1, 2)).train()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    for weight in model.blocks.parameters():
        weight.requires_grad_(False)
    images = bright()
    before = images.clone()
    for method in METHODS:
        with torch.inference_mode():
            explain(model, images, method=method)
    assert model.training
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.patch_embed.proj.weight.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(weight.requires_grad for weight in model.blocks.parameters())


def make_baseline(method):
    """A tiny model of another method, with random weights."""
    config = ModelConfig("vit_tiny_patch16_224", image_size=64, num_classes=5, backbone_kwargs=TINY_VIT)
    return wake(build(method, config, pretrained=False)).eval()


@pytest.fixture
def plain(make_model):
    """A plain ViT with the predictor's weights of a tiny model."""
    model = make_baseline("plain_vit")
    model.predictor.load_state_dict(make_model().predictor.state_dict())
    return model.eval()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "attention_rollout"])
def test_of_a_model_that_masks_its_input(make_model, plain, images, mask, method):
    """It is the answer given the mask: as a plain ViT's where all is visible, and 0 where it is hidden."""
    model = make_model()
    select = model.selector.forward
    model.select = lambda images: ifam.UseMask(torch.ones_like(mask))(select(images))
    everything, whole = explain(model, images, method=method), explain(plain, images, method=method)
    torch.testing.assert_close(everything.maps, whole.maps, rtol=1e-3, atol=1e-5)
    assert everything.class_names == model.config.class_labels
    model.select = lambda images: ifam.UseMask(mask)(select(images))
    hidden = explain(model, images, method=method, target=2)
    assert (hidden.maps[~mask] == 0).all()
    assert (hidden.maps[mask] > 0).any()
    noise = torch.where(
        mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None], images, torch.randn(4, 3, 64, 64)
    )
    assert torch.equal(explain(model, noise, method=method, target=2).maps, hidden.maps)


@pytest.mark.parametrize("method", ["plain_vit", "plain_vit_mean", "plain_vit_attentive"])
def test_plain_models_of_this_package(images, method):
    model = make_baseline(method)
    for name in ("gradcam", "saliency", "attention_rollout"):
        result = explain(model, images, method=name)
        assert result.maps.shape == (4, 4, 4)
        torch.testing.assert_close(result.logits, model(images).logits.detach(), rtol=1e-4, atol=1e-5)


def test_parts_and_pixels(make_model, images):
    """Sums of parts are explained by methods of pixels; masks of pixels have maps of patches."""
    for model in (make_model(aggregation="sum"), make_model(mask_resolution=4)):
        result = explain(model, images, method="occlusion")
        assert result.maps.shape == (4, 4, 4)
        torch.testing.assert_close(result.logits, model(images).logits.detach())


def test_without_a_method_parts_are_explained(tiny_model, plain, images):
    assert isinstance(explain(tiny_model, images), ifam.PartContributions)
    with pytest.raises(IfamError, match="plain_vit does not answer from its visible parts"):
        explain(plain, images)
    with pytest.raises(IfamError, match="Contributions are of all classes"):
        explain(tiny_model, images, target=1)


def test_names_are_spelled_as_anybody_does():
    model, images = reads_one_patch((1, 2)), bright()
    for name, method in {"GradCAM": "gradcam", "Grad-CAM++": "gradcam++", "GradCAMpp": "gradcam++"}.items():
        assert explain(model, images, method=name).method == method
    assert explain(model, images, method="IntegratedGradients").method == "integrated_gradients"


def nan(images):
    return images.index_fill(0, torch.tensor([1]), float("nan"))


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (None, {"method": "gradcamm"}, r"no method 'gradcamm' \(did you mean 'gradcam'\?\); choose one of gradcam, "),
        (None, {"target": 2}, "target is 2, but the model has 2 classes"),
        (None, {"target": -1}, "target is -1"),
        (None, {"target": True}, "target is True"),
        (None, {"target": torch.zeros(2, dtype=torch.long)}, "for each of 3 images"),
        (None, {"target": torch.zeros(3)}, "target is tensor"),
        (None, {"batch_size": 0}, "batch_size is 0"),
        (nan, {}, "The images hold NaN"),
        (lambda images: images[0], {}, r"\[3, 32, 32\], but"),
        (lambda images: images[:, :1], {}, r"\[3, 1, 32, 32\]"),
        (lambda images: images.byte(), {}, "torch.uint8"),
        (lambda images: images[..., :24], {}, "32 x 24 pixels, but the model expects 32 x 32"),
    ],
)
def test_what_cannot_be_explained_is_said(change, settings, message):
    images = bright() if change is None else change(bright())
    with pytest.raises(IfamError, match=message) as raised:
        explain(reads_one_patch((1, 2)), images, **settings)
    assert "\n" not in str(raised.value)


def test_parts_are_not_explained_of_images_that_are_no_numbers(images, make_model):
    for broken, message in ((nan(images), "The images hold NaN"), (images.byte(), "torch.uint8")):
        with pytest.raises(IfamError, match=message):
            explain(make_model(), broken)


def test_what_is_no_vision_transformer_is_said(images, make_model, monkeypatch):
    for model in (timm.create_model("resnet10t", num_classes=2), nn.Linear(2, 2)):
        with pytest.raises(IfamError, match="a vision transformer of timm on patches is expected"):
            explain(model, images, method="gradcam")
    with pytest.raises(IfamError, match="not of the method selector"):
        explain(make_baseline("selector"), images, method="gradcam")
    headless = reads_one_patch((1, 2))
    headless.reset_classifier(0)
    with pytest.raises(IfamError, match="no classifier"):
        explain(headless, bright())
    with pytest.raises(IfamError, match="multiples of the 8 x 8 pixels"):
        explain(reads_one_patch((1, 2), dynamic_img_size=True), images[..., :30])
    broken = reads_one_patch((1, 2))
    nn.init.constant_(broken.head.weight, float("nan"))
    with pytest.raises(IfamError, match="NaN or infinity"):
        explain(broken, bright())
    sizes = {"depth": 1, "embed_dim": 12, "num_heads": 1, "img_size": 32}
    beit = timm.create_model("beit_base_patch16_224", **sizes)
    with pytest.raises(IfamError, match="one plain attention in each block, which Beit"):
        explain(beit, bright(), method="attention_rollout")
    with pytest.raises(IfamError, match="masks its input"):
        explain(make_model(), images, method="attention_rollout")
    monkeypatch.setattr("ifam.explanation.has_libraries", lambda: False)
    with pytest.raises(IfamError, match=r"pip install 'ifam\[explain\]'"):
        explain(reads_one_patch((1, 2)), bright())
    assert explain(reads_one_patch((1, 2)), bright(), method="attention_rollout").maps.shape == (3, 4, 4)


def test_maps_are_drawn(tmp_path):
    model = reads_one_patch((1, 2))
    model.pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    images = bright()
    result = explain(model, images / 2, method="layercam", target=1)
    assert torch.equal(result.images, (images / 2 * 255).round().to(torch.uint8))
    assert result.pixels().shape == (3, 32, 32)
    assert result.pixels()[0].argmax() // 32 in range(PATCH, 2 * PATCH)
    picture = result.overlay(2, Image.new("RGB", (320, 320)))
    assert picture.size == (320, 320)
    hottest = max(
        (sum(picture.getpixel((x, y))), x // 80, y // 80) for x in range(5, 320, 10) for y in range(5, 320, 10)
    )
    assert hottest[1:] == (2, 1)
    drawn = result.draw()
    figure = result.plot()
    assert len(figure.axes) == 1
    with Image.open(result.save(tmp_path / "maps ä.png")) as saved:
        assert saved.size == drawn.size
    assert repr(result).startswith("Heat maps of 3 images by layercam, 4 x 4 patches")
    with pytest.raises(IfamError, match="no ending of a picture"):
        result.save(tmp_path / "maps.txt")
    with pytest.raises(IfamError, match="index is 3, but there are 3 maps"):
        result.overlay(3)
    with pytest.raises(IfamError, match="no maps to draw"):
        explain(model, images[:0]).draw()
    # Nothing speaks for class 0: nothing is bright, and nothing is divided by zero.
    assert explain(model, images, method="gradcam", target=0).overlay().getextrema()
