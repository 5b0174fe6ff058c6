"""Random scenes: a textured background, clutter, and a blob spliced in.

These are the images that the package's tiny backbone is pretrained on (`pretraining.py`). A scene is
drawn from three random, independent components:

- *textures*: smoothed noise of several grains plus plane waves, bent through a sine, mapped to three colors;
- *clutter* that belongs to the background: half-planes, bars across the image, thin lines, dots;
- *an object*: one to six overlapping ellipses, boxes and strokes with their own texture and colors.

The label of a pixel is how much of it the object covers. Shape, color and position are independent of each other
and of what the benchmark draws, so there is no class to learn and no shortcut.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import avg_pool2d

from ifam._typing import Float, Tensor

# Grains of the noise: rows and columns of the random grid that is smoothed up to the image.
_GRAINS = ((3, 3), (8, 8), (20, 20), (4, 26), (26, 4), (40, 40))
_WAVES = 4
# Hues that occur more often than others, for backgrounds and objects: earth, leaf, sky.
_NATURAL_HUES = (0.08, 0.30, 0.57)
_AREA = (0.08, 0.35)


@dataclass(frozen=True)
class Scenes:
    """A batch of random scenes.

    Attributes:
        images: RGB in [0, 1].
        foreground: How much of each pixel the spliced object covers, in [0, 1].
    """

    images: Float[Tensor, "B 3 S S"]
    foreground: Float[Tensor, "B S S"]


@dataclass(frozen=True)
class _Pieces:
    """Ellipses or boxes, in units of the image's side. Every tensor has the shape [B, M] (or [B, M, 2])."""

    center: Tensor  # [B, M, 2], x then y
    half: Tensor  # [B, M, 2], half-axes along and across
    angle: Tensor  # [B, M]
    taper: Tensor  # [B, M], in (-1, 1): wider at one end than at the other
    active: Tensor  # [B, M], 1 where the piece is drawn


def draw_scenes(count: int, generator: torch.Generator, size: int = 80) -> Scenes:
    """Draw random scenes, on the generator's device.

    Args:
        count: Number of scenes.
        generator: Source of all randomness: the same state draws the same scenes.
        size: Side of the square images in pixels.

    Returns:
        The images and, per pixel, how much of it the spliced object covers.

    Example:
        >>> scenes = draw_scenes(2, torch.Generator().manual_seed(0), size=40)
        >>> scenes.images.shape, scenes.foreground.shape
        (torch.Size([2, 3, 40, 40]), torch.Size([2, 40, 40]))
    """
    textures = _draw_textures(2 * count, generator, size)  # [2B, 3, S, S]
    background, inside = textures[:count], textures[count:]
    background = _add_clutter(background, generator)
    obj, foreground = _draw_object(inside, generator)
    images = torch.lerp(background, obj, foreground.unsqueeze(1))
    images = images * _light(count, generator, size)
    grain = _uniform((count, 1, 1, 1), 0.0, 0.04, generator)
    images = images + grain * torch.randn(images.shape, generator=generator, device=generator.device)
    return Scenes(images.clamp_(0, 1), foreground)


def patch_coverage(foreground: Float[Tensor, "B S S"], patch_size: int) -> Float[Tensor, "B P"]:
    """Share of every patch, in row-major order, that is foreground."""
    return avg_pool2d(foreground.unsqueeze(1), patch_size).flatten(1)


def hsv_to_rgb(hsv: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 3"]:
    """Convert hue (any real, 1 is a full turn), saturation and value in [0, 1] to RGB in [0, 1]."""
    hue, saturation, value = hsv.unbind(-1)
    offsets = torch.tensor([5.0, 3.0, 1.0], device=hsv.device, dtype=hsv.dtype)
    sector = (offsets + 6 * hue.unsqueeze(-1)) % 6
    weight = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return value.unsqueeze(-1) * (1 - saturation.unsqueeze(-1) * weight)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.empty(shape, device=generator.device).uniform_(low, high, generator=generator)


def _log_uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return _uniform(shape, math.log(low), math.log(high), generator).exp_()


def _chance(shape: tuple[int, ...], probability: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator, device=generator.device) < probability).float()


def _pixels(size: int, device: torch.device) -> Tensor:
    return (torch.arange(size, device=device) + 0.5) / size  # [S], centers of the pixels in (0, 1)


