"""The audit of any classifier: objects of a data set are cut out, and put before its other backgrounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as NN
from torchvision.transforms.v2 import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.auditing.any_classifier import AnyClassifier
from ifam.auditing.reliance import FlipRate, Flips, Swap, measure_flips, swapped_image
from ifam.data import Benchmark, TransformedDataset, evenly_spaced
from ifam.errors import IfamError
from ifam.models.base import Classifier, device_of, evaluating
from ifam.progress import ProgressBar
from ifam.provenance import record
from ifam.ranges import COUNT, SHARE, check_numbers
from ifam.serialization import IN_MEMORY, to_json

# Swaps with pictures on the page.
EXAMPLES = 24
_UNCHANGED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class SwapFiles:
    """Pictures of one swap, as paths relative to `reliance.json`.

    Attributes:
        image: The image.
        cut: What was cut out of it.
        background: The image that gave the background.
        swapped: The object before it.
    """

    image: str
    cut: str
    background: str
    swapped: str


@dataclass(frozen=True)
class Example:
    """One object before a background that flipped the answer.

    Attributes:
        index: Index of the image in its split.
        label: Name of its class.
        background: Name of the class of the image that gave the background.
        answer: Answer to the image as it is.
        after: Answer before the other background.
        drop: How much less probable the first answer became.
        pictures: Files with pictures; None if none were written.
        side: Width and height of these pictures.
    """

    index: int
    label: str
    background: str
    answer: str
    after: str
    drop: float
    pictures: SwapFiles | None = None
    side: tuple[int, int] | None = None


@dataclass(frozen=True)
class RelianceResult:
    """Content of `reliance.json`.

    Attributes:
        classifier: The classifier, as it was named.
        flips: What exchanging the background does to its answers.
        cut: How the objects were cut out.
        area: Mean share of the image that an object takes.
        left_out: Number of images that were left out, by reason.
        examples: Swaps that flipped the answer, the largest drop of its probability first.
        max_flips: The largest share of flips to pass; None if every share passes.
        conditions: What was audited, and how.
        swaps: Pixels of the examples, as in `SwapFiles`; not written, and empty if the result was read from a file.
        kind: Distinguishes it from other results.
    """

    classifier: str
    flips: Flips
    cut: str
    area: float
    left_out: dict[str, int]
    examples: tuple[Example, ...]
    max_flips: float | None
    conditions: Mapping[str, Any]
    swaps: tuple[tuple[Tensor, ...], ...] = field(default=(), repr=False, compare=False, metadata=IN_MEMORY)
    kind: str = "reliance"

    @property
    def passed(self) -> bool:
        """Whether no more answers flip than `max_flips` allows."""
        return self.max_flips is None or self.flips.overall.flips <= self.max_flips

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        overall, control = self.flips.overall, self.flips.control
        said = (
            f"{_share(overall)} of the answers flip when the object stands before the background of another class"
            + (f", {_share(control)} before another of its own" if control else "")
        )
        if self.max_flips is None:
            return f"{said}."
        bound = f"at most {self.max_flips:.1%} are allowed"
        return f"{'PASSED' if self.passed else 'FAILED'}: {said}; {bound}."

    def to_dict(self) -> dict[str, Any]:
        """Everything except the pixels, ready for JSON."""
        return {"passed": self.passed, "verdict": self.verdict, **to_json(self)}


def audit_any(
    classifier: AnyClassifier,
    images: Benchmark,
    selector: Classifier | None = None,
    *,
    split: str | None = None,
    backgrounds: int = 4,
    max_flips: float | None = None,
    limit: int = 200,
    batch_size: int = 32,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
) -> RelianceResult:
    """Measure how much a classifier relies on the background.

    Args:
        classifier: The classifier.
        images: The data set.
        selector: A trained model that cuts the objects out; the masks of the data set where it is None.
        split: Which of its splits; `Benchmark.default_eval_split` where it is None.
        backgrounds: Backgrounds of other classes for each object.
        max_flips: The largest share of flips to pass.
        limit: Largest number of images, evenly spaced in the split.
        batch_size: Images at a time.
        seed: Seed of the choice of backgrounds.
        conditions: Recorded with the result.

    Raises:
        IfamError: There are no masks, nothing is found in any image, there are fewer than two classes, or the
            classifier does not answer as it should.
    """
    check_numbers(COUNT, backgrounds=backgrounds, limit=limit, batch_size=batch_size)
    if max_flips is not None:
        check_numbers(SHARE, max_flips=max_flips)
    split = split or images.default_eval_split
    with ProgressBar() as bar:
        material, left_out = _cut_out(classifier, images, split, selector, limit, batch_size, bar)
        total = len(material.images) * (1 + backgrounds + max(1, backgrounds // 2))
        asking = bar.add_task(f"asking {classifier.name}", total=total)
        flips = measure_flips(
            classifier,
            material.images,
            material.objects,
            material.labels,
            images.class_names,
            backgrounds=backgrounds,
            batch_size=batch_size,
            seed=seed,
            advance=lambda done: bar.advance(asking, done),
        )
    shown, names = flips.worst[:EXAMPLES], _answer_names(classifier, flips, images.class_names)
    return RelianceResult(
        classifier=classifier.name,
        flips=flips,
        cut="the masks of the data set" if selector is None else "a selector",
        area=float(material.objects.float().mean()),
        left_out=left_out,
        examples=tuple(_example(swap, material, images.class_names, names) for swap in shown),
        max_flips=max_flips,
        conditions={**(conditions or {}), **record()},
        swaps=tuple(_pixels(material, swap) for swap in shown),
    )


@dataclass(frozen=True)
class _Material:
    """Images in which an object was cut out.

    Attributes:
        images: Values in 0..1, of the classifier's `resized` size.
        objects: True on the pixels of the object.
        labels: Class of each.
        index: Index of each in its split.
    """

    images: Float[Tensor, "N 3 R1 R2"]
    objects: Bool[Tensor, "N R1 R2"]
    labels: Int[Tensor, " N"]
    index: Int[Tensor, " N"]


def _cut_out(
    classifier: AnyClassifier,
    images: Benchmark,
    split: str,
    selector: Classifier | None,
    limit: int,
    batch_size: int,
    bar: ProgressBar,
) -> tuple[_Material, dict[str, int]]:
    """The images with an object, and how many were left out for which reason."""
    examples = images.split(split)
    chosen = evenly_spaced(len(examples), limit) if len(examples) else []
    if len(chosen) < 2:
        raise IfamError(
            f"{images.name} has {len(chosen)} image{'s' * (len(chosen) != 1)} in {split!r}, but two or more are "
            f"needed, since each takes its background from another one."
        )
    prepared = TransformedDataset(examples, classifier.resized, _UNCHANGED)
    reading, rows = bar.add_task("reading images", total=len(chosen)), []
    for index in chosen:
        rows.append(prepared[index])
        bar.advance(reading)
    pixels, labels = torch.stack([row["image"] for row in rows]), torch.tensor([row["label"] for row in rows])
    if selector is None:
        blank = torch.zeros(classifier.resized, dtype=torch.bool)
        objects = torch.stack([blank if row["mask"] is None else row["mask"].bool() for row in rows])
    else:
        objects = select_objects(selector, pixels, batch_size)
    missing = torch.tensor([selector is None and row["mask"] is None for row in rows])
    nothing, everything = ~objects.flatten(1).any(dim=1) & ~missing, objects.flatten(1).all(dim=1)
    reasons = {"no mask": missing, "no object found": nothing, "the object fills the image": everything}
    left_out = {reason: int(which.sum()) for reason, which in reasons.items() if which.any()}
    usable = ~(missing | nothing | everything)
    if missing.all():
        raise IfamError(
            f"{images.name} has no masks, so nothing can be cut out; train a selector on these images (`ifam train`) "
            f"and name it with --selector, or name a column of masks with --data.mask_column."
        )
    if not usable.any():
        counts = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
        raise IfamError(
            f"No object could be cut out of any of the {len(rows)} images ({counts}); give a selector that was trained "
            f"on such images, or other masks."
        )
    labels = labels[usable]
    if len(labels.unique()) < 2:
        raise IfamError(
            f"All {len(labels)} images with an object are of the class {images.class_names[int(labels[0])]}, but two "
            f"or more are needed, since backgrounds are exchanged between classes; give more images or raise --limit."
        )
    return _Material(pixels[usable], objects[usable], labels, torch.tensor(chosen)[usable]), left_out


@torch.inference_mode()
def select_objects(
    selector: Classifier, images: Float[Tensor, "N 3 R1 R2"], batch_size: int = 32
) -> Bool[Tensor, "N R1 R2"]:
    """The pixels of what a model selects in images of any size.

    Args:
        selector: A model with a selector.
        images: Values in 0..1.
        batch_size: Images at a time.

    Raises:
        IfamError: The model selects no parts.
    """
    mean, std = selector.normalization
    masks = []
    with evaluating(selector):
        for rows in images.split(batch_size):
            resized = F.resize(rows, list(selector.image_size), antialias=True)
            normalized = F.normalize(resized, list(mean), list(std)).to(device_of(selector))
            mask = selector(normalized).mask
            if mask is None:
                raise IfamError(f"The method {selector.method} selects no parts, so it cuts nothing out; give an iFAM.")
            masks.append(NN.interpolate(mask[:, None].float().cpu(), images.shape[2:])[:, 0] > 0)
    return torch.cat(masks)


def _example(swap: Swap, material: _Material, names: Sequence[str], answers: Sequence[str]) -> Example:
    """A swap in words."""
    label, background = (names[int(material.labels[place])] for place in (swap.image, swap.background))
    index = int(material.index[swap.image])
    return Example(index, label, background, answers[swap.answer], answers[swap.after], swap.drop)


def _answer_names(classifier: AnyClassifier, flips: Flips, names: Sequence[str]) -> Sequence[str]:
    """Name of each of the classifier's classes."""
    own = classifier.class_names or (names if flips.accuracy is not None else ())
    return own or [f"class {number}" for number in range(flips.num_classes)]


def _pixels(material: _Material, swap: Swap) -> tuple[Tensor, ...]:
    """The pictures of a swap, in the order of `SwapFiles`."""
    image, objects = material.images[swap.image], material.objects[swap.image]
    # What is not cut out is gray.
    cut = torch.where(objects, image, 0.5)
    swapped = swapped_image(material.images, material.objects, swap.image, swap.background)
    return image, cut, material.images[swap.background], swapped


def _share(rate: FlipRate) -> str:
    """A share of flips with its interval."""
    ends = "" if rate.low is None or rate.high is None else f" ({rate.low:.1%} to {rate.high:.1%})"
    return f"{rate.flips:.1%}{ends}"
