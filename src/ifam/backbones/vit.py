"""Vision transformers of timm by name, and the small one embedded in this package (docs/models.md)."""

import difflib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.patch_embed import PatchEmbed, resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import is_model_in_modules
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from ifam._typing import Tensor
from ifam.backbones.timm_compat import Vit, keep_tokens_only
from ifam.errors import IfamError, first_line
from ifam.io import foreign_content

# Channel means and standard deviations of ImageNet.
IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)

# Height and width in pixels, or the side of a square.
Size = int | Sequence[int]

# The embedded backbone: small enough to ship, with the architecture of DINOv2 with registers (docs/pondbirds.md).
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

# Blocks of a model in a file; those in use have up to 48.
_MOST_BLOCKS = 1000
# Arguments of `timm.create_model` that say where weights are, and entries of its `pretrained_cfg` that do.
_WEIGHT_ARGUMENTS = {"checkpoint_path", "cache_dir"}
_PRETRAINED_CONFIGS = {"pretrained_cfg", "pretrained_cfg_overlay"}
_WEIGHT_ENTRIES = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"}

# timm's modules that define these families.
_FAMILIES = ["vision_transformer", "deit", "eva"]


class WeightsUnavailable(IfamError):
    """Pretrained weights could not be fetched."""


def is_known_backbone(name: str) -> bool:
    """Whether timm or this package has a backbone of this name, which is neither a path nor a place on the hub."""
    return name == TINY or (re.fullmatch(r"[\w.-]+", name) is not None and bool(timm.is_model(name)))


def backbone_license(name: str) -> str | None:
    """The license of the pretrained weights of a backbone, as timm or this package states it; None where unknown."""
    if name == TINY:
        return "apache-2.0"
    found = timm.get_pretrained_cfg(name, allow_unregistered=False) if is_known_backbone(name) else None
    return None if found is None else found.license


def without_weight_sources(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `timm.create_model` without those that say where weights are read from."""
    kept = {name: value for name, value in kwargs.items() if name not in _WEIGHT_ARGUMENTS}
    for name in _PRETRAINED_CONFIGS & kept.keys():
        if isinstance(kept[name], Mapping):
            kept[name] = {key: value for key, value in kept[name].items() if key not in _WEIGHT_ENTRIES}
    return kept


def check_saved_backbone(name: str, kwargs: Mapping[str, Any], where: Path) -> None:
    """Refuse what a model's settings, which may be a stranger's, may not name.

    That is anything but a backbone of timm or of this package, and plain values for the arguments of its constructor:
    no file, no place on the hub, nothing that timm would open, download or call.

    Args:
        name: The backbone.
        kwargs: Its arguments.
        where: The file with the settings.

    Raises:
        IfamError: They name something else.
    """
    if not is_known_backbone(name):
        raise IfamError(f"{where} cannot be used: {_unknown(name)}")
    known = {*signature(VisionTransformer).parameters, *signature(Eva).parameters, *_PRETRAINED_CONFIGS}
    given = dict(kwargs)
    for one in _PRETRAINED_CONFIGS & kwargs.keys():
        if isinstance(kwargs[one], Mapping):
            given |= {f"{one}.{key}": value for key, value in given.pop(one).items()}
            known |= {f"{one}.{key}" for key in kwargs[one] if key not in _WEIGHT_ENTRIES}
    wrong = [key for key, value in given.items() if key not in known or not _is_plain(value)]
    # Each block takes memory before the weights are read.
    wrong += ["depth"] if isinstance(depth := given.get("depth"), int) and depth > _MOST_BLOCKS else []
    if wrong:
        raise IfamError(
            f"{where} gives the backbone {wrong[0]} = {given[wrong[0]]!r}, but only numbers and words for the "
            f"constructor of a vision transformer are accepted from a file; remove it."
        )


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, true, false, null, or a list of these."""
    values = value if isinstance(value, list) else [value]
    return all(one is None or isinstance(one, bool | int | float | str) for one in values)


def create_vit(name: str, image_size: Size | None, pretrained: bool, kwargs: dict[str, Any]) -> Vit:
    """The timm model, without its head and its own pooling.

    Args:
        name: timm's name of the model, or `ifam_tiny`.
        image_size: Height and width of the input in pixels, or the side of a square; the model's own where None.
        pretrained: Load pretrained weights.
        kwargs: Passed to `timm.create_model`.

    Raises:
        IfamError: The name is unknown or not that of a vision transformer, or the patches do not divide the image.
    """
    for rate in ("patch_drop_rate", "pos_drop_rate", "attn_drop_rate"):
        if kwargs.get(rate):
            raise IfamError(
                f"{rate} is {kwargs[rate]}, but only the mask may hide tokens; leave it at 0 "
                f"(mask_part_dropout, drop_path_rate and proj_drop_rate work)."
            )
    if not is_known_backbone(name):
        raise IfamError(_unknown(name))
    patch = kwargs.get("patch_size") or (TINY_ARCH["patch_size"] if name == TINY else _patch_size(name))
    size = to_pair(kwargs.get("img_size") if image_size is None else image_size)
    if isinstance(patch, int):
        check_size(name, size, patch)
    vit = _build(name, size, pretrained, kwargs)
    if not isinstance(vit, Vit) or type(vit.patch_embed) is not PatchEmbed:
        kind = type(vit).__name__ + (" on a convolutional stem" if isinstance(vit, Vit) else "")
        raise IfamError(
            f"The backbone {name!r} is a {kind}, but a timm VisionTransformer on plain patches (or an Eva) is "
            f"expected; choose one of `timm.list_models('vit*')`."
        )
    height, width = vit.patch_embed.patch_size
    if height != width:
        raise IfamError(
            f"The patches of {name} have {height} x {width} pixels, but squares are expected; give one side."
        )
    check_size(name, size, int(height))
    if name == TINY and pretrained:
        with resources.as_file(resources.files("ifam") / "assets" / "tiny_vit.safetensors") as path:
            load_weights(vit, load_file(path))
    keep_tokens_only(vit)
    return vit


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, [TINY, *timm.list_models(["vit*", "eva*", "deit*"])], n=3)
    return (
        f"There is no backbone {name!r}; choose a vision transformer of timm "
        f"(`timm.list_models('vit*')`) or {TINY!r}{', for example ' + ', '.join(near) if near else ''}."
    )


