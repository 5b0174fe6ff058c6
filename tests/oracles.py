"""Figures computed a second time, in the plainest way: what tests hold the package against."""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch.nn import functional as F

from ifam.evaluation.part_metrics import positions


class Agreement(NamedTuple):
    """How well a clustering agrees with an annotation."""

    nmi: float
    ari: float


def agreement(labels, clusters):
    """NMI and ARI of two labellings of the same things, by scikit-learn."""
    return Agreement(normalized_mutual_info_score(labels, clusters), adjusted_rand_score(labels, clusters))


def keypoint_agreement(part_maps, landmarks, visible, image_size):
    """Each visible landmark, clustered by the part that wins at its pixel of the enlarged map."""
    winners = _winners(part_maps, image_size)
    seen = visible.nonzero()
    places = [landmarks[image, landmark].round().long().tolist() for image, landmark in seen]
    height, width = image_size
    rows = [min(max(y, 0), height - 1) for _, y in places]
    columns = [min(max(x, 0), width - 1) for x, _ in places]
    return agreement(seen[:, 1], winners[seen[:, 0], rows, columns])


def region_agreement(part_maps, labels):
    """Each pixel of labels [N, h, w], clustered by the part that wins there."""
    return agreement(labels.flatten(), _winners(part_maps, labels.shape[1:]).flatten())


def foreground_iou(part_maps, masks):
    """Intersection over union of parts and object, and of the background, pooled over all pixels."""
    found = _winners(part_maps, masks.shape[1:], align_corners=True) < part_maps.shape[1] - 1
    return tuple(int((a & b).sum()) / int((a | b).sum()) for a, b in ((found, masks), (~found, ~masks)))


def keypoint_error(fit, evaluation):
    """Mean distance of landmarks from where a least-squares fit on standardized centroids puts them."""
    fit, evaluation = positions(fit), positions(evaluation)
    distances = []
    for landmark in range(fit.landmarks.shape[1]):
        known, asked = fit.visible[:, landmark], evaluation.visible[:, landmark]
        x, y = fit.centroids[known].flatten(1).numpy(), fit.landmarks[known, landmark].numpy()

        def inputs(found, rows, x=x):
            scaled = (found.centroids[rows].flatten(1).numpy() - x.mean(0)) / x.std(0)
            return scaled * found.active[rows].repeat_interleave(2, dim=1).numpy()

        weights = np.linalg.lstsq(inputs(fit, known), (y - y.mean(0)) / y.std(0))[0]
        predicted = inputs(evaluation, asked) @ weights * y.std(0) + y.mean(0)
        distances.append(np.linalg.norm(predicted - evaluation.landmarks[asked, landmark].numpy(), axis=1))
    return float(np.concatenate(distances).mean())


def thresholds(similarity, winners, quantile, num_parts):
    """Quantile of each part's similarity over the patches that it wins."""
    return [float(torch.quantile(similarity[:, k][winners == k].double(), quantile)) for k in range(num_parts)]


def _winners(part_maps, size, align_corners=False):
    return F.interpolate(part_maps, tuple(size), mode="bilinear", align_corners=align_corners).argmax(dim=1)
