"""A mask finer than patches: which pixels of a visible patch the predictor sees (docs/concepts.md).

Patches at the outline of an object also show what is around it. Here the mask is made of *cells*, squares of a few
pixels or single ones: hidden pixels are replaced by a constant before the patches are embedded, so that they have as
little influence as hidden patches, whatever their values. A patch is visible if enough of its cells are.
"""

import math
from typing import Literal

import torch
from torch.nn import functional as F

from ifam._typing import Bool, Float, Tensor
from ifam.backbones.backbone import Backbone
from ifam.errors import IfamError
from ifam.models.masking import enlarge, patch_mask, patch_mean, resize_mask, resize_values
from ifam.types import Mask, PixelSelection

# Share of the cells of a patch from which it is visible: with less, it costs a token and shows next to nothing.
ENOUGH = 0.125
# Value of hidden pixels in normalized images, their mean.
BLANK = 0.0
# Radius of the guided filter, as a share of the shorter side of the image, and the variance of normalized pixels below
# which a region counts as flat.
_RADIUS, _FLAT = 1 / 14, 2e-3


def cell_grid(backbone: Backbone, resolution: int | Literal["patch"]) -> tuple[int, int]:
    """Rows and columns of a mask for the patches of a backbone.

    Raises:
        IfamError: Squares of this many pixels do not divide its patches.
    """
    rows, columns = backbone.grid
    if resolution == "patch":
        return rows, columns
    height, width = backbone.patch_size
    if type(resolution) is not int or resolution < 1 or height % resolution or width % resolution:
        fitting = ", ".join(str(n) for n in range(1, height) if height % n == 0 and width % n == 0)
        raise IfamError(
            f"mask_resolution is {resolution!r}, but squares that divide the patches of {height} x {width} pixels are "
            f"expected; use {fitting} or 'patch'."
        )
    return rows * height // resolution, columns * width // resolution


def cell_mask(
    logits: Float[Tensor, "B K1 H W"],
    foreground: Float[Tensor, "B H W"],
    cells: tuple[int, int],
    grid: tuple[int, int],
    guide: Float[Tensor, "B 3 S1 S2"] | None,
) -> Mask:
    """A mask of cells from the assignment of patches.

    The probability of the best part against the background, at least one half where a patch is visible, is
    interpolated; a cell is visible from one half on, unless its patch can belong to no part, as after `DropParts`.

    Args:
        logits: Which part each patch of the selector belongs to.
        foreground: Probability of the foreground there; each cell's gate has the gradient of its interpolation.
        cells: Rows and columns of cells.
        grid: Rows and columns of the predictor's patches; a divisor of the cells.
        guide: Images whose edges the outline follows; None to interpolate alone.
    """
    # A logit is -inf where an intervention has excluded a part, or the background.
    best = torch.sigmoid(logits[:, :-1].amax(dim=1) - logits[:, -1]).detach()
    both = _interpolated(torch.stack([best, foreground], dim=1), cells, guide)
    # The outline of the other patches must not bring back what an intervention has hidden.
    allowed = resize_mask((logits[:, :-1] > -torch.inf).any(dim=1), cells)
    visible, gate = drop_sparse((both[:, 0] >= 0.5) & allowed, grid), both[:, 1]
    return Mask(visible, visible.to(gate.dtype) + (gate - gate.detach()))


def show_share(mask: Mask, assigned: Bool[Tensor, "B H2 W2"], share: float, grid: tuple[int, int]) -> Mask:
    """Show whole patches in images of which less than a share is visible though more belongs to parts.

    Single patches that are barely like a part vanish when they are interpolated, or brought to another grid. Shown are
    the patches of the predictor that hold the most of them, and as many as needed, or more where they hold the same.

    Args:
        mask: The mask of patches or of cells.
        assigned: Which patches of the selector belong to parts.
        share: Least share (`ModelConfig.min_visible`).
        grid: Rows and columns of the predictor's patches.
    """
    if share == 0:
        return mask
    visible = mask.visible
    held = resize_values(assigned.float(), grid).flatten(1)
    least = held.topk(math.ceil(share * held.shape[1]), dim=1).values[:, -1:]
    patches = ((held > 0) & (held >= least)).unflatten(1, grid)
    short = visible.flatten(1).sum(dim=1) < share * (visible.shape[1] * visible.shape[2])
    visible = visible | (enlarge(patches, (visible.shape[1], visible.shape[2])) & short[:, None, None])
    return Mask(visible, visible.to(mask.gate.dtype) + (mask.gate - mask.gate.detach()))


