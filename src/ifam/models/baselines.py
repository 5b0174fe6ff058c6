"""What a user would compare with: the same parts, put together otherwise (docs/comparisons.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ifam._typing import Bool, Float, Tensor
from ifam.backbones.architecture import count_heads
from ifam.backbones.backbone import Backbone, predictor_backbone
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.attention_crops import AttentionCrops
from ifam.models.base import Classifier, PartClassifier
from ifam.models.ifam import IFAM, output
from ifam.models.masking import make_mask, patch_mask
from ifam.models.predictor import Predictor
from ifam.models.soft_mask import SoftMaskIFAM
from ifam.types import Batch, Output, Selection


class OneStage(Classifier):
    """The predictor's transformer on its own; a subclass says what it is shown and what is read.

    Args:
        config: The same settings as the model it is compared with; those of the selector are not used.
        pretrained: Start from the pretrained backbone.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__(config)
        self.predictor = Predictor(predictor_backbone(config, pretrained), config.num_classes)

    @property
    def trunk(self) -> Backbone:
        """The predictor's transformer."""
        return self.predictor.backbone

    @property
    def last_layer(self) -> nn.Linear:
        """The predictor's linear layer."""
        return self.predictor.head


class PlainViT(OneStage):
    """One transformer that sees the whole image: the predictor with nothing hidden.

    It reads the class token, or the mean of the patch tokens where there is no class token.
    """

    method = "plain_vit"
    variants = ("group_dro",)

    def forward(self, images: Float[Tensor, "B 3 S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of the whole image."""
        return self.predictor.whole(images)


class PlainViTMean(OneStage):
    """A plain ViT that reads the mean of its patch tokens, whether it has a class token or not."""

    method = "plain_vit_mean"

    def forward(self, images: Float[Tensor, "B 3 S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of the whole image."""
        return self.predictor.classify(self.trunk.patches(images).mean(dim=1))


class PlainViTAttentive(OneStage):
    """A plain ViT that reads its tokens by attention (CAE, arXiv 2202.03026; V-JEPA, arXiv 2404.08471).

    One learned query attends to all tokens, as many heads as the transformer has; then norm and linear layer, as in
    the other plain ViTs. The method "attentive_probe" trains these alone, and leaves the transformer as pretrained.
    """

    method = "plain_vit_attentive"
    variants = ("attentive_probe",)

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__(config, pretrained)
        self.pool = AttentivePool(self.trunk.width, count_heads(self.trunk.vit))

    def forward(self, images: Float[Tensor, "B 3 S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of the whole image."""
        return self.predictor.classify(self.pool(self.trunk(images)))


class AttentivePool(nn.Module):
    """One learned query that attends to all tokens.

    Args:
        width: Width D of a token.
        num_heads: Heads; they divide the width.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """What the query finds among the tokens, in whatever order they come."""
        query = self.query.expand(len(tokens), 1, -1)
        found: Tensor = self.attention(query, tokens, tokens, need_weights=False)[0]
        return found[:, 0]


class GivenMask(OneStage):
    """The oracle: the predictor alone, shown the patches of the data set's true masks, in training and evaluation.

    It sees exactly the pixels of these patches, as `IFAM` sees those of the selector's; no part is ever dropped. A
    patch counts as object where the object covers half of it, and where no patch does, the answer is the prior.
    """

    method = "given_mask"
    needs_masks = True
    hides = True

    def forward(
        self, images: Float[Tensor, "B 3 S1 S2"], mask: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B C"]:
        """Class logits of the visible patches.

        Args:
            images: Normalised images; pixels of hidden patches may hold anything.
            mask: True for visible patches.

        Raises:
            IfamError: There is no mask.
        """
        if mask is None:
            raise IfamError(
                "given_mask answers by true masks and got none, or not one for each image of the batch; give every "
                "image of the data a mask, or `model(images, mask)` one value a patch."
            )
        logits: Tensor = self.predictor(images, mask)
        return logits

    def answer(self, batch: Batch) -> Tensor:
        """Class logits of a batch with true masks."""
        mask = None if batch.masks is None else patch_mask(batch.masks, self.trunk.grid)
        logits: Tensor = self(batch.images, mask)
        return logits


class SelectorAlone(PartClassifier):
    """Stage 1 as a classifier of its own (PDiscoFormer, arXiv 2407.04538).

    The answer is the selector's, which has seen the whole image; `Output.mask` is what a reader of its part maps would
    take for seen. It is trained with every term of the loss but the predictor's classification.
    """

    method = "selector"

    @property
    def last_layer(self) -> nn.Linear:
        """The classifier of the part features."""
        return self.selector.classifier

    def forward(self, images: Tensor) -> Output:
        """Classify images [B, 3, S, S] by the features of their parts."""
        return self.conclude(images, self.selector(images))

    def conclude(self, images: Tensor, selection: Selection) -> Output:
        """The selector's own answer, beside the patches that parts have won."""
        return output(selection.selector_logits, make_mask(selection).visible, selection)


class LateMask(IFAM):
    """The two stages of `IFAM`, but the predictor sees the whole image and is masked at the end (arXiv 2506.08915).

    By then every token has attended to every pixel, so the mask hides nothing. The gradient through the mask is that of
    a weighted mean, exact for every patch; `mask_gradient` has no effect.
    """

    method = "late_mask"
    hides = False

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__(config, pretrained)
        self.predictor = LatePredictor(self.predictor.backbone, config.num_classes)


class LatePredictor(Predictor):
    """A predictor that sees every patch; the mask only chooses which patch tokens are averaged in the end."""

    def forward(
        self,
        images: Float[Tensor, "B 3 S1 S2"],
        mask: Bool[Tensor, "B ..."],
        gate: Float[Tensor, "B ..."] | None = None,
    ) -> Float[Tensor, "B C"]:
        """Class logits of the mean of the masked patch tokens; of nothing, zeros, where the mask is empty.

        Args:
            images: Normalised images.
            mask: True for patches to average, [B, H, W] or [B, P].
            gate: The mask as numbers with gradient; without it the mask receives none.

        Raises:
            IfamError: The mask is not binary or has another shape than the grid of patches.
        """
        self._check(images, mask, gate)
        tokens = self.backbone.patches(images)
        weights = (mask if gate is None else gate).flatten(1).to(tokens)
        pooled = (weights[:, :, None] * tokens).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp_min(1)
        return self.classify(pooled)


@dataclass(frozen=True)
class Method:
    """A model that can be trained and judged by name (`ifam train --method`, `ifam compare`).

    Attributes:
        about: What it is, in one line.
        build: The model's class, which is called with the settings and whether to start from pretrained weights.
        train: Fields of `TrainConfig` that make the method what it is; they hold whatever else is set.
    """

    about: str
    build: type[Classifier]
    train: Mapping[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "ifam": Method("selector and predictor, trained jointly through the mask", IFAM),
    "plain_vit": Method("one transformer that sees the whole image, read by its class token", PlainViT),
    "plain_vit_mean": Method("a plain ViT read by the mean of its patch tokens", PlainViTMean),
    "plain_vit_attentive": Method("a plain ViT read by a learned query that attends to all tokens", PlainViTAttentive),
    "attentive_probe": Method(
        "the learned query alone, the transformer as pretrained", PlainViTAttentive, {"predictor_tuning": "none"}
    ),
    "selector": Method("the selector alone (PDiscoFormer): it sees the whole image", SelectorAlone),
    "late_mask": Method("the predictor sees the whole image, its final tokens are masked", LateMask),
    "soft_mask": Method("probabilities in the place of the mask: every patch is seen a little", SoftMaskIFAM),
    "given_mask": Method("the predictor sees the patches of the data set's true masks (the oracle)", GivenMask),
    "frozen_predictor": Method("the predictor's transformer stays as pretrained", IFAM, {"predictor_tuning": "none"}),
    "group_dro": Method("a plain ViT trained for its worst group (GroupDRO)", PlainViT, {"group_dro": 0.01}),
    "attention_crops": Method("a small transformer's attention chooses a crop for a large one", AttentionCrops),
}


def method(name: str) -> Method:
    """The method of this name.

    Raises:
        IfamError: There is none.
    """
    if name not in METHODS:
        raise IfamError(f"There is no method {name!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def build(name: str, config: ModelConfig, pretrained: bool = True) -> Classifier:
    """A model of this method, which remembers the name when it is saved.

    Args:
        name: Name in `METHODS`.
        config: The model's settings.
        pretrained: Start from pretrained backbones; False needs no network.

    Raises:
        IfamError: There is no such method, or a setting makes no model.
    """
    model = method(name).build(config, pretrained)
    model.method = name
    return model
