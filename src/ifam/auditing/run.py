"""The audit: is a model faithful, where can background still enter, and what is its mask worth? Five measurements."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ifam._typing import Bool, Float, Tensor
from ifam.auditing.background_swap import Backgrounds, swap_backgrounds
from ifam.auditing.certificates import certificates, share_weights
from ifam.auditing.certify import Certificate
from ifam.auditing.inputs import AuditInputs, ModelOutputs, from_benchmark, observe
from ifam.auditing.mask_leakage import Leakage, measure_leakage
from ifam.auditing.posthoc import PostHoc, compare_explanations, explainers
from ifam.auditing.sufficiency import Parts, measure_parts
from ifam.data import Benchmark, denormalize
from ifam.errors import IfamError
from ifam.evaluation.metrics import MaskIoU
from ifam.models.base import evaluating
from ifam.models.baselines import PlainViT
from ifam.models.ifam import IFAM
from ifam.models.masking import patch_mask
from ifam.progress import ProgressBar
from ifam.provenance import provenance
from ifam.serialization import IN_MEMORY, to_json
from ifam.types import Batch

OWN_WEIGHTS = "the model's own predictor shown every patch (never trained on whole images; --plain names a better one)"


@dataclass(frozen=True)
class PictureFiles:
    """Pictures of one image, as paths beside `audit.json`.

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
        index: Its place in the split.
        answer: Class that the model names.
        confidence: Its probability.
        label: Name of the right class; None where it is not known.
        group: Name of its group; None where it is not known.
        right: Whether the answer is right; None where that is not known.
        visible: Share of the patches that the predictor saw.
        influence: Change of the answer's probability when the background is swapped and the mask made anew.
        answer_after: The answer then.
        leave_one_out: Change of the logit of the answer without each part.
        unstable: Whether one patch more or less all round the mask changes the answer.
        flags: What a reader should look at, in words; images with flags come first in the report.
        pictures: Files with its pictures; None where none were written.
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
    """What the pictures of an audit are drawn from.

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
        backgrounds: What other backgrounds change, through pixels and through the mask.
        leakage: What the mask alone gives away.
        parts: Whether what is shown is enough, and needed.
        posthoc: The mask beside explanations of a plain ViT after the fact.
        mask_iou: Intersection over union of mask and truth, as `ifam evaluate` has it; None where it is not known.
        images: One row an image.
        conditions: What was audited, and how.
        pictures: The images and what the model selected in them; not written, and None where the audit was read from a
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
    pictures: Pictures | None = field(default=None, repr=False, compare=False, metadata=IN_MEMORY)

    @property
    def passed(self) -> bool:
        """Whether hidden pixels changed no bit of any answer, and there were some."""
        return self.certificate.passed and self.backgrounds.passed

    @property
    def verdict(self) -> str:
        """The outcome in a sentence; of a failure it names image, attack and setting."""
        certificate = self.certificate
        if certificate.violations:
            first = certificate.violations[0]
            at = self.images[first.image].index
            size = f"by {first.change:.2g}" if math.isfinite(first.change) else "to no number"
            gradient = first.attack == "gradient"
            what = "a hidden pixel receives gradient" if gradient else f"{first.attack!r} changes a logit {size}"
            return (
                f"FAILED: in image {at}, {what} ({first.setting}); "
                f"{len(certificate.failing_images)} of {certificate.certified} images fail."
            )
        if not self.backgrounds.passed:
            return "FAILED: another background in hidden patches alone changes bits of an answer."
        if not certificate.certified:
            return "NOT CERTIFIED: every mask shows every patch, so there is no hidden pixel to attack."
        return (
            f"PASSED: {certificate.hidden_pixels:,} hidden pixels of {certificate.certified} images were replaced in "
            f"{len(certificate.attacks) - 1} ways and {len(certificate.settings)} settings, and no bit of any answer "
            f"changed."
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON; None stands for numbers that are not finite."""
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
    """Audit a model; it is left in the mode it was in.

    Args:
        model: The model.
        images: Normalized images [B, 3, S, S], a batch of them with labels, a benchmark, or `AuditInputs`.
        split: Of a benchmark; "test" where there is one and "val" otherwise.
        plain: A plain ViT that was trained for the same task; the model's own predictor with every patch in view where
            none is given.
        limit: Images at most, evenly spread over a benchmark's split.
        explain: Images at most for the explanations after the fact, which are slow.
        batch_size: Images at a time.
        seed: Seed of everything random.
        conditions: What to note beside the result.

    Returns:
        The figures of all five measurements.

    Raises:
        IfamError: There are fewer than two images, or the plain ViT is of another kind than the model.
    """
    for name, value in (("limit", limit), ("explain", explain), ("batch_size", batch_size)):
        least = 2 if name == "limit" else 1
        if value < least:
            raise IfamError(f"{name} is {value}, but at least {least} is needed.")
    cases = _cases(model, images, split, limit)
    other = share_weights(model.predictor if plain is None else plain.predictor)
    if plain is not None:
        _check_plain(plain, model)
    noted = conditions or {}
    plain_name = OWN_WEIGHTS if plain is None else str(noted.get("plain", "the one that was given"))
    with evaluating(model):
        some = slice(0, None, -(-len(cases) // explain))
        totals = _totals(len(cases), len(range(len(cases))[some]), model.config.num_parts)
        with _stages(totals) as stage:
            observed = observe(model, cases.images, batch_size, stage("looking"))
            own, *baselines = certificates(model, other, cases, observed, batch_size, seed, stage("certificate"))
            advance = stage("backgrounds")
            backgrounds = swap_backgrounds(model, cases, observed, batch_size=batch_size, seed=seed, advance=advance)
            leakage = measure_leakage(cases, observed, seed=seed, advance=stage("leakage"))
            parts = measure_parts(model, cases, observed, batch_size=batch_size, advance=stage("parts"))
            posthoc = compare_explanations(
                model,
                other,
                _subset(cases, some),
                _subset(observed, some),
                plain_name=plain_name,
                batch_size=min(batch_size, 16),
                advance=stage("explanations"),
            )
    settings = {"images": len(cases), "plain ViT": plain_name, "seed": seed, "batch size": batch_size}
    return AuditResult(
        certificate=own,
        baselines=tuple(baselines),
        backgrounds=backgrounds,
        leakage=leakage,
        parts=parts,
        posthoc=posthoc,
        mask_iou=_mask_iou(cases, observed),
        images=_rows(cases, observed, own, backgrounds, parts),
        conditions={**noted, **settings, **provenance()},
        pictures=Pictures(denormalize(cases.images, model.normalization), observed.part_maps, observed.mask),
    )


def load_plain(source: str | Path) -> PlainViT:
    """A plain ViT from the folder that `save_pretrained` wrote.

    Raises:
        IfamError: The folder holds no plain ViT.
    """
    return PlainViT.from_pretrained(source)


def _cases(model: IFAM, images: Tensor | Batch | Benchmark | AuditInputs, split: str | None, limit: int) -> AuditInputs:
    """Whatever was given, as cases."""
    classes = model.config.class_names or tuple(f"class {c}" for c in range(model.config.num_classes))
    if isinstance(images, Benchmark):
        if len(images.class_names) != model.config.num_classes:
            raise IfamError(
                f"{images.name} has {len(images.class_names)} classes, but the model knows {model.config.num_classes}; "
                f"give the data that it was trained for."
            )
        cases = from_benchmark(images, split or images.default_eval_split, model, limit)
    elif isinstance(images, Batch):
        batch = images.to("cpu")
        cases = AuditInputs(batch.images[:limit], batch.labels[:limit], class_names=classes)
        if batch.groups is not None:
            group_names = tuple(f"group {g}" for g in range(int(batch.groups.max()) + 1))
            cases = replace(cases, groups=batch.groups[:limit], group_names=group_names)
        if batch.masks is not None:
            cases = replace(cases, truth=batch.masks[:limit])
    elif isinstance(images, AuditInputs):
        cases = images
    else:
        cases = AuditInputs(images[:limit].cpu(), class_names=classes)
    if len(cases) < 2:
        raise IfamError(f"An audit needs two or more images, but got {len(cases)}: one lends the other its background.")
    return replace(cases, indices=cases.indices or tuple(range(len(cases))), class_names=cases.class_names or classes)


def _check_plain(plain: PlainViT, model: IFAM) -> None:
    """Refuse a plain ViT that cannot be given the same images and masks."""
    ours = (model.image_size, model.predictor.backbone.grid, model.config.num_classes, model.normalization)
    theirs = (plain.image_size, plain.predictor.backbone.grid, plain.config.num_classes, plain.normalization)
    if ours != theirs:
        raise IfamError(
            f"The plain ViT has (image size, patches, classes, normalization) {theirs}, but the model {ours}; give one "
            f"of the same backbone and task."
        )


def _rows(
    cases: AuditInputs,
    observed: ModelOutputs,
    certificate: Certificate,
    backgrounds: Backgrounds,
    parts: Parts,
) -> tuple[ImageRow, ...]:
    """One row an image, with the flags that bring it to the top."""
    classes, failing = cases.class_names, set(certificate.failing_images)
    attacks = {v.image: v.attack for v in reversed(certificate.violations)}
    visible = observed.mask.flatten(1).float().mean(dim=1).tolist()
    answers, confidence = observed.answers.tolist(), observed.confidence.tolist()
    rows = []
    for i in range(len(cases)):
        label = None if cases.labels is None else int(cases.labels[i])
        flags = {
            f"hidden pixels change the answer ({attacks.get(i, 'an attack')})": i in failing,
            "another background changes the answer": backgrounds.changed[i],
            "nothing is visible": visible[i] == 0,
            "everything is visible": visible[i] == 1,
        }
        rows.append(
            ImageRow(
                index=cases.indices[i],
                answer=classes[answers[i]],
                confidence=confidence[i],
                label=None if label is None else classes[label],
                group=None if cases.groups is None else cases.group_names[int(cases.groups[i])],
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


def _mask_iou(cases: AuditInputs, observed: ModelOutputs) -> float | None:
    if cases.truth is None:
        return None
    iou = MaskIoU()
    iou.update(observed.mask, patch_mask(cases.truth, (observed.mask.shape[1], observed.mask.shape[2])))
    return float(iou.compute())


def _subset(known: Any, rows: slice) -> Any:
    """Some of the images, with everything that is known of them."""
    values = {
        name: value[rows] if isinstance(value, Tensor) or name == "indices" else value
        for name, value in vars(known).items()
    }
    return replace(known, **values)


def _totals(images: int, explained: int, num_parts: int) -> dict[str, int]:
    """How often each stage will say that an image (or a reading) is done."""
    return {
        "looking": images,
        "certificate": 5 * images,
        "backgrounds": images,
        "leakage": 4,
        "parts": (3 * num_parts + 2) * images,
        "explanations": explained * (1 + len(explainers())),
    }


@contextmanager
def _stages(totals: Mapping[str, int]) -> Iterator[Any]:
    """A bar for each stage, with rate and time left."""
    with ProgressBar() as bar:

        def stage(name: str) -> Any:
            task = bar.add_task(f"{name:<12}", total=totals[name])
            return lambda done: bar.advance(task, done)

        yield stage
