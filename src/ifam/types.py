"""Data types between the stages: `images -> Selection -> Mask -> Output`.

Letters used in every shape of this package: `B` images, `K` foreground parts, `K1 = K + 1` parts with the
background, which is always the last, `C` classes, `D` width of the tokens, `H W` the grid of patches,
`P = H * W` patches in row-major order, `S` the side of an image in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ifam._typing import Bool, Float, Int, Tensor
from ifam.errors import IfamError


@dataclass(frozen=True)
class Batch:
    """A batch of examples.

    Attributes:
        images: Normalized images.
        labels: Class of each image.
        groups: Group of each image, such as class x background, for the accuracy of the worst group.
        masks: True on the pixels of the object, for data sets with masks.
        given_masks: Other masks in their place for methods that are given one, such as those of a segmentation model.
        mirrored: Whether augmentation has mirrored each image, left and right.
    """

    images: Float[Tensor, "B 3 S1 S2"]
    labels: Int[Tensor, " B"]
    groups: Int[Tensor, " B"] | None = None
    masks: Bool[Tensor, "B S1 S2"] | None = None
    mirrored: Bool[Tensor, " B"] | None = None
    given_masks: Bool[Tensor, "B S1 S2"] | None = None

    @property
    def masks_to_give(self) -> Bool[Tensor, "B S1 S2"] | None:
        """The masks for methods that are given one: the true ones, unless others are to be used."""
        return self.masks if self.given_masks is None else self.given_masks

    @property
    def groups_or_classes(self) -> Int[Tensor, " B"]:
        """Group of each image; its class where the data have no groups."""
        return self.labels if self.groups is None else self.groups

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device, copied asynchronously if its memory is pinned."""
        # Only to a GPU: in the other direction, the copy might be read before it is complete.
        return self._each(lambda tensor: tensor.to(device, non_blocking=torch.device(device).type == "cuda"))

    def __getitem__(self, rows: slice) -> "Batch":
        """Some of its examples."""
        return self._each(lambda tensor: tensor[rows])

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory; called by PyTorch's loader."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {name: None if one is None else change(one) for name, one in vars(self).items()}
        return Batch(**changed)


@dataclass(frozen=True)
class Selection:
    """The output of the selector: the assignment of patches to parts.

    Attributes:
        assignment_logits: `-||x_p - a_k||^2` up to a constant of each patch, without noise; the background's is lower
            where too few patches would belong to parts (`ModelConfig.min_visible`).
        part_maps: Probability of each part at each patch; sums to 1 over parts. With Gumbel noise
            in training.
        similarity: Dot product of each patch token with each prototype.
        part_features: One vector per part, after the joint LayerNorm.
        part_scores: Class scores of each foreground part.
        selector_logits: The selector's own classification, the mean of `part_scores` over parts.
        initial_logits: The assignment logits before any intervention, which leaves them as they are: they tell which
            patches it has hidden. None where there are none.
    """

    assignment_logits: Float[Tensor, "B K1 H W"]
    part_maps: Float[Tensor, "B K1 H W"]
    similarity: Float[Tensor, "B K1 H W"]
    part_features: Float[Tensor, "B K1 D"]
    part_scores: Float[Tensor, "B K C"]
    selector_logits: Float[Tensor, "B C"]
    initial_logits: Float[Tensor, "B K1 H W"] | None = None

    @property
    def winners(self) -> Int[Tensor, "B H W"]:
        """Index of the most probable part of each patch, `K` for background."""
        # A tie between a part and the background is visible: argmax returns the first, and the background is last.
        return self.assignment_logits.argmax(dim=1)


@dataclass(frozen=True)
class PixelSelection(Selection):
    """A selection with the mask that `ifam.UseMask` has set, which may be finer than its patches.

    Attributes:
        pixels: True for what to show, on the selector's grid or on a finer one.
    """

    pixels: Bool[Tensor, "B S1 S2"] = field(kw_only=True)


@dataclass(frozen=True)
class Mask:
    """The patches that the predictor sees.

    Attributes:
        visible: True for visible patches, or for visible cells of patches (`ifam.models.pixel_mask`). The input of the
            predictor is on the grid of its own patches, which may differ from the selector's
            (`ifam.models.masking.resize_gated_mask`), or on a finer one.
        gate: The same as 0.0 and 1.0, with the gradient of the foreground's probability (straight-through).
        patch_parts: Part of each of the predictor's patches, visible or not, where it sees each part alone
            (`ModelConfig.aggregation`); else None.
        part_gates: The visible patches of each part as 0.0 and 1.0, with the gradient of the part's probability.
    """

    visible: Bool[Tensor, "B H W"]
    gate: Float[Tensor, "B H W"]
    patch_parts: Int[Tensor, "B H2 W2"] | None = None
    part_gates: Float[Tensor, "B K H2 W2"] | None = None


