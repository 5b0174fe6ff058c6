"""Attacks on hidden pixels: all hidden pixels are replaced, visible ones stay the same."""

from collections.abc import Callable

import torch

from ifam._typing import Bool, Float, Tensor
from ifam.models.masking import enlarge

# Replacements of hidden pixels; "adversarial" follows the gradient, starting from noise.
FILLINGS = ("noise", "another image", "1e30", "infinity", "-infinity", "NaN", "mixed")
ATTACKS = (*FILLINGS, "adversarial")
_VALUES = {"1e30": 1e30, "infinity": torch.inf, "-infinity": -torch.inf, "NaN": torch.nan}
# In units of the normalized images, whose pixels lie within about -2 to 3.
_STEP = 0.5


def hidden_pixel_mask(visible: Bool[Tensor, "B H W"], images: Float[Tensor, "B 3 S1 S2"]) -> Bool[Tensor, "B 3 S1 S2"]:
    """True for every value of every pixel in a hidden patch, or cell."""
    hidden = ~enlarge(visible, (images.shape[2], images.shape[3]))
    return hidden[:, None].expand_as(images)


def replaced(
    images: Float[Tensor, "B 3 S1 S2"],
    hidden: Bool[Tensor, "B 3 S1 S2"],
    filling: str,
    generator: torch.Generator,
    others: Float[Tensor, "B 3 S1 S2"] | None = None,
) -> Float[Tensor, "B 3 S1 S2"]:
    """The images with every hidden pixel replaced.

    Args:
        images: The images.
        hidden: The values to replace.
        filling: One of `FILLINGS`.
        generator: Source of the noise, on the CPU.
        others: Images for the filling "another image"; the next image of the batch if None.
    """
    if filling == "noise":
        values = 3 * torch.randn(images.shape, generator=generator).to(images)
    elif filling == "another image":
        values = images.roll(1, dims=0) if others is None else others
    elif filling == "mixed":
        choices = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 7.0])
        values = choices[torch.randint(len(choices), images.shape, generator=generator)].to(images)
    else:
        values = torch.full_like(images, _VALUES[filling])
    return differing(torch.where(hidden, values, images), images, hidden)


def differing(
    changed: Float[Tensor, "B 3 S1 S2"], images: Float[Tensor, "B 3 S1 S2"], hidden: Bool[Tensor, "B 3 S1 S2"]
) -> Float[Tensor, "B 3 S1 S2"]:
    """The changed images, with hidden values negated where they did not change, so that every one differs."""
    # Adding a constant could be lost in rounding. NaN differs from every value, including itself.
    negated = torch.where(images == 0, 1.0, -images)
    return torch.where(hidden & (changed == images), negated, changed)


def ascend(
    run: Callable[[Tensor], Tensor],
    start: Float[Tensor, "B 3 S1 S2"],
    hidden: Bool[Tensor, "B 3 S1 S2"],
    expected: Float[Tensor, "B C"],
    steps: int,
) -> tuple[Tensor, Float[Tensor, "B 3 S1 S2"]]:
    """Gradient ascent on the hidden pixels, away from the answer.

    Args:
        run: Maps images to logits.
        start: Images whose hidden pixels are noise.
        hidden: The values that may change.
        expected: Logits of the original images.
        steps: Number of steps; stops early at a gradient of exactly zero.

    Returns:
        The final images, and the largest absolute gradient at each hidden value.
    """
    answer = torch.nn.functional.one_hot(expected.argmax(dim=1), expected.shape[1]).bool()
    images, largest = start, torch.zeros_like(start)
    for _ in range(steps):
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = run(images)
            rivals = logits.masked_fill(answer, -torch.inf).amax(dim=1) if logits.shape[1] > 1 else 0.0
            goal = (rivals - logits[answer]).sum()
        (slope,) = torch.autograd.grad(goal, images, allow_unused=True) if goal.requires_grad else (None,)
        slope = torch.zeros_like(images) if slope is None else torch.where(hidden, slope, 0.0)
        largest = torch.maximum(largest, slope.abs().nan_to_num(nan=torch.inf))
        if not slope.any():
            break
        images = images + _STEP * slope.nan_to_num(nan=1.0).sign()
    return images.detach(), largest
