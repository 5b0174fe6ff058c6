"""Where background can still enter: swap it, and see what changes with the mask held and with the mask made anew.

Hidden patches carry nothing, so with the mask held only visible patches that hold background pixels can let any in:
*mixed* ones, at the outline of the object, and *stray* ones, that hold no object at all. With the mask made anew, the
background speaks through the selector. The two ways are told apart by exchanging pixels and masks crosswise:

    through pixels:    answer(swapped pixels, old mask)   against   answer(old pixels, old mask)
    through the mask:  answer(old pixels, new mask)       against   answer(old pixels, old mask)
    both:              answer(swapped pixels, new mask)   against   answer(old pixels, old mask)
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.auditing.inputs import Advance, AuditInputs, ModelOutputs, chunks, no_progress, observe
from ifam.evaluation.attacks import hidden_pixel_mask
from ifam.evaluation.metrics import AccuracyByGroup
from ifam.models.base import device_of
from ifam.models.ifam import IFAM

Source = Literal["benchmark", "ground truth", "own mask"]
# Images from which a montage takes background, until every pixel has some.
_DONORS = 8


@dataclass(frozen=True)
class Change:
    """What a swap of the background did to the answers.

    Attributes:
        answers: Share of images whose answer is another one.
        probability: Mean change of the probability of the first answer, as a size.
        largest_logit: Largest change of a logit.
        any_bit: Share of images of which any logit changed by any bit.
    """

    answers: float
    probability: float
    largest_logit: float
    any_bit: float


@dataclass(frozen=True)
class GroupChange:
    """Accuracy of one group before and after.

    Attributes:
        name: The group, as it was before the swap.
        count: Its images.
        before: Accuracy on the images as they are.
        fixed: Accuracy on swapped backgrounds, the mask held.
        recomputed: Accuracy on swapped backgrounds, the mask made anew.
    """

    name: str
    count: int
    before: float
    fixed: float
    recomputed: float


@dataclass(frozen=True)
class Backgrounds:
    """The influence of the background.

    Attributes:
        source: Where other backgrounds and the outline of the object come from: painted by the benchmark, cut out by
            the ground truth, or by the model's own mask.
        images: Images that were swapped.
        visible: Share of all patches that are visible.
        mixed: Share of the visible patches that hold object and background.
        stray: Share of the visible patches that hold background only.
        hidden: Change when background is swapped in hidden patches only, the mask held: exactly 0 for a faithful model.
        without_mixed: Change when it is swapped everywhere but in mixed patches, the mask held.
        fixed: Change when it is swapped everywhere, the mask held: the influence through pixels.
        through_mask: Change when only the mask is that of the swapped image: the influence through the mask.
        recomputed: Change when it is swapped everywhere and the mask is made anew: both.
        mask_iou: Mean intersection over union of the two masks.
        groups: Accuracy of each group, worst after the swap first; empty where no label is known.
        influence: Change of the probability of the first answer, image by image, the mask made anew.
        changed: Images whose answer is another one, the mask made anew.
        answers_after: The answers then.
    """

    source: Source
    images: int
    visible: float
    mixed: float
    stray: float
    hidden: Change
    without_mixed: Change
    fixed: Change
    through_mask: Change
    recomputed: Change
    mask_iou: float
    groups: tuple[GroupChange, ...]
    influence: tuple[float, ...]
    changed: tuple[bool, ...]
    answers_after: tuple[int, ...]

    @property
    def passed(self) -> bool:
        """Whether backgrounds of hidden patches changed no bit of any answer."""
        return self.hidden.any_bit == 0


def swap_backgrounds(
    model: IFAM,
    cases: AuditInputs,
    observed: ModelOutputs,
    *,
    batch_size: int = 32,
    seed: int = 0,
    advance: Advance = no_progress,
) -> Backgrounds:
    """Put every object before another background.

    Args:
        model: The model, in evaluation mode.
        cases: The images.
        observed: What it said about them.
        batch_size: Images at a time.
        seed: Chooses whose background each image gets.
        advance: Progress callback, called with the number of finished images.
    """
    own = ~hidden_pixel_mask(observed.mask, cases.images)[:, 0]
    outline = own if cases.truth is None else cases.truth
    source: Source = "own mask" if cases.truth is None else "ground truth"
    swapped = montage(cases.images, outline, donors(cases, seed))
    if cases.swapped is not None and cases.truth is not None:
        swapped, source = cases.swapped, "benchmark"
    # A benchmark's own picture may blend the outline, a montage is exact: hold the object's pixels in both.
    swapped = torch.where(outline[:, None], cases.images, swapped)
    after = observe(model, swapped, batch_size, advance)

    grid = (observed.mask.shape[1], observed.mask.shape[2])
    covered = coverage(outline, grid)
    mixed = observed.mask & (covered > 0) & (covered < 1)
    stray = observed.mask & (covered == 0)
    hidden_only = torch.where(hidden_pixel_mask(observed.mask, swapped), swapped, cases.images)
    all_but_mixed = torch.where(hidden_pixel_mask(~mixed, swapped), cases.images, swapped)
    answer = _Answer(model, batch_size)
    mask, gate = observed.mask, observed.gate
    logits = answer(cases.images, mask, gate)
    fixed = answer(swapped, mask, gate)
    intersection, union = (
        values.flatten(1).sum(dim=1) for values in (observed.mask & after.mask, observed.mask | after.mask)
    )
    visible = int(mask.sum())
    return Backgrounds(
        source=source,
        images=len(cases),
        visible=float(mask.float().mean()),
        mixed=int(mixed.sum()) / max(1, visible),
        stray=int(stray.sum()) / max(1, visible),
        hidden=change(logits, answer(hidden_only, mask, gate)),
        without_mixed=change(logits, answer(all_but_mixed, mask, gate)),
        fixed=change(logits, fixed),
        through_mask=change(logits, answer(cases.images, after.mask, after.gate)),
        recomputed=change(logits, after.logits),
        mask_iou=float(torch.where(union > 0, intersection / union.clamp_min(1), 1.0).mean()),
        groups=_by_group(cases, logits, fixed, after.logits),
        influence=tuple(_moved(logits, after.logits).tolist()),
        changed=tuple((logits.argmax(dim=1) != after.answers).tolist()),
        answers_after=tuple(after.answers.tolist()),
    )


def change(before: Float[Tensor, "N C"], after: Float[Tensor, "N C"]) -> Change:
    """How answers differ."""
    bits = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    return Change(
        answers=float((before.argmax(dim=1) != after.argmax(dim=1)).float().mean()),
        probability=float(_moved(before, after).mean()),
        largest_logit=float((before - after).abs().max()),
        any_bit=sum(bits) / len(bits),
    )


def _moved(before: Float[Tensor, "N C"], after: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Change of the probability of the first answer, as a size."""
    answers = before.argmax(dim=1, keepdim=True)
    return (before.softmax(dim=1) - after.softmax(dim=1)).gather(1, answers)[:, 0].abs()


