"""Dinov2 in the layout of Hugging Face's `transformers`, such as RAD-DINO, loaded as a transformer of timm.

Only files are read; the library itself is not needed. The settings of such a folder become arguments for timm, so that
a saved model does not need the folder again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ifam._typing import Tensor
from ifam.backbones.architecture import Vit, check_tensors, mlp_ratio, name_architecture
from ifam.backbones.timm_compat import Vit as TimmVit
from ifam.backbones.vit import (
    Size,
    WeightsUnavailable,
    create_vit,
    is_known_backbone,
    load_weights,
    without_weight_sources,
)
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.model_files import CONFIG, WEIGHTS, download, read_json, read_safetensors

PREPROCESSOR = "preprocessor_config.json"
_TYPES = ("dinov2", "dinov2_with_registers")

# Pieces of names: timm, transformers.
_PIECES = (
    ("cls_token", "embeddings.cls_token"),
    ("reg_token", "embeddings.register_tokens"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("blocks.", "encoder.layer."),
    ("attn.proj.", "attention.output.dense."),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
    ("mlp.fc1.", "mlp.weights_in."),
    ("mlp.fc2.", "mlp.weights_out."),
)
_QKV = "attn.qkv."
_QKV_PARTS = tuple(f"attention.attention.{part}." for part in ("query", "key", "value"))


def to_timm(name: str) -> str:
    """The timm name of a tensor of a backbone; query, key and value keep theirs."""
    for timm_piece, piece in _PIECES:
        name = name.replace(piece, timm_piece)
    return re.sub(r"^layernorm\.", "norm.", name)


def fuse_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with query, key and value joined, in this order; heads are contiguous rows in both layouts."""
    query, *others = _QKV_PARTS
    fused = {}
    for name, tensor in tensors.items():
        if any(part in name for part in others):
            continue
        if query in name:
            tensor = torch.cat([tensors[name.replace(query, part)] for part in _QKV_PARTS])
        fused[name.replace(query, _QKV)] = tensor
    return fused


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a backbone without registers or gated MLP, from timm's names to those of `transformers`."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for timm_piece, piece in _PIECES[:-2]:
            name = name.replace(timm_piece, piece)
        name = re.sub(r"^norm\.", "layernorm.", name)
        if _QKV in name:
            thirds = zip(_QKV_PARTS, tensor.chunk(3), strict=True)
            renamed |= {name.replace(_QKV, part): third.clone() for part, third in thirds}
        else:
            renamed[name] = tensor
    return renamed


@dataclass(frozen=True)
class Dinov2:
    """A model of `transformers`, described for timm.

    Attributes:
        source: Its folder or hub id, as given.
        name: Name for `timm.create_model`.
        kwargs: Arguments that make it that model, with its image size and normalization; JSON-serializable.
    """

    source: str
    name: str
    kwargs: dict[str, Any]

    def create_vit(self, image_size: Size | None, pretrained: bool, kwargs: Mapping[str, Any]) -> TimmVit:
        """The transformer; the arguments are those of `ifam.backbones.vit.create_vit`."""
        vit = create_vit(self.name, image_size, False, {**self.kwargs, **kwargs})
        if pretrained:
            weights = _weights(_fetch(self.source, CONFIG, WEIGHTS))
            shapes = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
            # Both are resampled below, where image or patches have another size.
            resampled = {name for name in ("pos_embed", "patch_embed.proj.weight") if name in weights}
            shapes |= {name: tuple(weights[name].shape) for name in resampled}
            check_tensors(shapes, weights, f"one with every tensor of the Dinov2 that {CONFIG} describes")
            load_weights(vit, weights)
        return vit


def find_hf_dinov2(source: str) -> Dinov2 | None:
    """The model in a folder or on the hub; None for a name of timm's or of this package.

    Args:
        source: A folder, or an id `owner/name` of the hub, with or without `hf-hub:`.

    Raises:
        IfamError: It holds another kind of model, or is unavailable.
    """
    if is_known_backbone(source) or not ("/" in source or "\\" in source or (Path(source) / CONFIG).is_file()):
        return None
    folder = _fetch(source, CONFIG, PREPROCESSOR)
    settings = read_json(folder / CONFIG)
    if settings is None:
        raise IfamError(f"{source} has no {CONFIG}; give the folder of a Dinov2 as `transformers` saves it.")
    kind = settings.get("model_type")
    if kind not in _TYPES:
        fix = f"give the name {settings['architecture']!r}" if "architecture" in settings else "give one of those"
        raise IfamError(
            f"{source} holds a model of type {kind!r}, but a backbone is read from folders of {' and '.join(_TYPES)} "
            f"in the layout of `transformers` only; {fix}, or a name of timm's."
        )
    return Dinov2(source, *_describe(source, settings, read_json(folder / PREPROCESSOR) or {}))


