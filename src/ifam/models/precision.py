"""Precision of answers: a model is evaluated in the precision that it was trained in."""

import platform
from functools import cache
from pathlib import Path

import torch


def is_bfloat16_faster(accelerator: str | None = None) -> bool:
    """Whether the accelerator (Lightning's name; the best one where None) computes bfloat16 faster than float32.

    Processors with a matrix unit (AMX) do, and AMD's with AVX-512's instructions. Intel's with these instructions alone
    do not: a linear layer takes 1.6 to 2 times as long.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and _is_from_amd()))


@cache
def _is_from_amd() -> bool:
    """Whether the processor is from AMD, by Linux's list of processors or Windows' name."""
    listed = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (listed.read_text("utf-8", "replace") if listed.is_file() else platform.processor())


def computed_in(precision: str, device: torch.device) -> torch.autocast:
    """A context in which models compute in a precision, or in 32 bits where the device has no use for fewer.

    Args:
        precision: As `TrainConfig.precision`.
        device: Device of the computation.
    """
    half = is_half(precision, device)
    dtype = torch.float16 if half and precision.startswith("16") else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=half)


def is_half(precision: str, device: torch.device) -> bool:
    """Whether a model computes in fewer than 32 bits on a device."""
    if precision.startswith("bf16"):
        return is_bfloat16_faster("cpu" if device.type == "cpu" else None)
    return precision.startswith("16") and device.type == "cuda"
