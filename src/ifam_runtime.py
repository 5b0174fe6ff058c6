"""Answers of an exported model without PyTorch: numpy, pillow and onnxruntime are all that it needs (docs/export.md).

from ifam_runtime import Classifier
answer = Classifier("model.onnx")("photo.jpg")
answer.class_name, answer.probability
answer.overlay().save("answer.png")
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

# Colors of parts, and the squares in the place of hidden pixels, as in the pictures of `ifam predict`.
COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
HIDDEN = ((236, 236, 236), (216, 216, 216))
# Strips that are longer than this many times the crop are cropped before they are resized.
_LONGEST = 8


@dataclass(frozen=True)
class Answer:
    """The answer to one image: the most probable class, its probability, and what it rests on.

    Attributes:
        probabilities: Probability of each class by its name.
        mask: True for the cells that the predictor saw, [R, C].
        part_maps: Probability of each part at each patch, background last, [K + 1, H, W].
        contributions: What each part adds to the logits, [K, classes]; None where the model does not add up its parts.
        pixels: The crop that the model received, [S1, S2, 3], 0 to 255.
    """

    class_name: str
    probability: float
    probabilities: dict[str, float]
    mask: np.ndarray
    part_maps: np.ndarray
    contributions: np.ndarray | None
    pixels: np.ndarray

    def overlay(self) -> Image.Image:
        """The crop, its parts in colors, and what the predictor saw, side by side."""
        height, width, _ = self.pixels.shape
        parts, gray = _enlarged(self.part_maps.argmax(0), height, width), self.pixels.mean(axis=2, keepdims=True)
        colors = np.array([COLORS[k % len(COLORS)] for k in range(len(self.part_maps) - 1)] + [(255, 255, 255)])
        tinted = 0.35 * gray + 0.65 * colors[parts]
        squares = np.array(HIDDEN)[np.add.outer(np.arange(height), np.arange(width)) // max(1, height // 40) % 2]
        seen = np.where(_enlarged(self.mask, height, width)[..., None], self.pixels, squares)
        drawn = np.concatenate([self.pixels, tinted, seen], axis=1)
        scale = -(-224 // height)
        return Image.fromarray(drawn.round().astype(np.uint8)).resize((3 * width * scale, height * scale), 0)


class Classifier:
    """A model in an ONNX file that `ifam export` wrote; a ValueError says that it is another file."""

    def __init__(self, path: str | Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            about = json.loads(self.session.get_modelmeta().custom_metadata_map["ifam"])
        except Exception as error:  # onnxruntime's own classes differ from version to version
            raise ValueError(f"{path} is not an .onnx file of `ifam export` ({error}); export it again.") from error
        self.class_names: list[str] = about["class_names"]
        self.preprocessing: dict[str, Any] = about["preprocessing"]

    def __call__(self, image: str | Path | Image.Image, use_mask: np.ndarray | None = None) -> Answer:
        """Classify a file or an image of Pillow; a ValueError says what is wrong with it.

        Where given, `use_mask` [R, C] decides what is seen: 1 shows a cell of the mask, 0 hides it, -1 leaves it.
        """
        pixels = self.crop(_opened(image))
        mean, std = (np.array(self.preprocessing[name], np.float32) for name in ("mean", "std"))
        normalized = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        feeds = {"images": np.ascontiguousarray(normalized.transpose(2, 0, 1)[None])}
        shapes = {output.name: output.shape[1:] for output in self.session.get_outputs()}
        if use_mask is not None:
            given = np.asarray(use_mask)
            if [*given.shape] != shapes["mask"] or not np.isin(given, (-1, 0, 1)).all():
                raise ValueError(f"use_mask {[*given.shape]}: 1, 0 or -1 for each of {shapes['mask']} is expected.")
            feeds["use_mask"] = given.astype(np.int8)[None]
        found = dict(zip(shapes, self.session.run(None, feeds), strict=True))
        weights = np.exp(found["logits"][0] - found["logits"][0].max())
        probabilities = dict(zip(self.class_names, (weights / weights.sum()).tolist(), strict=True))
        best = max(probabilities, key=lambda name: probabilities[name])
        contributions = found["part_contributions"][0] if "part_contributions" in found else None
        maps = found["mask"][0], found["part_maps"][0]
        return Answer(best, probabilities[best], probabilities, *maps, contributions, pixels)

    def crop(self, image: Image.Image) -> np.ndarray:
        """The pixels that the model receives, [S1, S2, 3]: resized to cover the size, and center cropped."""
        pixels, size = np.asarray(image.convert("RGB")), self.preprocessing["size"]
        scale = max(target / length for target, length in zip(size, pixels.shape, strict=False))
        for axis, target in enumerate(size) if pixels.shape[:2] != (*size,) else ():
            spare = max(0, int((pixels.shape[axis] - _LONGEST * target / scale) / 2))
            pixels = pixels.take(range(spare, pixels.shape[axis] - spare), axis)
        fitted = [max(target, round(length * scale)) for target, length in zip(size, pixels.shape, strict=False)]
        # Across first, then down: the order decides about the rounding.
        pixels = _resized(_resized(pixels, 1, fitted[1]), 0, fitted[0])
        top, left = (round((length - target) / 2) for length, target in zip(fitted, size, strict=True))
        return pixels[top : top + size[0], left : left + size[1]]


def _resized(pixels: np.ndarray, axis: int, target: int) -> np.ndarray:
    """One side of 8-bit pixels resized: bilinear and antialiased, in the integers that PyTorch computes with."""
    length = pixels.shape[axis]
    if length == target:
        return pixels
    scale, rows = length / target, np.moveaxis(pixels, axis, 0)
    support, kernels = max(1.0, scale), []
    for index in range(target):
        center = scale * (index + 0.5)
        first, last = max(0, int(center - support + 0.5)), min(length, int(center + support + 0.5))
        weights = np.maximum(0, 1 - abs((np.arange(first, last) - center + 0.5) / support))
        kernels.append((first, weights / weights.sum()))
    precision = 0
    while int(0.5 + max(weights.max() for _, weights in kernels) * (1 << (precision + 1))) < 1 << 15 and precision < 22:
        precision += 1
    lines = []
    for first, weights in kernels:
        whole = (0.5 + weights * (1 << precision)).astype(np.int32)
        total = np.tensordot(whole, rows[first : first + len(whole)].astype(np.int32), 1) + (1 << (precision - 1))
        lines.append((total >> precision).clip(0, 255).astype(np.uint8))
    return np.moveaxis(np.stack(lines), 0, axis)


def _opened(image: str | Path | Image.Image) -> Image.Image:
    """An upright RGB image, transparent pixels blended with white."""
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        # Of colors with 16 bits, Pillow takes the upper 8 without a word.
        deep = opened.mode[0] in "IF" or ";16" in str(getattr(opened, "tile", ""))
        opened.load()
        if deep:
            raise ValueError("it has more than 8 bits; save it with 8")
        rgba = ImageOps.exif_transpose(opened).convert("RGBA")
    except Exception as error:  # Pillow can raise anything on a damaged file
        raise ValueError(f"{image} is not a readable image ({error}).") from error
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _enlarged(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Values of patches or cells over the pixels."""
    rows, columns = values.shape
    return values[np.ix_(np.arange(height) * rows // height, np.arange(width) * columns // width)]
