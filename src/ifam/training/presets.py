"""Presets of settings, and the fallback when pretrained weights are unavailable."""

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ifam import yaml_text
from ifam.backbones.backbone import Backbone, selector_backbone
from ifam.backbones.vit import TINY, WeightsUnavailable
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import Benchmark
from ifam.distributed import first_process
from ifam.errors import IfamError
from ifam.io import check_absent, write_text
from ifam.models import registry
from ifam.models.base import Classifier
from ifam.models.precision import is_bfloat16_faster
from ifam.training.losses import fitting_total_variation

Preset = Literal["auto", "laptop", "paper"]

logger = logging.getLogger(__name__)

# Settings of `ifam demo` and recipes/pondbirds.yaml, also for the plain ViT (docs/pondbirds.md: chosen on validation
# images of other seeds).
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
TINY_LOSS = LossConfig(total_variation=0.3)

# `--preset laptop`: chosen on development splits of cut-out photographs with a ViT-S/14 (docs/results/speed.md).
LAPTOP_BACKBONE = "vit_small_patch14_reg4_dinov2.lvd142m"
LAPTOP_PIXELS = 224
LAPTOP_TRAIN = TrainConfig(
    epochs=4,
    base_lr=1e-5,
    prototype_lr_factor=30.0,
    modulation_lr_factor=100.0,
    head_lr_factor=50.0,
    selector_tuning="none",
    monitor="accuracy",
)
# Steps of the selector alone; fewest of both stages; and most, unless an epoch has more.
SELECTOR_STEPS, STEPS, MOST_STEPS = 250, 250, 1250
# Training images from which the paper's settings are the default on a GPU.
MANY_IMAGES = 5000


@dataclass(frozen=True)
class TrainSetup:
    """A model with its training settings.

    Attributes:
        model: The model of any method, with pretrained backbones.
        config: Its settings.
        train: Settings of the training.
        losses: Weight of each loss term.
    """

    model: Classifier
    config: ModelConfig
    train: TrainConfig
    losses: LossConfig


def choose(preset: Preset, num_images: int, accelerator: str = "auto") -> tuple[Literal["laptop", "paper"], str]:
    """The preset for a number of training images, and why.

    Args:
        preset: The preset that was given; "auto" for "laptop" without a GPU or for fewer than 5,000 images, else
            "paper".
        num_images: Number of training images.
        accelerator: Lightning's name of the accelerator; with "cpu", a GPU does not count.
    """
    if preset != "auto":
        return preset, "as given"
    if accelerator == "cpu" or not torch.cuda.is_available():
        return "laptop", "since no GPU is used"
    if num_images < MANY_IMAGES:
        return "laptop", f"since there are fewer than {MANY_IMAGES:,} training images"
    return "paper", f"since there are a GPU and at least {MANY_IMAGES:,} training images"


def apply_preset(
    preset: Literal["laptop", "paper"],
    model: ModelConfig,
    train: TrainConfig,
    losses: LossConfig,
    images: Benchmark,
    given: Collection[str] = (),
) -> tuple[ModelConfig, TrainConfig, LossConfig]:
    """The settings with those of a preset, for fields that have their default value and are not in `given`.

    "paper" keeps the defaults, which are those of the paper. "laptop" depends on the number of images, on the patches
    of the backbone, and on whether the processor computes bfloat16 faster than float32. The embedded backbone has
    settings of its own.

    Args:
        preset: Name of the preset.
        model: Settings of the model.
        train: Settings of the training.
        losses: Weight of each loss term.
        images: The data set.
        given: Names of the settings that were given ("model.num_parts"), besides those that are not the defaults.

    Raises:
        IfamError: The backbone is unknown, or its patches do not divide the given size of the images.
    """
    if preset == "paper":
        return model, train, losses
    own_model = _non_default_fields(model, ModelConfig(), "model", given)
    own_train = _non_default_fields(train, TrainConfig(), "train", given)
    own_losses = _non_default_fields(losses, LossConfig(), "loss", given)
    backbone = own_model.get("backbone", LAPTOP_BACKBONE)
    count = len(images.split("train"))
    if backbone == TINY:
        train = fit_steps(TINY_TRAIN, count, own_train)
        return replace(TINY_MODEL, **own_model), train, replace(TINY_LOSS, **own_losses)
    model = replace(model, backbone=backbone)
    with torch.device("meta"):
        if "image_size" not in own_model:
            model = replace(model, image_size=_laptop_size(model))
        grid = selector_backbone(model, pretrained=False).grid
    precision = "bf16-mixed" if is_bfloat16_faster(own_train.get("accelerator")) else "32-true"
    train = fit_steps(replace(LAPTOP_TRAIN, precision=precision), count, own_train, SELECTOR_STEPS)
    losses = replace(losses, **({"total_variation": fitting_total_variation(grid)} | own_losses))
    return model, train, losses


