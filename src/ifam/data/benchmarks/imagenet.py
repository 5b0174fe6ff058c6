"""ImageNet-1k: 1,281,167 training images and 50,000 others of 1,000 classes.

From https://image-net.org/download.php. License: the terms of access, to be agreed to before the download; for
non-commercial research and education, see the source. The 50,000 have to be sorted into folders as the training
images are.

    root/
      train/n01440764/*.JPEG ...    1,000 folders
      val/n01440764/*.JPEG ...      1,000 folders

Splits: published figures are on what the source calls validation, so this is "test" here; "val" is split from training,
class by class. Groups are the classes. Names of the classes, and which of them belong to ImageNet-A
and ImageNet-R, are in `imagenet_classes.tsv` (WordNet's identifiers and lemmas, in the usual order of the logits).

Opening more than a million files takes long, so `check` is off by default: a damaged file raises an error when it is
read.
"""

from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from ifam.data.base import Benchmark
from ifam.data.files import image_files, sub_folders
from ifam.data.records import Record, assemble
from ifam.data.source_files import find_root
from ifam.data_config import ImagenetConfig, SubsetConfig
from ifam.errors import IfamError

SOURCE = "https://image-net.org/download.php"


class ImageNetClass(NamedTuple):
    """One of the 1,000 classes.

    Attributes:
        wnid: Its WordNet identifier, which names its folder.
        name: Its name.
        subsets: "A" if it belongs to ImageNet-A, "R" if to ImageNet-R, "AR" if to both, "-" if to none.
    """

    wnid: str
    name: str
    subsets: str


@lru_cache(maxsize=1)
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The 1,000 classes in the order of the logits."""
    lines = files("ifam.data.benchmarks").joinpath("imagenet_classes.tsv").read_text(encoding="utf-8").splitlines()
    return tuple(ImageNetClass(*line.split("\t")) for line in lines[1:])


def class_names() -> tuple[str, ...]:
    """Names of the 1,000 classes; with the identifier, since two classes are called crane and two maillot."""
    return tuple(f"{one.name} ({one.wnid})" for one in imagenet_classes())


def read_wnids(benchmark: str, root: Path, allowed: dict[str, int], partial: bool) -> list[Record]:
    """Images in folders named by WordNet identifier.

    Args:
        benchmark: Name of the benchmark, for messages.
        root: Folder of the class folders.
        allowed: Label of each possible folder.
        partial: Accept missing folders.

    Raises:
        IfamError: A folder is unknown, missing or empty.
    """
    folders = sub_folders(root)
    stray = sorted(set(folders) - set(allowed))
    if stray:
        raise IfamError(f"{root} has a folder {stray[0]!r}, which is not a class of {benchmark}; move or remove it.")
    missing = sorted(set(allowed) - set(folders))
    if missing and not (partial and folders):
        raise IfamError(
            f"{benchmark} expects {root / missing[0]}, which is missing ({len(folders)} of {len(allowed)} class "
            f"folders exist); re-download the data, or accept a partial copy with --data.partial true."
        )
    records = []
    for name in folders:
        paths = image_files(root / name)
        if not paths:
            raise IfamError(f"The class folder {root / name} contains no images; re-download the data or remove it.")
        records += [Record(path, allowed[name]) for path in paths]
    return records


def load_subset(name: str, letter: str, source: str, root: Path | None, config: SubsetConfig) -> Benchmark:
    """A test set of some of ImageNet's classes, to which the logits are restricted.

    Args:
        name: Name of the benchmark, which is also that of the folder in its archive ("imagenet-a").
        letter: Its letter in `ImageNetClass.subsets`.
        source: Where it is available from.
        root: Folder of the class folders, or its parent.
        config: Its settings.
    """
    folder = name.replace("_", "-")
    inner = root / folder if root is not None and (root / folder).is_dir() else root
    images = find_root(name, inner, (), source)
    allowed = {one.wnid: label for label, one in enumerate(imagenet_classes()) if letter in one.subsets}
    records = read_wnids(name, images, allowed, config.partial)
    note = f"logits restricted to {len(allowed)} of 1,000 classes"
    if len({record.label for record in records}) < len(allowed):
        note += f"; only {len({record.label for record in records})} of them are in this copy"
    names = class_names()
    empty = Benchmark(name, {}, names, names, note, logit_classes=tuple(allowed.values()))
    return assemble(empty, {"test": records}, config)


def load_imagenet(root: Path | None, config: ImagenetConfig) -> Benchmark:
    """ImageNet-1k, from the folder with `train` and `val`."""
    root = find_root("imagenet", root, ("train", "val"), SOURCE)
    labels = {one.wnid: label for label, one in enumerate(imagenet_classes())}
    splits = {
        split: read_wnids("imagenet", root / folder, labels, config.partial)
        for split, folder in (("train", "train"), ("test", "val"))
    }
    note = "test images are those that ImageNet calls validation"
    count = len({record.label for record in splits["train"]})
    if count < len(labels):
        note += f"; only {count} of 1,000 classes are in this copy"
    names = class_names()
    return assemble(Benchmark("imagenet", {}, names, names, note), splits, config, every_class=False)
