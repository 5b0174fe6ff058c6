"""Attention over visible tokens, in the place of timm's.

timm's blocks call `scaled_dot_product_attention`; `OverrideSDPA` stands in for that one function while a block runs, so
no block is rewritten and no class is swapped. The gate of a visible key rides along as a bias, which gives it its
gradient (`mask_gradient.py`); how the visible tokens lie in memory is decided in `token_layout.py`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ifam._typing import Bool, Float, Tensor

# Fused GPU kernels need head sizes that are multiples of this.
_GPU_HEAD = 8


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
    if _needs_plain(query, key, value, bias):
        return _plain_attention(query, key, value, real, bias)
    if bias is None:
        mask = None if real is None else real[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=size**-0.5)
    if real is not None:
        bias = bias.masked_fill(~real, -mask_fill_value(key.dtype))
    query, key, value = with_bias(query, key, value, bias)
    return F.scaled_dot_product_attention(query, key, value, scale=size**-0.5)[..., :width]


def _needs_plain(*tensors: Tensor | None) -> bool:
    """Whether no fused kernel is wanted: it is slow on a CPU in the backward pass in half precision.

    Exported graphs have none: there, rows in which nothing is visible must be numbers, too.
    """
    if torch.compiler.is_exporting():
        return True
    given = [t for t in tensors if t is not None]
    half = given[0].dtype in (torch.float16, torch.bfloat16)
    return given[0].device.type == "cpu" and half and torch.is_grad_enabled() and any(t.requires_grad for t in given)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, bias: Tensor | None) -> Tensor:
    """`attention` as matrix products, several times faster in that case."""
    logits = (query * key.shape[-1] ** -0.5) @ key.mT
    if bias is not None:
        logits = logits + bias.to(logits.dtype)[:, None, None]
    if real is not None:
        logits = logits.masked_fill(~real[:, None, None], -mask_fill_value(logits.dtype))
    weights = logits.softmax(dim=-1).to(value.dtype)
    out: Tensor = weights @ value
    return out


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
