"""Signs that a selector has not learned what it should: its figures on validation images, and what to change."""

import math
from dataclasses import dataclass

import torch
from torchmetrics import Metric

from ifam._typing import Float, Int, Tensor
from ifam.config import LossConfig
from ifam.training.losses import fitting_total_variation
from ifam.types import Output

# Two patches of a 10 x 10 grid, a square of five of a 37 x 37 grid: less than what most photographs show of an object.
NEARLY_EMPTY = 0.02
# Far above the share of objects that fill their images, whose corners are background. A mask that hides less
# says little about what an answer rests on.
NEARLY_FULL = 0.9
# A part for details of one class in a hundred is not dead; one that wins a few stray patches is.
RARE = 0.01
# Of a dozen images of two classes, even nine right answers may be chance.
ENOUGH_IMAGES = 20
# One-sided, at a level of 5 %.
SIGNIFICANT = 1.645
TOO_LITTLE_TRAINING = "The usual cause is too little training: raise --train.base_lr or --train.epochs."


@dataclass(frozen=True)
class SelectorFigures:
    """What a selector does on a split, without noise.

    Attributes:
        visible: Share of the patches that parts win, mean over images: what the mask would show without
            `ModelConfig.min_visible`.
        patches: For each part, the share of the patches that it wins; the background last.
        images: For each part, the number of images in which it wins any patch; the background last.
        right: Number of images whose class the selector's own classifier predicts.
        labels: Number of images of each class.
        answers: Number of images for which it predicts each class.
    """

    visible: float
    patches: tuple[float, ...]
    images: tuple[int, ...]
    right: int
    labels: tuple[int, ...]
    answers: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(self.labels)


