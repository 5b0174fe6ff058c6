"""What each part contributes to an answer: exactly, or as its Shapley value where the parts are seen together."""

from dataclasses import dataclass, replace
from math import comb
from typing import TypeGuard

import torch

from ifam._typing import Bool, Float, Int, Tensor
from ifam.errors import IfamError
from ifam.models.base import Classifier, device_of, evaluating, finite_logits
from ifam.models.ifam import IFAM
from ifam.models.masking import sample_assignment
from ifam.models.part_sum import add_up, assigned_parts, part_masks
from ifam.models.pixel_mask import visible_patches
from ifam.types import Output

# Parts up to which all subsets are computed: 1,024 of an image.
MOST_PARTS = 10
# Images in the text of an explanation.
_SHOWN = 8


@dataclass(frozen=True, repr=False)
class PartContributions:
    """The class logits of images as a prior and what each part contributes.

    Attributes:
        contributions: What each part adds to the logits; 0 for a part without visible patches. In float32 where the
            model itself adds up its parts, in float64 for Shapley values.
        prior: Class logits of an image without visible patches.
        logits: The model's class logits: the prior, plus the contribution of part 0, plus that of part 1, and so on, in
            the precision of the contributions, and then rounded to float32, to the last bit (`total`).
        present: Whether a part has visible patches.
        exact: Whether the model adds up its parts itself (`ModelConfig.aggregation`); otherwise its parts are seen
            together, and the contributions are Shapley values.
        class_names: Name of each class.
    """

    contributions: Float[Tensor, "B K C"]
    prior: Float[Tensor, " C"]
    logits: Float[Tensor, "B C"]
    present: Bool[Tensor, "B K"]
    exact: bool
    class_names: tuple[str, ...]

    @property
    def answers(self) -> Int[Tensor, " B"]:
        """The predicted class of each image."""
        return self.logits.argmax(dim=1)

    def total(self) -> Float[Tensor, "B C"]:
        """The prior and all contributions, added up in order; equal to the logits bit by bit."""
        return add_up(self.prior, self.contributions).to(self.logits.dtype)

    def bars(self, index: int) -> tuple[float, list[float]]:
        """The prior and each contribution to the logit of the answer to one image."""
        answer = int(self.answers[index])
        return float(self.prior[answer]), self.contributions[index, :, answer].tolist()

    def __repr__(self) -> str:
        kind = "exact contributions" if self.exact else "Shapley values"
        lines = [f"Explanation of {len(self.logits)} images by {kind}; logit of the answer = prior + parts:"]
        for index in range(min(len(self.logits), _SHOWN)):
            (prior, values), answer = self.bars(index), int(self.answers[index])
            terms = [f"{value:+.3f} (part {k})" for k, value in enumerate(values) if self.present[index, k]]
            lines.append(
                f"  image {index}, {self.class_names[answer]}: {float(self.logits[index, answer]):.3f} = {prior:.3f} "
                f"{' '.join(terms) or '(nothing is visible)'}"
            )
        more = [f"  and {len(self.logits) - _SHOWN} more"] if len(self.logits) > _SHOWN else []
        return "\n".join(lines + more)


@torch.no_grad()
def explain_parts(model: Classifier, images: Float[Tensor, "B 3 S1 S2"], *, batch_size: int = 16) -> PartContributions:
    """What each part contributes to the class logits.

    Where the predictor sees each part alone, these are the model's own terms. Where it sees them together, they are
    the parts' Shapley values (Shapley, 1953): the mean, over all orders in which the parts could be shown one by one,
    of what a part changes when it is added. The predictor answers to all 2^n subsets of the n parts of an image, each a
    packed row of its own; the selector runs once.

    Args:
        model: A model that masks its input by parts; it runs in evaluation mode, and its mode is restored.
        images: Normalized images.
        batch_size: Images whose subsets are computed at once.

    Returns:
        The contributions, on the CPU.

    Raises:
        IfamError: The answer of the model does not rest on parts, or Shapley values of too many parts are wanted.
    """
    assert check_explainable(model)
    device = device_of(model)
    with evaluating(model):
        outputs = [explain_output(model, batch, model(batch)) for batch in images.to(device).split(batch_size)]
    tensors = [torch.cat([getattr(one, name) for one in outputs]) for name in ("contributions", "logits", "present")]
    return replace(outputs[0], contributions=tensors[0], logits=tensors[1], present=tensors[2])


def check_explainable(model: Classifier) -> TypeGuard[IFAM]:
    """Refuse models whose answer is not explained by parts, or not in finite time; True for the others.

    Raises:
        IfamError: The answer does not rest on parts, or there are too many parts for Shapley values.
    """
    if not isinstance(model, IFAM) or not model.masks_input:
        raise IfamError(
            f"The method {model.method} does not answer from its visible parts alone, so they do not explain its "
            f"answer; give a model of the method ifam."
        )
    count = model.config.num_parts
    if model.config.aggregation == "joint" and count > MOST_PARTS:
        raise IfamError(
            f"Exact Shapley values of {count} parts need 2^{count} answers for an image, but up to {MOST_PARTS} parts "
            f"are computed; train a model with aggregation 'sum', whose parts contribute exactly, or with fewer parts."
        )
    return True


def can_explain(model: Classifier) -> TypeGuard[IFAM]:
    """Whether `explain_parts` takes a model."""
    try:
        return check_explainable(model)
    except IfamError:
        return False


