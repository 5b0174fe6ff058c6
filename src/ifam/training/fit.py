"""Train a model on a benchmark and keep the best weights by validation."""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from ifam.config import LossConfig, TrainConfig
from ifam.data import Benchmark
from ifam.distributed import ended_together
from ifam.errors import IfamError
from ifam.interruption import deferred
from ifam.io import ensure_space, local_path, remove_temporaries
from ifam.models.base import Classifier
from ifam.models.token_cache import Place, cached_tokens
from ifam.models.windows import window_shape
from ifam.provenance import use_threads
from ifam.run_files import METRICS, history
from ifam.serialization import flat
from ifam.training.batches import Batches, augmentation
from ifam.training.diagnostics import problems
from ifam.training.loggers import loggers, refuse_lost
from ifam.training.lora import adapters, check_installed
from ifam.training.metrics_file import MetricsFile
from ifam.training.module import Training, epochs_of_method, prepare
from ifam.training.progress import TrainingProgress
from ifam.training.resume import BEST, FOLDER, Checkpoints, describe_run, find_checkpoint, refuse_other_run
from ifam.training.trainer import KeepSignals, build_trainer, check_devices, quiet, released, run_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """The result of a training.

    Attributes:
        history: For each epoch, every logged value by name.
        seconds: Duration of the training.
        best_epoch: Epoch (counted from 1) whose weights were kept, chosen on validation data.
    """

    history: list[dict[str, float]]
    seconds: float
    best_epoch: int


def fit(
    model: Classifier,
    benchmark: Benchmark,
    config: TrainConfig,
    losses: LossConfig | None = None,
    folder: str | Path | None = None,
    *,
    label: str = "training",
    tokens: str | Path | None = None,
    resume: bool = False,
) -> FitResult:
    """Train a model on a benchmark's training images, and load the best weights by validation.

    A training that was stopped goes on from the checkpoint in its folder. On a processor, its weights are then those
    of one that was not stopped, bit by bit; for this, it goes on with as many threads as it began with.

    Args:
        model: The model, of any method; changed in place.
        benchmark: The images.
        config: Settings of the training.
        losses: Weight of each loss term.
        folder: Folder for checkpoints and logs; a temporary folder where None.
        label: Label of the progress bar.
        tokens: Folder for the tokens of a frozen selector, which later runs use too; they are kept in memory where
            None.
        resume: Go on from the last checkpoint in the folder, if there is one.

    Returns:
        The training curves, the duration and the chosen epoch.

    Raises:
        IfamError: There are fewer images than in a batch, true masks that the model needs are missing, the loss is no
            longer finite, or the disk is full; or the checkpoint is damaged, or one of other settings or images.
    """
    check(benchmark, config, model)
    config = epochs_of_method(config, model)
    if folder is None:
        refuse_lost(config.loggers)
    seed_everything(config.seed)
    with quiet(), run_folder(folder) as path, deferred() as stop, adapters(model, config), ExitStack() as stack:
        prepare(model, config)
        module = Training(model, config, losses or LossConfig(), benchmark, len(benchmark.split("train")))
        _check_space(model, path, config)
        metrics = MetricsFile(path / METRICS)
        checkpoints = Checkpoints(path / FOLDER, stop, metrics)
        callbacks: list[L.Callback] = [TrainingProgress(label), KeepSignals(), checkpoints]
        if config.ema_decay is not None:
            callbacks.append(EMAWeightAveraging(decay=config.ema_decay))
        settings = {"model": asdict(model.config), "train": asdict(config), "loss": asdict(module.losses)}
        others = stack.enter_context(loggers(config.loggers, path, label, dict(flat(settings))))
        trainer = build_trainer(config, losses or LossConfig(), callbacks, [metrics, *others])
        stack.enter_context(released(trainer))
        first, start = trainer.is_global_zero, None
        if folder is not None:
            kind = trainer.strategy.root_device.type
            checkpoints.run = describe_run(model, benchmark, config, module.losses, kind, trainer.world_size)
            start = _start(path, checkpoints.run) if resume else None
            for place in (path, path / FOLDER, path / "logs") if first else ():
                remove_temporaries(place)
        logger.info("Augmentation: %s.", augmentation(config, benchmark))
        # Lightning keeps the current mode, and a model that was loaded or trained before is in evaluation mode.
        module.train()
        with ended_together(trainer.strategy.launcher):
            try:
                kept = token_place(benchmark, config, tokens, ("train", "val"))
                half = not config.precision.startswith("32")
                with cached_tokens(getattr(model, "selector", None), kept, half) as checkpoints.cache:
                    batches = Batches(model, benchmark, config)
                    trainer.fit(module, datamodule=batches, ckpt_path=start, weights_only=True)
            except OSError as error:
                reason = error.strerror or error
                raise IfamError(f"Training was stopped ({reason}); its files are in {path}.") from error
            seconds = checkpoints.seconds
            # Several devices read from the folder of the first, which may be temporary.
            written = trainer.strategy.broadcast(path)
            checkpoint = torch.load(written / FOLDER / BEST, map_location="cpu", weights_only=True)
            curves = history(written / METRICS)
            trainer.strategy.barrier()
        weights = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
        model.load_state_dict(weights)
    model.eval()
    if module.selector_figures is not None and first:
        for problem in problems(module.selector_figures, module.losses, model.input_backbone.grid):
            logger.warning("%s: %s", label, problem)
    return FitResult(curves, seconds, int(checkpoint["epoch"]) + 1)


