"""Data loaders of training and validation images, distributed over devices, and their augmentation."""

import os
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import DataLoader, RandomSampler, Subset, WeightedRandomSampler

from ifam.config import TrainConfig
from ifam.data import Augmentation, Benchmark, TransformedDataset, collate
from ifam.models.base import Classifier


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
        }

    def _rank_and_world_size(self) -> tuple[int, int]:
        """Rank of this process, and number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled images, or every group equally often for GroupDRO; each device loads its share of full batches."""
        rank, world = self._rank_and_world_size()
        images = TransformedDataset(
            self.benchmark.split("train"),
            self.model.image_size,
            self.model.normalization,
            augmentation(self.config, self.benchmark),
        )
        order: dict[str, Any] = {"shuffle": True}
        if self.config.group_dro is not None:
            # Algorithm 1 of arXiv 1911.08731 samples the group first: otherwise a rare one would hardly ever be in a
            # batch.
            groups = self.benchmark.groups("train")
            order = {"sampler": WeightedRandomSampler((1 / groups.bincount()[groups]).tolist(), len(groups))}
        if world > 1:
            sampler = order.get("sampler") or RandomSampler(images)
            share = DistributedSamplerWrapper(sampler, num_replicas=world, rank=rank, shuffle=False, drop_last=True)
            order = {"sampler": share}
        # The presence loss, which is over the batch, would be meaningless for a last batch of one or two images.
        return DataLoader(images, drop_last=True, **order, **self.shared)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every image once, on one of the devices."""
        rank, world = self._rank_and_world_size()
        images = TransformedDataset(self.benchmark.split("val"), self.model.image_size, self.model.normalization)
        share = images if world == 1 else Subset(images, range(rank, len(images), world))
        return DataLoader(share, shuffle=False, **self.shared)


def augmentation(config: TrainConfig, benchmark: Benchmark) -> Augmentation:
    """The augmentation of training images: as set, with the default of the data set for flips."""
    if config.augment == "none":
        return Augmentation(flip=False, crop=1.0)
    return Augmentation(flip=benchmark.mirrored if config.flip is None else config.flip, crop=config.crop)
