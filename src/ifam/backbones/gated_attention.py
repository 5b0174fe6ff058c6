"""Attention over visible tokens, and the gradient that flows through a hard mask.

With a gate `m_j` in {0, 1} on each key, attention is `A_ij = m_j e^{s_ij} / sum_k m_k e^{s_ik}`. Its derivative
with respect to the gate, with `lse` taken over the visible keys, is

    dL/dm_j = sum over heads h and queries i of  exp(s_ij - lse_i) * (dO_i . v_j - dO_i . O_i)

and it is finite for a hidden key (`m_j = 0`) too: it is the first-order effect of unmasking the patch.

- A visible key: d log(m) = dm at m = 1, so its gate acts like a bias on the key, which is 0. The bias is one more
  dimension of the head, a constant in the query and the bias in the key: fused kernels then compute its gradient,
  and no attention mask is built.
- A hidden key: computed in the backward pass, from keys and values that the forward pass does not attend to
  (`HiddenGateGrad`).

timm's blocks call `scaled_dot_product_attention`; `OverrideSDPA` replaces that one function while a block runs, so no
block is rewritten. The memory layouts of the visible tokens are in `token_layout.py`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ifam._typing import Bool, Float, Tensor

# Fused GPU kernels need head sizes that are multiples of this.
_GPU_HEAD = 8
# Queries per chunk in the gradient of hidden keys, which bounds the memory of the attention weights.
_QUERY_CHUNK = 256


class OverrideSDPA(TorchFunctionMode):
    """While active, `scaled_dot_product_attention(query, key, value)` is the function given.

    Args:
        attend: From queries [B, h, N, d], keys and values [B, h, M, d] to [B, h, N, d].
    """

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.attend = attend

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # A call with an explicit scale comes from `attention` below: compiled code may run it while this is active.
        if func is F.scaled_dot_product_attention and "scale" not in (kwargs or {}):
            query, key, value = args
            return self.attend(query, key, value)
        return func(*args, **(kwargs or {}))


def attention(
    query: Float[Tensor, "B h N d"],
    key: Float[Tensor, "B h M d"],
    value: Float[Tensor, "B h M e"],
    real: Bool[Tensor, "B M"] | None = None,
    bias: Float[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B h N e"]:
    """Attention to the real keys, each with a bias on its logits.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        real: False for keys that nothing may attend to; all are real where it is None.
        bias: Added to the attention logits of each key; may need a gradient.
    """
    size, width = key.shape[-1], value.shape[-1]
    if bias is None:
        mask = None if real is None else real[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=size**-0.5)
    if real is not None:
        bias = bias.masked_fill(~real, -mask_fill_value(key.dtype))
    query, key, value = with_bias(query, key, value, bias)
    return F.scaled_dot_product_attention(query, key, value, scale=size**-0.5)[..., :width]


def with_bias(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The bias of each key [B, M] as one more dimension of heads [B, h, M, d], to be scaled by d ** -0.5."""
    size = key.shape[-1]
    # The value needs the same size as the key, or the fused kernel does not take it.
    extra = 1 if key.device.type == "cpu" else _GPU_HEAD - size % _GPU_HEAD
    scaled = (bias.to(key.dtype) * size**0.5)[:, None, :, None].expand(*key.shape[:3], 1)
    ones = query.new_ones(1).expand(*query.shape[:3], 1)
    return (
        F.pad(torch.cat([query, ones], dim=-1), (0, extra - 1)),
        F.pad(torch.cat([key, scaled], dim=-1), (0, extra - 1)),
        F.pad(value, (0, extra)),
    )


def mask_fill_value(dtype: torch.dtype) -> float:
    """A number large enough that a logit lowered by it has weight 0, but finite, so that its product with 0 is 0."""
    return 1e3 if dtype == torch.float16 else 1e30


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
