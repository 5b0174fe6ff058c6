"""Infers the architecture of a vision transformer, and timm's name of it, from the names and shapes of its tensors."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt, nextafter
from typing import Any

import torch
from torch import nn

from ifam._typing import Tensor
from ifam.backbones.vit import create_vit
from ifam.errors import IfamError

# Types of weights; smaller ones are for storage, and the processor does not compute in them.
_WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Shapes = Mapping[str, Sequence[int]]

# DINOv2's models in timm, by width.
_SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}


@dataclass(frozen=True)
class Vit:
    """The architecture of a vision transformer; `grid` is the side of its grid in patches."""

    embed_dim: int
    depth: int
    patch_size: int
    reg_tokens: int
    mlp_ratio: float
    swiglu: bool
    no_embed_class: bool
    layer_scale: bool
    qkv_bias: bool
    grid: int

    @property
    def image_size(self) -> int:
        """Side of the input in pixels."""
        return self.grid * self.patch_size


def infer_vit(stages: Sequence[Shapes], image_size: int | None = None) -> Vit:
    """The architecture behind the tensors of one or more backbones that should be alike.

    Each size is the majority over all tensors, so one corrupt tensor does not mislead.

    Args:
        stages: Shapes by timm's names, for each backbone.
        image_size: Side of the input in pixels; decides where the position table fits two grids.

    Raises:
        IfamError: A tensor that is needed is missing, or the grid is ambiguous.
    """
    every = [pair for stage in stages for pair in stage.items()]
    blocks = [int(match[1]) for name, _ in every if (match := re.match(r"blocks\.(\d+)\.", name))]

    def sizes(ending: str, axis: int) -> list[int]:
        return [shape[axis] for name, shape in every if name.endswith(ending) and len(shape) > axis]

    width = majority(sizes("norm1.weight", 0), "stage_1.blocks.0.norm1.weight")
    hidden = majority(sizes("mlp.fc1.weight", 0), "stage_1.blocks.0.mlp.fc1.weight")
    patch = majority(sizes("patch_embed.proj.weight", 2), "stage_1.patch_embed.proj.weight")
    registers = majority(sizes("reg_token", 1), "stage_1.reg_token", default=0)
    side, no_embed_class = _infer_grid(sizes("pos_embed", 1), registers, patch, image_size)
    return Vit(
        embed_dim=width,
        depth=1 + max(blocks),
        patch_size=patch,
        reg_tokens=registers,
        mlp_ratio=mlp_ratio(hidden, width),
        swiglu=hidden == 2 * majority(sizes("mlp.fc2.weight", 1), "stage_1.blocks.0.mlp.fc2.weight"),
        no_embed_class=no_embed_class,
        layer_scale=any(name.endswith("ls1.gamma") for name, _ in every),
        qkv_bias=any(name.endswith(("attn.qkv.bias", "attention.attention.query.bias")) for name, _ in every),
        grid=side,
    )


def mlp_ratio(hidden: int, width: int) -> float:
    """The MLP ratio from which timm computes this hidden width."""
    ratio = hidden / width
    # timm takes int(width * ratio), which a rounded ratio would miss by one.
    return ratio if int(width * ratio) == hidden else nextafter(ratio, hidden)


def _infer_grid(rows: Sequence[int], registers: int, patch: int, image_size: int | None) -> tuple[int, bool]:
    """Side of the square grid, and whether the position table covers patches only."""
    majority(rows, "stage_1.pos_embed")
    grids = set()
    for count in rows:
        for patches, no_embed_class in ((count, True), (count - 1 - registers, False)):
            if patches > 0 and isqrt(patches) ** 2 == patches:
                grids.add((isqrt(patches), no_embed_class))
    if len(grids) > 1:
        grids = {(side, flag) for side, flag in grids if side * patch == image_size} or grids
    if not grids:
        raise IfamError(
            f"The position table has {rows[0]} rows, but a square number of patches is expected, with or "
            f"without {1 + registers} for the prefix tokens; only square images are supported."
        )
    if len(grids) > 1:
        sides = " or ".join(str(side * patch) for side, _ in sorted(grids))
        raise IfamError(f"The position table fits images of {sides} pixels; give one with image_size=.")
    return grids.pop()


def majority(values: Iterable[int], name: str, default: int | None = None) -> int:
    """The most frequent value; the first one at a tie.

    Args:
        values: One value per tensor.
        name: A tensor that the value is read from, for the error.
        default: The value where there are none.

    Raises:
        IfamError: There are no values and no default.
    """
    counts = Counter(values).most_common(1)
    if counts:
        return counts[0][0]
    if default is None:
        raise IfamError(
            f"The checkpoint does not fit the model: {name} is missing, and the model's shape cannot be "
            f"inferred without it; the file is damaged or belongs to another model."
        )
    return default


# Fields that an architecture fixes; the others may be overridden and are taken from the tensors.
_SIZE_FIELDS = ("embed_dim", "depth", "patch_size", "reg_tokens", "mlp_ratio")
_FIXED_FIELDS = (*_SIZE_FIELDS, "swiglu", "layer_scale")


def name_architecture(vit: Vit, settings: Mapping[str, Any], num_heads: int | None) -> tuple[str, dict[str, Any]]:
    """The name and arguments with which `timm.create_model` builds the transformer of the tensors.

    Args:
        vit: The architecture inferred from the tensors.
        settings: The content of `config.json`: `model_arch`, `num_heads`.
        num_heads: Attention heads, if the user gave them.

    Raises:
        IfamError: The settings contradict the tensors, or the heads are unknown.
    """
    stated = settings.get("model_arch")
    size, registers = _SIZES.get(vit.embed_dim), f"reg{vit.reg_tokens}_" if vit.reg_tokens else ""
    name = stated or f"vit_{size}_patch14_{registers}dinov2.lvd142m"
    known = _describe(name)
    if known is not None:
        wrong = [
            f"{field} is {getattr(known.vit, field)}, but {getattr(vit, field)} in the tensors"
            for field in _FIXED_FIELDS
            if getattr(known.vit, field) != getattr(vit, field)
        ]
        if not wrong:
            heads = num_heads or (None if stated else _stated_heads(settings)) or known.heads
            kwargs = {} if heads == known.heads else {"num_heads": heads}
            return name, _check_heads(vit, heads, kwargs | _overrides(vit, known.vit))
        if stated:
            raise IfamError(
                f"config.json contradicts the tensors: in the architecture {stated!r}, "
                f"{'; '.join(wrong)}. Use the config.json that was saved with them."
            )
    heads = num_heads or _stated_heads(settings)
    if heads is None and (stated or vit.embed_dim % 64):
        reason = f"timm has no model {stated!r}" if stated else f"the width {vit.embed_dim} is not a multiple of 64"
        raise IfamError(f"The number of attention heads cannot be inferred: {reason}; give it with num_heads=.")
    heads = heads or vit.embed_dim // 64
    sizes = {field: getattr(vit, field) for field in _SIZE_FIELDS}
    # No argument turns the gated MLP on, or layer scale off (timm takes None for "not given"): names do.
    name = "vit_base_patch14_dinov2" if vit.layer_scale else "vit_base_patch16_224"
    name = "vit_giant_patch14_dinov2" if vit.swiglu else name
    return name, _check_heads(vit, heads, {**sizes, "num_heads": heads, **_overrides(vit, None)})


@dataclass(frozen=True)
class _Known:
    """A model that timm has under a name."""

    vit: Vit
    heads: int


def _describe(name: str) -> _Known | None:
    """The architecture of timm's model of this name; None where timm has no such transformer."""
    try:
        with torch.device("meta"):
            vit = create_vit(name, None, False, {})
    except (IfamError, RuntimeError):
        return None
    return _Known(describe(vit), count_heads(vit))


