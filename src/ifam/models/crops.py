"""Baselines without masks: the attention of a small transformer chooses image crops for a large one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.backbones.backbone import Backbone, predictor_backbone, resize_images, selector_backbone
from ifam.backbones.gated_attention import OverrideSDPA
from ifam.config import ModelConfig
from ifam.models.base import Classifier
from ifam.models.interventions import Intervention
from ifam.models.predictor import Predictor
from ifam.types import Output

# Share of the attention inside the box of `TrainedCrops`: that of the masks in figure 3 of DINO (arXiv 2104.14294).
SHARE = 0.6
# Largest side of the crops of `FrozenCrops`, as a share of the image's side; it is rounded down to an odd number of
# patches.
SIDE = 0.5


@dataclass(frozen=True)
class AttentionMap:
    """Logits and attention of the small transformer on a batch.

    Attributes:
        logits: Its own classification of the whole images.
        attention: How much the class token of its last block attends to each patch; sums to 1.
        box: Top, left, bottom and right of the crop, in patches; the last two are exclusive.
    """

    logits: Float[Tensor, "B C"]
    attention: Float[Tensor, "B H W"]
    box: Int[Tensor, "B 4"]


class TrainedCrops(Classifier):
    """Two transformers trained jointly: the small one's attention chooses a box, which is all that the large one sees.

    The small one (`backbone`) takes the place of the selector and classifies the whole image, the large one
    (`predictor_backbone`, or a second `backbone`) that of the predictor. The crop is the smallest box around the
    fewest patches that hold `SHARE` of the attention, stretched to the size of the input. Each has its
    own cross-entropy; no gradient passes through the crop. Pixels outside the crop cannot reach the large one, but they
    may have influenced the box.

    Args:
        config: The model's settings; those on parts and mask are not used.
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
        """Logits and attention of the small transformer on whole images."""
        tokens, attention = attended_tokens(self.input_backbone, images)
        logits = self.selector.classify(self.input_backbone.pool(tokens))
        return AttentionMap(logits, attention, attention_box(attention))

    def classify_crop(self, images: Float[Tensor, "B 3 S1 S2"], box: Int[Tensor, "B 4"]) -> Float[Tensor, "B C"]:
        """Class logits of the large transformer, which sees the box alone."""
        return self.predictor.forward_full(
            crop(images, box, self.input_backbone.grid, self.predictor.backbone.image_size)
        )


@dataclass(frozen=True)
class Peaks:
    """Where the attention to a batch is highest.

    Attributes:
        attention: How much the class token of the last block attends to each patch; sums to 1.
        box: Top, left, bottom and right of the crop around each peak, the highest first, in patches; the last two are
            exclusive.
        valid: False where an image has fewer peaks; these boxes are not used.
    """

    attention: Float[Tensor, "B H W"]
    box: Int[Tensor, "B N 4"]
    valid: Bool[Tensor, "B N"]


class Frozen(nn.Module):
    """A frozen pretrained transformer, which stays in evaluation mode when the model around it is trained.

    Args:
        backbone: The transformer.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode."""
        super().train(False)
        return self


