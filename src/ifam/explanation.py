"""Explanations of an answer: what each part contributes, or heat maps of any vision transformer of timm."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, overload

import torch
from torch import nn

from ifam._typing import Tensor, UInt8
from ifam.backbones.timm_compat import class_tokens, is_vit
from ifam.backbones.vit import IMAGENET
from ifam.errors import IfamError, suggestion
from ifam.models.attribution import BUILT_IN, METHODS, PatchClassifier, UnmaskedClassifier, has_libraries
from ifam.models.base import Classifier, evaluating, finite_logits
from ifam.models.baselines import PlainViT, PlainViTAttentive, PlainViTMean
from ifam.models.contributions import PartContributions, explain_parts
from ifam.models.ifam import IFAM
from ifam.models.part_sum import held_parts
from ifam.models.pixel_mask import visible_patches
from ifam.models.predictor import Predictor
from ifam.progress import ProgressBar
from ifam.report.heat_maps import HeatMaps

# The method where none is given.
_DEFAULT = "gradcam"


@overload
def explain(  # type: ignore[overload-overlap]
    model: Classifier, images: Tensor, *, method: None = None, batch_size: int = 16
) -> PartContributions: ...
@overload
def explain(
    model: nn.Module,
    images: Tensor,
    *,
    method: str | None = None,
    target: int | Tensor | None = None,
    batch_size: int = 16,
) -> HeatMaps: ...
def explain(
    model: nn.Module,
    images: Tensor,
    *,
    method: str | None = None,
    target: int | Tensor | None = None,
    batch_size: int = 16,
) -> PartContributions | HeatMaps:
    """What an answer rests on.

    Of a model that answers from its parts, what each part contributes to the class logits. Where the predictor sees
    each part alone, these are the model's own terms. Where it sees them together, they are the parts' Shapley values
    (Shapley, 1953): the mean, over all orders in which the parts could be shown one by one, of what a part changes when
    it is added.

    Of any vision transformer of timm, or with a `method`, heat maps: "gradcam" (the default), "gradcam++", "layercam"
    (torchcam), "integrated_gradients", "saliency", "occlusion" (captum), "attention_rollout" (no library needed). Of a
    model that masks its input, they are of the predictor's answer given its mask, and 0 where it is hidden.

    Args:
        model: A model with parts, a plain ViT of this package, or a vision transformer of timm. It runs in evaluation
            mode; its mode is restored, and its weights receive no gradient.
        images: Normalized images [B, 3, S1, S2].
        method: A method of attribution.
        target: The class to explain, or one of each image; the predicted class where it is None. For heat maps.
        batch_size: Images that are computed at once.

    Returns:
        `PartContributions` or `HeatMaps`, on the CPU.

    Raises:
        IfamError: The model has no parts to explain its answer, or is no vision transformer; the images do not fit it
            or are no numbers; there is no such method or class; or the extra `explain` is missing.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise IfamError(f"batch_size is {batch_size!r}, but a whole number of at least 1 is needed.")
    if isinstance(model, Classifier) and method is None:
        if target is not None:
            raise IfamError("Contributions are of all classes; leave the target away, or give a method for heat maps.")
        _check_images(model, images)
        return explain_parts(model, images, batch_size=batch_size)
    name = _method(_DEFAULT if method is None else method)
    _check_model(model)
    if name == "attention_rollout" and isinstance(model, IFAM):
        raise IfamError(
            "A model that masks its input has no attention to hidden patches to roll out; use another method, or none: "
            "its parts are its explanation."
        )
    _check_images(model, images)
    classes = _checked_target(target, len(images))
    few = len(images) <= batch_size
    batches = []
    # Inference mode would leave tensors that no gradient can pass.
    with torch.inference_mode(False), evaluating(model), ProgressBar(disable=few) as bar:
        task = bar.add_task(name, total=len(images))
        for start in range(0, max(1, len(images)), batch_size):
            rows = slice(start, start + batch_size)
            batches.append(_explain_batch(model, images[rows], name, None if classes is None else classes[rows]))
            bar.advance(task, len(images[rows]))
    joined: dict[str, Any] = {
        key: torch.cat([getattr(one, key) for one in batches]) for key in ("maps", "targets", "logits", "images")
    }
    return replace(batches[0], **joined)


def _explain_batch(model: nn.Module, images: Tensor, name: str, targets: Tensor | None) -> HeatMaps:
    """The maps of a batch, by a method of this name."""
    weight = next(model.parameters())
    inputs = images.detach().clone().to(weight.device, weight.dtype)
    with torch.no_grad():
        classifier, logits, visible = _as_patches(model, inputs)
    classes = logits.argmax(dim=1) if targets is None else targets.to(weight.device)
    if len(classes) and int(classes.max()) >= logits.shape[1]:
        raise IfamError(f"target is {int(classes.max())}, but the model has {logits.shape[1]} classes; count from 0.")
    if len(inputs):
        with torch.enable_grad():
            maps = METHODS[name](classifier, inputs, classes).detach().float()
    else:
        maps = logits.new_zeros(0, *classifier.patches(inputs)[0], dtype=torch.float32)
    if not bool(maps.isfinite().all()):
        raise IfamError(f"The maps of {name} are NaN or infinite for these images; use another method.")
    maps = maps if visible is None else maps * visible
    names = model.config.class_labels if isinstance(model, Classifier) else ()
    return HeatMaps(maps.cpu(), classes.cpu(), logits.float().cpu(), name, _to_pixels(model, images), names)


