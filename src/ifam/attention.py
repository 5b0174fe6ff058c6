"""Attention over visible tokens, and the gradient that flows through a hard mask.

With a gate `m_j` in {0, 1} on each key, attention is `A_ij = m_j e^{s_ij} / sum_k m_k e^{s_ik}`. Its derivative
with respect to the gate, with `lse` taken over the visible keys, is

    dL/dm_j = sum over heads h and queries i of  exp(s_ij - lse_i) * (dO_i . v_j - dO_i . O_i)

and it is finite for a hidden key (`m_j = 0`) too: it prices what showing that patch would have done.

timm's blocks call `scaled_dot_product_attention`; the modes below stand in for that one function while a block
runs, so that no block is rewritten and no class is swapped.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ifam._typing import Bool, Float, Int, Tensor


def gather_index(chosen: Bool[Tensor, "B P"]) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """Where the chosen patches of each image are, padded to the longest of the batch.

    Args:
        chosen: True for the patches wanted.

    Returns:
        Index of each chosen patch, in row-major order, and True where a slot holds one (False is padding).
    """
    counts = chosen.sum(dim=1)
    longest = int(counts.max()) if len(counts) else 0
    # A stable sort of False before True keeps the patches in order.
    index = torch.argsort(~chosen, dim=1, stable=True)[:, :longest]
    present = torch.arange(longest, device=chosen.device) < counts[:, None]
    return index, present


def take(values: Float[Tensor, "B P *D"], index: Int[Tensor, "B N"]) -> Float[Tensor, "B N *D"]:
    """`values[b, index[b, n]]` for every image and slot."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]


class _SDPAMode(TorchFunctionMode):
    """While active, `scaled_dot_product_attention` is `self.attend`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = args
            mask = (kwargs or {}).get("attn_mask")
            return self.attend(query, key, value, mask)
        return func(*args, **(kwargs or {}))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        raise NotImplementedError


class FirstKeys(_SDPAMode):
    """Every query attends to the first `count` keys only; keys and values of the rest are kept for later.

    The keys left out never enter the kernel, so a NaN in them cannot either.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.rest: tuple[Tensor, Tensor]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention to the first keys."""
        n = self.count
        self.rest = key[:, :, n:], value[:, :, n:]
        return F.scaled_dot_product_attention(query, key[:, :, :n], value[:, :, :n], attn_mask=mask)


class GatedKeys(_SDPAMode):
    """Attention over visible keys whose backward pass also prices the gates of visible and hidden keys.

    Args:
        gate: Gate of each visible key, all ones; receives gradient.
        hidden_gate: Gate of each hidden key, all zeros; receives gradient.
        hidden: Keys and values of the hidden patches, which take no part in the value.
    """

    def __init__(
        self, gate: Float[Tensor, "B N"], hidden_gate: Float[Tensor, "B M"], hidden: tuple[Tensor, Tensor]
    ) -> None:
        super().__init__()
        self.gate, self.hidden_gate, self.hidden = gate, hidden_gate, hidden

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention to the visible keys."""
        out: Tensor = _Gated.apply(query, key, value, mask, self.gate, self.hidden_gate, *self.hidden)
        return out


class _Gated(torch.autograd.Function):
    """`scaled_dot_product_attention` with the gate's derivative (the formula at the head of this file)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        gate: Tensor,
        hidden_gate: Tensor,
        hidden_key: Tensor,
        hidden_value: Tensor,
    ) -> Tensor:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        ctx.save_for_backward(query, key, value, mask, out, hidden_key, hidden_value)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, out, hidden_key, hidden_value = ctx.saved_tensors
        dtype = query.dtype if query.dtype == torch.float64 else torch.float32
        q, k, v, o, grad = (t.to(dtype) for t in (query, key, value, out, grads[0]))
        scale = q.shape[-1] ** -0.5

        scores = (q @ k.mT) * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        lse = scores.logsumexp(dim=-1, keepdim=True)
        # A query that sees no key at all has no weights, and no gradient either.
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)
        weights = (scores - lse).exp()
        mean = (grad * o).sum(dim=-1, keepdim=True)
        score_grad = weights * (grad @ v.mT - mean)

        hidden_weights = ((q @ hidden_key.to(dtype).mT) * scale - lse).exp()
        price = hidden_weights * (grad @ hidden_value.to(dtype).mT - mean)
        # A hidden patch whose pixels are not finite has no price; zero leaves the selector alone.
        hidden_grad = torch.nan_to_num(price.sum(dim=(1, 2)), nan=0.0, posinf=0.0, neginf=0.0)
        return (
            (score_grad @ k * scale).to(query.dtype),
            (score_grad.mT @ q * scale).to(key.dtype),
            (weights.mT @ grad).to(value.dtype),
            None,
            score_grad.sum(dim=(1, 2)),
            hidden_grad,
            None,
            None,
        )
