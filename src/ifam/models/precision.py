"""Precision of answers: a model is evaluated in the precision that it was trained in."""

import torch


def has_bfloat16(accelerator: str | None = None) -> bool:
    """Whether the accelerator (Lightning's name; the best one where None) computes bfloat16 faster than float32."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


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
        return has_bfloat16("cpu" if device.type == "cpu" else None)
    return precision.startswith("16") and device.type == "cuda"
