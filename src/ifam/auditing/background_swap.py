"""Influence of the background: swap it, and measure what changes with the mask fixed and with the mask recomputed.

Hidden patches carry no information, so with a fixed mask background can only enter through visible patches: *mixed*
ones, which hold object and background, and *stray* ones, which hold background only. With a recomputed mask, the
background also acts through the selector. Combining old and new pixels with old and new masks separates the two:

    through pixels:    answer(swapped pixels, old mask)   against   answer(old pixels, old mask)
    through the mask:  answer(old pixels, new mask)       against   answer(old pixels, old mask)
    both:              answer(swapped pixels, new mask)   against   answer(old pixels, old mask)
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.auditing.inputs import Advance, AuditInputs, ModelOutputs, chunks, compute_outputs, no_progress
from ifam.evaluation.hidden_pixel_attacks import hidden_pixel_mask
from ifam.evaluation.metrics import AccuracyByGroup
from ifam.models.base import device_of
from ifam.models.ifam import IFAM
from ifam.models.masking import patch_mean

Source = Literal["benchmark", "ground truth", "own mask"]
# Images that a montage takes background from, until every pixel is filled.
_DONORS = 8


@dataclass(frozen=True)
class Change:
    """Effect of a background swap on the answers.

    Attributes:
        answers: Share of images whose answer changed.
        probability: Mean absolute change of the probability of the original answer.
        largest_logit: Largest change of a logit.
        any_bit: Share of images with a change in any bit of a logit.
    """

    answers: float
    probability: float
    largest_logit: float
    any_bit: float


@dataclass(frozen=True)
class GroupChange:
    """Accuracy of one group before and after the swap.

    Attributes:
        name: The group before the swap.
        count: Its images.
        before: Accuracy on the original images.
        fixed: Accuracy on swapped backgrounds with the mask fixed.
        recomputed: Accuracy on swapped backgrounds with the mask recomputed.
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
        source: Where backgrounds and the outline of the object come from: rendered by the benchmark, or cut out with
            the ground truth or the model's mask.
        images: Images that were swapped.
        visible: Share of all patches that are visible.
        mixed: Share of the visible patches that hold object and background.
        stray: Share of the visible patches that hold background only.
        hidden: Change when background is swapped in hidden patches only, mask fixed: exactly 0 for a faithful model.
        without_mixed: Change when it is swapped everywhere except in mixed patches, mask fixed.
        fixed: Change when it is swapped everywhere, mask fixed: the influence through pixels.
        through_mask: Change when only the mask is that of the swapped image: the influence through the mask.
        recomputed: Change when it is swapped everywhere and the mask is recomputed: both.
        mask_iou: Mean intersection over union of the two masks.
        groups: Accuracy of each group, worst after the swap first; empty if labels are unknown.
        influence: Absolute change of the probability of the original answer for each image, mask recomputed.
        changed: Whether the answer of each image changed, mask recomputed.
        answers_after: The answers after the swap, mask recomputed.
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
        """Whether swapping the background of hidden patches left every bit of every answer unchanged."""
        return self.hidden.any_bit == 0


def swap_backgrounds(
    model: IFAM,
    inputs: AuditInputs,
    outputs: ModelOutputs,
    *,
    batch_size: int = 32,
    seed: int = 0,
    advance: Advance = no_progress,
) -> Backgrounds:
    """Put every object on another background.

    Args:
        model: The model, in evaluation mode.
        inputs: The images.
        outputs: What the model returned for them.
        batch_size: Images at a time.
        seed: Seed of the choice of backgrounds.
        advance: Progress callback, called with the number of finished images.
    """
    outline = ~hidden_pixel_mask(outputs.mask, inputs.images)[:, 0] if inputs.truth is None else inputs.truth
    source: Source = "own mask" if inputs.truth is None else "ground truth"
    swapped = montage(inputs.images, outline, donors(inputs, seed))
    if inputs.swapped is not None and inputs.truth is not None:
        swapped, source = inputs.swapped, "benchmark"
    # An image of the benchmark may blend the outline, so keep the object's pixels unchanged there too.
    swapped = torch.where(outline[:, None], inputs.images, swapped)
    after = compute_outputs(model, swapped, batch_size, advance)

    grid = (outputs.mask.shape[1], outputs.mask.shape[2])
    covered = patch_mean(outline, grid)
    mixed = outputs.mask & (covered > 0) & (covered < 1)
    stray = outputs.mask & (covered == 0)
    hidden_only = torch.where(hidden_pixel_mask(outputs.mask, swapped), swapped, inputs.images)
    all_but_mixed = torch.where(hidden_pixel_mask(~mixed, swapped), inputs.images, swapped)
    predict = PredictorLogits(model, batch_size)
    logits = predict(inputs.images, outputs)
    fixed = predict(swapped, outputs)
    intersection, union = (
        values.flatten(1).sum(dim=1) for values in (outputs.mask & after.mask, outputs.mask | after.mask)
    )
    visible = int(outputs.mask.sum())
    return Backgrounds(
        source=source,
        images=len(inputs),
        visible=float(outputs.mask.float().mean()),
        mixed=int(mixed.sum()) / max(1, visible),
        stray=int(stray.sum()) / max(1, visible),
        hidden=change(logits, predict(hidden_only, outputs)),
        without_mixed=change(logits, predict(all_but_mixed, outputs)),
        fixed=change(logits, fixed),
        through_mask=change(logits, predict(inputs.images, after)),
        recomputed=change(logits, after.logits),
        mask_iou=float(torch.where(union > 0, intersection / union.clamp_min(1), 1.0).mean()),
        groups=_by_group(inputs, logits, fixed, after.logits),
        influence=tuple(_probability_change(logits, after.logits).tolist()),
        changed=tuple((logits.argmax(dim=1) != after.answers).tolist()),
        answers_after=tuple(after.answers.tolist()),
    )


