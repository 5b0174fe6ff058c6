"""Positions of the patches: added to their tokens, or, in rotary models, applied to their queries and keys.

A rotary model (DINOv3, EVA-02) rotates queries and keys inside of attention, by an angle that depends on the position
of their patch. timm's attention expects the prefix tokens first in each row, and then every patch of the whole grid.
This does not hold where patches are missing, or where all images share a row. So timm's blocks receive no angles, and
queries and keys are rotated between the block and attention, each token by the angle of its own position.
"""

from collections.abc import Callable

import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat

from ifam._typing import Float, Tensor
from ifam.backbones.timm_compat import Vit, position_table
from ifam.backbones.token_layout import Layout

# From queries, keys and values to the output of attention.
AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]


class Positions:
    """Prefix tokens, positions and angles of one pass; in training, some models sample new angles for each pass.

    Args:
        vit: The transformer.

    Attributes:
        table: Prefix tokens, then the position of each patch, [1, N, D].
        angles: Sines, then cosines, of prefix tokens and patches, [1, N, h, 2 d]: empty where the model is not rotary,
            one tensor for all blocks and heads (h = 1), or, where frequencies are learned, one per block.
    """

    def __init__(self, vit: Vit) -> None:
        self.prefix, self.depth = int(vit.num_prefix_tokens), len(vit.blocks)
        self.table, rotary = position_table(vit)
        per_block = [] if rotary is None else rotary if rotary.ndim == 4 else [rotary[None]]
        self.angles = [self._with_prefix(angles.transpose(0, 1)[None]) for angles in per_block]

    def _with_prefix(self, angles: Float[Tensor, "1 P h d2"]) -> Float[Tensor, "1 N h d2"]:
        """The angles of the patches after those of the prefix tokens, which are not rotated: sine 0, cosine 1."""
        sine, cosine = torch.zeros_like(angles[:, :1]).chunk(2, dim=3)
        identity = torch.cat([sine, cosine + 1], dim=3).expand(-1, self.prefix, -1, -1)
        return torch.cat([identity, angles], dim=1)

    def add_to(self, patches: Float[Tensor, "B N D"], layout: Layout) -> Float[Tensor, "B M D"]:
        """The prefix tokens of a layout, then its embedded patches with their positions added."""
        placed = patches + layout.gather(self.table[:, self.prefix :])
        tokens: Tensor = layout.assemble(self.table[:, : layout.prefix], placed)
        return tokens

    def per_block(self, layout: Layout) -> list[Tensor | None]:
        """The angles [B, h, M, 2 d] of all tokens of a layout for each block, or None where there are none."""
        gathered: list[Tensor | None] = [self._gather(angles, layout).transpose(1, 2) for angles in self.angles]
        return gathered if len(gathered) == self.depth else (gathered or [None]) * self.depth

    def _gather(self, angles: Float[Tensor, "1 N h d2"], layout: Layout) -> Float[Tensor, "B M h d2"]:
        """Angles for the tokens of a layout."""
        rows = angles.flatten(2)
        gathered = layout.assemble(rows[:, : layout.prefix], layout.gather(rows[:, self.prefix :]))
        per_head: Tensor = gathered.unflatten(2, angles.shape[2:])
        return per_head


def with_rope(attend: AttentionFn, angles: Float[Tensor, "B h N d2"], *, half: bool) -> AttentionFn:
    """Attention of rotated queries and keys.

    Args:
        attend: The attention.
        angles: Sines, then cosines, of each token.
        half: Whether the two coordinates of a rotated plane are half a head apart, and not adjacent.
    """

    def attend_rotated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key = (apply_rot_embed_cat(tokens, angles, half=half).type_as(value) for tokens in (query, key))
        return attend(query, key, value)

    return attend_rotated
