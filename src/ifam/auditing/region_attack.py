"""Attacks inside of one region of an image, on a vote of windows: random pixels, and gradient ascent."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ifam._typing import Bool, Float, Int, Tensor
from ifam.evaluation.smoothing import answers_of, count_votes, window_vote, worst_leads
from ifam.models.base import Classifier
from ifam.models.windows import Windows

# Fills with noise, and with other images, that are tried before the gradient.
RANDOM = 8
# Steps of the gradient between two votes.
_EVERY = 10
# Length of a step, as a share of the range of a pixel.
_STEP = 0.05


@dataclass(frozen=True)
class Attacks:
    """What attacks inside of a region changed.

    Attributes:
        size: Size of the region in patches, which was put where the vote is weakest.
        images: Images that were attacked.
        certain: How many of them have an answer that is certain.
        changed_certain: How many of those answers an attack changed: none, unless there is a fault.
        changed_others: How many of the others.
        random: Fills with noise or with other images, for each image.
        steps: Steps of the gradient after them.
    """

    size: int
    images: int
    certain: int
    changed_certain: int
    changed_others: int
    random: int
    steps: int


@dataclass(frozen=True)
class RegionAttack:
    """An attack on some images.

    Attributes:
        images: Normalized images.
        votes: Vote of each window, before the attack.
        windows: The windows.
        places: Which pixels the attacker may change.
        touched: Which windows see some of them.
        targets: The class that would win most easily.
    """

    images: Float[Tensor, "N 3 S1 S2"]
    votes: Int[Tensor, "N V"]
    windows: Windows
    places: Bool[Tensor, "N S1 S2"]
    touched: Bool[Tensor, "N V"]
    targets: Int[Tensor, " N"]


def weakest_regions(
    images: Float[Tensor, "N 3 S1 S2"],
    votes: Int[Tensor, "N V"],
    windows: Windows,
    regions: Windows,
    touched: Bool[Tensor, "R V"],
    num_classes: int,
) -> RegionAttack:
    """The attack on each image in the region in which its vote is weakest.

    Args:
        images: Normalized images.
        votes: Vote of each window.
        windows: The windows.
        regions: The places of the region.
        touched: Which windows each of them touches.
        num_classes: Classes C.
    """
    weakest = worst_leads(votes, touched, num_classes).argmin(dim=1)
    left = votes.masked_fill(touched[weakest], -1)
    # Of the other classes, the one with most votes that stay, and of several the first, which wins ties.
    rivals = count_votes(left, num_classes)
    rivals.scatter_(1, answers_of(votes, num_classes)[:, None], -1)
    chosen = Windows(regions.top[weakest], regions.left[weakest], regions.shape, regions.grid)
    inside = chosen.visible.unflatten(1, regions.grid)
    rows, columns = (size // patches for size, patches in zip(images.shape[2:], regions.grid, strict=True))
    places = inside.repeat_interleave(rows, dim=1).repeat_interleave(columns, dim=2).to(images.device)
    return RegionAttack(images, votes, windows, places, touched[weakest], rivals.argmax(dim=1))


def attack_votes(
    model: Classifier,
    attack: RegionAttack,
    *,
    steps: int = 200,
    seed: int = 0,
    advance: Callable[[], object] = lambda: None,
) -> Bool[Tensor, " N"]:
    """Which answers some attack changed; pixels stay between black and white.

    Args:
        model: The model, in evaluation mode.
        attack: Images and regions.
        steps: Steps of the gradient, after the random attacks.
        seed: Seed of the noise.
        advance: Called after each attack and each step.
    """
    low, high = (_normalized(model, value, attack.images) for value in (0.0, 1.0))
    generator = torch.Generator().manual_seed(seed)
    changed = torch.zeros(len(attack.images), dtype=torch.bool)
    fill = attack.images
    for number in range(RANDOM):
        noise = torch.rand(attack.images.shape, generator=generator).to(attack.images) * (high - low) + low
        fill = noise if number % 2 == 0 else attack.images.roll(1 + number // 2, 0)
        changed |= _changed(model, attack, fill)
        advance()
    with _gradient_to_all(model):
        for step in range(steps):
            fill = (fill + _STEP * (high - low) * _slope(model, attack, fill).sign()).clamp(low, high)
            if (step + 1) % _EVERY == 0 or step + 1 == steps:
                changed |= _changed(model, attack, fill)
            advance()
    return changed


def _normalized(model: Classifier, value: float, images: Tensor) -> Tensor:
    """A color as a normalized pixel [3, 1, 1]."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in model.normalization)
    return (value - mean) / std


def _rows(attack: RegionAttack) -> Iterator[tuple[int, Int[Tensor, " M"]]]:
    """Each window with the images of which the attacker's region touches it."""
    for window in range(attack.touched.shape[1]):
        rows = attack.touched[:, window].nonzero()[:, 0]
        if len(rows):
            yield window, rows


def _changed(model: Classifier, attack: RegionAttack, fill: Tensor) -> Bool[Tensor, " N"]:
    """Whether a fill of the regions changes the answers; no other window sees it, so none votes again."""
    votes = attack.votes.clone()
    images = torch.where(attack.places[:, None], fill, attack.images)
    for window, rows in _rows(attack):
        votes[rows, window] = window_vote(model, images[rows], attack.windows, window)
    classes = model.config.num_classes
    return answers_of(votes, classes) != answers_of(attack.votes, classes)


def _slope(model: Classifier, attack: RegionAttack, fill: Tensor) -> Tensor:
    """Gradient of the logits of the targets, against those of the answers, in all windows that see a region."""
    fill = fill.detach().requires_grad_()
    images = torch.where(attack.places[:, None], fill, attack.images)
    answers = answers_of(attack.votes, model.config.num_classes)
    total = fill.new_zeros(())
    for window, rows in _rows(attack):
        seen = attack.windows[window : window + 1].expand(len(rows))
        logits = model.classify_windows(images[rows], seen).logits
        places = torch.arange(len(rows))
        total = total + (logits[places, attack.targets[rows]] - logits[places, answers[rows]]).sum()
    slope: Tensor = torch.autograd.grad(total, fill)[0].nan_to_num()
    return slope


@contextmanager
def _gradient_to_all(model: Any) -> Iterator[None]:
    """Let the gradient reach patches that the mask hides, too, so that an attack can change the mask."""
    predictor = model.predictor
    before = predictor.mask_gradient
    predictor.mask_gradient = "full"
    try:
        yield
    finally:
        predictor.mask_gradient = before
