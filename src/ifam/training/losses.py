"""The training objective, one pure function per term, and their weighted sum.

The terms shape the part maps of the selector; they come from PDiscoNet (arXiv 2309.03173), PDiscoFormer
(arXiv 2407.04538) and iFAM (arXiv 2506.08915). In every equation a[b,k,i,j] is the probability of part k at
row i and column j of image b, k = K is the background, and v[b,k] is the feature of a part.

Half-precision inputs are computed in float32, also under autocast. Every term is a scalar over the given batch. Of
several processes, each has an equal share of the total batch: terms that are means over images are those of the share,
and their mean over processes is that of the total batch; `presence`, a maximum, is that of the total batch itself.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from ifam._typing import Float, Int, Tensor
from ifam.distributed import of_processes
from ifam.errors import IfamError
from ifam.training.affine import Affine, inverse_transform

Maps = Float[Tensor, "B K1 H W"]
Scalar = Float[Tensor, ""]

# Patches along a side from which on a total variation of 1 was best on photographs (docs/results/speed.md).
FINE_GRID = 12


def classification(logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"]) -> Scalar:
    """Cross-entropy of the predictor's or the selector's logits, mean over images."""
    return F.cross_entropy(_widen(logits), labels)


def presence(part_maps: Maps, *, of_all: Callable[[Tensor], Tensor] = of_processes) -> Scalar:
    """Every foreground part is somewhere in the batch: L_p1 of arXiv 2407.04538, from arXiv 2309.03173.

        1 - mean over k < K of max over b, i, j of (3x3 mean of a[b,k])[i,j]

    The pooling has stride 1 and no padding; on a grid of fewer than 3 rows or columns its window shrinks to
    the grid. At a tie the gradient is shared equally. With several processes the batch is that of all: the value is the
    same in each, and the gradient is this one's share times their number, since trainers average gradients over
    processes.

    Args:
        part_maps: Probabilities, background last.
        of_all: Stacks a tensor of all processes.

    Raises:
        IfamError: If there is no foreground part.
    """
    pooled = _mean_pool(_foreground(part_maps))
    own = pooled.amax(dim=(0, 2, 3))
    ties = (pooled == own[:, None, None]).sum(dim=(0, 2, 3))
    maxima, counts = of_all(torch.stack([own.detach(), ties.to(own)])).unbind(dim=1)
    highest = maxima.amax(dim=0)
    counts = counts * (maxima == highest)
    # The share of this process in the cells that are highest of all.
    share = len(counts) * ties * (own.detach() == highest) / counts.sum(dim=0)
    return (1 - (highest + share * (own - own.detach()))).mean()


def enforced_presence(part_maps: Maps) -> Scalar:
    """Background is near the border of every image: L_p0 of arXiv 2407.04538.

    With r = (x^2 + y^2) / 2 for x and y from -1 to 1 over the pooled grid, the mean over b of

        -log max over ij of r[i,j] * (3x3 mean of a[b,K])[i,j]

    Pooling as in `presence`. A pooled grid of one row or column is all border. Without any background, the loss
    is about 87 (the logarithm of the smallest normal float), never infinity.
    """
    pooled = _mean_pool(_widen(part_maps)[:, -1:])
    return _minus_log((pooled * _distance_to_center(pooled)).amax(dim=(1, 2, 3))).mean()


def total_variation(part_maps: Maps) -> Scalar:
    """Part maps are piecewise constant: L_tv of arXiv 2407.04538.

        sum over b, k <= K, ij of |a[b,k,i+1,j] - a[b,k,i,j]| + |a[b,k,i,j+1] - a[b,k,i,j]|

    divided by B * H * W, not by the number of parts. It is 0 for a single cell. Equal neighbors have the
    subgradient 0.
    """
    maps = _widen(part_maps)
    total = maps.diff(dim=2).abs().sum() + maps.diff(dim=3).abs().sum()
    return total / (maps.shape[0] * maps.shape[2] * maps.shape[3])


def fitting_total_variation(grid: tuple[int, int]) -> float:
    """The weight of `total_variation` for a grid of patches: 1, as in the paper, and side / 12 for coarser grids.

    Cells on the outline of an object grow with the side of the grid, those of its area with the square: on a coarser
    grid the same weight asks for more.
    """
    return min(1.0, math.sqrt(grid[0] * grid[1]) / FINE_GRID)


def entropy(part_maps: Maps) -> Scalar:
    """Each patch belongs to one part: L_ent of arXiv 2407.04538, in nats, mean over b, i, j.

        -sum over k <= K of a[b,k,i,j] * log a[b,k,i,j]

    The K+1 values are first divided by their sum, so that rounding cannot turn into a loss. 0 log 0 = 0, and
    its infinite slope is clamped to about 87.
    """
    maps = _widen(part_maps)
    tiny = torch.finfo(maps.dtype).tiny
    probabilities = maps / maps.sum(dim=1, keepdim=True).clamp_min(tiny)
    return (probabilities * _minus_log(probabilities)).sum(dim=1).mean()


def orthogonality(part_features: Float[Tensor, "B K1 D"]) -> Scalar:
    """Features of different parts differ: L_orth of arXiv 2407.04538, background included.

        mean over b, k, l of (cos(v[b,k], v[b,l]) - [k = l])^2

    A vector of zeros has cosine 0 with everything, itself included. The authors' trainer compares the D features
    over the K+1 parts instead, in a D x D matrix: `orthogonality(part_features.mT)`.
    """
    vectors = _widen(part_features)
    with torch.autocast(vectors.device.type, enabled=False):
        unit = F.normalize(vectors, dim=2)
        cosine = unit @ unit.transpose(1, 2)
    return (cosine - torch.eye(cosine.shape[1], dtype=cosine.dtype, device=cosine.device)).square().mean()


def equivariance(
    part_maps: Maps, equivariant_maps: Maps, affine: Affine, image_size: tuple[int, int] | None = None
) -> Scalar:
    """Part maps move with the image: L_eq of arXiv 2407.04538, from arXiv 2309.03173.

        1 - mean over b and k < K of cos(a[b,k], T^-1(a'[b,k])),   a' = maps of T(images)

    A part that the inverse transform moves out of the image completely has cosine 0 and no gradient.

    Args:
        part_maps: Maps of the images.
        equivariant_maps: Maps of the transformed images.
        affine: T, the same for the whole batch.
        image_size: `(height, width)` of the images; None if the shift of T is in cells of the map.

    Raises:
        IfamError: If there is no foreground part.
    """
    maps = _foreground(part_maps).flatten(2)
    back = inverse_transform(_foreground(equivariant_maps), affine, image_size).flatten(2)
    return 1 - F.cosine_similarity(maps, back, dim=2).mean()


def concentration(part_maps: Maps) -> Scalar:
    """Each part stays in one place: L_conc of arXiv 2309.03173; iFAM gives it weight 0.

        mean over b, k < K, ij of a[b,k,i,j] * (((i - ci) / H)^2 + ((j - cj) / W)^2),
        (ci, cj) = mean of (i, j) under a[b,k]

    A part without any probability contributes 0. The authors' code divides rows by the width and columns by the
    height, which differs only on grids that are not square.

    Raises:
        IfamError: If there is no foreground part.
    """
    maps = _foreground(part_maps)
    height, width = maps.shape[2:]
    rows = torch.arange(height, dtype=maps.dtype, device=maps.device)[:, None]
    columns = torch.arange(width, dtype=maps.dtype, device=maps.device)
    # The weighted mean minimizes the weighted squared distance, so the gradient through it is exactly 0.
    weights = maps.detach()
    mass = weights.sum(dim=(2, 3), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    row_offset = rows - (weights * rows).sum(dim=(2, 3), keepdim=True) / mass
    column_offset = columns - (weights * columns).sum(dim=(2, 3), keepdim=True) / mass
    return (maps * ((row_offset / height).square() + (column_offset / width).square())).mean()


def all_terms(
    part_maps: Maps,
    part_features: Float[Tensor, "B K1 D"],
    logits: Float[Tensor, "B C"],
    selector_logits: Float[Tensor, "B C"],
    labels: Int[Tensor, " B"],
    *,
    equivariant_maps: Maps | None = None,
    affine: Affine | None = None,
    image_size: tuple[int, int] | None = None,
) -> dict[str, Scalar]:
    """Every term of the objective, unweighted, by the name of its field in `LossConfig`.

    Args:
        part_maps: Probabilities, background last.
        part_features: One vector per part.
        logits: The predictor's.
        selector_logits: The selector's.
        labels: Class of each image.
        equivariant_maps: Maps of the images under `affine`. Without them there is no equivariance term.
        affine: The transform of that second pass.
        image_size: `(height, width)` of the images, in which the shift of `affine` is measured.

    Raises:
        IfamError: If only one of `equivariant_maps` and `affine` is given.
    """
    stages = {"classification": logits, "selector_classification": selector_logits}
    moved: dict[str, Any] = {"equivariant_maps": equivariant_maps, "affine": affine, "image_size": image_size}
    parts = part_terms(part_maps, part_features, **moved)
    return {name: classification(values, labels) for name, values in stages.items()} | parts


def part_terms(
    part_maps: Maps,
    part_features: Float[Tensor, "B K1 D"],
    *,
    equivariant_maps: Maps | None = None,
    affine: Affine | None = None,
    image_size: tuple[int, int] | None = None,
) -> dict[str, Scalar]:
    """The terms on parts, unweighted; see `all_terms`."""
    if (equivariant_maps is None) != (affine is None):
        raise IfamError("The equivariance loss needs `equivariant_maps` and `affine`: give both, or neither.")
    terms = {
        "orthogonality": orthogonality(part_features),
        "presence": presence(part_maps),
        "enforced_presence": enforced_presence(part_maps),
        "total_variation": total_variation(part_maps),
        "entropy": entropy(part_maps),
        "concentration": concentration(part_maps),
    }
    if equivariant_maps is not None and affine is not None:
        terms["equivariance"] = equivariance(part_maps, equivariant_maps, affine, image_size)
    return terms


def weighted_sum(terms: Mapping[str, Scalar], weights: Mapping[str, float]) -> Scalar:
    """The objective: sum of weight times term, over the terms of nonzero weight.

    A term of weight 0 is left out, so that it cannot make the sum NaN.

    Args:
        terms: By name, from `all_terms`.
        weights: By name: `dataclasses.asdict(LossConfig())`.

    Raises:
        IfamError: If a term has no weight, a nonzero weight has no term, or all weights are 0.
    """
    active = {name: weight for name, weight in weights.items() if weight != 0}
    if unweighted := sorted(set(terms) - set(weights)):
        raise IfamError(f"No weight for the loss {', '.join(unweighted)}: give one, 0 to leave it out.")
    if absent := sorted(set(active) - set(terms)):
        raise IfamError(f"The loss {', '.join(absent)} was not computed: give its inputs, or weight 0.")
    if not active:
        raise IfamError("Every loss has weight 0, so there is nothing to minimize: give one a weight.")
    return torch.stack([weight * terms[name] for name, weight in active.items()]).sum()


def _widen(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _foreground(part_maps: Maps) -> Float[Tensor, "B K H W"]:
    """The maps without the background, in full precision."""
    if part_maps.shape[1] < 2:
        raise IfamError(
            f"Part maps need at least one part and the background, not {part_maps.shape[1]} channel(s): "
            "the last channel is the background."
        )
    return _widen(part_maps)[:, :-1]


def _mean_pool(maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
    """3x3 mean, stride 1, no padding; the window is no larger than the grid."""
    return F.avg_pool2d(maps, (min(3, maps.shape[2]), min(3, maps.shape[3])), stride=1)


def _distance_to_center(maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "H W"]:
    """Squared distance to the center of the grid, 1 in its corners."""
    y = torch.linspace(-1, 1, maps.shape[2], dtype=maps.dtype, device=maps.device)[:, None]
    x = torch.linspace(-1, 1, maps.shape[3], dtype=maps.dtype, device=maps.device)
    return (x.square() + y.square()) / 2


def _minus_log(probability: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """-log p, about 87 at p = 0 in float32 instead of infinity."""
    return -probability.clamp_min(torch.finfo(probability.dtype).tiny).log()
