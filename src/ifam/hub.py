"""Models on disk and on the Hugging Face hub. Reading one never runs code that came with it."""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file

import ifam
from ifam._typing import Tensor
from ifam.architecture import count_heads
from ifam.baselines import PlainViT
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.files import first_line, read_json, read_pickle, read_safetensors
from ifam.model import IFAM
from ifam.official import RGB, Layout, check_tensors, from_official, to_official

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save(model: IFAM | PlainViT, folder: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write `model.safetensors` and `config.json` to a folder.

    Each file is complete or absent: it is written under another name first. A failure leaves no new folder.

    Args:
        model: The model; a plain ViT too, which `ifam audit --plain` reads.
        folder: Where to; made if need be.
        extra: Anything for JSON that should travel with the model (`read_config` gives it back).

    Raises:
        IfamError: The folder cannot be written, or `extra` or the configuration is nothing for JSON.
    """
    config = {**asdict(model.config), "ifam_version": ifam.__version__, "extra": extra or {}}
    _write(folder, model.state_dict(), config)


def load(source: str | Path, *, revision: str | None = None) -> IFAM:
    """Read a model that `save` or `push` wrote.

    Args:
        source: A folder, or the id `owner/name` of a model on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.

    Returns:
        The model, in evaluation mode.

    Raises:
        IfamError: A file is missing or damaged, the configuration has unknown or impossible fields, or the
            weights do not fit it.
    """
    folder = _locate(source, revision)
    config, _ = read_config(folder)
    weights = read_safetensors(folder / WEIGHTS)
    try:
        with torch.device("meta"):
            model = IFAM(config, pretrained=False)
    except (TypeError, AttributeError, RuntimeError, AssertionError) as error:
        raise IfamError(f"{folder / CONFIG} describes no model ({error}); save the model again.") from error
    check_tensors({name: tuple(t.shape) for name, t in model.state_dict().items()}, weights)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def read_config(source: str | Path, *, revision: str | None = None) -> tuple[ModelConfig, dict[str, Any]]:
    """The configuration of a saved model, and what was saved beside it as `extra`.

    Args:
        source: A folder, or the id of a model on the hub.
        revision: Branch, tag or commit on the hub.

    Returns:
        Configuration and extra.

    Raises:
        IfamError: There is no `config.json`, or it was not written by ifam, or by another version.
    """
    path = _locate(source, revision) / CONFIG
    settings = read_json(path)
    if settings is None:
        raise IfamError(f"{path.parent} has no {CONFIG}; give a folder that `save_pretrained` wrote.")
    if "ifam_version" not in settings:
        raise IfamError(
            f"{path} was not written by ifam (no 'ifam_version' in it); `ifam.load_official` reads the "
            f"models that the authors of the paper published."
        )
    version, extra = settings.pop("ifam_version"), settings.pop("extra", {})
    known = {field.name for field in fields(ModelConfig)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise IfamError(
            f"{path} has {len(unknown)} unknown fields ({', '.join(map(repr, unknown[:3]))}): it was "
            f"written by ifam {version} and this is {ifam.__version__}; install that version, or remove "
            f"the fields."
        )
    # JSON has lists where the configuration has tuples.
    tuples = {
        key: tuple(value) for key in ("class_names", "mean", "std") if isinstance(value := settings.get(key), list)
    }
    settings |= tuples
    plain = asdict(ModelConfig())
    wrong = [name for name, value in settings.items() if not _like(value, plain[name])]
    if wrong:
        raise IfamError(
            f"{path} describes no model: {wrong[0]} is {settings[wrong[0]]!r}, but a value like "
            f"{plain[wrong[0]]!r} is expected; save the model again."
        )
    return ModelConfig(**settings), extra


def push(
    model: IFAM,
    repo_id: str,
    *,
    extra: dict[str, Any] | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload an ifam model",
) -> str:
    """Upload a model to the Hugging Face hub, with the credentials that `huggingface_hub` finds.

    Args:
        model: The model.
        repo_id: Id `owner/name` of the repository; made if need be.
        extra: As for `save`.
        private: Whether a new repository is private.
        revision: Branch to upload to.
        message: Message of the commit.

    Returns:
        Address of the commit.

    Raises:
        IfamError: The hub refused, or cannot be reached.
    """
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder, extra)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message)
        except (OSError, HFValidationError) as error:
            raise IfamError(
                f"The model could not be pushed to {repo_id!r} ({first_line(error)}); check the id, the "
                f"network and `hf auth login`."
            ) from error
    return str(commit.commit_url)


def load_official(
    path_or_hub_id: str | Path,
    num_heads: int | None = None,
    *,
    image_size: int | None = None,
    mean: RGB | None = None,
    std: RGB | None = None,
    revision: str | None = None,
) -> IFAM:
    """Read a model that the authors of arXiv 2506.08915 published.

    Args:
        path_or_hub_id: A `.pt` snapshot, a `.safetensors` file, a folder with `model.safetensors` (and
            perhaps `config.json`), or the id of such a folder on the Hugging Face hub.
        num_heads: Attention heads, which tensors do not tell. By default those of the architecture that
            `config.json` names, then those it states, then width / 64: right for DINOv2 and RAD-DINO.
        image_size: Side of the input in pixels; only asked for where the position table fits two sizes.
        mean: Channel means of the input normalisation. Checkpoints do not tell; ImageNet's are DINOv2's.
        std: Channel standard deviations of the input normalisation.
        revision: Branch, tag or commit on the hub.

    Returns:
        The model in evaluation mode. All else of its `config` is inferred from the tensors.

    Raises:
        IfamError: The file is no such checkpoint, is damaged or incomplete, carries code, contradicts its
            `config.json`, or leaves something open; the sentence says what, and how to go on.
    """
    tensors, settings = _read_official(_find(path_or_hub_id, revision))
    return from_official(tensors, settings, num_heads=num_heads, image_size=image_size, mean=mean, std=std)


def convert(
    source: str | Path,
    folder: str | Path,
    to: Literal["ifam", "official"] = "ifam",
    layout: Layout = "timm",
    num_heads: int | None = None,
) -> str:
    """Rewrite a model of the authors as one of ifam, or the other way round.

    Args:
        source: Snapshot, weights file, folder or hub id; either of the authors or of ifam.
        folder: Folder to write `model.safetensors` and `config.json` to.
        to: "ifam", or "official" for exactly the authors' keys and shapes.
        layout: For "official": the authors' names for timm's models, or for Hugging Face's.
        num_heads: Attention heads, where a checkpoint of the authors leaves them open.

    Returns:
        A sentence that says what was written.

    Raises:
        IfamError: The source cannot be read (see `load_official`), or the folder cannot be written.
    """
    path = _find(source)
    extra: dict[str, Any] = {}
    if path.is_dir() and "ifam_version" in (read_json(path / CONFIG) or {}):
        model = load(path)
        extra = read_config(path)[1]
    else:
        model = load_official(path, num_heads)
    if to == "ifam":
        save(model, folder, extra)
        tensors: Mapping[str, Tensor] = model.state_dict()
    else:
        tensors = to_official(model, layout)
        _write(folder, tensors, _official_settings(model))
    values = sum(tensor.numel() for tensor in tensors.values())
    config = model.config
    return (
        f"Wrote {folder} ({to}): {config.backbone} at {config.image_size or model.image_size[0]} px, "
        f"{config.num_parts} parts, {config.num_classes} classes, {len(tensors)} tensors, {values:,} values."
    )


def _official_settings(model: IFAM) -> dict[str, Any]:
    """The keyword arguments of the authors' models, as their `config.json` has them."""
    config = model.config
    return {
        "model_arch": config.backbone if not config.backbone_kwargs else None,
        "img_size": model.image_size[0],
        "num_landmarks": config.num_parts,
        "num_classes": config.num_classes,
        "gumbel_softmax": config.gumbel_noise,
        "softmax_temperature": config.temperature,
        # Nothing in the tensors tells it, and the name of a custom architecture does not either.
        "num_heads": count_heads(model.selector.backbone),
    }


# --- finding ---------------------------------------------------------------------------------------------


def _find(source: str | Path, revision: str | None = None) -> Path:
    """A local file or folder, or the local copy of a model on the hub."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if isinstance(source, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or path.suffix in _SUFFIXES:
        raise IfamError(
            f"There is no file or folder {source}; give an existing one, or the id `owner/name` of the hub."
        )
    try:
        path = Path(snapshot_download(source, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        raise IfamError(
            f"There is no folder {source!r} here, and the hub gave no model of this id "
            f"({first_line(error)}); check the name and the network."
        ) from error
    if not path.is_dir():
        raise IfamError(f"The hub's {source!r} has neither {WEIGHTS} nor {CONFIG}; give the id of a model.")
    return path


_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".safetensors"}


def _locate(source: str | Path, revision: str | None = None) -> Path:
    """A local folder of a saved model."""
    path = _find(source, revision)
    if not path.is_dir():
        raise IfamError(
            f"{path} is a file, but a folder that `save_pretrained` wrote is expected; `ifam.load_official` "
            f"reads files of the paper's authors."
        )
    return path


def _like(value: Any, default: Any) -> bool:
    """Whether a value has the type of a default; a default of None says nothing."""
    kinds = (int, float) if isinstance(default, float) else type(default)
    return default is None or isinstance(value, kinds)


# --- reading ---------------------------------------------------------------------------------------------


def _read_official(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The state dict of a file or folder, and what its `config.json` says."""
    if path.is_dir():
        settings = read_json(path / CONFIG) or {}
        if "ifam_version" in settings:
            raise IfamError(f"{path} was written by ifam itself; `IFAM.from_pretrained` reads it.")
        return read_safetensors(path / WEIGHTS), settings
    if path.suffix == ".safetensors":
        return read_safetensors(path), {}
    content = read_pickle(path)
    state = content.get("model_state", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise IfamError(
            f"{path} holds a {type(state).__name__}, but a snapshot (a dict with `model_state`) or a "
            f"state dict is expected; give one of those."
        )
    return state, {}


# --- writing ---------------------------------------------------------------------------------------------


def _write(folder: str | Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Weights and configuration, each under a temporary name first."""
    folder = Path(folder).expanduser()
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
        weights.replace(folder / WEIGHTS)
        settings.replace(folder / CONFIG)
    except BaseException as error:
        for path in (weights, settings):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        for path in fresh:
            # A folder that someone else has filled meanwhile stays.
            with suppress(OSError):
                path.rmdir()
        if isinstance(error, (OSError, SafetensorError)):
            raise IfamError(
                f"The model could not be written to {folder} ({first_line(error)}); choose another folder."
            ) from error
        raise
