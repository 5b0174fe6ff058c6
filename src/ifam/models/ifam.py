"""The two-stage model: selector, mask and predictor."""

from dataclasses import replace
from typing import ClassVar

from torch import nn

from ifam._typing import Float, Tensor
from ifam.backbones.backbone import predictor_backbone
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.models.base import PartClassifier
from ifam.models.masking import assignment_mask, make_mask, resize_gated_mask, sample_assignment
from ifam.models.part_sum import AdditivePredictor, add_up, divide
from ifam.models.pixel_mask import cell_grid, cell_mask, intervened_mask, keep_outline, show_share
from ifam.models.predictor import Predictor
from ifam.models.windows import Windows, shared_grid
from ifam.types import Mask, Output, PixelSelection, Selection


class IFAM(PartClassifier):
    """An inherently faithful classifier (arXiv 2506.08915): the mask is the answer's only input.

    Args:
        config: The model's settings.
        pretrained: Start both stages from pretrained backbones; False needs no network.

    Raises:
        IfamError: A setting is invalid.
    """

    variants = ("frozen_predictor",)
    masks_input = True
    takes_interventions = True
    adds_parts = True
    predictor_class: ClassVar[type[Predictor]] = Predictor

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__(config, pretrained)
        backbone = predictor_backbone(config, pretrained, self.selector.backbone)
        settings = (backbone, config.num_classes, config.mask_gradient, config.execution)
        self.predictor = (
            self.predictor_class(*settings)
            if config.aggregation == "joint"
            else AdditivePredictor(*settings, num_parts=config.num_parts)
        )
        self.predictor.mask_grid = self.mask_grid

    @property
    def last_layer(self) -> nn.Linear:
        """The predictor's linear layer."""
        return self.predictor.head

    @property
    def mask_grid(self) -> tuple[int, int]:
        """Rows and columns of the mask: the predictor's patches, or finer cells (`ModelConfig.mask_resolution`)."""
        return cell_grid(self.predictor.backbone, self.config.mask_resolution if self.masks_pixels else "patch")

    @property
    def window_grid(self) -> tuple[int, int]:
        """Rows and columns of the patches of both stages; see `Classifier.window_grid`."""
        if not self.masks_input:
            return super().window_grid
        if self.config.aggregation != "joint":
            raise IfamError(
                f"This {self.method} has aggregation {self.config.aggregation!r}, whose parts cannot be seen in "
                f"windows; give one with aggregation 'joint'."
            )
        return shared_grid(self.method, self.selector.backbone, self.predictor.backbone)

    def classify(self, images: Tensor, selection: Selection) -> Output:
        """Classify images [B, 3, S, S] given their parts, from the visible patches alone."""
        mask = self.mask(selection, images)
        if not isinstance(self.predictor, AdditivePredictor):
            logits = self.predictor(images, mask.visible, mask.gate)
            return Output(logits, selection.selector_logits, mask.visible, mask.gate, selection)
        contributions, prior = self.predictor.contributions(
            images, mask.visible, mask.gate, mask.patch_parts, mask.part_gates
        )
        logits = add_up(prior, contributions)
        seen = (mask.visible, mask.gate, selection)
        return Output(logits, selection.selector_logits, *seen, contributions, prior, mask.patch_parts)

    def classify_windows(self, images: Tensor, windows: Windows, *, selector_alone: bool = False) -> Output:
        """Classify windows of images: the selector sees the window, and the predictor the mask inside of it.

        Args:
            images: Normalized images [B, 3, S, S]; pixels outside of the window may hold anything.
            windows: The window of each.
            selector_alone: Leave the predictor out, as in the first epochs of a training.

        Returns:
            The logits, and the mask on the whole grid, False outside of the window.
        """
        selector, predictor = self.selector, self.predictor
        tokens = selector.backbone(images, windows.visible, slots=windows.patches, queries="patches")
        selection = selector.select(tokens.to(selector.prototypes.dtype), windows.shape)
        mask = self._window_mask(selection, images, windows)
        if selector_alone:
            logits = None
        elif mask.gate.requires_grad:
            logits = predictor(images, mask.visible, mask.gate)
        else:
            logits = predictor.forward_window(images, mask.visible, windows)
        return Output(logits, selection.selector_logits, mask.visible, mask.gate, selection)

    def _window_mask(self, selection: Selection, images: Tensor, windows: Windows) -> Mask:
        """The mask of a selection in windows, made of nothing outside of them."""
        config = self.config
        logits, probabilities = sample_assignment(
            selection, self.training, config.temperature, config.gumbel_noise, config.mask_part_dropout
        )
        drawn = logits, probabilities.sum(dim=1)
        mask = assignment_mask(*drawn)
        if self.masks_pixels:
            scale = self.mask_grid[0] // windows.grid[0], self.mask_grid[1] // windows.grid[1]
            cells = windows.shape[0] * scale[0], windows.shape[1] * scale[1]
            mask = cell_mask(*drawn, cells, windows.shape, windows.cut(images) if config.edge_aware else None)
        return Mask(windows.paste(mask.visible, self.mask_grid), windows.paste(mask.gate, self.mask_grid))

    def mask(self, selection: Selection, images: Tensor | None = None) -> Mask:
        """The mask of a selection: sampled in training, deterministic in evaluation.

        Args:
            selection: Parts of each image.
            images: The images, whose edges the outline of a mask of pixels follows.
        """
        config, grid = self.config, self.predictor.backbone.grid
        logits, probabilities = sample_assignment(
            selection, self.training, config.temperature, config.gumbel_noise, config.mask_part_dropout
        )
        mask = self._foreground_mask(selection, images, logits, probabilities.sum(dim=1))
        return mask if config.aggregation == "joint" else divide(mask, logits, probabilities, grid)

    def _foreground_mask(
        self,
        selection: Selection,
        images: Tensor | None,
        logits: Float[Tensor, "B K1 H W"],
        foreground: Float[Tensor, "B H W"],
    ) -> Mask:
        """The mask of all parts, from the logits that were drawn and the probability of the foreground."""
        config, grid = self.config, self.predictor.backbone.grid
        assigned = assignment_mask(logits, foreground)
        if isinstance(selection, PixelSelection):
            mask = resize_gated_mask(assigned, self.mask_grid)
            return intervened_mask(selection, mask, self.mask_grid, grid, self.masks_pixels)
        if self.masks_pixels:
            mask = cell_mask(logits, foreground, self.mask_grid, grid, images if config.edge_aware else None)
        else:
            mask = resize_gated_mask(assigned, grid)
        if self.training:  # noise and dropped parts may show less than `min_visible`
            return mask
        mask = show_share(mask, assigned.visible, config.min_visible, grid)
        initial = selection.initial_logits
        if initial is None or initial is selection.assignment_logits:
            return mask
        # What an intervention leaves as it was must not be drawn again.
        before = replace(selection, assignment_logits=initial)
        return keep_outline(self.mask(before, images), mask, make_mask(before).visible, assigned.visible, grid)
