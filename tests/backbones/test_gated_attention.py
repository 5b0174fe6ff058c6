"""Attention with gates on its keys: values, and gradients of visible and hidden gates."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from ifam.backbones.gated_attention import OverrideSDPA, attention, with_bias
from ifam.backbones.mask_gradient import HiddenGateGrad, hidden_gate_grad


def _attend(seed=0, batch=2, heads=2, visible=4, hidden=3, width=5):
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return torch.randn(batch, heads, count, width, dtype=torch.float64, generator=generator)

    return draw(visible), draw(visible), draw(visible), draw(hidden), draw(hidden)


def _explicit(query, key, value, gate):
    """Gated attention of every query, straight from the definition."""
    weights = gate[:, None, None, :] * (query @ key.mT / query.shape[-1] ** 0.5).exp()
    return (weights / weights.sum(dim=-1, keepdim=True)) @ value


def _gated(q, k, v, hk, hv, gate, hidden_gate, real=None):
    """Attention to visible keys, with the gradients of all gates."""
    out = attention(q, k, v, real, gate - gate.detach())

    def gate_grad(query, key, out, grad):
        return hidden_gate_grad(query, key, out, grad, hk, hv, real)

    return HiddenGateGrad.apply(out, q, k, hidden_gate, gate_grad)


def _gates(batch=2, visible=4, hidden=3):
    ones, zeros = torch.ones(batch, visible).double(), torch.zeros(batch, hidden).double()
    return ones.requires_grad_(), zeros.requires_grad_()


def test_while_attend_is_active_blocks_call_it_and_afterwards_the_kernel():
    q, k, v, *_ = _attend()
    with OverrideSDPA(lambda q, k, v: q + 1):
        assert torch.equal(F.scaled_dot_product_attention(q, k, v), q + 1)
        assert torch.equal(q + k, torch.add(q, k))  # nothing else is touched
        # Its own calls of the kernel are left alone, wherever they are made from.
        assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v, scale=5**-0.5))
    assert torch.equal(F.scaled_dot_product_attention(q, k, v), attention(q, k, v))


def test_a_bias_is_added_to_the_logits_of_its_key():
    q, k, v, *_ = _attend()
    bias = torch.randn(2, 4).double()
    mask = bias[:, None, None].expand(-1, -1, 4, -1)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attention(q, k, v, bias=bias), expected, rtol=0, atol=1e-12)
    assert [t.shape[-1] for t in with_bias(q, k, v, bias)] == [6, 6, 6]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_keys_that_are_not_real_have_exactly_no_weight(dtype, biased):
    q, k, v, *_ = (t.to(dtype) for t in _attend())
    real = torch.tensor([[True, True, False, False], [True, True, True, False]])
    bias = torch.zeros(2, 4, dtype=dtype, requires_grad=True) if biased else None
    out = attention(q, k, v, real, bias)
    other_k, other_v = (torch.where(real[:, None, :, None], t, 100 * torch.randn_like(t)) for t in (k, v))
    assert torch.equal(attention(q, other_k, other_v, real, bias), out)
    torch.testing.assert_close(out[:1], attention(q[:1], k[:1, :, :2], v[:1, :, :2]), rtol=1e-2, atol=1e-2)
    if biased:
        attention(q, k, v, real, bias).square().sum().backward()
        assert bias.grad.isfinite().all()
        assert not bias.grad[~real].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_gradients_in_half_precision(dtype, biased):
    """On a processor it has a way of its own to be trained."""
    exact = [t.detach() for t in _attend()[:3]]
    real = torch.tensor([[True, True, False, False], [True, True, True, False]])
    weight, found = torch.randn_like(exact[0]), {}
    for kind in (torch.float64, dtype):
        inputs = [t.to(kind, copy=True).requires_grad_() for t in exact]
        bias = torch.zeros(2, 4, dtype=kind).requires_grad_() if biased else None
        out = attention(*inputs, real, bias)
        (out * weight.to(kind)).sum().backward()
        found[kind] = [out.detach().double(), *(t.grad.double() for t in [*inputs, *([bias] if biased else [])])]
    for expected, actual in zip(found[torch.float64], found[dtype], strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_gate_gradient_is_the_derivative_of_gated_attention():
    q, k, v, hk, hv = _attend()
    gate, hidden_gate = _gates()
    weight = torch.randn_like(q)
    (_gated(q, k, v, hk, hv, gate, hidden_gate) * weight).sum().backward()

    both = torch.cat([torch.ones(2, 4), torch.zeros(2, 3)], dim=1).double().requires_grad_()
    keys, values = torch.cat([k, hk], dim=2), torch.cat([v, hv], dim=2)
    (_explicit(q, keys, values, both) * weight).sum().backward()
    torch.testing.assert_close(torch.cat([gate.grad, hidden_gate.grad], dim=1), both.grad, rtol=0, atol=1e-12)


def test_gate_gradient_is_the_formula_term_by_term():
    q, k, v, hk, hv = _attend(batch=1, visible=3, hidden=2)
    gate, hidden_gate = _gates(1, 3, 2)
    do = torch.randn_like(q)
    out = _gated(q, k, v, hk, hv, gate, hidden_gate)
    out.backward(do)
    out = out.detach()
    keys, values = torch.cat([k, hk], dim=2)[0], torch.cat([v, hv], dim=2)[0]
    for j in range(5):
        total = 0.0
        for h in range(2):
            for i in range(3):
                lse = sum((q[0, h, i] @ k[0, h, n] / 5**0.5).exp() for n in range(3)).log()
                share = (q[0, h, i] @ keys[h, j] / 5**0.5 - lse).exp()
                total += share * (do[0, h, i] @ values[h, j] - do[0, h, i] @ out[0, h, i])
        gradient = gate.grad[0, j] if j < 3 else hidden_gate.grad[0, j - 3]
        assert gradient.item() == pytest.approx(float(total), abs=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_of_queries_keys_values_and_visible_gates(masked):
    q, k, v, hk, hv = _attend(visible=3)
    real = torch.tensor([[True, True, True], [True, False, True]]) if masked else None
    bias = torch.randn(2, 3).double()
    inputs = [t.clone().requires_grad_() for t in (q, k, v, bias)]
    assert torch.autograd.gradcheck(lambda q, k, v, b: attention(q, k, v, real, b), inputs)
    gate_grad = partial(hidden_gate_grad, hidden_key=hk, hidden_value=hv, real=real)
    hidden_gate = torch.zeros(2, 3).double()
    assert torch.autograd.gradcheck(
        lambda q, k, v: HiddenGateGrad.apply(attention(q, k, v, real), q, k, hidden_gate, gate_grad), inputs[:3]
    )


def test_gradients_do_not_depend_on_how_many_queries_are_held_at_once(monkeypatch):
    q, k, v, hk, hv = _attend(visible=7)
    grad, out = torch.randn_like(q), attention(q, k, v)
    expected = hidden_gate_grad(q, k, out, grad, hk, hv)
    monkeypatch.setattr("ifam.backbones.mask_gradient._QUERY_CHUNK", 2)
    torch.testing.assert_close(hidden_gate_grad(q, k, out, grad, hk, hv), expected, rtol=0, atol=1e-14)


def test_padding_gets_no_gradient_and_changes_none():
    q, k, v, hk, hv = _attend(batch=1)
    real = torch.tensor([[True, True, True, False]])
    grads = []
    for keys in (4, 3):
        gate, hidden_gate = _gates(1, keys)
        shown = k[:, :, :keys], v[:, :, :keys]
        _gated(q, *shown, hk, hv, gate, hidden_gate, real if keys == 4 else None).square().sum().backward()
        grads.append((gate.grad, hidden_gate.grad))
    assert grads[0][0][0, 3] == 0
    torch.testing.assert_close(grads[0][0][:, :3], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1])


def test_hidden_keys_that_are_not_finite_have_no_gradient():
    q, k, v, hk, hv = _attend()
    hk[0, :, 1], hv[1, :, 2] = torch.nan, torch.inf
    gate, hidden_gate = _gates()
    _gated(q, k, v, hk, hv, gate, hidden_gate).square().sum().backward()
    assert hidden_gate.grad[0, 1] == 0
    assert hidden_gate.grad[1, 2] == 0
    assert hidden_gate.grad.isfinite().all()
    assert (hidden_gate.grad != 0).sum() == 4


def test_queries_without_any_key_have_no_gradient():
    q, k, _, hk, hv = _attend()
    real = torch.tensor([True, False])[:, None].expand(2, 4)
    gradient = hidden_gate_grad(q, k, torch.zeros_like(q), torch.randn_like(q), hk, hv, real)
    assert gradient.isfinite().all()
    assert gradient[0].all()
    assert not gradient[1].any()
