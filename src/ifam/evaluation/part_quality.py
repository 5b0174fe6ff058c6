"""Part quality of a whole split: the metrics of `ifam.evaluation.part_metrics`, from a row for each image.

Annotations are those of `ifam.data.ImageDataset`, on images resized so that the shorter side fits, cropped to the
centre and normalized, as the model sees them. What is judged is the selector's own choice, before any intervention.
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

# What is annotated, as it is called in results.
KEYPOINTS, REGIONS, INSIDE = "keypoints", "dense masks", "dense masks, within parts"


@dataclass(frozen=True)
class PartAgreement:
    """How well parts agree with one kind of annotation.

    Attributes:
        nmi: Normalized mutual information, 0 to 1.
        ari: Adjusted Rand index: 1 is perfect, 0 is chance.
        images: Images with such an annotation.
        count: Visible keypoints, or annotated pixels, in all of them.
        intervals: Bootstrap interval of `nmi` and `ari`.
    """

    nmi: float
    ari: float
    images: int
    count: int
    intervals: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class PartQuality:
    """How well the selector's parts agree with what is annotated.

    Attributes:
        agreement: By kind of annotation: "keypoints", "dense masks" (where no part is annotated is a label of its own),
            and "dense masks, within parts" (which leaves such pixels out, so that telling object from
            background does not count).
        keypoint_error: Mean distance of visible keypoints from where a linear regression on the parts' centroids puts
            them, in units of the object's box; None unless asked for.
        keypoint_count: Keypoints that it is a mean over.
        foreground_iou: Intersection over union of parts and object, pooled over pixels; None where no mask is known.
        background_iou: The same of the background.
        foreground_images: Images with a true mask.
        intervals: Bootstrap interval of these figures, by name; the regression is not fitted anew.
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
    """What is known of a batch's parts; None for what the benchmark does not annotate at all.

    Attributes:
        keypoints: `(x, y, visible)` in pixels; of images without any, none is visible.
        boxes: `(x, y, width, height)` in pixels; empty where unknown.
        part_labels: 0 where no part is, 1 + its index elsewhere, -1 where unknown.
    """

    keypoints: Float[Tensor, "B L 3"] | None
    boxes: Float[Tensor, "B 4"] | None
    part_labels: Int[Tensor, "B S1 S2"] | None


def annotations(examples: Sequence[Mapping[str, Any]], num_keypoints: int, num_regions: int) -> Annotations:
    """The annotations of prepared examples.

    Args:
        examples: As `Prepared` gives them.
        num_keypoints: Keypoints of the benchmark, 0 for none.
        num_regions: Named regions in `part_labels`, 0 for none.
    """

    def stacked(name: str, unknown: Tensor) -> Tensor:
        return torch.stack([unknown if e[name] is None else e[name].to(unknown.dtype) for e in examples])

    nowhere = torch.full(examples[0]["image"].shape[-2:], -1, dtype=torch.int16)
    return Annotations(
        keypoints=stacked("keypoints", torch.zeros(num_keypoints, 3)) if num_keypoints else None,
        boxes=stacked("box", torch.zeros(4)) if num_keypoints else None,
        part_labels=stacked("part_labels", nowhere) if num_regions else None,
    )


def part_rows(
    part_maps: Float[Tensor, "B K1 H W"],
    known: Annotations,
    num_regions: int,
    masks: Bool[Tensor, "B S1 S2"],
    masked: Bool[Tensor, " B"],
) -> dict[str, Tensor]:
    """What the figures need of each image of a batch, on the CPU.

    Args:
        part_maps: Probabilities, background last.
        known: The annotations.
        num_regions: Named regions in the part labels.
        masks: True on the object.
        masked: Images whose mask is known; of the others nothing counts.
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
        here = visible & boxed[:, None]
        found = positions(Keypoints(part_maps, landmarks.to(part_maps.device), here, boxes, size))
        rows |= {f"parts.{name}": getattr(found, name) for name in _POSITIONS}
    return {name: value.cpu() for name, value in rows.items()}


_POSITIONS = ("centroids", "active", "landmarks", "visible")


def with_regression(rows: dict[str, Tensor], fit: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows with the distance of each keypoint from where the parts of its image say it is.

    Args:
        rows: Rows of the split that is judged.
        fit: Rows of the split that the regression is fitted to.

    Raises:
        IfamError: A keypoint is never visible in the split that the regression is fitted to.
    """
    found = [Positions(**{name: table[f"parts.{name}"] for name in _POSITIONS}) for table in (fit, rows)]
    return {**rows, "parts.distances": keypoint_distances(*found)}