class SelectorMetric(Metric):
    """Counts for `SelectorFigures`, exact for any number of devices.

    Args:
        num_parts: Foreground parts K.
        num_classes: Classes C.
    """

    full_state_update = False
    patches: Tensor
    images: Tensor
    right: Tensor
    labels: Tensor
    answers: Tensor

    def __init__(self, num_parts: int, num_classes: int) -> None:
        super().__init__()
        self.num_parts, self.num_classes = num_parts, num_classes
        sizes = {"patches": num_parts + 1, "images": num_parts + 1, "labels": num_classes, "answers": num_classes}
        for name, size in sizes.items():
            self.add_state(name, torch.zeros(size, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("right", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, out: Output, labels: Int[Tensor, " B"]) -> None:
        """Count a batch."""
        assert out.selection is not None
        # Not the assignment, in which `min_visible` lets the best patches win against any background.
        winners = out.selection.part_maps.argmax(dim=1).flatten(1)
        won = torch.nn.functional.one_hot(winners, self.num_parts + 1)
        answers = out.selection.selector_logits.argmax(dim=1)
        self.patches += won.sum(dim=(0, 1))
        self.images += won.any(dim=1).sum(dim=0)
        self.right += (answers == labels).sum()
        self.labels += labels.bincount(minlength=self.num_classes)
        self.answers += answers.bincount(minlength=self.num_classes)

    def compute(self) -> Float[Tensor, " K1"]:
        """Share of the patches that each part wins."""
        return self.patches / self.patches.sum()

    def figures(self) -> SelectorFigures:
        """The figures of all images on all devices."""
        with self.sync_context():
            return SelectorFigures(
                visible=int(self.patches[:-1].sum()) / int(self.patches.sum()),
                patches=tuple((self.patches / self.patches.sum()).tolist()),
                images=tuple(self.images.tolist()),
                right=int(self.right),
                labels=tuple(self.labels.tolist()),
                answers=tuple(self.answers.tolist()),
            )


def problems(figures: SelectorFigures, losses: LossConfig, grid: tuple[int, int]) -> list[str]:
    """What is wrong with a trained selector, with the usual cause and what to change.

    Args:
        figures: The selector's figures on validation images.
        losses: Weights of the loss terms it was trained with.
        grid: Rows and columns of its patches.

    Returns:
        At most one text each about an empty or full mask, parts that never win, and a selector at chance.
    """
    if figures.visible < NEARLY_EMPTY:
        # Without foreground no part wins, and its features say nothing to the classifier.
        return [_mask(figures, losses, grid)]
    chance = _chance(figures, losses)
    # A selector that has not learned has random parts, which are no fault of these losses.
    cause = TOO_LITTLE_TRAINING if chance else ""
    return [text for text in (_mask(figures, losses, grid, cause), _parts(figures, losses, cause), chance) if text]


def _mask(figures: SelectorFigures, losses: LossConfig, grid: tuple[int, int], cause: str = "") -> str:
    """A mask that is nearly empty or nearly full."""
    shown = f"The selector's own mask shows {figures.visible:.1%} of the patches of {figures.count} validation images, "
    if figures.visible < NEARLY_EMPTY:
        background = "a background that is rewarded too much: lower --loss.enforced_presence"
        return f"{shown}nearly nothing. {_usual_cause(losses, grid, background)}"
    if figures.visible > NEARLY_FULL:
        background = "a background that is rewarded too little: raise --loss.enforced_presence"
        return f"{shown}nearly everything. {cause or _usual_cause(losses, grid, background)}"
    return ""


def _usual_cause(losses: LossConfig, grid: tuple[int, int], background: str) -> str:
    """Total variation if it weighs too much, since it then makes the maps constant; else the background."""
    fitting = fitting_total_variation(grid)
    if losses.total_variation > 1.1 * fitting:
        return (
            f"The usual cause is a total variation that weighs too much for {grid[0]} x {grid[1]} patches: set "
            f"--loss.total_variation {fitting:.1g} (now {losses.total_variation:g})."
        )
    return f"Unless the objects are like that, the usual cause is {background} (now {losses.enforced_presence:g})."


def _parts(figures: SelectorFigures, losses: LossConfig, cause: str) -> str:
    """Parts that never win a patch."""
    *images, _ = figures.images
    dead = [part for part, count in enumerate(images) if count <= RARE * figures.count]
    alive = len(images) - len(dead)
    if not dead or not alive:
        return ""
    names = " and ".join(filter(None, [", ".join(map(str, dead[:-1])), str(dead[-1])]))
    most = max(images[part] for part in dead)
    cause = cause or (
        f"Usually fewer parts are enough for these images: set --model.num_parts {alive}, or raise --loss.presence "
        f"(now {losses.presence:g}) to have more of them used."
    )
    return (
        f"Of the parts 0 to {len(images) - 1}, {names} {'wins' if len(dead) == 1 else 'win'} "
        f"{f'a patch in at most {most}' if most else 'no patch in any'} of {figures.count} validation images. {cause}"
    )


def _chance(figures: SelectorFigures, losses: LossConfig) -> str:
    """A selector whose own classifier, if it was trained, cannot be told from chance."""
    if losses.selector_classification == 0 or figures.count < ENOUGH_IMAGES or above_chance(figures) >= SIGNIFICANT:
        return ""
    return (
        f"The selector's own classifier is no better than chance: it is right for {figures.right / figures.count:.1%} "
        f"of {figures.count} validation images, and would be for {_expected(figures) / figures.count:.1%} with the "
        f"same answers in random order. {TOO_LITTLE_TRAINING}"
    )


def above_chance(figures: SelectorFigures) -> float:
    """By how many standard deviations the right answers exceed those of the same answers in random order.

    The accuracy of the most frequent class is no bound: a selector that is good at rare classes may be below it. Random
    order keeps how often each class is answered, so that neither a frequent class nor a constant answer counts.
    With n_c images of a class, m_c answers of it, and N images, the right answers in random order have mean
    `sum n_c m_c / N` and variance

        (sum n_c m_c - sum n_c m_c^2 / N - sum n_c^2 m_c / N + (sum n_c m_c / N)^2) / (N - 1)
    """
    labels, answers = figures.labels, figures.answers
    both = sum(n * m for n, m in zip(labels, answers, strict=True))
    mixed = sum(n * m * (n + m) for n, m in zip(labels, answers, strict=True)) / figures.count
    variance = (both - mixed + (both / figures.count) ** 2) / max(1, figures.count - 1)
    # Without variance, all answers or all labels are the same.
    return (figures.right - _expected(figures)) / math.sqrt(variance) if variance > 1e-9 else 0.0


def _expected(figures: SelectorFigures) -> float:
    """Right answers to expect in random order."""
    return sum(n * m for n, m in zip(figures.labels, figures.answers, strict=True)) / figures.count
