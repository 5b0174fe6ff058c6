"""Models and modules that stand in for real ones, where a test needs answers or faults that it chooses."""

import torch
from torch import nn

from ifam.config import ModelConfig
from ifam.models.base import Classifier
from ifam.models.part_sum import AdditivePredictor
from ifam.models.predictor import Predictor
from ifam.types import Output


class Told(Classifier):
    """A model without parts that says what it is told: image number n has n as its pixels.

    Args:
        logits: Its answer to each image [N, C].
    """

    method = "told"
    image_size, normalization = (4, 4), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self, logits):
        super().__init__(ModelConfig(num_classes=logits.shape[1]))
        self.logits = nn.Parameter(logits.float())

    def forward(self, images, interventions=(), masks=None):
        self.check_interventions(interventions)
        return Output(self.logits[images[:, 0, 0, 0].round().long()])


class LeakingParts(AdditivePredictor):
    """A predictor of parts of which one reads a pixel of the whole visible region, and so of other parts.

    Args:
        predictor: One to take backbone and weights from.
        part: The part that leaks.
        execution: The only execution in which it does; every one where it is None.
    """

    def __init__(self, predictor, part=0, execution=None):
        settings = (predictor.backbone, predictor.head.out_features, predictor.mask_gradient, predictor.execution)
        super().__init__(*settings, num_parts=predictor.num_parts)
        self.load_state_dict(predictor.state_dict())
        self.part, self.leaks_in = part, execution

    def contributions(self, images, mask, gate=None, patch_parts=None, part_gates=None):
        contributions, prior = super().contributions(images, mask, gate, patch_parts, part_gates)
        if self.leaks_in in (None, self.execution):
            side = self.backbone.patch_size[0]
            seen = torch.where(mask, images[:, 0, ::side, ::side], 0).sum(dim=(1, 2))
            contributions = contributions.index_add(
                1, torch.tensor([self.part]), 1e-3 * seen[:, None, None].expand(-1, 1, 5)
            )
        return contributions, prior


class PeekingPredictor(Predictor):
    """A predictor that adds a pixel of one patch to its logits, visible or not.

    Args:
        predictor: One to take backbone and weights from.
        place: Row and column of the patch.
        size: What the pixel is multiplied by.
        execution: The only execution in which it peeks; every one where it is None.
        training: The only mode in which it peeks; both where it is None.
    """

    def __init__(self, predictor, place=(0, 0), size=1.0, execution=None, training=None):
        head = predictor.head
        super().__init__(predictor.backbone, head.out_features, predictor.mask_gradient, predictor.execution)
        self.load_state_dict(predictor.state_dict())
        self.train(predictor.training)
        self.place, self.size, self.peeks = place, size, (execution, training)

    def forward(self, images, mask, gate=None):
        logits = super().forward(images, mask, gate)
        execution, training = self.peeks
        if execution not in (None, self.execution) or training not in (None, self.training):
            return logits
        side = self.backbone.patch_size[0]
        pixel = images[:, 0, side * self.place[0], side * self.place[1], None]
        return logits + self.size * pixel * torch.arange(1.0, logits.shape[1] + 1)
