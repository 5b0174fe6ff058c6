"""The two-stage model in plain eager PyTorch, the reference for the speed of `ifam`.

It is a straightforward implementation of arXiv 2506.08915, with these costs:

- both stages process every token in training; hidden patches are kept out by a dense boolean mask [B, 1, N, N];
- the images and their transformed version each go through both stages, in passes of their own, although no
  loss uses the predictor's output for the transformed images;
- distances are `||x||^2 - 2 x a + ||a||^2`, features are pooled through their product with the maps [B, D, K+1, H, W];
- the mask is boolean, so the predictor's loss does not reach the selector.

At inference hidden patches are pruned: visible ones are gathered and padded to the longest of the batch. Names of
parameters are those of `ifam.IFAM`, so that weights can be copied; a test checks that both then give the same logits.
"""

from itertools import pairwise
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F

from ifam.config import ModelConfig
from ifam.models.ifam import IFAM
from ifam.training.affine import sample_affine, transform
from ifam.training.losses import all_terms
from ifam.types import Batch, Mask, Output, Selection

Tensor = torch.Tensor


class _Backbone(nn.Module):
    """A timm vision transformer under the name that `ifam` gives it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size: dict[str, Any] = {} if config.image_size is None else {"img_size": config.image_size}
        self.vit: Any = timm.create_model(
            config.backbone, pretrained=False, num_classes=0, **size, **config.backbone_kwargs
        )
        assert self.vit.cls_token is not None, "the plain model classifies the class token"


class PlainSelector(nn.Module):
    """Stage 1: every patch is assigned to a part."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = _Backbone(config)
        self.config = config
        width = self.backbone.vit.embed_dim
        self.prototypes = nn.Parameter(torch.empty(config.num_parts + 1, width).uniform_(-(width**-0.5), width**-0.5))
        self.modulation = nn.LayerNorm([width, config.num_parts + 1])
        self.part_dropout = nn.Dropout1d(config.part_dropout)
        self.classifier = nn.Linear(width, config.num_classes, bias=False)

    def forward(self, images: Tensor) -> Selection:
        """Parts of images [B, 3, S, S]."""
        features = self.patches(images).mT.unflatten(2, self.backbone.vit.patch_embed.grid_size)  # [B, D, H, W]
        similarity = torch.einsum("bdhw,kd->bkhw", features, self.prototypes)
        squared = self.prototypes.square().sum(dim=1)[None, :, None, None]
        logits = -(features.square().sum(dim=1, keepdim=True) - 2 * similarity + squared)
        maps = self._sample(logits)
        pooled = (features[:, :, None] * maps[:, None]).mean(dim=(3, 4))  # [B, D, K+1, H, W] -> [B, D, K+1]
        part_features = self.modulation(pooled).mT
        scores = self.classifier(self.part_dropout(part_features[:, :-1]))
        return Selection(logits, maps, similarity, part_features, scores, scores.mean(dim=1))

    def patches(self, images: Tensor) -> Tensor:
        """Patch tokens [B, P, D]."""
        tokens: Tensor = self.backbone.vit.forward_features(images)
        return tokens[:, self.backbone.vit.num_prefix_tokens :]

    def _sample(self, logits: Tensor) -> Tensor:
        """Probabilities of the parts, with Gumbel noise in training."""
        if self.training and self.config.gumbel_noise:
            return F.gumbel_softmax(logits, tau=self.config.temperature, dim=1)
        return (logits / self.config.temperature).softmax(dim=1)

    def mask(self, selection: Selection) -> Tensor:
        """True for the visible patches [B, H, W]: the winner of a second sample is a part."""
        probabilities = self._sample(selection.assignment_logits)
        parts, background = probabilities[:, :-1], probabilities[:, -1]
        if self.training:
            keep = torch.rand(parts.shape[:2], device=parts.device) >= self.config.mask_part_dropout
            parts = parts * keep[:, :, None, None]
        # A comparison gives booleans, so no gradient passes through it.
        return parts.amax(dim=1) >= background


