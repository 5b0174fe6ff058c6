"""The picture of one answer: what the model received, its parts, what the predictor saw, and what each part adds."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ifam._typing import Bool, Float, Tensor
from ifam.errors import IfamError
from ifam.report.bars import Bar, draw_bars
from ifam.report.overlays import (
    INK,
    PAPER,
    QUIET,
    enlarge,
    fitting,
    part_colors,
    part_overlay,
    predictor_view,
    sized_font,
)

_PANELS = ("input", "parts", "what the predictor saw", "what each part adds to the logit")


def triptych(
    image: Image.Image,
    part_maps: Float[Tensor, "K1 H W"],
    mask: Bool[Tensor, "H2 W2"],
    *,
    title: str = "",
    caption: str = "",
    part_names: Sequence[str] = (),
    bars: Sequence[Bar] = (),
) -> Image.Image:
    """Input, parts with legend, what the predictor saw, and what each part adds, side by side under a title.

    Args:
        image: The image that the model received, in any resolution; a small one is enlarged.
        part_maps: Probability of each part at each patch, background last.
        mask: True for the patches that the predictor saw.
        title: First line, for example the answer; omitted if empty.
        caption: Second line, smaller; omitted if empty.
        part_names: Names for the legend; indices of the parts if empty.
        bars: What each part adds to the answer (`ifam.report.bars.waterfall`); without this panel if empty.

    Returns:
        An RGB image.

    Raises:
        IfamError: The number of names is not the number of parts.
    """
    num_parts = len(part_maps) - 1
    if part_names and len(part_names) != num_parts:
        raise IfamError(f"part_names has {len(part_names)} names for {num_parts} parts; give one for each.")
    image = enlarge(image)
    unit = min(image.size) / 320
    large, small = sized_font(round(20 * unit), bold=True), sized_font(round(13 * unit))
    gap, margin = round(14 * unit), round(20 * unit)
    panels = [image, part_overlay(image, part_maps), predictor_view(image, mask)]
    panels += [draw_bars(bars, image.size)] if bars else []
    width = 2 * margin + len(panels) * (image.width + gap) - gap
    present = [k for k in part_maps.argmax(dim=0).unique().tolist() if k < num_parts]
    legend = [(k, part_names[k] if part_names else str(k)) for k in present]
    lines = [(text, font) for text, font in ((title, large), (caption, small)) if text]
    top = margin + sum(round(1.5 * font.size) for _, font in lines)
    bottom = _draw_legend(None, legend, small, (margin, 0), image.width)
    canvas = Image.new("RGB", (width, top + image.height + bottom + margin), PAPER)
    draw = ImageDraw.Draw(canvas)
    y = round(0.7 * margin)
    for text, font in lines:
        color = INK if font is large else QUIET
        draw.text((margin, y), fitting(text, font, width - 2 * margin), fill=color, font=font)
        y += round(1.5 * font.size)
    for i, (panel, name) in enumerate(zip(panels, _PANELS, strict=False)):
        x = margin + i * (image.width + gap)
        canvas.paste(panel, (x, top))
        if i == 1:
            _draw_legend(draw, legend, small, (x, top + image.height), image.width)
        else:
            draw.text((x, top + image.height + small.size // 2), name, fill=QUIET, font=small)
    return canvas


def _draw_legend(
    draw: ImageDraw.ImageDraw | None,
    legend: Sequence[tuple[int, str]],
    font: ImageFont.FreeTypeFont,
    corner: tuple[int, int],
    width: int,
) -> int:
    """Draw the panel's name and a swatch for each part, wrapped; return the height. None only measures."""
    size, (left, y) = round(font.size), corner
    step = round(1.5 * size)
    y += size // 2
    if draw:
        draw.text((left, y), _PANELS[1], fill=QUIET, font=font)
    x = left + round(font.getlength(_PANELS[1]) + size)
    for k, name in legend:
        name = fitting(name, font, width - 3 * size)
        length = round(2.2 * size + font.getlength(name))
        if x + length - size // 2 > left + width:
            x, y = left, y + step
        if draw:
            box = (x, y + size // 6, x + size, y + size // 6 + size)
            draw.rectangle(box, fill=part_colors(k + 1)[k])
            draw.text((x + round(1.4 * size), y), name, fill=INK, font=font)
        x += length
    return y + step - corner[1]
