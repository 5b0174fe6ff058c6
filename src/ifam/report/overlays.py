"""Pictures of parts and of what the predictor saw.

Functions from an image and the maps of a model to a new image. The image may have any size, but must show the crop
that the model received.
"""

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ifam._typing import Bool, Float, Tensor
from ifam.errors import IfamError
from ifam.io import replacing

Color = tuple[int, int, int]

# Okabe and Ito's colors without black, then Tol's wine and indigo: distinguishable with color vision deficiency.
_PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (136, 34, 85),
    (51, 34, 136),
)
# A checkerboard of two grays, as image editors show transparency.
HIDDEN_COLORS: tuple[Color, Color] = ((236, 236, 236), (216, 216, 216))
_INK, _QUIET, _PAPER = (28, 32, 36), (88, 94, 100), (255, 255, 255)
_PANELS = ("input", "parts", "what the predictor saw")


# Longest side in pixels of pictures that are kept without loss.
_SMALL = 160


def part_colors(num_parts: int) -> list[Color]:
    """Color of each part; an index has the same color for any number of parts.

    Args:
        num_parts: Foreground parts K. The first nine are distinguishable with color vision deficiency; further ones are
            only different.

    Returns:
        K RGB colors from 0 to 255.
    """
    return [_PALETTE[k] if k < len(_PALETTE) else _further_color(k) for k in range(num_parts)]


def _further_color(k: int) -> Color:
    """A color for a part beyond the palette: golden-ratio steps of the hue never repeat."""
    red, green, blue = colorsys.hsv_to_rgb(k * 0.618034 % 1, 0.5 + 0.1 * (k % 4), 0.95 - 0.15 * (k % 3))
    return round(255 * red), round(255 * green), round(255 * blue)