def keep_outline(
    before: Mask, after: Mask, was: Bool[Tensor, "B H W"], now: Bool[Tensor, "B H W"], grid: tuple[int, int]
) -> Mask:
    """The mask after an intervention, whose outline is drawn again only where patches have become visible.

    Patches that it hides show nothing, and those that it leaves visible what they did before. Patches of the
    background show pieces of what is next to them: of these, those that are left.

    Args:
        before: The mask without the intervention, of patches or cells.
        after: The mask that is drawn with it.
        was: Which patches of the selector belonged to parts.
        now: Which do.
        grid: Rows and columns of the predictor's patches.
    """
    cells = (after.visible.shape[1], after.visible.shape[2])
    was, now = resize_mask(was, cells), resize_mask(now, cells)
    visible = torch.where(now, torch.where(was, before.visible, after.visible), before.visible & after.visible & ~was)
    visible = drop_sparse(visible, grid)
    return Mask(visible, visible.to(after.gate.dtype) + (after.gate - after.gate.detach()))


def intervened_mask(
    selection: PixelSelection, mask: Mask, cells: tuple[int, int], grid: tuple[int, int], masks_pixels: bool
) -> Mask:
    """The mask that an intervention has set, without what later ones have hidden.

    Args:
        selection: With what to show.
        mask: The mask of its parts, on the grid of the cells.
        cells: Rows and columns of cells; those of the patches if the model masks patches.
        grid: Rows and columns of the predictor's patches.
        masks_pixels: Whether the model masks squares of pixels, which may be as large as its patches.

    Raises:
        IfamError: The mask is finer than the selector's patches, and the model masks patches, or its cells do not fit.
    """
    (batch, rows, columns), own = selection.pixels.shape, tuple(selection.assignment_logits.shape[2:])
    if cells == grid and (rows, columns) == own:
        return mask
    if (rows, columns) != own and (not masks_pixels or rows % cells[0] or columns % cells[1]):
        more = f", or [{batch}, {cells[0]}, {cells[1]}] for its squares of pixels" if masks_pixels else ""
        raise IfamError(
            f"UseMask got a mask of shape {[batch, rows, columns]}, but [{batch}, {own[0]}, {own[1]}] is expected: one "
            f"value for each of the selector's patches, for every image{more}."
        )
    visible = drop_sparse(mask.visible & resize_mask(selection.pixels, cells), grid)
    return Mask(visible, visible.to(mask.gate.dtype))


def drop_sparse(visible: Bool[Tensor, "B R C"], grid: tuple[int, int]) -> Bool[Tensor, "B R C"]:
    """Hide the cells of patches of which too few are visible."""
    return visible & enlarge(visible_patches(visible, grid), (visible.shape[1], visible.shape[2]))


def visible_patches(visible: Bool[Tensor, "B R C"], grid: tuple[int, int]) -> Bool[Tensor, "B H W"]:
    """Patches of which enough cells are visible."""
    return patch_mask(visible, grid, ENOUGH)


