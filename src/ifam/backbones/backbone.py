"""A timm vision transformer with one forward call for whole images or for the visible patches alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.backbones import masked_pass
from ifam.backbones.hf_dinov2 import find_hf_dinov2
from ifam.backbones.masked_pass import MaskedPass, Queries, choose_layout
from ifam.backbones.timm_compat import use_fused_attention
from ifam.backbones.token_layout import Layout, Padded, Whole
from ifam.backbones.vit import IMAGENET, Size, check_size, create_vit, to_pair
from ifam.config import Execution, MaskGradient, ModelConfig
from ifam.errors import IfamError

# Channel means and standard deviations.
Normalization = tuple[tuple[float, ...], tuple[float, ...]]


class Backbone(nn.Module):
    """A timm vision transformer that can process a subset of its patches.

    Args:
        name: timm's name of the model, `ifam_tiny`, or the folder or hub id of a Dinov2 of `transformers`.
        image_size: Height and width of the input in pixels, or the side of a square; the model's own where None.
        pretrained: Load pretrained weights (from the hub for timm's models, from the package for `ifam_tiny`).
        **kwargs: Passed to `timm.create_model`.

    Attributes:
        input_size: Height and width of the images that are given, which are resized to `image_size` where it differs.

    Raises:
        IfamError: The name is unknown or not that of a vision transformer, or the patches do not divide the image.
    """

    def __init__(self, name: str, *, image_size: Size | None = None, pretrained: bool = True, **kwargs: Any) -> None:
        super().__init__()
        folder = find_hf_dinov2(name)
        make = partial(create_vit, name) if folder is None else folder.create_vit
        self.vit = make(image_size, pretrained, kwargs)
        self.compiled = False
        self.input_affine: Normalization | None = None
        self.input_size = self.image_size
        use_fused_attention(self.vit)

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
        """Height and width in pixels of the images that are divided into patches."""
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
            scale = tuple(std / wanted_std for _, std, _, wanted_std in channels)
            shift = tuple((mean - wanted_mean) / wanted_std for mean, _, wanted_mean, wanted_std in channels)
            self.input_affine = scale, shift

    def prepare_images(self, images: Tensor) -> Tensor:
        """Images in the size and normalization of this backbone, after a check of the size that they have."""
        self.check_images(images)
        if self.input_size != self.image_size:
            images = resize_images(images, self.image_size)
        if self.input_affine is not None:
            scale, shift = (images.new_tensor(values)[:, None, None] for values in self.input_affine)
            images = images * scale + shift
        return images

    def check_images(self, images: Tensor) -> None:
        """Raise an `IfamError` unless the images have the size that is expected."""
        height, width = self.input_size
        if not isinstance(images, Tensor):
            raise IfamError(f"The images are a {type(images).__name__}, but a tensor of PyTorch is expected.")
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, height, width):
            raise IfamError(
                f"The images have shape {list(images.shape)}, but the model expects [B, 3, {height}, {width}]; "
                f"resize them (`ifam.predict` does) or build the model with another image_size."
            )
        if not images.is_floating_point():
            raise IfamError(f"The images are {images.dtype}, but normalized floating-point images are expected.")

    def forward(
        self,
        images: Tensor,
        visible: Bool[Tensor, "B P"] | None = None,
        gate: Float[Tensor, "B P"] | None = None,
        *,
        sources: Int[Tensor, " B"] | None = None,
        bias: Float[Tensor, "B P"] | None = None,
        queries: Queries = "all",
        mask_gradient: MaskGradient = "none",
        execution: Execution = "auto",
        slots: Int[Tensor, "B N"] | None = None,
    ) -> Tensor:
        """Tokens after the final norm, of whole images or of the visible patches alone, from the first block on.

        Args:
            images: Normalized images [B, 3, S1, S2] of `input_size`, or, with `sources`, any number of them. Pixels of
                hidden patches may hold anything, NaN included, unless the images are resized.
            visible: True for the patches to show; all patches of all images where it is None.
            gate: The same as numbers with gradient; receives none without `mask_gradient`.
            sources: Index of the image of each row of `visible`, where an image is shown in several ways; the images
                are not copied.
            bias: Added to the attention logits of each visible patch as a key; 0 for prefix tokens.
            queries: What is computed in the last block: "all" tokens, the "patches" alone, or one vector per image
                ("pooled"): its class token, or without one the mean of its visible patches.
            mask_gradient: For which patches the gate receives gradient.
            execution: How visible tokens are computed (see `ifam.ModelConfig`).
            slots: The patches that are computed, of which the visible ones are seen: in place of an execution, a shape
                that does not depend on what is visible.

        Returns:
            Prefix tokens first, then patches in order, [B, N, D], rows padded to the longest where patches are hidden;
            [B, P, D] for "patches", [B, D] for "pooled".

        Raises:
            IfamError: The images have another size than `input_size`.
        """
        images = self.prepare_images(images).to(next(self.vit.parameters()).dtype)
        if visible is None and bias is None and queries == "all":
            tokens: Tensor = self.vit.forward_features(images)
            return tokens
        if visible is None:
            layout: Layout = Whole(images.shape[0], self.grid[0] * self.grid[1], self.num_prefix_tokens, images.device)
        elif slots is not None:
            layout = Padded(visible, self.num_prefix_tokens, slots=slots)
        else:
            several = sources is not None
            layout = choose_layout(self.vit, visible, execution, compiled=self.compiled, several=several)
        masked = MaskedPass(self.vit, images, layout, sources)
        if bias is not None:
            masked.add_bias(bias)
        if visible is not None and gate is not None and mask_gradient != "none":
            masked.add_gate(gate)
            if mask_gradient == "full":
                masked.add_hidden_gate(gate, visible)
        return masked.run(queries)

    def pool(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """The class token of whole images, or without one the mean of their patches."""
        return masked_pass.pool(tokens, None, self.vit)

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile every block in place with `torch.compile`.

        All blocks of a model share their code. It is compiled for any number of tokens, which is rounded up to a
        multiple of `masked_pass._BUCKET`, so that other visible counts do not trigger recompilation.

        Args:
            backend: The compiler, by PyTorch's name of it or as a function.
        """
        self.compiled = True
        for block in self.vit.blocks:
            block.compile(dynamic=True, backend=backend)


def selector_backbone(config: ModelConfig, pretrained: bool) -> Backbone:
    """The selector's transformer, which resizes images of `image_size` to `selector_image_size`.

    Raises:
        IfamError: The patches do not divide this size, or it has another aspect ratio.
    """
    build = partial(Backbone, config.backbone, **config.backbone_kwargs)
    size = to_pair(config.selector_image_size, "selector_image_size")
    if size is None:
        return build(image_size=config.image_size, pretrained=pretrained)
    # Without memory, to know its patches and its own size before any weights are loaded.
    with torch.device("meta"):
        described = build(pretrained=False)
    given, patch = to_pair(config.image_size) or described.image_size, described.patch_size[0]
    check_size(config.backbone, size, patch, "selector_image_size")
    _check_aspect(size, given, patch)
    backbone = build(image_size=size, pretrained=pretrained)
    backbone.input_size = given
    return backbone


def _check_aspect(size: tuple[int, int], given: tuple[int, int], patch: int) -> None:
    """Refuse a `selector_image_size` of another aspect ratio than the images, by more than the rounding to patches."""
    height, width = size
    if 2 * abs(height * given[1] - width * given[0]) > patch * max(given):
        wanted = max(1, round(height * given[1] / given[0] / patch)) * patch
        raise IfamError(
            f"selector_image_size is {height} x {width}, but the images of {given[0]} x {given[1]} pixels have another "
            f"aspect ratio; use {height} x {wanted}."
        )


def resize_images(images: Float[Tensor, "B 3 S1 S2"], size: tuple[int, int]) -> Float[Tensor, "B 3 T1 T2"]:
    """Images of another height and width: bilinear and antialiased, computed in single precision at least."""
    half = images.dtype in (torch.float16, torch.bfloat16)
    with torch.autocast(images.device.type, enabled=False):
        resized = F.interpolate(images.float() if half else images, size, mode="bilinear", antialias=True)
    return resized.to(images.dtype)


def predictor_backbone(config: ModelConfig, pretrained: bool, selector: Backbone | None = None) -> Backbone:
    """The predictor's transformer.

    Args:
        config: The model's settings.
        pretrained: Load pretrained weights.
        selector: The transformer before it; both are given the same images, in its input size and normalization.
    """
    name = config.predictor_backbone or config.backbone
    kwargs = config.backbone_kwargs if config.predictor_kwargs is None else config.predictor_kwargs
    size = config.image_size if selector is None else selector.input_size
    backbone = Backbone(name, image_size=size, pretrained=pretrained, **kwargs)
    if selector is not None:
        given, wanted = (
            (config.mean or stage.normalization[0], config.std or stage.normalization[1])
            for stage in (selector, backbone)
        )
        backbone.set_input_normalization(given, wanted)
    return backbone