def describe(vit: nn.Module) -> Vit:
    """The architecture of a transformer of timm."""
    return infer_vit([{name: tuple(t.shape) for name, t in vit.state_dict().items()}])


def count_heads(vit: nn.Module) -> int:
    """Attention heads of a transformer of timm, which cannot be inferred from its tensors."""
    counts: list[Any] = [module.num_heads for module in vit.modules() if hasattr(module, "num_heads")]
    return int(counts[0])


def _stated_heads(settings: Mapping[str, Any]) -> Any:
    """The heads that `config.json` states, under timm's name or under Hugging Face's."""
    return settings.get("num_heads") or settings.get("num_attention_heads")


def _overrides(vit: Vit, known: Vit | None) -> dict[str, Any]:
    """Arguments for the fields that an architecture does not fix, where they differ."""
    return {
        field: getattr(vit, field)
        for field in ("no_embed_class", "qkv_bias")
        if known is None or getattr(known, field) != getattr(vit, field)
    }


def _check_heads(vit: Vit, heads: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments, after a check that the heads divide the width."""
    if not isinstance(heads, int) or heads < 1 or vit.embed_dim % heads:
        raise IfamError(
            f"num_heads is {heads!r}, but a divisor of the width {vit.embed_dim} is expected; DINOv2 has width / 64."
        )
    return kwargs


def check_tensors(
    expected: Shapes, tensors: Mapping[str, Tensor], wanted: str = "a checkpoint with every tensor of both stages"
) -> None:
    """Raise an `IfamError` unless the tensors have exactly the expected names and shapes, and hold numbers.

    Args:
        expected: Shapes by name.
        tensors: The tensors.
        wanted: Description of what is expected, for the error.
    """
    missing = [name for name in expected if name not in tensors]
    surplus = [name for name in tensors if name not in expected]
    wrong = [
        f"{name} (expected {list(shape)}, got {list(tensors[name].shape)})"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    kinds = [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if not _is_weight(name, tensor)]
    damaged = [
        name
        for name, tensor in tensors.items()
        if _is_weight(name, tensor) and not (tensor.is_meta or tensor.isfinite().all())
    ]
    problems = [
        _count(missing, "missing"),
        _count(surplus, "surplus"),
        _count(wrong, "of the wrong shape"),
        _count(kinds, "of a type that cannot hold weights"),
        _count(damaged, "not finite"),
    ]
    if any(problems):
        raise IfamError(
            f"The checkpoint does not fit the model: {'; '.join(filter(None, problems))}; {wanted} is expected, but "
            f"this one is damaged or belongs to another model."
        )


def _is_weight(name: str, tensor: Tensor) -> bool:
    return tensor.dtype in _WEIGHT_TYPES or name.endswith("prefix_attn_mask")


def preview(items: Sequence[str], limit: int = 3) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def _count(items: Sequence[str], what: str) -> str:
    """How many keys there are, and which; empty where there are none."""
    return f"{len(items)} {'key is' if len(items) == 1 else 'keys are'} {what}: {preview(items)}" if items else ""
