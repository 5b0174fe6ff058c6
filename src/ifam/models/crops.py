"""A small transformer's attention chooses what of the image a large one sees: baselines without masks."""

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

# Share of the attention that the box of `TrainedCrops` holds: that of the masks in figure 3 of DINO (arXiv 2104.14294).
SHARE = 0.6
# Side of the crops of `FrozenCrops`, as a share of the image's: at most that, since it is an odd number of patches.
SIDE = 0.5


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


@dataclass(frozen=True)
class Peaks:
    """Where the attention to a batch is highest.

    Attributes:
        attention: How much the class token of the last block attends to each patch; sums to 1.
        box: Top, left, bottom and right of the crop around each peak, the highest first, in patches; the last two are
            the first outside.
        found: False where an image has fewer peaks; these boxes are not used.
    """

    attention: Float[Tensor, "B H W"]
    box: Int[Tensor, "B N 4"]
    found: Bool[Tensor, "B N"]


class Frozen(nn.Module):
    """A transformer as it was pretrained: in evaluation mode whatever the model around it does.

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

    This is our reading of a one-line description of arXiv 2606.03148, which is all that we had of it: a frozen small
    transformer, crops around the peaks of its attention, a frozen large transformer, a linear head. It is not verified
    against the paper or its code; number and size of the crops, and that their features are averaged, are our choice.

    The small transformer (`backbone`) is used for its attention alone. Around each of the `num_parts` highest peaks
    (`peak_boxes`) a crop is cut out and stretched to the input of the large one (`predictor_backbone`, or a second
    `backbone`), whose features of the crops are averaged. Only the linear layer is trained. What no crop holds cannot
    reach the large transformer, but it may have chosen the crops.

    Args:
        config: The model's settings; of those of parts and mask, only `num_parts` is used.
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
        """The linear layer, which is all that is trained."""
        return self.classifier

    def forward(
        self, images: Tensor, interventions: Sequence[Intervention] = (), masks: Tensor | None = None
    ) -> Output:
        """Classify images [B, 3, S, S] by their crops."""
        self.check_interventions(interventions)
        return Output(self.classify_crops(images, self.attend(images)))

    @torch.no_grad()
    def attend(self, images: Float[Tensor, "B 3 S1 S2"]) -> Peaks:
        """Where the small transformer looks, in whole images."""
        _, attention = attended_tokens(self.input_backbone, images)
        return Peaks(attention, *peak_boxes(attention, self.config.num_parts))

    def classify_crops(self, images: Float[Tensor, "B 3 S1 S2"], peaks: Peaks) -> Float[Tensor, "B C"]:
        """Class logits of the mean over the crops, which are all that the large transformer sees."""
        logits: Tensor = self.classifier(self._features(images, peaks))
        return logits

    @torch.no_grad()
    def _features(self, images: Float[Tensor, "B 3 S1 S2"], peaks: Peaks) -> Float[Tensor, "B D"]:
        """Features of the large transformer, the mean over an image's crops, from one pass for all of them."""
        large, found = self.predictor.backbone, peaks.found
        crops = equal_crops(
            images, found.nonzero()[:, 0], peaks.box[found], self.input_backbone.patch_size, large.image_size
        )
        pooled = large.pool(large(crops))
        features = pooled.new_zeros(*found.shape, large.width)
        features[found] = pooled
        return features.sum(dim=1) / found.sum(dim=1, keepdim=True)


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


def peak_boxes(
    attention: Float[Tensor, "B H W"], number: int, share: float = SIDE
) -> tuple[Int[Tensor, "B N 4"], Bool[Tensor, "B N"]]:
    """Boxes of one size around the highest peaks of the attention, inside of the image.

    A peak is a patch that is the highest of the box around it (non-maximum suppression), so that a box holds no other
    peak unless it was moved inside of the image. Of equal patches the first counts as the higher one.

    Args:
        attention: How much each patch is attended to.
        number: Peaks wanted.
        share: Height and width of a box as a share of the grid's; it is the largest odd number of patches up to that.

    Returns:
        Top, left, bottom and right of each box in patches, the highest peak first, the last two being the first
        outside; and whether it is that of a peak, of which an image may have fewer than are wanted.
    """
    rows, columns = attention.shape[1:]
    height, width = (max(1, (int(share * size) - 1) // 2 * 2 + 1) for size in (rows, columns))
    order = attention.flatten(1).argsort(dim=1, descending=True, stable=True)
    # Ranks, no two of which are equal: an even plateau has one peak, not as many as it has patches.
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
    patch_size: tuple[int, int],
    size: tuple[int, int],
) -> Float[Tensor, "N 3 T1 T2"]:
    """Boxes of one size, stretched to another in one step; no pixel outside of a box has a part in it.

    Args:
        images: Normalized images.
        image: Index of the image of each box.
        box: Top, left, bottom and right in patches.
        patch_size: Height and width of a patch in pixels.
        size: Height and width wanted, in pixels.
    """
    top, left, bottom, right = (box * box.new_tensor(patch_size * 2)).unbind(dim=1)
    height, width = int(bottom[0] - top[0]), int(right[0] - left[0])
    rows = top[:, None] + torch.arange(height, device=box.device)
    columns = left[:, None] + torch.arange(width, device=box.device)
    cut = images[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return F.interpolate(cut, size, mode="bilinear", antialias=True)
