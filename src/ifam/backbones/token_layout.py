"""Memory layouts for the tokens of a batch: a row per image (`Padded`, `Dense`), all in one row (`Packed`), or `Whole`.

All give the same numbers. `Padded` fills the rows up to the longest with blank tokens that nothing attends to, which
suits kernels and compilers that need rectangles; `Dense` has a slot for every patch, visible or not, so that its graph
can be exported. `Packed` computes visible tokens only; `Whole` is for images without hidden patches. In the shapes, B1
is the number of rows: B images, or 1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from ifam._typing import Bool, Float, Int, Tensor
from ifam.backbones.gated_attention import attention, with_bias
from ifam.backbones.mask_gradient import HiddenGateGrad, hidden_gate_grad


class Padded:
    """A row for each image, padded to the longest.

    Args:
        visible: True for the patches to lay out.
        prefix: Tokens before the patches of each image.
        bucket: Round the slots up to a multiple of this, so that few lengths occur.
        slots: The patches that have a slot, all visible ones among them: what is computed then has one shape, and an
            answer the same bits, whatever the masks of the batch are.
    """

    def __init__(
        self,
        visible: Bool[Tensor, "B P"],
        prefix: int,
        *,
        bucket: int = 1,
        slots: Int[Tensor, "B N"] | None = None,
    ) -> None:
        batch, patches = visible.shape
        counts = visible.sum(dim=1)
        shortest, longest = torch.stack([*counts.aminmax()]).tolist() if batch else (0, 0)
        if slots is not None:
            self.index, self.present = slots, visible.gather(1, slots)
        else:
            length = min(patches, -(-longest // bucket) * bucket)
            # A stable sort of False before True keeps the patches in order.
            self.index = torch.argsort(~visible, dim=1, stable=True)[:, :length]
            self.present = torch.arange(length, device=visible.device) < counts[:, None]
        self.prefix = prefix
        self.mask = F.pad(self.present, (prefix, 0), value=True)
        # Without padding there is nothing to mask; a mask of True would only slow the kernel down.
        self.real = None if shortest == self.index.shape[1] and slots is None else self.mask

    @property
    def counts(self) -> list[int]:
        """Tokens of each image, padding included."""
        return [self.mask.shape[1]] * self.mask.shape[0]

    def gather(
        self, values: Float[Tensor, "B2 P *D"], sources: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B N *D"]:
        """The values of the patches in this layout, zeros in the padding; a batch of one is broadcast.

        Args:
            values: Values of every patch.
            sources: Index of the values of each row; its own number where it is None.
        """
        rows = torch.arange(len(self.index), device=values.device) if sources is None else sources
        chosen = _gather(values, rows[:, None], self.index)
        if self.real is None:
            return chosen
        # Padding indexes hidden patches, whose values may be NaN: they are replaced, not multiplied by 0.
        present = self.present.unflatten(1, (-1, *[1] * (values.ndim - 2))) if values.ndim > 2 else self.present
        return torch.where(present, chosen, torch.zeros_like(chosen))

    def assemble(self, prefix: Float[Tensor, "1 F D"], patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B M D"]:
        """The prefix tokens, the same for all images, before the patches of each image."""
        return torch.cat([prefix.expand(patches.shape[0], -1, -1), patches], dim=1)

    def with_prefix(self, values: Float[Tensor, "B N"], fill: float) -> Float[Tensor, "B M"]:
        """Values of the patches, with one value for all prefix tokens before them."""
        return F.pad(values, (self.prefix, 0), value=fill)

    def attend(
        self,
        query: Float[Tensor, "B h N d"],
        key: Float[Tensor, "B h M d"],
        value: Float[Tensor, "B h M e"],
        bias: Float[Tensor, "B M"] | None = None,
        query_lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "B h N e"]:
        """Each image's queries attend to the image's tokens in this layout.

        Args:
            query: Queries of every token in this layout, of each image's first, or of tokens in another layout.
            key: Keys of the tokens in this layout.
            value: Values.
            bias: Added to the attention logits of each key.
            query_lengths: Queries of each image, where they are of tokens in another layout.
        """
        return attention(query, key, value, self.real, bias)

    def hidden_gate_grad(
        self,
        tensors: tuple[Tensor, Tensor, Tensor, Tensor],
        hidden: tuple[Tensor, Tensor],
        hidden_counts: Sequence[int],
    ) -> Float[Tensor, "B L"]:
        """`hidden_gate_grad` of query, key, out and grad for hidden keys and values, `hidden_counts` of each image."""
        return hidden_gate_grad(*tensors, *hidden, self.real)

    def first(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B 1 D"]:
        """The first token of each image."""
        return tokens[:, :1]

    def rows(self, tokens: Float[Tensor, "B M D"]) -> tuple[Float[Tensor, "B M D"], Bool[Tensor, "B M"]]:
        """A row for each image, padded to the longest, and True where a token is real."""
        return tokens, self.mask


class Dense(Padded):
    """A row for each image with a slot for every patch: no shape and no branch depends on what is visible.

    Args:
        visible: True for the patches that are not blank.
        prefix: Tokens before the patches of each image.
    """

    def __init__(self, visible: Bool[Tensor, "B P"], prefix: int) -> None:
        self.prefix, self.present = prefix, visible
        self.real = self.mask = F.pad(visible, (prefix, 0), value=True)

    def gather(
        self, values: Float[Tensor, "B2 P *D"], sources: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B P *D"]:
        """As `Padded.gather`, with zeros for hidden patches."""
        chosen = values if sources is None else values.index_select(0, sources)
        present = self.present.unflatten(1, (-1, *[1] * (values.ndim - 2))) if values.ndim > 2 else self.present
        return torch.where(present, chosen, torch.zeros_like(chosen))


class Packed:
    """The visible tokens of all images in one row, image after image.

    Args:
        visible: True for the patches to lay out.
        prefix: Tokens before the patches of each image.
    """

    def __init__(self, visible: Bool[Tensor, "B P"], prefix: int) -> None:
        self.prefix, self.device = prefix, visible.device
        self.image, self.patch = visible.nonzero(as_tuple=True)
        self.counts: list[int] = [prefix + count for count in visible.sum(dim=1).tolist()]
        # Where each token comes from when all prefix tokens are stored before all patches.
        taken = F.pad(visible, (prefix, 0), value=True).nonzero()
        is_patch = taken[:, 1] >= prefix
        patch_source = is_patch.cumsum(dim=0) - 1 + len(visible) * prefix
        self.source = torch.where(is_patch, patch_source, taken[:, 0] * prefix + taken[:, 1])
        self.known_rows: dict[tuple[int, ...], _Rows] = {}

    def gather(
        self, values: Float[Tensor, "B2 P *D"], sources: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "1 N *D"]:
        """As `Padded.gather`, without padding."""
        return _gather(values, self.image if sources is None else sources[self.image], self.patch)[None]

    def assemble(self, prefix: Float[Tensor, "1 F D"], patches: Float[Tensor, "1 N D"]) -> Float[Tensor, "1 M D"]:
        """The prefix tokens, the same for all images, before the patches of each image."""
        repeated = prefix.expand(len(self.counts), -1, -1).flatten(0, 1)
        return torch.cat([repeated, patches[0]])[self.source][None]

    def with_prefix(self, values: Float[Tensor, "1 N"], fill: float) -> Float[Tensor, "1 M"]:
        """Values of the patches, with one value for all prefix tokens before them."""
        before = values.new_full((1, len(self.counts) * self.prefix), fill)
        return torch.cat([before, values], dim=1)[:, self.source]

    def attend(
        self,
        query: Float[Tensor, "1 h N d"],
        key: Float[Tensor, "1 h M d"],
        value: Float[Tensor, "1 h M e"],
        bias: Float[Tensor, "1 M"] | None = None,
        query_lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "1 h N e"]:
        """As `Padded.attend`: in one fused kernel on a GPU in half precision, in padded rows elsewhere."""
        if not self.counts:
            return value
        lengths = query_lengths or self._query_lengths(query)
        half = key.dtype in (torch.float16, torch.bfloat16)
        # The kernel needs values as wide as the keys, unlike those of differential attention.
        if key.is_cuda and half and value.shape[-1] == key.shape[-1]:
            return self._attend_at_once(query, key, value, bias, lengths)
        queries, keys = self._rows(lengths), self._rows(self.counts)
        biases = None if bias is None else keys.unpack(bias[:, None, :, None])[:, 0, :, 0]
        out = attention(queries.unpack(query), keys.unpack(key), keys.unpack(value), keys.real, biases)
        return queries.pack(out)

    def _attend_at_once(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, lengths: Sequence[int]
    ) -> Tensor:
        """Attention of sequences of different lengths in one row, in one kernel."""
        size, width = key.shape[-1], value.shape[-1]
        if bias is not None:
            query, key, value = with_bias(query, key, value, bias)
        q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
        ends, key_ends = self._ends(lengths), self._ends(self.counts)
        out: Any = varlen_attn(q, k, v, ends, key_ends, max(lengths), max(self.counts), scale=size**-0.5)
        heads: Tensor = out.transpose(0, 1)[None, ..., :width]
        return heads

    def _query_lengths(self, query: Tensor) -> Sequence[int]:
        """Queries of each image: one for each token, or for its first token alone."""
        return self.counts if query.shape[2] == sum(self.counts) else [1] * len(self.counts)

    def _rows(self, counts: Sequence[int]) -> "_Rows":
        """The rows of tokens of which each image has so many."""
        wanted = tuple(counts)
        if wanted not in self.known_rows:
            self.known_rows[wanted] = _Rows(wanted, self.device)
        return self.known_rows[wanted]

    def _ends(self, counts: Sequence[int]) -> Int[Tensor, " B1"]:
        """Where each image's tokens begin and end."""
        return torch.tensor([*accumulate(counts, initial=0)], dtype=torch.int32, device=self.device)

    def hidden_gate_grad(
        self,
        tensors: tuple[Tensor, Tensor, Tensor, Tensor],
        hidden: tuple[Tensor, Tensor],
        hidden_counts: Sequence[int],
    ) -> Float[Tensor, "1 L"]:
        """As `Padded.hidden_gate_grad`."""
        query, key, out, grad = tensors
        queries, keys = self._rows(self._query_lengths(query)), self._rows(self.counts)
        others = self._rows(hidden_counts)
        q, o, g = (queries.unpack(t) for t in (query, out, grad))
        # Rows are filled up with copies, whose gradient would count twice.
        g = g if queries.real is None else g.masked_fill(~queries.real[:, None, :, None], 0.0)
        hidden_key, hidden_value = (others.unpack(t) for t in hidden)
        gates = hidden_gate_grad(q, keys.unpack(key), o, g, hidden_key, hidden_value, keys.real)
        return others.pack(gates[:, None, :, None])[:, 0, :, 0]

    def first(self, tokens: Float[Tensor, "1 M D"]) -> Float[Tensor, "1 B D"]:
        """The first token of each image."""
        starts = torch.tensor([*accumulate(self.counts, initial=0)][:-1], dtype=torch.long, device=tokens.device)
        return tokens[:, starts]

    def rows(self, tokens: Float[Tensor, "1 M D"]) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
        """A row for each image, padded to the longest, and True where a token is real."""
        longest = max(self.counts, default=0)
        counts = torch.tensor(self.counts, device=tokens.device)
        real = torch.arange(longest, device=tokens.device) < counts[:, None]
        rows = tokens.new_zeros(*real.shape, tokens.shape[-1])
        return rows.masked_scatter(real[:, :, None], tokens[0]), real


