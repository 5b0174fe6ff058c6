"""Data sets by name. Nothing is downloaded automatically."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ifam.data.base import (
    Augmentation,
    Benchmark,
    ImageDataset,
    TransformedDataset,
    collate,
    denormalize,
    evenly_spaced,
    part_masks,
)
from ifam.data.benchmarks.cub import load_cub
from ifam.data.benchmarks.digits import Digits
from ifam.data.benchmarks.flowers102 import load_flowers102
from ifam.data.benchmarks.folder import load_folder
from ifam.data.benchmarks.imagenet import load_imagenet
from ifam.data.benchmarks.imagenet9 import load_imagenet9
from ifam.data.benchmarks.imagenet_a import load_imagenet_a
from ifam.data.benchmarks.imagenet_r import load_imagenet_r
from ifam.data.benchmarks.imagenet_v2 import load_imagenet_v2
from ifam.data.benchmarks.metashift import load_metashift
from ifam.data.benchmarks.nabirds import load_nabirds
from ifam.data.benchmarks.part_imagenet import load_part_imagenet
from ifam.data.benchmarks.pondbirds import Pondbirds
from ifam.data.benchmarks.siim_acr import load_siim_acr
from ifam.data.benchmarks.turtles import load_turtles
from ifam.data.benchmarks.waterbirds import load_waterbirds
from ifam.data.from_function import load_function
from ifam.data_config import DigitsConfig, FolderConfig, PondbirdsConfig, data_config
from ifam.errors import IfamError
from ifam.importing import names_function
from ifam.io import local_path

__all__ = [
    "BENCHMARKS",
    "Augmentation",
    "Benchmark",
    "Digits",
    "DigitsConfig",
    "FolderConfig",
    "ImageDataset",
    "Pondbirds",
    "PondbirdsConfig",
    "TransformedDataset",
    "collate",
    "denormalize",
    "evenly_spaced",
    "load_benchmark",
    "load_digits",
    "load_folder",
    "load_pondbirds",
    "part_masks",
]


def load_pondbirds(root: Path | None, config: PondbirdsConfig) -> Benchmark:
    """The embedded benchmark, which is drawn when it is loaded.

    Raises:
        IfamError: A root is given, although it has no files.
    """
    _refuse_root("pondbirds", root)
    splits = {name: Pondbirds(name, config) for name in ("train", "val", "test")}
    train = splits["train"]
    return Benchmark(
        "pondbirds",
        splits,
        tuple(train.class_names),
        tuple(train.group_names),
        f"validation: {config.num_val} images drawn like the training images, seed {config.seed}",
        part_names=train.part_names,
    )


def load_digits(root: Path | None, config: DigitsConfig) -> Benchmark:
    """Handwritten digits on the same backgrounds, drawn when they are loaded.

    Raises:
        IfamError: A root is given, although it has no files.
    """
    _refuse_root("digits", root)
    splits = {name: Digits(name, config) for name in ("train", "val", "test")}
    note = f"validation: {config.num_val} images of other digits, drawn like the training images, seed {config.seed}"
    return Benchmark("digits", splits, Digits.class_names, Digits.group_names, note, mirrored=False)


def _refuse_root(name: str, root: Path | None) -> None:
    if root is not None:
        raise IfamError(
            f"{name} is drawn and has no files, but {root} is given; leave it out, or use --benchmark folder."
        )


# The loader of each data set, by its name on the command line.
BENCHMARKS: dict[str, Callable[[Path | None, Any], Benchmark]] = {
    "pondbirds": load_pondbirds,
    "digits": load_digits,
    "folder": load_folder,
    "cub": load_cub,
    "nabirds": load_nabirds,
    "waterbirds": load_waterbirds,
    "metashift": load_metashift,
    "siim_acr": load_siim_acr,
    "imagenet": load_imagenet,
    "imagenet_a": load_imagenet_a,
    "imagenet_r": load_imagenet_r,
    "imagenet_v2": load_imagenet_v2,
    "imagenet9": load_imagenet9,
    "part_imagenet": load_part_imagenet,
    "flowers102": load_flowers102,
    "turtles": load_turtles,
}


def load_benchmark(name: str, root: str | Path | None = None, options: Mapping[str, Any] | None = None) -> Benchmark:
    """A data set by name.

    Args:
        name: One of `BENCHMARKS`, or `PACKAGE.MODULE:FUNCTION` for a function that returns a `Benchmark`: its code is
            run.
        root: Folder of its files, for data sets on disk.
        options: Settings of this data set, by name (see `ifam.data_config`); parameters of the function.

    Raises:
        IfamError: The name or a setting is unknown, or the files are not as expected.
    """
    config = data_config(name, options)
    folder = None if root is None else local_path(root)
    return load_function(name, folder, config) if names_function(name) else BENCHMARKS[name](folder, config)