def resolve(config: ModelConfig) -> ModelConfig:
    """The settings from which a saved model is rebuilt, with its own weights.

    Folders are replaced by timm's names, and arguments that say where weights are read from are left out.
    """
    config = _resolve_folders(config)
    given: dict[str, Any] = {name: getattr(config, name) for name in ("backbone_kwargs", "predictor_kwargs")}
    kept: dict[str, Any] = {
        name: value if value is None else without_weight_sources(value) for name, value in given.items()
    }
    return config if kept == given else replace(config, **kept)


def _resolve_folders(config: ModelConfig) -> ModelConfig:
    """The same settings with timm's names in the place of folders."""
    first, second = (
        find_hf_dinov2(config.backbone),
        config.predictor_backbone and find_hf_dinov2(config.predictor_backbone),
    )
    if first is None and not second:
        return config
    kwargs, predictor_kwargs = config.backbone_kwargs, config.predictor_kwargs
    if first is not None:
        config = replace(config, backbone=first.name, backbone_kwargs={**first.kwargs, **kwargs})
    if config.predictor_backbone is None:
        # The same folder for both; the predictor's arguments override those of the folder.
        stated = predictor_kwargs if predictor_kwargs is None or first is None else {**first.kwargs, **predictor_kwargs}
        return replace(config, predictor_kwargs=stated)
    given = kwargs if predictor_kwargs is None else predictor_kwargs
    if not second:
        return replace(config, predictor_kwargs=given)
    return replace(config, predictor_backbone=second.name, predictor_kwargs={**second.kwargs, **given})


def _describe(source: str, settings: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments for timm, from the content of `config.json`."""
    fixed = {"hidden_act": "gelu", "layer_norm_eps": 1e-6}
    wrong = [f"{key} {settings[key]!r}" for key, value in fixed.items() if settings.get(key, value) != value]
    if wrong:
        raise IfamError(f"{source} has {' and '.join(wrong)}, but timm's DINOv2 needs {fixed}; give such a model.")
    try:
        width, heads = int(settings["hidden_size"]), int(settings["num_attention_heads"])
        patch, size = int(settings["patch_size"]), int(settings["image_size"])
        swiglu, ratio = bool(settings.get("use_swiglu_ffn", False)), float(settings.get("mlp_ratio", 4))
        registers = int(settings.get("num_register_tokens", 4)) if settings["model_type"] == _TYPES[1] else 0
        depth = int(settings["num_hidden_layers"])
        if min(width, heads, patch, size, depth) < 1 or not 0 < ratio < 1000:
            raise ValueError("one is not positive")
    except (KeyError, TypeError, ValueError) as error:
        raise IfamError(
            f"{source} does not describe a Dinov2: a number in {CONFIG} is missing or invalid ({error}); restore the "
            f"file that was saved with the weights."
        ) from error
    # Two thirds of the stated width, in steps of eight, and twice that: gate and value.
    hidden = 2 * ((int(int(width * ratio) * 2 / 3) + 7) // 8 * 8) if swiglu else int(width * ratio)
    vit = Vit(
        embed_dim=width,
        depth=depth,
        patch_size=patch,
        reg_tokens=registers,
        mlp_ratio=mlp_ratio(hidden, width),
        swiglu=swiglu,
        no_embed_class=registers > 0,
        layer_scale=True,
        qkv_bias=bool(settings.get("qkv_bias", True)),
        grid=size // patch,
    )
    name, kwargs = name_architecture(vit, {}, heads)
    stated = {"mean": preprocessor.get("image_mean"), "std": preprocessor.get("image_std")}
    try:
        overlay = {key: [float(one) for one in value] for key, value in stated.items() if value is not None}
        if any(len(value) != 3 for value in overlay.values()) or min(overlay.get("std", [1.0])) <= 0:
            raise ValueError("three numbers are expected for each")
    except (TypeError, ValueError) as error:
        raise IfamError(
            f"{source} has an invalid image_mean or image_std in {PREPROCESSOR} ({error}); restore the file, or "
            f"remove it for ImageNet's."
        ) from error
    return name, {**kwargs, "img_size": size, **({"pretrained_cfg_overlay": overlay} if overlay else {})}


def _weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder under timm's names."""
    tensors = {}
    for name, tensor in read_safetensors(folder / WEIGHTS).items():
        short = re.sub(r"^dinov2(_with_registers)?\.", "", name)
        # A classifier is not part of the backbone; only pretraining masks tokens.
        if not short.startswith("classifier.") and short != "embeddings.mask_token":
            tensors[short] = tensor
    weights = {to_timm(name): tensor.to(torch.float32) for name, tensor in fuse_qkv(tensors).items()}
    if "reg_token" in weights and {"cls_token", "pos_embed"} <= set(weights):
        # timm's position table has no row for the class token here, so the position is added to the token itself.
        weights["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
        weights["pos_embed"] = weights["pos_embed"][:, 1:]
    return weights


def _fetch(source: str, *files: str) -> Path:
    """The folder, or a local copy of it."""
    name = source.removeprefix("hf-hub:")
    if name == source and Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise IfamError(f"There is no folder {source}; give an existing one, an id `owner/name` of the hub, or a name.")
    try:
        return download(name, files)
    except IfamError as error:
        raise WeightsUnavailable(str(error)) from error
