"""One forward pass over the visible patches, which are gathered before they are embedded.

No pixel of a hidden patch enters a computation whose result is used. With `mask_gradient="full"`, hidden patches are
processed next to the visible ones, without gradient, as extra queries that are never keys.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ifam._typing import Bool, Float, Int, Tensor
from ifam.backbones.gated_attention import OverrideSDPA
from ifam.backbones.rotary import AttentionFn, Positions, with_rope
from ifam.backbones.timm_compat import (
    Vit,
    block_with_partial_queries,
    drops_paths,
    rotates_halves,
    supports_partial_queries,
)
from ifam.backbones.token_layout import Dense, HiddenTokens, Layout, Packed, Padded, Whole
from ifam.config import Execution
from ifam.errors import IfamError

# Which tokens are computed in the last block: all, the patches, or one pooled vector per image.
Queries = Literal["all", "patches", "pooled"]

# Lengths of padded rows are rounded up to a multiple of this when the blocks are compiled.
_BUCKET = 32
# On a CPU, packing is faster from this many tokens per image, where less than this share of padded rows would be real.
_MIN_TOKENS_TO_PACK, _MAX_PADDED_DENSITY = 24, 0.9


class MaskedPass:
    """A forward pass over the tokens of a layout, built once per call.

    Args:
        vit: The transformer.
        images: Images [B, 3, S1, S2] in the normalization that its weights expect.
        layout: Which patches are visible, and the memory layout of their tokens.
        sources: Index of the image of each row of the layout, if images have more rows than one.
    """

    def __init__(self, vit: Vit, images: Tensor, layout: Layout, sources: Int[Tensor, " B"] | None = None) -> None:
        self.vit, self.images, self.layout, self.sources = vit, images, layout, sources
        self.positions = Positions(vit)
        self.bias: Tensor | None = None
        self.hidden_gate: tuple[Tensor, Tensor] | None = None

    def add_bias(self, bias: Float[Tensor, "B P"]) -> None:
        """Add a value to the attention logits of each patch as a key; 0 for prefix tokens."""
        self.bias = self.layout.with_prefix(self.layout.gather(bias), 0.0)

    def add_gate(self, gate: Float[Tensor, "B P"]) -> None:
        """Let the gates of visible patches receive gradient: d log(m) = dm at m = 1, so each acts like a bias."""
        self.add_bias(gate - gate.detach())

    def add_hidden_gate(self, gate: Float[Tensor, "B P"], visible: Bool[Tensor, "B P"]) -> None:
        """Let the gates of hidden patches receive gradient: these patches are processed as extra queries."""
        self.hidden_gate = gate, ~visible

    def run(self, queries: Queries = "all") -> Tensor:
        """Tokens after the final norm.

        Args:
            queries: "all" gives a row for each image, padded to the longest; "patches" leaves out the prefix tokens;
                "pooled" gives one vector per image (see `Backbone.forward`).

        Returns:
            [B, N, D], or [B, D] where pooled.
        """
        pick: Callable[[Tensor], Tensor] | None = None
        if queries == "patches":
            pick = self._patches
        elif queries == "pooled" and self.vit.cls_token is not None:
            pick = self.layout.first
        x = self._embed(self.layout)
        # After the visible patches: within autocast, a weight that is cast without gradient first has none later.
        hidden = self._hidden_tokens()
        tokens: Tensor = self.vit.norm(self._blocks(x, hidden, pick))
        if queries == "patches":
            return tokens
        if pick is not None:
            return tokens.flatten(0, 1)
        rows, real = self.layout.rows(tokens)
        return rows if queries == "all" else pool(rows, real, self.vit)

    def _embed(self, layout: Layout) -> Tensor:
        """The embedded patches of a layout at their positions, after its prefix tokens."""
        embed = self.vit.patch_embed
        if isinstance(layout, Whole):
            # With channels last, the output of the convolution is laid out like the tokens.
            patches = embed(self.images.contiguous(memory_format=torch.channels_last))
        else:
            (rows, columns), (height, width) = embed.grid_size, embed.patch_size
            pixels = self.images.reshape(-1, 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5).flatten(3)
            chosen = layout.gather(pixels.flatten(1, 2), self.sources)
            patches = embed.norm(F.linear(chosen, embed.proj.weight.flatten(1), embed.proj.bias))
        tokens: Tensor = self.vit.norm_pre(self.positions.add_to(patches, layout))
        return tokens

    def _hidden_tokens(self) -> HiddenTokens | None:
        """The embedded hidden patches, without gradient, if their gates receive one."""
        if self.hidden_gate is None:
            return None
        gate, patches = self.hidden_gate
        layout = Packed(patches, 0) if isinstance(self.layout, Packed) else Padded(patches, 0)
        with torch.no_grad():
            x, angles = self._embed(layout), self.positions.per_block(layout)
        return HiddenTokens(x, layout, layout.gather(gate), angles)

    def _blocks(self, x: Tensor, hidden: HiddenTokens | None, pick: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Tokens after all blocks; of the last block, only the picked ones."""
        layout, last = self.layout, self.vit.blocks[-1]
        attend: AttentionFn | None = partial(layout.attend, bias=self.bias)
        if isinstance(layout, Whole) and self.bias is None:
            attend = None
        for number, (block, angles) in enumerate(zip(self.vit.blocks, self.positions.per_block(layout), strict=True)):
            if hidden is not None:
                attend = hidden.attend_with_gate_grad(layout, self.bias)
            x = self._block(block, x, angles, attend, pick if block is last else None)
            if hidden is not None:
                with torch.no_grad():
                    # Hidden outputs of the last block are unused, so they are skipped.
                    none = (lambda tokens: tokens[:, :0]) if block is last else None
                    hidden.x = self._block(block, hidden.x, hidden.angles[number], hidden.cross_attend, none)
        return x

    def _block(
        self,
        block: nn.Module,
        x: Tensor,
        angles: Tensor | None,
        attend: AttentionFn | None,
        pick: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """`_run_block`, with rotary angles where there are any, and gradient checkpointing where it is on."""
        if angles is not None:
            attend = with_rope(attend or self.layout.attend, angles, half=rotates_halves(block))
        if self.vit.grad_checkpointing and torch.is_grad_enabled():
            recomputed: Tensor = checkpoint(_run_block, block, x, attend, pick, use_reentrant=False)
            return recomputed
        return _run_block(block, x, attend, pick)

    def _patches(self, tokens: Tensor) -> Tensor:
        """The tokens of a row without its prefix tokens."""
        return tokens[:, self.layout.prefix :]


def _run_block(
    block: nn.Module, x: Tensor, attend: AttentionFn | None, pick: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Tokens after one block, or only the picked ones.

    Args:
        block: A block of timm.
        x: Its input tokens.
        attend: Replaces the block's own attention, unless it is None.
        pick: Picks tokens.
    """
    with nullcontext() if attend is None else OverrideSDPA(attend):
        if pick is not None and supports_partial_queries(block):
            return block_with_partial_queries(block, x, pick)
        tokens: Tensor = block(x)
    return tokens if pick is None else pick(tokens)


def pool(tokens: Float[Tensor, "B N D"], real: Bool[Tensor, "B N"] | None, vit: Vit) -> Float[Tensor, "B D"]:
    """The class token of each image, or without one the mean of its real patches (all, where `real` is None)."""
    if vit.cls_token is not None:
        return tokens[:, 0]
    if real is None:
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    patches = real[:, vit.num_prefix_tokens :, None]
    total = torch.where(patches, tokens[:, vit.num_prefix_tokens :], 0.0).sum(dim=1)
    return total / patches.sum(dim=1).clamp_min(1)


def choose_layout(
    vit: Vit, visible: Bool[Tensor, "B P"], execution: Execution, *, compiled: bool = False, several: bool = False
) -> Layout:
    """Choose the memory layout of the visible tokens.

    Args:
        vit: The transformer.
        visible: True for the patches to show.
        execution: As in `ifam.ModelConfig`.
        compiled: Whether the blocks are compiled, which rectangles of few sizes suit.
        several: Whether images have several rows, such as one for each part, of which many are short or empty.

    Raises:
        IfamError: `execution` is "packed", but the transformer drops residual branches per image.
    """
    prefix, dropped = int(vit.num_prefix_tokens), drops_paths(vit)
    if execution == "dense":
        return Dense(visible, prefix)
    if execution == "packed" and dropped:
        raise IfamError(
            "execution='packed' puts all images into one row, where drop_path_rate cannot drop single images; "
            "use execution='auto' or 'padded', or leave drop_path_rate at 0."
        )
    pays = execution == "auto" and not dropped and not compiled and _packing_pays(visible, vit, several)
    if execution == "packed" or pays:
        return Packed(visible, prefix)
    return Padded(visible, prefix, bucket=_BUCKET if compiled else 1)


def _packing_pays(visible: Bool[Tensor, "B P"], vit: Vit, several: bool) -> bool:
    """Whether packing is faster than padding, according to the measurements in docs/results/speed.md."""
    kind, dtype = visible.device.type, vit.patch_embed.proj.weight.dtype
    if kind != "cpu":
        # The kernel for sequences of different lengths supports half precision only.
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
        return half in (torch.float16, torch.bfloat16)
    # Packing copies the tokens in each block; short rows are cheaper with some padding.
    counts = visible.sum(dim=1)
    tokens, longest = int(counts.sum()), int(counts.max()) if len(counts) else 0
    enough = several or tokens >= _MIN_TOKENS_TO_PACK * len(counts)
    return enough and tokens < _MAX_PADDED_DENSITY * longest * len(counts)