class FrozenCrops(Classifier):
    """A linear layer on a frozen transformer's features of crops, which the attention of another one chooses.

    This follows a one-line description of arXiv 2606.03148: a frozen small transformer, crops around the peaks of its
    attention, a frozen large transformer, a linear head. It is not verified against the paper or its code; number and
    size of the crops, and averaging their features, are our choice.

    The small transformer (`backbone`) is used for its attention alone. Around each of the `num_parts` highest peaks
    (`peak_boxes`) a crop is cut out and stretched to the input of the large one (`predictor_backbone`, or a second
    `backbone`), whose features of the crops are averaged. Only the linear layer is trained. Pixels outside the
    crops cannot reach the large transformer, but they may have influenced the crops.

    Args:
        config: The model's settings; of those on parts and mask, only `num_parts` is used.
        pretrained: Start from the pretrained backbones.
    """

    method = "frozen_crops"

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__(config)
        self.selector = Frozen(selector_backbone(config, pretrained))
        large = predictor_backbone(config, pretrained, self.selector.backbone)
        self.predictor = Frozen(large)
        self.classifier = nn.Linear(large.width, config.num_classes, bias=False)

    @property
    def input_backbone(self) -> Backbone:
        """The small transformer."""
        return self.selector.backbone

    @property
    def last_layer(self) -> nn.Linear:
        """The linear layer, the only trained module."""
        return self.classifier

    def forward(
        self, images: Tensor, interventions: Sequence[Intervention] = (), masks: Tensor | None = None
    ) -> Output:
        """Classify images [B, 3, S, S] by their crops."""
        self.check_interventions(interventions)
        return Output(self.classify_crops(images, self.attend(images)))

    @torch.no_grad()
    def attend(self, images: Float[Tensor, "B 3 S1 S2"]) -> Peaks:
        """Attention peaks of the small transformer on whole images."""
        _, attention = attended_tokens(self.input_backbone, images)
        return Peaks(attention, *peak_boxes(attention, self.config.num_parts))

    def classify_crops(self, images: Float[Tensor, "B 3 S1 S2"], peaks: Peaks) -> Float[Tensor, "B C"]:
        """Class logits of the mean over the crops, which are all that the large transformer sees."""
        logits: Tensor = self.classifier(self._features(images, peaks))
        return logits

    @torch.no_grad()
    def _features(self, images: Float[Tensor, "B 3 S1 S2"], peaks: Peaks) -> Float[Tensor, "B D"]:
        """Features of the large transformer, the mean over an image's crops, from one pass for all of them."""
        large, valid = self.predictor.backbone, peaks.valid
        crops = equal_crops(images, valid.nonzero()[:, 0], peaks.box[valid], self.input_backbone.grid, large.image_size)
        pooled = large.pool(large(crops))
        features = pooled.new_zeros(*valid.shape, large.width)
        features[valid] = pooled
        return features.sum(dim=1) / valid.sum(dim=1, keepdim=True)


def attended_tokens(
    backbone: Backbone, images: Float[Tensor, "B 3 S1 S2"]
) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B H W"]]:
    """Tokens of whole images after the final norm, and the attention of the last block.

    Returns:
        Prefix tokens and all patches; and, without gradient, the share of each patch in the attention to patches of
        the class token (of all tokens, where there is no class token), the mean over heads.
    """
    last: dict[str, Tensor] = {}

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Blocks run in order, so the tensors of the last one remain.
        last.update(query=query.detach(), key=key.detach())
        return F.scaled_dot_product_attention(query, key, value)

    with OverrideSDPA(attend):
        tokens: Tensor = backbone(images)
    with torch.autocast(images.device.type, enabled=False):
        query, key = last["query"].float(), last["key"].float()
        queries = query[:, :, :1] if backbone.has_class_token else query
        weights = (queries @ key.mT * key.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=(1, 2))
        patches = weights[:, backbone.num_prefix_tokens :]
        return tokens, (patches / patches.sum(dim=1, keepdim=True)).unflatten(1, backbone.grid)


def attention_box(attention: Float[Tensor, "B H W"], share: float = SHARE) -> Int[Tensor, "B 4"]:
    """The smallest box around the fewest patches that hold a share of the attention.

    Args:
        attention: How much each patch is attended to.
        share: Share of the sum of the attention.

    Returns:
        Top, left, bottom and right in patches; the last two are exclusive.
    """
    values, order = attention.flatten(1).sort(dim=1, descending=True, stable=True)
    held_before = values.cumsum(dim=1) - values
    needed = held_before < share * values.sum(dim=1, keepdim=True)
    return enclosing_box(torch.zeros_like(needed).scatter(1, order, needed).unflatten(1, attention.shape[1:]))