class PlainPredictor(nn.Module):
    """Stage 2: prefix tokens and visible patches are the only keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = _Backbone(config)
        self.norm = nn.LayerNorm(self.backbone.vit.embed_dim)
        self.head = nn.Linear(self.backbone.vit.embed_dim, config.num_classes, bias=False)

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        """Class logits of images [B, 3, S, S] given visible patches [B, H, W]."""
        tokens = self._all(images, visible) if self.training else self._pruned(images, visible)
        logits: Tensor = self.head(self.norm(tokens[:, 0]))
        return logits

    def _all(self, images: Tensor, visible: Tensor) -> Tensor:
        """Every token is processed, and hidden ones are masked out of every attention."""
        tokens: Tensor = self.backbone.vit.forward_features(images, attn_mask=self._attention_mask(visible.flatten(1)))
        return tokens

    def _pruned(self, images: Tensor, visible: Tensor) -> Tensor:
        """Only visible tokens are processed, padded to the longest of the batch."""
        vit = self.backbone.vit
        tokens = vit._pos_embed(vit.patch_embed(images))
        prefix, patches = tokens[:, : vit.num_prefix_tokens], tokens[:, vit.num_prefix_tokens :]
        flags = visible.flatten(1)
        counts = flags.sum(dim=1)
        order = flags.int().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
        gathered = patches.gather(1, order[:, :, None].expand(-1, -1, patches.shape[2]))
        real = torch.arange(order.shape[1], device=order.device) < counts[:, None]
        x = vit.norm_pre(torch.cat([prefix, gathered], dim=1))
        mask = self._attention_mask(real)
        for block in vit.blocks:
            x = block(x, attn_mask=mask)
        normalized: Tensor = vit.norm(x)
        return normalized

    def _attention_mask(self, keys: Tensor) -> Tensor:
        """The dense mask [B, 1, N, N]: True where a query may attend to a key, prefix tokens always."""
        keys = F.pad(keys, (self.backbone.vit.num_prefix_tokens, 0), value=True)
        return keys[:, None, None].repeat(1, 1, keys.shape[1], 1)


class PlainIFAM(nn.Module):
    """Both stages, and one step of their joint training.

    Args:
        config: The settings of an `ifam.IFAM`; `execution` is ignored.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.selector = PlainSelector(config)
        self.predictor = PlainPredictor(config)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        height, width = self.selector.backbone.vit.patch_embed.img_size
        return int(height), int(width)

    def mask(self, selection: Selection) -> Tensor:
        """True for the visible patches [B, H, W]."""
        return self.selector.mask(selection)

    def forward(self, images: Tensor) -> Output:
        """Classify images [B, 3, S, S] by the visible patches."""
        selection = self.selector(images)
        visible = self.mask(selection)
        logits = self.predictor(images, visible)
        return Output(logits, selection.selector_logits, visible, selection=selection)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss term of a batch, unweighted."""
        affine = sample_affine(self.image_size)
        out = self(batch.images)
        moved = self(transform(batch.images, affine))
        return all_terms(
            out.part_maps,
            out.part_features,
            out.logits,
            out.selector_logits,
            batch.labels,
            equivariant_maps=moved.part_maps,
            affine=affine,
            image_size=self.image_size,
        )


def visible_masks(batch: int, grid: tuple[int, int], share: float, spread: float = 0.5) -> Tensor:
    """Random masks that show exactly `share` of all patches, with evenly spread counts.

    Args:
        batch: Images.
        grid: Rows and columns of patches.
        share: Share of the patches of the whole batch.
        spread: Counts reach this fraction of their mean to either side, as far as there are patches.
    """
    patches = grid[0] * grid[1]
    total = round(share * batch * patches)
    reach = min(spread, (1 - share) / share) if batch > 1 else 0.0
    edges = [0.0]
    for index in range(batch):
        factor = 1 + reach * (2 * index / max(1, batch - 1) - 1)
        edges.append(edges[-1] + factor * total / batch)
    # Rounded sums instead of summed roundings: the total is exact.
    counts = torch.tensor([round(b) - round(a) for a, b in pairwise(edges)])
    ranks = torch.rand(batch, patches, generator=torch.Generator().manual_seed(0)).argsort(dim=1).argsort(dim=1)
    visible: Tensor = ranks < counts[:, None]
    return visible.view(batch, *grid)


class Forced(IFAM):
    """An `IFAM` with a given mask; the mask of its selector is still computed."""

    visible: Tensor

    def mask(self, selection: Selection, images: Tensor | None = None) -> Mask:
        """The given mask, with the gradient of the one that it replaces."""
        gate = super().mask(selection, images).gate
        return Mask(self.visible, self.visible.to(gate.dtype) + (gate - gate.detach()))


class ForcedPlain(PlainIFAM):
    """The plain model with given masks, in the same way."""

    visible: Tensor

    def mask(self, selection: Selection) -> Tensor:
        """The given mask."""
        super().mask(selection)
        return self.visible
