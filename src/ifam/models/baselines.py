"""Baselines from the components of `IFAM` (docs/comparisons.md)."""

from collections.abc import Sequence

import torch
from torch import nn

from ifam._typing import Bool, Float, Tensor
from ifam.backbones.architecture import count_heads
from ifam.backbones.backbone import Backbone, predictor_backbone
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.base import Classifier, PartClassifier
from ifam.models.ifam import IFAM
from ifam.models.interventions import Intervention
from ifam.models.masking import make_mask, patch_mask
from ifam.models.pixel_mask import cell_grid
from ifam.models.predictor import Predictor
from ifam.models.windows import Windows
from ifam.types import Output, Selection


class OneStage(Classifier):
    """The predictor's transformer alone; subclasses define its input and how its tokens are pooled.

    Args:
        config: The same settings as the model it is compared with; those of the selector are not used.
        pretrained: Start from the pretrained backbone.
    """

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__(config)
        self.predictor = Predictor(predictor_backbone(config, pretrained), config.num_classes)

    @property
    def input_backbone(self) -> Backbone:
        """The predictor's transformer."""
        return self.predictor.backbone

    @property
    def last_layer(self) -> nn.Linear:
        """The predictor's linear layer."""
        return self.predictor.head

    def forward(
        self, images: Tensor, interventions: Sequence[Intervention] = (), masks: Tensor | None = None
    ) -> Output:
        """Classify whole images [B, 3, S, S]."""
        self.check_interventions(interventions)
        return Output(self.whole_image_logits(images))

    def whole_image_logits(self, images: Float[Tensor, "B 3 S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of whole images."""
        raise NotImplementedError


class PlainViT(OneStage):
    """One transformer that sees the whole image: the predictor without hidden patches.

    It classifies the class token, or the mean of the patch tokens where there is no class token.
    """

    method = "plain_vit"
    variants = ("group_dro",)

    def whole_image_logits(self, images: Float[Tensor, "B 3 S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of whole images."""
        return self.predictor.forward_full(images)

    @property
    def window_grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        return self.predictor.backbone.grid

    def classify_windows(self, images: Tensor, windows: Windows) -> Output:
        """Classify windows of images; see `Classifier.classify_windows`."""
        mask = windows.visible.unflatten(1, windows.grid)
        return Output(self.predictor.forward_window(images, mask, windows))


class PlainViTMean(OneStage):
    """A plain ViT that classifies the mean of its patch tokens, whether it has a class token or not."""

    method = "plain_vit_mean"

    def whole_image_logits(self, images: Float[Tensor, "B 3 S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of whole images."""
        return self.predictor.classify(self.input_backbone(images, queries="patches").mean(dim=1))


class PlainViTAttentive(OneStage):
    """A plain ViT that pools its tokens by attention (CAE, arXiv 2202.03026; V-JEPA, arXiv 2404.08471).

    One learned query attends to all tokens, with as many heads as the transformer has; then norm and linear layer, as
    in the other plain ViTs. The method "attentive_probe" trains only these, on the frozen pretrained transformer.
    """

    method = "plain_vit_attentive"
    variants = ("attentive_probe",)

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__(config, pretrained)
        self.pool = AttentivePool(self.input_backbone.width, count_heads(self.input_backbone.vit))

    def whole_image_logits(self, images: Float[Tensor, "B 3 S1 S2"]) -> Float[Tensor, "B C"]:
        """Class logits of whole images."""
        return self.predictor.classify(self.pool(self.input_backbone(images)))


class AttentivePool(nn.Module):
    """One learned query that attends to all tokens.

    Args:
        width: Width D of a token.
        num_heads: Attention heads; a divisor of the width.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        """The attention output of the query; it does not depend on the order of the tokens."""
        query = self.query.expand(len(tokens), 1, -1)
        pooled: Tensor = self.attention(query, tokens, tokens, need_weights=False)[0]
        return pooled[:, 0]


def given_masks(model: Classifier, masks: Tensor | None) -> Bool[Tensor, "..."]:
    """The masks of a batch, for a model that is given them.

    Raises:
        IfamError: There are none, or they are not binary.
    """
    if masks is None:
        raise IfamError(
            f"{model.method} needs a mask of each image, but got none, or not for every image of the batch; "
            f"give them, as in `model(images, masks=masks)`."
        )
    if masks.dtype != torch.bool:
        raise IfamError(
            f"The masks for {model.method} are {masks.dtype}, but torch.bool is expected: compare them (`masks > 0.5`)."
        )
    return masks


class GivenMask(OneStage):
    """The predictor alone, given the patches of a mask, in training and evaluation; with the true masks, the oracle.

    It sees exactly the pixels of these patches, as `IFAM` sees those that the selector chose; parts are never dropped.
    A patch counts as object if the object covers half of it; without such a patch, the predictor's prior is predicted.
    """

    method = "given_mask"
    needs_masks = True
    masks_input = True

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__(config, pretrained)
        self.predictor.mask_grid = self.mask_grid

    @property
    def mask_grid(self) -> tuple[int, int]:
        """Rows and columns of the mask: the patches, or finer cells (`ModelConfig.mask_resolution`)."""
        return cell_grid(self.input_backbone, self.config.mask_resolution)

    def forward(
        self, images: Tensor, interventions: Sequence[Intervention] = (), masks: Tensor | None = None
    ) -> Output:
        """Classify images by the patches of given masks.

        Args:
            images: Normalized images [B, 3, S, S]; pixels of hidden patches may hold anything.
            interventions: Refused.
            masks: True where the object is, bool [B, S, S], or one value a patch [B, H, W].

        Raises:
            IfamError: There is no mask, or there are interventions.
        """
        self.check_interventions(interventions)
        masks = given_masks(self, masks)
        mask = patch_mask(masks, self.mask_grid) if masks.shape[1:] == images.shape[2:] else masks
        return Output(self.predictor(images, mask))


class SelectorAlone(PartClassifier):
    """Stage 1 as a classifier on its own (PDiscoFormer, arXiv 2407.04538).

    The prediction is the selector's, which sees the whole image; `Output.mask` holds the patches of foreground parts,
    which its part maps suggest as its input. It is trained with all loss terms but the predictor's classification.
    """

    method = "selector"

    @property
    def last_layer(self) -> nn.Linear:
        """The classifier of the part features."""
        return self.selector.classifier

    def classify(self, images: Tensor, selection: Selection) -> Output:
        """The selector's own logits, and the patches assigned to foreground parts as the mask."""
        mask = make_mask(selection)
        return Output(None, selection.selector_logits, mask.visible, mask.gate, selection)


class LatePredictor(Predictor):
    """A predictor that sees every patch; the mask only selects the final patch tokens that are averaged."""

    def forward(
        self,
        images: Float[Tensor, "B 3 S1 S2"],
        mask: Bool[Tensor, "B ..."],
        gate: Float[Tensor, "B ..."] | None = None,
    ) -> Float[Tensor, "B C"]:
        """Class logits of the mean of the masked patch tokens, or of zeros where the mask is empty.

        Args:
            images: Normalized images.
            mask: True for patches to average, [B, H, W] or [B, P].
            gate: The mask as numbers with gradient; without it the mask receives none.

        Raises:
            IfamError: The mask is not binary or has another shape than the grid of patches.
        """
        self._check(images, mask, gate)
        tokens = self.backbone(images, queries="patches")
        weights = (mask if gate is None else gate).flatten(1).to(tokens)
        pooled = (weights[:, :, None] * tokens).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp_min(1)
        return self.classify(pooled)


class LateMask(IFAM):
    """The two stages of `IFAM`, but the predictor sees the whole image and is masked at the end (arXiv 2506.08915).

    By then every token has attended to every pixel, so the mask hides nothing. The gradient through the mask is that of
    a weighted mean, exact for every patch; `mask_gradient` has no effect.
    """

    method = "late_mask"
    masks_input = False
    adds_parts = False
    predictor_class = LatePredictor
