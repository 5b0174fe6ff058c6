"""Checkpoints from which a training goes on where it was stopped: when they are saved, and which may be gone on from.

A checkpoint is written under a temporary name, synced, and then renamed, so that there is always a whole one.
"""

import json
import logging
import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from signal import SIGTERM
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ifam.config import LossConfig, TrainConfig
from ifam.data import Benchmark
from ifam.data.fingerprints import fingerprint
from ifam.errors import IfamError
from ifam.interruption import Interrupted, Stop
from ifam.io import replacing
from ifam.models.base import Classifier
from ifam.models.token_cache import TokenCache
from ifam.serialization import flat
from ifam.training.batches import augmentation
from ifam.training.metrics_file import MetricsFile

logger = logging.getLogger(__name__)

# Folder of a run's checkpoints; the last one, and that of the best epoch.
FOLDER, LAST, BEST = "checkpoints", "last.ckpt", "best.ckpt"
# Settings that change the speed only. Kind and number of the devices are compared as they are.
FREE = ("train.workers", "train.loggers", "train.accelerator", "train.devices", "train.num_nodes")


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints so that the one before is whole until the new one is."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            IfamError: It cannot be written; the one before it is as it was.
        """
        advice = "the checkpoint before it is kept: make room, and go on with --resume"
        with replacing(Path(path), sync=True, advice=advice) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # PyTorch's own error about a file that ends too early, in the place of that of a full disk.
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


class Checkpoints(Checkpoint):
    """Saves checkpoints at the end of each epoch, within epochs every ten minutes, and when the training is to stop.

    Args:
        folder: Folder of the checkpoints.
        stop: The request to stop, if there is one.
        metrics: The file of the logged values, which goes on with the training.

    Attributes:
        run: What the training depends on (`describe_run`).
        cache: Tokens of a frozen selector, written before each checkpoint: computed again in other batches, they might
            differ in the last bit.
        seconds: Duration of the training until now.
    """

    # Seconds between checkpoints, at most.
    interval: ClassVar[float] = 600.0

    def __init__(self, folder: Path, stop: Stop, metrics: MetricsFile) -> None:
        self.folder, self.stop, self.metrics = folder, stop, metrics
        self.run: dict[str, Any] = {}
        self.cache: TokenCache | None = None
        # Rows that were logged before the checkpoint.
        self._logged = 0
        self._before, self._started = 0.0, time.monotonic()
        self._saved = self._started
        # Whether the state is that before a validation, and how long the one before took.
        self._validates, self._validation = False, 0.0

    @property
    def seconds(self) -> float:
        """Duration of the training until now, in all processes that had a part in it."""
        return self._before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """What goes on with the training: settings, threads, duration and number of the logged rows."""
        return {
            "run": self.run,
            "threads": torch.get_num_threads(),
            "seconds": self.seconds,
            "logged": self.metrics.rows,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._before, self._started = state_dict["seconds"], time.monotonic()
        self._logged = state_dict["logged"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log again what was logged before the checkpoint; its own file goes on."""
        self._saved = time.monotonic()
        if not self._logged:
            return
        self.metrics.restore(self._logged)
        others = [one for one in trainer.loggers if one is not self.metrics]
        for row in self.metrics.written():
            values = {name: float(value) for name, value in row.items() if value and name != "step"}
            for one in others:
                one.log_metrics(values, step=int(row["step"]))
        for one in others:
            one.save()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after a step; the last one of an epoch is followed by a validation."""
        # Gradients that are still accumulated are not saved.
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if whole and batch_idx + 1 < trainer.num_training_batches:
            self._save_in_epoch(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save before a validation that takes long."""
        self._validates = True
        self._save_in_epoch(trainer, self._validation)
        self._began = time.monotonic()

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Stop within a validation, which is repeated."""
        # Devices may have different numbers of batches, so that they cannot agree here.
        if self.stop.number is None or trainer.world_size > 1:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):
                # It has put the averages in place of the weights.
                callback.on_validation_epoch_end(trainer, pl_module)
        self.save(trainer, LAST)
        raise Interrupted(self.stop.number)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Save at the end of an epoch."""
        self._validates, self._validation = False, time.monotonic() - self._began
        # The best one first: where the training is stopped in between, it goes on before this validation.
        if pl_module.best_epoch == trainer.current_epoch + 1:
            self.save(trainer, BEST)
        self.save(trainer, LAST)
        self._end_if_asked(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let Lightning begin with a validation that is not over, from its first image, and repeat no other."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        nothing = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
        if self._validates:
            progress.update(total={**nothing, "ready": 1, "started": 1}, current=nothing, is_last_batch=False)
        else:
            # Lightning counts the batch at which a validation was stopped as begun, also after it was repeated.
            progress["total"] = dict.fromkeys(nothing, progress["total"]["completed"])

    def save(self, trainer: L.Trainer, name: str) -> None:
        """Save a checkpoint.

        Raises:
            IfamError: It cannot be written.
        """
        if self.cache is not None:
            self.cache.flush()
        trainer.save_checkpoint(self.folder / name)
        self._saved = time.monotonic()

    def _save_in_epoch(self, trainer: L.Trainer, ahead: float = 0.0) -> None:
        """Save if a checkpoint is due, in `ahead` seconds at the latest, or if the training is to stop."""
        due = time.monotonic() + ahead - self._saved >= self.interval
        if trainer.strategy.reduce_boolean_decision(due or self.stop.number is not None, all=False):
            self.save(trainer, LAST)
            self._end_if_asked(trainer)

    def _end_if_asked(self, trainer: L.Trainer) -> None:
        """End the training on all devices, if one has been asked to."""
        number = self.stop.number
        if trainer.strategy.reduce_boolean_decision(number is not None, all=False):
            raise Interrupted(number or SIGTERM)


# ------------------------------------------------------------------------------------------------- going on


def describe_run(
    model: Classifier, benchmark: Benchmark, config: TrainConfig, losses: LossConfig, device: str, world_size: int
) -> dict[str, Any]:
    """What the weights depend on, by name: a checkpoint of another run must not be gone on from.

    Args:
        model: The model.
        benchmark: The images.
        config: Settings of the training.
        losses: Weight of each loss term.
        device: Kind of the devices.
        world_size: Number of devices.
    """
    settings = {
        "method": model.method,
        "model": asdict(model.config),
        # With the settings that depend on the data.
        "train": {**asdict(config), **asdict(augmentation(config, benchmark))},
        "loss": asdict(losses),
        "device": device,
        "number of devices": world_size,
        "images": fingerprint(benchmark, ("train", "val")),
    }
    plain: dict[str, Any] = dict(flat(json.loads(json.dumps(settings, default=str))))
    return {name: value for name, value in plain.items() if name not in FREE}


def refuse_other_run(checkpoint: Mapping[str, Any], run: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with other settings or images.

    Args:
        checkpoint: The checkpoint.
        run: What is wanted, from `describe_run`.
        folder: Folder of the run, for the message.

    Raises:
        IfamError: A setting differs, which is named.
    """
    before = checkpoint["callbacks"][Checkpoints.__qualname__]["run"]
    for name in sorted({*before, *run}):
        was, now = before.get(name), run.get(name)
        if was == now:
            continue
        if name == "images":
            raise IfamError(
                f"{folder} has a training on images that have changed since; restore them, or start over with "
                f"--overwrite."
            )
        raise other_setting(folder, name, was, now)


def other_setting(folder: Path, name: str, was: Any, now: Any) -> IfamError:
    """The error for a setting that differs from that of the training in a folder."""
    return IfamError(
        f"{folder} has a training with {name} {was!r}, but now it is {now!r}; leave it as it was, or start over with "
        f"--overwrite."
    )


def find_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint of a run to go on from: the last one, or that of the best epoch where the last one is damaged.

    Args:
        folder: Folder of the run.

    Returns:
        The file and its content; None where there is no checkpoint.

    Raises:
        IfamError: There are damaged ones only.
    """
    damaged = []
    for path in (folder / FOLDER / LAST, folder / FOLDER / BEST):
        if not path.exists():
            continue
        try:
            return path, _read(path)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            damaged.append(f"{path} is damaged ({reason.rstrip('.')})")
            logger.warning("%s; an earlier checkpoint is tried.", damaged[-1])
    if damaged:
        raise IfamError(f"{damaged[0]}, and there is no other checkpoint; start over with --overwrite.")
    return None


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint whose bytes are those that were written."""
    with zipfile.ZipFile(path) as file:
        # PyTorch does not compare the checksums.
        if (wrong := file.testzip()) is not None:
            raise ValueError(f"the checksum of {wrong} is wrong")
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if "logged" not in checkpoint["callbacks"].get(Checkpoints.__qualname__, {}):
        raise ValueError("it is of an earlier version of ifam")
    return checkpoint