def _draw_colors(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw RGB colors [*shape, 3]: half of the hues anywhere, half near a natural one."""
    natural = torch.tensor(_NATURAL_HUES, device=generator.device)
    choice = torch.randint(len(natural), shape, generator=generator, device=generator.device)
    hue = natural[choice] + _uniform(shape, -0.07, 0.07, generator)
    hue = torch.where(_chance(shape, 0.5, generator) > 0, hue, _uniform(shape, 0.0, 1.0, generator))
    saturation = _uniform(shape, 0.05, 0.9, generator)
    value = _uniform(shape, 0.15, 1.0, generator)
    return hsv_to_rgb(torch.stack([hue, saturation, value], -1))


def _smoothing(size: int, knots: int, device: torch.device) -> Tensor:
    """The matrix [S, knots] that interpolates a row of random values to a row of pixels."""
    at = _pixels(size, device) * (knots - 1)
    distance = (at[:, None] - torch.arange(knots, device=device)).abs().clamp(max=1)
    return 0.5 + 0.5 * torch.cos(math.pi * distance)


def _noise(count: int, generator: torch.Generator, size: int) -> Tensor:
    """Sum noise of all grains, one of which usually dominates: [N, S, S], about unit scale."""
    device = generator.device
    weights = _uniform((count, len(_GRAINS)), 0.0, 1.0, generator) ** 4
    weights = weights / weights.norm(dim=1, keepdim=True)
    rows = []
    for index, (height, width) in enumerate(_GRAINS):
        grid = torch.randn((count, height, width), generator=generator, device=device)
        rows.append(grid * weights[:, index, None, None] @ _smoothing(size, width, device).T)
    columns = torch.cat([_smoothing(size, height, device) for height, _ in _GRAINS], 1)
    return columns @ torch.cat(rows, 1)


def _waves(count: int, generator: torch.Generator, size: int) -> Tensor:
    """Sum plane waves about a random main direction: [N, S, S], about unit scale."""
    shape = (count, _WAVES)
    spread = _uniform((count, 1), 0.0, 1.0, generator) ** 2 * math.pi
    direction = _uniform((count, 1), 0.0, 2 * math.pi, generator) + spread * _uniform(shape, -1.0, 1.0, generator)
    frequency = 2 * math.pi * _log_uniform(shape, 0.7, 16.0, generator)
    pixels = _pixels(size, generator.device)
    x = (frequency * direction.cos()).unsqueeze(-1) * pixels + _uniform((*shape, 1), 0.0, 2 * math.pi, generator)
    y = (frequency * direction.sin()).unsqueeze(-1) * pixels  # [N, W, S]
    amplitude = _uniform((*shape, 1), 0.0, 1.0, generator) ** 3
    amplitude = amplitude / amplitude.norm(dim=1, keepdim=True) * math.sqrt(2)
    # cos(x + y) = cos y cos x - sin y sin x: a sum of waves is one small matrix product.
    left = torch.cat([y.cos(), y.sin()], 1) * torch.cat([amplitude, -amplitude], 1)
    return left.transpose(1, 2) @ torch.cat([x.cos(), x.sin()], 1)


def _draw_textures(count: int, generator: torch.Generator, size: int) -> Tensor:
    """Draw textures [N, 3, S, S] of three colors each, from flat to strongly patterned."""
    fields = 2 * count
    share = _uniform((fields, 1, 1), 0.0, 1.0, generator).round_()  # waves or noise, not their average
    share = share * _uniform((fields, 1, 1), 0.6, 1.0, generator)
    field = torch.lerp(_noise(fields, generator, size), _waves(fields, generator, size), share)
    gain = _log_uniform((fields, 1, 1), 0.4, 5.0, generator)
    field = field.mul_(gain).add_(_uniform((fields, 1, 1), -math.pi, math.pi, generator)).sin_()
    sharp = _log_uniform((fields, 1, 1), 0.5, 4.0, generator)
    field = field.mul_(sharp).add_(_uniform((fields, 1, 1), 0.0, 1.0, generator)).clamp_(0, 1)

    base = _draw_colors((count, 1), generator)
    others = _draw_colors((count, 2), generator)
    contrast = _uniform((count, 1, 1), 0.05, 0.8, generator)
    steps = (others - base) * contrast  # [N, 2, 3]
    mixed = steps.transpose(1, 2) @ field.view(count, 2, size * size)
    return mixed.add_(base.transpose(1, 2)).clamp_(0, 1).view(count, 3, size, size)


def _light(count: int, generator: torch.Generator, size: int) -> Tensor:
    """A linear illumination gradient [B, 1, S, S] about 1, shared by background and object."""
    slope = _uniform((count, 2, 1), -0.25, 0.25, generator)
    level = _uniform((count, 1, 1, 1), 0.85, 1.1, generator)
    ramp = _pixels(size, generator.device) - 0.5
    along, down = (slope * ramp).unbind(1)
    return level + along[:, None, None, :] + down[:, None, :, None]


def _cover(pieces: _Pieces, size: int, box: bool) -> Tensor:
    """Draw the pieces, one plane each: [B, M, S, S], 1 inside, with an edge one pixel wide."""
    pixels = _pixels(size, pieces.center.device)
    x = pixels - pieces.center[..., :1]  # [B, M, S]
    y = pixels - pieces.center[..., 1:]
    cos, sin = pieces.angle.cos().unsqueeze(-1), pieces.angle.sin().unsqueeze(-1)
    length, width = pieces.half[..., :1], pieces.half[..., 1:]
    along = (x * cos / length).unsqueeze(-2) + (y * sin / length).unsqueeze(-1)  # [B, M, S, S]
    across = (y * cos / width).unsqueeze(-1) - (x * sin / width).unsqueeze(-2)
    across = across.mul_((along * pieces.taper[..., None, None]).add_(1).clamp_(min=0.3))
    if box:
        radius, slope = torch.maximum(along.abs_(), across.abs_()), 1.0
    else:
        radius, slope = along.square_().add_(across.square_()), 0.5  # 1 - r^2 is about 2 (1 - r) at the edge
    steepness = (slope * size * pieces.half.amin(-1)).clamp(min=0.5)
    inside = radius.neg_().add_(1).mul_(steepness[..., None, None]).add_(0.5).clamp_(0, 1)
    return inside.mul_(pieces.active[..., None, None])


def _paint(base: Tensor, cover: Tensor, colors: Tensor, opacity: Tensor) -> tuple[Tensor, Tensor]:
    """Paint pieces one over another onto a base image.

    Args:
        base: Image that shows through, [B, 3, S, S].
        cover: Planes of the pieces, the last on top, [B, M, S, S].
        colors: One color per piece, [B, M, 3].
        opacity: How much of the base each color hides, [B, M].

    Returns:
        The painted image and the union of the pieces [B, S, S].
    """
    top = torch.zeros_like(cover[:, 0])
    layers = torch.empty_like(cover)
    for index in reversed(range(cover.shape[1])):
        torch.mul(cover[:, index], 1 - top, out=layers[:, index])
        top = top + layers[:, index]
    flat = layers.flatten(2)
    weights = torch.cat([colors.transpose(1, 2) * opacity.unsqueeze(1), opacity.unsqueeze(1)], 1)
    paint = (weights @ flat).view(-1, 4, *base.shape[-2:])
    return base * (1 - paint[:, 3:]) + paint[:, :3], top


def _stack(
    low: tuple[float, float], high: tuple[float, float], shape: tuple[int, int], generator: torch.Generator
) -> Tensor:
    sides = [_log_uniform(shape, *ends, generator) for ends in zip(low, high, strict=True)]
    return torch.stack(sides, -1)


def _add_clutter(background: Tensor, generator: torch.Generator) -> Tensor:
    """Add what belongs to a background: one half-plane, bars across the image, thin lines and small dots."""
    count, size = len(background), background.shape[-1]
    boxes, dots = 6, 3
    # Box 0 is a half-plane, 1 to 3 are bars that cross the image, 4 and 5 are short lines.
    half = _stack((0.02, 0.006), (0.15, 0.02), (count, boxes), generator)
    half[:, :1] = 1.0
    half[:, 1:4, 0] = 1.5
    half[:, 1:4, 1] = _log_uniform((count, 3), 0.008, 0.07, generator)
    center = _uniform((count, boxes, 2), 0.0, 1.0, generator)
    tilt = _uniform((count, boxes), -0.25, 0.25, generator)
    quarter = _chance((count, 1), 0.7, generator) * math.pi / 2  # bars of one image run the same way
    angle = torch.where(_chance((count, 1), 0.8, generator) > 0, quarter + tilt, 6 * math.pi * tilt)
    edge = _uniform((count,), 0.25, 0.75, generator) + 1.0  # the half-plane's far side lies off the image
    center[:, 0] = 0.5 + torch.stack([-angle[:, 0].sin(), angle[:, 0].cos()], -1) * (edge - 0.5).unsqueeze(-1)
    busy = _uniform((count, 1), 0.0, 1.0, generator)
    active = (torch.rand((count, boxes + dots), generator=generator, device=generator.device) < busy).float()
    taper = _uniform((count, boxes), -0.3, 0.3, generator)
    taper[:, :4] = 0
    lines = _Pieces(center, half, angle, taper, active[:, :boxes])
    spots = _Pieces(
        _uniform((count, dots, 2), 0.0, 1.0, generator),
        _stack((0.01, 0.01), (0.06, 0.05), (count, dots), generator),
        _uniform((count, dots), 0.0, math.pi, generator),
        _uniform((count, dots), -0.5, 0.5, generator),
        active[:, boxes:],
    )
    cover = torch.cat([_cover(lines, size, box=True), _cover(spots, size, box=False)], 1)
    colors = _draw_colors((count, boxes + dots), generator)
    colors[:, 1:4] = torch.lerp(colors[:, 1:2], colors[:, 1:4], 0.3)  # bars of one image look alike
    opacity = _uniform((count, boxes + dots), 0.3, 1.0, generator)
    return _paint(background, cover, colors, opacity)[0]


def _plan_object(count: int, generator: torch.Generator) -> tuple[_Pieces, _Pieces]:
    """Lay out one compound object per scene: a trunk and, around it, three ellipses, a box and two strokes."""
    parts = 6  # 0: trunk; 1, 2: ellipses; 3: box; 4, 5: strokes
    half = _stack((0.25, 0.2), (0.9, 0.6), (count, parts), generator)
    half[:, 0] = torch.stack([torch.ones(count, device=half.device), _uniform((count,), 0.35, 1.0, generator)], -1)
    half[:, 4:] = _stack((0.3, 0.05), (0.9, 0.13), (count, 2), generator)
    lean = _uniform((count, 1), 0.0, 2 * math.pi, generator)
    around = _uniform((count, parts), 0.0, 2 * math.pi, generator)
    reach = _uniform((count, parts), 0.6, 1.1, generator)
    reach[:, 4:] += half[:, 4:, 0]
    reach[:, 0] = 0
    x = around.cos() * reach * half[:, :1, 0]
    y = around.sin() * reach * half[:, :1, 1]
    offset = torch.stack([x * lean.cos() - y * lean.sin(), x * lean.sin() + y * lean.cos()], -1)
    angle = _uniform((count, parts), 0.0, 2 * math.pi, generator)
    angle[:, 4:] = around[:, 4:] + lean + _uniform((count, 2), -0.6, 0.6, generator)
    angle[:, :1] = lean
    active = _chance((count, parts), 0.55, generator)
    active[:, 0] = 1
    taper = _uniform((count, parts), -0.7, 0.7, generator)
    boxy = _chance((count,), 0.2, generator)  # the box replaces the trunk: an object with corners
    half[:, 3] = torch.lerp(half[:, 3], half[:, 0] * 0.85, boxy[:, None])
    offset[:, 3] = offset[:, 3] * (1 - boxy[:, None])
    angle[:, 3] = torch.lerp(angle[:, 3], angle[:, 0], boxy)
    active[:, 0], active[:, 3] = 1 - boxy, torch.maximum(active[:, 3], boxy)

    round_ones, square_ones = slice(0, 3), slice(3, 6)
    plans = [
        _Pieces(offset[:, part], half[:, part], angle[:, part], taper[:, part], active[:, part])
        for part in (round_ones, square_ones)
    ]
    return plans[0], plans[1]


def _transform(plan: _Pieces, center: Tensor, scale: Tensor) -> _Pieces:
    scale = scale[:, None, None]
    return _Pieces(center + plan.center * scale, plan.half * scale, plan.angle, plan.taper, plan.active)


def _draw_object(inside: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one object per scene, scaled to a random share of the image, over its own texture.

    Returns:
        The object's image [B, 3, S, S] and its cover [B, S, S].
    """
    count, size = len(inside), inside.shape[-1]
    plans = _plan_object(count, generator)
    center = _uniform((count, 1, 2), 0.28, 0.72, generator)
    target = _uniform((count,), *_AREA, generator)
    scale = (target / 2).sqrt()
    for _ in range(3):  # fixed-point iteration on a coarse drawing: the image's border cuts some of it off
        coarse = [
            _cover(_transform(plan, center, scale), 20, box) for plan, box in zip(plans, (False, True), strict=True)
        ]
        area = torch.cat(coarse, 1).amax(1).mean((1, 2))
        scale = scale * (target / area.clamp(min=0.01)).sqrt().clamp(0.6, 1.6)
    cover = [_cover(_transform(plan, center, scale), size, box) for plan, box in zip(plans, (False, True), strict=True)]
    parts = plans[0].active.shape[1] + plans[1].active.shape[1]
    opacity = _chance((count, parts), 0.5, generator) * _uniform((count, parts), 0.4, 1.0, generator)
    opacity[:, 0] = 0
    return _paint(inside, torch.cat(cover, 1), _draw_colors((count, parts), generator), opacity)
