"""The soft mask, a baseline: every patch is seen, the background only faintly (arXiv 2506.08915, section 4).

It is easy to train, but its map is not faithful: information on faint patches spreads to others in the first block.
"""

from ifam._typing import Bool, Float, Tensor
from ifam.models.ifam import IFAM
from ifam.models.masking import make_mask, resize_mask, resize_values
from ifam.models.noise import gumbel_like, kept_parts
from ifam.models.predictor import Predictor
from ifam.types import Mask, Selection

# Keeps the logarithm of a zero weight finite; such a patch has a relative attention weight of 1e-10.
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
            mask: Weights of 0 and 1, used where there is no gate.
            gate: Weight of each patch, from 0 to 1, [B, H, W] or [B, P].

        Returns:
            Class logits.
        """
        weights = (mask.to(images.dtype) if gate is None else gate).flatten(1)
        tokens = self.backbone(images, bias=(weights + EPSILON).log())
        return self.classify(self.backbone.pool(tokens))


class SoftMaskIFAM(IFAM):
    """The two stages of `IFAM`, with probabilities instead of the mask.

    `Output.mask` holds the patches assigned to foreground parts; the predictor sees the others
    too. Gradient reaches the selector through the probabilities; `mask_gradient` has no effect.

    Args:
        config: The model's settings.
        pretrained: Start both stages from pretrained backbones.
    """

    method = "soft_mask"
    masks_input = False
    adds_parts = False
    predictor_class = SoftPredictor

    def mask(self, selection: Selection, images: Tensor | None = None) -> Mask:
        """The patches assigned to foreground parts; the gate is the probability of the best part of each patch."""
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
            parts = parts * kept_parts(parts, config.mask_part_dropout)[:, :, None, None]
        return parts.amax(dim=1)
