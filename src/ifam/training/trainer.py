"""Lightning's trainer with our settings: devices, precision, loggers and signals."""

import logging
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning_utilities.core.imports import RequirementCache

from ifam.config import LossConfig, TrainConfig
from ifam.data import Benchmark
from ifam.errors import IfamError
from ifam.interruption import handlers
from ifam.io import local_path
from ifam.training.resume import CheckpointFiles

logger = logging.getLogger(__name__)


def build_trainer(
    config: TrainConfig,
    losses: LossConfig | None = None,
    callbacks: Sequence[L.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> L.Trainer:
    """Lightning's trainer for these settings."""
    _check_slurm()
    trainer = _lightning(config, callbacks, loggers, config.strategy)
    unused = losses is not None and (config.selector_epochs > 0 or _may_leave_unused(losses))
    if unused and trainer.world_size > 1 and config.strategy in ("auto", "ddp"):
        # In epochs of the selector alone, and with a term of weight 0, parameters may have no gradient, which the other
        # devices would wait for.
        trainer = _lightning(config, callbacks, loggers, "ddp_find_unused_parameters_true")
    return trainer


def _lightning(
    config: TrainConfig, callbacks: Sequence[L.Callback], loggers: Sequence[Logger], strategy: str
) -> L.Trainer:
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
            plugins=[CheckpointFiles()],
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


def tensorboard(folder: Path) -> list[Logger]:
    """A logger for TensorBoard, if it is installed (`pip install 'ifam[tensorboard]'`).

    A training that goes on logs everything again: TensorBoard forgets what was logged from step 0 on.
    """
    if not RequirementCache("tensorboard"):
        return []
    return [TensorBoardLogger(folder, name="logs", version="", purge_step=0)]


def _check_slurm() -> None:
    """Refuse an incomplete set of SLURM variables, since Lightning would need the others."""
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID") if name not in os.environ]
    if "SLURM_NTASKS" in os.environ and missing and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        raise IfamError(
            f"SLURM_NTASKS is set in the environment, but {missing[0]} is not; start the training with `srun`, or "
            f"unset SLURM_NTASKS."
        )


def check_devices(benchmark: Benchmark, config: TrainConfig, world_size: int) -> None:
    """Refuse more devices than there are images for."""
    count = len(benchmark.split("train"))
    if count // world_size < config.batch_size:
        each = count // world_size
        smaller = f", or --train.batch_size {each} or less" if each else ""
        raise IfamError(
            f"{benchmark.name} has {count} training images, on {world_size} devices {each} each, fewer than a batch of "
            f"{config.batch_size}; use fewer devices{smaller}."
        )
    if len(benchmark.split("val")) < world_size:
        raise IfamError(
            f"{benchmark.name} has {len(benchmark.split('val'))} validation images for {world_size} devices; use fewer."
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
