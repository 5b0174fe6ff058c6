"""Stage 1: sees the whole image and assigns every patch to a part or to the background."""

import math

import torch
from torch import nn

from ifam._typing import Float, Tensor
from ifam.backbones.backbone import Backbone
from ifam.models.noise import dropped_parts, gumbel_like
from ifam.models.token_cache import TokenCache
from ifam.types import Selection


def show_at_least(share: float, logits: Float[Tensor, "B K1 H W"]) -> Float[Tensor, "B K1 H W"]:
    """Assignment logits with a lower background, in images where fewer patches than a share belong to parts.

    The patches that are most like a part then win just so against the background; the others stay background.

    Args:
        share: Least share of the patches, up to 1.
        logits: Logits of parts and background, which is last.
    """
    if share == 0:
        return logits
    # A patch whose logits are no numbers is like no part.
    margin = (logits[:, :-1].amax(dim=1) - logits[:, -1]).detach().flatten(1)
    margin = margin.masked_fill(margin.isnan(), -torch.inf)
    least = margin.topk(math.ceil(share * margin.shape[1]), dim=1).values[:, -1, None, None]
    # A little more than needed, against rounding.
    largest = logits.detach().nan_to_num(0.0, 0.0, 0.0).abs().amax(dim=(1, 2, 3))[:, None, None]
    rounding = 4 * torch.finfo(logits.dtype).eps * largest
    lowered = logits[:, -1] + torch.where(least < 0, least - rounding, 0)
    return torch.cat([logits[:, :-1], lowered[:, None]], dim=1)


class Selector(nn.Module):
    """Part discovery (PDiscoFormer, arXiv 2407.04538; arXiv 2506.08915, section 3.1).

    Args:
        backbone: The transformer that sees the whole image.
        num_parts: Foreground parts K.
        num_classes: Classes C.
        temperature: Softmax temperature of the part maps.
        gumbel_noise: Sample the part maps in training.
        part_dropout: Probability that a whole part is dropped from the classifier's input, in training.
        min_visible: Least share of the patches of an image that are assigned to parts.

    Attributes:
        token_cache: Keeps the patch tokens of a frozen backbone (`ifam.models.token_cache.cached_tokens`).
    """

    token_cache: TokenCache | None = None

    def __init__(
        self,
        backbone: Backbone,
        num_parts: int,
        num_classes: int,
        *,
        temperature: float = 1.0,
        gumbel_noise: bool = True,
        part_dropout: float = 0.3,
        min_visible: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.temperature = temperature
        self.gumbel_noise = gumbel_noise
        self.min_visible = min_visible
        width = backbone.width
        self.prototypes = nn.Parameter(torch.empty(num_parts + 1, width).uniform_(-(width**-0.5), width**-0.5))
        self.modulation = nn.LayerNorm([width, num_parts + 1])
        self.part_dropout = part_dropout
        self.classifier = nn.Linear(width, num_classes, bias=False)

    def forward(self, images: Tensor) -> Selection:
        """Assign every patch to a part.

        Args:
            images: Normalized images [B, 3, S, S].

        Returns:
            The parts, and the selector's own classification.
        """
        return self.select(self.patches(images))

    def patches(self, images: Tensor) -> Float[Tensor, "B P D"]:
        """Patch tokens of images [B, 3, S, S], in the precision of the prototypes."""
        cache = self.token_cache
        patches: Tensor = self.backbone(images, queries="patches") if cache is None else cache(images)
        return patches.to(self.prototypes.dtype)

    def part_maps(self, patches: Float[Tensor, "B P D"]) -> Float[Tensor, "B K1 H W"]:
        """Part maps from patch tokens, for the equivariance loss."""
        with torch.autocast(patches.device.type, enabled=False):
            return self._maps(self._logits(self._similarity(patches)))

    def select(self, patches: Float[Tensor, "B P D"], window: tuple[int, int] | None = None) -> Selection:
        """Parts from patch tokens, in float32 whatever the precision of the backbone.

        Args:
            patches: Tokens of all patches of each image, or of those in a window.
            window: Rows and columns of the window, in which `min_visible` does not apply.
        """
        with torch.autocast(patches.device.type, enabled=False):
            similarity = self._similarity(patches, window)
            logits = self._logits(similarity)
            maps = self._maps(logits)
            pooled = torch.einsum("bkp,bpd->bkd", maps.flatten(2), patches) / patches.shape[1]
            features = self.modulation(pooled.mT).mT
            parts = features[:, :-1]
            scores = self.classifier(dropped_parts(parts, self.part_dropout) if self.training else parts)
            logits = show_at_least(self.min_visible if window is None else 0.0, logits)
        return Selection(logits, maps, similarity, features, scores, scores.mean(dim=1), initial_logits=logits)

    def _similarity(self, patches: Tensor, window: tuple[int, int] | None = None) -> Tensor:
        """Dot product of every patch token with every prototype."""
        similarity: Tensor = (patches @ self.prototypes.mT).mT.unflatten(2, window or self.backbone.grid)
        return similarity

    def _logits(self, similarity: Tensor) -> Tensor:
        """`-||x_p - a_k||^2` without ||x_p||^2, which is the same for every part and cancels in the softmax."""
        return 2 * similarity - self.prototypes.square().sum(dim=1)[:, None, None]

    def _maps(self, logits: Tensor) -> Tensor:
        """Probability of each part at each patch, sampled in training."""
        noise = gumbel_like(logits) if self.training and self.gumbel_noise else 0.0
        return torch.softmax((logits + noise) / self.temperature, dim=1)
