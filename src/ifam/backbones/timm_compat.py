"""Everything that relies on timm's private names and on the internals of its blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, ParallelScalingBlock, VisionTransformer
from torch import nn
from torch.nn import functional as F

from ifam._typing import Float, Tensor

# timm's two families of vision transformers on plain patches; the second has rotary positions too.
Vit = VisionTransformer | Eva


def use_fused_attention(vit: Vit) -> None:
    """Make every block call `scaled_dot_product_attention`, which `OverrideSDPA` replaces."""
    for module in vit.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", True)  # noqa: B010 (mypy takes a module's attributes for tensors)


@contextmanager
def fused_attention(vit: Vit) -> Iterator[None]:
    """`use_fused_attention` within the block."""
    before = {module: module.fused_attn for module in vit.modules() if hasattr(module, "fused_attn")}
    use_fused_attention(vit)
    try:
        yield
    finally:
        for module, fused in before.items():
            setattr(module, "fused_attn", fused)  # noqa: B010 (as above)


def is_vit(model: nn.Module) -> bool:
    """Whether a model has a row of prefix tokens and patches of a grid, which runs through blocks."""
    embed = getattr(model, "patch_embed", None)
    return hasattr(model, "blocks") and hasattr(model, "num_prefix_tokens") and hasattr(embed, "grid_size")


def class_tokens(vit: nn.Module) -> int:
    """Number of first tokens that a classifier of timm reads: 2 where it was distilled, 0 where it pools patches."""
    if getattr(vit, "global_pool", "token") != "token":
        return 0
    return 2 if getattr(vit, "dist_token", None) is not None else 1


def input_of_last_attention(vit: Any) -> nn.Module:
    """The layer whose output the attention of the last block reads: its first norm, or else the block before."""
    last = vit.blocks[-1]
    if isinstance(last, Block | EvaBlock):
        return last.norm1
    if isinstance(last, ParallelScalingBlock):
        return last.in_norm
    layer: nn.Module = vit.blocks[-2] if len(vit.blocks) > 1 else vit.norm_pre
    return layer


@contextmanager
def layers_are_called(vit: Vit) -> Iterator[None]:
    """Within the block, timm computes linear layers by calling them, and reads no weights: they may be wrapped.

    Eva's attention reads those of `qkv` where it has biases of its own.
    """
    reading = [module for module in vit.modules() if getattr(module, "qkv_bias_separate", True) is False]
    for module in reading:
        module.qkv_bias_separate = True  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in reading:
            module.qkv_bias_separate = False  # type: ignore[assignment]


def keep_tokens_only(vit: Vit) -> None:
    """Remove timm's own pooling, which is unused here: its weights would receive no gradient.

    The norm that some models apply to the mean of their tokens (`fc_norm`) is applied to each token instead.
    """
    vit.attn_pool = None  # type: ignore[assignment]
    if isinstance(vit.norm, nn.Identity):
        vit.norm, vit.fc_norm = vit.fc_norm, nn.Identity()


def fill_buffers(model: nn.Module) -> None:
    """Compute the non-persistent buffers, such as rotary angles, of a model that was built on the meta device."""
    for module in model.modules():
        empty = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        for name, buffer in empty.items():
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
        if empty:
            # timm's method for this, in every module with such buffers.
            module.init_non_persistent_buffers()  # type: ignore[operator]


def drops_paths(vit: Vit) -> bool:
    """Whether residual branches are dropped per image (`drop_path_rate`, in training)."""
    return vit.training and any(isinstance(m, DropPath) and m.drop_prob for m in vit.modules())


def position_table(vit: Vit) -> tuple[Float[Tensor, "1 N D"], Tensor | None]:
    """Prefix tokens and the position of each patch, assembled by timm itself, which covers every layout of its tables.

    Returns:
        Prefix tokens, then positions; and rotary angles as timm gives them, None where the model is not rotary.
    """
    rows, columns = vit.patch_embed.grid_size
    blank = vit.patch_embed.proj.weight.new_zeros(1, rows * columns, vit.embed_dim)
    assembled: Any = vit._pos_embed(blank)
    return assembled if isinstance(assembled, tuple) else (assembled, None)


def rotates_halves(block: nn.Module) -> bool:
    """Whether the two coordinates of a rotated plane are half a head apart, and not adjacent."""
    return bool(getattr(block.attn, "rotate_half", False))


def supports_partial_queries(block: nn.Module) -> bool:
    """Whether `block_with_partial_queries` supports this block, and no forward hooks are registered."""
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())
    known = type(block) is Block and type(block.attn) is Attention and type(block.attn.qkv) is nn.Linear
    return known and not hooked and getattr(block.attn, "gate", None) is None


def block_with_partial_queries(
    block: Any, x: Float[Tensor, "B N D"], pick: Callable[[Tensor], Tensor]
) -> Float[Tensor, "B M D"]:
    """A block of timm whose outputs are computed for some tokens alone; every token is still a key.

    Args:
        block: A block that `supports_partial_queries` accepts.
        x: All tokens.
        pick: Picks tokens.
    """
    attn, normed = block.attn, block.norm1(x)
    width, bias = attn.num_heads * attn.head_dim, attn.qkv.bias
    heads = (attn.num_heads, attn.head_dim)
    queries = F.linear(pick(normed), attn.qkv.weight[:width], None if bias is None else bias[:width])
    keys_values = F.linear(normed, attn.qkv.weight[width:], None if bias is None else bias[width:])
    query = queries.unflatten(2, heads).transpose(1, 2)
    key, value = keys_values.unflatten(2, (2, *heads)).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(attn.q_norm(query), attn.k_norm(key), value)
    out = attn.proj_drop(attn.proj(attn.norm(out.transpose(1, 2).flatten(2))))
    y = pick(x) + block.drop_path1(block.ls1(out))
    tokens: Tensor = y + block.drop_path2(block.ls2(block.mlp(block.norm2(y))))
    return tokens
