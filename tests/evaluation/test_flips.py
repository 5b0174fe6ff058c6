"""Share of answers that change with the background, on models whose answer is known."""

import torch
from torch import nn

from ifam.data import Benchmark
from ifam.evaluation.flips import flip_rate, has_swaps
from ifam.models.base import Classifier
from ifam.types import Output


class Pictures:
    """Gray levels; the swapped pictures have others."""

    def __init__(self, levels, swapped=None):
        self.levels = levels
        if swapped is not None:
            self.swapped = lambda: Pictures(swapped)

    def __len__(self):
        return len(self.levels)

    def __getitem__(self, index):
        return {"image": torch.full((3, 8, 8), self.levels[index]), "label": 0}


class Reader(Classifier):
    """Answers by the gray level of one pixel, or always the same."""

    image_size = (8, 8)
    normalization = ((0.0,) * 3, (1.0,) * 3)

    def __init__(self, constant=False):
        nn.Module.__init__(self)
        self.constant = constant
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, images, interventions=(), masks=None):
        level = images[:, 0, 0, 0] * (not self.constant)
        return Output(torch.stack([0.5 - level, level - 0.5], dim=1))


def data(swapped):
    split = Pictures([0.1, 0.9, 0.2, 0.8], swapped)
    return Benchmark("levels", {"test": split}, ("dark", "bright"), ("dark", "bright"))


def test_a_model_that_reads_the_background_flips_where_that_changes():
    assert flip_rate(Reader(), data([0.9, 0.1, 0.7, 0.3]), "test") == 1.0
    assert flip_rate(Reader(), data([0.3, 0.1, 0.7, 0.9]), "test") == 0.5


def test_a_constant_answer_never_flips():
    assert flip_rate(Reader(constant=True), data([0.9, 0.1, 0.7, 0.3]), "test") == 0.0


def test_not_every_split_has_swapped_pictures():
    assert has_swaps(data([0.1] * 4), "test")
    assert not has_swaps(data(None), "test")
