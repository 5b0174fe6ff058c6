"""What the mask alone tells the predictor: its answer where the pixels say nothing, or something else.

A model that selects and then predicts may write its answer into the mask: the selector has seen the whole image, and
the predictor learns to read the code. That the mask is the only input does not exclude it (REAL-X, Jethani et al. 2021,
arXiv 2103.01890; EPITE, arXiv 2310.17945; SUWR, Oosterhuis et al. 2024, arXiv 2407.11778). So the predictor is shown
the mask without the object in it, and its accuracy is compared with that of the most frequent class.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ifam._typing import Bool, Int, Tensor
from ifam.auditing.background_swap import PredictorLogits, fill_holes
from ifam.auditing.inputs import Advance, AuditInputs, ModelOutputs, no_progress
from ifam.auditing.sufficiency import dilate
from ifam.evaluation.bootstrap import interval, mean, resamples
from ifam.evaluation.hidden_pixel_attacks import hidden_pixel_mask
from ifam.models.ifam import IFAM

_RESAMPLES = 2000


@dataclass(frozen=True)
class MaskAlone:
    """Answers to one kind of mask, with the object in it and without.

    Attributes:
        mask: Which mask: the model's own, or a coarser one that says less.
        images: Images whose mask shows something.
        visible: Mean share of visible patches.
        pixels: Accuracy on the images as they are.
        constant: Accuracy where every visible pixel is the mean color.
        low: Lower end of its 95 % interval (bootstrap over images).
        high: Upper end.
        other: Accuracy where the mask shows an object of another class: the share of answers that follow the mask.
        followed: Share of the answers there that are the other object's class; the rest is neither.
        chance: Share of the most frequent class.
    """

    mask: str
    images: int
    visible: float
    pixels: float
    constant: float
    low: float
    high: float
    other: float
    followed: float
    chance: float

    @property
    def excess(self) -> float:
        """How much better than the most frequent class the mask alone tells the class."""
        return self.constant - self.chance

    @property
    def above_chance(self) -> bool:
        """Whether more than chance explains it."""
        return self.low > self.chance


def measure_mask_alone(
    model: IFAM,
    inputs: AuditInputs,
    outputs: ModelOutputs,
    *,
    batch_size: int = 32,
    seed: int = 0,
    advance: Advance = no_progress,
) -> tuple[MaskAlone, ...]:
    """Answers of the predictor to masks without their object; nothing if labels are unknown or all the same.

    Args:
        model: The model, in evaluation mode.
        inputs: The images.
        outputs: What the model returned for them.
        batch_size: Images at a time.
        seed: Seed of the choice of other objects, and of the intervals.
        advance: Progress callback, called with the number of finished images and masks.
    """
    labels, shown = inputs.labels, outputs.mask.flatten(1).any(dim=1)
    if labels is None or len(labels[shown].unique()) < 2:
        return ()
    donors = other_objects(labels, shown, seed)
    hidden = hidden_pixel_mask(outputs.mask[donors], inputs.images)[:, 0]
    # The other object fills the image, so that it fills the mask whatever its shape.
    foreign = fill_holes(inputs.images[donors], hidden)
    predict, results = PredictorLogits(model, batch_size), []
    for name, mask in coarser_masks(outputs.mask):
        held = outputs if mask is outputs.mask else replace(outputs, mask=mask, gate=mask.float())
        answers = []
        # Images are normalized: their mean color is 0.
        for images in (inputs.images, torch.zeros_like(inputs.images), foreign):
            answers.append(predict(images, held).argmax(dim=1)[shown])
            advance(len(images))
        results.append(_result(name, mask[shown], answers, labels[shown], labels[donors][shown], seed))
    return tuple(results)


def coarser_masks(mask: Bool[Tensor, "N H W"]) -> Iterator[tuple[str, Bool[Tensor, "N H W"]]]:
    """The mask, and masks that say less of its shape."""
    yield "the model's mask", mask
    yield "dilated by one patch", dilate(mask)
    yield "its bounding box", bounding_boxes(mask)


def bounding_boxes(mask: Bool[Tensor, "N H W"]) -> Bool[Tensor, "N H W"]:
    """The smallest upright rectangle around the visible patches of each image."""

    def span(any_visible: Bool[Tensor, "N L"]) -> Bool[Tensor, "N L"]:
        counts = any_visible.long()
        return (counts.cumsum(dim=1) > 0) & (counts.flip(1).cumsum(dim=1).flip(1) > 0)

    return span(mask.any(dim=2))[:, :, None] & span(mask.any(dim=1))[:, None]


def other_objects(labels: Int[Tensor, " N"], shown: Bool[Tensor, " N"], seed: int = 0) -> Int[Tensor, " N"]:
    """For each image, one of another class whose mask shows something."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(labels), len(labels), generator=generator)
    allowed = (labels[:, None] != labels[None]) & shown[None]
    return torch.where(allowed, order, -1.0).argmax(dim=1)


def _result(name: str, mask: Tensor, answers: list[Tensor], labels: Tensor, others: Tensor, seed: int) -> MaskAlone:
    """Accuracies of the answers to the images, to the constant, and to other objects."""
    right = [(given == labels).double() for given in answers]
    ends = interval(torch.cat([mean(right[1], weights) for weights in resamples(len(labels), _RESAMPLES, seed)]))
    low, high = ends or (0.0, 1.0)
    return MaskAlone(
        mask=name,
        images=len(labels),
        visible=float(mask.float().mean()),
        pixels=float(right[0].mean()),
        constant=float(right[1].mean()),
        low=low,
        high=high,
        other=float(right[2].mean()),
        followed=float((answers[2] == others).double().mean()),
        chance=float(torch.bincount(labels).max() / len(labels)),
    )
