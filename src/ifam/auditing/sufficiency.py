"""Is what the mask shows enough, and is it needed? Parts are taken away and put back, one patch is shaved off or added.

Nothing here looks at the selector again: every figure is the predictor's answer to another mask of the same image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.auditing.inputs import Advance, AuditInputs, ModelOutputs, chunks, no_progress
from ifam.models.base import device_of
from ifam.models.ifam import IFAM
from ifam.models.masking import resize_mask


@dataclass(frozen=True)
class Step:
    """The answers to one kind of mask.

    Attributes:
        agreement: Share of images that keep their answer.
        probability: Mean probability of the first answer.
        accuracy: Share of right answers; None where labels are not known.
        visible: Mean share of visible patches.
    """

    agreement: float
    probability: float
    accuracy: float | None
    visible: float


@dataclass(frozen=True)
class Part:
    """How much one part is needed, over the images that show it.

    Attributes:
        part: Its index.
        images: Images in which it has a patch.
        patches: Mean number of its patches there.
        changed_answers: Share of these images whose answer changes when it is dropped; None where no image shows it.
        logit_change: Mean change of the logit of the first answer when it is dropped; negative where it is needed.
    """

    part: int
    images: int
    patches: float
    changed_answers: float | None
    logit_change: float | None


@dataclass(frozen=True)
class Parts:
    """Sufficiency and necessity of what is shown.

    The parts of each image are ranked by how much the logit of its answer loses without them.

    Attributes:
        insertion: Answers when only the n best parts are kept, n from 0 (nothing) to K (everything).
        deletion: Answers when the n best parts are dropped, n from 0 (nothing) to K (everything).
        insertion_area: Mean probability over the steps of insertion; high where few parts are enough.
        deletion_area: The same for deletion; low where the best parts are needed.
        parts: How much each part is needed.
        eroded: Answers when the mask loses its outermost patches.
        dilated: Answers when it gains one patch all round.
        leave_one_out: Change of the logit of its answer for each image and part; 0 for parts that it does not show.
        unstable: Images whose answer changes by erosion or dilation.
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
    model: IFAM, cases: AuditInputs, observed: ModelOutputs, *, batch_size: int = 32, advance: Advance = no_progress
) -> Parts:
    """Take parts away, put them back, shave the mask and let it grow.

    Args:
        model: The model, in evaluation mode.
        cases: The images.
        observed: What it selected in them.
        batch_size: Images at a time.
        advance: Progress callback, called with the number of finished images and masks.
    """
    num_parts = observed.part_maps.shape[1] - 1
    asked = _MaskedPredictions(model, cases, observed, batch_size, advance)
    full = asked(observed.mask)
    own = full.gather(1, asked.answers)
    present = torch.stack([(observed.winners == k).flatten(1).any(dim=1) for k in range(num_parts)], dim=1)
    without = [asked(_shown(observed, observed.winners != k)) for k in range(num_parts)]
    lost = torch.cat([logits.gather(1, asked.answers) - own for logits in without], dim=1)
    lost = torch.where(present, lost, 0.0)
    rank = ranks(lost, present)
    kept = [_ranked(observed, rank, lambda r, n=n: r < n) for n in range(num_parts + 1)]  # type: ignore[misc]
    dropped = [_ranked(observed, rank, lambda r, n=n: r >= n) for n in range(num_parts + 1)]  # type: ignore[misc]
    insertion = [asked.step(mask) for mask in kept]
    deletion = [asked.step(mask) for mask in dropped]
    outlines = [erode(observed.mask), dilate(observed.mask)]
    stable = torch.stack([asked(mask).argmax(dim=1) == asked.answers[:, 0] for mask in outlines])
    return Parts(
        insertion=tuple(insertion),
        deletion=tuple(deletion),
        insertion_area=sum(step.probability for step in insertion) / len(insertion),
        deletion_area=sum(step.probability for step in deletion) / len(deletion),
        parts=tuple(_part(k, present[:, k], lost[:, k], without[k], asked, observed) for k in range(num_parts)),
        eroded=asked.step(outlines[0]),
        dilated=asked.step(outlines[1]),
        leave_one_out=tuple(tuple(row) for row in lost.tolist()),
        unstable=tuple((~stable.all(dim=0)).tolist()),
    )


