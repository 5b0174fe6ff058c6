"""Stage 2: class logits from the visible patches."""

from itertools import product

import pytest
import torch
from benchmarks.measure import flop_counter

from ifam.errors import IfamError

MODES = ["full", "visible", "none"]
EXECUTIONS = ["auto", "padded", "packed", "dense"]


@pytest.fixture
def layout_predictor(make_model, layout):
    """The predictor of each layout, with images of its size."""
    predictor = make_model(*layout).predictor.double()
    return predictor, torch.randn(4, 3, *predictor.backbone.image_size, dtype=torch.float64)


@pytest.mark.slow
def test_logits_equal_the_oracle(layout_predictor, mask, gated_logits):
    predictor, images = layout_predictor
    rows = slice(None) if predictor.backbone.has_class_token else [0, 2, 3]  # nothing to attend to in row 1
    images, mask = images[rows], mask[rows]
    expected = gated_logits(predictor, images, mask.flatten(1).double(), mask)
    for execution in EXECUTIONS:
        predictor.execution = execution
        torch.testing.assert_close(predictor(images, mask), expected, rtol=0, atol=1e-10)


def test_everything_visible_is_the_plain_transformer(layout_predictor):
    predictor, images = layout_predictor
    tokens = predictor.backbone(images)
    pooled = tokens[:, 0] if predictor.backbone.has_class_token else tokens.mean(dim=1)
    expected = predictor.head(predictor.norm(pooled))
    torch.testing.assert_close(predictor(images, torch.ones(4, 16, dtype=torch.bool)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_value_is_the_same_in_every_mode_and_with_or_without_gate(layout_predictor, mask, mode):
    predictor, images = layout_predictor
    plain = predictor(images, mask)
    predictor.mask_gradient = mode
    gated = predictor(images, mask, mask.double().requires_grad_())
    torch.testing.assert_close(gated, plain, rtol=0, atol=1e-10)
    with torch.no_grad():
        assert torch.equal(predictor(images, mask, mask.double().requires_grad_()), plain)


@pytest.mark.slow
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_parameter_gradients_equal_the_oracle(layout_predictor, mask, gated_logits, mode, execution):
    predictor, images = layout_predictor
    predictor.mask_gradient, predictor.execution = mode, execution
    rows = slice(None) if predictor.backbone.has_class_token else [0, 2, 3]
    images, mask = images[rows], mask[rows]
    parameters = dict(predictor.named_parameters())
    weight = torch.randn(len(images), 5, dtype=torch.float64)

    def gradients(logits):
        return torch.autograd.grad((logits * weight).sum(), list(parameters.values()), allow_unused=True)

    actual = gradients(predictor(images, mask, mask.double().requires_grad_()))
    oracle = gradients(gated_logits(predictor, images, mask.flatten(1).double(), mask))
    for name, ours, theirs in zip(parameters, actual, oracle, strict=True):
        if ours is None:  # what is only in timm's pooling is used by neither
            assert theirs is None, name
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_rows_with_nothing_visible_are_finite_in_value_and_gradient(make_model, layout, mask, mode, execution):
    predictor = make_model(*layout).predictor
    predictor.mask_gradient, predictor.execution = mode, execution
    images = torch.randn(4, 3, *predictor.backbone.image_size)
    for chosen in (mask, torch.zeros_like(mask)):
        gate = chosen.float().requires_grad_()
        logits = predictor(images, chosen, gate)
        assert logits.isfinite().all()
        gradients = torch.autograd.grad(logits.square().sum(), [gate, *predictor.parameters()], allow_unused=True)
        assert all(g.isfinite().all() for g in gradients if g is not None)


def test_mask_and_gate_as_grid_or_as_row(tiny_model, images, mask):
    predictor = tiny_model.predictor
    expected = predictor(images, mask)
    assert torch.equal(predictor(images, mask.flatten(1)), expected)
    grads = []
    for shape in ((4, 4, 4), (4, 16)):
        gate = mask.float().view(shape).requires_grad_()
        predictor(images, mask, gate).square().sum().backward()
        assert gate.grad.shape == shape
        grads.append(gate.grad.flatten(1))
    assert torch.equal(*grads)


@pytest.mark.slow
def test_a_batch_of_one_and_of_none(tiny_model, images, mask):
    predictor = tiny_model.predictor
    for execution, mode in product(EXECUTIONS, MODES):
        predictor.execution, predictor.mask_gradient = execution, mode
        single = predictor(images[:1], mask[:1], mask[:1].float().requires_grad_())
        torch.testing.assert_close(single, predictor(images, mask)[:1], rtol=0, atol=1e-5)
        assert predictor(images[:0], mask[:0], mask[:0].float().requires_grad_()).shape == (0, 5)


@pytest.mark.slow
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(tiny_model, images, mask, mode, dtype, execution):
    predictor = tiny_model.predictor.train()
    predictor.mask_gradient, predictor.execution = mode, execution
    gate = mask.float().requires_grad_()
    exact = predictor(images, mask)
    with torch.autocast("cpu", dtype=dtype):
        logits = predictor(images, mask, gate)
    assert logits.dtype == dtype
    assert (logits - exact).norm() < 0.05 * exact.norm()
    logits.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in predictor.parameters())
    if mode != "none":
        low, gate.grad = gate.grad, None
        predictor(images, mask, gate).sum().backward()
        assert (low - gate.grad).norm() < 0.1 * gate.grad.norm()


@pytest.mark.parametrize("mode", MODES)
def test_low_precision_weights(tiny_model, images, mask, mode):
    predictor = tiny_model.predictor.bfloat16()
    predictor.mask_gradient = mode
    logits = predictor(images.bfloat16(), mask, mask.bfloat16().requires_grad_())
    logits.sum().backward()
    assert logits.dtype == torch.bfloat16
    assert all(p.grad.isfinite().all() for p in predictor.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_stochastic_depth(make_model, images, mask, mode):
    predictor = make_model(backbone_kwargs={"drop_path_rate": 0.5}, mask_gradient=mode).predictor
    exact = predictor(images, mask)
    predictor.train()
    gate = mask.float().requires_grad_()
    logits = predictor(images, mask, gate)
    assert not torch.allclose(logits, exact)
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in predictor.parameters() if p.grad is not None)


def test_stochastic_depth_cannot_be_packed(make_model, images, mask):
    """Packed images share a row, and stochastic depth drops rows."""
    predictor = make_model(backbone_kwargs={"drop_path_rate": 0.5}, execution="packed").predictor
    assert predictor(images, mask).isfinite().all()
    with pytest.raises(IfamError, match="execution='packed' puts all images into one row"):
        predictor.train()(images, mask)


@pytest.mark.slow
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_the_last_block_computes_what_is_read_and_the_same_as_if_it_computed_all(tiny_model, images, mask, execution):
    """One query an image in the last block; all, and the same answer, where a hook wants the whole block."""
    predictor = tiny_model.predictor
    predictor.execution = execution
    last = predictor.backbone.vit.blocks[-1]
    asked = []
    projection = last.attn.proj.register_forward_pre_hook(lambda _, args: asked.append(args[0].shape[:2].numel()))
    listened = predictor(images, mask)
    assert asked[0] > 4
    projection.remove()
    with flop_counter() as counter:
        logits = predictor(images, mask)
    torch.testing.assert_close(logits, listened, rtol=0, atol=1e-5)
    handle = last.register_forward_hook(lambda *_: None)
    with flop_counter() as whole:
        predictor(images, mask)
    handle.remove()
    assert counter.get_total_flops() < 0.8 * whole.get_total_flops()  # of two blocks and the patch embedding


def test_inference_mode(tiny_model, images, mask):
    expected = tiny_model.predictor(images, mask)
    with torch.inference_mode():
        for mode in MODES:
            tiny_model.predictor.mask_gradient = mode
            logits = tiny_model.predictor(images, mask, mask.float())
            assert torch.equal(logits, expected)


@pytest.mark.parametrize("shape", [(4, 5, 4), (2, 4, 4), (4, 15), (4, 1, 4, 4), (4, 4), (4,)], ids=str)
def test_a_mask_of_another_shape_is_named(tiny_model, images, shape):
    with pytest.raises(IfamError) as error:
        tiny_model.predictor(images, torch.ones(shape, dtype=torch.bool))
    assert f"mask has shape {list(shape)}, but [4, 4, 4] or [4, 16] is expected" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8], ids=str)
def test_a_mask_that_is_not_binary(tiny_model, images, dtype):
    with pytest.raises(IfamError, match=rf"mask is {dtype}, but torch.bool is expected"):
        tiny_model.predictor(images, torch.ones(4, 4, 4, dtype=dtype))


def test_a_gate_of_another_shape(tiny_model, images, mask):
    with pytest.raises(IfamError, match=r"gate has shape \[4, 15\], but the mask has \[4, 4, 4\]"):
        tiny_model.predictor(images, mask, torch.ones(4, 15))


def test_images_of_another_shape(tiny_model, mask):
    with pytest.raises(IfamError, match=r"images have shape \[4, 3, 80, 80\]"):
        tiny_model.predictor(torch.randn(4, 3, 80, 80), mask)
