"""A user's own images: `root/class/image`, the same below `root/train`, `val` and `test`, or a list in a CSV file.

Splits may be called train or training, val, valid or validation, and test or testing, in upper or lower case. A folder
whose name looks like that of a split and is none of these is an error, not a class.

A CSV file has a header and a row for each image. Two columns are needed and three are optional:

    path,label,group,split,mask
    photos/0001.jpg,duck,duck on water,train,masks/0001.png
    photos/0002.jpg,wren,wren on water,test,masks/0002.png

Paths are absolute or relative to the root. A group is what the worst group is taken over; without the column, the
classes are. Splits have the same names as folders; without the column, or without a row of val, validation images are
cut from the training images. A mask is an image of the same size, below half of its range outside of the object; a
cell may be empty. Classes are in the order of their names, whole numbers in the order of their values.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ifam.data.base import Benchmark
from ifam.data.duplicates import refuse_repeated_files, warn_of_copies
from ifam.data.files import Listing, is_hidden, list_images, ordered, readable_extensions, sub_folders
from ifam.data.layout import CutConfig, read_csv
from ifam.data.tables import Record, assemble, sound
from ifam.errors import IfamError
from ifam.io import local_path

SPLIT_NAMES = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"val": "val", "valid": "val", "validation": "val"},
}
# The split of images that belong to none.
ALL = "all"
_LIKE_A_SPLIT = re.compile(
    r"(train|training|trn|test|testing|tst|val|valid|validation|dev|eval|evaluation|trainval|held.?out|hold.?out|"
    r"unlabell?ed|fold|split)[\W_\d]*(set|data|images|imgs|split|samples|fold)?s?[\W_\d]*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FolderConfig(CutConfig):
    """How to read a folder of images.

    Attributes:
        val_fraction: Share of the training images set aside for validation, class by class (and group by group),
            where there are no validation images; 0 for none, which suits evaluation alone.
        seed: Seed of that choice.
        skip_bad: Leave out files that are no images, with a notice, instead of stopping.
        check: Open every file once at the start, so that a damaged one is found before it stops the training.
        csv: CSV file that lists the images, relative to the root or absolute; empty for class folders.
        path_column: Column of the image's path.
        label_column: Column of the image's class.
        group_column: Column of the image's group; optional under its default name.
        split_column: Column of the image's split; optional under its default name.
        mask_column: Column of the path of the object's mask; optional under its default name.
        classes: Names of the classes in the order of their index, where a model knows them; images of others are
            refused, and some may have none. The classes that are found where it is empty.
    """

    benchmark: ClassVar[str] = "folder"
    val_fraction: float = 0.2
    csv: str = ""
    path_column: str = "path"
    label_column: str = "label"
    group_column: str = "group"
    split_column: str = "split"
    mask_column: str = "mask"
    classes: tuple[str, ...] = ()


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
    folders = _split_folders(root)
    whole = "train" if config.val_fraction else ALL
    classes = config.classes or _class_names(folders.get("train", root) if "train" in folders else root, folders)
    listing = Listing(left_out=Counter({_OUTSIDE: _count_outside(root, folders)}))
    splits = {
        name: _read(folder, classes, config, listing, name in ("train", ALL))
        for name, folder in (folders or {whole: root}).items()
    }
    listing.left_out += Counter()  # drops reasons that are counted zero times
    listing.warn(root)
    note = f"validation images as found in {folders['val'].name}/" if "val" in folders else ""
    _check_unique(splits, classes, config)
    # The files have been looked at, class by class.
    return assemble(
        Benchmark("folder", {}, classes, classes, note),
        splits,
        replace(config, check=False, skip_bad=False),
        every_class=not config.classes,
    )


_OUTSIDE = "outside of the class folders"


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, in the order train, val, test; none where the folders are classes.

    A folder is one of a split if its name says so and it holds class folders: one with images of its own is a class.
    """
    filled = {root / name: kind for name in sub_folders(root) if (kind := _content(root / name))}
    named = [path for path in filled if path.name.casefold() in SPLIT_NAMES]
    alike = [path for path in filled if path not in named and _LIKE_A_SPLIT.fullmatch(path.name)]
    expected = "train, val and test (or training, valid, validation, testing)"
    if nested := [path for path in alike if filled[path] == "classes"]:
        raise IfamError(
            f"{nested[0]} looks like a split and holds class folders, but splits are called {expected}; rename it."
        )
    splits = [path for path in named if filled[path] == "classes"]
    flat = [path for path in (*named, *alike) if filled[path] == "images"]
    if flat and (splits or len(flat) > 1):
        raise IfamError(
            f"{flat[0]} looks like a split, but holds images itself; sort them into a folder for each class below it."
        )
    if not splits:
        return {}
    if others := [path for path in filled if path not in splits]:
        raise IfamError(
            f"{root} has the split {splits[0].name!r} and beside it the folder {others[0].name!r}, which is none; "
            f"splits are called {expected}: rename or move it."
        )
    found: dict[str, Path] = {}
    for path in splits:
        name = SPLIT_NAMES[path.name.casefold()]
        if name in found:
            raise IfamError(f"{found[name]} and {path} are both the split {name!r}; merge them, or move one away.")
        found[name] = path
    return {name: found[name] for name in ("train", "val", "test") if name in found}


