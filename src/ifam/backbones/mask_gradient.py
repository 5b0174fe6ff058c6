"""The gradient through a hard mask.

With a gate `m_j` in {0, 1} on each key, attention is `A_ij = m_j e^{s_ij} / sum_k m_k e^{s_ik}`. Its derivative
with respect to the gate, with `lse` taken over the visible keys, is

    dL/dm_j = sum over heads h and queries i of  exp(s_ij - lse_i) * (dO_i . v_j - dO_i . O_i)

and it is finite for a hidden key (`m_j = 0`) too: it is the first-order effect of unmasking the patch.

- A visible key: d log(m) = dm at m = 1, so its gate acts like a bias on the key, which is 0. The bias is one more
  dimension of the head, a constant in the query and the bias in the key: fused kernels then compute its gradient,
  and no attention mask is built.
- A hidden key: computed in the backward pass, from keys and values that the forward pass does not attend to
  (`HiddenGateGrad`).
"""

from collections.abc import Callable
from typing import Any

import torch

from ifam._typing import Bool, Float, Tensor

# Queries per chunk in the gradient of hidden keys, which bounds the memory of the attention weights.
_QUERY_CHUNK = 256


class HiddenGateGrad(torch.autograd.Function):
    """Identity on the output of attention; its backward pass also computes the gradient of the hidden gates.

    The keys and values of hidden patches are known in backward only: in each block they run after the visible ones.
    """

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, query: Tensor, key: Tensor, hidden_gate: Tensor, gate_grad: Callable[..., Tensor]
    ) -> Tensor:
        """Return the output unchanged.

        Args:
            ctx: Context of autograd.
            out: Output of attention [B, h, N, d].
            query: Queries that it came from.
            key: Visible keys that it came from.
            hidden_gate: Gates of the hidden keys, all 0; receive gradient.
            gate_grad: From query, key, out and the gradient of out to the gradient of the hidden gates.
        """
        ctx.save_for_backward(query, key, out)
        ctx.gate_grad = gate_grad
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the output unchanged, and that of the hidden gates."""
        query, key, out = ctx.saved_tensors
        return grads[0], None, None, ctx.gate_grad(query, key, out, grads[0]), None


def hidden_gate_grad(
    query: Float[Tensor, "B h N d"],
    key: Float[Tensor, "B h M d"],
    out: Float[Tensor, "B h N e"],
    grad: Float[Tensor, "B h N e"],
    hidden_key: Float[Tensor, "B h L d"],
    hidden_value: Float[Tensor, "B h L e"],
    real: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B L"]:
    """The derivative with respect to the gates of hidden keys (the formula at the top of this file).

    Args:
        query: Queries.
        key: Visible keys, which `lse` is over.
        out: Output of attention to the visible keys.
        grad: Gradient of that output.
        hidden_key: Keys of the hidden patches.
        hidden_value: Values of the hidden patches.
        real: False for keys that only pad the row.
    """
    dtype = query.dtype if query.dtype == torch.float64 else torch.float32
    q, k, o, g, hk, hv = (t.to(dtype) for t in (query, key, out, grad, hidden_key, hidden_value))
    q = q * q.shape[-1] ** -0.5
    gate_grad = hk.new_zeros(hk.shape[0], hk.shape[2])
    for rows in zip(*(t.split(_QUERY_CHUNK, dim=2) for t in (q, o, g)), strict=True):
        qi, oi, gi = rows
        scores = qi @ k.mT
        if real is not None:
            scores = scores.masked_fill(~real[:, None, None], -torch.inf)
        lse = scores.logsumexp(dim=-1, keepdim=True)
        # A query without any key has no weights and no gradient.
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)
        weights = (qi @ hk.mT - lse).exp()
        gate_grad += (weights * (gi @ hv.mT - (gi * oi).sum(dim=-1, keepdim=True))).sum(dim=(1, 2))
    # Hidden patches may hold non-finite pixels; their gradients are set to zero.
    return torch.nan_to_num(gate_grad, nan=0.0, posinf=0.0, neginf=0.0)
