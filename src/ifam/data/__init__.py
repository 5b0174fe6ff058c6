"""Data sets by name. Nothing downloads by surprise."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ifam.data.base import (
    Augmentation,
    Benchmark,
    ImageDataset,
    Prepared,
    collate,
    denormalize,
    evenly_spaced,
    part_masks,
)
from ifam.data.benchmarks.cub import CubConfig, load_cub
from ifam.data.benchmarks.digits import Digits, DigitsConfig
from ifam.data.benchmarks.flowers102 import Flowers102Config, load_flowers102
from ifam.data.benchmarks.folder import FolderConfig, load_folder
from ifam.data.benchmarks.imagenet import ImagenetConfig, load_imagenet
from ifam.data.benchmarks.imagenet9 import Imagenet9Config, load_imagenet9
from ifam.data.benchmarks.imagenet_a import ImagenetAConfig, load_imagenet_a
from ifam.data.benchmarks.imagenet_r import ImagenetRConfig, load_imagenet_r
from ifam.data.benchmarks.imagenet_v2 import ImagenetV2Config, load_imagenet_v2
from ifam.data.benchmarks.metashift import MetashiftConfig, load_metashift
from ifam.data.benchmarks.nabirds import NabirdsConfig, load_nabirds
from ifam.data.benchmarks.part_imagenet import PartImagenetConfig, load_part_imagenet
from ifam.data.benchmarks.pondbirds import Pondbirds, PondbirdsConfig
from ifam.data.benchmarks.siim_acr import SiimAcrConfig, load_siim_acr
from ifam.data.benchmarks.turtles import TurtlesConfig, load_turtles
from ifam.data.benchmarks.waterbirds import WaterbirdsConfig, load_waterbirds
from ifam.errors import IfamError
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
    "Prepared",
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
    """The embedded benchmark, drawn now.

    Raises:
        IfamError: There is a root: it has no files.
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
    """Handwritten digits on the same backgrounds, drawn now.

    Raises:
        IfamError: There is a root: it has no files.
    """
    _refuse_root("digits", root)
    splits = {name: Digits(name, config) for name in ("train", "val", "test")}
    note = f"validation: {config.num_val} images of other digits, drawn like the training images, seed {config.seed}"
    return Benchmark("digits", splits, Digits.class_names, Digits.group_names, note, mirrored=False)


def _refuse_root(name: str, root: Path | None) -> None:
    if root is not None:
        raise IfamError(
            f"{name} is drawn and has no files, but {root} is given; leave it out, or name --benchmark folder."
        )


# Name on the command line -> (settings, loader).
BENCHMARKS: dict[str, tuple[type, Callable[[Path | None, Any], Benchmark]]] = {
    "pondbirds": (PondbirdsConfig, load_pondbirds),
    "digits": (DigitsConfig, load_digits),
    "folder": (FolderConfig, load_folder),
    "cub": (CubConfig, load_cub),
    "nabirds": (NabirdsConfig, load_nabirds),
    "waterbirds": (WaterbirdsConfig, load_waterbirds),
    "metashift": (MetashiftConfig, load_metashift),
    "siim_acr": (SiimAcrConfig, load_siim_acr),
    "imagenet": (ImagenetConfig, load_imagenet),
    "imagenet_a": (ImagenetAConfig, load_imagenet_a),
    "imagenet_r": (ImagenetRConfig, load_imagenet_r),
    "imagenet_v2": (ImagenetV2Config, load_imagenet_v2),
    "imagenet9": (Imagenet9Config, load_imagenet9),
    "part_imagenet": (PartImagenetConfig, load_part_imagenet),
    "flowers102": (Flowers102Config, load_flowers102),
    "turtles": (TurtlesConfig, load_turtles),
}


def load_benchmark(name: str, root: str | Path | None = None, options: Mapping[str, Any] | None = None) -> Benchmark:
    """A data set by name.

    Args:
        name: One of `BENCHMARKS`.
        root: Where its files are, for those that have files.
        options: Settings of this data set, by name.

    Raises:
        IfamError: The name or a setting is unknown, or the files are not as expected.
    """
    if name not in BENCHMARKS:
        raise IfamError(f"There is no benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}.")
    settings, load = BENCHMARKS[name]
    known = [field.name for field in fields(settings)]
    for key in options or {}:
        if key not in known:
            raise IfamError(f"{name} has no setting {key!r}; it has {', '.join(known)}.")
    return load(None if root is None else local_path(root), settings(**(options or {})))
