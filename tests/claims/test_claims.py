"""The method's promises, one test each."""

from dataclasses import fields
from itertools import product

import pytest
import timm
import torch

from ifam.models.interventions import DropParts, DropUnsure, KeepParts, UseMask
from ifam.models.masking import make_mask

MODES = ["full", "visible", "none"]
EXECUTIONS = ["padded", "packed", "dense"]
FILLINGS = ["nan", "inf", "-inf", "1e30", "noise", "another image", "mixed"]


def _refill(images, mask, filling):
    """The images with other pixels in the hidden patches, and True for every hidden pixel."""
    size = images.shape[-1] // mask.shape[-1]
    hidden = ~mask.repeat_interleave(size, dim=1).repeat_interleave(size, dim=2)[:, None].expand_as(images)
    if filling == "noise":
        other = torch.randn_like(images) * 100
    elif filling == "another image":
        other = images.flip(0)
    elif filling == "mixed":
        choices = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, 0.0], dtype=images.dtype)
        other = choices[torch.randint(5, images.shape)]
    else:
        other = torch.full_like(images, float(filling))
    return torch.where(hidden, other, images), hidden


def everything(out):
    """All tensors of an output, by name."""
    given = vars(out) | vars(out.selection)
    return {name: value for name, value in given.items() if name != "selection" and value is not None}


@pytest.mark.parametrize(
    "execution", ["packed", *(pytest.param(e, marks=pytest.mark.slow) for e in ("padded", "dense"))]
)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_hidden_pixels_have_no_influence_on_the_predictor(make_model, layout, mask, execution, training):
    """Whatever hidden pixels hold, the predictor's logits keep every bit, however many patches are shown."""
    predictor = make_model(*layout).predictor.train(training)
    predictor.execution = execution
    images = torch.randn(4, 3, *predictor.backbone.image_size)
    for visible in (mask, mask.flip(0), torch.zeros_like(mask)):
        fillings = {filling: _refill(images, visible, filling)[0] for filling in FILLINGS}
        for mode in (None, *MODES):
            gate = None if mode is None else visible.float().requires_grad_()
            predictor.mask_gradient = mode or "none"
            expected = predictor(images, visible, gate)
            assert expected.isfinite().all()
            for filling, changed in fillings.items():
                assert torch.equal(predictor(changed, visible, gate), expected), (filling, mode)


