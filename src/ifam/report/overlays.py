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
INK, QUIET, PAPER = (28, 32, 36), (88, 94, 100), (255, 255, 255)
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
    colors = np.array([*part_colors(num_parts), PAPER], dtype=np.float32)[winners]
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
    font, gap = sized_font(round(20 * unit), bold=True), round(14 * unit)
    across = len(rows[0]) * (width + gap)
    down = height + 2 * gap + round(1.5 * font.size)
    lines = -(-len(rows) // columns)
    canvas = Image.new("RGB", (columns * (across + gap) + gap, lines * down + gap), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (panels, caption) in enumerate(zip(rows, captions, strict=True)):
        x, y = 2 * gap + (i % columns) * (across + gap), gap + (i // columns) * down
        draw.text((x, y), fitting(caption, font, across - gap), fill=INK, font=font)
        for j, panel in enumerate(panels):
            canvas.paste(panel, (x + j * (width + gap), y + round(1.5 * font.size)))
    return canvas


def fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text on one line, truncated with an ellipsis if it is too long."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@cache
def sized_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
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
