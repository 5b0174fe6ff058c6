"""The benchmark `digits`: handwritten digits, drawn by people, on the drawn backgrounds of pondbirds.

The 1,797 digits of 8 x 8 pixels come with scikit-learn (`sklearn.datasets.load_digits`: the test part of UCI's
"Optical Recognition of Handwritten Digits", https://archive.ics.uci.edu/dataset/80, CC BY 4.0), so nothing has to be
downloaded. Each is enlarged, rotated, colored at random and placed on water or forest. As with pondbirds, the
background agrees with the class nearly always in training (even digits on water, odd ones in the forest) and is
uninformative in the test set; unlike there, the shapes were drawn by people, and colors do not depend on the class.

The digits are divided once, class by class: 60 % for training, 15 % for validation, 25 % for testing. A split with
more images than digits shows each several times, at other positions, in other colors and on other backgrounds, but
never a digit of another split. License: CC BY 4.0 for the digits, the rest is drawn by this package (Apache-2.0).

    >>> from ifam.data.benchmarks.digits import Digits, DigitsConfig
    >>> digits = Digits("val", DigitsConfig(num_val=40))
    >>> digits[0]["image"].shape, digits.class_names[:3], digits.group_names[1]
    (torch.Size([3, 80, 80]), ('0', '1', '2'), '0 on forest')
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.data._drawing import BACKGROUND_COLUMNS, UNITS, Draws, grid, hsv_to_rgb
from ifam.data.benchmarks.pondbirds import (
    BACKGROUNDS,
    BATCH,
    GRAY,
    SPLITS,
    RenderedDataset,
    assign,
    draw_backgrounds,
    random_table,
)
from ifam.data_config import DigitsConfig
from ifam.errors import IfamError
from ifam.pulse import reported

CLASSES = tuple(str(digit) for digit in range(10))
_SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}
_COLUMNS = 16
# Ink values of a digit, 0 to 1, at which its rim begins and its fill color is reached.
_RIM, _FILL = 0.3, 0.5


class Digits(RenderedDataset):
    """One split of the benchmark, drawn when it is created and kept in memory.

    Group sizes are exact, as those of `Pondbirds`.

    Attributes:
        images: Colors between 0 and 1, in steps of 1/255, [N,3,S,S].
        labels: Classes [N].
        backgrounds: Backgrounds [N], 0 water and 1 forest; of the image as shown, after a swap.
        groups: `label * 2 + background` [N].
        masks: The pixels that show the digit, [N,S,S]; all others show the background only. Empty for
            `content="background"`.
        digits: Index of each image's digit in scikit-learn's data set, [N].
    """

    class_names: tuple[str, ...] = CLASSES
    group_names: tuple[str, ...] = tuple(f"{name} on {background}" for name in CLASSES for background in BACKGROUNDS)
    background_names: tuple[str, ...] = BACKGROUNDS

    def __init__(self, split: str, config: DigitsConfig | None = None) -> None:
        if split not in SPLITS:
            raise IfamError(f"digits: split {split!r} is unknown; choose one of {', '.join(SPLITS)}.")
        self.split = split
        self.config = config = DigitsConfig() if config is None else config
        number = {"train": config.num_train, "val": config.num_val, "test": config.num_test}[split]
        correlation = config.test_correlation if split == "test" else config.correlation
        self.labels, self.backgrounds = assign(split, config.seed, number, len(CLASSES), correlation)
        if config.background == "swapped":
            self.backgrounds = 1 - self.backgrounds
        self.groups = self.labels * len(BACKGROUNDS) + self.backgrounds
        self.digits = _sample_digits(split, config.seed, self.labels)
        size = config.image_size
        self.images = torch.empty(number, 3, size, size)
        self.masks = torch.zeros(number, size, size, dtype=torch.bool)
        self._draw()

    def _draw(self) -> None:
        config, size = self.config, self.config.image_size
        ink = _load()[0][self.digits]
        poses = random_table(self.split, config.seed, "digit", len(self), _COLUMNS)
        stream = "redrawn" if config.background == "redrawn" else "background"
        scenes = random_table(self.split, config.seed, stream, len(self), BACKGROUND_COLUMNS)
        for start in reported(range(0, len(self), BATCH), "drawing images, by hundreds"):
            rows = slice(start, start + BATCH)
            images = torch.full((len(self.labels[rows]), 3, size, size), GRAY)
            if config.content != "object":
                images = draw_backgrounds(scenes[rows], self.backgrounds[rows], size)
            if config.content != "background":
                colors, self.masks[rows] = _render(Draws(poses[rows]), ink[rows], size, config.digit_scale)
                images = torch.where(self.masks[rows, None], colors, images)
            # Whole steps of 1/255, as in a file, which are equal on machines that round differently.
            self.images[rows] = (images * 255).round_().div_(255)


@lru_cache(maxsize=1)
def _load() -> tuple[Float[Tensor, "1797 8 8"], Int[Tensor, " 1797"]]:
    """Ink of every digit, 0 to 1, and its class."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target).long()


def _sample_digits(split: str, seed: int, labels: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """A digit of this split for each label; each is used once before any is repeated."""
    first, last = _SHARES[split]
    targets = _load()[1].numpy()
    generator = np.random.default_rng([seed, len(targets)])
    digits = torch.empty_like(labels)
    for label in range(len(CLASSES)):
        candidates = generator.permutation(np.flatnonzero(targets == label))
        candidates = candidates[round(first * len(candidates)) : round(last * len(candidates))]
        members = torch.nonzero(labels == label)[:, 0]
        digits[members] = torch.from_numpy(np.resize(candidates, len(members))).long()
    return digits


def _render(
    draws: Draws, ink: Float[Tensor, "B 8 8"], size: int, scale: float
) -> tuple[Float[Tensor, "B 3 S S"], Bool[Tensor, "B S S"]]:
    """Digits and their masks; toward its edge, the color of a digit blends into that of its rim.

    Returns:
        Colors, which are undefined outside the digit, and the pixels of the digit.
    """
    half, tilt, slant = scale * draws.uniform(22, 30), draws.normal(0, 0.12), draws.normal(0, 0.12)
    room = (UNITS / 2 + 4 - half).clamp(min=0)
    x, y = grid(size)
    x = (x - UNITS / 2 - room * draws.uniform(-1, 1)) / half
    y = (y - UNITS / 2 - room * draws.uniform(-1, 1)) / half
    across = tilt.cos() * x + tilt.sin() * y
    down = tilt.cos() * y - tilt.sin() * x
    points = torch.stack([across + slant * down, down.expand_as(across)], dim=-1)
    thick = F.grid_sample(ink[:, None], points, mode="bicubic", padding_mode="zeros", align_corners=False)
    hue, saturation, value = draws.uniform(), draws.uniform(0.2, 0.9), draws.uniform(0.5, 1.0)
    fill = hsv_to_rgb(hue, saturation, value)
    rim = hsv_to_rgb(hue + draws.normal(0, 0.1), saturation, value * draws.uniform(0.15, 0.45))
    colors = rim + (fill - rim) * ((thick - _RIM) / (_FILL - _RIM)).clamp(0, 1)
    return colors, thick[:, 0] > _RIM
