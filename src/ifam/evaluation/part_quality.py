"""Part quality of a split: the metrics of `ifam.evaluation.part_metrics`, from one row per image.

Annotations are those of `ifam.data.ImageDataset`, on images resized by their shorter side, center-cropped and
normalized, as the model sees them. The selection is evaluated before any intervention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ifam._typing import Bool, Float, Int, Tensor
from ifam.data import Benchmark
from ifam.evaluation.bootstrap import Interval, interval, mean
from ifam.evaluation.part_metrics import (
    Keypoints,
    Positions,
    agreements,
    foreground_pixels,
    keypoint_distances,
    keypoint_tables,
    positions,
    region_tables,
)

# Kinds of annotations, as named in results.
KEYPOINTS, REGIONS, INSIDE = "keypoints", "dense masks", "dense masks, within parts"


@dataclass(frozen=True)
class PartAgreement:
    """Agreement of parts with one kind of annotation.

    Attributes:
        nmi: Normalized mutual information, 0 to 1.
        ari: Adjusted Rand index: 1 is perfect, 0 is chance.
        images: Number of images with such an annotation.
        count: Number of visible keypoints, or of annotated pixels.
        intervals: Bootstrap interval of `nmi` and `ari`.
    """

    nmi: float
    ari: float
    images: int
    count: int
    intervals: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class PartQuality:
    """Agreement of the selector's parts with annotations.

    Attributes:
        agreement: By kind of annotation: "keypoints", "dense masks" (pixels without a part are an additional label),
            and "dense masks, within parts" (without such pixels, so separating object and background does not count).
        keypoint_error: Mean error of visible keypoints predicted from part centroids by linear regression, in units of
            the object's box; None if not requested.
        keypoint_count: Number of keypoints in this mean.
        foreground_iou: Intersection over union of parts and object, pooled over pixels; None if no mask is known.
        background_iou: The same for the background.
        foreground_images: Number of images with a true mask.
        intervals: Bootstrap interval of these figures, by name, with the regression held fixed.
        conditions: What the figures depend on.
    """

    agreement: dict[str, PartAgreement]
    keypoint_error: float | None
    keypoint_count: int
    foreground_iou: float | None
    background_iou: float | None
    foreground_images: int
    intervals: dict[str, Interval] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------- rows of a batch


@dataclass(frozen=True)
class Annotations:
    """Part annotations of a batch; None for kinds that the benchmark does not annotate.

    Attributes:
        keypoints: `(x, y, visible)` in pixels; none is visible in images without annotations.
        boxes: `(x, y, width, height)` in pixels; empty if unknown.
        part_labels: 1 + the index of the part, 0 for no part, -1 if unknown.
    """

    keypoints: Float[Tensor, "B L 3"] | None
    boxes: Float[Tensor, "B 4"] | None
    part_labels: Int[Tensor, "B S1 S2"] | None


def annotations(examples: Sequence[Mapping[str, Any]], num_keypoints: int, num_regions: int) -> Annotations:
    """The annotations of prepared examples.

    Args:
        examples: Examples of `TransformedDataset`.
        num_keypoints: Keypoints of the benchmark, 0 for none.
        num_regions: Named regions in `part_labels`, 0 for none.
    """

    def stacked(name: str, unknown: Tensor) -> Tensor:
        return torch.stack([unknown if e[name] is None else e[name].to(unknown.dtype) for e in examples])

    unlabeled = torch.full(examples[0]["image"].shape[-2:], -1, dtype=torch.int16)
    return Annotations(
        keypoints=stacked("keypoints", torch.zeros(num_keypoints, 3)) if num_keypoints else None,
        boxes=stacked("box", torch.zeros(4)) if num_keypoints else None,
        part_labels=stacked("part_labels", unlabeled) if num_regions else None,
    )


def part_rows(
    part_maps: Float[Tensor, "B K1 H W"],
    known: Annotations,
    num_regions: int,
    masks: Bool[Tensor, "B S1 S2"],
    masked: Bool[Tensor, " B"],
) -> dict[str, Tensor]:
    """Rows of a batch, on the CPU.

    Args:
        part_maps: Probabilities, background last.
        known: The annotations.
        num_regions: Named regions in the part labels.
        masks: True on the object.
        masked: Whether the mask of each image is known; others do not count.
    """
    size = (masks.shape[1], masks.shape[2])
    rows = {"parts.foreground": foreground_pixels(part_maps, masks) * masked.to(part_maps.device)[:, None]}
    if known.part_labels is not None:
        labels = known.part_labels.to(part_maps.device)
        rows["parts.regions"] = region_tables(part_maps, labels, num_regions + 1)
    if known.keypoints is not None and known.boxes is not None:
        landmarks, visible = known.keypoints[..., :2], known.keypoints[..., 2] > 0
        rows["parts.keypoints"] = keypoint_tables(part_maps, landmarks, visible, size)
        boxed = (known.boxes[:, 2:] > 0).all(dim=1)
        boxes = torch.where(boxed[:, None], known.boxes, 1.0).to(part_maps.device)
        usable = visible & boxed[:, None]
        relative = positions(Keypoints(part_maps, landmarks.to(part_maps.device), usable, boxes, size))
        rows |= {f"parts.{name}": getattr(relative, name) for name in _POSITIONS}
    return {name: value.cpu() for name, value in rows.items()}


_POSITIONS = ("centroids", "active", "landmarks", "visible")


def with_regression(rows: dict[str, Tensor], fit: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the distance of each keypoint from its prediction to the rows.

    Args:
        rows: Rows of the evaluated split.
        fit: Rows of the split that the regression is fitted to.

    Raises:
        IfamError: A keypoint is never visible in the split that the regression is fitted to.
    """
    fit_positions, positions = (
        Positions(**{name: table[f"parts.{name}"] for name in _POSITIONS}) for table in (fit, rows)
    )
    return {**rows, "parts.distances": keypoint_distances(fit_positions, positions)}


