"""Baselines that segment first and classify then: a given mask chooses what a plain ViT sees (docs/comparisons.md).

The mask is that of the data set, the true one or that of any segmentation (`--data.given_mask_column`), in training and
evaluation. `ifam.models.baselines.GivenMask` removes hidden patches instead.
"""

from collections.abc import Sequence

import torch
from torch import nn

from ifam._typing import Bool, Float, Int, Tensor
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.baselines import OneStage, given_masks
from ifam.models.crops import crop, enclosing_box
from ifam.models.interventions import Intervention
from ifam.models.pixel_mask import blank_hidden
from ifam.types import Output

# Margin on each side of a box, as a share of the box's side.
MARGIN = 0.1


class SegmentFirst(OneStage):
    """The predictor's transformer on pictures that were made with a given mask; subclasses make them."""

    needs_masks = True

    def forward(
        self, images: Tensor, interventions: Sequence[Intervention] = (), masks: Tensor | None = None
    ) -> Output:
        """Classify images by what their masks show.

        Args:
            images: Normalized images [B, 3, S, S].
            interventions: Refused.
            masks: True where the object is, bool [B, S, S].

        Raises:
            IfamError: There is no mask, it has another size than its image, or there are interventions.
        """
        self.check_interventions(interventions)
        self.input_backbone.check_images(images)
        masks, expected = given_masks(self, masks), [len(images), *images.shape[2:]]
        if list(masks.shape) != expected:
            raise IfamError(
                f"The masks for {self.method} have shape {list(masks.shape)}, but {expected} is expected: one value "
                f"for each pixel of every image."
            )
        return Output(self.masked_logits(images, masks))

    def masked_logits(self, images: Float[Tensor, "B 3 S1 S2"], masks: Bool[Tensor, "B S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of images with their masks."""
        raise NotImplementedError


class BoxCrop(SegmentFirst):
    """The smallest box around the object, with a margin, stretched to the size of the input.

    The box shows background, too. An image without object is shown whole.
    """

    method = "box_crop"

    def masked_logits(self, images: Float[Tensor, "B 3 S1 S2"], masks: Bool[Tensor, "B S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of the boxes."""
        size = (images.shape[2], images.shape[3])
        return self.predictor.forward_full(crop(images, object_boxes(masks), size, size))


class GrayBackground(SegmentFirst):
    """Every pixel of the background is replaced by the mean color; the transformer sees all patches."""

    method = "gray_background"

    def masked_logits(self, images: Float[Tensor, "B 3 S1 S2"], masks: Bool[Tensor, "B S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of the object on gray."""
        return self.predictor.forward_full(blank_hidden(images, masks))


class ForegroundBackground(SegmentFirst):
    """Object and background are seen apart, by one transformer, and their features are classified together.

    The background may then be weighed by how well it predicts the class, which is what a shift punishes.

    Args:
        config: The same settings as the model it is compared with; those of the selector are not used.
        pretrained: Start from the pretrained backbone.
    """

    method = "foreground_background"

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__(config, pretrained)
        # In the place of the predictor's own, for two features.
        self.predictor.norm = nn.LayerNorm(2 * self.input_backbone.width)
        self.predictor.head = nn.Linear(2 * self.input_backbone.width, config.num_classes, bias=False)

    def masked_logits(self, images: Float[Tensor, "B 3 S1 S2"], masks: Bool[Tensor, "B S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of the features of object and background."""
        views = torch.cat([blank_hidden(images, masks), blank_hidden(images, ~masks)])
        features = self.input_backbone(views, queries="pooled").chunk(2)
        return self.predictor.classify(torch.cat(features, dim=1))


def object_boxes(masks: Bool[Tensor, "B S1 S2"]) -> Int[Tensor, "B 4"]:
    """Top, left, bottom and right of each object in pixels, with a margin; the last two are exclusive.

    Without object, the box is the image.
    """
    first, last = enclosing_box(masks).split(2, dim=1)
    margin = (MARGIN * (last - first)).long()
    size = last.new_tensor(masks.shape[1:])
    return torch.cat([(first - margin).clamp_min(0), (last + margin).minimum(size)], dim=1)