@dataclass(frozen=True)
class Output:
    """The output of a model for a batch; fields that a model does not have are None.

    Attributes:
        predictor_logits: Class logits of the predictor, which are the final ones; None where the selector classifies
            alone.
        selector_logits: Class logits of the first stage, which sees the whole image.
        mask: True where the predictor saw a patch; the logits of a model that masks its input depend on these patches
            only. It is on the grid of the predictor's patches (H2 W2), or on a finer one where pixels are masked
            (`ModelConfig.mask_resolution`); the maps of the selection are on that of the selector's patches. None where
            there is no mask.
        gate: The mask as numbers, with the gradient that reaches the selector.
        selection: The output of the selector, after all interventions.
        part_contributions: What each part adds to the logits, exactly 0 for a part without visible patches. Where the
            predictor sees each part alone (`ModelConfig.aggregation`), the logits are the prior, plus the contribution
            of part 0, plus that of part 1, and so on, to the last bit of float32 (`ifam.models.part_sum.add_up`); None
            for other models, of which `ifam.explain` computes Shapley values.
        prior: Class logits of an image without visible patches, in the same models.
        patch_parts: Part of each of the predictor's patches, visible or not, in the same models.
    """

    predictor_logits: Float[Tensor, "B C"] | None = None
    selector_logits: Float[Tensor, "B C"] | None = None
    mask: Bool[Tensor, "B H2 W2"] | None = None
    gate: Float[Tensor, "B H2 W2"] | None = None
    selection: Selection | None = None
    part_contributions: Float[Tensor, "B K C"] | None = None
    prior: Float[Tensor, " C"] | None = None
    patch_parts: Int[Tensor, "B H3 W3"] | None = None

    @property
    def logits(self) -> Float[Tensor, "B C"]:
        """The final class logits: the predictor's, or the selector's where there is no predictor."""
        logits = self.selector_logits if self.predictor_logits is None else self.predictor_logits
        if logits is None:
            raise IfamError("This output has no class logits; give `predictor_logits` or `selector_logits`.")
        return logits

    @property
    def part_maps(self) -> Float[Tensor, "B K1 H W"]:
        """Probability of each part at each patch, background last."""
        return self._parts.part_maps

    @property
    def part_scores(self) -> Float[Tensor, "B K C"]:
        """Class scores of each foreground part, from the selector."""
        return self._parts.part_scores

    @property
    def part_features(self) -> Float[Tensor, "B K1 D"]:
        """One vector per part, background last."""
        return self._parts.part_features

    @property
    def similarity(self) -> Float[Tensor, "B K1 H W"]:
        """Dot product of each patch token with each prototype."""
        return self._parts.similarity

    def mask_at(self, size: Sequence[int]) -> Bool[Tensor, "B S1 S2"]:
        """The mask in the pixels of the images, as `torchvision.utils.draw_segmentation_masks` takes it.

        Args:
            size: Height and width of the images: multiples of those of the mask.

        Raises:
            IfamError: There is no mask, or the size does not fit.
        """
        if self.mask is None:
            raise IfamError("This model has no mask, so its output has none either.")
        (height, width), (rows, columns) = size, self.mask.shape[1:]
        if height % rows or width % columns:
            raise IfamError(f"The mask has {rows} x {columns} values, which do not divide {height} x {width} pixels.")
        return self.mask.repeat_interleave(height // rows, dim=1).repeat_interleave(width // columns, dim=2)

    @property
    def empty(self) -> Bool[Tensor, " B"]:
        """True for images without visible patches: their prediction is the predictor's prior."""
        return ~self._patches.any(dim=1)

    @property
    def visible_fraction(self) -> Float[Tensor, " B"]:
        """Share of the patches, or pixels, that the predictor saw."""
        return self._patches.float().mean(dim=1)

    @property
    def _parts(self) -> Selection:
        if self.selection is None:
            raise IfamError("This model selects no parts, so its output has no part maps.")
        return self.selection

    @property
    def _patches(self) -> Bool[Tensor, "B P"]:
        if self.mask is None:
            raise IfamError("This model has no mask: it sees the whole image.")
        return self.mask.flatten(1)
