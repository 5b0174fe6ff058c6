"""The audit of a model: certificate, background swaps, mask leakage, sufficiency, and post-hoc attribution."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ifam._typing import Bool, Float, Tensor
from ifam.auditing.background_swap import Backgrounds, swap_backgrounds
from ifam.auditing.certificates import certificates, part_certificates, share_weights
from ifam.auditing.certify import Certificate
from ifam.auditing.inputs import AuditInputs, ModelOutputs, compute_outputs, from_benchmark, no_progress
from ifam.auditing.mask_alone import MaskAlone, measure_mask_alone
from ifam.auditing.mask_leakage import Leakage, measure_leakage
from ifam.auditing.posthoc import PostHoc, compare_explanations, explainers
from ifam.auditing.sufficiency import Parts, measure_parts
from ifam.config import ModelConfig
from ifam.data import Benchmark, denormalize
from ifam.errors import IfamError
from ifam.evaluation.metrics import MaskIoU
from ifam.models.base import evaluating
from ifam.models.baselines import PlainViT
from ifam.models.ifam import IFAM
from ifam.models.masking import patch_mask
from ifam.progress import ProgressBar
from ifam.provenance import record
from ifam.serialization import IN_MEMORY, to_json
from ifam.types import Batch

OWN_WEIGHTS = "the model's own predictor shown every patch (never trained on whole images; --plain names a better one)"


@dataclass(frozen=True)
class PictureFiles:
    """Pictures of one image, as paths relative to `audit.json`.

    Attributes:
        input: The image.
        parts: Its parts in colors.
        seen: What the predictor saw.
    """

    input: str
    parts: str
    seen: str


@dataclass(frozen=True)
class ImageRow:
    """One image of the audit.

    Attributes:
        index: Its index in the split.
        answer: Name of the predicted class.
        confidence: Its probability.
        label: Name of the true class; None if unknown.
        group: Name of its group; None if unknown.
        right: Whether the answer is right; None if unknown.
        visible: Share of the patches that the predictor saw.
        influence: Change of the answer's probability when the background is swapped and the mask recomputed.
        answer_after: The answer after this swap.
        leave_one_out: Change of the logit of the answer without each part.
        unstable: Whether eroding or dilating the mask by one patch changes the answer.
        flags: Remarkable findings, in words; images with flags come first in the report.
        pictures: Files with its pictures; None if none were written.
        side: Width and height of these pictures.
    """

    index: int
    answer: str
    confidence: float
    label: str | None
    group: str | None
    right: bool | None
    visible: float
    influence: float
    answer_after: str
    leave_one_out: tuple[float, ...]
    unstable: bool
    flags: tuple[str, ...]
    pictures: PictureFiles | None = None
    side: tuple[int, int] | None = None


@dataclass(frozen=True)
class Pictures:
    """Data that the pictures of an audit are drawn from.

    Attributes:
        images: The images as colors between 0 and 1.
        part_maps: Probability of each part at each patch, background last.
        mask: Patches that the predictor saw.
    """

    images: Float[Tensor, "N 3 S1 S2"]
    part_maps: Float[Tensor, "N K1 H W"]
    mask: Bool[Tensor, "N H2 W2"]


@dataclass(frozen=True)
class AuditResult:
    """The outcome of an audit.

    Attributes:
        certificate: Whether any hidden pixel changes any bit of the answer.
        baselines: The same for a plain ViT, a late mask and a soft mask.
        part_certificates: For each part, whether any pixel outside of it changes any bit of what it contributes to the
            logits; empty where the predictor sees all parts together (`ModelConfig.aggregation`).
        backgrounds: Influence of the background, through pixels and through the mask.
        leakage: What the mask alone reveals to a probe.
        mask_alone: What it tells the predictor: the model's mask, and coarser ones; empty without labels.
        parts: Sufficiency and necessity of the visible parts.
        posthoc: The mask compared with post-hoc attribution of a plain ViT.
        mask_iou: Intersection over union of mask and truth, as in `ifam evaluate`; None if the truth is unknown.
        images: A row for each image.
        conditions: What was audited, and how.
        pictures: The images and what the model selected in them; not written, and None if the audit was read from a
            file.
    """

    certificate: Certificate
    baselines: tuple[Certificate, ...]
    backgrounds: Backgrounds
    leakage: Leakage
    parts: Parts
    posthoc: PostHoc
    mask_iou: float | None
    images: tuple[ImageRow, ...]
    conditions: Mapping[str, Any]
    part_certificates: tuple[Certificate, ...] = ()
    mask_alone: tuple[MaskAlone, ...] = ()
    pictures: Pictures | None = field(default=None, repr=False, compare=False, metadata=IN_MEMORY)

    @property
    def passed(self) -> bool:
        """Whether there were hidden pixels, and none changed a bit of any answer, or of what a part contributes."""
        leaking = any(one.failing_images for one in self.part_certificates)
        return self.certificate.passed and self.backgrounds.passed and not leaking

    @property
    def verdict(self) -> str:
        """The outcome in a sentence; for a failure with image, attack and setting."""
        certificate = self.certificate
        if certificate.violations:
            first = certificate.violations[0]
            at = self.images[first.image].index
            size = f"by {first.change:.2g}" if math.isfinite(first.change) else "to a non-finite value"
            gradient = first.attack == "gradient"
            what = "a hidden pixel receives gradient" if gradient else f"{first.attack!r} changes a logit {size}"
            return (
                f"FAILED: in image {at}, {what} ({first.setting}); "
                f"{len(certificate.failing_images)} of {certificate.certified} images fail."
            )
        if not self.backgrounds.passed:
            return "FAILED: another background in hidden patches alone changes bits of an answer."
        for part in self.part_certificates:
            if part.failing_images:
                first = part.violations[0]
                return (
                    f"FAILED: in image {self.images[first.image].index}, pixels outside of {part.name} change what it "
                    f"contributes ({first.attack!r}, {first.setting}); {len(part.failing_images)} of {part.certified} "
                    f"images fail."
                )
        if not certificate.certified:
            return "NOT CERTIFIED: every mask shows every patch, so there is no hidden pixel to attack."
        return (
            f"PASSED: {certificate.hidden_pixels:,} hidden pixels of {certificate.certified} images were replaced in "
            f"{len(certificate.attacks) - 1} ways and {len(certificate.settings)} settings, and no bit of any answer "
            f"changed{'' if not self.part_certificates else ', nor did one of any part for pixels outside of it'}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything except the pictures, ready for JSON; numbers that are not finite become None."""
        first, *others = ({**to_json(one), "passed": one.passed} for one in (self.certificate, *self.baselines))
        backgrounds = {**to_json(self.backgrounds), "passed": self.backgrounds.passed}
        verdict = {"kind": "audit", "passed": self.passed, "verdict": self.verdict}
        return {**verdict, **to_json(self), "certificate": first, "baselines": others, "backgrounds": backgrounds}


