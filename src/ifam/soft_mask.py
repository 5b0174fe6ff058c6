"""The soft mask, a baseline: every patch is seen, the background only faintly (arXiv 2506.08915, section 4).

It trains easily, and its map says little: what is faint in the first block has spread by the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ifam._typing import Float, Tensor
from ifam.errors import IfamError
from ifam.interventions import Intervention
from ifam.model import IFAM, output
from ifam.selector import gumbel_like
from ifam.types import Output, Selection

# Keeps the logarithm of a foreground of zero finite: such a patch is hidden but for one part in 10^10.
EPSILON = 1e-10


class SoftMaskIFAM(IFAM):
    """The two stages of `IFAM`, with probabilities in the place of the mask.

    Patch p is attended to with `log(max over parts k < K of maps_kp + 1e-10)` added to its logits, as a key
    and in every block. Gradient reaches the selector through these probabilities, not by `mask_gradient`.
    """

    def forward(self, images: Float[Tensor, "B 3 S1 S2"], interventions: Sequence[Intervention] = ()) -> Output:
        """Classify images by all patches, weighted by how probably they belong to a part.

        Args:
            images: Normalised images.
            interventions: Changes to the selection, applied in order before the weights are made.

        Returns:
            The answer. Its `mask` is what a reader of the maps would take for seen, the patches won by a
            part; the predictor saw the others too.
        """
        selection = self.selector(images)
        for intervention in interventions:
            selection = intervention(selection)
        logits = self.classify(images, self.foreground(selection).flatten(1))
        return output(logits, self.mask(selection), selection)

    def foreground(self, selection: Selection) -> Float[Tensor, "B H W"]:
        """Probability of the best foreground part of each patch; a second Gumbel sample in training."""
        maps = selection.part_maps
        config = self.config
        if self.training and config.gumbel_noise:
            logits = selection.assignment_logits
            maps = ((logits + gumbel_like(logits)) / config.temperature).softmax(dim=1)
        parts = maps[:, :-1]
        if self.training and config.mask_part_dropout > 0:
            kept = torch.rand(parts.shape[:2], device=parts.device) >= config.mask_part_dropout
            parts = parts * kept[:, :, None, None]
        return parts.amax(dim=1)

    def classify(self, images: Float[Tensor, "B 3 S1 S2"], weights: Float[Tensor, "B P"]) -> Float[Tensor, "B C"]:
        """Class logits from all patches.

        Args:
            images: Normalised images.
            weights: How much of each patch to see, from 0 to 1.

        Returns:
            Class logits.
        """
        backbone = self.predictor.backbone
        tokens = backbone.biased_tokens(images, (weights + EPSILON).log())
        patches = tokens[:, backbone.num_prefix_tokens :]
        pooled = tokens[:, 0] if backbone.has_class_token else patches.mean(dim=1)
        logits: Tensor = self.predictor.head(self.predictor.norm(pooled))
        return logits


@dataclass(frozen=True)
class FadeParts:
    """Take the probability of parts away, and give it to nobody.

    This is how the authors' code removes a part under a soft mask: a patch that the part had won keeps the
    probability of its second-best part. `ifam.DropParts` gives such a patch to the background instead.

    Args:
        parts: Indices of foreground parts, from 0 to K - 1.
    """

    parts: Sequence[int]

    def __call__(self, selection: Selection) -> Selection:
        """A copy of the selection in which these parts are nowhere; the maps no longer sum to 1."""
        num_parts = selection.part_maps.shape[1] - 1
        if wrong := [part for part in self.parts if not 0 <= part < num_parts]:
            raise IfamError(f"There is no part {wrong[0]}: this model has parts 0 to {num_parts - 1}.")
        indices = torch.arange(num_parts + 1, device=selection.part_maps.device)
        gone = torch.isin(indices, indices.new_tensor(self.parts))[:, None, None]
        return replace(
            selection,
            assignment_logits=selection.assignment_logits.masked_fill(gone, -torch.inf),
            part_maps=selection.part_maps.masked_fill(gone, 0.0),
        )
