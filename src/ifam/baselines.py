"""What a user would compare with: the same parts, put together otherwise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ifam._typing import Bool, Float, Tensor
from ifam.backbone import Backbone
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.model import IFAM
from ifam.predictor import Predictor
from ifam.soft_mask import SoftMaskIFAM


class PlainViT(nn.Module):
    """One transformer that sees the whole image: the predictor with nothing hidden.

    Args:
        config: The same settings as the model it is compared with; those of the selector are not used.
        pretrained: Start from the pretrained backbone.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.config = config
        name = config.predictor_backbone or config.backbone
        backbone = Backbone(name, image_size=config.image_size, pretrained=pretrained, **config.backbone_kwargs)
        self.predictor = Predictor(backbone, config.num_classes)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.predictor.backbone.image_size

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Channel means and standard deviations of the input."""
        mean, std = self.predictor.backbone.normalisation
        return self.config.mean or mean, self.config.std or std

    def forward(self, images: Float[Tensor, "B 3 S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of the whole image."""
        everything = torch.ones(len(images), *self.predictor.backbone.grid, dtype=torch.bool, device=images.device)
        logits: Tensor = self.predictor(images, everything)
        return logits


class LateMask(PlainViT):
    """One transformer that sees the whole image; the mask only chooses which tokens are averaged in the end.

    By then every token has attended to every pixel, so the mask hides nothing.
    """

    def forward(
        self, images: Float[Tensor, "B 3 S1 S2"], mask: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B C"]:
        """Class logits of the mean of the masked patch tokens; of all of them without a mask."""
        backbone = self.predictor.backbone
        tokens = backbone(images)[:, backbone.num_prefix_tokens :]
        shown = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.flatten(1).to(tokens)
        pooled = (tokens * shown[:, :, None]).sum(dim=1) / shown.sum(dim=1, keepdim=True).clamp_min(1)
        logits: Tensor = self.predictor.head(self.predictor.norm(pooled))
        return logits


@dataclass(frozen=True)
class Method:
    """A model that can be trained and judged by name (`ifam train --method`, `ifam compare`).

    Attributes:
        about: What it is, in one line.
        build: Makes the model from its settings, pretrained or not.
        train: Fields of `TrainConfig` that make the method what it is; they go before what a user sets.
    """

    about: str
    build: Callable[[ModelConfig, bool], nn.Module]
    train: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "ifam": Method("selector and predictor, trained jointly through the mask", IFAM),
    "plain_vit": Method("one transformer that sees the whole image", PlainViT),
    "soft_mask": Method("probabilities in the place of the mask: every patch is seen a little", SoftMaskIFAM),
    "frozen_predictor": Method("the predictor's transformer stays as pretrained", IFAM, {"predictor_tuning": "none"}),
}


def method(name: str) -> Method:
    """The method of this name.

    Raises:
        IfamError: There is none.
    """
    if name not in METHODS:
        raise IfamError(f"There is no method {name!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[name]
