"""Data loaders of training and validation images, distributed over devices, and their augmentation.

Order and augmentation of an epoch depend on the seed and on the number of the epoch only, so that a training can go on
in the middle of one.
"""

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ifam._typing import Float, Tensor
from ifam.config import TrainConfig
from ifam.data import Augmentation, Benchmark, TransformedDataset, collate
from ifam.interruption import follow_parent
from ifam.models.base import Classifier
from ifam.training.randomness import Stream, derived_seed, drawing_from

# Images in a batch of validation, as in `ifam evaluate`: no setting, so that none changes a figure.
VALIDATION_BATCH = 64


def validation_batches(benchmark: Benchmark) -> int:
    """Number of batches of validation images, over all devices."""
    return math.ceil(len(benchmark.split("val")) / VALIDATION_BATCH) if "val" in benchmark.splits else 0


class EpochSampler(Sampler[tuple[int, int]]):
    """Epoch and index of each training image in the order of the epoch: shuffled, or drawn with weights.

    Args:
        count: Number of training images.
        seed: Seed of the training.
        weights: Weights with which images are drawn, with replacement; None for every image once.
        rank: Number of this device.
        world_size: Number of devices, each of which has an equal share.

    Attributes:
        epoch: The epoch, from 0.
        start: Images of the share that are left out at its beginning, since they were trained on before.
    """

    def __init__(
        self, count: int, seed: int, weights: Float[Tensor, " N"] | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        self.count, self.seed, self.weights, self.rank, self.world_size = count, seed, weights, rank, world_size
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, Stream.ORDER, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.count, generator=generator)
        else:
            order = torch.multinomial(self.weights, self.count, replacement=True, generator=generator)
        share = order[self.rank : len(self) * self.world_size : self.world_size]
        return iter([(self.epoch, index) for index in share[self.start :].tolist()])

    def __len__(self) -> int:
        return self.count // self.world_size


class _AugmentedByEpoch(Dataset[dict[str, Any]]):
    """Training images by epoch and index, each with random numbers of its own."""

    def __init__(self, images: TransformedDataset, seed: int) -> None:
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        with drawing_from(derived_seed(self.seed, Stream.AUGMENTATION, *place)):
            return self.images[place[1]]


class _TrainLoader(DataLoader[Any]):
    """Batches of training images, which Lightning saves and restores in the middle of an epoch.

    Args:
        images: The images.
        sampler: Their order.
        progress: Returns the epoch and the number of its batches that were trained on; more may have been loaded.
        **options: Of PyTorch's loader.
    """

    def __init__(
        self, images: _AugmentedByEpoch, sampler: EpochSampler, progress: Callable[[], tuple[int, int]], **options: Any
    ) -> None:
        super().__init__(images, sampler=sampler, **options)
        self.order, self.progress = sampler, progress

    def state_dict(self) -> dict[str, int]:
        """Where the training is."""
        epoch, batches = self.progress()
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after these batches."""
        self.order.epoch, self.order.start = state["epoch"], state["batches"] * (self.batch_size or 1)


class Batches(L.LightningDataModule):
    """Data loaders of training and validation images, distributed over the devices.

    Args:
        model: The model, for size and normalization of the images.
        benchmark: The images.
        config: Settings of the training.
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
            "worker_init_fn": follow_parent,
        }

    def _rank_and_world_size(self) -> tuple[int, int]:
        """Rank of this process, and number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled images, or every group equally often for GroupDRO; each device loads its share of full batches."""
        images = TransformedDataset(
            self.benchmark.split("train"),
            self.model.image_size,
            self.model.normalization,
            augmentation(self.config, self.benchmark),
        )
        weights = None
        if self.config.group_dro is not None:
            # Algorithm 1 of arXiv 1911.08731 samples the group first: otherwise a rare one would hardly ever be in a
            # batch.
            groups = self.benchmark.groups("train")
            weights = (1 / groups.bincount()[groups]).double()
        seed = self.config.seed
        order = EpochSampler(len(images), seed, weights, *self._rank_and_world_size())
        # The presence loss, which is over the batch, would be meaningless for a last batch of one or two images.
        return _TrainLoader(_AugmentedByEpoch(images, seed), order, self._progress, drop_last=True, **self.shared)

    def _progress(self) -> tuple[int, int]:
        """The epoch, and the number of its batches that were trained on."""
        assert self.trainer is not None
        return self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1

    def val_dataloader(self) -> DataLoader[Any]:
        """Every image once, in whole batches of the same images however many devices there are.

        Which numbers a processor rounds, and so the last bit of an answer, depends on the size of its batch. All
        devices have the same number of batches, which Lightning expects; further ones have a single image, and
        `ifam.training.module.Training` leaves them out.
        """
        rank, world = self._rank_and_world_size()
        images = TransformedDataset(self.benchmark.split("val"), self.model.image_size, self.model.normalization)
        batches = list(torch.arange(len(images)).split(VALIDATION_BATCH))
        batches += [torch.zeros(1, dtype=torch.long)] * (-len(batches) % world)
        share = [batch.tolist() for batch in batches[rank::world]]
        return DataLoader(images, batch_sampler=share, **{**self.shared, "batch_size": 1})


def augmentation(config: TrainConfig, benchmark: Benchmark) -> Augmentation:
    """The augmentation of training images: as set, with the default of the data set for flips."""
    if config.augment == "none":
        return Augmentation(flip=False, crop=1.0)
    return Augmentation(flip=benchmark.mirrored if config.flip is None else config.flip, crop=config.crop)
