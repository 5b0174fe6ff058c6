"""The benchmark `pondbirds`: drawn birds on drawn backgrounds, with ground truth for every pixel.

Two classes of birds differ by several weak cues in the bird itself (hue of the feathers, plumage, bill,
tail, legs), none of which is always right. In training the background, water or forest, agrees with the
class nearly always; in the test set it is uninformative. A model that relies on the background is accurate
on average in training, but not on the birds on the other background. License: drawn by this package (Apache-2.0).

    >>> from ifam.data.benchmarks.pondbirds import Pondbirds, PondbirdsConfig
    >>> birds = Pondbirds("val", PondbirdsConfig(num_val=100))
    >>> birds[0]["image"].shape, birds.class_names
    (torch.Size([3, 80, 80]), ('swimmer', 'percher'))
    >>> birds.groups.bincount().tolist()  # swimmer on water, swimmer on forest, percher on water, ...
    [49, 1, 1, 49]
"""

import math
from dataclasses import replace
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch

from ifam._typing import Bool, Float, Int, Tensor
from ifam.data._drawing import (
    BACKGROUND_COLUMNS,
    BIRD_COLUMNS,
    CUES,
    PARTS,
    Draws,
    Number,
    draw_birds,
    draw_forest,
    draw_water,
)
from ifam.data_config import Background, PondbirdsConfig
from ifam.errors import IfamError
from ifam.pulse import reported

SPLITS = ("train", "val", "test")
BACKGROUNDS = ("water", "forest")
_PAINTERS = (draw_water, draw_forest)
# The form of each cue (plumage, bill, tail, legs) by class: 0 striped, flat, fan, short and webbed;
# 1 spotted, pointed, pointed, long. The first two classes differ in all four, any two in at least two.
_FORMS = {
    "swimmer": (0, 0, 0, 0),
    "percher": (1, 1, 1, 1),
    "wader": (0, 0, 1, 1),
    "creeper": (1, 1, 0, 0),
    "stalker": (0, 1, 0, 1),
    "nester": (1, 0, 1, 0),
}
_FIRST_HUE = 0.05
GRAY = 0.5
# Smaller batches have more overhead per image, larger ones exceed the CPU's cache.
BATCH = 100


class Sample(TypedDict):
    """One item of `Pondbirds`."""

    image: Float[Tensor, "3 S S"]
    label: int
    group: int
    mask: Bool[Tensor, "S S"]
    index: int


class PartedSample(Sample):
    """The same with the part of each pixel: 0 for none, 1 + its index in `part_names` elsewhere."""

    part_labels: Int[Tensor, "S S"]


# The type of a split; beartype does not support `Self` here.
Split = TypeVar("Split", bound="RenderedDataset")


class RenderedDataset(torch.utils.data.Dataset[Sample]):
    """A split that is drawn when it is created and kept in memory: objects, each on one of two backgrounds."""

    split: str
    config: Any
    images: Float[Tensor, "N 3 S S"]
    labels: Int[Tensor, " N"]
    groups: Int[Tensor, " N"]
    masks: Bool[Tensor, "N S S"]

    def swapped(self: Split) -> Split:
        """The same objects in the same places, each on the other kind of background."""
        other: Background = "as_drawn" if self.config.background == "swapped" else "swapped"
        return self._with_background(other)

    def redrawn(self: Split) -> Split:
        """The same objects in the same places, each on another picture of the same kind of background."""
        return self._with_background("redrawn")

    def _with_background(self: Split, background: Background) -> Split:
        kind: Any = type(self)
        split: Split = kind(self.split, replace(self.config, background=background))
        return split

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        return {
            "image": self.images[index],
            "label": int(self.labels[index]),
            "group": int(self.groups[index]),
            "mask": self.masks[index],
            "index": index,
        }


