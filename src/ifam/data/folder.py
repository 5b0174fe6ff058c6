"""A user's own images: `root/class/image`, or the same below `root/train`, `root/val` and `root/test`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ifam.data.base import Benchmark, Examples
from ifam.data.images import EXTENSIONS, UNREADABLE, load_image
from ifam.errors import IfamError


@dataclass(frozen=True)
class FolderConfig:
    """How to read a folder of images.

    Attributes:
        val_fraction: Share of the training images set aside for validation, class by class, where the folder has
            no `val` of its own.
        seed: Seed of that choice.
        skip_bad: Leave out files that are no images, with a notice, instead of stopping.
    """

    val_fraction: float = 0.2
    seed: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        share, seed = self.val_fraction, self.seed
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise IfamError(f"folder: val_fraction={share!r} is not possible; give a share between 0 and 1.")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise IfamError(f"folder: seed={seed!r} is not possible; give a whole number, zero or more.")
        if not isinstance(self.skip_bad, bool):
            raise IfamError(f"folder: skip_bad={self.skip_bad!r} is not possible; give true or false.")


class ImageFiles:
    """Images on disk with their labels.

    Args:
        paths: The files.
        labels: Class of each file.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int]) -> None:
        self.paths, self.labels = list(paths), list(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": load_image(self.paths[index]), "label": self.labels[index]}


def load_folder(root: Path | None, config: FolderConfig) -> Benchmark:
    """Any folder of images sorted by class.

    Args:
        root: The folder. Its sub-folders are the classes; or it holds `train` (and `val`, `test`) that do.
        config: How to read it.

    Raises:
        IfamError: The folder is missing, has fewer than two classes, a class without an image, or a damaged file.
    """
    if root is None:
        raise IfamError("The benchmark 'folder' needs to know where the images are; give --root DIR.")
    if not root.is_dir():
        raise IfamError(f"There is no folder {root}; give one whose sub-folders are the classes (--root DIR).")
    names = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    sorted_by_split = "train" in names
    train_root = root / "train" if sorted_by_split else root
    classes = _class_names(train_root)
    splits: dict[str, Examples] = {}
    note = "validation images as found in val/"
    for name in names if sorted_by_split else []:
        splits[name] = _read(root / name, classes, config)
    if not sorted_by_split:
        splits["train"] = _read(root, classes, config)
    if "val" not in splits:
        splits["train"], splits["val"] = _cut(splits["train"], classes, config)
        note = f"validation: {config.val_fraction:.0%} of the training images, by class, seed {config.seed}"
    return Benchmark("folder", splits, classes, classes, note)


def _class_names(root: Path) -> tuple[str, ...]:
    classes = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not _is_litter(p)))
    if len(classes) < 2:
        raise IfamError(
            f"{root} has {len(classes)} sub-folder{'s' if len(classes) != 1 else ''}, but one for each of at least "
            f"two classes is expected; sort the images into {root / 'CLASS'}/."
        )
    return classes


def _read(root: Path, classes: tuple[str, ...], config: FolderConfig) -> ImageFiles:
    """Every image of every class, each checked to be one (its header, which is quick)."""
    unknown = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name not in classes and not _is_litter(p))
    if unknown:
        raise IfamError(f"{root} has a class {unknown[0]!r} that the training images lack; move or remove it.")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            p
            for p in (root / name).rglob("*")
            if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") and _is_image(p, config)
        )
        if not found:
            raise IfamError(
                f"The class folder {root / name} holds no image; add some "
                f"({', '.join(sorted(EXTENSIONS))}) or remove the folder."
            )
        paths += found
        labels += [label] * len(found)
    return ImageFiles(paths, labels)


def _is_litter(folder: Path) -> bool:
    """Whether a folder is what programs leave behind, and no class."""
    return folder.name.startswith(".") or folder.name == "__MACOSX"


def _is_image(path: Path, config: FolderConfig) -> bool:
    try:
        with Image.open(path) as image:
            # Only decoding finds a file that was cut off; it takes time, so only those pay who ask for it.
            image.load() if config.skip_bad else image.verify()
    except UNREADABLE as error:
        if config.skip_bad:
            print(f"Left out {path}: it is no image that can be read.")
            return False
        raise IfamError(
            f"{path} is no image that can be read ({error}); remove it, or leave such files out with "
            f"--data.skip_bad true."
        ) from None
    return True


def _cut(examples: Examples, classes: tuple[str, ...], config: FolderConfig) -> tuple[ImageFiles, ImageFiles]:
    """Training and validation images: of each class the same share, and at least one image on each side."""
    assert isinstance(examples, ImageFiles)
    labels = np.asarray(examples.labels)
    chance = np.random.default_rng(config.seed)
    chosen: set[int] = set()
    for label, name in enumerate(classes):
        members = chance.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise IfamError(
                f"The class {name} has a single image, but at least two are needed: one to train on and one to "
                f"validate with."
            )
        number = min(max(round(len(members) * config.val_fraction), 1), len(members) - 1)
        chosen.update(members[:number].tolist())

    def pick(indices: Iterable[int]) -> ImageFiles:
        return ImageFiles(*zip(*((examples.paths[i], examples.labels[i]) for i in indices), strict=True))

    return pick(i for i in range(len(labels)) if i not in chosen), pick(sorted(chosen))
