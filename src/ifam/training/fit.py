"""Joint training of selector and predictor: one LightningModule for every model of this package."""

import logging
import math
import os
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning_utilities.core.imports import RequirementCache
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, Subset, WeightedRandomSampler
from torchmetrics import MeanMetric

from ifam._typing import Tensor
from ifam.backbones.backbone import Backbone
from ifam.config import LossConfig, TrainConfig
from ifam.data import Augmentation, Benchmark, Prepared, collate
from ifam.distributed import ended_together
from ifam.errors import IfamError
from ifam.evaluation.metrics import GroupAccuracy, MaskIoU
from ifam.interruption import handlers
from ifam.io import ensure_space, local_path
from ifam.models.base import Classifier, PartClassifier
from ifam.models.masking import patch_mask
from ifam.progress import Progress
from ifam.training.affine import sample_affine, transform
from ifam.training.group_dro import group_dro
from ifam.training.losses import all_terms, classification, weighted_sum
from ifam.training.optimization import adamw, learning_rate_factor, normalised_weight_decay, parameter_groups
from ifam.types import Batch, Output

logger = logging.getLogger(__name__)


class Training(L.LightningModule):
    """One step of training, for a two-stage model or a baseline.

    Args:
        model: What is trained.
        config: How.
        losses: Weight of each loss term.
        benchmark: Names of classes and groups, for the validation metrics.
        num_images: Training images, for the normalised weight decay.
    """

    def __init__(
        self, model: Classifier, config: TrainConfig, losses: LossConfig, benchmark: Benchmark, num_images: int
    ) -> None:
        super().__init__()
        self.model, self.config, self.losses, self.num_images = model, config, losses, num_images
        self.groups = parameter_groups(model, config)
        for group in self.groups:
            for parameter in group.parameters.values():
                parameter.requires_grad_(group.trained)
        for backbone in (module for module in model.modules() if isinstance(module, Backbone)):
            backbone.vit.set_grad_checkpointing(config.checkpointing)
            if config.compile:
                backbone.compile_blocks()
        self.accuracy = GroupAccuracy(len(benchmark.group_names))
        self.mask_iou = MaskIoU()
        self.val_loss, self.visible = MeanMetric(), MeanMetric()
        self.best: tuple[float, ...] = ()
        if config.group_dro is not None:
            there = benchmark.groups("train").bincount(minlength=len(benchmark.group_names)) > 0
            # A buffer: saved with the checkpoints, and moved with the model.
            self.group_weights: Tensor
            self.register_buffer("group_weights", there / there.sum())

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The weighted sum of all loss terms, each logged by name."""
        terms = self.terms(batch)
        weights = asdict(self.losses)
        total = weighted_sum(terms, {name: weights[name] for name in terms})
        if not bool(total.isfinite()):
            wrong = ", ".join(name for name, value in terms.items() if not bool(value.isfinite()))
            raise IfamError(
                f"The loss is no longer finite in epoch {self.current_epoch + 1} ({wrong}); lower --train.base_lr or "
                f"a --train.*_lr_factor."
            )
        for name, value in {**terms, "total": total}.items():
            self.log(
                f"train/{name}",
                value.detach(),
                on_step=False,
                on_epoch=True,
                batch_size=len(batch.images),
                sync_dist=True,
            )
        return total

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss term of a batch, unweighted."""
        if not isinstance(self.model, PartClassifier):
            judged = self.model.judged(batch)
            terms = {name: classification(logits, batch.labels) for name, logits in judged.items()}
            return terms | self._robust("classification", judged["classification"], batch)
        model, images, size = self.model, batch.images, self.model.image_size
        moved: dict[str, Any] = {}
        if self.losses.equivariance != 0:
            # Only the selector is equivariant, so only the selector sees the transformed images: beside the others,
            # in one pass through its trunk, and no further than to the part maps.
            affine = sample_affine(size)
            patches, others = model.selector.patches(torch.cat([images, transform(images, affine)])).chunk(2)
            moved = {"equivariant_maps": model.selector.part_maps(others), "affine": affine, "image_size": size}
        else:
            patches = model.selector.patches(images)
        out = model.conclude(images, model.selector.select(patches))
        terms = all_terms(out.part_maps, out.part_features, out.logits, out.selector_logits, batch.labels, **moved)
        if out.answers_once:
            # The same answer is not judged twice.
            terms.pop("classification")
        name = "selector_classification" if out.answers_once else "classification"
        return terms | self._robust(name, out.logits, batch)

    def _robust(self, name: str, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The answer's term for the worst group, in the place of that for the average; none where not asked for."""
        if self.config.group_dro is None:
            return {}
        assert batch.groups is not None
        losses = F.cross_entropy(logits.float(), batch.labels, reduction="none")
        loss, weights = group_dro(losses, batch.groups, self.group_weights, self.config.group_dro)
        self.group_weights.copy_(weights)
        return {name: loss}

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Count a batch of validation images."""
        out = self.model.answer(batch)
        logits = out.logits if isinstance(out, Output) else out
        assert batch.groups is not None
        self.accuracy.update(logits.float(), batch.labels, batch.groups)
        size = len(batch.images)
        self.val_loss.update(classification(logits, batch.labels), size)
        if isinstance(out, Output):
            self.visible.update(out.visible_fraction)
            if batch.masks is not None:
                truth = patch_mask(batch.masks, (out.mask.shape[1], out.mask.shape[2]))
                self.mask_iou.update(out.mask, truth)

    def on_validation_epoch_end(self) -> None:
        """Log accuracy, worst group, loss and mask IoU, and whether this epoch is the best so far."""
        self.accuracy.compute()
        figures = {"accuracy": self.accuracy.average(), "worst_group": self.accuracy.worst()}
        loss = float(self.val_loss.compute())
        for name, value in {**figures, "loss": loss}.items():
            self.log(f"val/{name}", value, sync_dist=True)
        # Small validation groups tie often. The checkpoint is kept whose number is the highest: that of the best epoch.
        other = figures["worst_group" if self.config.monitor == "accuracy" else "accuracy"]
        rank = (figures[self.config.monitor], other, -loss)
        self.log("val/choice", float(self.current_epoch + 1 if self.is_best(rank) else 0), sync_dist=True)
        if self.visible.update_called:
            self.log("val/visible_fraction", self.visible.compute(), sync_dist=True)
        if self.mask_iou.known():
            self.log("val/mask_iou", self.mask_iou.compute(), sync_dist=True)
        self.accuracy.reset()
        self.mask_iou.reset()
        self.val_loss.reset()
        self.visible.reset()

    def is_best(self, rank: tuple[float, ...]) -> bool:
        """Whether an epoch is at least as good as all before it: its figures count in order, the higher the better."""
        if rank < self.best:
            return False
        self.best = rank
        return True

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: int | float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the norm of the gradient."""
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            # Lightning's own clipping refuses fused optimizers in mixed precision, because of float16's scaler.
            nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        """AdamW over the named groups, and its learning rate step by step."""
        config = self.config
        batch = config.batch_size * config.accumulate * self.trainer.world_size
        rate = config.base_lr * math.sqrt(batch / 16)
        decay = normalised_weight_decay(config.weight_decay, self.num_images, batch, config.epochs)
        optimizer = adamw(self.groups, config, rate, decay)
        steps = max(1, round(self.trainer.estimated_stepping_batches / config.epochs))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class FitResult:
    """What training leaves behind.

    Attributes:
        history: For each epoch, every logged value by name.
        seconds: How long it took.
        best_epoch: Epoch (counted from 1) whose weights were kept, chosen on validation data.
    """

    history: list[dict[str, float]]
    seconds: float
    best_epoch: int


class _History(L.Callback):
    """Keeps every epoch's logged values."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def fit(
    model: Classifier,
    benchmark: Benchmark,
    config: TrainConfig,
    losses: LossConfig | None = None,
    folder: str | Path | None = None,
    *,
    label: str = "training",
) -> FitResult:
    """Train a model on a benchmark's training images; it is left with the best weights by validation.

    Args:
        model: The model, of any method; changed in place.
        benchmark: Images.
        config: How to train.
        losses: Weight of each loss term.
        folder: Where checkpoints and logs go; a temporary folder where None.
        label: What the progress bar says.

    Returns:
        The training curves.

    Raises:
        IfamError: There are fewer images than a batch has, true masks are missing that the model needs, or the loss is
            no longer finite; or the disk is full.
    """
    check(benchmark, config, model)
    seed_everything(config.seed)
    module = Training(model, config, losses or LossConfig(), benchmark, len(benchmark.split("train")))
    with _quiet(), _run_folder(folder) as path:
        # The model, and two checkpoints with two moments of each trained weight.
        sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
        ensure_space(path, sum(3 * size + 4 * size * trained for size, trained in sizes))
        history = _History()
        best = ModelCheckpoint(
            path / "checkpoints",
            filename="best",
            monitor="val/choice",
            mode="max",
            enable_version_counter=False,
        )
        last = ModelCheckpoint(path / "checkpoints", filename="last", enable_version_counter=False)
        callbacks: list[L.Callback] = [best, last, history, Progress(label)]
        if config.ema_decay is not None:
            callbacks.append(EMAWeightAveraging(decay=config.ema_decay))
        callbacks.append(_KeepSignals())
        trainer = _trainer(config, losses or LossConfig(), callbacks, path)
        logger.info("Augmentation: %s.", augmentation(config, benchmark))
        # Lightning keeps the mode it finds, and a model that was loaded or trained before is in evaluation mode.
        module.train()
        started = time.perf_counter()
        try:
            with ended_together(trainer.strategy.launcher):
                trainer.fit(module, datamodule=Batches(model, benchmark, config))
        except OSError as error:
            raise IfamError(f"Training cannot go on ({error.strerror or error}); its files are in {path}.") from error
        seconds = time.perf_counter() - started
        checkpoint = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
        # Several devices read from the folder of the first, which may be one that goes away.
        trainer.strategy.barrier()
        weights = {k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")}
        model.load_state_dict(weights)
    model.eval()
    return FitResult(history.rows, seconds, int(checkpoint["epoch"]) + 1)


class _KeepSignals(L.Callback):
    """Keeps what SIGINT and SIGTERM did before the training: Lightning would end it as if it were complete."""

    def __init__(self) -> None:
        self.handlers = handlers()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the handlers back that Lightning has replaced."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


def _check_devices(benchmark: Benchmark, config: TrainConfig, world_size: int) -> None:
    """Refuse more devices than the images are enough for."""
    count = len(benchmark.split("train"))
    if count // world_size < config.batch_size:
        raise IfamError(
            f"{benchmark.name} has {count} training images, on {world_size} devices {count // world_size} each, which "
            f"is fewer than a batch of {config.batch_size}; use fewer devices, or --train.batch_size "
            f"{max(1, count // world_size)} or less."
        )
    if len(benchmark.split("val")) < world_size:
        raise IfamError(
            f"{benchmark.name} has {len(benchmark.split('val'))} validation images for {world_size} devices; use fewer."
        )


def _check_slurm() -> None:
    """Refuse variables of SLURM that are half set: Lightning would look for the others."""
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID") if name not in os.environ]
    if "SLURM_NTASKS" in os.environ and missing and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        raise IfamError(
            f"SLURM_NTASKS is set in the environment, but {missing[0]} is not; start the training with `srun`, or "
            f"unset SLURM_NTASKS."
        )


def _trainer(
    config: TrainConfig,
    losses: LossConfig | None = None,
    callbacks: Sequence[L.Callback] = (),
    folder: Path | None = None,
) -> L.Trainer:
    """Lightning's trainer for these settings; without a folder, it logs nothing."""
    _check_slurm()
    trainer = _lightning(config, callbacks, folder, config.strategy)
    if losses and trainer.world_size > 1 and config.strategy in ("auto", "ddp") and _may_leave_unused(losses):
        # A term of weight 0 may leave parameters without a gradient, which the other devices would wait for.
        trainer = _lightning(config, callbacks, folder, "ddp_find_unused_parameters_true")
    return trainer


def _may_leave_unused(losses: LossConfig) -> bool:
    """Whether a term is off; that of concentration is by default, and reads nothing that others do not."""
    return any(weight == 0 for name, weight in asdict(losses).items() if name != "concentration")


def _lightning(config: TrainConfig, callbacks: Sequence[L.Callback], folder: Path | None, strategy: str) -> L.Trainer:
    try:
        trainer = L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=strategy,
            # Lightning's own would show images twice where they cannot be shared out evenly.
            use_distributed_sampler=False,
            precision=config.precision,  # type: ignore[arg-type]
            max_epochs=config.epochs,
            gradient_clip_val=config.clip_norm or None,
            accumulate_grad_batches=config.accumulate,
            callbacks=[*callbacks],
            logger=_loggers(folder) if folder else False,
            enable_checkpointing=bool(callbacks),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (ValueError, MisconfigurationException) as error:
        raise IfamError(
            f"Lightning cannot train so ({' '.join(str(error).split()).rstrip('.')}); change --train.precision, "
            f"--train.accelerator, --train.devices or --train.strategy."
        ) from error
    if config.precision.startswith("16") and trainer.precision != "16-mixed":
        # Lightning would take bf16 instead.
        raise IfamError(
            f"train.precision is {config.precision!r}, which processors do not know; train in 'bf16-mixed', "
            "or on a GPU."
        )
    return trainer


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch, loader workers included."""
    L.seed_everything(seed, workers=True, verbose=False)


def check(benchmark: Benchmark, config: TrainConfig, model: Classifier | None = None) -> None:
    """Refuse settings with which nothing can be trained.

    Args:
        benchmark: Images.
        config: How to train.
        model: What to train, where it is known already.

    Raises:
        IfamError: A setting is impossible, there are fewer images than a batch has, or one has not the true mask that
            the model needs.
    """
    if config.group_dro is not None:
        benchmark.groups("train")
    if config.compile and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise IfamError(
            "train.compile needs a C++ compiler, and there is none on the path; install one (such as g++), name it in "
            "the environment variable CXX, or leave compile off."
        )
    for split in ("train", "val"):
        if split not in benchmark.splits:
            raise IfamError(
                f"{benchmark.name} has no split {split!r}, but images to train on and others to validate with are "
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
    with _quiet():
        devices = _trainer(config).world_size
    _check_devices(benchmark, config, devices)


class Batches(L.LightningDataModule):
    """Batches of training and validation images, shared out among the devices.

    Args:
        model: What is trained, for size and normalization of the images.
        benchmark: The images.
        config: How to train.
    """

    def __init__(self, model: Classifier, benchmark: Benchmark, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.benchmark, self.config = model, benchmark, config
        gpu = torch.cuda.is_available() and config.accelerator != "cpu"
        workers = config.workers
        if workers is None:
            workers = min(8, os.cpu_count() or 1) if gpu else 0
        self.shared: dict[str, Any] = {
            "batch_size": config.batch_size,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": gpu,
            "collate_fn": collate,
        }

    def _place(self) -> tuple[int, int]:
        """Number of this process, and of processes in all."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled images, or every group equally often for GroupDRO; each device takes its share of whole batches."""
        rank, world = self._place()
        images = Prepared(
            self.benchmark.split("train"),
            self.model.image_size,
            self.model.normalisation,
            augmentation(self.config, self.benchmark),
        )
        drawn: dict[str, Any] = {"shuffle": True}
        if self.config.group_dro is not None:
            # Algorithm 1 of arXiv 1911.08731 draws the group first: a rare one would hardly ever be in a batch.
            groups = self.benchmark.groups("train")
            drawn = {"sampler": WeightedRandomSampler((1 / groups.bincount()[groups]).tolist(), len(groups))}
        if world > 1:
            every = drawn.get("sampler") or RandomSampler(images)
            share = DistributedSamplerWrapper(every, num_replicas=world, rank=rank, shuffle=False, drop_last=True)
            drawn = {"sampler": share}
        # A last batch of one or two images would make the batch-wide presence loss meaningless.
        return DataLoader(images, drop_last=True, **drawn, **self.shared)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every image once, on one of the devices."""
        rank, world = self._place()
        images = Prepared(self.benchmark.split("val"), self.model.image_size, self.model.normalisation)
        mine = images if world == 1 else Subset(images, range(rank, len(images), world))
        return DataLoader(mine, shuffle=False, **self.shared)


def augmentation(config: TrainConfig, benchmark: Benchmark) -> Augmentation:
    """What is done to training images: as set, and where that is left open, as suits the data set."""
    if config.augment == "none":
        return Augmentation(flip=False, crop=1.0)
    return Augmentation(flip=benchmark.mirrored if config.flip is None else config.flip, crop=config.crop)


def _loggers(folder: Path) -> list[Logger]:
    """CSV always, TensorBoard where it is installed (`pip install 'ifam[tensorboard]'`)."""
    loggers: list[Logger] = [CSVLogger(folder, name="logs", version="")]
    if RequirementCache("tensorboard"):
        loggers.append(TensorBoardLogger(folder, name="logs", version=""))
    return loggers


@contextmanager
def _run_folder(folder: str | Path | None) -> Iterator[Path]:
    """The folder given, or one that goes away."""
    if folder is not None:
        path = local_path(folder)
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice on workers and hardware is not about the user's work."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for pattern in (
            ".*does not have many workers.*",
            ".*GPU available but not used.*",
            ".*AMP with fp16 is not supported on CPU.*",  # refused in a sentence of our own
            ".*num_workers.*",
            # The order in memory of gradients that devices exchange.
            ".*Grad strides do not match bucket view strides.*",
            # Lightning's own use of a name that PyTorch has renamed.
            ".*isinstance.treespec, LeafSpec.*",
            # A run in the folder of an earlier one takes its place.
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