def _laptop_size(model: ModelConfig) -> int:
    """Side of the images in pixels: the multiple of the patches of both backbones that is next to `LAPTOP_PIXELS`."""
    kwargs = model.backbone_kwargs
    described = [Backbone(model.backbone, pretrained=False, **kwargs)]
    if model.predictor_backbone is not None:
        kwargs = kwargs if model.predictor_kwargs is None else model.predictor_kwargs
        described.append(Backbone(model.predictor_backbone, pretrained=False, **kwargs))
    patch = math.lcm(*(one.patch_size[0] for one in described))
    return max(1, round(LAPTOP_PIXELS / patch)) * patch


def describe(preset: str, reason: str, model: ModelConfig, train: TrainConfig) -> str:
    """A sentence on the settings of a preset, and why it was chosen."""
    size = f"at {model.image_size} pixels" if model.image_size else "at its own image size"
    alone = f" ({train.selector_epochs} of the selector alone)" if train.selector_epochs else ""
    other = "paper" if preset == "laptop" else "laptop"
    return (
        f"Preset {preset}, {reason}: {model.backbone} {size}, {train.epochs} epochs{alone} in batches of "
        f"{train.batch_size}, {train.precision}; --preset {other} or any setting changes it."
    )


def build(
    config: ModelConfig,
    train: TrainConfig,
    losses: LossConfig,
    images: Benchmark,
    method: str = "ifam",
    *,
    preset: Literal["laptop", "paper"] = "paper",
    allow_tiny_backbone: bool = False,
    given: Collection[str] = (),
) -> TrainSetup:
    """The model of a method and a configuration, from pretrained weights; call `apply_method_defaults` first.

    Args:
        config: Settings of the model.
        train: Settings of the training.
        losses: Weight of each loss term.
        images: The data set.
        method: Name of the method.
        preset: Settings for fields that are not given.
        allow_tiny_backbone: If the weights of the default backbone are unavailable, use the embedded backbone and its
            training settings, with a warning. Settings that were given are kept.
        given: Names of the settings that were given ("model.num_parts"), besides those that are not the defaults.

    Returns:
        The model, and the final settings.

    Raises:
        WeightsUnavailable: The weights of a backbone that was named are unavailable.
    """
    settings = apply_preset(preset, config, train, losses, images, given)
    name = settings[0].backbone
    try:
        return TrainSetup(registry.build(method, settings[0]), *settings)
    except WeightsUnavailable as error:
        if config.backbone != ModelConfig().backbone or "model.backbone" in given:
            raise
        if not allow_tiny_backbone:
            raise WeightsUnavailable(
                f"{_first_sentence(error)}; connect to the network once, name a folder of weights with "
                f"--model.backbone DIR, or train the small embedded backbone with --model.backbone {TINY} "
                f"(--allow-tiny-backbone uses it whenever the others are unavailable)."
            ) from error
        logger.warning(
            "%s Training continues with the small embedded backbone %r, which is much weaker than %s.",
            *(error, TINY, name),
        )
    # Settings that were given apply to any backbone.
    tiny = apply_preset("laptop", replace(config, backbone=TINY), train, losses, images, given)
    return TrainSetup(registry.build(method, tiny[0]), *tiny)


def _first_sentence(error: Exception) -> str:
    """The message of an error without the advice."""
    return str(error).partition("; ")[0].rstrip(".")


