"""Settings that belong together, and where a model comes from when its pretrained weights are unavailable."""

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ifam import yaml_text
from ifam.backbones.vit import TINY, WeightsUnavailable
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import Benchmark
from ifam.distributed import first_process
from ifam.errors import IfamError
from ifam.io import check_absent, write_text
from ifam.models import registry
from ifam.models.base import Classifier

logger = logging.getLogger(__name__)

# What `ifam demo` and recipes/pondbirds.yaml use, for the plain ViT too (docs/pondbirds.md: chosen on validation images
# of other seeds).
TINY_MODEL = ModelConfig(backbone=TINY, image_size=80, num_parts=4, mask_gradient="visible")
TINY_TRAIN = TrainConfig(
    epochs=4,
    batch_size=64,
    base_lr=5e-4,
    prototype_lr_factor=40.0,
    modulation_lr_factor=20.0,
    head_lr_factor=2.0,
    monitor="accuracy",
    accelerator="cpu",
)
# A grid of 10 patches has 3.7 times the outline, per area, of the paper's 37, so total variation weighs less.
TINY_LOSS = LossConfig(total_variation=0.3)


@dataclass(frozen=True)
class TrainSetup:
    """A model with the settings to train it by.

    Attributes:
        model: The model, with pretrained backbones, of whatever method.
        config: What it was made from.
        train: How to train it.
        losses: Weight of each loss term.
    """

    model: Classifier
    config: ModelConfig
    train: TrainConfig
    losses: LossConfig


def build(
    config: ModelConfig,
    train: TrainConfig,
    losses: LossConfig,
    images: Benchmark,
    method: str = "ifam",
    *,
    allow_tiny_backbone: bool = False,
    given: Collection[str] = (),
) -> TrainSetup:
    """The model of a method and a configuration, from pretrained weights; `apply_method_defaults` goes before it.

    Args:
        config: The model.
        train: How to train it.
        losses: Weight of each loss term.
        images: What it is trained on.
        method: Name of the method.
        allow_tiny_backbone: Where the default backbone's weights are unavailable, take the embedded backbone and its
            training settings, with a warning. Settings that were asked for are kept.
        given: Names of the settings that were asked for ("model.num_parts"), beside those that are not the defaults.

    Returns:
        The model, and the settings that hold in the end.

    Raises:
        WeightsUnavailable: The weights of a backbone that was asked for are unavailable.
    """
    try:
        return TrainSetup(registry.build(method, config), config, train, losses)
    except WeightsUnavailable as error:
        if config.backbone != ModelConfig().backbone or "model.backbone" in given:
            raise
        if not allow_tiny_backbone:
            raise WeightsUnavailable(
                f"The weights of {config.backbone} are unavailable ({_first_sentence(error)}): connect to the network "
                f"once, name a folder of weights with --model.backbone DIR, or train the small embedded backbone with "
                f"--model.backbone {TINY} (--allow-tiny-backbone takes it whenever the others are unavailable)."
            ) from error
        logger.warning(
            "%s Training goes on with the small embedded backbone %r, which knows far less than %s.",
            *(error, TINY, config.backbone),
        )
    # What was asked for by name holds for any backbone.
    config = replace(TINY_MODEL, **_non_default_fields(config, ModelConfig(), "model", given))
    asked = _non_default_fields(train, TrainConfig(), "train", given)
    small = small_data(replace(TINY_TRAIN, **asked), len(images.split("train")), seed=train.seed)
    small = replace(small, **asked)
    losses = replace(TINY_LOSS, **_non_default_fields(losses, LossConfig(), "loss", given))
    return TrainSetup(registry.build(method, config), config, small, losses)


def _first_sentence(error: Exception) -> str:
    """What an error says, without advice."""
    return str(error).partition("; ")[0].rstrip(".")


def with_classes(model: ModelConfig, images: Benchmark, given: Collection[str] = ()) -> ModelConfig:
    """The configuration of a model for the classes of the data.

    Raises:
        IfamError: Another number of classes, or other names, were asked for.
    """
    fitting = replace(model, num_classes=len(images.class_names), class_names=images.class_names)
    for name in ("num_classes", "class_names"):
        wanted, there = getattr(model, name), getattr(fitting, name)
        if f"model.{name}" in given and wanted not in (there, list(there) if isinstance(there, tuple) else there):
            raise IfamError(
                f"model.{name} is {wanted!r}, but {images.name} has {there!r}; leave it out, since classes come from "
                f"the data."
            )
    return fitting


def apply_method_defaults(method: str, train: TrainConfig, given: Collection[str] = ()) -> TrainConfig:
    """The settings of a training with those that make a method what it is.

    A field that was not asked for gives way to the method's: one that has its default value and is not in `given`.

    Raises:
        IfamError: There is no such method, or a field was set to something else.
    """
    own = registry.method(method).train
    for name, value in _non_default_fields(train, TrainConfig(), "train", given).items():
        if name in own and value != own[name]:
            raise IfamError(
                f"The method {method} has train.{name} = {own[name]!r}, not {value!r}; leave that away, or choose "
                f"another method."
            )
    return replace(train, **own)


def _non_default_fields(config: Any, default: Any, prefix: str, given: Collection[str]) -> dict[str, Any]:
    """The fields of a configuration that were asked for: given by name, or other than the defaults."""
    known = asdict(default)
    return {
        name: value
        for name, value in asdict(config).items()
        if value != known[name] or any(f"{key}.".startswith(f"{prefix}.{name}.") for key in given)
    }


def small_data(train: TrainConfig, num_images: int, seed: int, steps: int = 250) -> TrainConfig:
    """Settings for a folder of unknown size: batches that it can fill, and epochs enough for so many steps."""
    batch_size = max(1, min(train.batch_size, num_images // 4))
    epochs = max(train.epochs, math.ceil(steps * batch_size / num_images))
    return replace(train, batch_size=batch_size, epochs=epochs, seed=seed)


# What training leaves in the folder of a run: the model last, so that a folder with a model is complete.
_LEFT = ("config.json", "model.safetensors", "results.json", "train.yaml")
_LEFT_BELOW = ("checkpoints/*.ckpt", "logs/metrics.csv", "logs/hparams.yaml", "logs/events.out.tfevents.*")


def begin_run(settings: Mapping[str, Any], folder: Path, overwrite: bool) -> None:
    """Make a folder ready for training: no file of an earlier run is left, and `train.yaml` has the settings.

    Args:
        settings: The settings of the run.
        folder: Where it goes.
        overwrite: Whether an earlier run of other settings may be removed.

    Raises:
        IfamError: The folder cannot be written, or holds files that this run did not leave there.
    """
    if not first_process():
        return
    text = _settings_text(settings)
    kept = folder / "train.yaml"
    if not (kept.is_file() and kept.read_text(encoding="utf-8", errors="replace") == text):
        check_absent([folder / name for name in (*_LEFT, "checkpoints", "logs")], overwrite)
    for name in _LEFT:
        (folder / name).unlink(missing_ok=True)
    for path in (path for pattern in _LEFT_BELOW for path in folder.glob(pattern)):
        path.unlink()
    write_text(kept, text)


def _settings_text(settings: Mapping[str, Any]) -> str:
    """The settings of a run as YAML, so that `ifam train --config` repeats it."""
    plain = {**settings, "model": _plain(settings["model"])}
    return yaml_text.dump(plain)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples as lists, which YAML knows."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
