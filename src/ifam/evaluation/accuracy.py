"""Accuracy by class and group for predictor and selector, and quality of the mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch

from ifam._typing import Float, Tensor
from ifam.data import Benchmark, ImageDataset
from ifam.errors import IfamError
from ifam.evaluation.bootstrap import LEVEL, Interval, auroc, interval, mean, resamples, stacked, totals
from ifam.evaluation.collect import Rows, collect
from ifam.evaluation.hidden_pixel_attacks import hidden_pixel_mask
from ifam.evaluation.metrics import GroupAccuracy
from ifam.evaluation.part_quality import PartQuality, conditions, part_figures, part_quality, with_regression
from ifam.models.base import Classifier, device_of, evaluating
from ifam.models.interventions import Intervention
from ifam.models.part_sum import held_parts
from ifam.models.predictor import Predictor


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one classifier.

    Attributes:
        average: Accuracy over all images.
        worst_group: Lowest accuracy of all groups with an image.
        groups: Accuracy, number of images and interval of each group, by name.
        classes: The same of each class.
        macro: Mean accuracy over the classes with an image.
        weighted_average: Mean accuracy over groups, weighted by their sizes (see `Evaluation.weighted_by`).
        top5: Share of images whose class is among the five highest logits; None for fewer than six classes.
        auroc: Area under the ROC curve; None unless there are two classes, each with an image.
        intervals: Bootstrap interval of each figure, by name.
        group_gap: Largest difference between the accuracies of two groups of one class; None where no class has two.
    """

    average: float
    worst_group: float
    groups: dict[str, GroupAccuracy]
    classes: dict[str, GroupAccuracy]
    macro: float
    weighted_average: float
    top5: float | None
    auroc: float | None
    intervals: dict[str, Interval]
    group_gap: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The figures of an evaluation.

    Attributes:
        predictor: Accuracy of the model's answer.
        selector: Accuracy of the selector's classification; None for models without a separate selector.
        mask_iou: Intersection over union of mask and truth, pooled over all patches; None if the truth is unknown. A
            patch counts as object if the object covers half of it.
        visible_fraction: Mean share of patches that the predictor saw; None unless the model masks its input.
        empty: Number of images without a visible patch; None unless the model masks its input.
        count: Number of images.
        extra: How the intervals were computed.
        weighted_by: What the weights of `Accuracy.weighted_average` are.
        intervals: Bootstrap interval of `mask_iou` and `visible_fraction`, by name.
        parts: Agreement of the parts with annotations; None without annotations, for models without parts, and under
            interventions, which change the selection.
        mask_of: What the mask is made of, and `mask_iou` counts: "patches" or "pixels" (squares of them).
        pixel_iou: Intersection over union of mask and truth, pooled over all pixels; None unless the model masks its
            input, and the truth is known.
        stray: Share of the visible pixels that are not the object's; None like `pixel_iou`.
    """

    predictor: Accuracy
    selector: Accuracy | None
    mask_iou: float | None
    visible_fraction: float | None
    empty: int | None
    count: int
    extra: dict[str, Any] = field(default_factory=dict)
    weighted_by: str = ""
    intervals: dict[str, Interval] = field(default_factory=dict)
    parts: PartQuality | None = None
    mask_of: str = "patches"
    pixel_iou: float | None = None
    stray: float | None = None


def evaluate(
    model: Classifier,
    benchmark: Benchmark,
    split: str = "test",
    *,
    interventions: Sequence[Intervention] = (),
    true_masks: bool = False,
    batch_size: int = 64,
    workers: int = 0,
    num_resamples: int = 1000,
    seed: int = 0,
    keypoint_regression: bool = False,
    precision: str = "32-true",
    label: str = "evaluating",
) -> Evaluation:
    """Classify every image of a split.

    If `torch.distributed` is initialized, the processes share the images, and each returns the full result.

    Args:
        model: An `IFAM` or a baseline. Its mode is restored afterwards.
        benchmark: The data set.
        split: Which of its splits.
        interventions: Changes to the selection of every image, see `ifam.models.interventions`.
        true_masks: Show the predictor the true mask instead of the selector's.
        batch_size: Images at a time; changes nothing but speed.
        workers: Processes that load images.
        num_resamples: Resamples of the bootstrap intervals; 0 for none.
        seed: Seed of the resamples.
        keypoint_regression: Predict keypoints from parts, with a regression fitted to the split "train".
        precision: As `TrainConfig.precision`; 32 bits where the device has no use for fewer.
        label: Text of the progress bar.

    Returns:
        Accuracies and the quality of the mask.

    Raises:
        IfamError: The split does not exist, the model does not support an intervention, or a true mask is missing.
    """
    settings: dict[str, Any] = {"true_masks": true_masks, "batch_size": batch_size, "workers": workers}
    settings |= {"num_resamples": num_resamples, "seed": seed, "label": label}
    settings |= {"keypoint_regression": keypoint_regression, "precision": precision}
    return evaluate_variants(model, benchmark, split, {"": interventions}, **settings)[""]


def evaluate_variants(
    model: Classifier,
    benchmark: Benchmark,
    split: str,
    variants: Mapping[str, Sequence[Intervention]],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    keypoint_regression: bool = False,
    **settings: Any,
) -> dict[str, Evaluation]:
    """Evaluate several lists of interventions with a single pass of the selector.

    Args:
        model: An `IFAM`; baselines support no interventions.
        benchmark: The data set.
        split: Which of its splits.
        variants: Lists of interventions by name.
        num_resamples: Resamples of the bootstrap intervals; 0 for none.
        seed: Seed of the resamples, which all variants share.
        keypoint_regression: Predict keypoints from parts, for the variant without interventions.
        settings: Further arguments, as for `evaluate`.
    """
    rows_of_each = collect(model, benchmark, split, list(variants.values()), **settings)
    fit = "train" if keypoint_regression else None
    if fit is not None:
        rows_of_each = _add_keypoint_regression(model, benchmark, fit, rows_of_each, settings)
    return {
        name: summarize_rows(model, rows, benchmark, split, num_resamples, seed, fit)
        for name, rows in zip(variants, rows_of_each, strict=True)
    }


def summarize_rows(
    model: Classifier,
    rows: Rows,
    benchmark: Benchmark,
    split: str,
    num_resamples: int = 1000,
    seed: int = 0,
    fit: str | None = None,
) -> Evaluation:
    """All figures, from the rows that `collect` returned for a model, with the conditions of part quality."""
    evaluation = summarize(rows, benchmark, split, num_resamples, seed)
    if model.masks_pixels:
        evaluation = replace(evaluation, mask_of="pixels")
    if evaluation.parts is None:
        return evaluation
    parts = replace(evaluation.parts, conditions=conditions(benchmark, split, model, fit))
    return replace(evaluation, parts=parts)


def _add_keypoint_regression(
    model: Classifier, benchmark: Benchmark, fit: str, rows_of_each: Sequence[Rows], settings: Mapping[str, Any]
) -> list[Rows]:
    """Add errors of keypoints predicted from parts to the rows of variants with part annotations."""
    if not any("parts.keypoints" in rows for rows in rows_of_each):
        raise IfamError(
            f"Keypoint regression needs keypoints and a model with parts, without interventions; {benchmark.name} or "
            f"{type(model).__name__} has none, or there are interventions: leave it out."
        )
    speed = {name: settings[name] for name in ("batch_size", "workers", "precision") if name in settings}
    (fit_rows,) = collect(model, benchmark, fit, [()], label=f"parts of {fit!r}", **speed)
    return [with_regression(rows, fit_rows) if "parts.keypoints" in rows else rows for rows in rows_of_each]


def summarize(rows: Rows, benchmark: Benchmark, split: str, num_resamples: int = 1000, seed: int = 0) -> Evaluation:
    """All figures of an evaluation, from one row per image."""
    count = len(rows["label"])
    sizes, weighted_by = group_sizes(rows, benchmark, split)
    has_mask, masks_input = "known" in rows, "visible" in rows
    classifiers = ("predictor", "selector") if "selector.right" in rows else ("predictor",)

    def figures(weights: Tensor) -> dict[str, Tensor]:
        accuracies = {
            f"{classifier}.{name}": value
            for classifier in classifiers
            for name, value in _accuracy(rows, classifier, benchmark, sizes, weights).items()
        }
        return accuracies | (_mask(rows, weights) if has_mask else {}) | part_figures(rows, weights)

    ones = figures(torch.ones(1, count, dtype=torch.double))
    values = {name: value[0] for name, value in ones.items()}
    chunks = [figures(weights) for weights in resamples(count, num_resamples, seed)]
    resampled = stacked(chunks) if chunks else {}
    accuracies = {name: _as_accuracy(values, resampled, name, rows, benchmark) for name in classifiers}
    masks_known = has_mask and bool(rows["known"].any())
    of_mask = [name for name in ("mask_iou", "pixel_iou", "stray", "visible_fraction") if name in values]
    intervals_of = of_mask if masks_known else [name for name in of_mask if name == "visible_fraction"]
    return Evaluation(
        predictor=accuracies["predictor"],
        selector=accuracies.get("selector"),
        mask_iou=float(values["mask_iou"]) if masks_known else None,
        visible_fraction=float(values["visible_fraction"]) if masks_input else None,
        empty=int(rows["empty"].sum()) if masks_input else None,
        count=count,
        extra={"intervals": f"bootstrap, {num_resamples} resamples, {LEVEL:.0%}, seed {seed}"} if chunks else {},
        weighted_by=weighted_by,
        intervals=_intervals(resampled, "", intervals_of),
        parts=part_quality(rows, values, resampled),
        pixel_iou=float(values["pixel_iou"]) if masks_known and masks_input else None,
        stray=float(values["stray"]) if masks_known and masks_input else None,
    )


def group_sizes(rows: Rows, benchmark: Benchmark, split: str) -> tuple[Float[Tensor, " G"], str]:
    """Weights of the groups: their sizes in training, or in the split itself if training does not cover its groups.

    Returns:
        The sizes, and a description of them.
    """
    number = len(benchmark.group_names)
    split_sizes = rows["group"].bincount(minlength=number)
    # Loading all training images to count groups would take too long; use the groups that the data set lists.
    listed = getattr(benchmark.splits.get("train"), "groups", None)
    if listed is not None:
        sizes = torch.as_tensor(listed, dtype=torch.long).bincount(minlength=number)
        if len(sizes) == number and bool((sizes[split_sizes > 0] > 0).all()):
            return sizes.double(), "group sizes in the split 'train'"
    return split_sizes.double(), f"group sizes in the split {split!r}"


def _accuracy(
    rows: Rows, classifier: str, benchmark: Benchmark, sizes: Float[Tensor, " G"], weights: Float[Tensor, "R N"]
) -> dict[str, Tensor]:
    """Figures of one classifier for each row of weights; NaN for groups and classes without an image."""
    right = rows[f"{classifier}.right"]
    ones = torch.ones_like(right)
    shares = {}
    for name, column, number in (
        ("groups", rows["group"], len(benchmark.group_names)),
        ("classes", rows["label"], len(benchmark.class_names)),
    ):
        counts = totals(ones, column, number, weights)
        shares[name] = totals(right, column, number, weights) / counts
    groups = shares["groups"]
    present = ~groups.isnan()
    figures = {
        "average": mean(right, weights),
        "worst_group": groups.nan_to_num(nan=torch.inf).amin(dim=1),
        "macro": shares["classes"].nanmean(dim=1),
        "weighted_average": (groups.nan_to_num() * sizes).sum(dim=1) / (present * sizes).sum(dim=1),
        **shares,
    }
    if f"{classifier}.top5" in rows:
        figures["top5"] = mean(rows[f"{classifier}.top5"], weights)
    if f"{classifier}.score" in rows:
        figures["auroc"] = auroc(rows[f"{classifier}.score"], rows["label"] == 1, weights)
    return figures


def _mask(rows: Rows, weights: Float[Tensor, "R N"]) -> dict[str, Tensor]:
    """Quality of the mask for each row of weights."""
    intersection, union = (weights @ rows[name].double() for name in ("intersection", "union"))
    figures = {"mask_iou": _iou(intersection, union)}
    if "visible" in rows:
        shown, inside, both = (weights @ rows[f"pixels.{name}"].double() for name in ("shown", "object", "both"))
        figures |= {
            "pixel_iou": _iou(both, shown + inside - both),
            # Without a visible pixel, none is stray.
            "stray": (shown - both) / shown.clamp_min(1),
            "visible_fraction": mean(rows["visible"], weights),
        }
    return figures


def _iou(intersection: Float[Tensor, " R"], union: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    """Intersection over union; two empty masks agree."""
    return torch.where(union > 0, intersection / union.clamp_min(1), 1.0)


def _as_accuracy(
    values: Mapping[str, Tensor], resampled: Mapping[str, Tensor], classifier: str, rows: Rows, benchmark: Benchmark
) -> Accuracy:
    """Convert figures and their resamples to an `Accuracy`."""

    def table(kind: str, column: Tensor, names: Sequence[str]) -> dict[str, GroupAccuracy]:
        counts = column.bincount(minlength=len(names)).tolist()
        resampled_shares = resampled.get(f"{classifier}.{kind}")
        groups = {}
        for i in (i for i, count in enumerate(counts) if count):
            ends = None if resampled_shares is None else interval(resampled_shares[:, i].numpy())
            groups[names[i]] = GroupAccuracy(float(values[f"{classifier}.{kind}"][i]), counts[i], *(ends or ()))
        return groups

    def optional(name: str) -> float | None:
        value = values.get(f"{classifier}.{name}")
        return None if value is None or bool(value.isnan()) else float(value)

    return Accuracy(
        average=float(values[f"{classifier}.average"]),
        worst_group=float(values[f"{classifier}.worst_group"]),
        groups=table("groups", rows["group"], benchmark.group_names),
        classes=table("classes", rows["label"], benchmark.class_names),
        macro=float(values[f"{classifier}.macro"]),
        weighted_average=float(values[f"{classifier}.weighted_average"]),
        top5=optional("top5"),
        auroc=optional("auroc"),
        intervals=_intervals(
            resampled, f"{classifier}.", ("average", "worst_group", "macro", "weighted_average", "top5", "auroc")
        ),
        group_gap=_group_gap(rows, values[f"{classifier}.groups"]),
    )


def _group_gap(rows: Rows, accuracies: Float[Tensor, " G"]) -> float | None:
    """The largest difference between two groups of one class; None if there are none, or groups are not of a class."""
    pairs = torch.stack([rows["group"], rows["label"]], dim=1).unique(dim=0)
    if len(pairs) > len(pairs[:, 0].unique()):
        return None
    of_class = [accuracies[pairs[pairs[:, 1] == label, 0]] for label in pairs[:, 1].unique()]
    return max((float(one.max() - one.min()) for one in of_class if len(one) > 1), default=None)


def _intervals(resampled: Mapping[str, Tensor], prefix: str, names: Sequence[str]) -> dict[str, Interval]:
    """Intervals of the figures that exist."""
    intervals = {name: interval(resampled[prefix + name].numpy()) for name in names if prefix + name in resampled}
    return {name: ends for name, ends in intervals.items() if ends is not None}


@torch.inference_mode()
def hidden_influence(model: Classifier, examples: ImageDataset, count: int = 64, seed: int = 0) -> float:
    """Largest change of any logit when every hidden pixel is replaced by noise, another image, 1e30, infinity and NaN.

    The mask is fixed. By construction, the result is exactly 0.

    Args:
        model: A model that masks its input.
        examples: Images, of which the first are used.
        count: Number of images.
        seed: Seed of the noise.
    """
    batch = model.prepare_batch(examples, count).to(device_of(model))
    with evaluating(model):
        out, predictor = model.predict_batch(batch), cast(Predictor, model.predictor)
        mask, held = out.mask, held_parts(out.patch_parts)
        assert mask is not None, "the model masks its input"
        logits = predictor(batch.images, mask, **held)
        hidden = hidden_pixel_mask(mask, batch.images)
        noise = torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(seed)).to(batch.images)
        fills = (torch.full_like(noise, value) for value in (1e30, torch.inf, torch.nan))
        largest = 0.0
        for filling in (noise, batch.images.roll(1, 0), *fills):
            changed = predictor(torch.where(hidden, filling, batch.images), mask, **held)
            difference = (changed - logits).abs().nan_to_num(nan=torch.inf).max()
            largest = max(largest, float(difference))
    return largest
