"""Which model a result is about: results name the digest of the weights that they judged."""

import logging
from pathlib import Path

from ifam.errors import IfamError
from ifam.files import WEIGHTS, read_json, read_safetensors, weights_digest

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
