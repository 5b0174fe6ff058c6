"""Vision transformers of timm by name, and the small one that this package brings along."""

import difflib
import re
from importlib import resources
from typing import Any

import timm
from safetensors.torch import load_file
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

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


def create(name: str, image_size: int | None, pretrained: bool, kwargs: dict[str, Any]) -> VisionTransformer:
    """The timm model, without its head.

    Args:
        name: timm's name of the model, or `ifam_tiny`.
        image_size: Side of the square input in pixels; the model's own where None.
        pretrained: Load pretrained weights.
        kwargs: Handed to `timm.create_model`.

    Raises:
        IfamError: The name is unknown, is not a vision transformer, or the patches do not divide the image.
    """
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
