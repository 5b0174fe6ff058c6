"""Comparison with post-hoc attribution maps of a plain ViT.

Each map is reduced to its highest patches, as many as iFAM's mask shows of the same image. The plain ViT then
classifies the image with all other patches removed (`removed`, as for iFAM's predictor) or filled with the mean color
(`grey`, the common way). For iFAM, removing what its mask hides changes nothing by construction.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.auditing.inputs import Advance, AuditInputs, ModelOutputs, Stopwatch, chunks, no_progress
from ifam.evaluation.hidden_pixel_attacks import hidden_pixel_mask
from ifam.models import attribution
from ifam.models.attribution import UnmaskedClassifier, has_libraries
from ifam.models.base import device_of, evaluating
from ifam.models.ifam import IFAM
from ifam.models.masking import patch_mean, resize_values
from ifam.models.predictor import Predictor

# Maps the model, images and their answers to one non-negative value for each patch.
Explain = Callable[["UnmaskedClassifier", Tensor, Tensor], Float[Tensor, "B H W"]]
MISSING = "Grad-CAM and integrated gradients were left out: `pip install 'ifam[explain]'` brings them."


@dataclass(frozen=True)
class Explanation:
    """How faithful one attribution method is.

    Attributes:
        name: The method.
        model: The model that it explains.
        kept: Share of patches that it keeps.
        agreement_removed: Share of images whose answer stays when all other patches are removed.
        drop_removed: Mean drop of the answer's probability when they are removed.
        agreement_grey: Share of images whose answer stays when all other patches are filled with the mean color; for
            iFAM the mask is recomputed from the filled image.
        drop_grey: Mean drop of the answer's probability when they are filled.
        pointing: Share of images whose highest patch has its center on the object; None if the truth is unknown.
        energy: Share of the map's total that falls on the object; None if the truth is unknown.
        energy_kept: Share of the kept patches' area that is object; None if the truth is unknown.
        accuracy: Accuracy of the model; None if labels are unknown.
        seconds: Time for one image, from pixels to the map.
    """

    name: str
    model: str
    kept: float
    agreement_removed: float
    drop_removed: float
    agreement_grey: float
    drop_grey: float
    pointing: float | None
    energy: float | None
    energy_kept: float | None
    accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class PostHoc:
    """iFAM's mask compared with post-hoc attribution of a plain ViT.

    Attributes:
        plain: Name of the plain ViT.
        rows: A row for each method, iFAM first.
        notes: Methods that were left out, and how to add them.
    """

    plain: str
    rows: tuple[Explanation, ...]
    notes: tuple[str, ...]


def compare_explanations(
    model: IFAM,
    plain: Predictor,
    inputs: AuditInputs,
    outputs: ModelOutputs,
    *,
    plain_name: str = "plain ViT",
    batch_size: int = 16,
    advance: Advance = no_progress,
) -> PostHoc:
    """Compare post-hoc attribution of a plain ViT with iFAM's mask.

    Args:
        model: The model, in evaluation mode.
        plain: A plain ViT on the same grid of patches.
        inputs: The images.
        outputs: What the model returned for them.
        plain_name: Name of the plain ViT, for the record.
        batch_size: Images at a time.
        advance: Progress callback, called with the number of finished images.
    """
    evaluator = _MapEvaluator(inputs, outputs, batch_size)
    rows = [_ifam_row(model, evaluator)]
    advance(len(inputs))
    classifier = UnmaskedClassifier(plain).to(device_of(model))
    with evaluating(plain), evaluating(classifier):
        for name, explain in explainers().items():
            maps, seconds = explain_all(classifier, explain, inputs.images, batch_size, advance)
            rows.append(evaluator.row(name, maps, seconds, classifier, plain))
    return PostHoc(plain_name, tuple(rows), () if has_libraries() else (MISSING,))


def explainers() -> Mapping[str, Explain]:
    """Attribution methods by name; those of the extra `explain` only if it is installed."""
    built_in: dict[str, Explain] = {"random patches": random_patches, "attention rollout": attention_rollout}
    more: dict[str, Explain] = {"Grad-CAM": grad_cam, "integrated gradients": integrated_gradients}
    return built_in | (more if has_libraries() else {})


def explain_all(
    classifier: UnmaskedClassifier, explain: Explain, images: Tensor, batch_size: int, advance: Advance = no_progress
) -> tuple[Float[Tensor, "N H W"], float]:
    """Maps of all images, and the seconds for one image."""
    device, batches = device_of(classifier), []
    clock = Stopwatch(device)
    with torch.no_grad():
        classifier(images[:1].to(device))  # the first call is slow
    for rows in chunks(len(images), batch_size):
        batch = images[rows].to(device)
        with clock:
            with torch.no_grad():
                answers = classifier(batch).argmax(dim=1)
            maps = explain(classifier, batch, answers)
        batches.append(maps.detach().float().cpu())
        advance(len(batch))
    return torch.cat(batches), clock.seconds / max(1, len(images))


def random_patches(
    classifier: UnmaskedClassifier, images: Tensor, answers: Int[Tensor, " B"]
) -> Float[Tensor, "B H W"]:
    """Random patches, as a control."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(len(images), *classifier.backbone.grid, generator=generator)


def attention_rollout(
    classifier: UnmaskedClassifier, images: Tensor, answers: Int[Tensor, " B"]
) -> Float[Tensor, "B H W"]:
    """Attention rollout, see `ifam.models.attribution`."""
    return attribution.attention_rollout(classifier.as_patches(), images, answers)


