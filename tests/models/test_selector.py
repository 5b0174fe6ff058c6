"""Stage 1 against loops written from its equations."""

import math

import pytest
import torch

from ifam.models.interventions import DropParts, UseMask
from ifam.models.noise import gumbel_like
from ifam.models.selector import Selector, show_at_least


def _by_hand(patches, prototypes, weight, bias, classifier, temperature):
    """Every quantity of the selector for one image, from nested lists and plain arithmetic."""
    count, width, parts = len(patches), len(patches[0]), len(prototypes)
    logits = [[-sum((x[d] - a[d]) ** 2 for d in range(width)) for x in patches] for a in prototypes]
    maps = [[0.0] * count for _ in range(parts)]
    for p in range(count):
        top = max(logits[k][p] for k in range(parts))
        exps = [math.exp((logits[k][p] - top) / temperature) for k in range(parts)]
        for k in range(parts):
            maps[k][p] = exps[k] / sum(exps)
    pooled = [
        [sum(maps[k][p] * patches[p][d] for p in range(count)) / count for d in range(width)] for k in range(parts)
    ]
    flat = [value for row in pooled for value in row]
    mean = sum(flat) / len(flat)
    variance = sum((value - mean) ** 2 for value in flat) / len(flat)
    features = [
        [(pooled[k][d] - mean) / math.sqrt(variance + 1e-5) * weight[d][k] + bias[d][k] for d in range(width)]
        for k in range(parts)
    ]
    scores = [[sum(w[d] * features[k][d] for d in range(width)) for w in classifier] for k in range(parts - 1)]
    mean_scores = [sum(column) / (parts - 1) for column in zip(*scores, strict=True)]
    dots = [[sum(x[d] * a[d] for d in range(width)) for x in patches] for a in prototypes]
    return maps, features, scores, mean_scores, dots, logits


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_selection_equals_the_equations_by_hand(make_backbone, temperature):
    backbone = make_backbone(embed_dim=6, num_heads=1, depth=1, patch_size=32)  # 2 x 2 patches
    selector = Selector(backbone, num_parts=2, num_classes=3, temperature=temperature).double().eval()
    for weight in (selector.prototypes, *selector.modulation.parameters()):
        torch.nn.init.normal_(weight)
    patches = torch.randn(2, 4, 6, dtype=torch.float64)
    selection = selector.select(patches)
    for b in range(2):
        maps, features, scores, mean_scores, dots, logits = (
            torch.tensor(value, dtype=torch.float64)
            for value in _by_hand(
                patches[b].tolist(),
                selector.prototypes.tolist(),
                selector.modulation.weight.tolist(),
                selector.modulation.bias.tolist(),
                selector.classifier.weight.tolist(),
                temperature,
            )
        )
        torch.testing.assert_close(selection.part_maps[b].flatten(1), maps)
        torch.testing.assert_close(selection.part_features[b], features)
        torch.testing.assert_close(selection.part_scores[b], scores)
        torch.testing.assert_close(selection.selector_logits[b], mean_scores)
        torch.testing.assert_close(selection.similarity[b].flatten(1), dots)
        # The logits are the negative squared distances up to a constant of each patch.
        offset = selection.assignment_logits[b].flatten(1) - logits
        torch.testing.assert_close(offset, patches[b].square().sum(dim=1).expand(3, -1))
        assert torch.equal(selection.winners[b].flatten(), logits.argmax(dim=0))


def test_patches_are_in_row_major_order_and_prefix_tokens_left_out(make_model):
    model = make_model("vit_small_patch14_reg4_dinov2", 56)
    images = torch.randn(1, 3, 56, 56)
    tokens = model.selector.backbone(images)
    selection = model.selector(images)
    expected = tokens[0, 5 + 4 * 1 + 2] @ model.selector.prototypes[1]  # row 1, column 2
    torch.testing.assert_close(selection.similarity[0, 1, 1, 2], expected)


def test_noise_in_training_only(tiny_model, images):
    selector = tiny_model.selector
    assert torch.equal(selector(images).part_maps, selector(images).part_maps)
    selector.train()
    first, second = selector(images), selector(images)
    assert not torch.equal(first.part_maps, second.part_maps)
    assert torch.equal(first.assignment_logits, second.assignment_logits)
    torch.testing.assert_close(first.part_maps.sum(dim=1), torch.ones(4, 4, 4))
    selector.gumbel_noise = False
    assert torch.equal(selector(images).part_maps, selector(images).part_maps)


