"""Models and modules that stand in for real ones, where a test needs answers or faults that it chooses."""

import torch
from torch import nn

from ifam.config import ModelConfig
from ifam.models.base import Classifier
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
