"""Settings that belong together, and where a model comes from when its pretrained weights cannot be had."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ifam import baselines, yaml_text
from ifam.classifier import Classifier
from ifam.config import LossConfig, ModelConfig, TrainConfig
from ifam.data import Benchmark
from ifam.errors import IfamError
from ifam.io import check_absent, first_process, write_text
from ifam.vit import TINY, WeightsUnavailable

# What `ifam demo` and recipes/pondbirds.yaml use (chosen on validation images of other seeds, docs/pondbirds.md).
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
# The plain ViT of the demo: the same backbone, images and epochs, its learning rate tuned in the same way.
TINY_PLAIN = TINY_TRAIN


@dataclass(frozen=True)
class Plan:
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


def build(config: ModelConfig, train: TrainConfig, losses: LossConfig, images: Benchmark, method: str = "ifam") -> Plan:
    """The model of a method and a configuration, from pretrained weights; `settle` goes before it.

    Where the default backbone's weights cannot be had, say without a network, the embedded backbone and its training
    settings take its place, with a warning: a weaker model that works beats none. Settings that are not the
    defaults are kept, and a backbone that was asked for is never replaced.

    Returns:
        The model, and the settings that hold in the end.

    Raises:
        WeightsUnavailable: The weights of a backbone that was asked for cannot be had.
    """
    try:
        return Plan(baselines.build(method, config), config, train, losses)
    except WeightsUnavailable as error:
        if config.backbone != ModelConfig().backbone:
            raise
        print(
            f"Warning: {error}\nTraining goes on with the small embedded backbone {TINY!r}, which knows far less than "
            f"{config.backbone}; connect to the network once for a much better model."
        )
    # What was asked for by name holds for any backbone.
    config = replace(TINY_MODEL, **_asked(config, ModelConfig()))
    asked = _asked(train, TrainConfig())
    small = small_data(replace(TINY_TRAIN, **asked), len(images.split("train")), seed=train.seed)
    small = replace(small, **asked)
    losses = replace(TINY_LOSS, **_asked(losses, LossConfig()))
    return Plan(baselines.build(method, config), config, small, losses)


def settle(method: str, train: TrainConfig) -> TrainConfig:
    """The settings of a training with those that make a method what it is.

    A field that has its default value was not asked for, as far as anyone can tell, and gives way to the method's.

    Raises:
        IfamError: There is no such method, or a field was set to something else.
    """
    own = baselines.method(method).train
    for name, value in _asked(train, TrainConfig()).items():
        if name in own and value != own[name]:
            raise IfamError(
                f"The method {method} has train.{name} = {own[name]!r}, not {value!r}; leave that away, or choose "
                f"another method."
            )
    return replace(train, **own)


def _asked(given: Any, default: Any) -> dict[str, Any]:
    """The fields in which a configuration differs from the default one."""
    known = asdict(default)
    return {name: value for name, value in asdict(given).items() if value != known[name]}


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
