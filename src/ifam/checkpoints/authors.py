"""Convert the authors' checkpoints of arXiv 2506.08915 to models of this package, and back.

Their tensors come under two sets of names: those of a timm vision transformer, and those of a Hugging Face
`Dinov2Model`, used with RAD-DINO for chest X-rays. Both become the same backbone here, by renaming and by joining
query, key and value (in this order; heads are contiguous rows in both).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ifam._typing import Tensor
from ifam.backbones.architecture import Shapes, check_tensors, describe, infer_vit, majority, name_architecture, preview
from ifam.backbones.hf_dinov2 import fuse_qkv, to_timm, to_transformers
from ifam.backbones.vit import IMAGENET
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.ifam import IFAM

Layout = Literal["timm", "transformers"]
RGB = tuple[float, float, float]

# The authors' models on the Hugging Face hub: number of parts and of classes. The recipe of each has its name, with `_`
# for `-` and without `ifam-` (docs/checkpoints.md).
PUBLISHED = {
    "ananthu-aniraj/ifam-waterbirds-k4": (4, 2),
    "ananthu-aniraj/ifam-waterbirds-k8": (8, 2),
    "ananthu-aniraj/ifam-cub-k8": (8, 200),
    "ananthu-aniraj/ifam-metashift-k1": (1, 2),
    "ananthu-aniraj/ifam-metashift-k2": (2, 2),
    "ananthu-aniraj/ifam-metashift-k8": (8, 2),
    "ananthu-aniraj/ifam-siim-acr-k8": (8, 2),
    "ananthu-aniraj/ifam-imagenet-k1": (1, 1000),
}

# Our names and theirs, outside the two backbones.
_HEADS = {
    "selector.prototypes": "stage_1.fc_landmarks.weight",
    "selector.modulation.weight": "stage_1.modulation.weight",
    "selector.modulation.bias": "stage_1.modulation.bias",
    "selector.classifier.weight": "stage_1.fc_class_landmarks.weight",
    "predictor.norm.weight": "stage_2.fc_norm.weight",
    "predictor.norm.bias": "stage_2.fc_norm.bias",
    "predictor.head.weight": "stage_2.head.weight",
}
_STAGES = {"stage_1.": "selector.backbone.vit.", "stage_2.": "predictor.backbone.vit."}
# A constant buffer of ones, one per prefix token.
_PREFIX_MASK = "stage_2.prefix_attn_mask"

# The axis of each tensor that has the size of the number of parts (with the background).
_PART_AXES = {
    "stage_1.fc_landmarks.weight": 0,
    "stage_1.modulation.weight": 1,
    "stage_1.modulation.bias": 1,
}
_CLASSIFIERS = ("stage_2.head.weight", "stage_1.fc_class_landmarks.weight")


def from_official(
    tensors: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    *,
    num_heads: int | None = None,
    image_size: int | None = None,
    mean: RGB | None = None,
    std: RGB | None = None,
) -> IFAM:
    """A model from a state dict of the authors, in either layout.

    Args:
        tensors: The state dict; names may carry `module.` or `_orig_mod.`, repeatedly.
        settings: The content of their `config.json`, if there is one; it must not contradict the tensors.
        num_heads: Attention heads; by default those of the architecture in the settings, else those in the settings,
            else width / 64.
        image_size: Side of the input in pixels; only needed where the position table fits two grids.
        mean: Channel means of the input normalization, which checkpoints do not contain; ImageNet's by default.
        std: Channel standard deviations; ImageNet's by default.

    Returns:
        The model in evaluation mode and float32; `IFAM(model.config, pretrained=False)` has the same shape.

    Raises:
        IfamError: Keys are missing, surplus or of a wrong shape, the settings contradict the tensors, or
            something cannot be inferred.
    """
    settings = settings or {}
    state = _clean(tensors)
    layout: Layout = "transformers" if any(".embeddings." in name for name in state) else "timm"
    shapes = {_to_timm(name): tuple(tensor.shape) for name, tensor in state.items()}
    stages = [_below(shapes, stage) for stage in _STAGES]
    vit = infer_vit(stages, image_size or _side(settings.get("img_size")))
    parts = majority(
        [shape[axis] for name, axis in _PART_AXES.items() if len(shape := shapes.get(name, ())) > axis],
        "stage_1.fc_landmarks.weight",
    )
    classes = majority([shapes[name][0] for name in _CLASSIFIERS if shapes.get(name)], _CLASSIFIERS[0])
    _check_settings(settings, num_landmarks=parts - 1, num_classes=classes, img_size=vit.image_size)
    backbone, kwargs = name_architecture(vit, settings, num_heads)
    config = ModelConfig(
        backbone=backbone,
        backbone_kwargs=kwargs,
        image_size=vit.image_size,
        num_parts=parts - 1,
        num_classes=classes,
        gumbel_noise=bool(settings.get("gumbel_softmax", True)),
        temperature=float(settings.get("softmax_temperature", 1.0)),
        mean=mean or IMAGENET[0],
        std=std or IMAGENET[1],
    )
    with torch.device("meta"):
        model = IFAM(config, pretrained=False)
    check_tensors({name: tuple(t.shape) for name, t in to_official(model, layout).items()}, state)
    model.load_state_dict(_to_ours(state), assign=True)
    return model.eval()


def to_official(model: IFAM, layout: Layout = "timm") -> dict[str, Tensor]:
    """A copy of a model's weights under the authors' names, with exactly their keys and shapes.

    Args:
        model: The model.
        layout: Their names for timm's transformers, or those for Hugging Face's.

    Returns:
        The state dict, with the constant buffer `stage_2.prefix_attn_mask`.

    Raises:
        IfamError: The layout has no names for this backbone.
    """
    _check_described(model)
    official = {}
    for name, tensor in model.state_dict().items():
        theirs = _HEADS.get(name, name)
        for stage, backbone in _STAGES.items():
            theirs = theirs.replace(backbone, stage)
        official[theirs] = tensor.detach().clone()
    prototypes = official["stage_1.fc_landmarks.weight"]
    official["stage_1.fc_landmarks.weight"] = prototypes[:, :, None, None]
    official[_PREFIX_MASK] = prototypes.new_ones(1, model.predictor.backbone.num_prefix_tokens)
    return official if layout == "timm" else _to_transformers(official, model)


def _clean(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors without the prefixes of wrappers, and without those that are not needed here."""
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = re.sub(r"^((module|_orig_mod)\.)+", "", str(name))
        # The step count of an averaged model, and the mask token of DINOv2's pretraining.
        if short == "n_averaged" or short.endswith("mask_token"):
            continue
        if not isinstance(tensor, Tensor):
            raise IfamError(
                f"The checkpoint holds a {type(tensor).__name__} under {name!r}, but a tensor is expected "
                f"under every key; give the snapshot, or its `model_state`, as it was saved."
            )
        if short in state:
            raise IfamError(f"The checkpoint holds {short!r} twice, with and without a prefix; remove one of them.")
        state[short] = tensor
    if not all(any(name.startswith(stage) for name in state) for stage in _STAGES):
        ours = any(name.startswith("selector.") for name in state)
        raise IfamError(
            "This is not a checkpoint of the authors' two-stage models: keys `stage_1.*` and `stage_2.*` are "
            f"expected, got {preview([repr(name) for name in state]) or 'nothing'}; "
            f"{'`IFAM.from_pretrained` reads this one' if ours else 'give one of theirs'}."
        )
    return state