def with_classes(model: ModelConfig, images: Benchmark, given: Collection[str] = ()) -> ModelConfig:
    """The configuration of a model for the classes of the data.

    Raises:
        IfamError: Another number of classes, or other names, were given.
    """
    fitting = replace(model, num_classes=len(images.class_names), class_names=images.class_names)
    for name in ("num_classes", "class_names"):
        wanted, actual = getattr(model, name), getattr(fitting, name)
        if f"model.{name}" in given and wanted not in (actual, list(actual) if isinstance(actual, tuple) else actual):
            raise IfamError(
                f"model.{name} is {wanted!r}, but {images.name} has {actual!r}; leave it out, since classes come from "
                f"the data."
            )
    return fitting


def apply_method_defaults(method: str, train: TrainConfig, given: Collection[str] = ()) -> TrainConfig:
    """The settings of a training, with those that define a method.

    Fields that have their default value and are not in `given` are overridden.

    Raises:
        IfamError: There is no such method, or a field was set to something else.
    """
    required = registry.method(method).train
    for name, value in _non_default_fields(train, TrainConfig(), "train", given).items():
        if name in required and value != required[name]:
            raise IfamError(
                f"The method {method} has train.{name} = {required[name]!r}, not {value!r}; leave it out, or choose "
                f"another method."
            )
    return replace(train, **required)


def _non_default_fields(config: Any, default: Any, prefix: str, given: Collection[str]) -> dict[str, Any]:
    """The fields of a configuration that are given by name or differ from the defaults."""
    defaults = asdict(default)
    return {
        name: value
        for name, value in asdict(config).items()
        if value != defaults[name] or any(f"{key}.".startswith(f"{prefix}.{name}.") for key in given)
    }


def fit_steps(
    train: TrainConfig, num_images: int, own: Mapping[str, Any] | None = None, selector_steps: int = 0
) -> TrainConfig:
    """Settings for any number of images: batches that it can fill, and epochs of `STEPS` to `MOST_STEPS` steps.

    Args:
        train: Settings of the training; the epochs of a data set of a few thousand images, and the largest batch.
        num_images: Number of training images.
        own: Fields that were given, which are kept.
        selector_steps: Steps of the selector alone, before the others.

    Raises:
        IfamError: The given fields do not fit these epochs.
    """
    own = own or {}
    batch_size = own.get("batch_size", max(1, min(train.batch_size, num_images // 4)))
    first = own.get("selector_epochs", math.ceil(selector_steps * batch_size / num_images))
    fewest, most = (math.ceil(steps * batch_size / num_images) for steps in (STEPS, MOST_STEPS))
    epochs = own.get("epochs", max(fewest, min(train.epochs, most)) + first)
    fitting = {"batch_size": batch_size, "epochs": epochs, "selector_epochs": min(first, epochs // 2)}
    return replace(train, **{**fitting, **own})


# Files that training writes to the folder of a run.
_RUN_FILES = (
    *("config.json", "model.safetensors", "results.json", "train.yaml", "status.json"),
    # Of the model that is replaced.
    *("calibration.safetensors", "calibration.json"),
)
_RUN_PATTERNS = ("checkpoints/*.ckpt", "logs/metrics.csv", "logs/hparams.yaml", "logs/events.out.tfevents.*")


def begin_run(settings: Mapping[str, Any], folder: Path, overwrite: bool) -> None:
    """Prepare a folder for training: remove the files of an earlier run, and write the settings to `train.yaml`.

    Args:
        settings: The settings of the run.
        folder: Its folder.
        overwrite: Whether an earlier run of other settings may be removed.

    Raises:
        IfamError: The folder cannot be written, or contains files of another run.
    """
    if not first_process():
        return
    text = _settings_text(settings)
    path = folder / "train.yaml"
    if not (path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text):
        check_absent([folder / name for name in (*_RUN_FILES, "checkpoints", "logs")], overwrite)
    for name in _RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for file in (file for pattern in _RUN_PATTERNS for file in folder.glob(pattern)):
        file.unlink()
    write_text(path, text)


def _settings_text(settings: Mapping[str, Any]) -> str:
    """The settings of a run as YAML, so that `ifam train --config` repeats it."""
    plain = {**settings, "model": _plain(settings["model"])}
    return yaml_text.dump(plain)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with tuples as lists, for YAML."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
