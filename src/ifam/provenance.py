"""Where a result comes from: version, source and time, and the digest of the weights that it is about."""

import logging
import subprocess
import time
from pathlib import Path

from ifam.errors import IfamError
from ifam.model_files import WEIGHTS, read_json, read_safetensors, weights_digest
from ifam.version import __version__

_log = logging.getLogger("ifam")


def judged_weights(result: Path) -> str | None:
    """The digest of the weights that a result names; None where there is no such file, or it names none."""
    try:
        conditions = (read_json(result) or {}).get("conditions", {})
    except IfamError:
        return None
    return str(conditions["weights"]) if isinstance(conditions, dict) and conditions.get("weights") else None


def model_folder(result: Path) -> Path | None:
    """The folder of the model that a result lies in: beside it, or around `evaluations/NAME/`."""
    beside = result.absolute().parent
    around = [beside, beside.parent.parent] if beside.parent.name == "evaluations" else [beside]
    return next((folder for folder in around if (folder / WEIGHTS).is_file()), None)


def is_stale(result: Path) -> bool:
    """Whether a result lies in the folder of a model whose weights are not those that it judged."""
    weights, folder = judged_weights(result), model_folder(result)
    if weights is None or folder is None:
        return False
    try:
        return weights_digest(read_safetensors(folder / WEIGHTS)) != weights
    except IfamError:
        return True


def warn_if_other_weights(result: Path, weights: str) -> None:
    """Say so where a result that lies beside a model is about other weights than the model has now."""
    known = judged_weights(result)
    if known not in (None, weights):
        _log.warning("%s is about other weights than those that are beside it now; do not read it as theirs.", result)


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
        # Installed, it may lie in an environment inside of somebody else's checkout.
        return None
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
