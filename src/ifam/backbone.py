"""Any vision transformer as `tokens(images, visible, gate)`: the only file that knows timm."""

import difflib
import re
from importlib import resources
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from ifam._typing import Bool, Float, Tensor
from ifam.attention import FirstKeys, GatedKeys, gather_index, take
from ifam.config import MaskGradient
from ifam.errors import IfamError

# The embedded backbone: small enough to ship, shaped like DINOv2 with registers (docs/pondbirds.md).
TINY = "ifam_tiny"
TINY_ARCH: dict[str, Any] = {
    "img_size": 80,
    "patch_size": 8,
    "embed_dim": 128,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 4.0,
    "reg_tokens": 2,
    "class_token": True,
    "no_embed_class": True,
    "init_values": 0.1,
    "num_classes": 0,
}


class WeightsUnavailable(IfamError):
    """Pretrained weights could not be fetched."""


class Backbone(nn.Module):
    """A timm vision transformer that can be shown a part of its patches.

    Args:
        name: timm's name of the model, or `ifam_tiny`.
        image_size: Side of the square input in pixels; the model's own where None.
        pretrained: Load pretrained weights (from the hub for timm's models, from the package for `ifam_tiny`).
        **kwargs: Handed to `timm.create_model`.

    Raises:
        IfamError: The name is unknown, is not a vision transformer, or the patches do not divide the image.
    """

    def __init__(self, name: str, *, image_size: int | None = None, pretrained: bool = True, **kwargs: Any) -> None:
        super().__init__()
        self.vit = _create(name, image_size, pretrained, kwargs)
        # The modes of `attention.py` stand in for the fused kernel, so every block must call it.
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
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel means and standard deviations that the weights were trained with."""
        cfg = getattr(self.vit, "pretrained_cfg", None) or {}
        return tuple(cfg.get("mean", (0.485, 0.456, 0.406))), tuple(cfg.get("std", (0.229, 0.224, 0.225)))

    def check_images(self, images: Tensor) -> None:
        """Raise an `IfamError` unless the images have the size that this backbone was made for."""
        height, width = self.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, height, width):
            raise IfamError(
                f"The images have shape {list(images.shape)}, but the model expects [B, 3, {height}, {width}]; "
                f"resize them (`ifam.predict` does) or build the model with another image_size."
            )
        if not images.is_floating_point():
            raise IfamError(f"The images are {images.dtype}, but normalised floating-point images are expected.")

    def forward(self, images: Tensor) -> Float[Tensor, "B N D"]:
        """Tokens of whole images [B, 3, S, S] after the final norm: prefix tokens first, then all patches."""
        self.check_images(images)
        tokens: Tensor = self.vit.forward_features(images)
        return tokens

    def tokens(
        self,
        images: Tensor,
        visible: Bool[Tensor, "B P"],
        gate: Float[Tensor, "B P"] | None = None,
        mask_gradient: MaskGradient = "none",
    ) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
        """Tokens after the final norm when only the visible patches exist, from the first block on.

        Patches are gathered before they are embedded: the pixels of a hidden patch meet no kernel whose result
        is read. In `mask_gradient="full"` hidden patches run beside, without gradient, as queries that nothing sees.

        Args:
            images: Normalised images [B, 3, S, S].
            visible: True for the patches to show.
            gate: The same as numbers with gradient; needed unless `mask_gradient` is "none".
            mask_gradient: For which patches the gate receives gradient.

        Returns:
            Prefix and visible tokens, padded to the longest of the batch, and True where a token is real.
        """
        self.check_images(images)
        index, present = gather_index(visible)
        x, real = self._embed(images, index, present)
        if gate is None or mask_gradient == "none":
            mask = None if bool(real.all()) else real[:, None, None]
            for block in self.vit.blocks:
                x = block(x, attn_mask=mask)
        elif mask_gradient == "visible":
            # d log(m) = dm at m = 1, so the gate's gradient is that of a bias on the key, which is 0 here.
            bias = self._with_prefix(take(gate, index), 1.0)
            bias = (bias - bias.detach()).masked_fill(~real, -torch.inf)[:, None, None]
            for block in self.vit.blocks:
                x = block(x, attn_mask=bias.expand(-1, -1, x.shape[1], -1).to(x.dtype))
        else:
            x = self._priced(images, visible, gate, x, real, index)
        return self.vit.norm(x), real

    def biased_tokens(
        self, images: Float[Tensor, "B 3 S1 S2"], key_bias: Float[Tensor, "B P"]
    ) -> Float[Tensor, "B N D"]:
        """Tokens of the whole image after the final norm, with a bias on how much each patch is attended to.

        Args:
            images: Normalised images.
            key_bias: Added to the attention logits of each patch as a key; prefix tokens have none.

        Returns:
            Prefix tokens first, then all patches.
        """
        self.check_images(images)
        x = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))
        bias = self._with_prefix(key_bias, 0.0)[:, None, None].expand(-1, -1, x.shape[1], -1).to(x.dtype)
        for block in self.vit.blocks:
            x = block(x, attn_mask=bias)
        tokens: Tensor = self.vit.norm(x)
        return tokens

    def _priced(self, images: Tensor, visible: Tensor, gate: Tensor, x: Tensor, real: Tensor, index: Tensor) -> Tensor:
        """The blocks, with the exact gradient for the gates of visible and hidden patches."""
        hidden_index, hidden_present = gather_index(~visible)
        prefix = self.num_prefix_tokens
        with torch.no_grad():
            hidden = self._embed(images, hidden_index, hidden_present)[0][:, prefix:]
        shown = self._with_prefix(take(gate, index), 1.0)
        unshown = take(gate, hidden_index).masked_fill(~hidden_present, 0.0)
        mask, n = real[:, None, None], x.shape[1]
        for block in self.vit.blocks:
            with torch.no_grad(), FirstKeys(n) as seen:
                hidden = block(torch.cat([x, hidden], dim=1), attn_mask=mask)[:, n:]
            with GatedKeys(shown, unshown, seen.rest):
                x = block(x, attn_mask=mask)
        return x

    def _embed(self, images: Tensor, index: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix tokens and the embedded patches at `index`, positions added; True where a token is real."""
        rows, columns = self.grid
        height, width = self.patch_size
        batch = len(images)
        patches = images.reshape(batch, 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5).flatten(3)
        chosen = take(patches.flatten(1, 2), index)
        # Padding slots point at hidden patches, whose pixels may be anything: they are replaced, not weighted.
        chosen = torch.where(present[:, :, None], chosen, torch.zeros_like(chosen))
        projection = self.vit.patch_embed.proj
        embedded = self.vit.patch_embed.norm(F.linear(chosen, projection.weight.flatten(1), projection.bias))
        # timm's own assembly of prefix tokens and positions, on blank patches: every layout of its tables is right.
        blank = embedded.new_zeros(1, rows * columns, self.width)
        if self.vit.dynamic_img_size:
            blank = blank.unflatten(1, self.grid)
        table = self.vit._pos_embed(blank).expand(batch, -1, -1)
        prefix = self.num_prefix_tokens
        x = torch.cat([table[:, :prefix], embedded + take(table[:, prefix:], index)], dim=1)
        return self.vit.norm_pre(x), self._with_prefix(present, True)

    def _with_prefix(self, values: Tensor, fill: float | bool) -> Tensor:
        """The values of patches, with those of the prefix tokens before them."""
        return F.pad(values, (self.num_prefix_tokens, 0), value=fill)