# ------------------------------------------------------------------------------------------------- figures


def part_figures(rows: Mapping[str, Tensor], weights: Float[Tensor, "R N"]) -> dict[str, Tensor]:
    """Figures of the parts for each row of weights, NaN where nothing is annotated."""
    found = {}
    for kind, tables in _kinds(rows).items():
        pooled = (weights @ tables.flatten(1).double()).view(-1, *tables.shape[1:])
        found[f"parts.{kind}.nmi"], found[f"parts.{kind}.ari"] = agreements(pooled)
    if "parts.foreground" in rows:
        counts = weights @ rows["parts.foreground"].double()
        found["parts.foreground_iou"], found["parts.background_iou"] = (counts[:, ::2] / counts[:, 1::2]).T
    if "parts.distances" in rows:
        distances = rows["parts.distances"]
        sums, number = distances.nansum(dim=1), (~distances.isnan()).sum(dim=1)
        found["parts.keypoint_error"] = mean(sums, weights) / mean(number, weights)
    return found


def part_quality(
    rows: Mapping[str, Tensor], values: Mapping[str, Tensor], spread: Mapping[str, Tensor]
) -> PartQuality | None:
    """Figures and their resamples as named numbers; None where nothing is known of the parts.

    Args:
        rows: One for each image.
        values: What `part_figures` gave, a number each.
        spread: The same of each resample; empty for no intervals.
    """

    def intervals(before: str, names: Sequence[str]) -> dict[str, Interval]:
        ends = {name: interval(spread[before + name].numpy()) for name in names if before + name in spread}
        return {name: value for name, value in ends.items() if value is not None}

    def known(name: str) -> float | None:
        value = values.get(f"parts.{name}")
        return None if value is None or bool(value.isnan()) else float(value)

    judged = {}
    for kind, tables in _kinds(rows).items():
        if counts := int(tables.sum()):
            judged[kind] = PartAgreement(
                nmi=float(values[f"parts.{kind}.nmi"]),
                ari=float(values[f"parts.{kind}.ari"]),
                images=int(tables.flatten(1).any(dim=1).sum()),
                count=counts,
                intervals=intervals(f"parts.{kind}.", ("nmi", "ari")),
            )
    masked = int(rows["parts.foreground"].any(dim=1).sum()) if "parts.foreground" in rows else 0
    if not (judged or masked):
        return None
    return PartQuality(
        agreement=judged,
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
        split: Which of its splits was judged.
        model: The model; its input size and normalization count.
        fit: Split that the keypoint regression was fitted to.
    """
    height, width = model.image_size
    mean, std = model.normalization
    found: dict[str, Any] = {
        "split": split,
        "crop": f"shorter side resized, centre cropped to {width} x {height} pixels",
        "normalization": {"mean": list(mean), "std": list(std)},
    }
    return found if fit is None else {**found, "keypoints_fitted_to": f"{fit}, {len(benchmark.split(fit))} images"}


def _kinds(rows: Mapping[str, Tensor]) -> dict[str, Int[Tensor, "N A K1"]]:
    """Tables of each kind of annotation."""
    found = {}
    if "parts.keypoints" in rows:
        found[KEYPOINTS] = rows["parts.keypoints"]
    if "parts.regions" in rows:
        found |= {REGIONS: rows["parts.regions"], INSIDE: rows["parts.regions"][:, 1:]}
    return found