def explain_output(model: IFAM, images: Float[Tensor, "B 3 S1 S2"], out: Output) -> PartContributions:
    """The explanation of an output of the model in evaluation mode; see `explain_parts`."""
    shown = shown_parts(model, out).flatten(2)
    present, logits = shown.any(dim=2), finite_logits(out.logits)
    if out.part_contributions is not None and out.prior is not None:
        contributions, prior = out.part_contributions, out.prior
    else:
        prior = model.predictor.prior(images)
        values = _subset_answers(model, images, out, shown, prior)
        # Not of all of them: without any part, the answer is the prior but for rounding in another batch.
        logits = torch.where(present.any(dim=1, keepdim=True), logits, prior)
        contributions = settle(shapley_values(values), prior, logits, present)
    names, exact = model.config.class_labels, out.part_contributions is not None
    return PartContributions(contributions.cpu(), prior.cpu(), logits.cpu(), present.cpu(), exact, names)


def shown_parts(model: IFAM, out: Output) -> Bool[Tensor, "B K H W"]:
    """The predictor's patches of each part of which anything is visible."""
    grid, selection, mask = model.predictor.backbone.grid, out.selection, out.mask
    assert selection is not None, "the model selects parts"
    assert mask is not None, "the model masks its input"
    parts = assigned_parts(*sample_assignment(selection, False, model.config.temperature, False, 0.0), grid)
    visible = mask if tuple(mask.shape[1:]) == grid else visible_patches(mask, grid)
    return part_masks(parts, model.config.num_parts) & visible[:, None]


def _subset_answers(
    model: IFAM,
    images: Float[Tensor, "B 3 S1 S2"],
    out: Output,
    shown: Bool[Tensor, "B K P"],
    prior: Float[Tensor, " C"],
) -> Float[Tensor, "B S C"]:
    """The predictor's logits of every subset of the parts of each image, in float64 on the CPU.

    Subsets that differ in absent parts are one; nothing and everything are known already.
    """
    num_parts = shown.shape[1]
    numbers = torch.arange(2**num_parts, device=shown.device)
    everything = (shown.any(dim=2) * 2 ** torch.arange(num_parts, device=shown.device)).sum(dim=1, keepdim=True)
    same_as = numbers & everything
    sources, which = ((same_as == numbers) & (numbers > 0) & (numbers != everything)).nonzero(as_tuple=True)
    rows = (subsets(num_parts).to(shown.device)[which][:, :, None] & shown[sources]).any(dim=1)
    assert out.mask is not None, "the model masks its input"
    pixels, _, _ = model.predictor.as_patches(images, out.mask, None)
    values = torch.zeros(len(images), len(numbers), len(prior), dtype=torch.float64)
    if len(rows):
        answers = finite_logits(model.predictor.logits_of(pixels, rows, sources=sources))
        values[sources.cpu(), which.cpu()] = answers.cpu().double()
    values[torch.arange(len(images)), everything[:, 0].cpu()] = finite_logits(out.logits).cpu().double()
    values[:, 0] = prior.cpu().double()
    return values.gather(1, same_as.cpu()[:, :, None].expand_as(values))


def subsets(num_parts: int) -> Bool[Tensor, "S K"]:
    """All subsets of the parts: number s has part k if bit k of s is set."""
    return (torch.arange(2**num_parts)[:, None] >> torch.arange(num_parts)) % 2 == 1


def shapley_values(values: Float[Tensor, "B S C"]) -> Float[Tensor, "B K C"]:
    """Shapley values from the value v of every subset, in the order of `subsets`.

    phi_k = sum over S without k of  |S|! (K - |S| - 1)! / K! * (v(S with k) - v(S))
    """
    num_parts = values.shape[1].bit_length() - 1
    members = subsets(num_parts)
    size = members.sum(dim=1)
    found = []
    for part in range(num_parts):
        without = (~members[:, part]).nonzero()[:, 0]
        # |S|! (K - |S| - 1)! / K! is 1 / (K binom(K - 1, |S|)).
        weight = torch.tensor([1 / (num_parts * comb(num_parts - 1, int(n))) for n in size[without]])
        change = values[:, without + 2**part] - values[:, without]
        found.append((weight.to(values)[:, None] * change).sum(dim=1))
    return torch.stack(found, dim=1)


def settle(
    contributions: Float[Tensor, "B K C"],
    prior: Float[Tensor, " C"],
    logits: Float[Tensor, "B C"],
    present: Bool[Tensor, "B K"],
) -> Float[Tensor, "B K C"]:
    """Contributions whose sum, in order, is the logits: the last present part takes the rest of rounding.

    In float64 the rest is about 1e-15 of the largest term. The sum, rounded to float32, is the logit to the last bit
    unless that is some ten million times smaller than a term.

    Args:
        contributions: What each part adds, 0 where it is absent.
        prior: What is there without any.
        logits: What they add up to.
        present: Whether a part is there.
    """
    contributions, present = (values.cpu() for values in (contributions, present))
    prior, logits = prior.cpu().double(), logits.cpu().double()
    last = present.int().cumsum(dim=1).argmax(dim=1)
    chosen = torch.zeros_like(present).scatter(1, last[:, None], True) & present
    before = add_up(prior, contributions.masked_fill(chosen[:, :, None], 0.0))
    return torch.where(chosen[:, :, None], (logits - before)[:, None], contributions)