def _create(name: str, image_size: int | None, pretrained: bool, kwargs: dict[str, Any]) -> VisionTransformer:
    """The timm model, without its head."""
    for rate in ("patch_drop_rate", "pos_drop_rate", "attn_drop_rate"):
        if kwargs.get(rate):
            raise IfamError(
                f"{rate} is {kwargs[rate]}, but tokens are hidden by the mask alone; leave it at 0 "
                f"(mask_part_dropout, drop_path_rate and proj_drop_rate work)."
            )
    if name != TINY and not timm.is_model(name):
        near = difflib.get_close_matches(name, [TINY, *timm.list_models("vit*")], n=3)
        raise IfamError(
            f"No backbone is named {name!r}; choose a vision transformer of timm "
            f"(`timm.list_models('vit*')`) or {TINY!r}{', for example ' + ', '.join(near) if near else ''}."
        )
    patch = kwargs.get("patch_size") or (TINY_ARCH["patch_size"] if name == TINY else _patch_size(name))
    if isinstance(patch, int):
        _check_size(name, image_size, patch)
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        if name == TINY:
            vit = VisionTransformer(**{**TINY_ARCH, **size, **kwargs})
        else:
            vit = _from_timm(name, pretrained, {**size, **kwargs})
    except (TypeError, AssertionError) as error:
        raise IfamError(
            f"timm cannot build the backbone {name!r} with { ({**size, **kwargs}) } ({error}); choose a vision "
            f"transformer (`timm.list_models('vit*')`), and backbone_kwargs that its constructor takes."
        ) from error
    if not isinstance(vit, VisionTransformer) or type(vit.patch_embed) is not PatchEmbed:
        kind = type(vit).__name__ + (" on a convolutional stem" if isinstance(vit, VisionTransformer) else "")
        raise IfamError(
            f"The backbone {name!r} is a {kind}, but a timm VisionTransformer on plain patches is expected; "
            f"choose one of `timm.list_models('vit*')`."
        )
    _check_size(name, image_size, int(vit.patch_embed.patch_size[0]))
    if name == TINY and pretrained:
        _load_tiny(vit)
    return vit


def _check_size(name: str, image_size: int | None, patch: int) -> None:
    """Refuse an image size that the patches do not divide."""
    if image_size is None or (image_size > 0 and image_size % patch == 0):
        return
    lower = max(1, image_size // patch) * patch
    raise IfamError(
        f"The image size {image_size} is no multiple of the {patch} px patches of {name}; "
        f"use {lower} or {lower + patch}."
    )


def _patch_size(name: str) -> int | None:
    """The patch size that timm's model names carry (`..._patch14_...`)."""
    found = re.search(r"_patch(\d+)", name)
    return int(found.group(1)) if found else None


def _load_tiny(vit: VisionTransformer) -> None:
    """Fill in the weights that the package ships, resampling positions where the grid is another one."""
    with resources.as_file(resources.files("ifam") / "assets" / "tiny_vit.safetensors") as path:
        weights = load_file(path)
    table = weights["pos_embed"]
    side = round(table.shape[1] ** 0.5)
    if (side, side) != vit.patch_embed.grid_size:
        weights["pos_embed"] = resample_abs_pos_embed(
            table, new_size=list(vit.patch_embed.grid_size), old_size=[side, side], num_prefix_tokens=0
        )
    vit.load_state_dict(weights)


def _from_timm(name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    """The model of timm, without its head."""
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
    except (OSError, RuntimeError) as error:
        # OSErrors are the hub's where it cannot be reached, RuntimeErrors timm's where a model has no
        # pretrained weights at all; any other RuntimeError is not about weights.
        if not pretrained or (isinstance(error, RuntimeError) and "pretrained" not in str(error).lower()):
            raise
        reason = str(error).strip().splitlines()[0]
        raise WeightsUnavailable(
            f"The pretrained weights of {name} cannot be had ({reason}); connect to the network, or choose the "
            f"embedded backbone {TINY!r}."
        ) from error
