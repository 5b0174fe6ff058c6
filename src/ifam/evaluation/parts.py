"""Do the discovered parts correspond to anatomy? The part metrics of arXiv 2407.04538 and arXiv 2506.08915.

No part has a name, so parts are compared with annotations as clusterings (NMI, ARI), or after a linear
regression (keypoints). Every function is pure and takes a whole data set: `N` images, their part maps
`[N, K+1, H, W]` with the background last, and annotations in pixels of the images as the model saw them.
Results are fractions; the papers print them times 100.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from ifam._typing import Bool, Float, Int, Tensor
from ifam.errors import IfamError


@dataclass(frozen=True)
class Agreement:
    """How well a clustering agrees with an annotation.

    Attributes:
        nmi: Normalised mutual information (arithmetic mean), 0 to 1.
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


def agreement(annotation: Int[Tensor, " M"], clusters: Int[Tensor, " M"]) -> Agreement:
    """NMI and ARI of two labellings of the same things.

    Raises:
        IfamError: If there is nothing to compare.
    """
    if annotation.numel() == 0:
        raise IfamError("Agreement needs at least one labelled point: none is visible in these annotations.")
    truth, found = annotation.cpu().numpy(), clusters.cpu().numpy()
    return Agreement(
        nmi=float(normalized_mutual_info_score(truth, found)), ari=float(adjusted_rand_score(truth, found))
    )


def keypoint_agreement(
    part_maps: Float[Tensor, "N K1 H W"],
    landmarks: Float[Tensor, "N L 2"],
    visible: Bool[Tensor, "N L"],
    image_size: tuple[int, int],
) -> Agreement:
    """Does the same part win at the same landmark?

    Each visible landmark is labelled with its index, and clustered by the part (or background) that is most
    probable at its pixel, the maps being enlarged bilinearly to the image.

    Args:
        part_maps: Probabilities, background last.
        landmarks: `(x, y)` in pixels, rounded; outside the image, the nearest pixel of its border counts.
        visible: Whether a landmark can be seen.
        image_size: `(height, width)` of the images.

    Raises:
        IfamError: If no landmark is visible.
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
    visible = visible.to(winners.device)
    return agreement(index[visible], winners[visible])


def mask_agreement(part_maps: Float[Tensor, "N K1 H W"], part_masks: Bool[Tensor, "N M h w"]) -> Agreement:
    """Does the same part win in the same annotated region, over every pixel?

    A pixel is labelled with the first mask that contains it, and with a class of its own if none does; it is
    clustered by its most probable part or background, the maps being enlarged bilinearly to the masks.
    """
    outside = ~part_masks.any(dim=1, keepdim=True)
    # There is no argmax of booleans; of equal values it returns the first.
    labels = torch.cat([part_masks, outside], dim=1).to(torch.uint8).argmax(dim=1)
    winners = _enlarged_winners(part_maps, (part_masks.shape[2], part_masks.shape[3]), align_corners=False)
    return agreement(labels.flatten(), winners.flatten())


def foreground_iou(part_maps: Float[Tensor, "N K1 H W"], masks: Bool[Tensor, "N h w"]) -> ForegroundIoU:
    """Do the parts together cover the object?

    A pixel is foreground if its most probable channel is not the background, the maps being enlarged
    bilinearly, corner on corner (the convention of the published numbers), to the masks.

    Args:
        part_maps: Probabilities, background last.
        masks: True on the object.
    """
    background = part_maps.shape[1] - 1
    found = _enlarged_winners(part_maps, (masks.shape[1], masks.shape[2]), align_corners=True) != background
    masks = masks.to(found.device)
    return ForegroundIoU(foreground=_iou(found, masks), background=_iou(~found, ~masks))


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


def keypoint_regression_error(fit: Keypoints, evaluation: Keypoints) -> float:
    """Can landmarks be predicted, linearly, from where the parts are?

    For each landmark, over the images where it is visible: part centroids and landmark, both relative to the
    object's box, are standardised on the `fit` set, centroids of inactive parts are set to 0, and a linear
    regression without intercept is fitted. The error is the Euclidean distance in units of the box, mean over
    all visible landmarks of the `evaluation` set.

    Raises:
        IfamError: If no landmark is visible, one is visible in `evaluation` only, or a box is empty.
    """
    fit_x, fit_active, fit_y, fit_visible = _regression_inputs(fit)
    x, active, y, visible = _regression_inputs(evaluation)
    distances = []
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
        distances.append(np.linalg.norm(predicted - y[rows, landmark], axis=1))
    if not distances:
        raise IfamError("Keypoint regression needs a visible landmark: none is visible in the evaluation set.")
    return float(np.concatenate(distances).mean())


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


def _regression_inputs(keypoints: Keypoints) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centroids [N, 2K], activity [N, 2K], landmarks [N, L, 2] and visibility [N, L], as numpy."""
    centroids = part_centroids(keypoints.part_maps, keypoints.boxes, keypoints.image_size).flatten(1)
    active = active_parts(keypoints.part_maps).repeat_interleave(2, dim=1)
    landmarks = _relative_to(keypoints.landmarks.double(), keypoints.boxes)
    return (
        centroids.cpu().numpy(),
        active.cpu().numpy(),
        landmarks.cpu().numpy(),
        keypoints.visible.cpu().numpy(),
    )


def _relative_to(points: Float[Tensor, "N L 2"], boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N L 2"]:
    if not (boxes[:, 2:] > 0).all():
        raise IfamError("Every box needs a positive width and height, as (x, y, width, height): one is empty.")
    boxes = boxes[:, None].to(points)
    return (points - boxes[..., :2]) / boxes[..., 2:]


def _enlarged_winners(
    part_maps: Float[Tensor, "N K1 H W"], size: tuple[int, int], align_corners: bool
) -> Int[Tensor, "N h w"]:
    """Most probable channel of each pixel, the first at a tie."""
    # Image by image: a data set's enlarged maps would not fit in memory, its winners do.
    winners = [
        F.interpolate(maps[None].float(), size, mode="bilinear", align_corners=align_corners).argmax(dim=1)
        for maps in part_maps
    ]
    return torch.cat(winners)


def _iou(found: Bool[Tensor, "N h w"], truth: Bool[Tensor, "N h w"]) -> float:
    return ((found & truth).sum() / (found | truth).sum()).item()