@pytest.mark.slow
@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_hidden_pixels_have_no_influence_on_the_model(make_model, images, mask, filling, training):
    """With a given mask the whole model's answer keeps every bit, even where the selector says NaN."""
    for execution, mode in product(EXECUTIONS, MODES):
        kwargs = {} if execution == "packed" else {"drop_path_rate": 0.2}
        model = make_model(mask_gradient=mode, execution=execution, backbone_kwargs=kwargs).train(training)
        changed, _ = _refill(images, mask, filling)
        torch.manual_seed(3)
        expected = model(images, [UseMask(mask)])
        torch.manual_seed(3)
        found = model(changed, [UseMask(mask)])
        assert torch.equal(expected.mask, mask)
        assert torch.equal(found.mask, mask)
        assert torch.equal(found.logits, expected.logits)
        # The selector does see them: otherwise this test would compare an image with itself.
        assert not torch.equal(found.selector_logits[0], expected.selector_logits[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_hidden_pixels_have_no_influence_on_gradients(make_model, layout, mask, execution, mode):
    """The gradients of the predictor's weights, and of the gates of visible patches, keep every bit."""
    predictor = make_model(*layout).predictor.train()
    predictor.execution, predictor.mask_gradient = execution, mode
    images = torch.randn(4, 3, *predictor.backbone.image_size)

    def gradients(pixels):
        gate = mask.float().requires_grad_()
        predictor.zero_grad()
        torch.nn.functional.cross_entropy(predictor(pixels, mask, gate), torch.arange(4)).backward()
        return {name: p.grad for name, p in predictor.named_parameters() if p.grad is not None}, gate.grad

    weights, gate = gradients(images)
    assert all(gradient.isfinite().all() for gradient in weights.values())
    for filling in FILLINGS:
        other_weights, other_gate = gradients(_refill(images, mask, filling)[0])
        assert weights.keys() == other_weights.keys()
        for name, gradient in weights.items():
            assert torch.equal(gradient, other_weights[name]), (filling, name)
        if mode != "none":
            assert torch.equal(gate[mask], other_gate[mask]), filling
            assert other_gate.isfinite().all(), filling


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("filling", ["noise", "nan", "inf"])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_gradient_of_hidden_pixels_is_exactly_zero(make_model, layout, mask, execution, mode, filling):
    """No hidden pixel receives any gradient from the predictor, and visible ones do."""
    predictor = make_model(*layout).predictor
    predictor.execution, predictor.mask_gradient = execution, mode
    images, hidden = _refill(torch.randn(4, 3, *predictor.backbone.image_size), mask, filling)
    images.requires_grad_()
    predictor(images, mask, mask.float().requires_grad_()).square().sum().backward()
    assert (images.grad[hidden] == 0).all()
    assert (images.grad[~hidden] != 0).float().mean() > 0.99


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shown", ["some", "all", "nothing"])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_gradient_through_the_mask_is_the_formula(make_model, layout, mask, execution, mode, shown, gated_logits):
    """The gate's gradient is the derivative of attention with gated keys: of all, of visible, or none."""
    predictor = make_model(*layout).predictor.double()
    predictor.execution, predictor.mask_gradient = execution, mode
    if shown != "some":
        mask = torch.full_like(mask, shown == "all")
    if not predictor.backbone.has_class_token:
        if shown == "nothing":  # nothing attends where there is neither a prefix token nor a visible patch
            gate = mask.double().requires_grad_()
            logits = predictor(torch.randn(4, 3, *predictor.backbone.image_size).double(), mask, gate)
            (gradient,) = torch.autograd.grad(logits.sum(), gate, allow_unused=True)
            assert gradient is None or not gradient.any()
            return
        mask[1] = mask[3]
    images = torch.randn(4, 3, *predictor.backbone.image_size, dtype=torch.float64)
    labels = torch.arange(4)

    gate = mask.double().requires_grad_()
    torch.nn.functional.cross_entropy(predictor(images, mask, gate), labels).backward()

    oracle = mask.flatten(1).double().requires_grad_()
    torch.nn.functional.cross_entropy(gated_logits(predictor, images, oracle, mask), labels).backward()
    exact = oracle.grad.view_as(mask)
    assert (exact.abs() > 1e-6).all()
    if mode == "full":
        torch.testing.assert_close(gate.grad, exact, rtol=1e-7, atol=1e-10)
    elif mode == "visible":
        torch.testing.assert_close(gate.grad, exact * mask, rtol=1e-7, atol=1e-10)
    else:
        assert gate.grad is None


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_full_gradient_is_the_slope_seen_by_finite_differences(make_model, mask, gated_logits, execution):
    """At gates of 0 and 1, "full" predicts what a small change of any patch's gate does to the logits."""
    predictor = make_model("vit_small_patch14_reg4_dinov2", 56).predictor.double()
    predictor.mask_gradient, predictor.execution = "full", execution
    images = torch.randn(4, 3, 56, 56, dtype=torch.float64)
    weight = torch.randn(4, 5, dtype=torch.float64)
    gate = mask.double().requires_grad_()
    (predictor(images, mask, gate) * weight).sum().backward()
    step = 1e-6
    with torch.no_grad():
        for patch in range(16):
            nudge = torch.zeros(4, 16, dtype=torch.float64)
            nudge[:, patch] = step
            up, down = (
                (gated_logits(predictor, images, mask.flatten(1) + sign * nudge, mask) * weight).sum(dim=1)
                for sign in (1, -1)
            )
            slope = (up - down) / (2 * step)
            torch.testing.assert_close(gate.grad.flatten(1)[:, patch], slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_the_predictors_loss_reaches_the_selector_through_the_mask(make_model, images, mode, training):
    """The gradient arrives at prototypes and blocks of the selector in full and visible, nowhere in none."""
    model = make_model(mask_gradient=mode).train(training)
    out = model(images)
    assert out.mask.any()
    out.logits.square().sum().backward()
    assert model.selector.classifier.weight.grad is None  # by no other way than the mask
    assert model.selector.modulation.weight.grad is None
    reached = [model.selector.prototypes, model.selector.backbone.vit.blocks[0].attn.qkv.weight]
    for weight in reached:
        if mode == "none":
            assert weight.grad is None
        else:
            assert weight.grad.isfinite().all()
            assert weight.grad.abs().max() > 1e-6


@torch.no_grad()
def test_inference_is_deterministic(make_model, layout):
    """In evaluation mode nothing is random: every output keeps every bit under any seed."""
    model = make_model(*layout, part_dropout=0.9, mask_part_dropout=0.9)
    images = torch.randn(4, 3, *model.image_size)
    first = model(images)
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        again = model(images)
        assert torch.equal(state, torch.get_rng_state())  # not one random number is drawn
        for name, value in everything(first).items():
            assert torch.equal(value, everything(again)[name]), name


@pytest.mark.parametrize("execution", EXECUTIONS)
@torch.no_grad()
def test_an_answer_does_not_depend_on_the_batch(make_model, layout, execution):
    """An image gets the same mask and answer alone or among images with other visible counts."""
    model = make_model(*layout, execution=execution)
    images = torch.randn(6, 3, *model.image_size)
    out = model(images)
    counts = out.mask.flatten(1).sum(dim=1)
    assert len(counts.unique()) > 1
    for b in range(6):
        alone = model(images[b : b + 1])
        others = model(torch.cat([torch.randn(2, 3, *model.image_size), images[b : b + 1]]))
        for answer, row in ((alone, 0), (others, 2)):
            assert torch.equal(answer.mask[row], out.mask[b])
            torch.testing.assert_close(answer.logits[row], out.logits[b], rtol=0, atol=1e-5)
            torch.testing.assert_close(answer.selector_logits[row], out.selector_logits[b], rtol=0, atol=1e-5)


@torch.no_grad()
def test_an_empty_mask_has_a_defined_answer_and_a_flag(make_model, layout):
    """Where nothing is visible, every image gets the same finite answer, and the output says so."""
    model = make_model(*layout)
    images = torch.randn(4, 3, *model.image_size)
    out = model(images, [DropParts([0, 1, 2])])
    assert out.empty.all()
    assert out.logits.isfinite().all()
    # Kernels may round the rows of a batch differently.
    torch.testing.assert_close(out.logits, out.logits[:1].expand_as(out.logits), rtol=0, atol=1e-5)
    # The same one beside images of which something is visible.
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[1:, :2] = True
    mixed = model(images, [UseMask(mask)])
    assert mixed.empty.tolist() == [True, False, False, False]
    torch.testing.assert_close(mixed.logits[0], out.logits[0], rtol=0, atol=1e-5)
    assert not torch.allclose(mixed.logits[1], out.logits[0])


def test_no_class_is_swapped(tiny_model, images):
    """Both backbones are timm's own modules before and after a run, and the kernel is PyTorch's again."""
    kernel = torch.nn.functional.scaled_dot_product_attention
    query, key, value = torch.randn(3, 1, 2, 5, 8)
    attended = kernel(query, key, value)
    tiny_model.predictor.mask_gradient = "full"
    tiny_model.train()(images).logits.sum().backward()
    kwargs = {"img_size": 64, "num_classes": 0, "depth": 2, "embed_dim": 48, "num_heads": 3}
    expected = [(n, type(m)) for n, m in timm.create_model("vit_tiny_patch16_224", **kwargs).named_modules()]
    for stage in (tiny_model.selector, tiny_model.predictor):
        assert [(n, type(m)) for n, m in stage.backbone.vit.named_modules()] == expected
        assert all("forward" not in vars(m) for m in stage.modules())
    assert torch.nn.functional.scaled_dot_product_attention is kernel
    assert torch.equal(torch.nn.functional.scaled_dot_product_attention(query, key, value), attended)


@torch.no_grad()
def test_interventions_never_change_their_input(tiny_model, images):
    """Every tensor of a selection is the same, bit by bit, after any intervention has been applied to it."""
    selection = tiny_model.selector(images)
    before = {field.name: getattr(selection, field.name).clone() for field in fields(selection)}
    chain = [
        DropParts([1]),
        KeepParts([0, 2]),
        DropUnsure([0.0, 0.0, 0.0]),
        UseMask(torch.rand(4, 4, 4) > 0.5),
    ]
    for intervention in chain:
        assert not torch.equal(intervention(selection).assignment_logits, selection.assignment_logits)
        for name, value in before.items():
            assert torch.equal(getattr(selection, name), value), (intervention, name)


@torch.no_grad()
def test_training_samples_and_its_two_samples_are_independent(make_model, images):
    """In training, part maps and mask are two separate draws: each varies, and neither follows the other."""
    model = make_model(num_parts=1, mask_part_dropout=0.0)
    model.selector.prototypes.zero_()  # part or background with even odds everywhere: noise decides alone
    model.train()
    outs = [model(images) for _ in range(40)]
    maps = torch.stack([out.part_maps[:, 0] > out.part_maps[:, 1] for out in outs]).flatten().float()
    mask = torch.stack([out.mask for out in outs]).flatten().float()
    assert maps.mean() == pytest.approx(0.5, abs=0.05)
    assert mask.mean() == pytest.approx(0.5, abs=0.05)
    # 2560 independent pairs: the correlation has a standard deviation of 0.02.
    assert abs(torch.corrcoef(torch.stack([maps, mask]))[0, 1]) < 0.1


@torch.no_grad()
def test_noise_can_be_switched_off_in_training(make_model, images):
    """Without Gumbel noise and dropout, training mode gives the maps and masks of evaluation mode."""
    model = make_model(gumbel_noise=False, part_dropout=0.0, mask_part_dropout=0.0)
    expected = model(images)
    found = model.train()(images)
    for name, value in everything(expected).items():
        assert torch.equal(value, everything(found)[name]), name


@torch.no_grad()
def test_part_dropout_hides_whole_parts_in_training_only(make_model, images):
    """A dropped part's patches are hidden all together, and the gate of the rest stays exactly 1."""
    model = make_model(gumbel_noise=False, mask_part_dropout=0.5)
    # Prototypes of one length, far apart: most patches are one part's or the background's, without runner-up.
    model.selector.prototypes.copy_(20 * torch.nn.functional.normalize(model.selector.prototypes))
    selection = model.selector(images)
    winners, full = selection.winners, model.mask(selection).visible
    parts, background = selection.assignment_logits[:, :-1], selection.assignment_logits[:, -1:]
    alone = (parts >= background).sum(dim=1) == 1
    model.train()
    states = set()
    for _ in range(20):
        mask = model.mask(selection)
        assert torch.equal(mask.gate, mask.visible.float())
        assert not (mask.visible & ~full).any()
        for b in range(4):
            for k in range(3):
                own = mask.visible[b][(winners[b] == k) & alone[b]]
                assert own.all() or not own.any()
                states.update(own[:1].tolist())
    assert states == {True, False}
    model.eval()
    assert torch.equal(model.mask(selection).visible, full)


def test_a_tie_is_visible(make_model, images):
    """A patch that belongs to a part and to the background alike is shown."""
    model = make_model()
    with torch.no_grad():
        model.selector.prototypes.copy_(model.selector.prototypes[:1].expand(4, -1).clone())
    selection = model.selector(images)
    assert torch.equal(selection.assignment_logits[:, 0], selection.assignment_logits[:, -1])
    assert make_mask(selection).visible.all()
    assert model(images).mask.all()