def _as_patches(model: nn.Module, images: Tensor) -> tuple[PatchClassifier, Tensor, Tensor | None]:
    """The classifier that maps are made of, its logits, and which patches it sees (all of them where it is None)."""
    if isinstance(model, IFAM):
        out = model(images)
        backbone, mask = model.predictor.backbone, out.mask
        visible = mask if tuple(mask.shape[1:]) == backbone.grid else visible_patches(mask, backbone.grid)
        given = (mask, *held_parts(out.patch_parts).values())
        classifier = PatchClassifier(
            _Masked(model.predictor), backbone.vit, backbone, int(backbone.has_class_token), given
        )
        return classifier, out.logits, visible
    if isinstance(model, PlainViT):
        classifier = UnmaskedClassifier(model.predictor).as_patches()
    elif isinstance(model, Classifier):
        classifier = PatchClassifier(_Logits(model), model.input_backbone.vit, model.input_backbone)
    else:
        vit: Any = model
        classifier = PatchClassifier(_Logits(model), vit, vit.forward_features, class_tokens(vit))
    return classifier, finite_logits(classifier.logits(images)), None


class _Logits(nn.Module):
    """A model whose output is its class logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        out = self.model(images)
        logits: Tensor = out if isinstance(out, Tensor) else out.logits
        return logits


class _Masked(nn.Module):
    """A predictor that is given its mask, with a slot for every patch."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, images: Tensor, mask: Tensor, patch_parts: Tensor | None = None) -> Tensor:
        execution, self.predictor.execution = self.predictor.execution, "dense"
        try:
            logits: Tensor = self.predictor(images, mask, **held_parts(patch_parts))
        finally:
            self.predictor.execution = execution
        return logits


def _method(name: object) -> str:
    """The name of a method, however it is spelled: GradCAM, Grad-CAM and grad_cam are one."""
    spelled = {_spelling(known): known for known in METHODS}
    if not isinstance(name, str) or _spelling(name) not in spelled:
        near = suggestion(name, METHODS) if isinstance(name, str) else ""
        raise IfamError(f"There is no method {name!r}{near}; choose one of {', '.join(METHODS)}.")
    method = spelled[_spelling(name)]
    if method not in BUILT_IN and not has_libraries():
        raise IfamError(
            f"The method {method} needs torchcam and captum; run `pip install 'ifam[explain]'`, or use {BUILT_IN[0]!r}."
        )
    return method


def _spelling(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower()).replace("+", "p")


def _check_model(model: object) -> None:
    """Refuse what has no heat maps."""
    if isinstance(model, Classifier):
        if not isinstance(model, PlainViT | PlainViTMean | PlainViTAttentive) and not (
            isinstance(model, IFAM) and model.masks_input
        ):
            raise IfamError(
                f"Heat maps are made of plain ViTs and of models that mask their input, but not of the method "
                f"{model.method}; give a model of the method ifam or plain_vit."
            )
    elif not isinstance(model, nn.Module) or not is_vit(model):
        raise IfamError(
            f"The model is a {type(model).__name__}, but a vision transformer of timm on patches is expected, such as "
            f'timm.create_model("vit_tiny_patch16_224"), or a model of this package.'
        )
    elif getattr(model, "num_classes", 1) < 1:
        raise IfamError(f"The {type(model).__name__} has no classifier, so it has no answer to explain; give one.")


def _check_images(model: Any, images: object) -> None:
    """Refuse what is not a batch of normalized images of the model's size."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        stated = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise IfamError(
            f"The images are {stated}, but a tensor of normalized images [B, 3, height, width] is expected."
        )
    if not bool(images.isfinite().all()):
        raise IfamError("The images hold NaN or infinity; give normalized images, whose values are numbers.")
    given = tuple(images.shape[2:])
    if isinstance(model, Classifier):
        model.input_backbone.check_images(images)
    elif getattr(model, "dynamic_img_size", False):
        patch = tuple(model.patch_embed.patch_size)
        pads = getattr(model.patch_embed, "dynamic_img_pad", False)
        if 0 in given or (not pads and any(side % step for side, step in zip(given, patch, strict=True))):
            raise IfamError(
                f"The images have {given[0]} x {given[1]} pixels, but multiples of the {patch[0]} x {patch[1]} pixels "
                f"of a patch are expected; resize them."
            )
    elif (expected := getattr(model.patch_embed, "img_size", None)) is not None and given != tuple(expected):
        raise IfamError(
            f"The images have {given[0]} x {given[1]} pixels, but the model expects {expected[0]} x {expected[1]}; "
            f"resize them, or make the model with dynamic_img_size=True."
        )


def _checked_target(target: object, count: int) -> Tensor | None:
    """The class of each image that is explained; None for the predicted ones."""
    if target is None:
        return None
    classes = torch.as_tensor(target) if isinstance(target, int | Tensor) and not isinstance(target, bool) else None
    if classes is not None and classes.ndim == 0:
        classes = classes.expand(count)
    whole = classes is not None and not classes.is_floating_point() and classes.dtype is not torch.bool
    if classes is None or not whole or tuple(classes.shape) != (count,) or bool((classes < 0).any()):
        raise IfamError(
            f"target is {target!r}, but a class from 0, or a tensor of one for each of {count} images, is expected."
        )
    return classes.long()


def _to_pixels(model: Any, images: Tensor) -> UInt8[Tensor, "B 3 S1 S2"]:
    """Normalized images as pixels, by what the model states of its input."""
    stated = getattr(model, "pretrained_cfg", None)
    settings = stated if isinstance(stated, Mapping) else {}
    mean, std = (settings.get(key) or known for key, known in zip(("mean", "std"), IMAGENET, strict=True))
    values = images.detach().float().cpu()
    pixels = values * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return (255 * pixels).round().clamp(0, 255).to(torch.uint8)
