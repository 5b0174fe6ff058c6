"""The answer as an exact sum of parts: the predictor sees each part in a row of its own (docs/concepts.md).

No part attends to another, so what one adds to the logits depends on the pixels of its own patches alone.
"""

from dataclasses import replace

import torch

from ifam._typing import Bool, Float, Int, Tensor
from ifam.backbones.backbone import Backbone
from ifam.config import Execution, MaskGradient
from ifam.errors import IfamError
from ifam.models.masking import resize_values
from ifam.models.pixel_mask import visible_patches
from ifam.models.predictor import Predictor
from ifam.types import Mask


class AdditivePredictor(Predictor):
    """A predictor whose logits are a prior and the sum of what each part contributes.

    With f the transformer and its classifier, m_k the visible patches of part k, and no patch at all in the empty set:

        prior = f(x, {}),    contribution_k = f(x, m_k) - prior,    logits = prior + sum_k contribution_k

    so a part without visible patches contributes exactly 0. The parts of all images are computed in one batch.

    Args:
        backbone: The transformer of this stage.
        num_classes: Classes C.
        mask_gradient: How the gates of the parts receive gradient (see `ifam.ModelConfig`).
        execution: How the visible patches are computed (see `ifam.ModelConfig`).
        num_parts: Foreground parts K.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        mask_gradient: MaskGradient = "visible",
        execution: Execution = "auto",
        *,
        num_parts: int,
    ) -> None:
        super().__init__(backbone, num_classes, mask_gradient, execution)
        self.num_parts = num_parts

    def forward(
        self, images: Tensor, mask: Tensor, gate: Tensor | None = None, patch_parts: Tensor | None = None
    ) -> Float[Tensor, "B C"]:
        """Class logits from the visible patches of each part.

        Args:
            images: Normalized images [B, 3, S, S]; hidden pixels may hold anything.
            mask: As in `Predictor.forward`.
            gate: The mask as numbers with gradient.
            patch_parts: Part of each patch, visible or not, [B, H, W] (`Output.patch_parts`).

        Raises:
            IfamError: The parts are missing, or as in `Predictor.forward`.
        """
        contributions, prior = self.contributions(images, mask, gate, patch_parts)
        return add_up(prior, contributions)

    def contributions(
        self,
        images: Tensor,
        mask: Tensor,
        gate: Tensor | None = None,
        patch_parts: Tensor | None = None,
        part_gates: Float[Tensor, "B K H W"] | None = None,
    ) -> tuple[Float[Tensor, "B K C"], Float[Tensor, " C"]]:
        """What each part adds to the class logits, and the prior, in float32 at least; arguments as in `forward`.

        Args:
            images: Normalized images.
            mask: What is visible.
            gate: The same as numbers with gradient.
            patch_parts: Part of each patch.
            part_gates: Visible patches of each part as numbers with gradient; those of `gate` where it is None.
        """
        images, visible, gate = self.as_patches(images, mask, gate)
        shown = self._check_parts(patch_parts, len(images)) & visible[:, None]
        gates = part_gates if part_gates is None else part_gates.flatten(2)
        if gates is None and gate is not None:
            gates = shown * gate[:, None]
        if gates is not None and not (gates.requires_grad and torch.is_grad_enabled()):
            gates = None
        sources = torch.arange(len(images), device=images.device).repeat_interleave(self.num_parts)
        row_gates = None if gates is None else gates.flatten(0, 1)
        logits = self.logits_of(images, shown.flatten(0, 1), row_gates, sources)
        prior = self.prior(images)
        change = logits.unflatten(0, (len(images), self.num_parts)).to(prior.dtype) - prior
        # The rows of absent parts are those of the prior, but for rounding; their gates may receive gradient.
        return torch.where(shown.any(dim=2)[:, :, None], change, change - change.detach()), prior

    def _check_parts(self, patch_parts: Tensor | None, batch: int) -> Bool[Tensor, "B K P"]:
        """True where a patch belongs to a part."""
        rows, columns = self.backbone.grid
        if patch_parts is None:
            raise IfamError(
                "This predictor sees each part alone, so it needs the part of each patch: give `out.patch_parts`, as "
                "in `model.predictor(images, out.mask, patch_parts=out.patch_parts)`."
            )
        if tuple(patch_parts.shape) != (batch, rows, columns) or patch_parts.is_floating_point():
            raise IfamError(
                f"patch_parts is {patch_parts.dtype} of shape {list(patch_parts.shape)}, but whole numbers "
                f"[{batch}, {rows}, {columns}] are expected: the part of each patch, for every image."
            )
        return part_masks(patch_parts, self.num_parts).flatten(2)


def add_up(prior: Float[Tensor, " C"], contributions: Float[Tensor, "B K C"]) -> Float[Tensor, "B C"]:
    """The prior, plus the contribution of part 0, plus that of part 1, and so on: the order that fixes every bit."""
    total = prior.to(contributions.dtype).expand(contributions.shape[0], -1)
    for contribution in contributions.unbind(dim=1):
        total = total + contribution
    return total


def held_parts(patch_parts: Tensor | None) -> dict[str, Tensor]:
    """What a predictor needs besides images and mask: the part of each patch, where it sees each part alone."""
    return {} if patch_parts is None else {"patch_parts": patch_parts}


def part_masks(patch_parts: Int[Tensor, "B H W"], num_parts: int) -> Bool[Tensor, "B K H W"]:
    """True for the patches of each part."""
    return patch_parts[:, None] == torch.arange(num_parts, device=patch_parts.device)[:, None, None]


def assigned_parts(
    logits: Float[Tensor, "B K1 H W"], probabilities: Float[Tensor, "B K H W"], grid: tuple[int, int]
) -> Int[Tensor, "B H2 W2"]:
    """The most probable part of each patch of a grid, whether the background is more probable or not.

    Args:
        logits: Logits of parts and background on the selector's grid.
        probabilities: Probability of each part there; on another grid, their mean over the area of a patch decides.
        grid: Rows and columns of the patches.
    """
    same = tuple(logits.shape[2:]) == tuple(grid)
    # Compared as logits: two probabilities may both round to zero, two logits do not.
    return (logits[:, :-1] if same else _resized(probabilities, grid)).argmax(dim=1)


def divide(
    mask: Mask, logits: Float[Tensor, "B K1 H W"], probabilities: Float[Tensor, "B K H W"], grid: tuple[int, int]
) -> Mask:
    """A mask with the part of each patch, and a gate for the patches of each part.

    The gate of part k is 1 where a visible patch belongs to it and 0 elsewhere, with the gradient of its probability
    (straight-through), so the gates of all parts add up to the gate of the mask.

    Args:
        mask: The mask of patches or of cells.
        logits: Logits of parts and background, on the selector's grid.
        probabilities: Probability of each part there.
        grid: Rows and columns of the predictor's patches.
    """
    parts = assigned_parts(logits, probabilities, grid)
    visible = mask.visible if tuple(mask.visible.shape[1:]) == tuple(grid) else visible_patches(mask.visible, grid)
    share = _resized(probabilities, grid)
    own = part_masks(parts, probabilities.shape[1]) & visible[:, None]
    return replace(mask, patch_parts=parts, part_gates=own.to(share.dtype) + (share - share.detach()))


def _resized(values: Float[Tensor, "B K H W"], grid: tuple[int, int]) -> Float[Tensor, "B K H2 W2"]:
    """The mean of values over the area of each patch of another grid."""
    resized: Tensor = resize_values(values.flatten(0, 1), grid).unflatten(0, values.shape[:2])
    return resized
