"""All methods by name, as in `ifam train --method`, `ifam compare` and `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.base import Classifier
from ifam.models.baselines import GivenMask, LateMask, PlainViT, PlainViTAttentive, PlainViTMean, SelectorAlone
from ifam.models.crops import FrozenCrops, TrainedCrops
from ifam.models.ifam import IFAM
from ifam.models.segment_first import BoxCrop, ForegroundBackground, GrayBackground
from ifam.models.soft_mask import SoftMaskIFAM
from ifam.saved_models import RENAMED_METHODS


@dataclass(frozen=True)
class Method:
    """A model that can be trained and evaluated by name (`ifam train --method`, `ifam compare`).

    Attributes:
        about: Description in one line.
        build: The model's class, which is called with the settings and whether to start from pretrained weights.
        train: Fields of `TrainConfig` that define the method and override other settings.
    """

    about: str
    build: type[Classifier]
    train: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "ifam": Method("selector and predictor, trained jointly through the mask", IFAM),
    "plain_vit": Method("one transformer that sees the whole image and classifies its class token", PlainViT),
    "plain_vit_mean": Method("a plain ViT that classifies the mean of its patch tokens", PlainViTMean),
    "plain_vit_attentive": Method("a plain ViT with a learned query that attends to all tokens", PlainViTAttentive),
    "attentive_probe": Method(
        "the learned query alone, on the frozen pretrained transformer", PlainViTAttentive, {"predictor_tuning": "none"}
    ),
    "selector": Method("the selector alone (PDiscoFormer): it sees the whole image", SelectorAlone),
    "late_mask": Method("the predictor sees the whole image, its final tokens are masked", LateMask),
    "soft_mask": Method("probabilities instead of the mask: every patch is seen to some degree", SoftMaskIFAM),
    "given_mask": Method("the predictor sees the patches of a given mask (the true one: the oracle)", GivenMask),
    "box_crop": Method("a plain ViT that sees the box around the data set's masks", BoxCrop),
    "gray_background": Method("a plain ViT that sees the data set's masks, and gray around them", GrayBackground),
    "foreground_background": Method(
        "a plain ViT that sees the data set's masks and what is around them apart, and classifies both",
        ForegroundBackground,
    ),
    "frozen_predictor": Method("the predictor's pretrained transformer is frozen", IFAM, {"predictor_tuning": "none"}),
    "group_dro": Method("a plain ViT trained for its worst group (GroupDRO)", PlainViT, {"group_dro": 0.01}),
    "trained_crops": Method(
        "a small transformer's attention chooses a crop for a large one, both trained", TrainedCrops
    ),
    "frozen_crops": Method(
        "a linear layer on a frozen transformer's features of crops around the peaks of another's attention",
        FrozenCrops,
        {"selector_tuning": "none", "predictor_tuning": "none"},
    ),
}


def method(name: str) -> Method:
    """The method of this name.

    Raises:
        IfamError: There is no such method.
    """
    if name in RENAMED_METHODS:
        raise IfamError(f"The method {name!r} is called {RENAMED_METHODS[name]!r} now; use that name.")
    if name not in METHODS:
        raise IfamError(f"There is no method {name!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def build(name: str, config: ModelConfig, pretrained: bool = True) -> Classifier:
    """Build a model of this method; the name is saved with it.

    Args:
        name: Name in `METHODS`.
        config: The model's settings.
        pretrained: Start from pretrained backbones; False needs no network.

    Raises:
        IfamError: There is no such method, or a setting is invalid.
    """
    model = method(name).build(config, pretrained)
    model.method = name
    return model
