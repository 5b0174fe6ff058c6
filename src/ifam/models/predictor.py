"""Stage 2: classifies the visible patches; hidden patches are removed before the first layer."""

import torch
from torch import nn

from ifam._typing import Bool, Float, Int, Tensor
from ifam.backbones.backbone import Backbone
from ifam.config import Execution, MaskGradient
from ifam.errors import IfamError
from ifam.models.pixel_mask import blank_hidden, patch_gate, visible_patches
from ifam.models.windows import Windows


class Predictor(nn.Module):
    """Classification of the visible patches (arXiv 2506.08915, section 3.2).

    Args:
        backbone: The transformer of this stage.
        num_classes: Classes C.
        mask_gradient: How the gate of the mask receives gradient (see `ifam.ModelConfig`).
        execution: How the visible patches are computed (see `ifam.ModelConfig`).

    Attributes:
        mask_grid: Rows and columns of the masks that it takes besides those of patches (`ifam.models.pixel_mask`).
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        mask_gradient: MaskGradient = "visible",
        execution: Execution = "auto",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.mask_grid = backbone.grid
        self.mask_gradient = mask_gradient
        self.execution = execution
        self.norm = nn.LayerNorm(backbone.width)
        self.head = nn.Linear(backbone.width, num_classes, bias=False)

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        gate: Tensor | None = None,
    ) -> Float[Tensor, "B C"]:
        """Class logits from the visible patches.

        Args:
            images: Normalized images [B, 3, S, S]. Pixels of hidden patches may hold anything, NaN included.
            mask: True for visible patches, bool [B, H, W] or [B, P], or for visible cells on the `mask_grid`; pixels of
                hidden cells may hold anything, too.
            gate: The mask as numbers with gradient, of the same shape; without it the mask receives none.

        Returns:
            Class logits. For images without visible patches they are those of an empty image, the same for all.

        Raises:
            IfamError: The mask is not binary or has another shape than the grid of patches.
        """
        images, visible, gate = self.as_patches(images, mask, gate)
        return self.logits_of(images, visible, gate)

    def as_patches(
        self, images: Tensor, mask: Tensor, gate: Tensor | None
    ) -> tuple[Tensor, Bool[Tensor, "B P"], Float[Tensor, "B P"] | None]:
        """Images without hidden pixels in visible patches, these patches, and their gate if it needs a gradient."""
        self.backbone.check_images(images)
        self._check(images, mask, gate)
        wants_gradient = gate is not None and gate.requires_grad and torch.is_grad_enabled()
        grid = self.backbone.grid
        if mask.ndim == 3 and tuple(mask.shape[1:]) != grid:
            patches = visible_patches(mask, grid)
            reaches = wants_gradient and self.mask_gradient != "none"
            images = blank_hidden(images, mask, gate if reaches else None)
            mask, gate = patches, None if gate is None else patch_gate(gate, patches)
        return images, mask.flatten(1), gate.flatten(1) if gate is not None and wants_gradient else None

    def logits_of(
        self,
        images: Tensor,
        visible: Bool[Tensor, "R P"],
        gate: Float[Tensor, "R P"] | None = None,
        sources: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, "R C"]:
        """Class logits of visible patches; of several rows for one image, where `sources` has the image of each."""
        pooled = self.backbone(
            images,
            visible,
            gate,
            sources=sources,
            queries="pooled",
            mask_gradient=self.mask_gradient,
            execution=self.execution,
        )
        return self.classify(pooled)

    def prior(self, images: Tensor) -> Float[Tensor, " C"]:
        """Class logits of an image without visible patches, in float32 at least; the images tell its type and device.

        Computed on its own, it has the same bits whatever else is in a batch.
        """
        rows, columns = self.backbone.grid
        nothing = torch.zeros(1, rows * columns, dtype=torch.bool, device=images.device)
        logits = self.logits_of(images.new_zeros(1, *images.shape[1:]), nothing)[0]
        return logits if logits.dtype == torch.float64 else logits.float()

    def forward_window(self, images: Tensor, mask: Tensor, windows: Windows) -> Float[Tensor, "B C"]:
        """Class logits from the visible patches of windows, the same bits whatever the masks of the batch are.

        Args:
            images: Normalized images [B, 3, S, S].
            mask: As in `forward`; nothing outside of the window is visible.
            windows: The window of each image.
        """
        grid = self.backbone.grid
        if tuple(mask.shape[1:]) != grid:
            images, mask = blank_hidden(images, mask), visible_patches(mask, grid)
        pooled = self.backbone(images, mask.flatten(1), slots=windows.patches, queries="pooled")
        return self.classify(pooled)

    def forward_full(self, images: Tensor) -> Float[Tensor, "B C"]:
        """Class logits of whole images [B, 3, S, S], without hidden patches."""
        visible = torch.ones(len(images), *self.backbone.grid, dtype=torch.bool, device=images.device)
        logits: Tensor = self(images, visible)
        return logits

    def classify(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Class logits from the pooled output of the transformer."""
        logits: Tensor = self.head(self.norm(pooled))
        return logits

    def _check(self, images: Tensor, mask: Tensor, gate: Tensor | None) -> None:
        rows, columns = self.backbone.grid
        batch = len(images)
        if not isinstance(mask, Tensor):
            raise IfamError(f"The mask is a {type(mask).__name__}, but a tensor of torch.bool is expected.")
        if tuple(mask.shape) not in {(batch, rows, columns), (batch, rows * columns), (batch, *self.mask_grid)}:
            raise IfamError(
                f"The mask has shape {list(mask.shape)}, but [{batch}, {rows}, {columns}] or "
                f"[{batch}, {rows * columns}] is expected: one value per patch, for every image."
            )
        if mask.dtype != torch.bool:
            raise IfamError(
                f"The mask is {mask.dtype}, but torch.bool is expected: a patch is visible or it is not; "
                f"compare it, as in `mask > 0.5`."
            )
        if gate is not None and gate.flatten(1).shape != mask.flatten(1).shape:
            raise IfamError(f"The gate has shape {list(gate.shape)}, but the mask has {list(mask.shape)}.")