def enclosing_box(inside: Bool[Tensor, "B H W"]) -> Int[Tensor, "B 4"]:
    """Top, left, bottom and right (exclusive) of the smallest box around what is true; the whole, where nothing is."""
    (top, bottom), (left, right) = _ends(inside.any(dim=2)), _ends(inside.any(dim=1))
    return torch.stack([top, left, bottom, right], dim=1)


def _ends(flags: Bool[Tensor, "B N"]) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """Index of the first true flag of each row, and that after the last."""
    number = flags.int()
    return number.argmax(dim=1), flags.shape[1] - number.flip(1).argmax(dim=1)


def crop(
    images: Float[Tensor, "B 3 S1 S2"], box: Int[Tensor, "B 4"], grid: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "B 3 T1 T2"]:
    """Crop boxes from images and resize them; pixels outside a box do not affect its crop.

    Args:
        images: Normalized images.
        box: Top, left, bottom and right in patches.
        grid: Rows and columns of patches; a box begins and ends at a whole pixel.
        size: Height and width of the crops in pixels.
    """
    edges = box * box.new_tensor(images.shape[2:] * 2) // box.new_tensor(grid * 2)
    crops = [
        resize_images(image[None, :, top:bottom, left:right], size)
        for image, (top, left, bottom, right) in zip(images, edges.tolist(), strict=True)
    ]
    return torch.cat([images.new_empty(0, images.shape[1], *size), *crops])


def peak_boxes(
    attention: Float[Tensor, "B H W"], number: int, share: float = SIDE
) -> tuple[Int[Tensor, "B N 4"], Bool[Tensor, "B N"]]:
    """Boxes of one size around the highest peaks of the attention, inside the image.

    A peak is a patch that is the highest of the box around it (non-maximum suppression), so that a box holds no other
    peak unless it was shifted to fit into the image. Of equal patches, the first counts as higher.

    Args:
        attention: How much each patch is attended to.
        number: Maximal number of peaks.
        share: Height and width of a box as a share of the grid's; it is the largest odd number of patches up to that.

    Returns:
        Top, left, bottom and right of each box in patches, the highest peak first, the last two being
        exclusive; and whether the box is valid: an image may have fewer peaks.
    """
    rows, columns = attention.shape[1:]
    height, width = (max(1, (int(share * size) - 1) // 2 * 2 + 1) for size in (rows, columns))
    order = attention.flatten(1).argsort(dim=1, descending=True, stable=True)
    # Ranks are distinct, so that a plateau has one peak, not one for each of its patches.
    score = order.argsort(dim=1).neg().to(attention).unflatten(1, (rows, columns))
    highest = F.max_pool2d(score, (height, width), stride=1, padding=(height // 2, width // 2))
    peaks = score.masked_fill(score < highest, -torch.inf).flatten(1)
    score, chosen = peaks.topk(min(number, peaks.shape[1]))
    top = (chosen // columns - height // 2).clamp(0, rows - height)
    left = (chosen % columns - width // 2).clamp(0, columns - width)
    return torch.stack([top, left, top + height, left + width], dim=2), score.isfinite()


def equal_crops(
    images: Float[Tensor, "B 3 S1 S2"],
    image: Int[Tensor, " N"],
    box: Int[Tensor, "N 4"],
    grid: tuple[int, int],
    size: tuple[int, int],
) -> Float[Tensor, "N 3 T1 T2"]:
    """Crop boxes of one size and resize them in one step; pixels outside a box do not affect its crop.

    Args:
        images: Normalized images.
        image: Index of the image of each box.
        box: Top, left, bottom and right in patches.
        grid: Rows and columns of patches; a box begins at a whole pixel, and is a whole number of pixels large.
        size: Height and width of the crops in pixels.
    """
    pixels, patches = box.new_tensor(images.shape[2:]), box.new_tensor(grid)
    top, left = (box[:, :2] * pixels // patches).unbind(dim=1)
    height, width = ((box[0, 2:] - box[0, :2]) * pixels // patches).tolist()
    rows = top[:, None] + torch.arange(height, device=box.device)
    columns = left[:, None] + torch.arange(width, device=box.device)
    crops = images[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return resize_images(crops, size)
