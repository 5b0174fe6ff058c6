"""Windows: what both stages see of an image, and that nothing outside of them matters."""

import pytest
import torch

from conftest import TINY_VIT, wake
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models import registry
from ifam.models.baselines import PlainViT
from ifam.models.windows import Windows, all_windows, window_at, window_shape

FILLINGS = [torch.nan, torch.inf, -1e30, 3.0]


@pytest.fixture
def make_plain():
    """A tiny plain ViT with random weights: 4 x 4 patches, 5 classes."""

    def make(backbone="vit_tiny_patch16_224", image_size=64):
        config = ModelConfig(backbone=backbone, image_size=image_size, backbone_kwargs=TINY_VIT, num_classes=5)
        return wake(PlainViT(config, pretrained=False)).eval()

    return make


def refilled(images, windows, filling):
    """The images with another value in all pixels outside of the windows."""
    inside = windows.paste(torch.ones_like(windows.cut(images)[:, 0], dtype=torch.bool), tuple(images.shape[2:]))
    return torch.where(inside[:, None], images, torch.as_tensor(filling, dtype=images.dtype))


def same(out, other):
    """Whether two outputs are the same to the last bit, in all that windows decide."""
    pairs = [(out.logits, other.logits)]
    pairs += [] if out.mask is None else [(out.mask, other.mask), (out.selector_logits, other.selector_logits)]
    return all(torch.equal(one, two) for one, two in pairs)


def test_bands_and_blocks_are_all_rectangles_of_their_size_in_order():
    bands = all_windows("columns", 3, (2, 5))
    assert (len(bands), bands.shape, bands.left.tolist()) == (3, (2, 3), [0, 1, 2])
    blocks = all_windows("blocks", 2, (3, 4))
    assert list(zip(blocks.top.tolist(), blocks.left.tolist(), strict=True)) == [
        (y, x) for y in range(2) for x in range(3)
    ]
    assert bands[1:2].patches.tolist() == [[1, 2, 3, 6, 7, 8]]
    assert bands.visible[1].nonzero()[:, 0].tolist() == [1, 2, 3, 6, 7, 8]


def test_cut_and_paste_are_each_others_inverse(images):
    windows = Windows(torch.tensor([0, 1, 2, 1]), torch.tensor([2, 0, 1, 1]), (2, 2), (4, 4))
    cut = windows.cut(images)
    assert torch.equal(cut[1], images[1, :, 16:48, :32])
    pasted = windows.paste(cut[:, 0], (64, 64))
    assert torch.equal(pasted[1, 16:48, :32], images[1, 0, 16:48, :32])
    assert int((pasted != 0).sum()) == int((cut[:, 0] != 0).sum())


def test_random_windows_reach_every_place_and_no_other():
    edges = torch.tensor([[0.0, 0.0], [0.999999, 0.999999], [0.5, 0.5]])
    windows = window_at(edges, "blocks", 3, (5, 7))
    assert windows.top.tolist() == [0, 2, 1]
    assert windows.left.tolist() == [0, 4, 2]
    # Rounding up to 1 does not lead out of the image.
    assert window_at(torch.ones(1, 2), "columns", 3, (5, 7)).left.tolist() == [4]


