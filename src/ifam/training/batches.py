"""Batches of training and validation images, shared out among devices, and how training images vary."""

import os
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import DataLoader, RandomSampler, Subset, WeightedRandomSampler

from ifam.config import TrainConfig
from ifam.data import Augmentation, Benchmark, Prepared, collate
from ifam.models.base import Classifier


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
            self.model.normalization,
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
        images = Prepared(self.benchmark.split("val"), self.model.image_size, self.model.normalization)
        mine = images if world == 1 else Subset(images, range(rank, len(images), world))
        return DataLoader(mine, shuffle=False, **self.shared)


def augmentation(config: TrainConfig, benchmark: Benchmark) -> Augmentation:
    """What is done to training images: as set, and where that is left open, as suits the data set."""
    if config.augment == "none":
        return Augmentation(flip=False, crop=1.0)
    return Augmentation(flip=benchmark.mirrored if config.flip is None else config.flip, crop=config.crop)
