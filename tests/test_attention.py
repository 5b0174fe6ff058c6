"""Gathering of visible patches, and attention whose backward pass prices the gates."""

import pytest
import torch
from torch.nn import functional as F

from ifam.attention import FirstKeys, GatedKeys, _Gated, gather_index, take


def test_gather_index_lists_the_chosen_in_order_and_pads():
    chosen = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    index, present = gather_index(chosen)
    assert index.shape == present.shape == (3, 3)
    assert [index[b][present[b]].tolist() for b in range(3)] == [[1, 3, 4], [4], []]
    # Padding points at patches that were not chosen, so that no chosen patch is counted twice.
    assert not chosen.gather(1, index)[~present].any()


@pytest.mark.parametrize("fill", [True, False])
def test_gather_index_of_all_and_of_none(fill):
    index, present = gather_index(torch.full((2, 4), fill))
    assert index.shape == (2, 4 if fill else 0)
    assert present.all()


def test_gather_index_of_an_empty_batch():
    index, present = gather_index(torch.zeros(0, 4, dtype=torch.bool))
    assert index.shape == present.shape == (0, 0)


def test_take_picks_per_image():
    values = torch.arange(24.0).view(2, 4, 3)
    index = torch.tensor([[3, 0], [1, 1]])
    expected = torch.stack([values[0, [3, 0]], values[1, [1, 1]]])
    assert torch.equal(take(values, index), expected)
    assert torch.equal(take(values[..., 0], index), expected[..., 0])


def _attend(seed=0, batch=2, heads=2, visible=4, hidden=3, width=5):
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return torch.randn(batch, heads, count, width, dtype=torch.float64, generator=generator)

    return draw(visible), draw(visible), draw(visible), draw(hidden), draw(hidden)


def _explicit(query, key, value, gate):
    """Gated attention of every query, straight from the definition."""
    weights = gate[:, None, None, :] * (query @ key.mT / query.shape[-1] ** 0.5).exp()
    return (weights / weights.sum(dim=-1, keepdim=True)) @ value


def test_value_is_the_kernel_itself():
    q, k, v, hk, hv = _attend()
    with GatedKeys(torch.ones(2, 4).double(), torch.zeros(2, 3).double(), (hk, hv)):
        out = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v))


def test_gate_gradient_is_the_derivative_of_gated_attention():
    q, k, v, hk, hv = _attend()
    gate = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    hidden_gate = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(q)
    with GatedKeys(gate, hidden_gate, (hk, hv)):
        (F.scaled_dot_product_attention(q, k, v) * weight).sum().backward()

    both = torch.cat([torch.ones(2, 4), torch.zeros(2, 3)], dim=1).double().requires_grad_()
    keys, values = torch.cat([k, hk], dim=2), torch.cat([v, hv], dim=2)
    (_explicit(q, keys, values, both) * weight).sum().backward()
    torch.testing.assert_close(torch.cat([gate.grad, hidden_gate.grad], dim=1), both.grad, rtol=0, atol=1e-12)


def test_gate_gradient_is_the_formula_term_by_term():
    q, k, v, hk, hv = _attend(batch=1, visible=3, hidden=2)
    gate = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
    hidden_gate = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    do = torch.randn_like(q)
    out = _Gated.apply(q, k, v, None, gate, hidden_gate, hk, hv)
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
        found = gate.grad[0, j] if j < 3 else hidden_gate.grad[0, j - 3]
        assert found.item() == pytest.approx(float(total), abs=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_of_queries_keys_and_values(masked):
    q, k, v, hk, hv = _attend(visible=3)
    mask = torch.tensor([[True, True, True], [True, False, True]])[:, None, None] if masked else None
    gates = torch.ones(2, 3).double(), torch.zeros(2, 3).double()
    assert torch.autograd.gradcheck(
        lambda *qkv: _Gated.apply(*qkv, mask, *gates, hk, hv),
        [t.clone().requires_grad_() for t in (q, k, v)],
    )


def test_padding_gets_no_gradient_and_changes_none():
    q, k, v, hk, hv = _attend(batch=1)
    mask = torch.tensor([True, True, True, False])[None, None, None]
    grads = []
    for keys in (4, 3):
        gate = torch.ones(1, keys, dtype=torch.float64, requires_grad=True)
        hidden_gate = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
        m = mask if keys == 4 else None
        _Gated.apply(q, k[:, :, :keys], v[:, :, :keys], m, gate, hidden_gate, hk, hv).square().sum().backward()
        grads.append((gate.grad, hidden_gate.grad))
    assert grads[0][0][0, 3] == 0
    torch.testing.assert_close(grads[0][0][:, :3], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1])


def test_hidden_keys_that_are_not_finite_have_no_price():
    q, k, v, hk, hv = _attend()
    hk[0, :, 1], hv[1, :, 2] = torch.nan, torch.inf
    gate = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    hidden_gate = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    _Gated.apply(q, k, v, None, gate, hidden_gate, hk, hv).square().sum().backward()
    assert hidden_gate.grad[0, 1] == 0
    assert hidden_gate.grad[1, 2] == 0
    assert hidden_gate.grad.isfinite().all()
    assert (hidden_gate.grad != 0).sum() == 4


def test_queries_without_any_key_have_no_gradient():
    q, k, v, hk, hv = (t.requires_grad_() for t in _attend())
    mask = torch.tensor([True, False])[:, None, None, None].expand(2, 1, 1, 4)
    gate = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    hidden_gate = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    _Gated.apply(q, k, v, mask, gate, hidden_gate, hk, hv).sum().backward()
    for grad in (q.grad, k.grad, v.grad, gate.grad, hidden_gate.grad):
        assert grad.isfinite().all()
        assert not grad[1].any()


def test_first_keys_ignores_and_keeps_the_rest():
    q, k, v, hk, hv = _attend()
    everything = torch.cat([q, hk], dim=2), torch.cat([k, hk * torch.nan], dim=2), torch.cat([v, hv], dim=2)
    with FirstKeys(4) as mode:
        out = F.scaled_dot_product_attention(*everything)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(everything[0], k, v))
    assert mode.rest[0].isnan().all()
    assert torch.equal(mode.rest[1], hv)
    # Outside of the block the kernel is PyTorch's own again.
    assert F.scaled_dot_product_attention(*everything).isnan().all()
