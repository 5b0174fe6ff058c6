"""Numbers of the authors' public code, which parity tests hold against ours; README.md says what each of them is."""

import json
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

DATA = Path(__file__).parent / "data"

# |ours - theirs| <= 1e-5 + 1e-5 * |theirs|, for every number of a model, a loss or a gradient. docs/checkpoints.md
# and docs/differences.md state it. The largest difference is about half of that (torch 2.10, 2.14 and 2.15; one and two
# threads; with and without AVX2 and AVX-512).
PARITY = 1e-5
TOLERANCE = {"atol": PARITY, "rtol": PARITY}


def read(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and settings of one folder of the numbers."""
    path = DATA / name / "data.safetensors"
    manifest = json.loads((DATA / name / "manifest.json").read_text(encoding="utf-8"))
    return load_file(path) if path.exists() else {}, manifest


@cache
def images(name: str) -> torch.Tensor:
    """The images [4, 3, S, S] that a model was shown."""
    drawn = read(name)[1]["drawn"]
    values = normals(drawn["image_seed"], prod(drawn["images"])).astype(np.float32)
    return torch.from_numpy(values).view(drawn["images"])


@cache
def weights(name: str) -> dict[str, torch.Tensor]:
    """The state dict of a model, under the authors' names."""
    drawn = read(name)[1]["drawn"]
    shapes = drawn["weights"]
    values = normals(drawn["weight_seed"], sum(map(prod, shapes.values())))
    state, start = {}, 0
    for key, shape in shapes.items():
        mean, deviation = _distribution(key, shape)
        part = mean + deviation * values[start : start + prod(shape)]
        state[key] = torch.from_numpy(part.astype(np.float32)).view(shape)
        start += prod(shape)
    prefix = sum(prod(shape[:-1]) for key, shape in shapes.items() if key.startswith("stage_2.") and "token" in key)
    return {**state, "stage_2.prefix_attn_mask": torch.ones(1, prefix)}


def normals(seed: int, count: int) -> np.ndarray:
    """What `torch.randn` drew on the processor for a seed; weights and images are these, and are not stored.

    Box and Muller's method on the stream of a Mersenne twister, which numpy promises never to change (NEP 19). The
    double precision here parts from torch's single precision by 2e-6 at most.

    Args:
        seed: Seed of the generator.
        count: How many numbers; a multiple of 16.
    """
    draws = np.random.RandomState(seed).randint(0, 2**32, count, dtype=np.uint32)
    uniform = (draws % 2**24 / 2**24).reshape(-1, 2, 8)
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()


def _distribution(name: str, shape: list[int]) -> tuple[float, float]:
    """Mean and standard deviation of a tensor of weights."""
    if name.endswith("bias"):
        return 0.0, 0.05
    if "modulation" in name:
        return 1.0, 0.2
    if len(shape) == 1:  # weights of norms, layer scales
        return 1.0, 0.1
    if "token" in name or "pos" in name:
        return 0.0, 0.5
    if "fc_landmarks" in name:
        return 0.0, 0.2
    if "fc_class" in name or "head" in name:
        return 0.0, 0.3
    return 0.0, prod(shape[1:]) ** -0.5
