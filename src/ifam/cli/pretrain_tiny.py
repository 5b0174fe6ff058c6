"""`ifam pretrain-tiny`."""

import json
from pathlib import Path

from ifam.errors import IfamError
from ifam.io import check_absent, ensure_writable


def pretrain_tiny(
    out: Path = Path("tiny_vit.safetensors"),
    minutes: float = 9.0,
    seed: int = 0,
    steps: int | None = None,
    overwrite: bool = False,
) -> None:
    """Pretrain the embedded backbone again, on drawn textures that hold no bird.

    Args:
        out: File for the weights; a description with the ending .json goes beside it.
        minutes: How long, where `steps` does not say.
        seed: Seed of images and weights.
        steps: Steps to take.
        overwrite: Replace files that are already there.
    """
    from ifam.pretraining import pretrain_tiny

    if out.suffix == ".json":
        raise IfamError(f"out is {out}, but the ending .json is that of the description; choose another, .safetensors.")
    ensure_writable(out)
    check_absent([out, out.with_suffix(".json")], overwrite)

    print(json.dumps(pretrain_tiny(out, minutes=minutes, seed=seed, steps=steps), indent=2, default=str))
