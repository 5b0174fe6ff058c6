"""Publish a saved model on the Hugging Face hub, with a card made from its results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ifam.checkpoints import hub
from ifam.errors import IfamError
from ifam.io import local_path, replacing
from ifam.model_files import CALIBRATION
from ifam.report.card import model_card
from ifam.saved_models import CARD, check_repo_id


def write_card(folder: str | Path, repo_id: str, *, license: str | None = None, overwrite: bool = False) -> Path:
    """Write the model card of a saved model to `README.md` beside it.

    Args:
        folder: Folder of the model.
        repo_id: Id `owner/name` that the model will have on the hub.
        license: License of the weights, as the hub names it.
        overwrite: Replace the card that is there, which may have been edited.

    Returns:
        The file.

    Raises:
        IfamError: There is a card, the folder has no model or damaged results, or it cannot be written.
    """
    check_repo_id(repo_id)
    path = local_path(folder) / CARD
    if path.exists() and not overwrite:
        raise IfamError(f"{path} exists, and may have been edited; use it as it is, or replace it with --overwrite.")
    card = model_card(folder, repo_id, license=license)
    with replacing(path) as temporary:
        temporary.write_text(card.content, encoding="utf-8")
    return path


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload an ifam model",
) -> str:
    """Upload a saved model to the Hugging Face hub, with the credentials that `huggingface_hub` finds.

    Settings, weights and calibration are uploaded, and the card: `README.md` in the folder where there is one, and else
    a new one from the results there (see `ifam.model_card`). No path of this machine is uploaded.

    Args:
        folder: Folder of the model.
        repo_id: Id `owner/name` of the repository; made if need be.
        license: License of the weights, as the hub names it, for a new card.
        private: Whether a new repository is private.
        revision: Branch to upload to; made if need be.
        message: Message of the commit.

    Returns:
        Address of the commit.

    Raises:
        IfamError: The folder has no model or damaged results, or the hub refused or cannot be reached.
    """
    check_repo_id(repo_id)
    saved = hub.read(folder)
    card, calibration = saved.folder / CARD, saved.folder / CALIBRATION
    text = card.read_text(encoding="utf-8") if card.exists() else model_card(folder, repo_id, license=license).content
    extra = _without_paths({**saved.extra, "root": None} if "root" in saved.extra else saved.extra)
    files = [calibration] if calibration.exists() else []
    options: dict[str, Any] = {"private": private, "revision": revision, "message": message}
    return hub.load(saved).push_to_hub(repo_id, card=text, extra=extra, files=files, **options)


def _without_paths(value: Any) -> Any:
    """What was saved beside a model, with the name alone of each file or folder of this machine."""
    if isinstance(value, Mapping):
        return {name: _without_paths(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).expanduser().is_absolute() else value


__all__ = ["push_to_hub", "write_card"]
