"""What several verbs share: the device, and what they refuse."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ifam.errors import IfamError
from ifam.io import local_path

if TYPE_CHECKING:
    import torch

    from ifam.config import ModelConfig
    from ifam.data import Benchmark


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse a folder with a model in it, unless that is to be replaced."""
    if any((out / name).exists() for name in ("config.json", "model.safetensors")) and not overwrite:
        raise IfamError(f"{out} already holds a model; choose another --out, or replace it with --overwrite.")


def check_classes(images: "Benchmark", config: "ModelConfig") -> None:
    """Refuse data whose classes the model does not know."""
    number, name = config.num_classes, images.name
    if images.class_of_logit is not None and number == len(images.class_of_logit):
        return
    if len(images.class_names) != number:
        raise IfamError(
            f"{name} has {len(images.class_names)} classes, but the model knows {number}; "
            f"give the data that it was trained for."
        )
    if config.class_names and config.class_names != images.class_names:
        here, there = next((h, t) for h, t in zip(images.class_names, config.class_names, strict=True) if h != t)
        raise IfamError(
            f"{name} has other classes than the model ({here!r} where it knows {there!r}); "
            f"give the data that it was trained for."
        )


def resolve_device(name: str) -> "torch.device":
    """The device of this name; for "auto" the GPU of this process, where there is one."""
    import torch

    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise IfamError(f"There is no device {name!r} here ({reason}); give --device cpu or cuda.") from None
    return device


def folder_beside(model: str) -> Path:
    """Where results about a model go: its folder, or the working directory for a model of the hub."""
    folder = local_path(model)
    return folder if folder.is_dir() else Path()
