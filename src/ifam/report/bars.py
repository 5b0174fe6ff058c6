"""Bars of the parts of one image: what the answer would lose without each, and what each contributes to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from ifam.report.overlays import INK, PAPER, fitting, part_colors, sized_font

if TYPE_CHECKING:
    from ifam.evaluation.comparisons import ComparisonResult

# Of what is there without any part, and of the sum of all.
_PRIOR, _SUM = (150, 155, 160), INK
_TRACK = (242, 243, 244)


@dataclass(frozen=True)
class Bar:
    """A bar on a track.

    Attributes:
        left: Left end of the bar, in percent.
        width: Its width, in percent.
        text: Its value.
        color: The color of the part.
        name: What it stands for; empty for a part that the page numbers.
        zero: Where the value 0 is on the track, in percent.
    """

    left: str
    width: str
    text: str
    color: tuple[int, int, int]
    name: str = ""
    zero: str = "50"


def change_bar(value: float, color: tuple[int, int, int], largest: float) -> Bar:
    """The change of a logit without one part, as a bar from the middle: to the left if it decreases."""
    width = 50 * min(1.0, abs(value) / largest)
    left = 50 - width if value < 0 else 50
    return Bar(f"{left:.1f}", f"{width:.1f}", f"{value:+.2f}" if value else "–", color)


def contribution_bars(result: "ComparisonResult") -> dict[tuple[str, int], list[Bar]]:
    """The bars of all pictures of a comparison on one scale, by name of the method and index of the image."""
    pictures = [(row.name, picture) for row in result.rows for picture in row.pictures if picture.contributions]
    ends = [end for _, one in pictures for end in accumulate((one.prior or 0.0, *one.contributions), initial=0.0)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    return {(name, one.index): waterfall(one.prior or 0.0, one.contributions, (low, high)) for name, one in pictures}


def waterfall(prior: float, contributions: Sequence[float], span: tuple[float, float] | None = None) -> list[Bar]:
    """The prior, each part, which begins where the one before it ends, and their sum, the logit of the answer.

    Args:
        prior: What is there without any part.
        contributions: What each part adds; 0 for absent parts, which have an empty bar.
        span: Values at the ends of the track; None for a track that is as long as the bars.
    """
    values, colors = (prior, *contributions), (_PRIOR, *part_colors(len(contributions)))
    names = ("prior", *(f"part {k}" for k in range(len(contributions))))
    ends = list(accumulate(values, initial=0.0))
    low, high = span or (min(ends), max(ends))
    high = max(high, low + 1e-9)

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    def bar(name: str, start: float, end: float, text: str, color: tuple[int, int, int]) -> Bar:
        left, right = sorted((place(start), place(end)))
        return Bar(f"{left:.1f}", f"{right - left:.1f}", text, color, name, f"{place(0.0):.1f}")

    parts = [
        bar(name, start, end, f"{value:+.2f}" if value else "–", color)
        for name, start, end, value, color in zip(names, ends, ends[1:], values, colors, strict=False)
    ]
    return [*parts, bar("sum", 0.0, ends[-1], f"{ends[-1]:.2f}", _SUM)]


def draw_bars(bars: Sequence[Bar], size: tuple[int, int]) -> Image.Image:
    """A picture of bars, one below the other: name, bar on its track, value.

    Args:
        bars: The bars, as from `waterfall`.
        size: Width and height of the picture in pixels.
    """
    width, height = size
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    step = min(height / len(bars), width / 9)
    text = sized_font(max(6, round(0.45 * step)))
    left = round(0.6 * text.size + max(text.getlength(bar.name) for bar in bars))
    track = width - left - round(0.6 * text.size + max(text.getlength(bar.text) for bar in bars))
    for i, bar in enumerate(bars):
        top, middle = round((i + 0.15) * step), round((i + 0.5) * step)
        bottom = round((i + 0.85) * step)
        start, end = (left + track * share / 100 for share in (float(bar.left), float(bar.left) + float(bar.width)))
        zero = left + track * float(bar.zero) / 100
        draw.text((0, middle), fitting(bar.name, text, width // 2), fill=INK, font=text, anchor="lm")
        draw.rectangle((left, top, left + track, bottom), fill=_TRACK)
        if float(bar.width):
            draw.rectangle((start, top, end, bottom), fill=bar.color)
        draw.line((zero, top, zero, bottom), fill=_PRIOR)
        draw.text((width, middle), bar.text, fill=INK, font=text, anchor="rm")
    return canvas
