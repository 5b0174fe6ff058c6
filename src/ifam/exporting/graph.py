"""Selector, mask and predictor as one graph of fixed shapes, for `torch.export` and ONNX."""

from typing import TypeGuard

import torch
from torch import nn

from ifam._typing import Float, Int, Tensor
from ifam.errors import IfamError
from ifam.models.base import Classifier
from ifam.models.ifam import IFAM
from ifam.models.masking import sample_assignment
from ifam.models.part_sum import AdditivePredictor, add_up, assigned_parts, part_masks
from ifam.models.pixel_mask import blank_hidden, drop_sparse, visible_patches

# In `use_mask` and `use_parts`: what the model itself finds.
OWN = -1


class Graph(nn.Module):
    """A model whose every output is computed with static shapes: hidden patches are blank and masked, not left out.

    Args:
        model: The model, in evaluation mode; its weights are shared.
    """

    def __init__(self, model: IFAM) -> None:
        super().__init__()
        self.model = model

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs: images, and what replaces the model's own mask and parts."""
        return ("images", "use_mask", "use_parts") if self.adds_parts else ("images", "use_mask")

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        names = ("logits", "mask", "part_maps", "patch_parts", "selector_logits")
        return (*names, "part_contributions", "prior") if self.adds_parts else names

    @property
    def adds_parts(self) -> bool:
        """Whether the predictor sees each part alone (`ModelConfig.aggregation`)."""
        return isinstance(self.model.predictor, AdditivePredictor)

    def own_inputs(self, batch: int = 1) -> tuple[Int[Tensor, "B R C"], ...]:
        """Values of the inputs besides the images with which the model answers as it is."""
        grids = (self.model.mask_grid, self.model.predictor.backbone.grid)
        return tuple(torch.full((batch, *grid), OWN, dtype=torch.int8) for grid in grids[: len(self.input_names) - 1])

    def forward(
        self,
        images: Float[Tensor, "B 3 S1 S2"],
        use_mask: Int[Tensor, "B R C"],
        use_parts: Int[Tensor, "B H W"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Classify images.

        Args:
            images: Normalized images; hidden pixels may hold anything.
            use_mask: 1 to show and 0 to hide a cell of the mask, negative for the model's own choice.
            use_parts: Part of each of the predictor's patches, negative for the model's own; only where the predictor
                sees each part alone.

        Returns:
            `output_names`, as in `ifam.types.Output`.
        """
        model, predictor = self.model, self.model.predictor
        grid, temperature = predictor.backbone.grid, model.config.temperature
        selection = model.select(images)
        visible = (use_mask > 0) | ((use_mask < 0) & model.mask(selection, images).visible)
        parts = assigned_parts(*sample_assignment(selection, False, temperature, False, 0.0), grid)
        if use_parts is not None:
            parts = torch.where(use_parts < 0, parts, use_parts.to(parts.dtype))
        patches = visible
        if model.mask_grid != grid:
            visible = drop_sparse(visible, grid)
            images, patches = blank_hidden(images, visible), visible_patches(visible, grid)
        found = visible, selection.part_maps, parts, selection.selector_logits
        if not isinstance(predictor, AdditivePredictor):
            return self._logits(images, patches.flatten(1)), *found
        shown = (part_masks(parts, predictor.num_parts) & patches[:, None]).flatten(2)
        contributions, prior = self._contributions(images, shown)
        return add_up(prior, contributions), *found, contributions, prior

    def _contributions(self, images: Tensor, shown: Tensor) -> tuple[Float[Tensor, "B K C"], Float[Tensor, " C"]]:
        """As `AdditivePredictor.contributions`, with the prior in the last row of the batch."""
        batch, num_parts, _ = shown.shape
        sources = torch.arange(batch, device=images.device)[:, None].expand(-1, num_parts).flatten()
        nothing = torch.zeros_like(shown[:1, 0])
        logits = self._logits(
            images, torch.cat([shown.flatten(0, 1), nothing]), torch.cat([sources, torch.zeros_like(sources[:1])])
        )
        prior = logits[-1]
        change = logits[:-1].unflatten(0, (batch, num_parts)) - prior
        return torch.where(shown.any(dim=2)[:, :, None], change, torch.zeros_like(change)), prior

    def _logits(self, images: Tensor, visible: Tensor, sources: Tensor | None = None) -> Float[Tensor, "R C"]:
        predictor = self.model.predictor
        return predictor.classify(
            predictor.backbone(images, visible, sources=sources, queries="pooled", execution="dense")
        )


def check_exportable(model: Classifier) -> TypeGuard[IFAM]:
    """Refuse models that are not exported; True for the others.

    Raises:
        IfamError: The model does not answer from visible patches that it selects itself.
    """
    if not isinstance(model, IFAM) or not model.masks_input:
        raise IfamError(
            f"A model of the method {model.method} does not answer from visible patches that it selects itself, which "
            f"is what `ifam export` exports; give one of the method ifam or frozen_predictor."
        )
    return True