def test_part_dropout_drops_whole_parts_from_the_scores(make_model, images):
    model = make_model(part_dropout=0.5, num_parts=8, gumbel_noise=False)
    whole = model.selector(images).part_scores
    model.train()
    scores = torch.cat([model.selector(images).part_scores for _ in range(8)])
    dropped = (scores == 0).all(dim=2)
    assert torch.equal(dropped, (scores == 0).any(dim=2))
    assert 0.3 < dropped.float().mean() < 0.7
    # PyTorch's dropout keeps the expectation: what remains is scaled by 1 / (1 - p).
    torch.testing.assert_close(scores[~dropped], 2 * whole.repeat(8, 1, 1)[~dropped])


def test_gumbel_noise_has_the_right_distribution_and_is_finite():
    noise = gumbel_like(torch.empty(200_000))
    assert noise.isfinite().all()
    assert noise.mean() == pytest.approx(0.57722, abs=0.01)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.05)


def test_parts_are_computed_in_float32_under_autocast(tiny_model, images):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        selection = tiny_model.selector(images)
    assert {value.dtype for value in vars(selection).values()} == {torch.float32}


def test_one_part(make_model, images):
    selection = make_model(num_parts=1).selector(images)
    assert selection.part_maps.shape == (4, 2, 4, 4)
    torch.testing.assert_close(selection.selector_logits, selection.part_scores[:, 0])


# --- least visible patches -------------------------------------------------------------------------------


def visible(logits):
    return logits[:, :-1].amax(dim=1) >= logits[:, -1]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_each_image_shows_at_least_a_share_of_its_patches(share, scale):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 4, 5, 6, generator=generator) * scale
    # From none to all patches of an image belong to parts.
    logits[:, -1] += torch.linspace(-5, 5, 20)[:, None, None] * scale
    changed = show_at_least(share, logits)
    before, after = (visible(one).flatten(1) for one in (logits, changed))
    least = math.ceil(share * 30)
    assert torch.equal(after.sum(dim=1), before.sum(dim=1).clamp_min(least))
    # Those that are most like a part; the parts themselves are as they were.
    margin = (logits[:, :-1].amax(dim=1) - logits[:, -1]).flatten(1)
    for row, shown in zip(margin, after, strict=True):
        assert shown.all() or row[shown].min() > row[~shown].max()
    assert torch.equal(changed[:, :-1], logits[:, :-1])
    enough = before.sum(dim=1) >= least
    assert torch.equal(changed[enough], logits[enough])


@pytest.mark.parametrize(
    ("index", "value", "expected"),
    [
        (0, torch.nan, [1, 2]),
        (0, -torch.inf, [1, 2]),
        (0, torch.inf, [0, 2]),
        (1, torch.nan, [1, 2]),
        (1, -torch.inf, [0, 2]),
        (1, torch.inf, [1, 2]),
    ],
)
def test_a_logit_that_is_not_finite_matters_to_its_patch_only(index, value, expected):
    logits = torch.tensor([[1.0, 2.0, 3.0, 0.0], [9.0, 9.0, 9.0, 9.0]])
    logits[index, 0] = value
    shown = visible(show_at_least(0.5, logits[None, :, None]))
    assert shown.flatten().nonzero().flatten().tolist() == expected


def test_by_default_nothing_has_to_be_shown():
    logits = torch.randn(2, 3, 4, 4)
    assert show_at_least(0.0, logits) is logits


@pytest.mark.parametrize("selector_image_size", [None, 32, 48, 128])
@pytest.mark.parametrize("resolution", ["patch", 2, 16])
def test_the_predictor_is_shown_as_much_and_what_an_intervention_hides_stays_hidden(
    make_model, resolution, selector_image_size
):
    settings = {"mask_resolution": resolution, "selector_image_size": selector_image_size}
    model = make_model(num_parts=2, min_visible=0.2, **settings)
    with torch.no_grad():
        # Every patch is much more like the background.
        model.selector.prototypes[-1] = 0
        model.selector.prototypes[:-1] *= 10
    images = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out = model(images)
        assert (out.visible_fraction >= 0.2).all()
        assert torch.equal(out.gate, out.mask.float())
        assert model(images, [DropParts([0, 1])]).empty.all()
        assert model(images, [UseMask(torch.zeros_like(out.selection.winners, dtype=torch.bool))]).empty.all()