def coverage(pixels: Bool[Tensor, "N S1 S2"], grid: tuple[int, int]) -> Float[Tensor, "N H W"]:
    """Share of each patch that is covered."""
    return F.adaptive_avg_pool2d(pixels.float()[:, None], grid)[:, 0]


def donors(cases: AuditInputs, seed: int = 0) -> Int[Tensor, "N M"]:
    """Whose background each image gets, in order of preference: images of other classes (or groups) first."""
    count = len(cases)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(count, count, generator=generator)
    kind = cases.groups if cases.groups is not None else cases.labels
    if kind is not None:
        order = order + (kind[:, None] == kind[None])
    order.fill_diagonal_(9.0)
    return order.argsort(dim=1)[:, : min(_DONORS, max(1, count - 1))]


def montage(
    images: Float[Tensor, "N 3 S1 S2"], objects: Bool[Tensor, "N S1 S2"], choices: Int[Tensor, "N M"]
) -> Float[Tensor, "N 3 S1 S2"]:
    """Each object before the background of another image.

    Where the other image shows its own object, the next one's background is taken, and so on; where all of them show
    their objects, the mean colour of the first one's background.

    Args:
        images: The images.
        objects: True on the pixels of their objects.
        choices: Indices of the images that give each image its background, the first before the second.
    """
    background = (~objects)[:, None]
    means = (images * background).sum(dim=(2, 3)) / background.sum(dim=(2, 3)).clamp_min(1)
    background_of_each = means[choices[:, 0]][:, :, None, None].expand_as(images)
    for rank in reversed(range(choices.shape[1])):
        giver = choices[:, rank]
        background_of_each = torch.where(background[giver], images[giver], background_of_each)
    return torch.where(objects[:, None], images, background_of_each)


class _Answer:
    """The predictor's logits for given pixels and masks, on the CPU.

    Args:
        model: The model.
        batch_size: Images at a time; the same for all calls, so that equal inputs give equal bits.
    """

    def __init__(self, model: IFAM, batch_size: int) -> None:
        self.model, self.batch_size, self.device = model, batch_size, device_of(model)

    @torch.no_grad()
    def __call__(self, images: Tensor, mask: Tensor, gate: Tensor) -> Tensor:
        logits = [
            self.model.predictor(*(values[rows].to(self.device) for values in (images, mask, gate))).float().cpu()
            for rows in chunks(len(images), self.batch_size)
        ]
        return torch.cat(logits)


def _by_group(cases: AuditInputs, before: Tensor, fixed: Tensor, recomputed: Tensor) -> tuple[GroupChange, ...]:
    """Accuracy of each group of the images as they were, the worst after the swap first."""
    if cases.labels is None:
        return ()
    groups, names = (cases.labels, cases.class_names) if cases.groups is None else (cases.groups, cases.group_names)
    tables = []
    for logits in (before, fixed, recomputed):
        accuracy = AccuracyByGroup(len(names))
        accuracy.update(logits, cases.labels, groups)
        tables.append(accuracy.by_name(names))
    rows = [
        GroupChange(name, group.count, *(table[name].accuracy for table in tables)) for name, group in tables[0].items()
    ]
    return tuple(sorted(rows, key=lambda row: row.recomputed))
