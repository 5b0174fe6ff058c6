"""Provenance of a result: version, revision, time, and the digest of the weights that it was measured on."""

import logging
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ifam.commands import running
from ifam.errors import IfamError
from ifam.model_files import WEIGHTS, read_json, read_safetensors, weights_digest
from ifam.version import __version__

_log = logging.getLogger("ifam")

# More threads are a mistake in the file, and would take the machine down.
_MOST_THREADS = 1024


def weights_of_result(result: Path) -> str | None:
    """The digest of the weights of a result; None where the file or the digest is missing."""
    try:
        conditions = (read_json(result) or {}).get("conditions", {})
    except IfamError:
        return None
    return str(conditions["weights"]) if isinstance(conditions, dict) and conditions.get("weights") else None


def model_folder(result: Path) -> Path | None:
    """The folder of the model that a result belongs to: its folder, or that of `evaluations/NAME/`."""
    parent = result.absolute().parent
    candidates = [parent, parent.parent.parent] if parent.parent.name == "evaluations" else [parent]
    return next((folder for folder in candidates if (folder / WEIGHTS).is_file()), None)


def is_stale(result: Path) -> bool:
    """Whether a result is in the folder of a model with other weights than those it was measured on."""
    weights, folder = weights_of_result(result), model_folder(result)
    if weights is None or folder is None:
        return False
    try:
        return weights_digest(read_safetensors(folder / WEIGHTS)) != weights
    except IfamError:
        return True


def warn_if_other_weights(result: Path, weights: str) -> None:
    """Warn if a result next to a model was measured on other weights than the model has now."""
    measured = weights_of_result(result)
    if measured not in (None, weights):
        _log.warning("%s was measured on other weights than those next to it now.", result)


def record() -> dict[str, Any]:
    """All that it takes to repeat a result: the command, what it ran on, and `provenance`."""
    return {**provenance(), "command": running(), "environment": environment()}


def environment() -> dict[str, Any]:
    """What bits of a result may depend on beside the settings: versions, processor, GPU, and number of threads."""
    packages = {name: version(name) for name in ("torch", "torchvision", "timm", "lightning")}
    return {
        "python": platform.python_version(),
        **packages,
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def use_threads(count: object) -> None:
    """Compute with the number of threads that a file records: sums are divided among them, down to the last bit.

    Args:
        count: The number; anything that cannot be one is ignored.
    """
    if type(count) is int and 0 < count <= _MOST_THREADS:
        torch.set_num_threads(count)


def _processor() -> str:
    """Name of the processor, and the instructions that PyTorch uses on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def provenance() -> dict[str, str | None]:
    """Version, revision of the source where it is a checkout, and time."""
    return {
        "ifam_version": __version__,
        "git_revision": _revision(Path(__file__).parent),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _revision(folder: Path) -> str | None:
    """The revision of the checkout that a source folder is in."""
    if "site-packages" in folder.parts:
        # An installed package may be in an environment inside another checkout.
        return None
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
