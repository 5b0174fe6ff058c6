"""Sufficiency and necessity of the visible parts: insertion and deletion curves, erosion and dilation of the mask.

The selector runs only once: every figure compares the predictor's answers to different masks of the same image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.auditing.inputs import Advance, AuditInputs, ModelOutputs, chunks, no_progress
from ifam.models.base import device_of
from ifam.models.ifam import IFAM


@dataclass(frozen=True)
class Step:
    """Figures of the answers to one kind of mask.

    Attributes:
        agreement: Share of images whose answer does not change.
        probability: Mean probability of the original answer.
        accuracy: Accuracy; None if labels are unknown.
        visible: Mean share of visible patches.
    """

    agreement: float
    probability: float
    accuracy: float | None
    visible: float


@dataclass(frozen=True)
class Part:
    """Necessity of one part, over the images that show it.

    Attributes:
        part: Its index.
        images: Number of images in which it has a patch.
        patches: Mean number of its patches in these images.
        changed_answers: Share of these images whose answer changes when it is dropped; None if no image shows it.
        logit_change: Mean change of the logit of the original answer when it is dropped; negative if it is needed.
    """

    part: int
    images: int
    patches: float
    changed_answers: float | None
    logit_change: float | None


@dataclass(frozen=True)
class Parts:
    """Sufficiency and necessity of the visible parts.

    The parts of each image are ranked by how much the logit of its answer drops without them.

    Attributes:
        insertion: Answers when only the n best parts are kept, n from 0 (nothing) to K (everything).
        deletion: Answers when the n best parts are dropped, n from 0 (nothing) to K (everything).
        insertion_area: Mean probability over the steps of insertion; high if few parts are enough.
        deletion_area: The same for deletion; low if the best parts are needed.
        parts: Necessity of each part.
        eroded: Answers when the mask is eroded by one patch.
        dilated: Answers when it is dilated by one patch.
        leave_one_out: Change of the logit of the answer without each part, for each image; 0 for absent parts.
        unstable: Whether erosion or dilation changes the answer of each image.
    """

    insertion: tuple[Step, ...]
    deletion: tuple[Step, ...]
    insertion_area: float
    deletion_area: float
    parts: tuple[Part, ...]
    eroded: Step
    dilated: Step
    leave_one_out: tuple[tuple[float, ...], ...]
    unstable: tuple[bool, ...]


def measure_parts(
    model: IFAM, inputs: AuditInputs, outputs: ModelOutputs, *, batch_size: int = 32, advance: Advance = no_progress
) -> Parts:
    """Insertion and deletion curves, leave-one-out, erosion and dilation.

    Args:
        model: The model, in evaluation mode.
        inputs: The images.
        outputs: What the model returned for them.
        batch_size: Images at a time.
        advance: Progress callback, called with the number of finished images and masks.
    """
    num_parts = outputs.part_maps.shape[1] - 1
    predictions = _MaskedPredictions(model, inputs, outputs, batch_size, advance)
    original = predictions(outputs.mask).gather(1, predictions.answers)
    present = torch.stack([(outputs.winners == k).flatten(1).any(dim=1) for k in range(num_parts)], dim=1)
    without = [
        predictions(outputs.mask_of_parts((torch.arange(num_parts) != k).expand_as(present))) for k in range(num_parts)
    ]
    change = torch.cat([logits.gather(1, predictions.answers) - original for logits in without], dim=1)
    change = torch.where(present, change, 0.0)
    rank = ranks(change, present)
    inserted = [_ranked(outputs, rank, lambda r, n=n: r < n) for n in range(num_parts + 1)]  # type: ignore[misc]
    deleted = [_ranked(outputs, rank, lambda r, n=n: r >= n) for n in range(num_parts + 1)]  # type: ignore[misc]
    insertion = [predictions.step(mask) for mask in inserted]
    deletion = [predictions.step(mask) for mask in deleted]
    outlines = [erode(outputs.mask), dilate(outputs.mask)]
    stable = torch.stack([predictions(mask).argmax(dim=1) == predictions.answers[:, 0] for mask in outlines])
    return Parts(
        insertion=tuple(insertion),
        deletion=tuple(deletion),
        insertion_area=sum(step.probability for step in insertion) / len(insertion),
        deletion_area=sum(step.probability for step in deletion) / len(deletion),
        parts=tuple(_part(k, present[:, k], change[:, k], without[k], predictions, outputs) for k in range(num_parts)),
        eroded=predictions.step(outlines[0]),
        dilated=predictions.step(outlines[1]),
        leave_one_out=tuple(tuple(row) for row in change.tolist()),
        unstable=tuple((~stable.all(dim=0)).tolist()),
    )


def ranks(change: Float[Tensor, "N K"], present: Bool[Tensor, "N K"]) -> Int[Tensor, "N K"]:
    """Rank of each part in its image: 0 for the one whose removal costs most; absent parts come last."""
    order = change.masked_fill(~present, torch.inf).argsort(dim=1, stable=True)
    return order.argsort(dim=1)


def erode(mask: Bool[Tensor, "N H W"]) -> Bool[Tensor, "N H W"]:
    """The mask without patches that touch a hidden one, diagonals included; beyond the image nothing is hidden."""
    return ~dilate(~mask)


def dilate(mask: Bool[Tensor, "N H W"]) -> Bool[Tensor, "N H W"]:
    """The mask with every patch that touches a visible one, including diagonally."""
    return F.max_pool2d(mask[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0


def _ranked(outputs: ModelOutputs, rank: Tensor, keep: Callable[[Tensor], Tensor]) -> Bool[Tensor, "N H2 W2"]:
    """The mask of the parts whose rank satisfies `keep`."""
    return outputs.mask_of_parts(keep(rank))


def _part(
    k: int, present: Tensor, change: Tensor, without: Tensor, predictions: "_MaskedPredictions", outputs: ModelOutputs
) -> Part:
    """Necessity of part k."""
    count = int(present.sum())
    if not count:
        return Part(k, 0, 0.0, None, None)
    changed = without.argmax(dim=1) != predictions.answers[:, 0]
    patches = (outputs.winners == k).flatten(1).sum(dim=1)
    return Part(
        k,
        count,
        float(patches[present].float().mean()),
        float(changed[present].float().mean()),
        float(change[present].mean()),
    )


class _MaskedPredictions:
    """Logits of the predictor for different masks of the same images; each mask is computed once.

    Args:
        model: The model.
        inputs: The images.
        outputs: What the model returned for them.
        batch_size: Images at a time.
        advance: Progress callback, called with the number of finished images.
    """

    def __init__(
        self, model: IFAM, inputs: AuditInputs, outputs: ModelOutputs, batch_size: int, advance: Advance
    ) -> None:
        self.model, self.inputs, self.batch_size, self.advance = model, inputs, batch_size, advance
        self.cache: dict[bytes, Tensor] = {}
        self.mask, self.gate, self.held = outputs.mask, outputs.gate, outputs.held
        self.answers = self(outputs.mask).argmax(dim=1, keepdim=True)

    @torch.no_grad()
    def __call__(self, mask: Bool[Tensor, "N H W"]) -> Float[Tensor, "N C"]:
        key = mask.numpy().tobytes()
        if key not in self.cache:
            device, batches = device_of(self.model), []
            for rows in chunks(len(mask), self.batch_size):
                # Only a soft predictor reads the gate: keep its weights except where the mask changed.
                gate = torch.where(mask[rows] == self.mask[rows], self.gate[rows], mask[rows].float())
                arguments = (self.inputs.images[rows], mask[rows], gate, *self.held(rows))
                batches.append(self.model.predictor(*(values.to(device) for values in arguments)).float().cpu())
                self.advance(rows.stop - rows.start)
            self.cache[key] = torch.cat(batches)
        return self.cache[key]

    def step(self, mask: Bool[Tensor, "N H W"]) -> Step:
        """Figures of one kind of mask."""
        logits, labels = self(mask), self.inputs.labels
        answers = logits.argmax(dim=1)
        return Step(
            agreement=float((answers == self.answers[:, 0]).float().mean()),
            probability=float(logits.softmax(dim=1).gather(1, self.answers).mean()),
            accuracy=None if labels is None else float((answers == labels).float().mean()),
            visible=float(mask.float().mean()),
        )