def enlarge(image: Image.Image, side: int = 320) -> Image.Image:
    """Enlarge a small image by an integer factor, without interpolation; larger images stay the same.

    Args:
        image: An image of any size.
        side: Minimum length of the shorter side in pixels.

    Returns:
        An RGB image.
    """
    factor = -(-side // min(image.size))
    image = image.convert("RGB")
    if factor <= 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def thumbnail(image: Image.Image, side: int = 224) -> Image.Image:
    """An RGB picture whose longer side has at most `side` pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    return small


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture for a page as WebP: small ones, which have sharp pixels, without loss, photographs with."""
    with replacing(path) as temporary:
        image.save(temporary, lossless=max(image.size) <= _SMALL, quality=82)


def part_overlay(image: Image.Image, part_maps: Float[Tensor, "K1 H W"]) -> Image.Image:
    """The parts in their colors over the image, with a faded background.

    Args:
        image: The image that the model received, in any resolution.
        part_maps: Probability of each part at each patch, background last.

    Returns:
        An RGB image of the same size.
    """
    num_parts = len(part_maps) - 1
    pixels = _pixels(image)
    winners = _over_pixels(part_maps.argmax(dim=0), image)
    colors = np.array([*part_colors(num_parts), _PAPER], dtype=np.float32)[winners]
    foreground = winners < num_parts
    gray = pixels.mean(axis=2, keepdims=True)
    faded = 0.45 * (0.5 * pixels + 0.5 * gray) + 0.55 * 255
    # Over gray, since colors of the image would change those of the parts.
    tinted = 0.35 * gray + 0.65 * colors
    line = foreground & _near_edge(winners, max(1, round(min(image.size) / 160)))
    drawn = np.where(foreground[..., None], tinted, faded)
    return _image(np.where(line[..., None], colors, drawn))


def predictor_view(image: Image.Image, mask: Bool[Tensor, "H W"]) -> Image.Image:
    """What the predictor saw: hidden patches are replaced by a gray checkerboard.

    Args:
        image: The image that the model received, in any resolution.
        mask: True for the patches that the predictor saw.

    Returns:
        An RGB image of the same size, without any pixel of a hidden patch.
    """
    visible = _over_pixels(mask, image)
    # Squares are relative to the image size, so all pictures of a page look alike.
    square = max(1, round(min(image.size) / 40))
    rows, columns = np.indices(visible.shape) // square
    checker = np.array(HIDDEN_COLORS, dtype=np.float32)[(rows + columns) % 2]
    return _image(np.where(visible[..., None], _pixels(image), checker))


def heat_overlay(image: Image.Image, heat: Float[Tensor, "H W"]) -> Image.Image:
    """A heat map, dark where it is lowest and bright where it is highest, over the image in gray.

    Args:
        image: The image that the model received, in any resolution.
        heat: A value for each patch; without any difference, nothing is bright.

    Returns:
        An RGB image of the same size.
    """
    values = heat.detach().float().cpu().numpy()
    values = (values - values.min()) / max(float(np.ptp(values)), np.finfo(np.float32).tiny)
    smooth = Image.fromarray(values, mode="F").resize(image.size, Image.Resampling.BILINEAR)
    colors = 255 * matplotlib.colormaps["inferno"](np.asarray(smooth))[..., :3].astype(np.float32)
    return _image(0.4 * _pixels(image).mean(axis=2, keepdims=True) + 0.6 * colors)


def triptych(
    image: Image.Image,
    part_maps: Float[Tensor, "K1 H W"],
    mask: Bool[Tensor, "H2 W2"],
    *,
    title: str = "",
    caption: str = "",
    part_names: Sequence[str] = (),
) -> Image.Image:
    """Input, parts with legend, and what the predictor saw, side by side under a title.

    Args:
        image: The image that the model received, in any resolution; a small one is enlarged.
        part_maps: Probability of each part at each patch, background last.
        mask: True for the patches that the predictor saw.
        title: First line, for example the answer; omitted if empty.
        caption: Second line, smaller; omitted if empty.
        part_names: Names for the legend; indices of the parts if empty.

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
    large, small = _font(round(20 * unit), bold=True), _font(round(13 * unit))
    gap, margin = round(14 * unit), round(20 * unit)
    width = 2 * margin + 3 * image.width + 2 * gap
    present = [k for k in part_maps.argmax(dim=0).unique().tolist() if k < num_parts]
    legend = [(k, part_names[k] if part_names else str(k)) for k in present]
    lines = [(text, font) for text, font in ((title, large), (caption, small)) if text]
    top = margin + sum(round(1.5 * font.size) for _, font in lines)
    bottom = _draw_legend(None, legend, small, (margin, 0), image.width)
    canvas = Image.new("RGB", (width, top + image.height + bottom + margin), _PAPER)
    draw = ImageDraw.Draw(canvas)
    y = round(0.7 * margin)
    for text, font in lines:
        color = _INK if font is large else _QUIET
        draw.text((margin, y), _fitting(text, font, width - 2 * margin), fill=color, font=font)
        y += round(1.5 * font.size)
    panels = (image, part_overlay(image, part_maps), predictor_view(image, mask))
    for i, (panel, name) in enumerate(zip(panels, _PANELS, strict=True)):
        x = margin + i * (image.width + gap)
        canvas.paste(panel, (x, top))
        if i == 1:
            _draw_legend(draw, legend, small, (x, top + image.height), image.width)
        else:
            draw.text((x, top + image.height + small.size // 2), name, fill=_QUIET, font=small)
    return canvas


def contact_sheet(rows: Sequence[Sequence[Image.Image]], captions: Sequence[str], columns: int = 2) -> Image.Image:
    """Rows of panels under their captions, several rows side by side.

    Args:
        rows: Panels of each row, all of one size.
        captions: A line above each row.
        columns: Number of rows side by side.

    Returns:
        An RGB image.
    """
    width, height = rows[0][0].size
    unit = min(width, height) / 320
    font, gap = _font(round(20 * unit), bold=True), round(14 * unit)
    across = len(rows[0]) * (width + gap)
    down = height + 2 * gap + round(1.5 * font.size)
    lines = -(-len(rows) // columns)
    canvas = Image.new("RGB", (columns * (across + gap) + gap, lines * down + gap), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (panels, caption) in enumerate(zip(rows, captions, strict=True)):
        x, y = 2 * gap + (i % columns) * (across + gap), gap + (i // columns) * down
        draw.text((x, y), _fitting(caption, font, across - gap), fill=_INK, font=font)
        for j, panel in enumerate(panels):
            canvas.paste(panel, (x + j * (width + gap), y + round(1.5 * font.size)))
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
        draw.text((left, y), _PANELS[1], fill=_QUIET, font=font)
    x = left + round(font.getlength(_PANELS[1]) + size)
    for k, name in legend:
        name = _fitting(name, font, width - 3 * size)
        length = round(2.2 * size + font.getlength(name))
        if x + length - size // 2 > left + width:
            x, y = left, y + step
        if draw:
            box = (x, y + size // 6, x + size, y + size // 6 + size)
            draw.rectangle(box, fill=part_colors(k + 1)[k])
            draw.text((x + round(1.4 * size), y), name, fill=_INK, font=font)
        x += length
    return y + step - corner[1]


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text on one line, truncated with an ellipsis if it is too long."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that matplotlib ships: available everywhere, with most alphabets."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _pixels(image: Image.Image) -> NDArray[np.float32]:
    """RGB values [h, w, 3] from 0 to 255."""
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def _image(pixels: NDArray[np.float32]) -> Image.Image:
    """The image with RGB values [h, w, 3] from 0 to 255."""
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _over_pixels(grid: Tensor, image: Image.Image) -> NDArray[np.int64]:
    """The value of each pixel's patch [h, w], from values of patches [H, W]."""
    values = grid.detach().to("cpu", torch.int64).numpy()
    rows = np.arange(image.height) * values.shape[0] // image.height
    columns = np.arange(image.width) * values.shape[1] // image.width
    pixels: NDArray[np.int64] = values[np.ix_(rows, columns)]
    return pixels


def _near_edge(labels: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
    """True for pixels with another label `width` pixels above, below, left or right of them."""
    padded = np.pad(labels, width, mode="edge")
    height, length = labels.shape
    near = np.zeros(labels.shape, dtype=np.bool_)
    for down, right in ((0, width), (2 * width, width), (width, 0), (width, 2 * width)):
        near |= padded[down : down + height, right : right + length] != labels
    return near
