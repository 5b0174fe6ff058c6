"""A user's own images: `root/class/image`, the same below `root/train`, `val` and `test`, or a list in a CSV file.

A CSV file has a header and a row for each image. Two columns are needed and three are optional:

    path,label,group,split,mask
    photos/0001.jpg,duck,duck on water,train,masks/0001.png
    photos/0002.jpg,wren,wren on water,test,masks/0002.png

Paths are absolute or relative to the root. A group is what the worst group is taken over; without the column, the
classes are. Splits are train, val (or valid, validation) and test; without the column, or without a row of val,
validation images are cut from the training images. A mask is an image of the same size (see `ifam.data.masks`);
a cell may be empty. Classes are in the order of their names, whole numbers in the order of their values.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ifam.data.base import Benchmark
from ifam.data.images import EXTENSIONS
from ifam.data.layout import CutConfig, image_files, read_csv, sub_folders
from ifam.data.tables import Record, assemble, sound
from ifam.errors import IfamError
from ifam.io import local_path

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class FolderConfig(CutConfig):
    """How to read a folder of images.

    Attributes:
        val_fraction: Share of the training images set aside for validation, class by class (and group by group),
            where there are no validation images.
        seed: Seed of that choice.
        skip_bad: Leave out files that are no images, with a notice, instead of stopping.
        check: Open every file once at the start, so that a damaged one is found before it stops the training.
        csv: CSV file that lists the images, relative to the root or absolute; empty for class folders.
        path_column: Column of the image's path.
        label_column: Column of the image's class.
        group_column: Column of the image's group; optional under its default name.
        split_column: Column of the image's split; optional under its default name.
        mask_column: Column of the path of the object's mask; optional under its default name.
    """

    benchmark: ClassVar[str] = "folder"
    val_fraction: float = 0.2
    csv: str = ""
    path_column: str = "path"
    label_column: str = "label"
    group_column: str = "group"
    split_column: str = "split"
    mask_column: str = "mask"


def load_folder(root: Path | None, config: FolderConfig) -> Benchmark:
    """Any folder of images, sorted by class or listed in a CSV file.

    Args:
        root: The folder. Its sub-folders are the classes; or it holds `train` (and `val`, `test`) that do; or all
            paths in the CSV file are relative to it.
        config: How to read it.

    Raises:
        IfamError: The folder is missing, has fewer than two classes, a class without an image, or a damaged file; or
            a line of the CSV file cannot be used.
    """
    if root is None:
        raise IfamError("The benchmark 'folder' needs to know where the images are; give --root DIR.")
    if not root.is_dir():
        raise IfamError(f"There is no folder {root}; give one whose sub-folders are the classes (--root DIR).")
    return _load_csv(root, config) if config.csv else _load_classes(root, config)


# ------------------------------------------------------------------------------------------- class folders


def _load_classes(root: Path, config: FolderConfig) -> Benchmark:
    by_split = _is_split(root / "train")
    classes = _class_names(root / "train" if by_split else root)
    names = [name for name in ("train", "val", "test") if (root / name).is_dir()] if by_split else ["train"]
    splits = {name: _read(root / name if by_split else root, classes, config) for name in names}
    note = "validation images as found in val/" if "val" in splits else ""
    # The files have been looked at, class by class.
    return assemble(
        Benchmark("folder", {}, classes, classes, note), splits, replace(config, check=False, skip_bad=False)
    )


def _is_split(folder: Path) -> bool:
    """Whether a folder holds class folders; one that holds images itself is a class, whatever its name."""
    if not folder.is_dir() or any(p.suffix.lower() in EXTENSIONS for p in folder.iterdir() if p.is_file()):
        return False
    return any(image_files(folder / name) for name in sub_folders(folder))


def _class_names(root: Path) -> tuple[str, ...]:
    classes = tuple(sub_folders(root))
    if len(classes) < 2:
        raise IfamError(
            f"{root} has {len(classes)} sub-folder{'s' if len(classes) != 1 else ''}, but one for each of at least "
            f"two classes is expected; sort the images into {root / 'CLASS'}/."
        )
    return classes


def _read(root: Path, classes: tuple[str, ...], config: FolderConfig) -> list[Record]:
    """Every image of every class."""
    unknown = sorted(set(sub_folders(root)) - set(classes))
    if unknown:
        raise IfamError(f"{root} has a class {unknown[0]!r} that the training images lack; move or remove it.")
    records: list[Record] = []
    for label, name in enumerate(classes):
        found = sound([Record(path, label) for path in image_files(root / name)], config)
        if not found:
            raise IfamError(
                f"The class folder {root / name} holds no image; add some "
                f"({', '.join(sorted(EXTENSIONS))}) or remove the folder."
            )
        records += found
    return records


# ------------------------------------------------------------------------------------------------ CSV files


def _load_csv(root: Path, config: FolderConfig) -> Benchmark:
    path = root / local_path(config.csv)
    if not path.is_file():
        raise IfamError(f"There is no file {path}; give --data.csv the name of a CSV file below --root.")
    rows = read_csv(path, _needed_columns(config))
    if not rows:
        raise IfamError(f"{path} lists no image; add a row for each.")
    classes = _numbered(row[config.label_column] for _, row in rows)
    groups = _numbered(row[config.group_column] for _, row in rows if row.get(config.group_column))
    splits: dict[str, list[Record]] = {}
    for line, row in rows:
        where = f"{path}, line {line}"
        for column in (config.path_column, config.label_column):
            if not row[column]:
                raise IfamError(f"{where} has no {column}; fill it in or remove the line.")
        group, mask = row.get(config.group_column, ""), row.get(config.mask_column, "")
        if groups and not group:
            raise IfamError(f"{where} has no {config.group_column}, but other lines have one; fill it in.")
        record = Record(
            root / row[config.path_column],
            classes[row[config.label_column]],
            groups[group] if groups else None,
            root / mask if mask else None,
            line=where,
        )
        splits.setdefault(_split_of(row, config, where), []).append(record)
    if len(classes) < 2:
        raise IfamError(f"{path} has a single class, {next(iter(classes))}; at least two are needed.")
    known = {record.label for record in splits.get("train", [])}
    stray = [r for records in splits.values() for r in records if known and r.label not in known]
    if stray:
        raise IfamError(
            f"{stray[0].line} has the class {list(classes)[stray[0].label]}, which no training image has; add one or "
            f"remove the line."
        )
    note = "validation images as listed" if "val" in splits else ""
    ordered: dict[str, list[Record]] = {name: splits[name] for name in ("train", "val", "test") if name in splits}
    return assemble(Benchmark("folder", {}, tuple(classes), tuple(groups or classes), note), ordered, config)


def _needed_columns(config: FolderConfig) -> list[str]:
    """Columns that must be there: path and label, and whatever the user named."""
    defaults = FolderConfig()
    optional = [
        name
        for field in ("group_column", "split_column", "mask_column")
        if (name := getattr(config, field)) != getattr(defaults, field)
    ]
    return [config.path_column, config.label_column, *optional]


def _numbered(names: Iterable[str]) -> dict[str, int]:
    found = set(names) - {""}
    whole = all(name.isascii() and name.isdigit() for name in found)
    ordered = sorted(found, key=lambda name: (int(name), name) if whole else (0, name))
    return {name: index for index, name in enumerate(ordered)}


def _split_of(row: Mapping[str, str], config: FolderConfig, where: str) -> str:
    name = row.get(config.split_column, "train")
    if name.lower() not in SPLIT_NAMES:
        raise IfamError(f"{where} has the unknown split {name!r}; write one of train, val, test.")
    return SPLIT_NAMES[name.lower()]