# ------------------------------------------------------------------------------------------------- figures


def part_figures(rows: Mapping[str, Tensor], weights: Float[Tensor, "R N"]) -> dict[str, Tensor]:
    """Figures of the parts for each row of weights; NaN without annotations."""
    figures = {}
    for kind, tables in _kinds(rows).items():
        pooled = (weights @ tables.flatten(1).double()).view(-1, *tables.shape[1:])
        figures[f"parts.{kind}.nmi"], figures[f"parts.{kind}.ari"] = agreements(pooled)
    if "parts.foreground" in rows:
        counts = weights @ rows["parts.foreground"].double()
        figures["parts.foreground_iou"], figures["parts.background_iou"] = (counts[:, ::2] / counts[:, 1::2]).T
    if "parts.distances" in rows:
        distances = rows["parts.distances"]
        sums, number = distances.nansum(dim=1), (~distances.isnan()).sum(dim=1)
        figures["parts.keypoint_error"] = mean(sums, weights) / mean(number, weights)
    return figures


def part_quality(
    rows: Mapping[str, Tensor], values: Mapping[str, Tensor], resampled: Mapping[str, Tensor]
) -> PartQuality | None:
    """Convert figures and their resamples to a `PartQuality`; None without annotations.

    Args:
        rows: One per image.
        values: Figures that `part_figures` returned, one number each.
        resampled: The same for each resample; empty for no intervals.
    """

    def intervals(prefix: str, names: Sequence[str]) -> dict[str, Interval]:
        ends = {name: interval(resampled[prefix + name].numpy()) for name in names if prefix + name in resampled}
        return {name: value for name, value in ends.items() if value is not None}

    def known(name: str) -> float | None:
        value = values.get(f"parts.{name}")
        return None if value is None or bool(value.isnan()) else float(value)

    agreement = {}
    for kind, tables in _kinds(rows).items():
        if counts := int(tables.sum()):
            agreement[kind] = PartAgreement(
                nmi=float(values[f"parts.{kind}.nmi"]),
                ari=float(values[f"parts.{kind}.ari"]),
                images=int(tables.flatten(1).any(dim=1).sum()),
                count=counts,
                intervals=intervals(f"parts.{kind}.", ("nmi", "ari")),
            )
    masked = int(rows["parts.foreground"].any(dim=1).sum()) if "parts.foreground" in rows else 0
    if not (agreement or masked):
        return None
    return PartQuality(
        agreement=agreement,
        keypoint_error=known("keypoint_error"),
        keypoint_count=int((~rows["parts.distances"].isnan()).sum()) if "parts.distances" in rows else 0,
        foreground_iou=known("foreground_iou"),
        background_iou=known("background_iou"),
        foreground_images=masked,
        intervals=intervals("parts.", ("keypoint_error", "foreground_iou", "background_iou")),
    )


def conditions(benchmark: Benchmark, split: str, model: Any, fit: str | None = None) -> dict[str, Any]:
    """What part quality depends on.

    Args:
        benchmark: The data set.
        split: The evaluated split.
        model: The model, for its input size and normalization.
        fit: Split that the keypoint regression was fitted to.
    """
    height, width = model.image_size
    mean, std = model.normalization
    depends_on: dict[str, Any] = {
        "split": split,
        "crop": f"shorter side resized, center-cropped to {width} x {height} pixels",
        "normalization": {"mean": list(mean), "std": list(std)},
    }
    return (
        depends_on
        if fit is None
        else {**depends_on, "keypoints_fitted_to": f"{fit}, {len(benchmark.split(fit))} images"}
    )


def _kinds(rows: Mapping[str, Tensor]) -> dict[str, Int[Tensor, "N A K1"]]:
    """Tables of each kind of annotation."""
    tables = {}
    if "parts.keypoints" in rows:
        tables[KEYPOINTS] = rows["parts.keypoints"]
    if "parts.regions" in rows:
        tables |= {REGIONS: rows["parts.regions"], INSIDE: rows["parts.regions"][:, 1:]}
    return tables