def ranks(lost: Float[Tensor, "N K"], present: Bool[Tensor, "N K"]) -> Int[Tensor, "N K"]:
    """Place of each part in its image: 0 for the one whose loss costs most; parts that are not shown come last."""
    order = lost.masked_fill(~present, torch.inf).argsort(dim=1, stable=True)
    return order.argsort(dim=1)


def erode(mask: Bool[Tensor, "N H W"]) -> Bool[Tensor, "N H W"]:
    """The mask without the patches that touch a hidden one, corners included; the edge of the image hides nothing."""
    return ~dilate(~mask)


def dilate(mask: Bool[Tensor, "N H W"]) -> Bool[Tensor, "N H W"]:
    """The mask with every patch that touches a visible one, corners included."""
    return F.max_pool2d(mask[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0


def _shown(observed: ModelOutputs, kept: Bool[Tensor, "N H W"]) -> Bool[Tensor, "N H2 W2"]:
    """What the predictor sees where only the kept patches of the selector's stay in its mask."""
    return resize_mask(observed.selected & kept, observed.grid)


def _ranked(observed: ModelOutputs, rank: Tensor, chosen: Callable[[Tensor], Tensor]) -> Bool[Tensor, "N H2 W2"]:
    """The mask of the parts whose rank is chosen."""
    # The background has a rank that the mask rules out anyway.
    padded = torch.cat([rank, torch.zeros_like(rank[:, :1])], dim=1)
    of_patch = padded.gather(1, observed.winners.flatten(1)).view_as(observed.winners)
    return _shown(observed, chosen(of_patch))


def _part(
    k: int, present: Tensor, lost: Tensor, without: Tensor, asked: "_MaskedPredictions", observed: ModelOutputs
) -> Part:
    """How much part k is needed."""
    count = int(present.sum())
    if not count:
        return Part(k, 0, 0.0, None, None)
    changed = without.argmax(dim=1) != asked.answers[:, 0]
    patches = (observed.winners == k).flatten(1).sum(dim=1)
    return Part(
        k,
        count,
        float(patches[present].float().mean()),
        float(changed[present].float().mean()),
        float(lost[present].mean()),
    )


class _MaskedPredictions:
    """The predictor's answers to other masks of the same images; each mask is computed once.

    Args:
        model: The model.
        cases: The images.
        observed: What it selected in them.
        batch_size: Images at a time.
        advance: Progress callback, called with the number of finished images.
    """

    def __init__(
        self, model: IFAM, cases: AuditInputs, observed: ModelOutputs, batch_size: int, advance: Advance
    ) -> None:
        self.model, self.cases, self.batch_size, self.advance = model, cases, batch_size, advance
        self.known: dict[bytes, Tensor] = {}
        self.mask, self.gate = observed.mask, observed.gate
        self.answers = self(observed.mask).argmax(dim=1, keepdim=True)

    @torch.no_grad()
    def __call__(self, mask: Bool[Tensor, "N H W"]) -> Float[Tensor, "N C"]:
        key = mask.numpy().tobytes()
        if key not in self.known:
            device, found = device_of(self.model), []
            for rows in chunks(len(mask), self.batch_size):
                # Only a soft predictor reads the gate: it keeps its weights but for the patches that changed.
                gate = torch.where(mask[rows] == self.mask[rows], self.gate[rows], mask[rows].float())
                inputs = (self.cases.images[rows], mask[rows], gate)
                found.append(self.model.predictor(*(values.to(device) for values in inputs)).float().cpu())
                self.advance(rows.stop - rows.start)
            self.known[key] = torch.cat(found)
        return self.known[key]

    def step(self, mask: Bool[Tensor, "N H W"]) -> Step:
        """Figures of one kind of mask."""
        logits, labels = self(mask), self.cases.labels
        given = logits.argmax(dim=1)
        return Step(
            agreement=float((given == self.answers[:, 0]).float().mean()),
            probability=float(logits.softmax(dim=1).gather(1, self.answers).mean()),
            accuracy=None if labels is None else float((given == labels).float().mean()),
            visible=float(mask.float().mean()),
        )
