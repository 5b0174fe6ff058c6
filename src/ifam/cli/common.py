"""Functions shared by several verbs: device, folders, and checks."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ifam.errors import IfamError
from ifam.io import local_path

if TYPE_CHECKING:
    import torch

    from ifam.config import ModelConfig
    from ifam.data import Benchmark


def ensure_no_model(out: Path, overwrite: bool) -> None:
    """Raise an error if the folder contains a model that must not be replaced."""
    if any((out / name).exists() for name in ("config.json", "model.safetensors")) and not overwrite:
        raise IfamError(f"{out} already contains a model; choose another --out, or replace it with --overwrite.")


def ensure_no_stopped_training(out: Path, overwrite: bool) -> None:
    """Raise an error if the folder contains a training that was stopped, which must not be lost."""
    if (out / "checkpoints" / "last.ckpt").exists() and not overwrite:
        raise IfamError(
            f"{out} already contains a training that was stopped; go on with --resume, or start over with --overwrite."
        )


def is_finished(out: Path) -> bool:
    """Whether the training in a folder is finished: its model is saved and evaluated."""
    return all((out / name).exists() for name in ("config.json", "model.safetensors", "results.json"))


def check_resume(resume: bool, overwrite: bool) -> None:
    """Raise an error if a command is to go on and to start over."""
    if resume and overwrite:
        raise IfamError("--resume goes on with what is there, and --overwrite starts over; give one of them.")


def check_classes(images: "Benchmark", config: "ModelConfig") -> None:
    """Raise an error unless the classes of the data are those of the model."""
    number, name = config.num_classes, images.name
    if images.class_of_logit is not None and number == len(images.class_of_logit):
        return
    if len(images.class_names) != number:
        raise IfamError(
            f"{name} has {len(images.class_names)} classes, but the model has {number}; "
            f"give the data that it was trained on."
        )
    if config.class_names and config.class_names != images.class_names:
        pairs = zip(images.class_names, config.class_names, strict=True)
        actual, expected = next(pair for pair in pairs if pair[0] != pair[1])
        raise IfamError(
            f"{name} has other classes than the model ({actual!r} instead of {expected!r}); "
            f"give the data that it was trained on."
        )


def resolve_device(name: str) -> "torch.device":
    """The device with this name; for "auto" the GPU of this process, if available."""
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


def results_folder(model: str) -> Path:
    """Folder for results of a model: its own, or the working directory for a model of the hub."""
    folder = local_path(model)
    return folder if folder.is_dir() else Path()
