"""Drawing for `ifam.data.benchmarks.pondbirds`: many small pictures at once, every shape by its signed distance.

Lengths are in *units* of one eightieth of the picture's side, so that a drawing looks the same at any
resolution. Functions take one row of random numbers per picture (see `Draws`) and return whole batches.

Nearly every shape of a bird is one *taper*: all points nearer to a line segment than a radius that changes
linearly along it. A body, a wing, a fan tail, a pointed bill and a webbed foot differ only in six numbers,
and those numbers can differ from picture to picture within one batch.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch

from ifam._typing import Bool, Float, Tensor

# Runtime type checks do not accept an int for a float.
Number = float | int

UNITS = 80.0
PARTS = ("body", "head", "wing", "tail", "legs")
CUES = ("plumage", "bill", "tail", "legs")
# Bottom to top: where two parts overlap, the later one is visible and owns the pixel.
_PAINT_ORDER = ("tail", "legs", "body", "wing", "head")
BIRD_COLUMNS = 40
BACKGROUND_COLUMNS = 2400
_NUM_TRUNKS, _NUM_REEDS, _NUM_BLOBS = 6, 6, 4


class Draws:
    """Returns the columns of a table of uniform numbers, one row per picture, always in the same order.

    The order of the calls determines the meaning of the columns, so a picture depends on its own row only.
    """

    def __init__(self, table: Float[Tensor, "B N"]) -> None:
        self.table = table
        self.used = 0

    def _take(self, count: int) -> Tensor:
        self.used += count
        assert self.used <= self.table.shape[1], "the table of random numbers is too narrow"
        return self.table[:, self.used - count : self.used]

    def uniform(self, low: Number = 0.0, high: Number = 1.0) -> Float[Tensor, "B 1 1"]:
        """One number per picture between `low` and `high`."""
        return (low + (high - low) * self._take(1))[:, :, None]

    def normal(self, mean: Number = 0.0, std: Number = 1.0) -> Float[Tensor, "B 1 1"]:
        """One normally distributed number per picture."""
        # Clamped to keep the result finite.
        standard: Tensor = torch.special.ndtri(self.uniform().clamp(1e-4, 1 - 1e-4))
        return mean + std * standard

    def lattice(self, rows: int, columns: int) -> Float[Tensor, "B rows columns"]:
        """A grid of numbers of mean 0 and variance 1, to be smoothed by `smooth_noise`."""
        grid = self._take(rows * columns).reshape(-1, rows, columns)
        return (grid - 0.5) * math.sqrt(12.0)


def grid(size: int) -> tuple[Float[Tensor, "1 1 S"], Float[Tensor, "1 S 1"]]:
    """Horizontal and vertical coordinates of the pixel centers, in units."""
    line = (torch.arange(size) + 0.5) * (UNITS / size)
    return line[None, None, :], line[None, :, None]


@lru_cache(maxsize=32)
def _smoothing(cells: int, size: int) -> Float[Tensor, "S cells"]:
    """Gaussian interpolation from a lattice line to a pixel line; rows of length 1 keep the variance at 1."""
    pixels = (torch.arange(size) + 0.5) * (cells / size) - 0.5
    weights: Tensor = torch.exp(-0.5 * ((pixels[:, None] - torch.arange(cells)) / 0.65) ** 2)
    return torch.nn.functional.normalize(weights, dim=1)


def smooth_noise(lattice: Float[Tensor, "B rows columns"], size: int) -> Float[Tensor, "B S S"]:
    """A smooth random field with about as many hills as the lattice has points."""
    rows, columns = lattice.shape[1:]
    return _smoothing(rows, size) @ lattice @ _smoothing(columns, size).T


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Float[Tensor, "B 3 1 1"]:
    """Colors, one per picture; `hue` runs around the wheel once from 0 to 1 and repeats."""
    offsets = torch.tensor([0.0, 4.0, 2.0])[None, :, None, None]
    wheel = ((hue[:, None] * 6.0 + offsets) % 6.0 - 3.0).abs() - 1.0
    color: Tensor = value[:, None] * (1.0 - saturation[:, None] * (1.0 - wheel.clamp(0, 1)))
    return color


def coverage(distance: Float[Tensor, "B S S"]) -> Float[Tensor, "B S S"]:
    """How much of a pixel a shape covers, from the signed distance of its center in pixels."""
    return (0.5 - distance).clamp_(0, 1)


def paint(picture: Float[Tensor, "B 3 S S"], color: Tensor, alpha: Float[Tensor, "B S S"]) -> None:
    """Blend `color` ([B,3,1,1] or [B,3,S,S]) over `picture`, in place."""
    picture.lerp_(color.expand_as(picture), alpha[:, None].expand_as(picture))


# ------------------------------------------------------------------------------------------- backgrounds


def draw_water(draws: Draws, size: int) -> Float[Tensor, "B 3 S S"]:
    """Rippled water with glints, reeds and floating things; some of it at sunset."""
    x, y = grid(size)
    sunset = draws.uniform() < 0.2
    hue = torch.where(sunset, draws.normal(0.05, 0.05), draws.normal(0.54, 0.09))
    saturation, value = draws.uniform(0.12, 0.65), draws.uniform(0.3, 0.85)
    base = hsv_to_rgb(hue, saturation, value)
    sky = hsv_to_rgb(hue + draws.normal(0, 0.08), saturation * draws.uniform(0.2, 1.0), draws.uniform(0.5, 1.0))
    swell, chop = smooth_noise(draws.lattice(5, 4), size), smooth_noise(draws.lattice(24, 12), size)
    # Ripples crowd together toward the far shore, at the top.
    depth = y * (1 + draws.uniform(0.0, 0.6) * (1 - y / UNITS))
    waves = []
    for low, high in ((0.15, 0.55), (0.4, 1.1)):
        length, turn = draws.uniform(low, high), draws.normal(0, 0.35)
        phase = length * (turn.sin() * x + turn.cos() * depth) + 6.3 * draws.uniform()
        waves.append((phase + draws.uniform(0.3, 1.4) * swell).sin_())
    ripple = draws.uniform(0.3, 0.8) * waves[0] + draws.uniform(0.1, 0.5) * waves[1] + 0.25 * chop
    mix = (draws.uniform(0.2, 0.6) + draws.uniform(0.15, 0.4) * ripple).clamp_(0, 1)
    picture = base + (sky - base) * mix[:, None]
    picture *= (1 + draws.uniform(-0.25, 0.25) * (y / UNITS - 0.5) + draws.uniform(0, 0.12) * swell)[:, None]
    glints = (ripple + 0.5 * chop - draws.uniform(0.9, 1.8)).mul_(2.0).clamp_(0, 1) * draws.uniform(0.3, 0.9)
    paint(picture, torch.ones(1, 3, 1, 1), glints)
    _draw_reeds(picture, draws, size)
    _draw_blobs(picture, draws, size, flatness=(0.25, 0.6))
    return picture.clamp_(0, 1)


def _draw_reeds(picture: Float[Tensor, "B 3 S S"], draws: Draws, size: int) -> None:
    """Up to six thin stems in one clump that rise from the lower edge."""
    x, y = grid(size)
    number, clump = draws.uniform(-3, _NUM_REEDS + 0.999).floor(), draws.uniform(0, UNITS)
    hue, saturation = draws.normal(0.19, 0.06), draws.uniform(0.2, 0.7)
    for index in range(_NUM_REEDS):
        foot, lean = clump + draws.normal(0, 9), draws.normal(0, 0.12)
        top, width = draws.uniform(0, 55), draws.uniform(0.5, 1.3)
        color = hsv_to_rgb(hue, saturation, draws.uniform(0.15, 0.6))
        away = (x - foot - lean * (UNITS - y)).abs() - width
        alpha = coverage(torch.maximum(away, top - y) * (size / UNITS))
        paint(picture, color, alpha * (index < number).float())


def _draw_blobs(picture: Float[Tensor, "B 3 S S"], draws: Draws, size: int, flatness: tuple[float, float]) -> None:
    """Up to four ellipses of any color: leaves, pads, stones. So a colored spot alone is not a bird."""
    x, y = grid(size)
    number = draws.uniform(0, _NUM_BLOBS + 0.999).floor()
    for index in range(_NUM_BLOBS):
        radius = draws.uniform(2, 8)
        height = radius * draws.uniform(*flatness)
        left, top = draws.uniform(0, UNITS), draws.uniform(0, UNITS)
        color = hsv_to_rgb(draws.uniform(), draws.uniform(0.1, 0.75), draws.uniform(0.25, 0.9))
        inside = 1 - ((x - left) / radius) ** 2 - ((y - top) / height) ** 2
        shade = (0.9 + 0.25 * inside.clamp(-1, 1))[:, None]
        alpha = (0.5 + 0.5 * height * (size / UNITS) * inside).clamp_(0, 1)
        paint(picture, color * shade, alpha * (index < number).float())


def draw_forest(draws: Draws, size: int) -> Float[Tensor, "B 3 S S"]:
    """Foliage, ground and up to six trunks; some of it in autumn, some in blue mist."""
    _, y = grid(size)
    season = draws.uniform()
    hue = torch.where(season < 0.22, draws.normal(0.07, 0.035), draws.normal(0.27, 0.06))
    hue = torch.where(season > 0.88, draws.normal(0.55, 0.05), hue)
    saturation, value = draws.uniform(0.2, 0.7), draws.uniform(0.25, 0.7)
    leaves = hsv_to_rgb(hue, saturation, value)
    others = hsv_to_rgb(
        hue + draws.normal(0, 0.06), saturation * draws.uniform(0.5, 1.2), value * draws.uniform(0.5, 1.3)
    )
    crowns, tufts = smooth_noise(draws.lattice(5, 5), size), smooth_noise(draws.lattice(14, 14), size)
    grain = smooth_noise(draws.lattice(36, 36), size)
    mix = (0.5 + draws.uniform(0.15, 0.35) * (crowns + tufts)).clamp_(0, 1)
    picture = leaves + (others - leaves) * mix[:, None]
    light = draws.uniform(0.05, 0.2) * crowns + draws.uniform(0.05, 0.2) * tufts + draws.uniform(0.05, 0.2) * grain
    picture *= (1 + light)[:, None]
    horizon = draws.uniform(48, 76)
    soil = hsv_to_rgb(draws.normal(0.12, 0.06), draws.uniform(0.1, 0.6), draws.uniform(0.2, 0.65))
    edge = (y - horizon + draws.uniform(0.5, 3) * tufts) * 0.5
    paint(picture, soil * (1 + 0.6 * light)[:, None], edge.clamp_(0, 1))
    _draw_trunks(picture, draws, size, horizon, grain)
    _draw_blobs(picture, draws, size, flatness=(0.5, 1.0))
    return picture.clamp_(0, 1)


def _draw_trunks(
    picture: Float[Tensor, "B 3 S S"], draws: Draws, size: int, horizon: Tensor, grain: Float[Tensor, "B S S"]
) -> None:
    """One to six trunks that stand near the horizon: brown, gray or as pale as a birch."""
    x, y = grid(size)
    number = draws.uniform(1, _NUM_TRUNKS + 0.999).floor()
    hue, saturation, value = draws.normal(0.07, 0.04), draws.uniform(0.05, 0.55), draws.uniform(0.12, 0.75)
    bark = 1 + draws.uniform(0.05, 0.3) * smooth_noise(draws.lattice(6, 40), size) + 0.08 * grain
    for index in range(_NUM_TRUNKS):
        middle, lean = draws.uniform(0, UNITS), draws.normal(0, 0.05)
        width, foot = draws.uniform(1.2, 6.5), horizon + draws.uniform(0, 8)
        color = hsv_to_rgb(hue, saturation, value * draws.uniform(0.7, 1.3))
        across = x - middle - lean * (y - 40)
        alpha = coverage(torch.maximum(across.abs() - width, y - foot) * (size / UNITS))
        # Trunks are round: lit from the left.
        shade = bark * (1 - 0.25 * (across / width).clamp_(-1, 1))
        paint(picture, color * shade[:, None], alpha * (index < number).float())


# ------------------------------------------------------------------------------------------------- birds


class Frame(NamedTuple):
    """A bird's own coordinates: it faces +u, v points down, and the body is about two long."""

    u: Float[Tensor, "B S S"]
    v: Float[Tensor, "B S S"]
    pixels: Float[Tensor, "B 1 1"]  # pixels per unit of u and v

    def taper(
        self, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor], first: Tensor, last: Tensor
    ) -> Float[Tensor, "B S S"]:
        """Signed distance, in pixels, of a segment whose radius goes from `first` to `last`."""
        along_u, along_v = end[0] - start[0], end[1] - start[1]
        u, v = self.u - start[0], self.v - start[1]
        squared = (along_u**2 + along_v**2).clamp(min=1e-6)
        share = (u * (along_u / squared)).add_(v * (along_v / squared)).clamp_(0, 1)
        u.sub_(share * along_u)
        v.sub_(share * along_v)
        distance = u.square_().add_(v.square_()).sqrt_()
        return distance.sub_(share.mul_(last - first).add_(first)).mul_(self.pixels)

    def disc(self, center: tuple[Tensor, Tensor], radius: Tensor) -> Float[Tensor, "B S S"]:
        """Signed distance, in pixels, of a disc."""
        squared = (self.u - center[0]).square_().add_((self.v - center[1]).square_())
        return squared.sqrt_().sub_(radius).mul_(self.pixels)


