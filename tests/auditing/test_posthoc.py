"""Explanations after the fact, on models that read one patch, and the figures that judge them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ifam.auditing import posthoc
from ifam.auditing.inputs import AuditInputs, compute_outputs
from ifam.auditing.posthoc import (
    attention_rollout,
    compare_explanations,
    energy,
    explainers,
    grad_cam,
    integrated_gradients,
    pointing,
    top_k_mask,
)
from ifam.models import attribution
from ifam.models.attribution import PatchClassifier, UnmaskedClassifier

extra = pytest.mark.skipif(not attribution.has_libraries(), reason="the extra `explain` is not installed")


class OnePatch(UnmaskedClassifier):
    """Class 0 is the brightness of patch (1, 2), class 1 is nothing."""

    def __init__(self):
        nn.Module.__init__(self)
        self.backbone = nn.Module()
        self.backbone.grid = (4, 4)
        self.backbone.patch_embed = SimpleNamespace(grid_size=(4, 4))
        self.weight = nn.Parameter(torch.ones(()))

    def as_patches(self):
        return PatchClassifier(self, self.backbone, self.backbone)

    def forward(self, images):
        first = self.weight * images[:, :, 16:32, 32:48].mean(dim=(1, 2, 3))
        return torch.stack([first, torch.zeros_like(first)], dim=1)


def test_a_map_is_cut_to_as_many_patches_as_the_mask_shows(mask):
    maps = torch.arange(16.0).view(1, 4, 4).repeat(4, 1, 1)
    kept = top_k_mask(maps, mask)
    assert kept.flatten(1).sum(dim=1).tolist() == [3, 0, 16, 8]
    assert kept[0].flatten().nonzero().flatten().tolist() == [13, 14, 15]
    # Equal heat is cut as well.
    assert top_k_mask(torch.ones(4, 4, 4), mask).flatten(1).sum(dim=1).tolist() == [3, 0, 16, 8]


def test_pointing_and_energy():
    truth = torch.zeros(2, 8, 8, dtype=torch.bool)
    truth[:, 2:4, 4:6] = True
    maps = torch.zeros(2, 4, 4)
    maps[0, 1, 2], maps[0, 0, 0] = 3.0, 1.0
    maps[1, 2, 1] = 1.0
    assert pointing(maps, truth) == 0.5
    covered = torch.nn.functional.avg_pool2d(truth.float()[:, None], 2)[:, 0]
    assert energy(maps, covered) == pytest.approx((0.75 + 0) / 2)
    # Maps without any heat count nowhere.
    maps[1] = 0
    assert energy(maps, covered) == pytest.approx(0.75)
    assert energy(torch.zeros(2, 4, 4), covered) == 0


@extra
def test_integrated_gradients_find_the_patch_that_is_read(images):
    maps = integrated_gradients(OnePatch(), images, torch.zeros(4, dtype=torch.long))
    assert (maps.flatten(1).argmax(dim=1) == 6).all()
    assert (maps.flatten(1).sum(dim=1) == maps[:, 1, 2]).all()


def test_the_whole_view_is_the_predictor_with_every_patch(make_model, layout):
    model = make_model(*layout)
    images = torch.randn(2, 3, *model.image_size)
    with torch.no_grad():
        everything = model.predictor(images, torch.ones(2, 4, 4, dtype=torch.bool))
        torch.testing.assert_close(UnmaskedClassifier(model.predictor)(images), everything, rtol=1e-4, atol=1e-5)


def test_rollout_is_a_share_of_attention(make_model, layout):
    """Attention that is the same everywhere rolls out evenly; of two uneven patches the attended one is hotter."""
    model = make_model(*layout)
    images = torch.randn(2, 3, *model.image_size)
    whole = UnmaskedClassifier(model.predictor)
    maps = attention_rollout(whole, images, torch.zeros(2, dtype=torch.long))
    assert maps.shape == (2, 4, 4)
    assert (maps > 0).all()
    assert (maps.flatten(1).sum(dim=1) <= 1 + 1e-5).all()
    assert maps.flatten(1).std(dim=1).min() > 0
    with torch.no_grad():
        for block in whole.backbone.vit.blocks:
            block.attn.qkv.weight[: 2 * whole.backbone.width] = 0
            if block.attn.qkv.bias is not None:
                block.attn.qkv.bias[: 2 * whole.backbone.width] = 0
    even = attention_rollout(whole, images, torch.zeros(2, dtype=torch.long))
    if whole.backbone.has_class_token:
        torch.testing.assert_close(even, even[:, :1, :1].expand_as(even))


@extra
def test_grad_cam_gives_a_map_of_patches(make_model, layout):
    model = make_model(*layout)
    images = torch.randn(2, 3, *model.image_size)
    maps = grad_cam(UnmaskedClassifier(model.predictor), images, torch.tensor([0, 3]))
    assert maps.shape == (2, 4, 4)
    assert (maps >= 0).all()
    assert not torch.equal(maps, grad_cam(UnmaskedClassifier(model.predictor), images, torch.tensor([1, 2])))
    assert all(parameter.grad is None for parameter in model.parameters())


@extra
def test_grad_cam_is_its_formula(make_model, layout):
    """Activations weighted by the mean of their gradients over patches, cut at 0, enlarged and averaged."""
    model = make_model(*layout)
    whole, images, answers = UnmaskedClassifier(model.predictor), torch.randn(2, 3, *model.image_size), [0, 3]
    seen = []
    last = whole.backbone.vit.blocks[-1]
    layer = last.norm1 if whole.backbone.has_class_token else last
    with layer.register_forward_hook(lambda module, args, out: seen.append(out)):
        scores = whole(images)[[0, 1], answers]
    (slope,) = torch.autograd.grad(scores.sum(), seen)
    values, slopes = (x.detach()[:, whole.backbone.num_prefix_tokens :] for x in (seen[0], slope))
    heat = (values * slopes.mean(dim=1, keepdim=True)).sum(dim=2).relu().view(2, 1, 4, 4)
    pixels = nn.functional.interpolate(heat, model.image_size, mode="bilinear")
    wanted = nn.functional.adaptive_avg_pool2d(pixels - pixels.amin(dim=(2, 3), keepdim=True), 4)[:, 0]
    computed = grad_cam(whole, images, torch.tensor(answers))
    # The scale of a map is free.
    scaled = [maps / maps.sum(dim=(1, 2), keepdim=True) for maps in (computed, wanted)]
    torch.testing.assert_close(*scaled)


def test_ifams_row_keeps_its_answers_by_construction(tiny_model, images):
    truth = torch.zeros(4, 64, 64, dtype=torch.bool)
    truth[:, :32] = True
    inputs = AuditInputs(images, torch.tensor([0, 1, 2, 3]), truth=truth)
    outputs = compute_outputs(tiny_model, images)
    comparison = compare_explanations(tiny_model, tiny_model.predictor, inputs, outputs, plain_name="here")
    assert [row.name for row in comparison.rows] == ["mask", *explainers()]
    own = comparison.rows[0]
    assert (own.agreement_removed, own.model) == (1.0, "iFAM")
    assert own.drop_removed == pytest.approx(0, abs=1e-6)
    assert own.energy_kept == pytest.approx(
        (outputs.mask[:, :2].flatten(1).sum(1) / outputs.mask.flatten(1).sum(1)).mean().item()
    )
    assert own.accuracy == (outputs.answers == inputs.labels).float().mean()
    for row in comparison.rows:
        assert row.kept == pytest.approx(outputs.mask.float().mean().item())
        assert row.seconds > 0
        assert 0 <= row.pointing <= 1
    # Heat without regard to the object is on it half of the time, for half of the image is object.
    assert next(row for row in comparison.rows if row.name == "random patches").energy == pytest.approx(0.5, abs=0.1)
    assert comparison.plain == "here"


def test_agreement_is_counted(tiny_model, images):
    """Where a mask shows everything, nothing is hidden and every answer stays; where it shows nothing, few do."""
    inputs, outputs = AuditInputs(images), compute_outputs(tiny_model, images)
    everything = type(outputs)(**{**vars(outputs), "mask": torch.ones_like(outputs.mask)})
    comparison = compare_explanations(tiny_model, tiny_model.predictor, inputs, everything)
    for row in comparison.rows[1:]:
        assert row.agreement_removed == row.agreement_grey == 1
        assert row.drop_removed == pytest.approx(0, abs=1e-5)
        assert row.pointing is row.energy is row.accuracy is None
    nothing = type(outputs)(**{**vars(outputs), "mask": torch.zeros_like(outputs.mask)})
    hidden = compare_explanations(tiny_model, tiny_model.predictor, inputs, nothing)
    prior = tiny_model.predictor(images, torch.zeros(4, 4, 4, dtype=torch.bool)).argmax(dim=1)
    whole = tiny_model.predictor(images, torch.ones(4, 4, 4, dtype=torch.bool)).argmax(dim=1)
    assert {row.agreement_removed for row in hidden.rows[1:]} == {(prior == whole).float().mean().item()}


def test_without_the_extra_it_says_how_to_get_it(tiny_model, images, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    attribution.has_libraries.cache_clear()
    monkeypatch.setattr(attribution, "import_module", missing)
    outputs = compute_outputs(tiny_model, images)
    comparison = compare_explanations(tiny_model, tiny_model.predictor, AuditInputs(images), outputs)
    assert [row.name for row in comparison.rows] == ["mask", "random patches", "attention rollout"]
    assert comparison.notes == (posthoc.MISSING,)
    assert "pip install 'ifam[explain]'" in posthoc.MISSING
    assert "\n" not in posthoc.MISSING
    attribution.has_libraries.cache_clear()
