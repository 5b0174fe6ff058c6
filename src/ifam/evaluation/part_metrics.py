"""Agreement of parts with annotations: the part metrics of arXiv 2407.04538 and arXiv 2506.08915.

Parts have no names, so they are compared with annotations as clusterings (NMI, ARI) or after a linear regression
(keypoints). Functions take `N` images, their part maps `[N, K+1, H, W]` with the background last, and annotations in
pixels of the images as the model saw them. Results are fractions; the papers report them times 100.

NMI and ARI are computed from contingency tables of labels and clusters. There is one table per image, so images can be
shared between processes and resampled for intervals: the table of a data set is their sum.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.errors import IfamError

# Number of values of upsampled maps in memory at once.
_UPSAMPLED = 4_000_000


@dataclass(frozen=True)
class Keypoints:
    """Part maps of a set of images, with their keypoint annotations.

    Attributes:
        part_maps: Probabilities, background last.
        landmarks: `(x, y)` of each landmark, in pixels. Any finite value if it is not visible.
        visible: Whether a landmark is visible.
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
        active: Whether the part is present (see `active_parts`).
        landmarks: `(x, y)` of each landmark. Any finite value if it is not visible.
        visible: Whether a landmark is visible.
    """

    centroids: Float[Tensor, "N K 2"]
    active: Bool[Tensor, "N K"]
    landmarks: Float[Tensor, "N L 2"]
    visible: Bool[Tensor, "N L"]


def agreements(tables: Float[Tensor, "*R A C"]) -> tuple[Float[Tensor, "*R"], Float[Tensor, "*R"]]:
    """NMI and ARI of a batch of contingency tables, as defined in scikit-learn.

    Args:
        tables: Counts of each label in each cluster.

    Returns:
        Normalized mutual information (arithmetic mean) and adjusted Rand index; 1 and 1 if there is a single
        label and a single cluster, NaN for empty tables.
    """
    total = tables.sum(dim=(-2, -1))
    rows, columns = tables.sum(dim=-1), tables.sum(dim=-2)

    def entropy(counts: Tensor) -> Tensor:
        shares = counts / total[..., None]
        value: Tensor = -torch.special.xlogy(shares, shares).sum(dim=-1)
        return value

    marginal = entropy(rows) + entropy(columns)
    information = (marginal - entropy(tables.flatten(-2))).clamp_min(0)
    nmi = torch.where(marginal == 0, 1.0, 2 * information / marginal)

    # Ordered pairs that agree in both, in labels, and in clusters.
    both, first, second = (counts.square().sum(dim=-1) - total for counts in (tables.flatten(-2), rows, columns))
    expected = first * second / (total * (total - 1)).clamp_min(1)
    most = (first + second) / 2
    ari = torch.where(most > expected, (both - expected) / (most - expected), 1.0)
    return nmi, ari.masked_fill(total == 0, torch.nan)


def keypoint_tables(
    part_maps: Float[Tensor, "N K1 H W"],
    landmarks: Float[Tensor, "N L 2"],
    visible: Bool[Tensor, "N L"],
    image_size: tuple[int, int],
) -> Int[Tensor, "N L K1"]:
    """The most probable part at each visible landmark of each image, one-hot.

    Args:
        part_maps: Probabilities, background last; upsampled bilinearly to the image.
        landmarks: `(x, y)` in pixels, rounded, and clamped to the image.
        visible: Whether a landmark is visible.
        image_size: `(height, width)` of the images.
    """
    height, width = image_size
    maps = part_maps.float()  # in half precision a sampling position is off by pixels
    size = torch.tensor([width, height], dtype=maps.dtype, device=maps.device)
    pixels = landmarks.to(size).round().clamp_min(0).minimum(size - 1)
    # Sampling the map at the center of a pixel equals reading the upsampled map there.
    grid = (2 * pixels + 1) / size - 1
    values = F.grid_sample(maps, grid[:, None], padding_mode="border", align_corners=False)
    winners = values[:, :, 0].argmax(dim=1)
    index = torch.arange(landmarks.shape[1], device=winners.device).expand_as(winners)
    known = index.masked_fill(~visible.to(winners.device), -1)
    return _tables(known, winners, landmarks.shape[1], maps.shape[1])


def region_tables(
    part_maps: Float[Tensor, "N K1 H W"], labels: Int[Tensor, "N h w"], num_labels: int
) -> Int[Tensor, "N A K1"]:
    """Number of pixels of each region that each part wins, in each image.

    Args:
        part_maps: Probabilities, background last; upsampled bilinearly to the labels.
        labels: Region of each pixel, from 0; negative values are ignored.
        num_labels: Number of regions.
    """
    winners = _upsampled_winners(part_maps, (labels.shape[1], labels.shape[2]), align_corners=False)
    return _tables(labels.to(winners).flatten(1), winners.flatten(1), num_labels, part_maps.shape[1])


def foreground_pixels(part_maps: Float[Tensor, "N K1 H W"], masks: Bool[Tensor, "N h w"]) -> Int[Tensor, "N 4"]:
    """Pixels in intersection and union of parts and object of each image, and the same for the background.

    A pixel is foreground if its most probable channel is not the background. Maps are upsampled to the masks
    bilinearly with aligned corners, as for the published numbers.

    Args:
        part_maps: Probabilities, background last.
        masks: True on the object.
    """
    background = part_maps.shape[1] - 1
    foreground = _upsampled_winners(part_maps, (masks.shape[1], masks.shape[2]), align_corners=True) != background
    masks = masks.to(foreground.device)
    pairs = ((foreground & masks), (foreground | masks), ~(foreground | masks), ~(foreground & masks))
    return torch.stack([pair.flatten(1).sum(dim=1) for pair in pairs], dim=1)


def part_centroids(
    part_maps: Float[Tensor, "N K1 H W"], boxes: Float[Tensor, "N 4"], image_size: tuple[int, int]
) -> Float[Tensor, "N K 2"]:
    """Probability-weighted mean position `(x, y)` of each foreground part, relative to the object's box.

    (0, 0) is the box's upper left corner and (1, 1) its lower right. The position of a patch is its upper left corner,
    as for the published numbers. A part with zero probability is at the upper left corner of the image.

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
    """Distance of each landmark from its prediction, in units of the box; NaN if it is not visible.

    For each landmark, over the images where it is visible, part centroids and landmark are standardized on the `fit`
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


def _tables(
    labels: Int[Tensor, "N M"], clusters: Int[Tensor, "N M"], num_labels: int, num_clusters: int
) -> Int[Tensor, "N A C"]:
    """Contingency tables of labels and clusters, one per row; negative labels are ignored."""
    cells = num_labels * num_clusters
    index = cells * torch.arange(len(labels), device=labels.device)[:, None] + labels * num_clusters + clusters
    counts = index[labels >= 0].bincount(minlength=len(labels) * cells)
    return counts.view(len(labels), num_labels, num_clusters)


def _regression_inputs(positions: Positions) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centroids [N, 2K], activity [N, 2K], landmarks [N, L, 2] and visibility [N, L], as numpy."""
    columns = (
        positions.centroids.flatten(1),
        positions.active.repeat_interleave(2, dim=1),
        positions.landmarks,
        positions.visible,
    )
    centroids, active, landmarks, visible = (column.cpu().numpy() for column in columns)
    return centroids, active, landmarks, visible


def _relative_to(points: Float[Tensor, "N L 2"], boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N L 2"]:
    if not (boxes[:, 2:] > 0).all():
        raise IfamError("Every box needs a positive width and height, as (x, y, width, height): one is empty.")
    boxes = boxes[:, None].to(points)
    return (points - boxes[..., :2]) / boxes[..., 2:]


def _upsampled_winners(
    part_maps: Float[Tensor, "N K1 H W"], size: tuple[int, int], align_corners: bool
) -> Int[Tensor, "N h w"]:
    """Most probable channel of each pixel, the first at a tie."""
    # In chunks, since the upsampled maps of a data set would not fit in memory.
    step = max(1, _UPSAMPLED // (part_maps.shape[1] * size[0] * size[1]))
    winners = [
        F.interpolate(maps.float(), size, mode="bilinear", align_corners=align_corners).argmax(dim=1)
        for maps in part_maps.split(step)
    ]
    return torch.cat(winners)
