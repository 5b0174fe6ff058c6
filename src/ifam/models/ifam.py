"""The two-stage model: selector, mask and predictor."""

from typing import ClassVar

from torch import nn

from ifam._typing import Tensor
from ifam.backbones.backbone import predictor_backbone
from ifam.config import ModelConfig
from ifam.models.base import PartClassifier
from ifam.models.masking import make_mask, resize_gated_mask
from ifam.models.predictor import Predictor
from ifam.types import Mask, Output, Selection


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
    predictor_class: ClassVar[type[Predictor]] = Predictor

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__(config, pretrained)
        backbone = predictor_backbone(config, pretrained, self.selector.backbone)
        self.predictor = self.predictor_class(backbone, config.num_classes, config.mask_gradient, config.execution)

    @property
    def last_layer(self) -> nn.Linear:
        """The predictor's linear layer."""
        return self.predictor.head

    @property
    def mask_grid(self) -> tuple[int, int]:
        """Rows and columns of the predictor's patches."""
        return self.predictor.backbone.grid

    def classify(self, images: Tensor, selection: Selection) -> Output:
        """Classify images [B, 3, S, S] given their parts, from the visible patches alone."""
        mask = self.mask(selection)
        logits = self.predictor(images, mask.visible, mask.gate)
        return Output(logits, selection.selector_logits, mask.visible, mask.gate, selection)

    def mask(self, selection: Selection) -> Mask:
        """The mask of a selection, on the predictor's grid: sampled in training mode, deterministic in evaluation."""
        mask = make_mask(
            selection,
            training=self.training,
            temperature=self.config.temperature,
            gumbel_noise=self.config.gumbel_noise,
            part_dropout=self.config.mask_part_dropout,
        )
        return resize_gated_mask(mask, self.predictor.backbone.grid)