def load_weights(vit: Vit, weights: dict[str, Tensor]) -> None:
    """Load weights under timm's names, resampled where they have another square grid or patch size.

    Raises:
        IfamError: They belong to another transformer.
    """
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    tensors = dict(weights)
    if "pos_embed" in tensors:
        grid = list(vit.patch_embed.grid_size)
        tensors["pos_embed"] = resample_abs_pos_embed(tensors["pos_embed"], grid, num_prefix_tokens=prefix)
    projection = "patch_embed.proj.weight"
    patch = vit.patch_embed.proj.weight.shape[2:]
    if projection in tensors and tensors[projection].shape[2:] != patch:
        tensors[projection] = resample_patch_embed(tensors[projection], list(patch))
    try:
        vit.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise IfamError(
            f"The pretrained weights do not fit this transformer ({reason}); leave backbone_kwargs out, or "
            f"start from random weights with pretrained=False."
        ) from error


def _build(name: str, size: tuple[int, int] | None, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    """The model that timm builds under this name, of any kind."""
    given = {**kwargs, **({} if size is None else {"img_size": size})}
    # All images have the size of the model, so positions are resampled once, here.
    fixed = {**given, "dynamic_img_size": False}
    try:
        if name == TINY:
            return VisionTransformer(**{**TINY_ARCH, **fixed})
        # Models of other families may not have the setting; they are refused by their type.
        return _from_timm(name, pretrained, fixed if is_model_in_modules(name, _FAMILIES) else given)
    except (TypeError, AssertionError) as error:
        raise IfamError(
            f"timm cannot build the backbone {name!r} with {given} ({first_line(error)}); choose a vision "
            f"transformer (`timm.list_models('vit*')`), and backbone_kwargs that its constructor takes."
        ) from error


def to_pair(size: Size | None, setting: str = "image_size") -> tuple[int, int] | None:
    """Height and width; None for the model's own size.

    Args:
        size: Height and width in pixels, or the side of a square.
        setting: Name of the setting, for the error.

    Raises:
        IfamError: It is something else.
    """
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) for side in pair):
        raise IfamError(f"{setting} is {size!r}, but pixels are expected; give one side, or height and width.")
    return pair


def check_size(name: str, size: tuple[int, int] | None, patch: int, setting: str = "image size") -> None:
    """Refuse an image size that the patches of a transformer of this name do not divide."""
    if size is None or all(side > 0 and side % patch == 0 for side in size):
        return
    lower = [max(1, side // patch) * patch for side in size]
    upper = [low if side == low else low + patch for side, low in zip(size, lower, strict=True)]
    text, *fixes = (str(a) if size[0] == size[1] else f"{a} x {b}" for a, b in (size, lower, upper))
    raise IfamError(
        f"The {setting} {text} is not a multiple of the {patch} px patches of {name}; use {fixes[0]} or {fixes[1]}."
    )


def _patch_size(name: str) -> int | None:
    """The patch size in timm's model names (`..._patch14_...`)."""
    match = re.search(r"_patch(\d+)", name)
    return int(match.group(1)) if match else None


def _from_timm(name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    """The model of timm, without its head."""
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
    except Exception as error:  # a damaged file can raise anything
        if pretrained and (cached := _damaged_weights(name)):
            reason = foreign_content(cached) or _reason(error)
            raise IfamError(
                f"The pretrained weights of {name} in {cached} are damaged ({reason}); remove that file, so that it is "
                f"downloaded again."
            ) from error
        # OSErrors are the hub's where it cannot be reached, RuntimeErrors timm's where a model has no
        # pretrained weights at all; any other RuntimeError is not about weights.
        if not pretrained or not isinstance(error, OSError | RuntimeError):
            raise
        if isinstance(error, RuntimeError) and "pretrained" not in str(error).lower():
            raise
        raise WeightsUnavailable(
            f"The pretrained weights of {name} are unavailable ({_reason(error)}); connect to the network, name "
            f"a folder of weights as the backbone, or choose the embedded one, {TINY!r}."
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _damaged_weights(name: str) -> Path | None:
    """The cached file of pretrained weights, if it cannot be read."""
    stated = timm.get_pretrained_cfg(name, allow_unregistered=True)
    candidates: list[Any] = []  # paths, or the hub's marker of an absent file
    if stated is not None and stated.hf_hub_id:
        repository, _, revision = str(stated.hf_hub_id).partition("@")
        files: set[str] = {stated.hf_hub_filename or "model.safetensors", "model.safetensors", "pytorch_model.bin"}
        candidates += [try_to_load_from_cache(repository, file, revision=revision or None) for file in sorted(files)]
    if stated is not None and stated.url:
        candidates.append(Path(torch.hub.get_dir(), "checkpoints", Path(str(stated.url)).name))
    for file in (Path(str(one)) for one in candidates if isinstance(one, str | Path)):
        try:
            if file.is_file():
                load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        except Exception:  # as above
            return file
    return None