def _check_space(model: Classifier, folder: Path, config: TrainConfig) -> None:
    """Refuse a training whose files would fill the disk."""
    # The model, and three checkpoints, one of them being written, with two optimizer moments of each trained weight.
    copies = 4 if config.ema_decay is None else 7
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    there = sum(path.stat().st_size for path in (folder / FOLDER).glob("*.ckpt"))
    ensure_space(folder, sum(copies * size + 6 * size * trained for size, trained in sizes) - there)


def _start(folder: Path, run: Mapping[str, Any]) -> Path | None:
    """The checkpoint of this run to go on from, if there is one."""
    last = find_checkpoint(folder)
    if last is None:
        return None
    path, checkpoint = last
    refuse_other_run(checkpoint, run, folder)
    use_threads(checkpoint["callbacks"][Checkpoints.__qualname__].get("threads"))
    place = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    logger.info("Training goes on from %s: epoch %d, batch %d.", path, place["epoch"] + 1, place["batches"] + 1)
    return path


def token_place(
    benchmark: Benchmark, config: TrainConfig, folder: str | Path | None, splits: Sequence[str]
) -> Place | None:
    """Where the tokens of the images of some splits are kept; None where they are not the same in each epoch.

    Args:
        benchmark: The images.
        config: Settings of the training.
        folder: Folder of the tokens; None to keep them in memory.
        splits: Names of splits.
    """
    if config.selector_tuning != "none" or not config.cache_tokens:
        return None
    if augmentation(config, benchmark).crop < 1:
        logger.warning("Tokens of the frozen selector are computed again in each epoch, for other crops (train.crop).")
        return None
    return Place(None if folder is None else local_path(folder), sum(len(benchmark.split(name)) for name in splits))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch, loader workers included."""
    L.seed_everything(seed, workers=True, verbose=False)


def check(benchmark: Benchmark, config: TrainConfig, model: Classifier | None = None) -> None:
    """Refuse settings that cannot be trained with.

    Args:
        benchmark: The images.
        config: Settings of the training.
        model: The model, if it is built already.

    Raises:
        IfamError: A setting is invalid, there are fewer images than in a batch, or one lacks the true mask that the
            model needs; or peft is not installed, which adapters need.
    """
    check_installed(config)
    if config.group_dro is not None:
        benchmark.groups("train")
    if config.window_share and model is not None:
        window_shape(config.window_kind, config.window_width, model.window_grid)
    if config.compile and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise IfamError(
            "train.compile needs a C++ compiler, and there is none on the path; install one (such as g++), name it in "
            "the environment variable CXX, or leave compile off."
        )
    for split in ("train", "val"):
        if split not in benchmark.splits:
            raise IfamError(
                f"{benchmark.name} has no split {split!r}, but training and validation images are "
                f"expected; it has {', '.join(benchmark.splits)} (data.val_fraction above 0 sets some aside)."
            )
    count = len(benchmark.split("train"))
    if count < config.batch_size:
        raise IfamError(
            f"{benchmark.name} has {count} training images, fewer than a batch of {config.batch_size}; "
            f"add images or use --train.batch_size {max(1, count)} or less."
        )
    for split in ("train", "val"):
        if model is not None and model.needs_masks:
            benchmark.require_masks(split, f"The method {model.method}")
    with quiet(), released(build_trainer(config)) as trainer:
        devices = trainer.world_size
    check_devices(benchmark, config, devices)