class Whole(Padded):
    """Every patch of every image, a row for each.

    Args:
        batch: Number of images.
        patches: Patches per image.
        prefix: Tokens before the patches of each image.
        device: Device of the tokens.
    """

    def __init__(self, batch: int, patches: int, prefix: int, device: torch.device | None = None) -> None:
        self.prefix, self.real = prefix, None
        self.mask = torch.ones(batch, prefix + patches, dtype=torch.bool, device=device)

    def gather(
        self, values: Float[Tensor, "B2 P *D"], sources: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B2 P *D"]:
        """The values unchanged."""
        return values


Layout = Padded | Packed


class HiddenTokens:
    """The hidden patches, processed in "full" as extra queries that are never keys.

    Args:
        x: Their tokens.
        layout: Their memory layout.
        gate: Their gates, all 0; receive gradient.
        angles: Their rotary angles for each block; None where there are none.
    """

    def __init__(self, x: Tensor, layout: Layout, gate: Tensor, angles: Sequence[Tensor | None]) -> None:
        self.x, self.layout, self.gate, self.angles = x, layout, gate, angles

    def attend_with_gate_grad(self, layout: Layout, bias: Tensor | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Attention of the visible tokens, whose backward pass computes the gradient of this block's hidden gates.

        A block may attend more than once (differential attention, parallel branches): its calls are matched with
        those of the hidden tokens by their order.
        """
        # Filled by `cross_attend`, when the block processes the hidden patches, before any backward pass.
        keys_values: list[tuple[Tensor, Tensor]] = []
        visible: list[Callable[..., Tensor]] = []
        self.keys_values, self.visible = keys_values, visible

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            call = len(visible)
            visible.append(partial(layout.attend, key=key.detach(), value=value.detach()))

            def gate_grad(query: Tensor, key: Tensor, out: Tensor, grad: Tensor) -> Tensor:
                return layout.hidden_gate_grad((query, key, out, grad), keys_values[call], self.layout.counts)

            out = layout.attend(query, key, value, bias)
            gated: Tensor = HiddenGateGrad.apply(out, query, key, self.gate, gate_grad)
            return gated

        return attend

    def cross_attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of the hidden tokens to the visible ones; their own keys are kept for the gradient."""
        attend_visible = self.visible[len(self.keys_values)]
        self.keys_values.append((key, value))
        # Hidden outputs of the last block are unused, so they are skipped.
        return attend_visible(query, query_lengths=self.layout.counts) if query.shape[2] else query


def _gather(values: Float[Tensor, "B2 P *D"], image: Int[Tensor, "..."], patch: Int[Tensor, "..."]) -> Tensor:
    """The values of these patches of these images; a batch of one is broadcast."""
    if len(values) > 1:
        return values[image, patch]
    # Several images take the same row, whose gradient is a sum: on several threads, that of indexing would be added up
    # in any order, and two equal trainings would differ.
    rows = F.embedding(patch, values.reshape(values.shape[1], -1))
    return rows.reshape(*patch.shape, *values.shape[2:])


class _Rows:
    """The tokens of all images in one row, as a row for each image and back.

    Args:
        counts: Tokens of each image.
        device: Device of the tokens.
    """

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self.images, self.length = len(counts), max(counts)
        lengths = torch.tensor(counts, device=device)[:, None]
        slots = torch.arange(self.length, device=device)
        starts = lengths.cumsum(dim=0) - lengths
        # Filled up with the image's own last token: a number that is not finite stays in its image.
        self.index = (starts + torch.minimum(slots, lengths - 1).clamp_min(0)).flatten().clamp_max(sum(counts) - 1)
        real = slots < lengths
        self.places = real.flatten().nonzero()[:, 0]
        self.real = None if min(counts) == self.length else real

    def unpack(self, heads: Float[Tensor, "1 h N d"]) -> Float[Tensor, "B h M d"]:
        """Heads of a row for each image, filled up to the longest."""
        if not self.length:
            return heads.new_zeros(self.images, heads.shape[1], 0, heads.shape[3])
        rows = heads[0].transpose(0, 1).index_select(0, self.index)
        unpacked: Tensor = rows.unflatten(0, (self.images, self.length)).transpose(1, 2)
        return unpacked

    def pack(self, heads: Float[Tensor, "B h M d"]) -> Float[Tensor, "1 h N d"]:
        """Heads of all images in one row."""
        row: Tensor = heads.transpose(1, 2).flatten(0, 1).index_select(0, self.places).transpose(0, 1)[None]
        return row