class Pondbirds(RenderedDataset):
    """One split of the benchmark, drawn when it is created and kept in memory.

    Group sizes are exact: classes differ by at most one image, and in each class of n images
    (1 - correlation) * n, rounded to the nearest whole number (half upwards), show a background that is
    not the class's own. Everything else about an image (pose, colors, both possible backgrounds)
    depends on the seed, the split and the index, so that each setting of the difficulty can be changed alone.

    Attributes:
        images: Colors between 0 and 1, in steps of 1/255, [N,3,S,S].
        labels: Classes [N].
        backgrounds: Backgrounds [N], 0 water and 1 forest; of the image as shown, after a swap.
        groups: `label * 2 + background` [N].
        masks: The pixels that show the bird, [N,S,S]; all others show the background only. Empty for
            `content="background"`.
        parts: The bird's pixels by part, in the order of `part_names`; disjoint, [N,5,S,S].
        cues: Whether each bird shows the perchers' form of plumage, bill, tail and legs, [N,4].
        hues: Hue of each bird's feathers, in turns of the wheel, [N].
    """

    part_names: tuple[str, ...] = PARTS
    cue_names: tuple[str, ...] = CUES
    background_names: tuple[str, ...] = BACKGROUNDS

    def __init__(self, split: str, config: PondbirdsConfig | None = None) -> None:
        if split not in SPLITS:
            raise IfamError(f"pondbirds: split {split!r} is unknown; choose one of {', '.join(SPLITS)}.")
        self.split = split
        self.config = config = PondbirdsConfig() if config is None else config
        self.class_names = tuple(_FORMS)[: config.num_classes]
        self.group_names = tuple(f"{name} on {background}" for name in self.class_names for background in BACKGROUNDS)
        number = {"train": config.num_train, "val": config.num_val, "test": config.num_test}[split]
        correlation = config.test_correlation if split == "test" else config.correlation
        self.labels, self.backgrounds = assign(split, config.seed, number, config.num_classes, correlation)
        if config.background == "swapped":
            self.backgrounds = 1 - self.backgrounds
        self.groups = self.labels * len(BACKGROUNDS) + self.backgrounds
        size = config.image_size
        self.images = torch.empty(number, 3, size, size)
        self.parts = torch.zeros(number, len(PARTS), size, size, dtype=torch.bool)
        self.cues = torch.empty(number, len(CUES), dtype=torch.bool)
        self.hues = torch.empty(number)
        self._draw()
        self.masks = self.parts.any(dim=1)

    def __getitem__(self, index: int) -> PartedSample:
        sample = super().__getitem__(index)
        parts = self.parts[sample["index"]]
        # Parts are disjoint, so the sum has at most one nonzero term.
        numbers = torch.arange(1, len(parts) + 1, dtype=torch.int8)[:, None, None]
        return {**sample, "part_labels": (parts * numbers).sum(dim=0, dtype=torch.int8)}

    def _draw(self) -> None:
        config, size = self.config, self.config.image_size
        birds = random_table(self.split, config.seed, "bird", len(self), BIRD_COLUMNS + len(CUES) + 3)
        stream = "redrawn" if config.background == "redrawn" else "background"
        scenes = random_table(self.split, config.seed, stream, len(self), BACKGROUND_COLUMNS)
        for start in reported(range(0, len(self), BATCH), "drawing images, by hundreds"):
            rows = slice(start, start + BATCH)
            draws = Draws(birds[rows])
            hue, self.cues[rows] = _sample_traits(draws, self.labels[rows], config)
            self.hues[rows] = hue[:, 0, 0]
            images = torch.full((len(hue), 3, size, size), GRAY)
            if config.content != "object":
                images = draw_backgrounds(scenes[rows], self.backgrounds[rows], size)
            if config.content != "background":
                colors, self.parts[rows] = draw_birds(draws, hue, self.cues[rows], size, config.object_scale)
                images = torch.where(self.parts[rows].any(dim=1, keepdim=True), colors, images)
            # Whole steps of 1/255, as in a file, which are equal on machines that round differently.
            self.images[rows] = (images * 255).round_().div_(255)


def random_table(split: str, seed: int, stream: str, rows: int, columns: int) -> Float[Tensor, "rows columns"]:
    """Uniform numbers; the first rows do not depend on how many follow."""
    streams = ("assignment", "bird", "background", "redrawn", "digit")
    source = np.random.default_rng([streams.index(stream), SPLITS.index(split), seed])
    return torch.from_numpy(source.random((rows, columns), dtype=np.float32))


def assign(
    split: str, seed: int, number: int, num_classes: int, correlation: Number
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Labels and backgrounds with exact counts, in random order.

    Args:
        split: One of `SPLITS`.
        seed: Seed of the order.
        number: Number of images.
        num_classes: Number of classes; they differ in size by at most one image.
        correlation: Share of each class that is on its own background: even classes on water, odd ones in the forest.
    """
    order = random_table(split, seed, "assignment", number, 1)[:, 0].argsort(stable=True)
    labels = torch.empty(number, dtype=torch.long)
    labels[order] = torch.arange(number) % num_classes
    backgrounds = labels % len(BACKGROUNDS)
    for label in range(num_classes):
        members = order[labels[order] == label]
        # Rounded first, so that 0.05 of 50 is exactly 2.5.
        minority = math.floor(round((1 - correlation) * len(members), 6) + 0.5)
        backgrounds[members[:minority]] = 1 - label % len(BACKGROUNDS)
    return labels, backgrounds


def draw_backgrounds(
    scenes: Float[Tensor, "B N"], backgrounds: Int[Tensor, " B"], size: int
) -> Float[Tensor, "B 3 S S"]:
    """A picture of water (0) or forest (1) from each row of random numbers, `BACKGROUND_COLUMNS` wide."""
    images = torch.empty(len(backgrounds), 3, size, size)
    for kind, painter in enumerate(_PAINTERS):
        chosen = backgrounds == kind
        if chosen.any():
            images[chosen] = painter(Draws(scenes[chosen]), size)
    return images


def _sample_traits(
    draws: Draws, labels: Int[Tensor, " B"], config: PondbirdsConfig
) -> tuple[Float[Tensor, "B 1 1"], Bool[Tensor, "B 4"]]:
    """Hue and cues of each bird: those of its class, with noise."""
    swap, step = draws.uniform() < config.hue_swap, draws.uniform(1, config.num_classes).floor()
    center = torch.where(swap, labels[:, None, None] + step, labels[:, None, None].float())
    hue = (_FIRST_HUE + center / config.num_classes + draws.normal(0, config.hue_spread)) % 1.0
    forms = torch.tensor(list(_FORMS.values()), dtype=torch.bool)[labels]
    flips = torch.cat([draws.uniform()[:, :, 0] < config.cue_noise for _ in CUES], dim=1)
    return hue, forms ^ flips
