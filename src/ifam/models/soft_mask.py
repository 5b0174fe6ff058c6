"""The soft mask, a baseline: every patch is seen, the background only faintly (arXiv 2506.08915, section 4).

It trains easily, and its map says little: what is faint in the first block has spread by the second.
"""

import torch

from ifam._typing import Bool, Float, Tensor
from ifam.models.ifam import IFAM
from ifam.models.masking import make_mask, resize_mask, resize_values
from ifam.models.predictor import Predictor
from ifam.models.selector import gumbel_like
from ifam.types import Mask, Selection

# Keeps the logarithm of a foreground of zero finite: such a patch is hidden but for one part in 10^10.
EPSILON = 1e-10


class SoftPredictor(Predictor):
    """A predictor that attends to patch p with `log(weight_p + 1e-10)` added to its logits, in every block."""

    def forward(
        self,
        images: Float[Tensor, "B 3 S1 S2"],
        mask: Bool[Tensor, "B ..."],
        gate: Float[Tensor, "B ..."] | None = None,
    ) -> Float[Tensor, "B C"]:
        """Class logits from all patches.

        Args:
            images: Normalized images.
            mask: Weights of 0 and 1 where there is no gate; without effect otherwise.
            gate: How much of each patch to see, from 0 to 1, [B, H, W] or [B, P].

        Returns:
            Class logits.
        """
        weights = (mask.to(images.dtype) if gate is None else gate).flatten(1)
        tokens = self.backbone(images, bias=(weights + EPSILON).log())
        return self.classify(self.backbone.pool(tokens))


class SoftMaskIFAM(IFAM):
    """The two stages of `IFAM`, with probabilities in the place of the mask.

    `Output.mask` is what a reader of the maps would take for seen, the patches won by a part; the predictor saw
    the others too. Gradient reaches the selector through the probabilities; `mask_gradient` has no effect.

    Args:
        config: The model's settings.
        pretrained: Start both stages from pretrained backbones.
    """

    method = "soft_mask"
    masks_input = False
    predictor_class = SoftPredictor

    def mask(self, selection: Selection) -> Mask:
        """The patches won by a part; the gate is the probability of each patch's best part."""
        grid = self.predictor.backbone.grid
        return Mask(resize_mask(make_mask(selection).visible, grid), resize_values(self.foreground(selection), grid))

    def foreground(self, selection: Selection) -> Float[Tensor, "B H W"]:
        """Probability of the best foreground part of each patch; a second Gumbel sample in training."""
        maps, config = selection.part_maps, self.config
        if self.training and config.gumbel_noise:
            logits = selection.assignment_logits
            maps = ((logits + gumbel_like(logits)) / config.temperature).softmax(dim=1)
        parts = maps[:, :-1]
        if self.training and config.mask_part_dropout > 0:
            kept = torch.rand(parts.shape[:2], device=parts.device) >= config.mask_part_dropout
            parts = parts * kept[:, :, None, None]
        return parts.amax(dim=1)
