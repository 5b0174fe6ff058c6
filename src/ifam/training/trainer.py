"""Lightning's trainer with our settings: devices, precision, loggers and signals."""

import logging
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger

from ifam.config import LossConfig, TrainConfig
from ifam.data import Benchmark
from ifam.errors import IfamError
from ifam.interruption import handlers
from ifam.io import local_path
from ifam.launch import launched
from ifam.training.resume import CheckpointFiles

logger = logging.getLogger(__name__)


def build_trainer(
    config: TrainConfig,
    losses: LossConfig | None = None,
    callbacks: Sequence[L.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> L.Trainer:
    """Lightning's trainer for these settings, on the processes that `torchrun` or `srun` has started, if any.

    Raises:
        IfamError: A setting is invalid, or does not fit to these processes.
    """
    config = on_processes(config)
    trainer = _lightning(config, callbacks, loggers, config.strategy)
    unused = losses is not None and (config.selector_epochs > 0 or _may_leave_unused(losses))
    if unused and trainer.world_size > 1 and config.strategy in ("auto", "ddp"):
        # In epochs of the selector alone, and with a term of weight 0, parameters may have no gradient, which the other
        # devices would wait for.
        trainer = _lightning(config, callbacks, loggers, "ddp_find_unused_parameters_true")
    return trainer


def on_processes(config: TrainConfig) -> TrainConfig:
    """The settings, with the number of devices and machines that other programs have started processes for.

    With fewer devices than processes, each process would train alone.

    Raises:
        IfamError: The settings do not fit to these processes, or a variable that Slurm sets is missing, or the strategy
            cannot be used.
    """
    if "fsdp" in config.strategy and (config.accelerator == "cpu" or not torch.cuda.is_available()):
        raise IfamError(
            f"train.strategy is {config.strategy!r}, which Lightning and PyTorch run on GPUs only; use 'ddp' (or "
            f"'auto') on processors."
        )
    if "fsdp" in config.strategy and config.clip_norm:
        raise IfamError(
            f"train.clip_norm is {config.clip_norm:g}, but Lightning cannot clip the norm of gradients with the "
            f"strategy {config.strategy!r}; set --train.clip_norm 0, or use 'ddp'."
        )
    launch = launched()
    if launch is None:
        return config
    for name, value, usual in (("devices", launch.per_node, "auto"), ("num_nodes", launch.nodes, 1)):
        given = getattr(config, name)
        if str(given) not in (str(value), str(usual), "-1"):
            raise IfamError(
                f"train.{name} is {given}, but {launch.program} has started {launch.per_node} process"
                f"{'es' * (launch.per_node > 1)} on each of {launch.nodes} machine{'s' * (launch.nodes > 1)}, one for "
                f"each device; leave train.{name} out."
            )
    if config.accelerator != "cpu" and torch.cuda.device_count() > launch.per_node:
        logger.warning(
            "%d GPUs are visible, but %s has started %d process%s on each machine, each of which uses one.",
            *(torch.cuda.device_count(), launch.program, launch.per_node, "es" * (launch.per_node > 1)),
        )
    return replace(config, devices=launch.per_node, num_nodes=launch.nodes)


@contextmanager
def released(trainer: L.Trainer) -> Iterator[L.Trainer]:
    """Use a trainer within the block, at whose end all that it refers to may be freed.

    The trainer and its loops refer to each other, and its metrics to the strategy. So model, optimizer and images would
    stay until Python's collector runs, which few new objects give no occasion for.
    """
    try:
        yield trainer
    finally:
        vars(trainer.strategy).clear()
        vars(trainer).clear()


def _lightning(
    config: TrainConfig, callbacks: Sequence[L.Callback], loggers: Sequence[Logger], strategy: str
) -> L.Trainer:
    plugins: list[Any] = [CheckpointFiles()]
    if "SLURM_NTASKS" in os.environ and launched() is None:
        # A single task of Slurm may start processes for its devices, for which Lightning would wait otherwise.
        plugins.append(LightningEnvironment())
    try:
        trainer = L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=strategy,
            # Lightning's own would repeat images where they cannot be distributed evenly.
            use_distributed_sampler=False,
            precision=config.precision,  # type: ignore[arg-type]
            max_epochs=config.epochs,
            gradient_clip_val=config.clip_norm or None,
            accumulate_grad_batches=config.accumulate,
            callbacks=[*callbacks],
            logger=[*loggers],
            plugins=plugins,
            enable_checkpointing=bool(callbacks),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise IfamError(
            f"Invalid trainer settings ({' '.join(str(error).split()).rstrip('.')}); change --train.precision, "
            f"--train.accelerator, --train.devices or --train.strategy."
        ) from error
    if config.precision.startswith("16") and trainer.precision != "16-mixed":
        # Lightning would use bf16 instead.
        raise IfamError(
            f"train.precision is {config.precision!r}, which CPUs do not support; train in 'bf16-mixed', or on a GPU."
        )
    return trainer


def _may_leave_unused(losses: LossConfig) -> bool:
    """Whether a term is off; concentration, which is off by default, uses the same inputs as other terms."""
    return any(weight == 0 for name, weight in asdict(losses).items() if name != "concentration")


def check_devices(benchmark: Benchmark, config: TrainConfig, world_size: int) -> None:
    """Refuse more devices than there are training images for."""
    count = len(benchmark.split("train"))
    if count // world_size < config.batch_size:
        each = count // world_size
        smaller = f", or --train.batch_size {each} or less" if each else ""
        raise IfamError(
            f"{benchmark.name} has {count} training images, on {world_size} devices {each} each, fewer than a batch of "
            f"{config.batch_size}; use fewer devices{smaller}."
        )


class KeepSignals(L.Callback):
    """Keeps the handlers of signals: Lightning's would end the training as if it were complete."""

    def __init__(self) -> None:
        self.handlers = handlers()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the handlers that Lightning has replaced."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


@contextmanager
def run_folder(folder: str | Path | None) -> Iterator[Path]:
    """The given folder, or a temporary one."""
    if folder is not None:
        path = local_path(folder)
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's advice on workers and hardware."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for pattern in (
            ".*does not have many workers.*",
            ".*GPU available but not used.*",
            ".*AMP with fp16 is not supported on CPU.*",  # refused with our own message
            ".*num_workers.*",
            # Frozen modules stay in evaluation mode.
            ".*module.s. in eval mode at the start of training.*",
            # The memory layout of gradients that devices exchange.
            ".*Grad strides do not match bucket view strides.*",
            # Lightning uses a name that PyTorch has deprecated.
            ".*isinstance.treespec, LeafSpec.*",
            # In an interactive job.
            ".*`srun` command is available on your system but is not used.*",
            # A run replaces an earlier one in the same folder.
            ".*directory .* exists and is not empty.*",
        ):
            warnings.filterwarnings("ignore", pattern)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
