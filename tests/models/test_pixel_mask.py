"""The method's promises for a mask finer than patches: hidden pixels of visible patches cannot matter either."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ifam.errors import IfamError
from ifam.models.ifam import IFAM
from ifam.models.interventions import DropParts, DropUnsure, UseMask
from ifam.models.pixel_mask import blank_hidden, cell_mask, drop_sparse, guided_filter, patch_gate, visible_patches
from ifam.models.registry import build

EXECUTIONS = ["auto", "padded", "packed", "dense"]
MODES = ["full", "visible", "none"]
FILLINGS = [torch.nan, torch.inf, -torch.inf, 1e30, 7.0]


@pytest.fixture
def cells():
    """Squares of half a patch, 8 x 8 on 4 x 4 patches: an object with an outline, noise, nothing, everything."""
    visible = torch.zeros(4, 8, 8, dtype=torch.bool)
    visible[0, 1:6, 2:7] = True
    visible[1] = torch.rand(8, 8) < 0.3
    visible[3] = True
    return visible


def enlarge(cells, size):
    return F.interpolate(cells.float()[:, None], size)[:, 0] > 0


def refill(images, visible, value):
    return torch.where(enlarge(visible, images.shape[-2:])[:, None], images, value)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_hidden_pixels_have_no_influence_on_the_predictor(make_model, layout, cells, execution, training):
    name, size = layout
    patch = 14 if "14" in name else 16
    model = make_model(name, size, mask_resolution=patch // 2, execution=execution).train(training)
    images = torch.randn(4, 3, size, size)
    for mode in (None, *MODES):
        model.predictor.mask_gradient = mode or "none"
        gate = None if mode is None else cells.float().requires_grad_()
        expected = model.predictor(images, cells, gate)
        assert expected.isfinite().all()
        for value in FILLINGS:
            assert torch.equal(model.predictor(refill(images, cells, value), cells, gate), expected), (mode, value)
    # Visible pixels do have an influence.
    changed = torch.where(enlarge(cells, images.shape[-2:])[:, None], images + 1, images)
    differs = (model.predictor(changed, cells) != model.predictor(images, cells)).any(dim=1)
    assert differs.tolist() == [True, True, False, True]


@pytest.mark.parametrize("mode", MODES)
def test_hidden_pixels_receive_no_gradient_and_change_none(make_model, cells, mode):
    model = make_model(mask_resolution=8, mask_gradient=mode).train()
    images = torch.randn(4, 3, 64, 64)

    def gradients(pixels):
        model.zero_grad()
        pixels, gate = pixels.clone().requires_grad_(), cells.float().requires_grad_()
        F.cross_entropy(model.predictor(pixels, cells, gate), torch.arange(4)).backward()
        return [p.grad for p in model.predictor.parameters() if p.grad is not None], pixels.grad, gate.grad

    weights, pixels, gate = gradients(images)
    shown = enlarge(cells, (64, 64))[:, None].expand_as(images)
    assert not pixels[~shown].any()
    assert pixels[0][shown[0]].any()
    for value in FILLINGS:
        other_weights, other_pixels, other_gate = gradients(refill(images, cells, value))
        assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))
        assert not other_pixels[~shown].any()
        if mode == "none":
            assert gate is None
            assert other_gate is None
        elif mode == "visible":
            assert torch.equal(gate, other_gate)
        else:
            assert other_gate.isfinite().all()


def test_whole_model_with_given_pixels(make_model, images):
    model = make_model(mask_resolution=2)
    pixels = torch.zeros(4, 64, 64, dtype=torch.bool)
    pixels[:, 10:41, 21:57] = True
    expected = model(images, [UseMask(pixels)])
    assert expected.mask.shape == (4, 32, 32)
    # Cells of which at least half is visible.
    assert torch.equal(expected.mask[0, 5:20, 11:28], torch.ones(15, 17, dtype=torch.bool))
    for value in FILLINGS:
        changed = refill(images, expected.mask, value)
        found = model(changed, [UseMask(pixels)])
        assert torch.equal(found.mask, expected.mask)
        assert torch.equal(found.logits, expected.logits)


def test_the_gate_has_the_slope_of_what_is_shown(make_model, cells):
    """The gate of a visible cell: its patch's gate by its share, and `gate * pixel + (1 - gate) * blank` exactly."""
    model = make_model(mask_resolution=8, mask_gradient="visible").double()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    patches = visible_patches(cells, (4, 4))

    def loss(gate, patch_gates):
        shown = images * F.interpolate(gate[:, None], (64, 64))
        loss = F.cross_entropy(model.predictor(shown, patches, patch_gates), torch.arange(4))
        return loss if patch_gates is not None else loss.detach()

    gate = cells.double().requires_grad_()
    F.cross_entropy(model.predictor(images, cells, gate), torch.arange(4)).backward()
    patch_gates = patches.double().requires_grad_()
    (of_patch,) = torch.autograd.grad(loss(cells.double(), patch_gates), patch_gates)
    step = 1e-6
    for image, row, column in [(0, 1, 2), (0, 3, 4), (0, 5, 6), (3, 0, 0), (3, 7, 4)]:
        up, down = cells.double(), cells.double()
        up[image, row, column] += step
        down[image, row, column] -= step
        slope = (
            float((loss(up, None) - loss(down, None)) / (2 * step)) + float(of_patch[image, row // 2, column // 2]) / 4
        )
        assert float(gate.grad[image, row, column]) == pytest.approx(slope, abs=1e-8)
    hidden = ~cells
    hidden_of_visible = hidden & (F.interpolate(patches.float()[:, None], (8, 8))[:, 0] > 0)
    expected = F.interpolate(of_patch[:, None] / 4, (8, 8))[:, 0]
    assert torch.allclose(gate.grad[hidden_of_visible], expected[hidden_of_visible], atol=1e-12)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("edge_aware", [False, True])
def test_inference_is_deterministic_whatever_else_is_in_the_batch(make_model, images, edge_aware, execution):
    model = make_model(mask_resolution=2, edge_aware=edge_aware, execution=execution)
    expected = model(images)
    assert torch.equal(expected.gate, expected.mask.float())
    assert 0 < expected.mask.float().mean() < 1
    for i in range(4):
        alone = model(images[i : i + 1])
        assert torch.equal(alone.mask[0], expected.mask[i])
        torch.testing.assert_close(alone.logits[0], expected.logits[i], rtol=0, atol=1e-5)


def test_the_loss_reaches_the_selector(make_model, images):
    for mode in ("visible", "none"):
        model = make_model(mask_resolution=4, mask_gradient=mode).train()
        model(images).logits.sum().backward()
        gradient = model.selector.prototypes.grad
        assert (gradient is not None and bool(gradient.any())) == (mode == "visible")


def test_interventions_after_a_mask_of_pixels_still_hide(make_model, images):
    model = make_model(mask_resolution=2)
    everything = torch.ones(1, 64, 64, dtype=torch.bool)
    winners = model(images, [UseMask(everything)]).selection.winners
    out = model(images, [UseMask(everything), DropParts([0])])
    assert torch.equal(out.mask, enlarge(winners != 0, (32, 32)))
    assert not model(images, [UseMask(everything), DropParts([0, 1, 2])]).mask.any()


@pytest.mark.parametrize("edge_aware", [False, True])
@pytest.mark.parametrize("resolution", [2, 16])
def test_no_pixel_of_a_patch_that_an_intervention_hides_is_shown(make_model, images, edge_aware, resolution):
    model = make_model(mask_resolution=resolution, edge_aware=edge_aware)
    whole = model(images)
    for part in range(3):
        mask = model(images, [DropParts([part])]).mask
        assert not (mask & enlarge(whole.selection.winners == part, mask.shape[1:])).any()
    limits = whole.similarity[:, :3].amax(dim=(0, 2, 3))
    best = model(images, [DropUnsure(limits)])
    assert not (best.mask & enlarge(best.selection.winners == 3, best.mask.shape[1:])).any()


@pytest.mark.parametrize("edge_aware", [False, True])
@pytest.mark.parametrize("resolution", ["patch", 2])
def test_dropping_parts_takes_away_and_draws_nothing_again(make_model, images, edge_aware, resolution):
    model = make_model(mask_resolution=resolution, edge_aware=edge_aware)
    whole = model(images)
    for part in range(3):
        mask = model(images, [DropParts([part])]).mask
        assert not (mask & ~whole.mask).any()
        others = enlarge((whole.selection.winners != part) & (whole.selection.winners != 3), mask.shape[1:])
        assert torch.equal(mask & others, whole.mask & others)
        assert (mask != whole.mask).any()


@pytest.mark.parametrize("edge_aware", [False, True])
@pytest.mark.parametrize("change", [-1e-3, -torch.inf], ids=["just so", "by far"])
def test_no_pixel_of_a_patch_that_an_intervention_of_the_user_hides_is_shown(make_model, images, edge_aware, change):
    """One that only lowers the logits of parts, in a corner, below the background's."""
    model = make_model(mask_resolution=2, edge_aware=edge_aware)
    whole = model(images)
    corner = torch.zeros_like(whole.selection.winners, dtype=torch.bool)
    corner[:, :2, :2] = True
    assert (whole.mask & enlarge(corner, (32, 32))).any()

    def lower(selection):
        logits = selection.assignment_logits
        parts = torch.where(corner[:, None], logits[:, -1:] + change, logits[:, :-1])
        return replace(selection, assignment_logits=torch.cat([parts, logits[:, -1:]], dim=1))

    hidden = enlarge(corner & (whole.selection.winners != 3), (32, 32))
    mask = model(images, [lower]).mask
    assert not (mask & hidden).any()
    assert not (mask & ~whole.mask).any()


def test_an_intervention_of_the_user_can_show_patches(make_model, images):
    model = make_model(mask_resolution=2)
    whole = model(images)
    background = whole.selection.winners == 3
    assert background.any()

    def show(selection):
        logits = selection.assignment_logits.clone()
        logits[:, 0] = torch.where(background, torch.inf, logits[:, 0])
        return replace(selection, assignment_logits=logits)

    out = model(images, [show])
    assert out.gate.isfinite().all()
    assert out.logits.isfinite().all()
    shown = enlarge(background, (32, 32))
    assert (out.mask & shown).float().sum() > (whole.mask & shown).float().sum()
    assert torch.equal(out.mask & ~shown, whole.mask & ~shown)


def test_squares_as_large_as_patches_take_a_mask_of_pixels(make_model, images):
    model = make_model(mask_resolution=16)
    pixels = torch.zeros(4, 64, 64, dtype=torch.bool)
    pixels[:, 16:48, 16:40] = True
    expected = torch.zeros(4, 4, 4, dtype=torch.bool)
    expected[:, 1:3, 1:3] = True
    assert torch.equal(model(images, [UseMask(pixels)]).mask, expected)
    assert torch.equal(model(images, [UseMask(expected)]).mask, expected)


def test_a_patch_with_too_few_visible_cells_is_hidden(make_model, images):
    model = make_model(mask_resolution=4)
    pixels = torch.zeros(4, 64, 64, dtype=torch.bool)
    pixels[:, :4, :4] = True  # 1 of 16 cells
    pixels[:, 32:36, 32:40] = True  # 2 of 16
    mask = model(images, [UseMask(pixels)]).mask
    assert mask.sum(dim=(1, 2)).tolist() == [2] * 4
    assert mask[:, 8, 8:10].all()


@pytest.mark.parametrize("value", [3, 32])
def test_squares_that_do_not_divide_a_patch_are_named(make_model, value):
    with pytest.raises(IfamError, match=r"mask_resolution is .*use 1, 2, 4, 8.* or 'patch'"):
        make_model(mask_resolution=value)


@pytest.mark.parametrize("method", ["late_mask", "soft_mask", "selector", "plain_vit"])
def test_methods_that_do_not_mask_their_input_keep_patches(make_model, images, method):
    config = make_model(mask_resolution=2).config
    out = build(method, config, pretrained=False).eval()(images)
    assert out.mask is None or out.mask.shape == (4, 4, 4)


def test_the_true_mask_by_pixels(make_model, images):
    model = build("given_mask", make_model(mask_resolution=1).config, pretrained=False).eval()
    masks = torch.zeros(4, 64, 64, dtype=torch.bool)
    masks[:, 20:40, 9:50] = True
    expected = model(images, masks=masks).logits
    assert torch.equal(model(torch.where(masks[:, None], images, torch.nan), masks=masks).logits, expected)


def test_saved_and_loaded_again(make_model, images, tmp_path):
    model = make_model(mask_resolution=2)
    model.save_pretrained(tmp_path)
    again = IFAM.from_pretrained(tmp_path)
    assert again.config.mask_resolution == 2
    assert torch.equal(again(images).logits, model(images).logits)


def test_a_mask_of_another_grid_is_refused(make_model, images):
    fine, coarse = make_model(mask_resolution=2), make_model()
    with pytest.raises(IfamError, match=r"\[4, 4, 4\] is expected"):
        coarse(images, [UseMask(torch.ones(4, 64, 64, dtype=torch.bool))])
    with pytest.raises(IfamError, match=r"\[4, 32, 32\] for its squares"):
        fine(images, [UseMask(torch.ones(4, 48, 48, dtype=torch.bool))])
    with pytest.raises(IfamError, match=r"torch\.bool is expected"):
        fine(images, [UseMask(torch.ones(4, 64, 64))])
    with pytest.raises(IfamError, match=r"\[4, 4, 4\] or"):
        fine.predictor(images, torch.ones(4, 16, 16, dtype=torch.bool))


def test_a_mask_of_pixels_cannot_be_taken_for_one_of_patches(make_model):
    """Sixteen images of sixteen patches, and sixteen by sixteen squares: two dimensions are [B, P], for any batch."""
    model = make_model(mask_resolution=4)
    images, given = torch.randn(16, 3, 64, 64), torch.rand(16, 16) > 0.5
    assert torch.equal(model(images, [UseMask(given)]).mask, enlarge(given.view(16, 4, 4), (16, 16)))
    assert torch.equal(model(images, [UseMask(given[None])]).mask, drop_sparse(given.expand(16, 16, 16), (4, 4)))
    with pytest.raises(IfamError, match=r"\(a mask of pixels has three dimensions: give `mask\[None\]`\)"):
        model(images[:4], [UseMask(given)])


def test_an_outline_follows_the_edges_of_the_image():
    """A patch is half object: interpolated, the outline is round; guided, it is that of the image."""
    truth = torch.zeros(1, 64, 64, dtype=torch.bool)
    truth[:, 20:45, 13:50] = True
    image = torch.where(truth[:, None], 1.0, -1.0).expand(1, 3, 64, 64) + 0.05 * torch.randn(1, 3, 64, 64)
    foreground = F.avg_pool2d(truth.float()[:, None], 16)
    logits = torch.cat([foreground - 0.5, torch.zeros_like(foreground)], dim=1) * 8
    error = {}
    for guide in (None, image):
        mask = cell_mask(logits, foreground[:, 0], (64, 64), (4, 4), guide)
        error[guide is not None] = int((mask.visible ^ truth).sum())
    assert error[True] < 0.5 * error[False]


def test_a_flat_image_guides_nothing():
    values = torch.rand(1, 1, 16, 16)
    guided = guided_filter(values, torch.ones(1, 3, 16, 16), 2, 1e-3)
    inner = F.avg_pool2d(F.avg_pool2d(values, 5, 1), 5, 1)
    torch.testing.assert_close(guided[:, :, 4:-4, 4:-4], inner, rtol=0, atol=1e-5)


def test_blanked_pixels_are_replaced_and_not_multiplied():
    images = torch.full((1, 3, 4, 4), torch.nan)
    images[..., :2, :2] = 5.0
    visible = torch.tensor([[[True, False], [False, False]]])
    shown = blank_hidden(images, visible)
    assert torch.equal(shown[..., :2, :2], images[..., :2, :2])
    assert shown.sum() == 3 * 4 * 5.0
    gate = patch_gate(visible.float(), torch.ones(1, 1, 1, dtype=torch.bool))
    assert gate.tolist() == [[[1.0]]]