def grad_cam(classifier: UnmaskedClassifier, images: Tensor, answers: Int[Tensor, " B"]) -> Float[Tensor, "B H W"]:
    """Grad-CAM (arXiv 1610.02391) of the last block, upsampled to the image."""
    heat = attribution.class_activation(classifier.as_patches(), images, answers)
    pixels = F.interpolate(heat[:, None], images.shape[2:], mode="bilinear")[:, 0]
    return patch_mean(pixels - pixels.amin(dim=(1, 2), keepdim=True), classifier.backbone.grid)


def integrated_gradients(
    classifier: UnmaskedClassifier, images: Tensor, answers: Int[Tensor, " B"]
) -> Float[Tensor, "B H W"]:
    """Integrated gradients, see `ifam.models.attribution`."""
    return attribution.integrated_gradients(classifier.as_patches(), images, answers)


def top_k_mask(maps: Float[Tensor, "N H W"], mask: Bool[Tensor, "N H W"]) -> Bool[Tensor, "N H W"]:
    """The highest patches of each map, as many as the mask of the same image shows."""
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return (rank < mask.flatten(1).sum(dim=1, keepdim=True)).view_as(mask)


class _MapEvaluator:
    """Computes the figures of attribution maps.

    Args:
        inputs: The images.
        outputs: What iFAM returned for them.
        batch_size: Images at a time.
    """

    def __init__(self, inputs: AuditInputs, outputs: ModelOutputs, batch_size: int) -> None:
        self.inputs, self.outputs, self.batch_size = inputs, outputs, batch_size
        self.covered = None if inputs.truth is None else patch_mean(inputs.truth, outputs.grid)

    def row(
        self, name: str, maps: Tensor, seconds: float, classifier: UnmaskedClassifier, plain: Predictor
    ) -> Explanation:
        """Figures of a map of the plain ViT."""
        mask = top_k_mask(maps, self.outputs.patch_mask)
        original = self.logits(classifier, self.inputs.images)
        removed = self.logits(plain, self.inputs.images, mask)
        filled = self.logits(classifier, self.fill_hidden(mask))
        return self.figures(name, "plain ViT", (maps, mask), (original, removed, filled), seconds)

    def figures(
        self,
        name: str,
        model: str,
        map_and_mask: tuple[Tensor, Tensor],
        logits: tuple[Tensor, Tensor, Tensor],
        seconds: float,
    ) -> Explanation:
        """Figures from map and mask, and from the logits of the original, the reduced and the filled image."""
        (maps, mask), (original, removed, filled) = map_and_mask, logits
        answers = original.argmax(dim=1, keepdim=True)
        probabilities = [one.softmax(dim=1).gather(1, answers) for one in logits]
        labels, covered = self.inputs.labels, self.covered
        return Explanation(
            name=name,
            model=model,
            kept=float(mask.float().mean()),
            agreement_removed=float((removed.argmax(dim=1) == answers[:, 0]).float().mean()),
            drop_removed=float((probabilities[0] - probabilities[1]).mean()),
            agreement_grey=float((filled.argmax(dim=1) == answers[:, 0]).float().mean()),
            drop_grey=float((probabilities[0] - probabilities[2]).mean()),
            pointing=None if self.inputs.truth is None else pointing(maps, self.inputs.truth),
            energy=None if covered is None else energy(maps, covered),
            energy_kept=None if covered is None else energy(mask.float(), covered),
            accuracy=None if labels is None else float((answers[:, 0] == labels).float().mean()),
            seconds=seconds,
        )

    def fill_hidden(self, mask: Tensor) -> Tensor:
        """The images with all hidden patches filled with the mean color."""
        return self.inputs.images.masked_fill(hidden_pixel_mask(mask, self.inputs.images), 0.0)

    @torch.no_grad()
    def logits(self, model: nn.Module, *arguments: Tensor) -> Float[Tensor, "N C"]:
        """Class logits of all images, computed in batches."""
        device, batches = device_of(model), []
        for rows in chunks(len(arguments[0]), self.batch_size):
            out: Any = model(*(values[rows].to(device) for values in arguments))
            batches.append(getattr(out, "logits", out).float().cpu())
        return torch.cat(batches)


def _ifam_row(model: IFAM, evaluator: _MapEvaluator) -> Explanation:
    """The row of iFAM, whose map is the probability of the foreground."""
    outputs, images = evaluator.outputs, evaluator.inputs.images
    removed = evaluator.logits(model.predictor, images, outputs.mask, outputs.gate, *outputs.held())
    filled = evaluator.logits(model, evaluator.fill_hidden(outputs.mask))
    heat = resize_values(1 - outputs.part_maps[:, -1], outputs.grid)
    logits = (outputs.logits, removed, filled)
    row = evaluator.figures("mask", "iFAM", (heat, outputs.patch_mask), logits, outputs.seconds)
    truth = evaluator.inputs.truth
    # The probability of many patches is exactly 1; the margin still ranks them.
    return row if truth is None else replace(row, pointing=pointing(outputs.margin, truth))


def pointing(maps: Float[Tensor, "N H W"], truth: Bool[Tensor, "N S1 S2"]) -> float:
    """Share of the images whose highest patch has its center on the object (the pointing game)."""
    rows, columns = maps.shape[1:]
    best = maps.flatten(1).argmax(dim=1)
    y = (2 * (best // columns) + 1) * truth.shape[1] // (2 * rows)
    x = (2 * (best % columns) + 1) * truth.shape[2] // (2 * columns)
    return float(truth[torch.arange(len(maps)), y, x].float().mean())


def energy(maps: Float[Tensor, "N H W"], covered: Float[Tensor, "N H W"]) -> float:
    """Share of each map's total that falls on the object, mean over images with a nonzero map."""
    total = maps.flatten(1).sum(dim=1)
    inside = (maps * covered).flatten(1).sum(dim=1)
    return float((inside[total > 0] / total[total > 0]).mean()) if bool((total > 0).any()) else 0.0
