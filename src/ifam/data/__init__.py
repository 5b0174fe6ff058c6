"""Data sets by name. Nothing downloads by surprise."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ifam.data.base import Benchmark, Examples, Prepared, collate, denormalise
from ifam.data.folder import FolderConfig, load_folder
from ifam.data.synthetic import Pondbirds, PondbirdsConfig
from ifam.errors import IfamError

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Examples",
    "FolderConfig",
    "Pondbirds",
    "PondbirdsConfig",
    "Prepared",
    "collate",
    "denormalise",
    "load_benchmark",
    "load_folder",
    "load_pondbirds",
]


def load_pondbirds(root: Path | None, config: PondbirdsConfig) -> Benchmark:
    """The embedded benchmark, drawn now; it has no files, so `root` is not used."""
    splits = {name: Pondbirds(name, config) for name in ("train", "val", "test")}
    train = splits["train"]
    return Benchmark(
        "pondbirds",
        splits,
        tuple(train.class_names),
        tuple(train.group_names),
        f"validation: {config.num_val} images drawn like the training images, seed {config.seed}",
    )


# Name on the command line -> (settings, loader).
BENCHMARKS: dict[str, tuple[type, Callable[[Path | None, Any], Benchmark]]] = {
    "pondbirds": (PondbirdsConfig, load_pondbirds),
    "folder": (FolderConfig, load_folder),
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
    return load(None if root is None else Path(root), settings(**(options or {})))
