"""Saved models: a folder, or a repository of the Hugging Face hub, with `config.json` and `model.safetensors`.

This module handles the files only; models are saved and loaded by their classes, which `ifam.checkpoints.hub` selects.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ifam._typing import Tensor
from ifam.config import PRECISIONS, ModelConfig
from ifam.errors import IfamError, first_line
from ifam.io import local_path
from ifam.model_files import CALIBRATION, CONFIG, WEIGHTS, download, read_json, read_safetensors, write_model
from ifam.ranges import check_ranges, check_types
from ifam.version import __version__

# The model card, which the hub shows.
CARD = "README.md"
# Suffixes of files with weights, which are not ids of models.
_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx"}
# Former names of methods in saved models, and their present names.
RENAMED_METHODS = {"attention_crops": "trained_crops"}
# Types of what is saved of the training.
_EXTRA: dict[str, tuple[type, ...]] = {"benchmark": (str,), "root": (str, type(None)), "data": (dict,)}


def write(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    method: str,
    extra: dict[str, Any] | None,
    preprocessing: Mapping[str, Any],
) -> None:
    """Write `model.safetensors` and `config.json` to a folder.

    Each file is written atomically. A failure leaves no new folder.

    Args:
        folder: The folder; created if needed.
        tensors: The model's state dict.
        config: Its settings.
        method: Its name in `ifam.models.registry.METHODS`.
        extra: JSON-serializable content to save with the model (`read` returns it).
        preprocessing: How its images are prepared (`Classifier.preprocessing`).

    Raises:
        IfamError: The folder cannot be written, or `extra` or the configuration cannot be written as JSON.
    """
    settings = {"method": method, **asdict(config), "preprocessing": preprocessing, "ifam_version": __version__}
    settings["extra"] = extra or {}
    write_model(folder, tensors, settings)


def find(source: str | Path, revision: str | None = None) -> Path:
    """A local file or folder, or the local copy of a model on the hub."""
    path = local_path(source)
    if path.exists():
        return path
    owner = path.parts[0] if len(path.parts) == 2 else ""
    # `runs/ifam`, or a path in an existing folder, is meant to be local: do not wait for the network.
    local = owner == "runs" or Path(owner).is_dir()
    if isinstance(source, Path) or local or not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or path.suffix in _SUFFIXES:
        raise IfamError(
            f"There is no file or folder {source}; give an existing one, or the id `owner/name` of the hub."
        )
    path = download(source, [CONFIG, WEIGHTS, CALIBRATION], revision)
    if not path.is_dir():
        raise IfamError(f"The hub's {source!r} has neither {WEIGHTS} nor {CONFIG}; give the id of a model.")
    return path


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no id of a repository of the Hugging Face hub.

    Raises:
        IfamError: It is none.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise IfamError(f"{repo_id!r} is not an id on the hub ({first_line(error)}); give `owner/name`.") from error
    if "/" not in repo_id:
        raise IfamError(f"{repo_id!r} has no owner; give the id on the hub as `owner/name`.")


def upload(folder: Path, repo_id: str, *, private: bool, revision: str | None, message: str) -> str:
    """Upload the files of a folder to the Hugging Face hub; see `Classifier.push_to_hub`."""
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message)
    except (OSError, HFValidationError) as error:
        raise IfamError(
            f"The model could not be pushed to {repo_id!r} ({first_line(error)}); check the id, the network and `hf "
            f"auth login`."
        ) from error
    return str(commit.commit_url)


def locate(source: str | Path, revision: str | None = None) -> Path:
    """A local folder of a saved model."""
    path = find(source, revision)
    if not path.is_dir():
        mend = "`ifam.load_official` reads files of the paper's authors"
        if path.suffix == ".onnx":
            mend = "give the folder of the model that was exported"
        raise IfamError(f"{path} is a file, but a folder that `save_pretrained` wrote is expected; {mend}.")
    return path


@dataclass(frozen=True)
class SavedModel:
    """What `config.json` says of a saved model.

    Attributes:
        folder: Where it is.
        method: Present name of its method, whether this version knows it or not.
        config: Its settings.
        extra: What was saved beside them.
        preprocessing: How images were prepared by the version that saved it; empty for models from before 0.2.
    """

    folder: Path
    method: str
    config: ModelConfig
    extra: dict[str, Any]
    preprocessing: dict[str, Any] = field(default_factory=dict)

    def check_preprocessing(self, present: Mapping[str, Any]) -> None:
        """Refuse a model whose images were prepared in another way than this version does.

        Args:
            present: What this version does (`Classifier.preprocessing`).

        Raises:
            IfamError: They differ, so that the answers would.
        """
        for name, stated in self.preprocessing.items():
            if name not in present or stated != present[name]:
                raise IfamError(
                    f"{self.folder / CONFIG} states preprocessing with {name} = {stated!r}, but ifam {__version__} "
                    f"prepares images with {present.get(name)!r}, so answers would differ; install the version that "
                    f"wrote it, or save the model again."
                )


def read(source: str | Path, *, revision: str | None = None) -> SavedModel:
    """Read the `config.json` of a saved model; the weights are left for later.

    Args:
        source: A folder, or the id of a model on the hub.
        revision: Branch, tag or commit on the hub.

    Raises:
        IfamError: There is no `config.json`, it was not written by ifam or by another version, or a value is invalid.
    """
    path, settings = _settings(source, revision)
    method = _method(path, settings.pop("method", None))
    version, extra = settings.pop("ifam_version"), settings.pop("extra", {})
    preprocessing = settings.pop("preprocessing", {})
    known = {field.name for field in fields(ModelConfig)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise IfamError(
            f"{path} has {len(unknown)} unknown fields ({', '.join(map(repr, unknown[:3]))}): it was "
            f"written by ifam {version} and this is {__version__}; install that version, or remove "
            f"the fields."
        )
    # JSON has lists instead of tuples.
    tuples = ("class_names", "mean", "std", "image_size", "selector_image_size")
    settings |= {key: tuple(settings[key]) for key in tuples if isinstance(settings.get(key), list)}
    try:
        check_types(ModelConfig, settings)
        check_ranges(settings, ModelConfig.ranges)
        config = ModelConfig(**settings)
    except IfamError as error:
        raise IfamError(f"{path} does not describe a model: {str(error).rstrip('.')}; save the model again.") from None
    _check_extra(path, extra)
    if not isinstance(preprocessing, dict):
        raise IfamError(
            f"{path} has {preprocessing!r} under `preprocessing`, but an object is expected; save it again."
        )
    return SavedModel(path.parent, method, config, extra, preprocessing)


def _check_extra(path: Path, extra: Any) -> None:
    """Refuse what was saved beside the settings where it is not as it was written."""
    if not isinstance(extra, dict):
        raise IfamError(f"{path} has {extra!r} under `extra`, but an object is expected; save the model again.")
    invalid = {key: extra[key] for key, kinds in _EXTRA.items() if key in extra and not isinstance(extra[key], kinds)}
    if not invalid:
        white, precision = extra.get("data", {}).get("white", 0), extra.get("precision", PRECISIONS[0])
        invalid |= {} if type(white) is int and white >= 0 else {"data": {"white": white}}
        invalid |= {} if precision in PRECISIONS else {"precision": precision}
    for key, value in invalid.items():
        raise IfamError(f"{path} has the invalid {key} {value!r} under `extra`; save the model again.")


def _method(path: Path, name: Any) -> str:
    """The present name of the method that a `config.json` states."""
    if name is None:
        # Folders from before there were methods: a plain ViT had no selector.
        tensors = read_safetensors(path.parent / WEIGHTS)
        return "ifam" if any(tensor.startswith("selector.") for tensor in tensors) else "plain_vit"
    if not isinstance(name, str):
        raise IfamError(f"{path} names the method {name!r}, but a text is expected; save the model again.")
    return RENAMED_METHODS.get(name, name)


def _settings(source: str | Path, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """Path and content of the `config.json` that `save` wrote."""
    path = locate(source, revision) / CONFIG
    settings = read_json(path)
    if settings is None:
        raise IfamError(f"{path.parent} has no {CONFIG}; give a folder that `save_pretrained` wrote.")
    if "ifam_version" not in settings:
        raise IfamError(
            f"{path} was not written by ifam (no 'ifam_version' in it); `ifam.load_official` reads the "
            f"models that the authors of the paper published."
        )
    return path, settings
