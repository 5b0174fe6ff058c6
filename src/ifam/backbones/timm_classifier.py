"""Any classifier of timm, with the preprocessing that it was trained with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from ifam._typing import Tensor
from ifam.errors import IfamError, first_line, suggestion


@dataclass(frozen=True)
class TimmClassifier:
    """A classifier of timm, in evaluation mode.

    Attributes:
        model: Normalized images [B, 3, H, W] to logits [B, C].
        image_size: Height and width of its input.
        mean: Channel means of its input.
        std: Channel standard deviations.
        crop: Share of the resized image's side that it is given, `crop_pct` of timm.
        class_names: Name of each class, where timm knows them; else empty.
    """

    model: nn.Module
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float
    class_names: tuple[str, ...]


def load_timm_classifier(name: str, weights: Mapping[str, Tensor] | None = None) -> TimmClassifier:
    """A classifier of timm with pretrained weights, or with given ones.

    Args:
        name: A name of timm's registry, or `hf-hub:owner/name` or `local-dir:FOLDER` in timm's format.
        weights: Its state dict, with any number of classes; timm fetches the pretrained ones where it is None.

    Raises:
        IfamError: There is no such model, its weights cannot be fetched or do not fit, or it has no classifier.
    """
    source, _, below = name.rpartition(":")
    if not source and timm.models.split_model_name_tag(name)[0] not in timm.list_models():
        raise IfamError(f"timm has no model {name!r}{suggestion(name, timm.list_models())}; choose another name.")
    try:
        model: Any = timm.create_model(name, pretrained=weights is None)
        if weights is not None:
            model.reset_classifier(_count_classes(model, weights, name))
            model.load_state_dict(dict(weights))
    except IfamError:
        raise
    except Exception as error:  # timm raises anything for a hub that is not there and files that it did not write
        if weights is not None:
            raise IfamError(
                f"The weights do not fit timm's {name} ({first_line(error)}); give the state dict of this model."
            ) from error
        mend = "check the name and the network, or give weights with --checkpoint"
        if source:
            mend = "check name and network; timm's format is expected, and a model of transformers needs a function"
        raise IfamError(f"{below} could not be loaded by timm ({first_line(error).rstrip('.')}); {mend}.") from error
    if getattr(model, "num_classes", 0) < 2:
        raise IfamError(f"{below} has no classes in timm, so it answers nothing; choose a model with a classifier.")
    settings = resolve_model_data_config(model)
    return TimmClassifier(
        model.eval(),
        settings["input_size"][1:],
        tuple(settings["mean"]),
        tuple(settings["std"]),
        float(settings["crop_pct"]),
        _class_names(model),
    )


def _count_classes(model: Any, weights: Mapping[str, Tensor], name: str) -> int:
    """Number of classes of the last layer in a state dict."""
    layer = model.pretrained_cfg["classifier"]
    weight = weights.get(f"{layer}.weight") if isinstance(layer, str) else None
    if weight is None:
        raise IfamError(f"The weights have no last layer {layer!r}, as timm's {name} has; give those of this model.")
    return len(weight)


def _class_names(model: Any) -> tuple[str, ...]:
    """Names of the classes from the model's own settings, or those of ImageNet where it has its classes."""
    own = model.pretrained_cfg.get("label_names")
    if own and len(own) == model.num_classes:
        return tuple(map(str, own))
    subset = infer_imagenet_subset(model)
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else ()
