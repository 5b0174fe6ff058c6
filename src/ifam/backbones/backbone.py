"""Any vision transformer as `tokens(images, visible, gate)`."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ifam._typing import Bool, Float, Tensor
from ifam.backbones.gated_attention import OverrideSDPA, attention
from ifam.backbones.hf_dinov2 import find_hf_dinov2
from ifam.backbones.rotary import Positions, with_rope
from ifam.backbones.token_layout import HiddenTokens, Layout, Packed, Padded
from ifam.backbones.vit import IMAGENET, Size, create_vit
from ifam.config import Execution, MaskGradient, ModelConfig
from ifam.errors import IfamError

# Channel means and standard deviations.
Normalization = tuple[tuple[float, ...], tuple[float, ...]]

# Compiled code is made for lengths in steps of this many tokens.
_BUCKET = 32
# On a processor, packing pays from so many tokens an image, and where padding would leave less than this share of the
# rows real.
_MIN_TOKENS_TO_PACK, _MAX_PADDED_DENSITY = 48, 0.9


class Backbone(nn.Module):
    """A timm vision transformer that can be shown a part of its patches.

    Args:
        name: timm's name of the model, `ifam_tiny`, or the folder or hub id of a Dinov2 of `transformers`.
        image_size: Height and width of the input in pixels, or the side of a square; the model's own where None.
        pretrained: Load pretrained weights (from the hub for timm's models, from the package for `ifam_tiny`).
        **kwargs: Handed to `timm.create_model`.

    Raises:
        IfamError: The name is unknown, is not a vision transformer, or the patches do not divide the image.
    """

    def __init__(self, name: str, *, image_size: Size | None = None, pretrained: bool = True, **kwargs: Any) -> None:
        super().__init__()
        folder = find_hf_dinov2(name)
        make = partial(create_vit, name) if folder is None else folder.create_vit
        self.vit = make(image_size, pretrained, kwargs)
        self.compiled = False
        self.input_affine: Normalization | None = None
        # The modes of `gated_attention.py` stand in for the fused kernel, so every block must call it.
        for module in self.vit.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", True)  # noqa: B010 (mypy takes a module's attributes for tensors)

    @property
    def width(self) -> int:
        """Width D of a token."""
        return int(self.vit.embed_dim)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = self.vit.patch_embed.grid_size
        return int(rows), int(columns)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        height, width = self.vit.patch_embed.patch_size
        return int(height), int(width)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.grid[0] * self.patch_size[0], self.grid[1] * self.patch_size[1]

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens, which come before the patches."""
        return int(self.vit.num_prefix_tokens)

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is a class token."""
        return self.vit.cls_token is not None

    @property
    def normalization(self) -> Normalization:
        """Channel means and standard deviations that the weights were trained with."""
        cfg = getattr(self.vit, "pretrained_cfg", None) or {}
        return tuple(cfg.get("mean", IMAGENET[0])), tuple(cfg.get("std", IMAGENET[1]))

    def set_input_normalization(self, given: Normalization, wanted: Normalization) -> None:
        """Convert inputs from another normalization.

        Args:
            given: Channel means and standard deviations that the images are normalized by.
            wanted: Those that the weights were trained with.
        """
        if given != wanted:
            channels = list(zip(*given, *wanted, strict=True))
            scale = tuple(std / own_std for _, std, _, own_std in channels)
            shift = tuple((mean - own_mean) / own_std for mean, _, own_mean, own_std in channels)
            self.input_affine = scale, shift

    def prepare_images(self, images: Tensor) -> Tensor:
        """Images [B, 3, S1, S2] as the weights expect them, once they are known to have the right size."""
        self.check_images(images)
        if self.input_affine is None:
            return images
        scale, shift = (images.new_tensor(values)[:, None, None] for values in self.input_affine)
        return images * scale + shift

    def check_images(self, images: Tensor) -> None:
        """Raise an `IfamError` unless the images have the size that this backbone was made for."""
        height, width = self.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, height, width):
            raise IfamError(
                f"The images have shape {list(images.shape)}, but the model expects [B, 3, {height}, {width}]; "
                f"resize them (`ifam.predict` does) or build the model with another image_size."
            )
        if not images.is_floating_point():
            raise IfamError(f"The images are {images.dtype}, but normalized floating-point images are expected.")

    def forward(self, images: Tensor) -> Float[Tensor, "B N D"]:
        """Tokens of whole images [B, 3, S, S] after the final norm: prefix tokens first, then all patches."""
        tokens: Tensor = self.vit.forward_features(self.prepare_images(images))
        return tokens

    def patches(self, images: Tensor) -> Float[Tensor, "B P D"]:
        """Patch tokens of whole images [B, 3, S, S] after the final norm."""
        x, angles = self._embed_all(images)
        *_, last = self.vit.blocks
        for block, turn in zip(self.vit.blocks, angles, strict=True):
            read = (lambda tokens: tokens[:, self.num_prefix_tokens :]) if block is last else None
            x = self._run_block(block, x, turn, read=read)
        return self._norm(x)

    def tokens(
        self,
        images: Tensor,
        visible: Bool[Tensor, "B P"],
        gate: Float[Tensor, "B P"] | None = None,
        mask_gradient: MaskGradient = "none",
        execution: Execution = "auto",
    ) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
        """Tokens after the final norm when only the visible patches exist, from the first block on.

        Patches are gathered before they are embedded: the pixels of a hidden patch meet no kernel whose result
        is read. In `mask_gradient="full"` hidden patches run beside, without gradient, as queries that nothing sees.

        Args:
            images: Normalized images [B, 3, S, S].
            visible: True for the patches to show.
            gate: The same as numbers with gradient; needed unless `mask_gradient` is "none".
            mask_gradient: For which patches the gate receives gradient.
            execution: How the visible tokens are computed (see `ifam.ModelConfig`).

        Returns:
            Prefix and visible tokens, padded to the longest of the batch, and True where a token is real.
        """
        layout = self._layout(visible, execution)
        return layout.rows(self._norm(self._run(images, visible, gate, mask_gradient, layout)))

    def pooled(
        self,
        images: Tensor,
        visible: Bool[Tensor, "B P"],
        gate: Float[Tensor, "B P"] | None = None,
        mask_gradient: MaskGradient = "none",
        execution: Execution = "auto",
    ) -> Float[Tensor, "B D"]:
        """One vector an image: its class token, or the mean of its visible patches where there is no class token.

        The arguments are those of `tokens`. The last block computes what is read here, and no more.
        """
        layout = self._layout(visible, execution)
        if self.has_class_token:
            x = self._run(images, visible, gate, mask_gradient, layout, read=layout.first)
            return self._norm(x).reshape(len(images), self.width)
        return self.pool(*layout.rows(self._norm(self._run(images, visible, gate, mask_gradient, layout))))

    def pool(self, tokens: Float[Tensor, "B N D"], real: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, "B D"]:
        """The class token of each image, or without one the mean of its real patches: of all, where `real` is None."""
        if self.has_class_token:
            return tokens[:, 0]
        if real is None:
            real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        patches = real[:, self.num_prefix_tokens :, None]
        total = torch.where(patches, tokens[:, self.num_prefix_tokens :], 0.0).sum(dim=1)
        return total / patches.sum(dim=1).clamp_min(1)

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile every block in place with `torch.compile`.

        All blocks of a model share their code. It is made for any number of tokens, and these come in steps of
        `_BUCKET`, so that batches with other visible counts do not have it made anew.

        Args:
            backend: The compiler, by PyTorch's name of it or as a function.
        """
        self.compiled = True
        for block in self.vit.blocks:
            block.compile(dynamic=True, backend=backend)

    def biased_tokens(
        self, images: Float[Tensor, "B 3 S1 S2"], key_bias: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B N D"]:
        """Tokens of the whole image after the final norm, with a bias on how much each patch is attended to.

        Args:
            images: Normalized images.
            key_bias: Added to the attention logits of each patch as a key; prefix tokens have none.

        Returns:
            Prefix tokens first, then all patches.
        """
        x, angles = self._embed_all(images)
        bias = F.pad(key_bias, (self.num_prefix_tokens, 0))
        for block, turn in zip(self.vit.blocks, angles, strict=True):
            x = self._run_block(block, x, turn, partial(attention, bias=bias))
        return self._norm(x)

    def _layout(self, visible: Tensor, execution: Execution) -> Layout:
        """The layout that an execution means here."""
        drops_paths = self.training and any(isinstance(m, DropPath) and m.drop_prob for m in self.vit.modules())
        if execution == "packed" and drops_paths:
            raise IfamError(
                "execution='packed' has all images in one row, of which drop_path_rate cannot drop a single image; "
                "use execution='auto' or 'padded', or leave drop_path_rate at 0."
            )
        pays = execution == "auto" and not drops_paths and not self.compiled and self._packing_pays(visible)
        if execution == "packed" or pays:
            return Packed(visible, self.num_prefix_tokens)
        bucket = _BUCKET if self.compiled else 1
        return Padded(visible, self.num_prefix_tokens, dense=execution == "dense", bucket=bucket)

    def _packing_pays(self, visible: Bool[Tensor, "B P"]) -> bool:
        """Whether packing is faster than padding, by what was measured (docs/speed.md)."""
        kind, dtype = visible.device.type, self.vit.patch_embed.proj.weight.dtype
        if kind != "cpu":
            # One kernel for sequences of different lengths exists in half precision.
            half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
            return half in (torch.float16, torch.bfloat16)
        # Image by image, attention costs a call for each; many short rows are cheaper with some padding.
        counts = visible.sum(dim=1)
        tokens, longest = int(counts.sum()), int(counts.max()) if len(counts) else 0
        return tokens >= _MIN_TOKENS_TO_PACK * len(counts) and tokens < _MAX_PADDED_DENSITY * longest * len(counts)

    def _run(
        self,
        images: Tensor,
        visible: Tensor,
        gate: Tensor | None,
        mask_gradient: MaskGradient,
        layout: Layout,
        read: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The tokens of a layout after all blocks, or those that are read after the last one."""
        images, positions = self.prepare_images(images), Positions(self.vit)
        x, bias, hidden = self._embed(images, layout, positions), None, None
        angles = beside_angles = positions.per_block(layout)
        if gate is not None and mask_gradient != "none":
            # d log(m) = dm at m = 1: the gate of a visible key acts like a bias, which is 0.
            shown = layout.gather(gate)
            bias = layout.with_prefix(shown - shown.detach(), 0.0)
            if mask_gradient == "full":
                beside = Packed(~visible, 0) if isinstance(layout, Packed) else Padded(~visible, 0)
                with torch.no_grad():
                    x_beside, beside_angles = self._embed(images, beside, positions), positions.per_block(beside)
                hidden = HiddenTokens(x_beside, beside, beside.gather(gate))
        last = self.vit.blocks[-1]
        for block, turn, turn_beside in zip(self.vit.blocks, angles, beside_angles, strict=True):
            attend = partial(layout.attend, bias=bias) if hidden is None else hidden.priced(layout, bias)
            x = self._run_block(block, x, turn, attend, read if block is last else None)
            if hidden is not None:
                with torch.no_grad():
                    nothing = (lambda tokens: tokens[:, :0]) if block is last else None
                    hidden.x = self._run_block(block, hidden.x, turn_beside, hidden.ask, nothing)
        return x

    def _norm(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.vit.norm(x)
        return tokens

    def _run_block(
        self,
        block: nn.Module,
        x: Tensor,
        angles: Tensor | None,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        read: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Tokens after one block, turned by angles, with attention of one's own, or only those tokens that are read."""
        if angles is not None:
            attend = with_rope(attend or attention, angles, half=getattr(block.attn, "rotate_half", False))

        def run(x: Tensor) -> Tensor:
            with nullcontext() if attend is None else OverrideSDPA(attend):
                if read is not None and supports_partial_queries(block):
                    return block_with_partial_queries(block, x, read)
                tokens: Tensor = block(x)
            return tokens if read is None else read(tokens)

        if self.vit.grad_checkpointing and torch.is_grad_enabled():
            again: Tensor = checkpoint(run, x, use_reentrant=False)
            return again
        return run(x)

    def _embed_all(self, images: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Prefix tokens and every patch of whole images, embedded, and the angles for each block."""
        images, positions = self.prepare_images(images), Positions(self.vit)
        # Channels last, the convolution leaves its output as the tokens lie.
        embedded = self.vit.patch_embed(images.contiguous(memory_format=torch.channels_last))
        prefix = positions.table[:, : positions.prefix].expand(len(images), -1, -1)
        x = torch.cat([prefix, embedded + positions.table[:, positions.prefix :]], dim=1)
        return self.vit.norm_pre(x), positions.per_block()

    def _embed(self, images: Tensor, layout: Layout, positions: Positions) -> Tensor:
        """The embedded patches of a layout with their positions, after its prefix tokens."""
        rows, columns = self.grid
        height, width = self.patch_size
        patches = images.reshape(-1, 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5).flatten(3)
        projection = self.vit.patch_embed.proj
        chosen = layout.gather(patches.flatten(1, 2))
        embedded = self.vit.patch_embed.norm(F.linear(chosen, projection.weight.flatten(1), projection.bias))
        tokens: Tensor = self.vit.norm_pre(positions.place(embedded, layout))
        return tokens


def selector_backbone(config: ModelConfig, pretrained: bool) -> Backbone:
    """The selector's transformer."""
    return Backbone(config.backbone, image_size=config.image_size, pretrained=pretrained, **config.backbone_kwargs)


def predictor_backbone(config: ModelConfig, pretrained: bool, selector: Backbone | None = None) -> Backbone:
    """The predictor's transformer.

    Args:
        config: The model's settings.
        pretrained: Load pretrained weights.
        selector: The transformer that stands before it, whose images it is given too, in their size and normalization.
    """
    name = config.predictor_backbone or config.backbone
    kwargs = config.backbone_kwargs if config.predictor_kwargs is None else config.predictor_kwargs
    size = config.image_size if selector is None else selector.image_size
    backbone = Backbone(name, image_size=size, pretrained=pretrained, **kwargs)
    if selector is not None:
        given, wanted = (
            (config.mean or stage.normalization[0], config.std or stage.normalization[1])
            for stage in (selector, backbone)
        )
        backbone.set_input_normalization(given, wanted)
    return backbone


def fill_buffers(model: nn.Module) -> None:
    """Compute what no file holds, such as the angles of rotary positions, in a model that was made without memory."""
    for module in model.modules():
        empty = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        for name, buffer in empty.items():
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
        if empty:
            # timm's name for it, in every module that has such buffers.
            module.init_non_persistent_buffers()  # type: ignore[operator]


def supports_partial_queries(block: nn.Module) -> bool:
    """Whether `block_with_partial_queries` knows this block, and no forward hooks are registered."""
    listened = any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())
    known = type(block) is Block and type(block.attn) is Attention and type(block.attn.qkv) is nn.Linear
    return known and not listened and getattr(block.attn, "gate", None) is None


def block_with_partial_queries(
    block: Any, x: Float[Tensor, "B N D"], read: Callable[[Tensor], Tensor]
) -> Float[Tensor, "B M D"]:
    """A block of timm for the tokens that are read alone; every token is still a key.

    Args:
        block: A block that `supports_partial_queries` knows.
        x: All tokens.
        read: Picks tokens.
    """
    attn, normed = block.attn, block.norm1(x)
    width, bias = attn.num_heads * attn.head_dim, attn.qkv.bias
    heads = (attn.num_heads, attn.head_dim)
    asking = F.linear(read(normed), attn.qkv.weight[:width], None if bias is None else bias[:width])
    asked = F.linear(normed, attn.qkv.weight[width:], None if bias is None else bias[width:])
    query = asking.unflatten(2, heads).transpose(1, 2)
    key, value = asked.unflatten(2, (2, *heads)).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(attn.q_norm(query), attn.k_norm(key), value)
    out = attn.proj_drop(attn.proj(attn.norm(out.transpose(1, 2).flatten(2))))
    y = read(x) + block.drop_path1(block.ls1(out))
    tokens: Tensor = y + block.drop_path2(block.ls2(block.mlp(block.norm2(y))))
    return tokens
