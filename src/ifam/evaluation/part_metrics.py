"""Do the discovered parts correspond to anatomy? The part metrics of arXiv 2407.04538 and arXiv 2506.08915.

No part has a name, so parts are compared with annotations as clusterings (NMI, ARI), or after a linear
regression (keypoints). Every function is pure and takes a whole data set: `N` images, their part maps
`[N, K+1, H, W]` with the background last, and annotations in pixels of the images as the model saw them.
Results are fractions; the papers print them times 100.

NMI and ARI are made of tables, how often each cluster meets each label. There is one for each image, so that images
can be shared between processes and drawn anew for intervals: the table of a data set is the sum of theirs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.errors import IfamError

# Values of enlarged maps held at once.
_ENLARGED = 4_000_000


@dataclass(frozen=True)
class Agreement:
    """How well a clustering agrees with an annotation.

    Attributes:
        nmi: Normalized mutual information (arithmetic mean), 0 to 1.
        ari: Adjusted Rand index: 1 is perfect, 0 is chance.
    """

    nmi: float
    ari: float


@dataclass(frozen=True)
class ForegroundIoU:
    """Intersection over union, pooled over all pixels of all images; NaN where both sides are empty.

    Attributes:
        foreground: Of the object: every patch that a part wins.
        background: Of the rest.
    """

    foreground: float
    background: float


@dataclass(frozen=True)
class Keypoints:
    """Part maps of a set of images, with what is annotated on these.

    Attributes:
        part_maps: Probabilities, background last.
        landmarks: `(x, y)` of each landmark, in pixels. Any finite value where it is not visible.
        visible: Whether a landmark can be seen.
        boxes: `(x, y, width, height)` of the object, in pixels.
        image_size: `(height, width)` of every image.
    """

    part_maps: Float[Tensor, "N K1 H W"]
    landmarks: Float[Tensor, "N L 2"]
    visible: Bool[Tensor, "N L"]
    boxes: Float[Tensor, "N 4"]
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Positions:
    """Parts and landmarks relative to the object's box: (0, 0) is its upper left corner, (1, 1) its lower right.

    Attributes:
        centroids: `(x, y)` of each foreground part.
        active: Whether the part is there at all (see `active_parts`).
        landmarks: `(x, y)` of each landmark. Any finite value where it is not visible.
        visible: Whether a landmark can be seen.
    """

    centroids: Float[Tensor, "N K 2"]
    active: Bool[Tensor, "N K"]
    landmarks: Float[Tensor, "N L 2"]
    visible: Bool[Tensor, "N L"]


def agreements(tables: Float[Tensor, "*R A C"]) -> tuple[Float[Tensor, "*R"], Float[Tensor, "*R"]]:
    """NMI and ARI of any number of tables at once, which scikit-learn cannot; the definitions are the same.

    Args:
        tables: How many things with each label are in each cluster.

    Returns:
        Normalized mutual information (arithmetic mean) and adjusted Rand index; 1 and 1 where labels and clusters
        both are a single one, NaN where there is nothing.
    """
    total = tables.sum(dim=(-2, -1))
    rows, columns = tables.sum(dim=-1), tables.sum(dim=-2)

    def entropy(counts: Tensor) -> Tensor:
        shares = counts / total[..., None]
        found: Tensor = -torch.special.xlogy(shares, shares).sum(dim=-1)
        return found

    apart = entropy(rows) + entropy(columns)
    information = (apart - entropy(tables.flatten(-2))).clamp_min(0)
    nmi = torch.where(apart == 0, 1.0, 2 * information / apart)

    # Pairs of things, each counted twice: together in both, in the labels, in the clusters; of all.
    both, first, second = (counts.square().sum(dim=-1) - total for counts in (tables.flatten(-2), rows, columns))
    expected = first * second / (total * (total - 1)).clamp_min(1)
    most = (first + second) / 2
    ari = torch.where(most > expected, (both - expected) / (most - expected), 1.0)
    return nmi, ari.masked_fill(total == 0, torch.nan)


def agreement(annotation: Int[Tensor, " M"], clusters: Int[Tensor, " M"]) -> Agreement:
    """NMI and ARI of two labellings of the same things, with labels from 0.

    Raises:
        IfamError: If there is nothing to compare.
    """
    sizes = [int(values.max()) + 1 if len(values) else 1 for values in (annotation, clusters)]
    return _pooled(_tables(annotation[None], clusters[None].to(annotation.device), sizes[0], sizes[1]))


def keypoint_tables(
    part_maps: Float[Tensor, "N K1 H W"],
    landmarks: Float[Tensor, "N L 2"],
    visible: Bool[Tensor, "N L"],
    image_size: tuple[int, int],
) -> Int[Tensor, "N L K1"]:
    """Which part wins at each visible landmark of each image: counts of 0 and 1.

    Args:
        part_maps: Probabilities, background last; enlarged bilinearly to the image.
        landmarks: `(x, y)` in pixels, rounded; outside the image, the nearest pixel of its border counts.
        visible: Whether a landmark can be seen.
        image_size: `(height, width)` of the images.
    """
    height, width = image_size
    maps = part_maps.float()  # in half precision a sampling position is off by pixels
    size = torch.tensor([width, height], dtype=maps.dtype, device=maps.device)
    pixels = landmarks.to(size).round().clamp_min(0).minimum(size - 1)
    # Reading the enlarged map at the centre of a pixel is sampling the map there: no need to enlarge it.
    grid = (2 * pixels + 1) / size - 1
    values = F.grid_sample(maps, grid[:, None], padding_mode="border", align_corners=False)
    winners = values[:, :, 0].argmax(dim=1)
    index = torch.arange(landmarks.shape[1], device=winners.device).expand_as(winners)
    known = index.masked_fill(~visible.to(winners.device), -1)
    return _tables(known, winners, landmarks.shape[1], maps.shape[1])


def keypoint_agreement(
    part_maps: Float[Tensor, "N K1 H W"],
    landmarks: Float[Tensor, "N L 2"],
    visible: Bool[Tensor, "N L"],
    image_size: tuple[int, int],
) -> Agreement:
    """Does the same part win at the same landmark? For the arguments see `keypoint_tables`.

    Each visible landmark is labelled with its index, and clustered by the part (or background) that is most
    probable at its pixel.

    Raises:
        IfamError: If no landmark is visible.
    """
    return _pooled(keypoint_tables(part_maps, landmarks, visible, image_size))


def region_tables(
    part_maps: Float[Tensor, "N K1 H W"], labels: Int[Tensor, "N h w"], num_labels: int
) -> Int[Tensor, "N A K1"]:
    """How many pixels of each region each part wins, in each image.

    Args:
        part_maps: Probabilities, background last; enlarged bilinearly to the labels.
        labels: Region of each pixel, from 0; pixels below 0 do not count.
        num_labels: How many regions there are.
    """
    winners = _enlarged_winners(part_maps, (labels.shape[1], labels.shape[2]), align_corners=False)
    return _tables(labels.to(winners).flatten(1), winners.flatten(1), num_labels, part_maps.shape[1])


def mask_agreement(part_maps: Float[Tensor, "N K1 H W"], part_masks: Bool[Tensor, "N M h w"]) -> Agreement:
    """Does the same part win in the same annotated region, over every pixel?

    A pixel is labelled with the first mask that contains it, and with a class of its own if none does; it is
    clustered by its most probable part or background, the maps being enlarged bilinearly to the masks.
    """
    outside = ~part_masks.any(dim=1, keepdim=True)
    # There is no argmax of booleans; of equal values it returns the first.
    labels = torch.cat([part_masks, outside], dim=1).to(torch.uint8).argmax(dim=1)
    return _pooled(region_tables(part_maps, labels, part_masks.shape[1] + 1))


def foreground_pixels(part_maps: Float[Tensor, "N K1 H W"], masks: Bool[Tensor, "N h w"]) -> Int[Tensor, "N 4"]:
    """Pixels of each image in intersection and union of parts and object, and the same of the background.

    A pixel is foreground if its most probable channel is not the background, the maps being enlarged
    bilinearly, corner on corner (the convention of the published numbers), to the masks.

    Args:
        part_maps: Probabilities, background last.
        masks: True on the object.
    """
    background = part_maps.shape[1] - 1
    found = _enlarged_winners(part_maps, (masks.shape[1], masks.shape[2]), align_corners=True) != background
    masks = masks.to(found.device)
    pairs = ((found & masks), (found | masks), ~(found | masks), ~(found & masks))
    return torch.stack([pair.flatten(1).sum(dim=1) for pair in pairs], dim=1)


def foreground_iou(part_maps: Float[Tensor, "N K1 H W"], masks: Bool[Tensor, "N h w"]) -> ForegroundIoU:
    """Do the parts together cover the object? For the arguments see `foreground_pixels`."""
    counts = foreground_pixels(part_maps, masks).sum(dim=0).double()
    return ForegroundIoU(foreground=float(counts[0] / counts[1]), background=float(counts[2] / counts[3]))


def part_centroids(
    part_maps: Float[Tensor, "N K1 H W"], boxes: Float[Tensor, "N 4"], image_size: tuple[int, int]
) -> Float[Tensor, "N K 2"]:
    """Probability-weighted mean position `(x, y)` of each foreground part, relative to the object's box.

    (0, 0) is the box's upper left corner and (1, 1) its lower right. A cell of the map counts with its upper
    left corner, the convention of the published numbers. A part without any probability is at the image's.

    Args:
        part_maps: Probabilities, background last.
        boxes: `(x, y, width, height)` in pixels.
        image_size: `(height, width)` of the images.

    Raises:
        IfamError: If a box is empty.
    """
    maps = part_maps[:, :-1].double()
    height, width = maps.shape[2:]
    mass = maps.sum(dim=(2, 3)).clamp_min(torch.finfo(maps.dtype).tiny)
    x = (maps.sum(dim=2) * torch.arange(width, device=maps.device)).sum(dim=2) / mass
    y = (maps.sum(dim=3) * torch.arange(height, device=maps.device)).sum(dim=2) / mass
    return _relative_to(torch.stack([x * image_size[1] / width, y * image_size[0] / height], dim=2), boxes)


def active_parts(part_maps: Float[Tensor, "N K1 H W"], threshold: float = 0.5) -> Bool[Tensor, "N K"]:
    """Whether each foreground part is more probable than `threshold` anywhere in the image."""
    return part_maps[:, :-1].amax(dim=(2, 3)) > threshold


def positions(keypoints: Keypoints) -> Positions:
    """Parts and landmarks relative to the boxes of the objects.

    Raises:
        IfamError: If a box is empty.
    """
    return Positions(
        centroids=part_centroids(keypoints.part_maps, keypoints.boxes, keypoints.image_size),
        active=active_parts(keypoints.part_maps),
        landmarks=_relative_to(keypoints.landmarks.double(), keypoints.boxes),
        visible=keypoints.visible,
    )


def keypoint_distances(fit: Positions, evaluation: Positions) -> Float[Tensor, "N L"]:
    """How far is each landmark from where the parts say it is, in units of the box; NaN where it is not visible.

    For each landmark, over the images where it is visible: part centroids and landmark are standardised on the `fit`
    set, centroids of inactive parts are set to 0, and a linear regression without intercept is fitted.

    Raises:
        IfamError: If a landmark is visible in `evaluation` only.
    """
    fit_x, fit_active, fit_y, fit_visible = _regression_inputs(fit)
    x, active, y, visible = _regression_inputs(evaluation)
    distances = np.full(visible.shape, np.nan)
    for landmark in range(y.shape[1]):
        rows, known = visible[:, landmark], fit_visible[:, landmark]
        if not rows.any():
            continue
        if not known.any():
            raise IfamError(f"Landmark {landmark} is visible in no image of the fit set: add one that shows it.")
        scale_x = StandardScaler().fit(fit_x[known])
        scale_y = StandardScaler().fit(fit_y[known, landmark])
        regression = LinearRegression(fit_intercept=False).fit(
            scale_x.transform(fit_x[known]) * fit_active[known], scale_y.transform(fit_y[known, landmark])
        )
        predicted = scale_y.inverse_transform(regression.predict(scale_x.transform(x[rows]) * active[rows]))
        distances[rows, landmark] = np.linalg.norm(predicted - y[rows, landmark], axis=1)
    return torch.from_numpy(distances)


def keypoint_regression_error(fit: Keypoints, evaluation: Keypoints) -> float:
    """Can landmarks be predicted, linearly, from where the parts are?

    The mean of `keypoint_distances` over all visible landmarks of the `evaluation` set.

    Raises:
        IfamError: If no landmark is visible, one is visible in `evaluation` only, or a box is empty.
    """
    distances = keypoint_distances(positions(fit), positions(evaluation))
    if bool(distances.isnan().all()):
        raise IfamError("Keypoint regression needs a visible landmark: none is visible in the evaluation set.")
    return float(distances.nanmean())


def part_thresholds(
    similarity: Float[Tensor, "N K1 H W"], part_maps: Float[Tensor, "N K1 H W"], quantile: float
) -> Float[Tensor, " K"]:
    """The similarity below which a part counts as unsure (arXiv 2506.08915): thresholds for `DropUnsure`.

    For each foreground part, the quantile (linear interpolation) of its similarity over all patches that it
    wins, on data the model knows. A part that wins nowhere has nothing to compare with: its threshold is
    minus infinity, so it is never dropped.

    Args:
        similarity: Dot products of patches and prototypes.
        part_maps: Probabilities, background last; they say which part wins.
        quantile: Share of the winning patches that falls below the threshold, 0 to 1.

    Raises:
        IfamError: If the quantile is not between 0 and 1.
    """
    if not 0 <= quantile <= 1:
        raise IfamError(f"A quantile is between 0 and 1, not {quantile}: 0.05 drops the least sure 5% of patches.")
    winners = part_maps.argmax(dim=1)
    thresholds = similarity.new_full((part_maps.shape[1] - 1,), -torch.inf)
    for part in range(len(thresholds)):
        won = similarity[:, part][winners == part]
        if len(won):
            # torch.quantile refuses more than 16 million values; a data set has more patches than that.
            thresholds[part] = float(np.quantile(won.double().cpu().numpy(), quantile))
    return thresholds


def _tables(
    labels: Int[Tensor, "N M"], clusters: Int[Tensor, "N M"], num_labels: int, num_clusters: int
) -> Int[Tensor, "N A C"]:
    """How often each cluster meets each label, row by row; labels below 0 do not count."""
    cells = num_labels * num_clusters
    index = cells * torch.arange(len(labels), device=labels.device)[:, None] + labels * num_clusters + clusters
    counts = index[labels >= 0].bincount(minlength=len(labels) * cells)
    return counts.view(len(labels), num_labels, num_clusters)


def _pooled(tables: Int[Tensor, "N A C"]) -> Agreement:
    table = tables.sum(dim=0).double()
    if not bool(table.any()):
        raise IfamError("Agreement needs at least one labelled point: none is visible in these annotations.")
    nmi, ari = agreements(table)
    return Agreement(nmi=float(nmi), ari=float(ari))


def _regression_inputs(found: Positions) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centroids [N, 2K], activity [N, 2K], landmarks [N, L, 2] and visibility [N, L], as numpy."""
    columns = (found.centroids.flatten(1), found.active.repeat_interleave(2, dim=1), found.landmarks, found.visible)
    centroids, active, landmarks, visible = (column.cpu().numpy() for column in columns)
    return centroids, active, landmarks, visible


def _relative_to(points: Float[Tensor, "N L 2"], boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N L 2"]:
    if not (boxes[:, 2:] > 0).all():
        raise IfamError("Every box needs a positive width and height, as (x, y, width, height): one is empty.")
    boxes = boxes[:, None].to(points)
    return (points - boxes[..., :2]) / boxes[..., 2:]


def _enlarged_winners(
    part_maps: Float[Tensor, "N K1 H W"], size: tuple[int, int], align_corners: bool
) -> Int[Tensor, "N h w"]:
    """Most probable channel of each pixel, the first at a tie."""
    # Some images at a time: a data set's enlarged maps would not fit in memory, its winners do.
    step = max(1, _ENLARGED // (part_maps.shape[1] * size[0] * size[1]))
    winners = [
        F.interpolate(maps.float(), size, mode="bilinear", align_corners=align_corners).argmax(dim=1)
        for maps in part_maps.split(step)
    ]
    return torch.cat(winners)
