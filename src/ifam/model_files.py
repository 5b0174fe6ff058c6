"""Read and write settings and weights of models; code in files is never run."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ifam._typing import Tensor
from ifam.errors import IfamError, first_line
from ifam.io import foreign_content, local_path

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
# Turns answers into sets of classes (`ifam calibrate`); not every model has one.
CALIBRATION = "calibration.safetensors"


def download(name: str, files: Sequence[str], revision: str | None = None) -> Path:
    """The local copy of some files of a model on the Hugging Face hub.

    Args:
        name: The model's id, `owner/name`.
        files: Names of the files.
        revision: Branch, tag or commit.

    Raises:
        IfamError: The hub cannot be reached or has no such model.
    """
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        raise IfamError(
            f"There is no folder {name!r} here, and no model of this id could be downloaded from the hub "
            f"({first_line(error)}); check the name and the network."
        ) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The settings in a JSON file; None where there is no such file."""
    if not path.exists():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError) as error:
        raise IfamError(
            f"{path} cannot be read as JSON ({foreign_content(path) or error}); restore it, or write it again."
        ) from error
    if not isinstance(settings, dict):
        kind = type(settings).__name__
        raise IfamError(f"{path} contains a {kind}, but an object of settings is expected; restore it.")
    return settings


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a name that is in it twice is an error, and not the last of the two."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is in it twice")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file."""
    if not path.is_file():
        raise IfamError(f"{path.parent} has no {path.name}; give a folder with the weights.")
    try:
        # The reader's own error would be that there is no such file.
        path.open("rb").close()
        return load_file(path)
    except OSError as error:
        raise IfamError(f"{path} cannot be read ({error.strerror or error}); change its permissions.") from error
    except SafetensorError as error:
        raise IfamError(
            f"{path} is not a valid safetensors file ({foreign_content(path) or first_line(error)}); re-download it."
        ) from error


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of weights with their names, shapes and types: equal for a model and for the file that it was saved to.

    Args:
        tensors: A model's state dict, or the result of `read_safetensors`.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(tensors.items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_model(folder: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write weights and configuration to a folder atomically.

    Raises:
        IfamError: The folder cannot be written, or the configuration cannot be written as JSON; no new folder is left
            then.
    """
    folder = local_path(folder)
    try:
        text = json.dumps(config, indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise IfamError(
            f"The configuration or `extra` cannot be written as JSON ({error}); use numbers, strings, lists and dicts."
        ) from error
    fresh = [path for path in (folder, *folder.parents) if not path.exists()]
    weights, settings = (folder / f".{name}.{os.getpid()}.tmp" for name in (WEIGHTS, CONFIG))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settings.write_text(text, encoding="utf-8")
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            weights,
            metadata={"format": "pt"},
        )
        # Written for its owner alone; whoever may read the settings may read the weights.
        weights.chmod(settings.stat().st_mode)
        # The folder never has the weights of one model and the settings of another: the old settings are removed first.
        (folder / CONFIG).unlink(missing_ok=True)
        weights.replace(folder / WEIGHTS)
        settings.replace(folder / CONFIG)
    except BaseException as error:
        for path in (weights, settings):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        for path in fresh:
            # A folder that has other files meanwhile is kept.
            with suppress(OSError):
                path.rmdir()
        if isinstance(error, (OSError, SafetensorError)):
            raise IfamError(
                f"The model could not be written to {folder} ({first_line(error)}); choose another folder."
            ) from error
        raise