def audit(
    model: IFAM,
    images: Tensor | Batch | Benchmark | AuditInputs,
    *,
    split: str | None = None,
    plain: PlainViT | None = None,
    limit: int = 200,
    explain: int = 50,
    batch_size: int = 32,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
) -> AuditResult:
    """Audit a model. Its mode is restored afterwards.

    Args:
        model: The model.
        images: Normalized images [B, 3, S, S], a batch of them with labels, a benchmark, or `AuditInputs`.
        split: Split of a benchmark; by default "test", or "val" if there is no test split.
        plain: A plain ViT trained for the same task; by default the model's predictor with every patch visible.
        limit: Largest number of images, evenly spaced in a benchmark's split.
        explain: Largest number of images for post-hoc attribution, which is slow.
        batch_size: Images at a time.
        seed: Seed of everything random.
        conditions: Recorded with the result.

    Returns:
        The results of all five measurements.

    Raises:
        IfamError: There are fewer than two images, or the plain ViT does not fit the model.
    """
    for name, value in (("limit", limit), ("explain", explain), ("batch_size", batch_size)):
        least = 2 if name == "limit" else 1
        if value < least:
            raise IfamError(f"{name} is {value}, but at least {least} is needed.")
    inputs = _as_inputs(model, images, split, limit)
    plain_predictor = share_weights(model.predictor if plain is None else plain.predictor)
    if plain is not None:
        _check_plain(plain, model)
    conditions = conditions or {}
    plain_name = OWN_WEIGHTS if plain is None else str(conditions.get("plain", "the given one"))
    with evaluating(model):
        explained = slice(0, None, -(-len(inputs) // explain))
        totals = _totals(len(inputs), len(range(len(inputs))[explained]), model.config)
        with _stages(totals) as stage:
            outputs = compute_outputs(model, inputs.images, batch_size, stage("inference"))
            certificate, *baselines = certificates(
                model, plain_predictor, inputs, outputs, batch_size, seed, stage("certificate")
            )
            count = stage("single parts") if outputs.held() else no_progress
            isolated = part_certificates(model, inputs, outputs, batch_size, seed, count)
            advance = stage("backgrounds")
            backgrounds = swap_backgrounds(model, inputs, outputs, batch_size=batch_size, seed=seed, advance=advance)
            leakage = measure_leakage(inputs, outputs, seed=seed, advance=stage("leakage"))
            mask_alone = measure_mask_alone(
                model, inputs, outputs, batch_size=batch_size, seed=seed, advance=stage("mask alone")
            )
            parts = measure_parts(model, inputs, outputs, batch_size=batch_size, advance=stage("parts"))
            posthoc = compare_explanations(
                model,
                plain_predictor,
                _subset(inputs, explained),
                _subset(outputs, explained),
                plain_name=plain_name,
                batch_size=min(batch_size, 16),
                advance=stage("attribution"),
            )
    settings = {"image count": len(inputs), "plain ViT": plain_name, "seed": seed, "batch size": batch_size}
    return AuditResult(
        certificate=certificate,
        baselines=tuple(baselines),
        backgrounds=backgrounds,
        leakage=leakage,
        mask_alone=mask_alone,
        parts=parts,
        posthoc=posthoc,
        mask_iou=_mask_iou(inputs, outputs),
        images=_rows(inputs, outputs, certificate, backgrounds, parts),
        conditions={**conditions, **settings, **record()},
        part_certificates=tuple(isolated),
        pictures=Pictures(denormalize(inputs.images, model.normalization), outputs.part_maps, outputs.mask),
    )


def load_plain(source: str | Path) -> PlainViT:
    """Load a plain ViT from a folder written by `save_pretrained`.

    Raises:
        IfamError: The folder does not contain a plain ViT.
    """
    return PlainViT.from_pretrained(source)


def _as_inputs(
    model: IFAM, images: Tensor | Batch | Benchmark | AuditInputs, split: str | None, limit: int
) -> AuditInputs:
    """Convert any of the accepted inputs."""
    classes = model.config.class_labels
    if isinstance(images, Benchmark):
        if len(images.class_names) != model.config.num_classes:
            raise IfamError(
                f"{images.name} has {len(images.class_names)} classes, but the model has {model.config.num_classes}; "
                f"give the data that it was trained on."
            )
        inputs = from_benchmark(images, split or images.default_eval_split, model, limit)
    elif isinstance(images, Batch):
        batch = images.to("cpu")
        inputs = AuditInputs(batch.images[:limit], batch.labels[:limit], class_names=classes)
        if batch.groups is not None:
            group_names = tuple(f"group {g}" for g in range(int(batch.groups.max()) + 1))
            inputs = replace(inputs, groups=batch.groups[:limit], group_names=group_names)
        if batch.masks is not None:
            inputs = replace(inputs, truth=batch.masks[:limit])
    elif isinstance(images, AuditInputs):
        inputs = images
    else:
        inputs = AuditInputs(images[:limit].cpu(), class_names=classes)
    if len(inputs) < 2:
        raise IfamError(
            f"An audit needs two or more images, but got {len(inputs)}: each takes its background from another one."
        )
    return replace(
        inputs, indices=inputs.indices or tuple(range(len(inputs))), class_names=inputs.class_names or classes
    )


def _check_plain(plain: PlainViT, model: IFAM) -> None:
    """Raise an error unless the plain ViT takes the same images and masks as the model."""
    expected = (model.image_size, model.predictor.backbone.grid, model.config.num_classes, model.normalization)
    actual = (plain.image_size, plain.predictor.backbone.grid, plain.config.num_classes, plain.normalization)
    if actual != expected:
        raise IfamError(
            f"The plain ViT has (image size, patches, classes, normalization) {actual}, but the model has "
            f"{expected}; give one of the same backbone and task."
        )


def _rows(
    inputs: AuditInputs,
    outputs: ModelOutputs,
    certificate: Certificate,
    backgrounds: Backgrounds,
    parts: Parts,
) -> tuple[ImageRow, ...]:
    """A row for each image, with its flags."""
    classes, failing = inputs.class_names, set(certificate.failing_images)
    attacks = {v.image: v.attack for v in reversed(certificate.violations)}
    visible = outputs.mask.flatten(1).float().mean(dim=1).tolist()
    answers, confidence = outputs.answers.tolist(), outputs.confidence.tolist()
    rows = []
    for i in range(len(inputs)):
        label = None if inputs.labels is None else int(inputs.labels[i])
        flags = {
            f"hidden pixels change the answer ({attacks.get(i, 'an attack')})": i in failing,
            "another background changes the answer": backgrounds.changed[i],
            "nothing is visible": visible[i] == 0,
            "everything is visible": visible[i] == 1,
        }
        rows.append(
            ImageRow(
                index=inputs.indices[i],
                answer=classes[answers[i]],
                confidence=confidence[i],
                label=None if label is None else classes[label],
                group=None if inputs.groups is None else inputs.group_names[int(inputs.groups[i])],
                right=None if label is None else answers[i] == label,
                visible=visible[i],
                influence=backgrounds.influence[i],
                answer_after=classes[backgrounds.answers_after[i]],
                leave_one_out=parts.leave_one_out[i],
                unstable=parts.unstable[i],
                flags=tuple(text for text, holds in flags.items() if holds),
            )
        )
    return tuple(rows)


def _mask_iou(inputs: AuditInputs, outputs: ModelOutputs) -> float | None:
    if inputs.truth is None:
        return None
    iou = MaskIoU()
    iou.update(outputs.mask, patch_mask(inputs.truth, (outputs.mask.shape[1], outputs.mask.shape[2])))
    return float(iou.compute())


def _subset(inputs_or_outputs: Any, rows: slice) -> Any:
    """Some of the images."""
    values = {
        name: value[rows] if isinstance(value, Tensor) or name == "indices" else value
        for name, value in vars(inputs_or_outputs).items()
    }
    return replace(inputs_or_outputs, **values)


def _totals(images: int, explained: int, config: ModelConfig) -> dict[str, int]:
    """Number of steps of each stage."""
    return {
        "inference": images,
        "certificate": 5 * images,
        "single parts": config.num_parts * images,
        "backgrounds": images,
        "leakage": 4,
        "mask alone": 9 * images,
        "parts": (3 * config.num_parts + 2) * images,
        "attribution": explained * (1 + len(explainers())),
    }


@contextmanager
def _stages(totals: Mapping[str, int]) -> Iterator[Any]:
    """A progress bar for each stage."""
    with ProgressBar() as bar:

        def stage(name: str) -> Any:
            task = bar.add_task(f"{name:<12}", total=totals[name])
            return lambda done: bar.advance(task, done)

        yield stage
