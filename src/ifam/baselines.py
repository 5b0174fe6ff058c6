"""What a user would compare with: the same parts, put together otherwise."""

import torch
from torch import nn

from ifam._typing import Bool, Float, Tensor
from ifam.backbone import Backbone
from ifam.config import ModelConfig
from ifam.predictor import Predictor


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
