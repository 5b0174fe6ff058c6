"""A small transformer's attention chooses what of the image a large one sees: a baseline without masks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.backbones.backbone import Backbone, predictor_backbone, selector_backbone
from ifam.backbones.gated_attention import OverrideSDPA
from ifam.config import ModelConfig
from ifam.models.base import Classifier
from ifam.models.interventions import Intervention
from ifam.models.predictor import Predictor
from ifam.types import Output

# Share of the attention that a crop has to hold: that of the masks in figure 3 of DINO (arXiv 2104.14294).
SHARE = 0.6


@dataclass(frozen=True)
class AttentionMap:
    """What the small transformer says about a batch.

    Attributes:
        logits: Its own classification of the whole images.
        attention: How much the class token of its last block attends to each patch; sums to 1.
        box: Top, left, bottom and right of the crop, in patches; the last two are the first outside.
    """

    logits: Float[Tensor, "B C"]
    attention: Float[Tensor, "B H W"]
    box: Int[Tensor, "B 4"]


class TrainedCrops(Classifier):
    """Two transformers trained jointly: the small one's attention chooses a box, which is all that the large one sees.

    The small one (`backbone`) stands in the place of the selector and classifies the whole image, the large one
    (`predictor_backbone`, or a second `backbone`) in that of the predictor. The crop is the smallest box around the
    fewest patches that hold `SHARE` of the attention, stretched to the size of the input. Each is trained by a
    cross-entropy of its own; no gradient passes through the crop. What was cut away cannot reach the large one, but it
    may have chosen the box.

    Args:
        config: The model's settings; those of parts and mask are not used.
        pretrained: Start from the pretrained backbones.
    """

    method = "trained_crops"

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__(config)
        small = selector_backbone(config, pretrained)
        self.selector = Predictor(small, config.num_classes)
        self.predictor = Predictor(predictor_backbone(config, pretrained, small), config.num_classes)

    @property
    def input_backbone(self) -> Backbone:
        """The small transformer."""
        return self.selector.backbone

    @property
    def last_layer(self) -> nn.Linear:
        """The linear layer of the large transformer."""
        return self.predictor.head

    def forward(
        self, images: Tensor, interventions: Sequence[Intervention] = (), masks: Tensor | None = None
    ) -> Output:
        """Classify images [B, 3, S, S] by the crop; the small transformer is the first stage."""
        self.check_interventions(interventions)
        attended = self.attend(images)
        return Output(self.classify_crop(images, attended.box), attended.logits)

    def attend(self, images: Float[Tensor, "B 3 S1 S2"]) -> AttentionMap:
        """What the small transformer says about whole images, and where it looks."""
        tokens, attention = attended_tokens(self.input_backbone, images)
        logits = self.selector.classify(self.input_backbone.pool(tokens))
        return AttentionMap(logits, attention, attention_box(attention))

    def classify_crop(self, images: Float[Tensor, "B 3 S1 S2"], box: Int[Tensor, "B 4"]) -> Float[Tensor, "B C"]:
        """Class logits of the large transformer, which sees the box alone."""
        return self.predictor.forward_full(
            crop(images, box, self.input_backbone.patch_size, self.predictor.backbone.image_size)
        )


def attended_tokens(
    backbone: Backbone, images: Float[Tensor, "B 3 S1 S2"]
) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B H W"]]:
    """Tokens of whole images after the final norm, and where the last block attended.

    Returns:
        Prefix tokens and all patches; and, without gradient, the share of each patch in the attention to patches of
        the class token (of all tokens, where there is no class token), the mean over heads.
    """
    last: dict[str, Tensor] = {}

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Blocks run in order, so those of the last one stay.
        last.update(query=query.detach(), key=key.detach())
        return F.scaled_dot_product_attention(query, key, value)

    with OverrideSDPA(attend):
        tokens: Tensor = backbone(images)
    with torch.autocast(images.device.type, enabled=False):
        query, key = last["query"].float(), last["key"].float()
        asking = query[:, :, :1] if backbone.has_class_token else query
        weights = (asking @ key.mT * key.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=(1, 2))
        patches = weights[:, backbone.num_prefix_tokens :]
        return tokens, (patches / patches.sum(dim=1, keepdim=True)).unflatten(1, backbone.grid)


def attention_box(attention: Float[Tensor, "B H W"], share: float = SHARE) -> Int[Tensor, "B 4"]:
    """The smallest box around the fewest patches that hold a share of the attention.

    Args:
        attention: How much each patch is attended to.
        share: Of the sum of the attention.

    Returns:
        Top, left, bottom and right in patches; the last two are the first outside.
    """
    values, order = attention.flatten(1).sort(dim=1, descending=True, stable=True)
    held_before = values.cumsum(dim=1) - values
    needed = held_before < share * values.sum(dim=1, keepdim=True)
    inside = torch.zeros_like(needed).scatter(1, order, needed).unflatten(1, attention.shape[1:])
    (top, bottom), (left, right) = _ends(inside.any(dim=2)), _ends(inside.any(dim=1))
    return torch.stack([top, left, bottom, right], dim=1)


def _ends(flags: Bool[Tensor, "B N"]) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """Index of the first true flag of each row, and that after the last."""
    number = flags.int()
    return number.argmax(dim=1), flags.shape[1] - number.flip(1).argmax(dim=1)


def crop(
    images: Float[Tensor, "B 3 S1 S2"], box: Int[Tensor, "B 4"], patch_size: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "B 3 T1 T2"]:
    """Boxes of images, stretched to a size; no pixel outside of a box has a part in it.

    Args:
        images: Normalized images.
        box: Top, left, bottom and right in patches.
        patch_size: Height and width of a patch in pixels.
        size: Height and width wanted, in pixels.
    """
    height, width = patch_size
    cut = [
        image[None, :, top * height : bottom * height, left * width : right * width]
        for image, (top, left, bottom, right) in zip(images, box.tolist(), strict=True)
    ]
    return torch.cat([F.interpolate(one, size, mode="bilinear", antialias=True) for one in cut])
