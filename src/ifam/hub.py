"""Models on disk and on the Hugging Face hub. Reading one never runs code that came with it."""

import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

import ifam
from ifam._typing import Tensor
from ifam.architecture import check_tensors, count_heads
from ifam.backbone import fill_buffers
from ifam.baselines import METHODS, PlainViT, build
from ifam.classifier import Classifier
from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.files import CONFIG, WEIGHTS, download, first_line, read_json, read_pickle, read_safetensors, write_model
from ifam.io import check_absent, ensure_writable, local_path
from ifam.model import IFAM
from ifam.official import RGB, Layout, from_official, to_official

Kind = TypeVar("Kind", bound=Classifier)


def save(model: Classifier, folder: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write `model.safetensors` and `config.json` to a folder.

    Each file is complete or absent: it is written under another name first. A failure leaves no new folder.

    Args:
        model: The model, of any method.
        folder: Where to; made if need be.
        extra: Anything for JSON that should travel with the model (`read_config` gives it back).

    Raises:
        IfamError: The folder cannot be written, or `extra` or the configuration is nothing for JSON.
    """
    config = {"method": model.method, **asdict(model.config), "ifam_version": ifam.__version__, "extra": extra or {}}
    write_model(folder, model.state_dict(), config)


def load(source: str | Path, *, revision: str | None = None) -> IFAM:
    """Read an `IFAM` that `save` or `push` wrote; the arguments are those of `load_as`."""
    return load_as(source, IFAM, revision=revision)


def load_as(source: str | Path, kind: type[Kind], *, revision: str | None = None) -> Kind:
    """Read a model of one class that `save` or `push` wrote.

    Args:
        source: A folder, or the id `owner/name` of a model on the Hugging Face hub.
        kind: The class, exactly.
        revision: Branch, tag or commit on the hub.

    Returns:
        The model, in evaluation mode.

    Raises:
        IfamError: It is of another class, or cannot be read (see `load_any`).
    """
    folder = _locate(source, revision)
    model = _build(folder)
    if type(model) is not kind:
        raise IfamError(
            f"{folder} holds a model of the method {model.method!r}, but one of {kind.method!r} is expected; give one "
            f"of those (`ifam.hub.load_any` reads every method)."
        )
    _fill(model, folder)
    return model


def load_any(source: str | Path, *, revision: str | None = None) -> Classifier:
    """Read a model of any method that `save` or `push` wrote.

    Args:
        source: A folder, or the id `owner/name` of a model on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.

    Returns:
        The model, of the class of its method, in evaluation mode.

    Raises:
        IfamError: A file is missing or damaged, the method is unknown, the configuration has unknown or impossible
            fields, or the weights do not fit it.
    """
    folder = _locate(source, revision)
    model = _build(folder)
    _fill(model, folder)
    return model


def _build(folder: Path) -> Classifier:
    """The model that a folder describes, without memory for its weights."""
    name, (config, _) = read_method(folder), read_config(folder)
    try:
        with torch.device("meta"):
            return build(name, config, pretrained=False)
    except (TypeError, AttributeError, RuntimeError, AssertionError) as error:
        raise IfamError(f"{folder / CONFIG} describes no model ({error}); save the model again.") from error


def _fill(model: Classifier, folder: Path) -> None:
    """Read the weights of a folder into a model."""
    weights = read_safetensors(folder / WEIGHTS)
    check_tensors({name: tuple(t.shape) for name, t in model.state_dict().items()}, weights)
    model.load_state_dict(weights, assign=True)
    fill_buffers(model)
    model.eval()


def read_method(source: str | Path, *, revision: str | None = None) -> str:
    """The method of a saved model, a name in `ifam.baselines.METHODS`.

    Args:
        source: A folder, or the id of a model on the hub.
        revision: Branch, tag or commit on the hub.

    Raises:
        IfamError: There is no `config.json`, or this version does not know the method.
    """
    path, settings = _settings(source, revision)
    found = settings.get("method") or _former_method(path.parent)
    if not isinstance(found, str) or found not in METHODS:
        raise IfamError(
            f"{path} names the method {found!r}, but ifam {ifam.__version__} has {', '.join(METHODS)}; install the "
            f"version that wrote it ({settings['ifam_version']})."
        )
    return str(found)


def _former_method(folder: Path) -> str:
    """The method of a folder that was written before folders named it: a plain ViT had no selector."""
    names = read_safetensors(folder / WEIGHTS)
    return (IFAM if any(name.startswith("selector.") for name in names) else PlainViT).method


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
    path, settings = _settings(source, revision)
    settings.pop("method", None)
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
    listed = [key for key in ("class_names", "mean", "std", "image_size") if isinstance(settings.get(key), list)]
    settings |= {key: tuple(settings[key]) for key in listed}
    plain = asdict(ModelConfig())
    wrong = [name for name, value in settings.items() if not (_like(value, plain[name]) and _is_sound(name, value))]
    if wrong:
        raise IfamError(
            f"{path} describes no model: {wrong[0]} is {settings[wrong[0]]!r}, but a value like "
            f"{plain[wrong[0]]!r} is expected; save the model again."
        )
    if not isinstance(extra, dict):
        raise IfamError(f"{path} has {extra!r} under `extra`, but an object is expected; save the model again.")
    if odd := [key for key, kinds in _EXTRA.items() if key in extra and not isinstance(extra[key], kinds)]:
        raise IfamError(f"{path} has an impossible {odd[0]}, {extra[odd[0]]!r}, under `extra`; save the model again.")
    return ModelConfig(**settings), extra


def _settings(source: str | Path, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """Path and content of the `config.json` that `save` wrote."""
    path = _locate(source, revision) / CONFIG
    settings = read_json(path)
    if settings is None:
        raise IfamError(f"{path.parent} has no {CONFIG}; give a folder that `save_pretrained` wrote.")
    if "ifam_version" not in settings:
        raise IfamError(
            f"{path} was not written by ifam (no 'ifam_version' in it); `ifam.load_official` reads the "
            f"models that the authors of the paper published."
        )
    return path, settings


def push(
    model: Classifier,
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
    *,
    overwrite: bool = False,
) -> str:
    """Rewrite a model of the authors as one of ifam, or the other way round.

    Args:
        source: Snapshot, weights file, folder or hub id; either of the authors or of ifam.
        folder: Folder to write `model.safetensors` and `config.json` to.
        to: "ifam", or "official" for exactly the authors' keys and shapes.
        layout: For "official": the authors' names for timm's models, or for Hugging Face's.
        num_heads: Attention heads, where a checkpoint of the authors leaves them open.
        overwrite: Replace a model that is already in the folder.

    Returns:
        A sentence that says what was written.

    Raises:
        IfamError: The source cannot be read (see `load_official`), or the folder cannot be written or holds a model.
    """
    folder = local_path(folder)
    ensure_writable(folder, folder=True)
    check_absent([folder / CONFIG, folder / WEIGHTS], overwrite)
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
        write_model(folder, tensors, _official_settings(model))
    values = sum(tensor.numel() for tensor in tensors.values())
    config, (height, width) = model.config, model.image_size
    size = height if height == width else f"{height} x {width}"
    return (
        f"Wrote {folder} ({to}): {config.backbone} at {size} px, "
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
        "num_heads": count_heads(model.selector.backbone.vit),
    }


# --- finding ---------------------------------------------------------------------------------------------


def _find(source: str | Path, revision: str | None = None) -> Path:
    """A local file or folder, or the local copy of a model on the hub."""
    path = local_path(source)
    if path.exists():
        return path
    owner = path.parts[0] if len(path.parts) == 2 else ""
    # `runs/ifam` and whatever lies in a folder of this name here is meant to be local: no wait for the network.
    local = owner == "runs" or Path(owner).is_dir()
    if isinstance(source, Path) or local or not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or path.suffix in _SUFFIXES:
        raise IfamError(
            f"There is no file or folder {source}; give an existing one, or the id `owner/name` of the hub."
        )
    path = download(source, [CONFIG, WEIGHTS], revision)
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


# What is remembered of the training, if anything, and its types.
_EXTRA: dict[str, tuple[type, ...]] = {"benchmark": (str,), "root": (str, type(None)), "data": (dict,)}


def _like(value: Any, default: Any) -> bool:
    """Whether a value has the type of a default; a default of None says nothing."""
    kinds = (int, float) if isinstance(default, float) else type(default)
    return default is None or (isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool))


def _is_sound(name: str, value: Any) -> bool:
    """Whether a value that the default tells too little about, or that is a number, can be used."""
    if name == "class_names":
        return all(isinstance(one, str) for one in value)
    if name in ("mean", "std") and value is not None:
        numbers = isinstance(value, tuple) and all(_like(one, 0.0) and math.isfinite(one) for one in value)
        return numbers and len(value) == 3 and (name == "mean" or min(value) > 0)
    return not isinstance(value, float) or math.isfinite(value)


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