def change(before: Float[Tensor, "N C"], after: Float[Tensor, "N C"]) -> Change:
    """Compare logits before and after a swap."""
    bits = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    return Change(
        answers=float((before.argmax(dim=1) != after.argmax(dim=1)).float().mean()),
        probability=float(_probability_change(before, after).mean()),
        largest_logit=float((before - after).abs().max()),
        any_bit=sum(bits) / len(bits),
    )


def _probability_change(before: Float[Tensor, "N C"], after: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
    """Absolute change of the probability of the original answer."""
    answers = before.argmax(dim=1, keepdim=True)
    return (before.softmax(dim=1) - after.softmax(dim=1)).gather(1, answers)[:, 0].abs()


def donors(inputs: AuditInputs, seed: int = 0) -> Int[Tensor, "N M"]:
    """Indices of the images that each image takes its background from, those of other groups (or classes) first."""
    count = len(inputs)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(count, count, generator=generator)
    kind = inputs.groups if inputs.groups is not None else inputs.labels
    if kind is not None:
        order = order + (kind[:, None] == kind[None])
    order.fill_diagonal_(9.0)
    return order.argsort(dim=1)[:, : min(_DONORS, max(1, count - 1))]


def montage(
    images: Float[Tensor, "N 3 S1 S2"], objects: Bool[Tensor, "N S1 S2"], choices: Int[Tensor, "N M"]
) -> Float[Tensor, "N 3 S1 S2"]:
    """Each object on the background of another image.

    Pixels where the donor shows its object are filled from the next donor; where all donors show their objects, with
    the mean background color of the first.

    Args:
        images: The images.
        objects: True on the pixels of their objects.
        choices: Indices of the donors of each image, in order of preference.
    """
    background = (~objects)[:, None]
    means = (images * background).sum(dim=(2, 3)) / background.sum(dim=(2, 3)).clamp_min(1)
    filled = means[choices[:, 0]][:, :, None, None].expand_as(images)
    for rank in reversed(range(choices.shape[1])):
        donor = choices[:, rank]
        filled = torch.where(background[donor], images[donor], filled)
    return torch.where(objects[:, None], images, filled)


def fill_holes(images: Float[Tensor, "N 3 R1 R2"], holes: Bool[Tensor, "N R1 R2"]) -> Float[Tensor, "N 3 R1 R2"]:
    """Fill holes smoothly from what is around them, by means over ever larger squares (pull-push).

    Gortler et al., The Lumigraph (SIGGRAPH 1996), section 3.4.

    Args:
        images: The images.
        holes: True where to fill; not the whole image.
    """
    known = (~holes)[:, None].to(images.dtype)
    return torch.where(known > 0, images, _push(images * known, known))


def _push(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted values [N, 3, H, W] divided by their weights, where these are zero from half the resolution."""
    means = values / weights.clamp_min(torch.finfo(weights.dtype).tiny)
    if bool((weights > 0).all()):
        return means
    coarse = _push(*(F.avg_pool2d(one, 2, ceil_mode=True) for one in (values, weights)))
    size = [values.shape[2], values.shape[3]]
    return torch.where(weights > 0, means, F.interpolate(coarse, size, mode="bilinear"))


class PredictorLogits:
    """The predictor's logits for given pixels and the masks of given outputs, on the CPU.

    Args:
        model: The model.
        batch_size: Images at a time; the same for all calls, so equal inputs give equal bits.
    """

    def __init__(self, model: IFAM, batch_size: int) -> None:
        self.model, self.batch_size, self.device = model, batch_size, device_of(model)

    @torch.no_grad()
    def __call__(self, images: Tensor, outputs: ModelOutputs) -> Tensor:
        """Logits [N, C] of images [N, 3, S1, S2]."""
        arguments = (images, outputs.mask, outputs.gate, *outputs.held())
        logits = [
            self.model.predictor(*(values[rows].to(self.device) for values in arguments)).float().cpu()
            for rows in chunks(len(images), self.batch_size)
        ]
        return torch.cat(logits)


def _by_group(inputs: AuditInputs, before: Tensor, fixed: Tensor, recomputed: Tensor) -> tuple[GroupChange, ...]:
    """Accuracy of each original group, the worst after the swap first."""
    if inputs.labels is None:
        return ()
    groups, names = (
        (inputs.labels, inputs.class_names) if inputs.groups is None else (inputs.groups, inputs.group_names)
    )
    tables = []
    for logits in (before, fixed, recomputed):
        accuracy = AccuracyByGroup(len(names))
        accuracy.update(logits, inputs.labels, groups)
        tables.append(accuracy.by_name(names))
    rows = [
        GroupChange(name, group.count, *(table[name].accuracy for table in tables)) for name, group in tables[0].items()
    ]
    return tuple(sorted(rows, key=lambda row: row.recomputed))
