"""How much any classifier relies on the background: how often its answer flips when the background is exchanged.

Objects are cut out by masks, and backgrounds come from the other images of the same data: nothing but the images is
needed, and no word of the classifier's insides. Each object is put before backgrounds of images of other classes and,
for comparison, before those of its own class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.auditing.any_classifier import AnyClassifier, are_probabilities, compute_scores
from ifam.auditing.background_swap import fill_holes
from ifam.auditing.inputs import Advance, no_progress
from ifam.evaluation.bootstrap import Interval, interval, resamples

_RESAMPLES = 2000
# How far the hole that an object leaves goes beyond its mask, as a share of the image's side: a mask may be too small.
_MARGIN = 0.05
_LISTED = 20


@dataclass(frozen=True)
class FlipRate:
    """How often answers flip.

    Attributes:
        images: Images whose background was exchanged.
        swaps: Answers before other backgrounds, several for each image.
        flips: Share of these that are not the answer to the image as it is.
        low: Lower end of its 95 % interval (bootstrap over images); None for fewer than two images.
        high: Upper end.
    """

    images: int
    swaps: int
    flips: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PairFlips:
    """Flips of the objects of one class before the backgrounds of another.

    Attributes:
        object: Class of the objects.
        background: Class of the images that gave the background.
        swaps: Number of such pictures.
        flips: Share of these whose answer flips.
    """

    object: str
    background: str
    swaps: int
    flips: float


@dataclass(frozen=True)
class Swap:
    """One object before another background.

    Attributes:
        image: Number of the image with the object, among those measured.
        background: Number of the image that gave the background.
        answer: Answer to the image as it is.
        after: Answer before the other background.
        drop: How much less probable the first answer became.
    """

    image: int
    background: int
    answer: int
    after: int
    drop: float


@dataclass(frozen=True)
class Flips:
    """What exchanging the background does to a classifier's answers.

    Attributes:
        overall: Before backgrounds of other classes.
        control: Before backgrounds of the same class: what cutting out and another place of the same kind change; as
            much as `overall` where backgrounds do not go with classes. None where no class has two images.
        drop: Mean decrease of the probability of the answer, before backgrounds of other classes.
        by_class: By class of the object, in the order of the classes that have images.
        by_background: By class of the image that gave the background.
        pairs: The pairs of classes with the most flips, at most 20.
        worst: Swaps that flipped the answer, the largest drop first, each object once.
        answers: Answer to each image as it is.
        accuracy: Accuracy before and after, where the classifier's classes are those of the labels; else None.
        accuracy_note: What it rests on, or why there is none.
        probabilities: Whether the classifier returns probabilities; they are taken as they are.
        num_classes: Number of classes of the classifier.
    """

    overall: FlipRate
    control: FlipRate | None
    drop: float
    by_class: dict[str, FlipRate]
    by_background: dict[str, FlipRate]
    pairs: tuple[PairFlips, ...]
    worst: tuple[Swap, ...]
    answers: tuple[int, ...]
    accuracy: tuple[float, float] | None
    accuracy_note: str
    probabilities: bool
    num_classes: int


def measure_flips(
    classifier: AnyClassifier,
    images: Float[Tensor, "N 3 R1 R2"],
    objects: Bool[Tensor, "N R1 R2"],
    labels: Int[Tensor, " N"],
    class_names: Sequence[str],
    *,
    backgrounds: int = 4,
    batch_size: int = 32,
    seed: int = 0,
    advance: Advance = no_progress,
) -> Flips:
    """Put each object before backgrounds of other classes, and of its own, and count the answers that flip.

    Args:
        classifier: The classifier.
        images: Values in 0..1, of its `resized` size.
        objects: True on the pixels of the object; neither empty nor the whole image.
        labels: Class of each image; of two or more classes.
        class_names: Name of each of these classes, which need not be those of the classifier.
        backgrounds: Number of backgrounds of other classes for each object; half as many of its own class.
        batch_size: Images at a time.
        seed: Seed of the choice of backgrounds.
        advance: Progress callback, called with the number of finished images.

    Raises:
        IfamError: The classifier does not answer as it should.
    """
    others, own = donors(labels, backgrounds, seed)
    filled = fill_holes(images, grow(objects, _MARGIN))

    swaps = torch.cat([others, own])
    scores = compute_scores(classifier, _batches(images, objects, filled, swaps, batch_size), advance)
    probabilities = are_probabilities(scores)
    before, swapped = scores[: len(images)], scores[len(images) :]
    answers, after = before.argmax(dim=1), swapped.argmax(dim=1)
    flipped = answers[swaps[:, 0]] != after
    drops = _drops(before, swapped[: len(others)], others[:, 0], probabilities)
    outside, inside = flipped[: len(others)], flipped[len(others) :]
    first, second = labels[others[:, 0]], labels[others[:, 1]]
    number, names = len(images), list(class_names)
    accuracy = None
    comparable, note = compare_classes(classifier, scores.shape[1], class_names)
    if comparable:
        right = after[: len(others)] == first
        accuracy = float((answers == labels).float().mean()), float(right.float().mean())

    def rates(kind: Tensor) -> dict[str, FlipRate]:
        kinds = kind.unique().tolist()
        return {names[k]: _rate(others[kind == k, 0], outside[kind == k], number, seed) for k in kinds}

    return Flips(
        overall=_rate(others[:, 0], outside, number, seed),
        control=_rate(own[:, 0], inside, number, seed) if len(own) else None,
        drop=float(drops.mean()),
        by_class=rates(first),
        by_background=rates(second),
        pairs=_pairs(first, second, outside, names),
        worst=_worst(others, outside, drops, answers, after),
        answers=tuple(answers.tolist()),
        accuracy=accuracy,
        accuracy_note=note,
        probabilities=probabilities,
        num_classes=before.shape[1],
    )


def compare_classes(classifier: AnyClassifier, number: int, names: Sequence[str]) -> tuple[bool, str]:
    """Whether a classifier's classes are those of the data, and a note that says so.

    Args:
        classifier: The classifier.
        number: Number of its classes.
        names: Names of the classes of the data.
    """
    if number != len(names):
        return False, f"Accuracy cannot be told: the classifier has {number} classes and the data {len(names)}."
    if not classifier.class_names:
        return True, "Accuracy takes the classifier's classes to be in the order of the data's, which it does not name."
    if list(classifier.class_names) != list(names):
        return False, "Accuracy cannot be told: the classifier's classes have other names than those of the data."
    return True, "The classifier names the classes of the data."


def donors(labels: Int[Tensor, " N"], number: int, seed: int = 0) -> tuple[Int[Tensor, "M 2"], Int[Tensor, "L 2"]]:
    """Pairs of an object and an image that gives it the background, of other classes and of the same one.

    Every class gives as often as it has images. An object has `number` donors of other classes and half as many, at
    least one, of its own, or as many as there are.

    Args:
        labels: Class of each image.
        number: Donors of other classes for each object.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index, label in enumerate(labels.tolist()):
        order = torch.randperm(len(labels), generator=generator)
        order = order[order != index]
        same = labels[order] == label
        for kept, wanted, found in zip(pairs, (number, max(1, number // 2)), (~same, same), strict=True):
            chosen = order[found][:wanted]
            kept.append(torch.stack([torch.full_like(chosen, index), chosen], dim=1))
    return torch.cat(pairs[0]), torch.cat(pairs[1])


def grow(objects: Bool[Tensor, "N R1 R2"], share: float) -> Bool[Tensor, "N R1 R2"]:
    """The masks with a margin of a share of the image's shorter side; as they are where that would be everything."""
    width = round(share * min(objects.shape[1:]))
    grown = F.max_pool2d(objects[:, None].float(), 2 * width + 1, stride=1, padding=width)[:, 0] > 0
    return torch.where(grown.flatten(1).all(dim=1)[:, None, None], objects, grown)


def _batches(
    images: Tensor, objects: Tensor, filled: Tensor, pairs: Tensor, batch_size: int
) -> Iterator[Float[Tensor, "B 3 R1 R2"]]:
    """The images as they are, then objects before other backgrounds."""
    yield from images.split(batch_size)
    for rows in pairs.split(batch_size):
        one, other = rows.unbind(dim=1)
        yield torch.where(objects[one][:, None], images[one], filled[other])


def swapped_image(
    images: Float[Tensor, "N 3 R1 R2"], objects: Bool[Tensor, "N R1 R2"], image: int, background: int
) -> Float[Tensor, "3 R1 R2"]:
    """One object before the background of another image, as it was measured."""
    (donor,) = fill_holes(images[[background]], grow(objects[[background]], _MARGIN))
    return torch.where(objects[image][None], images[image], donor)


def _drops(before: Tensor, after: Tensor, index: Tensor, probabilities: bool) -> Float[Tensor, " M"]:
    """Decrease of the probability of the first answer."""
    first, second = (scores if probabilities else scores.softmax(dim=1) for scores in (before, after))
    answers = before.argmax(dim=1)[index][:, None]
    return (first[index].gather(1, answers) - second.gather(1, answers))[:, 0]


def _rate(index: Int[Tensor, " M"], flipped: Bool[Tensor, " M"], number: int, seed: int) -> FlipRate:
    """The share of flips, with its interval over resampled images."""
    count = torch.bincount(index, minlength=number)
    flips = torch.bincount(index, flipped.double(), minlength=number)
    used = count > 0
    count, flips = count[used].double(), flips[used]
    ends: Interval | None = None
    if len(count) > 1:
        values = [weights @ flips / (weights @ count) for weights in resamples(len(count), _RESAMPLES, seed)]
        ends = interval(torch.cat(values))
    return FlipRate(len(count), len(flipped), float(flipped.double().mean()), *(ends or (None, None)))


def _pairs(first: Tensor, second: Tensor, flipped: Tensor, names: Sequence[str]) -> tuple[PairFlips, ...]:
    """The pairs of classes with the largest share of flips, more swaps first where it is the same."""
    rows = []
    for one, other in torch.stack([first, second], dim=1).unique(dim=0).tolist():
        of_pair = flipped[(first == one) & (second == other)]
        rows.append(PairFlips(names[one], names[other], len(of_pair), float(of_pair.double().mean())))
    return tuple(sorted(rows, key=lambda row: (-row.flips, -row.swaps))[:_LISTED])


def _worst(pairs: Tensor, flipped: Tensor, drops: Tensor, answers: Tensor, after: Tensor) -> tuple[Swap, ...]:
    """The swaps that flipped an answer, the largest drop of its probability first, each object once."""
    order = drops.argsort(descending=True, stable=True)
    worst: dict[int, Swap] = {}
    for row in order[flipped[order]].tolist():
        image, background = pairs[row].tolist()
        if image not in worst:
            worst[image] = Swap(image, background, int(answers[image]), int(after[row]), float(drops[row]))
    return tuple(worst.values())