def _frame(draws: Draws, size: int, scale: Number) -> Frame:
    """A pose: flip, size, tilt and a place at which the bird stays (all but a few pixels) in the picture."""
    x, y = grid(size)
    flip = torch.where(draws.uniform() < 0.5, -1.0, 1.0)
    unit = scale * draws.uniform(15.8, 21.6)
    tilt = draws.normal(0, 0.16)
    room_x, room_y = (40 + 3 - 1.75 * unit).clamp(min=0), (40 + 2 - 1.4 * unit).clamp(min=0)
    x = x - 40 - room_x * draws.uniform(-1, 1)
    y = y - 40 - room_y * draws.uniform(-1, 1)
    # The middle between bill and tail is in front of that of the body.
    u = 0.12 + (x * (tilt.cos() * flip / unit)) + (y * (tilt.sin() / unit))
    v = (y * (tilt.cos() / unit)) - (x * (tilt.sin() * flip / unit))
    return Frame(u, v, unit * (size / UNITS))


def _at(u: float, v: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(u), torch.tensor(v)


class _Forms(NamedTuple):
    """Chooses between the swimmers' and the perchers' form of a quantity, per bird."""

    cues: Bool[Tensor, "B 4"]

    def pick(self, cue: str, first: Tensor | float, second: Tensor | float) -> Float[Tensor, "B 1 1"]:
        chosen: Tensor = torch.where(self.cues[:, CUES.index(cue), None, None], second, first)
        return chosen.float()


def _outlines(frame: Frame, forms: _Forms, draws: Draws) -> dict[str, Float[Tensor, "B S S"]]:
    """Signed distances of the parts, and of the details "bill" and "eye" that belong to the head."""
    girth, skull = draws.uniform(0.58, 0.73), draws.uniform(0.36, 0.45)
    head = (draws.uniform(0.74, 0.94), draws.uniform(-0.98, -0.7))
    rear = draws.uniform(-0.25, 0.05)
    body = frame.taper(_at(0.25, 0.05), _at(-0.6, 0.0), girth, girth * 0.62)
    neck = frame.taper(_at(0.5, -0.2), head, girth * 0.55, skull * 0.75)
    wing_tip = (draws.uniform(-1.0, -0.8), rear + 0.05)
    reach = forms.pick("bill", draws.uniform(0.28, 0.36), draws.uniform(0.4, 0.56))
    return {
        "body": torch.minimum(body, neck),
        "head": frame.disc(head, skull),
        "wing": frame.taper(_at(0.22, 0.0), wing_tip, girth * 0.58, torch.tensor(0.05)),
        "tail": _tail(frame, forms, draws, rear),
        "legs": _legs(frame, forms, draws, girth),
        "bill": frame.taper(
            (head[0] + 0.8 * skull, head[1] + 0.08),
            (head[0] + skull + reach, head[1] + 0.14),
            forms.pick("bill", 0.11, 0.15),
            forms.pick("bill", 0.15, 0.0),
        ),
        "eye": frame.disc((head[0] + 0.4 * skull, head[1] - 0.3 * skull), torch.tensor(0.075)),
    }


def _tail(frame: Frame, forms: _Forms, draws: Draws, rear: Tensor) -> Float[Tensor, "B S S"]:
    """A fan that widens to its end, or a point."""
    length = forms.pick("tail", draws.uniform(0.55, 0.7), draws.uniform(0.7, 0.9))
    tail = frame.taper(
        _at(-0.7, 0.0),
        (-0.75 - length, rear - 0.12),
        forms.pick("tail", 0.12, 0.24),
        forms.pick("tail", draws.uniform(0.42, 0.52), 0.02),
    )
    # Feather tips end a fan; a pointed tail is too thin at its end for this to be visible.
    tips = (16 * frame.v).cos_().mul_(0.05).sub_(frame.u + 0.77 + length)
    return torch.maximum(tail, tips.mul_(frame.pixels))


def _legs(frame: Frame, forms: _Forms, draws: Draws, girth: Tensor) -> Float[Tensor, "B S S"]:
    """Two legs with webbed feet, or two long ones with toes."""
    height = girth + forms.pick("legs", draws.uniform(0.12, 0.22), draws.uniform(0.5, 0.75))
    thick = forms.pick("legs", 0.075, 0.055)
    shapes = []
    for hip, stride in ((-0.12, draws.uniform(-0.25, 0.0)), (0.14, draws.uniform(0.0, 0.25))):
        foot = hip + stride
        shapes.append(frame.taper(_at(hip, 0.35), (foot, height), thick, thick))
        toe = (foot + forms.pick("legs", 0.26, 0.22), height + 0.03)
        ball, tip = forms.pick("legs", 0.05, 0.045), forms.pick("legs", 0.13, 0.035)
        shapes.append(frame.taper((foot - 0.06, height), toe, ball, tip))
    return torch.minimum(torch.minimum(shapes[0], shapes[1]), torch.minimum(shapes[2], shapes[3]))


def _plumage(frame: Frame, spotted: Bool[Tensor, "B 1 1"], draws: Draws) -> Float[Tensor, "B S S"]:
    """Brightness of the feathers: stripes or spots, under light from above."""
    fine = draws.uniform(14, 21)
    turn = draws.normal(0, 0.3)
    along = (fine * (frame.u * turn.cos() + frame.v * turn.sin()) + 6.3 * draws.uniform()).sin_()
    across = (fine * (frame.v * turn.cos() - frame.u * turn.sin()) + 6.3 * draws.uniform()).sin_()
    spots = (along * across).mul_(4).sub_(1.2)
    pattern = torch.where(spotted, spots, 2 * along).clamp_(-1, 1)
    return (1 - 0.16 * frame.v).add_(draws.uniform(0.1, 0.3) * pattern)


def draw_birds(
    draws: Draws, hue: Float[Tensor, "B 1 1"], cues: Bool[Tensor, "B 4"], size: int, scale: Number
) -> tuple[Float[Tensor, "B 3 S S"], Bool[Tensor, "B 5 S S"]]:
    """Birds and the pixels of their parts.

    Every pixel that a bird touches shows the bird only: at the rim, its color blends into that of its
    own outline instead of into the background. So the parts are exactly the pixels that depend on the bird.

    Args:
        draws: Random numbers, `BIRD_COLUMNS` wide.
        hue: Hue of the feathers.
        cues: For each of `CUES`, false for the swimmers' form and true for the perchers'.
        size: Side of the pictures in pixels.
        scale: Factor on all lengths of the bird.

    Returns:
        Colors [B,3,S,S], which are undefined outside the bird, and the parts [B,5,S,S] in the order of
        `PARTS`: disjoint, and their union is the bird.
    """
    frame = _frame(draws, size, scale)
    outlines = _outlines(frame, _Forms(cues), draws)
    light = _plumage(frame, cues[:, :1, None], draws)
    saturation, value = draws.uniform(0.4, 0.85), draws.uniform(0.5, 0.95)
    horn = hsv_to_rgb(draws.normal(0.1, 0.04), draws.uniform(0.2, 0.8), draws.uniform(0.3, 0.9))
    shades = {
        "body": hsv_to_rgb(hue, saturation, value) * light[:, None],
        "head": hsv_to_rgb(hue, saturation * draws.uniform(0.7, 1.0), value * draws.uniform(0.7, 1.2)),
        "wing": hsv_to_rgb(hue + draws.normal(0, 0.02), saturation, value * draws.uniform(0.6, 0.85)) * light[:, None],
        "tail": hsv_to_rgb(hue, saturation, value * draws.uniform(0.65, 0.9)) * light[:, None],
        "legs": horn * draws.uniform(0.6, 1.0)[:, None],
    }
    rim = hsv_to_rgb(hue, saturation, value * draws.uniform(0.35, 0.7))
    picture = rim.repeat(1, 1, size, size)
    owner = torch.full(frame.u.shape, -1, dtype=torch.int8)
    for part in _PAINT_ORDER:
        alpha = coverage(outlines[part])
        paint(picture, shades[part], alpha)
        touched = alpha > 0
        if part == "head":
            paint(picture, horn, coverage(outlines["bill"]))
            paint(picture, torch.full((1, 3, 1, 1), 0.05), coverage(outlines["eye"]))
            touched = touched | (outlines["bill"] < 0.5)
        owner.masked_fill_(touched, PARTS.index(part))
    parts = owner[:, None] == torch.arange(len(PARTS), dtype=torch.int8)[None, :, None, None]
    return picture.clamp_(0, 1), parts
