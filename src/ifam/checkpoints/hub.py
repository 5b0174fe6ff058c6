"""Models on disk and on the Hugging Face hub. Reading a model never runs code from its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from ifam import saved_models
from ifam._typing import Tensor
from ifam.backbones.architecture import count_heads
from ifam.checkpoints.authors import PUBLISHED, RGB, Layout, from_official, to_official
from ifam.checkpoints.safe_pickle import read_pickle
from ifam.errors import IfamError, located
from ifam.io import check_absent, ensure_writable, local_path
from ifam.model_files import CONFIG, WEIGHTS, read_json, read_safetensors, write_model
from ifam.models.base import Classifier
from ifam.models.ifam import IFAM
from ifam.models.registry import METHODS
from ifam.saved_models import SavedModel, find
from ifam.version import __version__


def save(model: Classifier, folder: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write a model to a folder; see `Classifier.save_pretrained`."""
    model.save_pretrained(folder, extra)


def read(source: str | Path, *, revision: str | None = None) -> SavedModel:
    """Read what `config.json` says of a saved model: its method, its settings, and what was saved beside them.

    Args:
        source: A folder, or the id `owner/name` of a model on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.

    Raises:
        IfamError: There is no `config.json`, the method is unknown to this version, or a value is invalid.
    """
    saved = saved_models.read(source, revision=revision)
    if saved.method not in METHODS:
        raise IfamError(
            f"{saved.folder / CONFIG} names the method {saved.method!r}, but ifam {__version__} has "
            f"{', '.join(METHODS)}; install the version that wrote it."
        )
    return saved


def load(source: str | Path | SavedModel, *, revision: str | None = None) -> Classifier:
    """Read a model of any method that `save_pretrained` or `push_to_hub` wrote.

    Args:
        source: A folder, the id `owner/name` of a model on the Hugging Face hub, or what `read` gave.
        revision: Branch, tag or commit on the hub.

    Returns:
        The model, of the class of its method, in evaluation mode.

    Raises:
        IfamError: A file is missing or damaged, the method is unknown, the configuration has unknown fields or invalid
            values, or the weights do not fit it.
    """
    saved = source if isinstance(source, SavedModel) else read(source, revision=revision)
    return METHODS[saved.method].build.from_saved(saved)


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
        num_heads: Attention heads, which cannot be inferred from tensors. By default those of the architecture in
            `config.json`, else its number of heads, else width / 64, which is right for DINOv2 and RAD-DINO.
        image_size: Side of the input in pixels; only needed where the position table fits two sizes.
        mean: Channel means of the input normalization. Checkpoints do not contain them; by default those of
            ImageNet, as for DINOv2.
        std: Channel standard deviations of the input normalization.
        revision: Branch, tag or commit on the hub.

    Returns:
        The model in evaluation mode. The rest of its `config` is inferred from the tensors.

    Raises:
        IfamError: The file is not such a checkpoint, is damaged or incomplete, contains code, contradicts its
            `config.json`, or something cannot be inferred.
    """
    path = find(path_or_hub_id, revision)
    tensors, settings = _read_official(path)
    with located(path):
        model = from_official(tensors, settings, num_heads=num_heads, image_size=image_size, mean=mean, std=std)
    found, known = (model.config.num_parts, model.config.num_classes), PUBLISHED.get(str(path_or_hub_id))
    if known is not None and found != known:
        raise IfamError(
            f"{path_or_hub_id} has {found[0]} parts and {found[1]} classes, but {known[0]} and {known[1]} are "
            f"expected of this model; it has been replaced: name the former one with revision."
        )
    return model


def convert(
    source: str | Path,
    folder: str | Path,
    to: Literal["ifam", "official"] = "ifam",
    layout: Layout = "timm",
    num_heads: int | None = None,
    *,
    overwrite: bool = False,
) -> str:
    """Convert a model of the authors to one of ifam, or the other way round.

    Args:
        source: Snapshot, weights file, folder or hub id; either of the authors or of ifam.
        folder: Folder to write `model.safetensors` and `config.json` to.
        to: "ifam", or "official" for exactly the authors' keys and shapes.
        layout: For "official": the authors' names for timm's models, or for Hugging Face's.
        num_heads: Attention heads, where they cannot be inferred from a checkpoint of the authors.
        overwrite: Replace a model that is already in the folder.

    Returns:
        A sentence about what was written.

    Raises:
        IfamError: The source cannot be read (see `load_official`), or the folder cannot be written or holds a model.
    """
    folder = local_path(folder)
    ensure_writable(folder, folder=True, option="folder")
    check_absent([folder / CONFIG, folder / WEIGHTS], overwrite, option="folder")
    path = find(source)
    extra: dict[str, Any] = {}
    if path.is_dir() and "ifam_version" in (read_json(path / CONFIG) or {}):
        saved = read(path)
        model, extra = IFAM.from_saved(saved), saved.extra
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
    """The keyword arguments of the authors' models, as in their `config.json`."""
    config = model.config
    return {
        "model_arch": config.backbone if not config.backbone_kwargs else None,
        "img_size": model.image_size[0],
        "num_landmarks": config.num_parts,
        "num_classes": config.num_classes,
        "gumbel_softmax": config.gumbel_noise,
        "softmax_temperature": config.temperature,
        # It cannot be inferred from the tensors, nor from the name of a custom architecture.
        "num_heads": count_heads(model.selector.backbone.vit),
    }


def _read_official(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The state dict of a file or folder, and the content of its `config.json`."""
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
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and (tensor.layout != torch.strided or tensor.is_meta):
            raise IfamError(f"{path} holds a sparse or empty tensor under {name!r}; save it again as a dense one.")
    return state, {}