SETTINGS = {
    "patches": {},
    "least share": {"min_visible": 0.4},
    "pixels": {"mask_resolution": 4},
    "pixels without edges": {"mask_resolution": 8, "edge_aware": False},
    "other normalization": {"predictor_backbone": "vit_base_patch16_siglip_224"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("kind", "width"), [("columns", 1), ("columns", 3), ("blocks", 2)])
def test_pixels_outside_of_a_window_have_no_influence(make_model, images, settings, kind, width):
    """Bit by bit, in both stages and in the mask, whatever they hold and whatever else is in the batch."""
    model, seen = make_model(**settings), 0
    windows = all_windows(kind, width, model.window_grid)
    with torch.no_grad():
        for number in range(len(windows)):
            one = windows[number : number + 1].expand(4)
            out = model.classify_windows(images, one)
            for filling in (*FILLINGS, images.flip(0)):
                assert same(out, model.classify_windows(refilled(images, one, filling), one)), filling
            outside = ~one.visible.unflatten(1, (4, 4))
            size = out.mask.shape[1] // 4
            assert not (out.mask & outside.repeat_interleave(size, 1).repeat_interleave(size, 2)).any()
            # The inside does matter.
            seen += not same(out, model.classify_windows(images.flip(0), one))
            # Other masks in the batch do not: a row keeps every bit.
            mixed = torch.cat([images[:1], torch.zeros_like(images[1:])])
            assert torch.equal(out.logits[0], model.classify_windows(mixed, one).logits[0])
    assert seen == len(windows)


def test_pixels_outside_of_a_window_have_no_influence_on_any_layout(make_model, make_plain, layout):
    """The same for class tokens, registers, models without either, and the plain ViT."""
    for model in (make_model(*layout), make_plain(*layout)):
        images = torch.randn(3, 3, *model.image_size)
        windows = window_at(torch.rand(3, 2), "columns", 2, model.window_grid)
        with torch.no_grad():
            out = model.classify_windows(images, windows)
            assert out.logits.isfinite().all()
            for filling in FILLINGS:
                assert same(out, model.classify_windows(refilled(images, windows, filling), windows))


def test_gradient_of_pixels_outside_of_a_window_is_exactly_zero(make_model, images):
    model = make_model(mask_gradient="full")
    windows = window_at(torch.rand(4, 2), "blocks", 2, model.window_grid)
    images.requires_grad_()
    model.classify_windows(images, windows).logits.square().sum().backward()
    inside = refilled(torch.ones_like(images), windows, 0.0) == 1
    assert (images.grad[~inside] == 0).all()
    assert (images.grad[inside] != 0).float().mean() > 0.5


def test_a_window_of_all_patches_is_the_whole_image(make_model, make_plain, images):
    """The windows' answers are the model's own, not those of another one."""
    for model in (make_model(), make_model(mask_resolution=4), make_plain()):
        with torch.no_grad():
            out = model.classify_windows(images, all_windows("columns", 4, (4, 4)).expand(4))
            expected = model(images)
        torch.testing.assert_close(out.logits, expected.logits, rtol=1e-4, atol=1e-5)
        if out.mask is not None:
            assert torch.equal(out.mask, expected.mask)


def test_both_ways_of_computing_windows_agree(make_model, images):
    """Training packs the visible patches, and a vote gives each patch of the window its place: the same numbers."""
    model = make_model()
    windows = window_at(torch.rand(4, 2), "columns", 3, model.window_grid)
    with torch.no_grad():
        expected = model.classify_windows(images, windows)
    found = model.classify_windows(images, windows)
    assert found.gate.requires_grad
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"aggregation": "sum"}, "aggregation 'sum', whose parts cannot be seen in windows"),
        ({"selector_image_size": 96}, "resizing mixes pixels across the edges of windows"),
        ({"predictor_backbone": "vit_small_patch8_224"}, "4 x 4 and 8 x 8 patches"),
    ],
)
def test_stages_that_would_mix_or_differ_are_refused(make_model, settings, said):
    with pytest.raises(IfamError, match=said):
        _ = make_model(**settings).window_grid


@pytest.mark.parametrize("method", sorted(set(registry.METHODS) - {"frozen_crops", "trained_crops"}))
def test_methods_that_see_windows_are_those_that_say_so(method):
    config = ModelConfig(backbone="vit_tiny_patch16_224", image_size=32, backbone_kwargs=TINY_VIT)
    model = registry.build(method, config, pretrained=False)
    if method in ("ifam", "frozen_predictor", "plain_vit", "group_dro"):
        assert model.window_grid == (2, 2)
    else:
        with pytest.raises(IfamError, match=f"{method} cannot see windows of an image alone"):
            _ = model.window_grid


@pytest.mark.parametrize(("kind", "width"), [("columns", 0), ("columns", 6), ("blocks", 4), ("blocks", -1)])
def test_widths_that_do_not_fit_are_refused(kind, width):
    widest = 5 if kind == "columns" else 3
    with pytest.raises(IfamError, match=f"windows are {width} patches wide, but 1 to {widest} are expected"):
        window_shape(kind, width, (3, 5))