def _content(folder: Path) -> str:
    """Whether a folder holds "images" itself, "classes" of images, or neither."""
    extensions = readable_extensions()
    if any(p.suffix.lower() in extensions and p.is_file() and not is_hidden(p) for p in folder.iterdir()):
        return "images"
    return "classes" if any(list_images(folder / name).paths for name in sub_folders(folder)) else ""


def _count_outside(root: Path, folders: Mapping[str, Path]) -> int:
    """Images that lie beside the class folders."""
    extensions = readable_extensions()
    return sum(
        path.suffix.lower() in extensions and path.is_file() and not is_hidden(path)
        for folder in {root, *folders.values()}
        for path in folder.iterdir()
    )


def _class_names(root: Path, folders: Mapping[str, Path]) -> tuple[str, ...]:
    sources = list(folders.values()) if folders and root not in folders.values() else [root]
    classes = tuple(ordered(name for source in sources for name in sub_folders(source)))
    if len(classes) < 2:
        raise IfamError(
            f"{root} has {len(classes)} sub-folder{'s' if len(classes) != 1 else ''}, but one for each of at least "
            f"two classes is expected; sort the images into {root / 'CLASS'}/."
        )
    return classes


def _read(
    root: Path, classes: tuple[str, ...], config: FolderConfig, listing: Listing, every_class: bool
) -> list[Record]:
    """Every image of every class; what is left out is added to the listing."""
    unknown = [name for name in sub_folders(root) if name not in classes]
    if unknown:
        raise IfamError(
            f"{root} has a class {unknown[0]!r}, but only {', '.join(classes[:5])}{' ...' * (len(classes) > 5)} are "
            f"known from {'the model' if config.classes else 'training'}; move, rename or remove it."
        )
    records: list[Record] = []
    for label, name in enumerate(classes):
        images = list_images(root / name) if (root / name).is_dir() else Listing()
        listing.paths += images.paths
        listing.left_out += images.left_out
        usable = sound([Record(path, label) for path in images.paths], config)
        if not usable and every_class and not config.classes:
            raise IfamError(
                f"The class folder {root / name} holds no image; add some "
                f"({', '.join(sorted(readable_extensions()))}) or remove the folder."
            )
        records += usable
    return records


def _check_unique(splits: Mapping[str, list[Record]], classes: tuple[str, ...], config: FolderConfig) -> None:
    """Refuse files that are listed twice, and warn of copies."""
    refuse_repeated_files(splits)
    if config.check:
        warn_of_copies(splits, classes)


# ------------------------------------------------------------------------------------------------ CSV files


def _load_csv(root: Path, config: FolderConfig) -> Benchmark:
    path = root / local_path(config.csv)
    if not path.is_file():
        raise IfamError(f"There is no file {path}; give --data.csv the name of a CSV file below --root.")
    rows = read_csv(path, _needed_columns(config))
    if not rows:
        raise IfamError(f"{path} lists no image; add a row for each.")
    classes = _numbered(row[config.label_column] for _, row in rows)
    if config.classes:
        unknown = [name for name in classes if name not in config.classes]
        if unknown:
            raise IfamError(f"{path} has the class {unknown[0]!r}, which the model does not know; remove its rows.")
        classes = {name: index for index, name in enumerate(config.classes)}
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
            root / local_path(row[config.path_column]),
            classes[row[config.label_column]],
            groups[group] if groups else None,
            root / local_path(mask) if mask else None,
            line=where,
        )
        splits.setdefault(_split_of(row, config, where), []).append(record)
    if len(classes) < 2:
        raise IfamError(f"{path} has a single class, {next(iter(classes))}; at least two are needed.")
    _check_unique(splits, tuple(classes), config)
    known = {record.label for record in splits.get("train", [])} if not config.classes else set()
    stray = [r for records in splits.values() for r in records if known and r.label not in known]
    if stray:
        raise IfamError(
            f"{stray[0].line} has the class {list(classes)[stray[0].label]}, which no training image has; add one or "
            f"remove the line."
        )
    note = "validation images as listed" if "val" in splits else ""
    ordered: dict[str, list[Record]] = {name: splits[name] for name in ("train", "val", "test", ALL) if name in splits}
    return assemble(
        Benchmark("folder", {}, tuple(classes), tuple(groups or classes), note),
        ordered,
        config,
        every_class=not config.classes,
    )


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
    return {name: index for index, name in enumerate(ordered({*names} - {""}))}


def _split_of(row: Mapping[str, str], config: FolderConfig, where: str) -> str:
    if config.split_column not in row:
        return "train" if config.val_fraction else ALL
    name = row[config.split_column]
    if name.casefold() not in SPLIT_NAMES:
        raise IfamError(f"{where} has the unknown split {name!r}; write one of {', '.join(SPLIT_NAMES)}.")
    return SPLIT_NAMES[name.casefold()]
