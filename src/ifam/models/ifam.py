"""The two stages, joined by the mask."""

from collections.abc import Sequence

from torch import nn

from ifam._typing import Tensor
from ifam.backbones.backbone import predictor_backbone
from ifam.config import ModelConfig
from ifam.models.base import PartClassifier
from ifam.models.interventions import Intervention
from ifam.models.masking import make_mask, regrid
from ifam.models.predictor import Predictor
from ifam.types import Mask, Output, Selection


class IFAM(PartClassifier):
    """An inherently faithful classifier (arXiv 2506.08915): the mask is the answer's only input.

    Args:
        config: The model's settings.
        pretrained: Start both stages from pretrained backbones; False needs no network.

    Raises:
        IfamError: A setting makes no model.
    """

    variants = ("frozen_predictor",)
    hides = True

    def __init__(self, config: ModelConfig, pretrained: bool = True) -> None:
        super().__init__(config, pretrained)
        backbone = predictor_backbone(config, pretrained, self.selector.backbone)
        self.predictor = Predictor(backbone, config.num_classes, config.mask_gradient, config.execution)

    @property
    def last_layer(self) -> nn.Linear:
        """The predictor's linear layer."""
        return self.predictor.head

    def forward(self, images: Tensor, interventions: Sequence[Intervention] = ()) -> Output:
        """Classify images by the parts that were selected, and by nothing else.

        Args:
            images: Normalised images [B, 3, S, S].
            interventions: Changes to the selection, applied in order before the mask is made.

        Returns:
            The answer with everything that led to it.
        """
        selection = self.selector(images)
        for intervention in interventions:
            selection = intervention(selection)
        return self.conclude(images, selection)

    def conclude(self, images: Tensor, selection: Selection) -> Output:
        """The answer to images [B, 3, S, S] once their parts are selected."""
        mask = self.mask(selection)
        logits = self.predictor(images, mask.visible, mask.gate)
        return output(logits, mask.visible, selection)

    def mask(self, selection: Selection) -> Mask:
        """The mask of a selection, on the predictor's grid: sampled in training mode, without noise in evaluation."""
        mask = make_mask(
            selection,
            training=self.training,
            temperature=self.config.temperature,
            gumbel_noise=self.config.gumbel_noise,
            part_dropout=self.config.mask_part_dropout,
        )
        return regrid(mask, self.predictor.backbone.grid)


def output(logits: Tensor, mask: Tensor, selection: Selection) -> Output:
    """Gather what the stages said.

    Args:
        logits: The answer [B, C].
        mask: True for visible patches, bool [B, H, W].
        selection: What the selector found.
    """
    return Output(
        logits=logits,
        mask=mask,
        part_maps=selection.part_maps,
        selector_logits=selection.selector_logits,
        part_scores=selection.part_scores,
        part_features=selection.part_features,
        similarity=selection.similarity,
    )