def blank_hidden(
    images: Float[Tensor, "B 3 S1 S2"], visible: Bool[Tensor, "B R C"], gate: Float[Tensor, "B R C"] | None = None
) -> Float[Tensor, "B 3 S1 S2"]:
    """Images whose hidden pixels are replaced by a constant.

    Args:
        images: Normalized images; hidden pixels may hold anything.
        visible: True for visible cells.
        gate: The same as numbers, to receive gradient: for a visible cell that of `gate * pixel + (1 - gate) * blank`,
            for a hidden one none.
    """
    size = (images.shape[2], images.shape[3])
    shown = torch.where(enlarge(visible, size)[:, None], images, BLANK)
    if gate is None:
        return shown
    # Exactly 0, with the gradient of the gate where the cell is visible.
    change = torch.where(visible, gate - gate.detach(), 0.0)
    return shown + enlarge(change, size)[:, None].to(shown.dtype) * (shown.detach() - BLANK)


def patch_gate(gate: Float[Tensor, "B R C"], patches: Bool[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """The gate of patches: 0 or 1, with the gradient of the mean of their cells' gates."""
    share = patch_mean(gate, (patches.shape[1], patches.shape[2]))
    return patches.to(share.dtype) + (share - share.detach())


def _interpolated(
    values: Float[Tensor, "B N H W"], cells: tuple[int, int], guide: Float[Tensor, "B 3 S1 S2"] | None
) -> Float[Tensor, "B N R C"]:
    """Values of patches on a finer grid."""
    with torch.autocast(values.device.type, enabled=False):
        fine = F.interpolate(values.float(), cells, mode="bilinear", align_corners=False)
        if guide is None:
            return fine
        pixels = F.interpolate(guide.detach().float(), cells, mode="bilinear", antialias=True)
        return guided_filter(fine, pixels, max(1, round(_RADIUS * min(cells))), _FLAT)


def guided_filter(
    values: Float[Tensor, "B N H W"], guide: Float[Tensor, "B 3 H W"], radius: int, flat: float
) -> Float[Tensor, "B N H W"]:
    """Values that are linear in the colors of the guide, within each window (He et al., ECCV 2010).

    Args:
        values: The values.
        guide: The image whose edges they follow.
        radius: Windows have `2 * radius + 1` rows and columns.
        flat: Added to the variance of the colors: windows with less are averaged.
    """
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    center = _box(guide, radius)
    products = _box(torch.stack([guide[:, i] * guide[:, j] for i, j in pairs], dim=1), radius)
    spread = products - torch.stack([center[:, i] * center[:, j] for i, j in pairs], dim=1)

    def filtered(one: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
        level = _box(one, radius)
        slope = _solve_symmetric(spread, _box(guide * one, radius) - center * level, flat)
        offset = level - (slope * center).sum(dim=1, keepdim=True)
        return (_box(slope, radius) * guide).sum(dim=1, keepdim=True) + _box(offset, radius)

    return torch.cat([filtered(one) for one in values.split(1, dim=1)], dim=1)


def _solve_symmetric(entries: Float[Tensor, "B 6 H W"], right: Float[Tensor, "B 3 H W"], diagonal: float) -> Tensor:
    """Solutions of 3 x 3 systems with a symmetric matrix: entries 00, 01, 02, 11, 12, 22, and more on the diagonal."""
    a, b, c, d, e, f = entries.unbind(dim=1)
    a, d, f = a + diagonal, d + diagonal, f + diagonal
    rows = ((d * f - e * e, c * e - b * f, b * e - c * d), (a * f - c * c, b * c - a * e), (a * d - b * b,))
    determinant = a * rows[0][0] + b * rows[0][1] + c * rows[0][2]
    inverse = (rows[0], (rows[0][1], *rows[1]), (rows[0][2], rows[1][1], *rows[2]))
    solved = [sum(inverse[i][j] * right[:, j] for j in range(3)) / determinant for i in range(3)]
    return torch.stack(solved, dim=1)


def _box(values: Float[Tensor, "B N H W"], radius: int) -> Float[Tensor, "B N H W"]:
    """Mean over windows, which shrink at the border of the image."""
    for kernel, padding in (((1, 2 * radius + 1), (0, radius)), ((2 * radius + 1, 1), (radius, 0))):
        values = F.avg_pool2d(values, kernel, stride=1, padding=padding, count_include_pad=False)
    return values
