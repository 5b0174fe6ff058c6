"""Whether an exported file answers as the model in PyTorch, before it is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from ifam._typing import Float, Tensor
from ifam.errors import IfamError
from ifam.exporting.graph import Graph

# Largest difference of logits, as a share of the largest logit where that is above 1, and of masks: cells whose part
# and background are equally probable but for rounding.
LOGITS, CELLS = 1e-4, 1e-3

# From inputs to outputs, both by name.
Runner = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Agreement:
    """How an exported file answers, compared with PyTorch.

    Attributes:
        images: Images that both have answered.
        logits: Largest difference of the logits, given the same masks.
        cells: Share of the cells of the masks that differ.
    """

    images: int
    logits: float
    cells: float

    def __str__(self) -> str:
        masks = "the masks are equal" if self.cells == 0 else f"{self.cells:.2%} of the cells of masks differ"
        return (
            f"Checked on {self.images} images against PyTorch: {masks}, logits differ by at most {self.logits:.1e}, "
            f"and hidden pixels change no bit."
        )


def verify(path: Path, graph: Graph, run: Runner, quantized: bool) -> Agreement:
    """Compare an exported file with the model.

    Args:
        path: Name of the file in messages.
        graph: The model's graph.
        run: Runs the file.
        quantized: Whether logits may differ, as in integers of 8 bits.

    Returns:
        The differences.

    Raises:
        IfamError: They are too large, or hidden pixels change the logits.
    """
    images = _varied_images(graph.model.image_size)
    names = graph.input_names
    with torch.no_grad():
        expected = dict(zip(graph.output_names, graph(images, *graph.own_inputs(len(images))), strict=True))
    mask, parts = expected["mask"], expected["patch_parts"]
    cells = float((run({"images": images})["mask"] != mask).float().mean())
    # The last image shows nothing.
    mask[-1] = False
    given = dict(zip(names[1:], (mask.to(torch.int8), parts.to(torch.int8)), strict=False))
    with torch.no_grad():
        expected = dict(zip(graph.output_names, graph(images, *given.values()), strict=True))
    found, other = (run({"images": pixels, **given})["logits"] for pixels in (images, _fill_hidden(images, mask)))
    difference = float((found - expected["logits"]).abs().max())
    allowed = LOGITS * max(1.0, float(expected["logits"].abs().max()))
    reason = ""
    if not bool(found.isfinite().all()):
        reason = "its logits are NaN or infinite"
    elif difference > allowed and not quantized:
        reason = f"its logits differ from PyTorch's by {difference:.1e}, more than {allowed:.1e}"
    elif cells > CELLS:
        reason = f"{cells:.1%} of the cells of its masks differ from PyTorch's"
    elif not torch.equal(found, other):
        reason = "hidden pixels change its logits"
    if reason:
        raise IfamError(
            f"{path} was not written: {reason}; use other versions of torch, onnxscript and onnxruntime, and report it."
        )
    return Agreement(len(images), difference, cells)


def _varied_images(size: tuple[int, int]) -> Float[Tensor, "B 3 S1 S2"]:
    """Noise at three scales, and a ramp."""
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(1, 3, rows, rows, generator=generator) for rows in (3, 9, 40)]
    ramp = torch.linspace(-2, 2, size[1]).expand(1, 3, *size)
    return torch.cat([*(F.interpolate(noise, size, mode="bilinear") for noise in noises), ramp])


def _fill_hidden(images: Float[Tensor, "B 3 S1 S2"], mask: Tensor) -> Float[Tensor, "B 3 S1 S2"]:
    """The images with NaN and infinity in hidden pixels."""
    shown = F.interpolate(mask[:, None].float(), images.shape[2:], mode="nearest") > 0
    filling = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])[:, None, None, None]
    return torch.where(shown, images, filling)