def _below(shapes: Shapes, prefix: str) -> dict[str, Sequence[int]]:
    """The shapes below a prefix, under the rest of their names."""
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _to_timm(name: str) -> str:
    """The timm name of a tensor of either layout; query, key and value keep theirs."""
    stage = name[:8] if name.startswith(tuple(_STAGES)) else ""
    return stage + to_timm(name.removeprefix(stage))


def _check_described(model: IFAM) -> None:
    """Refuse models that the authors' code does not support: both of its stages have the same transformer."""
    stages = [stage.backbone for stage in (model.selector, model.predictor)]
    if model.config.aggregation != "joint":
        raise IfamError(
            "The authors' layout is that of a predictor which sees all parts together, but this model adds up what it "
            "says of each part (aggregation 'sum'); save it with `save_pretrained`."
        )
    # Only timm's `Eva` has rotary positions; the authors' models are of the other family.
    rotary = any(hasattr(backbone.vit, "rope") for backbone in stages)
    alike = [{name: tuple(t.shape) for name, t in backbone.vit.state_dict().items()} for backbone in stages]
    if rotary or alike[0] != alike[1] or len(set(model.image_size)) > 1:
        raise IfamError(
            "The authors' layout needs two identical transformers, on square images and without rotary positions, "
            "which this model does not have; save it with `save_pretrained`."
        )


def _to_transformers(official: dict[str, Tensor], model: IFAM) -> dict[str, Tensor]:
    """The timm layout in the names of Hugging Face's Dinov2."""
    for backbone in (model.selector.backbone, model.predictor.backbone):
        vit = describe(backbone.vit)
        if vit.reg_tokens or vit.no_embed_class or vit.swiglu or not (vit.layer_scale and vit.qkv_bias):
            raise IfamError(
                f"The layout 'transformers' has names only for a ViT without registers, with layer scale and "
                f"with the class token in its position table, which {model.config.backbone} is not; use "
                f"layout='timm'."
            )
    shared = {*_HEADS.values(), _PREFIX_MASK}
    renamed = {name: tensor for name, tensor in official.items() if name in shared}
    for stage in _STAGES:
        vit_tensors = {n.removeprefix(stage): t for n, t in official.items() if n.startswith(stage) and n not in shared}
        renamed |= {stage + name: tensor for name, tensor in to_transformers(vit_tensors).items()}
    return renamed


def _to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names and shapes for a complete state dict of either layout, in float32."""
    ours = {theirs: name for name, theirs in _HEADS.items()}
    renamed = {}
    for name, tensor in fuse_qkv(state).items():
        if name == _PREFIX_MASK:
            continue
        name = ours.get(name) or _STAGES[name[:8]] + _to_timm(name)[8:]
        tensor = tensor.flatten(1) if name == "selector.prototypes" else tensor
        renamed[name] = tensor.to(torch.float32).contiguous()
    return renamed


def _side(size: Any) -> int | None:
    """The side of a square image from `img_size`, which may be a number or a pair."""
    if isinstance(size, Sequence) and not isinstance(size, str) and len(set(size)) == 1:
        size = size[0]
    return size if isinstance(size, int) else None


def _check_settings(settings: Mapping[str, Any], **inferred: int) -> None:
    """Refuse settings that are invalid or contradict the tensors."""
    if not isinstance(temperature := settings.get("softmax_temperature", 1.0), int | float):
        raise IfamError(f"config.json has the softmax_temperature {temperature!r}, but a number is expected.")
    stated = {key: settings[key] for key in inferred if settings.get(key) is not None}
    wrong = [
        f"{key} is {value!r}, but {inferred[key]} in the tensors"
        for key, value in stated.items()
        if (_side(value) if key == "img_size" else value) != inferred[key]
    ]
    if wrong:
        raise IfamError(
            f"config.json contradicts the tensors: {'; '.join(wrong)}. Use the config.json that was saved with them."
        )
