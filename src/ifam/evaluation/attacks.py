"""Attacks on hidden pixels: every one of them is replaced, and every visible one is left."""

from collections.abc import Callable

import torch

from ifam._typing import Bool, Float, Tensor

# What every hidden pixel is replaced by; "adversarial" climbs the gradient from noise.
FILLINGS = ("noise", "another image", "1e30", "infinity", "-infinity", "NaN", "mixed")
ATTACKS = (*FILLINGS, "adversarial")
_VALUES = {"1e30": 1e30, "infinity": torch.inf, "-infinity": -torch.inf, "NaN": torch.nan}
# In units of the normalized images, whose pixels lie within about -2 to 3.
_STEP = 0.5


def hidden_pixel_mask(visible: Bool[Tensor, "B H W"], images: Float[Tensor, "B 3 S1 S2"]) -> Bool[Tensor, "B 3 S1 S2"]:
    """True for every value of every pixel in a hidden patch."""
    height, width = images.shape[2] // visible.shape[1], images.shape[3] // visible.shape[2]
    hidden = ~visible.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2)
    return hidden[:, None].expand_as(images)


def replaced(
    images: Float[Tensor, "B 3 S1 S2"],
    hidden: Bool[Tensor, "B 3 S1 S2"],
    filling: str,
    generator: torch.Generator,
    others: Float[Tensor, "B 3 S1 S2"] | None = None,
) -> Float[Tensor, "B 3 S1 S2"]:
    """The images with other values in every hidden pixel, and the same in every visible one.

    Args:
        images: The images.
        hidden: The values to replace.
        filling: One of `FILLINGS`.
        generator: Source of the noise, on the CPU.
        others: The images that "another image" takes pixels from.
    """
    if filling == "noise":
        other = 3 * torch.randn(images.shape, generator=generator).to(images)
    elif filling == "another image":
        other = images.roll(1, dims=0) if others is None else others
    elif filling == "mixed":
        choices = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 7.0])
        other = choices[torch.randint(len(choices), images.shape, generator=generator)].to(images)
    else:
        other = torch.full_like(images, _VALUES[filling])
    return differing(torch.where(hidden, other, images), images, hidden)


def differing(
    changed: Float[Tensor, "B 3 S1 S2"], images: Float[Tensor, "B 3 S1 S2"], hidden: Bool[Tensor, "B 3 S1 S2"]
) -> Float[Tensor, "B 3 S1 S2"]:
    """The changed images, negated where a hidden value is what it was: that would prove nothing about it."""
    # Adding something could be lost in rounding. NaN differs from everything, itself included.
    other = torch.where(images == 0, 1.0, -images)
    return torch.where(hidden & (changed == images), other, changed)


def ascend(
    run: Callable[[Tensor], Tensor],
    start: Float[Tensor, "B 3 S1 S2"],
    hidden: Bool[Tensor, "B 3 S1 S2"],
    expected: Float[Tensor, "B C"],
    steps: int,
) -> tuple[Tensor, Float[Tensor, "B 3 S1 S2"]]:
    """Climb the gradient of the logits with respect to the hidden pixels, away from the answer.

    Args:
        run: From images to logits.
        start: Images whose hidden pixels are noise already.
        hidden: The values that may change.
        expected: The logits of the true images.
        steps: How far to climb; a gradient of exactly zero ends it at once, for then there is nothing to climb.

    Returns:
        The images reached, and the largest gradient met at each hidden value.
    """
    own = torch.nn.functional.one_hot(expected.argmax(dim=1), expected.shape[1]).bool()
    images, largest = start, torch.zeros_like(start)
    for _ in range(steps):
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            logits = run(images)
            rivals = logits.masked_fill(own, -torch.inf).amax(dim=1) if logits.shape[1] > 1 else 0.0
            goal = (rivals - logits[own]).sum()
        (slope,) = torch.autograd.grad(goal, images, allow_unused=True) if goal.requires_grad else (None,)
        slope = torch.zeros_like(images) if slope is None else torch.where(hidden, slope, 0.0)
        largest = torch.maximum(largest, slope.abs().nan_to_num(nan=torch.inf))
        if not slope.any():
            break
        images = images + _STEP * slope.nan_to_num(nan=1.0).sign()
    return images.detach(), largest
