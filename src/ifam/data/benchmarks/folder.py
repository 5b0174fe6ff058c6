"""A folder of images: `root/class/image`, the same below `root/train`, `val` and `test`, or a list in a CSV file.

Or tar files of images with their classes, the shards of WebDataset: see `ifam.data.shards`.

Splits may be called train or training, val, valid or validation, and test or testing, in upper or lower case. A folder
whose name is similar to that of a split is an error, not a class.

A CSV file has a header and a row for each image. Two columns are needed, the others are optional:

    path,label,group,split,mask
    photos/0001.jpg,duck,duck on water,train,masks/0001.png
    photos/0002.jpg,wren,wren on water,test,masks/0002.png

Where no file is named, `images.csv` in the root is taken if its header has the columns of path and label.

Paths are relative to the root, or absolute. A file outside of the root, to which `..`, an absolute path or a link
leads, needs `allow_outside`, since a list may come from somebody else. A group is what the worst group is taken over;
without the column, the classes are. Splits have the same names as folders; without the column, or without a row of val,
validation images are split from the training images. A mask is an image of the same size, below half of its range
outside of the object; a cell may be empty. The columns `swapped` and `third`, which `ifam prepare cutouts` writes, name
pictures of the same object in the same position on another class's background and on a third one. Classes are in the
order of their names, whole numbers in the order of their values.
"""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ifam.data.base import Benchmark, ImageDataset
from ifam.data.duplicates import copies_of_images, refuse_repeated_files, warn_of_copies
from ifam.data.files import Listing, list_images, ordered
from ifam.data.records import ImageFiles, Record, assemble, require_inside, validated
from ifam.data.shards import Sample, find_shards, read_samples, shard_split
from ifam.data.source_files import listed_path, read_csv
from ifam.data.splits import (
    ALL,
    SPLIT_NAMES,
    class_folders,
    class_name,
    count_images,
    split_folders,
    warn_of_similar_names,
)
from ifam.data_config import FolderConfig
from ifam.errors import IfamError
from ifam.io import local_path
from ifam.pulse import reported

logger = logging.getLogger(__name__)

# What `ifam prepare cutouts` writes: the list of images, last, and its settings, first.
LIST, SETTINGS = "images.csv", "cutouts.json"
# Those of one image in a shard.
_MEMBERS = ("KEY.jpg", "KEY.cls or KEY.json")


def load_folder(root: Path | None, config: FolderConfig) -> Benchmark:
    """Any folder of images, sorted by class or listed in a CSV file.

    Args:
        root: The folder. Its sub-folders are the classes; or it holds `train` (and `val`, `test`) that do; or all
            paths in the CSV file are relative to it; or it holds shards. Or a pattern of shards.
        config: Its settings.

    Raises:
        IfamError: The folder is missing, has fewer than two classes, a class without an image, or a damaged file; or
            a line of the CSV file, or a member of a shard, cannot be used.
    """
    if root is None:
        raise IfamError("The benchmark 'folder' needs the folder of the images; give --root DIR.")
    shards = [] if config.csv or (root / LIST).is_file() else find_shards(root)
    if shards:
        return _load_shards(root, shards, config)
    if not root.is_dir():
        raise IfamError(f"There is no folder {root}; give one whose sub-folders are the classes (--root DIR).")
    path = _list_file(root, config)
    return _load_classes(root, config) if path is None else _load_csv(root, path, config)


def find_list(root: Path, path_column: str, label_column: str) -> Path | None:
    """The file `images.csv` of a folder if it is a list of images, which has these columns."""
    path = root / LIST
    if not os.path.isfile(path):  # also where the folder may not be read, which is said by those who list it
        return None
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = {name.strip('" ') for name in re.split("[,;\t]", file.readline().strip())}
    if not {path_column, label_column} <= header:
        return None
    logger.info("Images are taken from the list %s.", path)
    return path


def _list_file(root: Path, config: FolderConfig) -> Path | None:
    """The CSV file that is named, or else `images.csv` if it is a list of images; None for class folders."""
    if config.csv:
        return root / local_path(config.csv)
    if found := find_list(root, config.path_column, config.label_column):
        return found
    if (root / LIST).is_file():
        logger.warning(
            "%s is not used: its first line names no columns %r and %r; name them with --data.path_column and "
            "--data.label_column, or move the file.",
            *(root / LIST, config.path_column, config.label_column),
        )
    if (root / SETTINGS).exists():
        raise IfamError(f"{root} has no {LIST}: `ifam prepare` was stopped before its end; run the same command again.")
    return None


# ------------------------------------------------------------------------------------------- class folders


def _load_classes(root: Path, config: FolderConfig) -> Benchmark:
    _refuse_given_masks(root, config)
    folders = split_folders(root)
    sources = folders or {"train" if config.val_fraction else ALL: root}
    by_class = {split: class_folders(folder) for split, folder in sources.items()}
    classes = config.classes or _class_names(root, by_class)
    outside = sum(count_images(folder) for folder in {root, *folders.values()})
    listing = Listing(left_out=+Counter({"outside of the class folders": outside}))
    splits = {
        split: _read(sources[split], by_class[split], classes, config, listing, split in ("train", ALL))
        for split in sources
    }
    listing.warn(root)
    if not any(splits.values()):
        raise IfamError(f"{root} has no images in class folders; sort the images into {root / 'CLASS'}/.")
    note = f"validation images from {folders['val'].name}/" if "val" in folders else ""
    # The files were checked above, class by class.
    checked = replace(config, check=False, skip_bad=False)
    return _assemble(Benchmark("folder", {}, classes, classes, note), splits, config, checked)


def _class_names(root: Path, by_class: Mapping[str, Mapping[str, Path]]) -> tuple[str, ...]:
    """The classes of the training images, or of all images where there is no training split."""
    sources = [by_class["train"]] if "train" in by_class else list(by_class.values())
    classes = tuple(ordered(name for folders in sources for name in folders))
    if len(classes) < 2:
        raise IfamError(
            f"{root} has {len(classes)} sub-folder{'s' if len(classes) != 1 else ''}, but one for each of at least "
            f"two classes is expected; sort the images into {root / 'CLASS'}/, or give the folder that contains "
            f"the classes with --root."
        )
    warn_of_similar_names(classes)
    return classes


def _read(
    root: Path,
    folders: Mapping[str, Path],
    classes: tuple[str, ...],
    config: FolderConfig,
    listing: Listing,
    every_class: bool,
) -> list[Record]:
    """Every image of every class; files that are left out are added to the listing."""
    labels = {class_name(name): label for label, name in enumerate(classes)}
    unknown = [name for name in folders if name not in labels]
    if unknown:
        raise IfamError(
            f"{root} has a class {unknown[0]!r}, but only {', '.join(classes[:5])}{' ...' * (len(classes) > 5)} are "
            f"known from {'the model' if config.classes else 'training'}; move, rename or remove it."
        )
    records: list[Record] = []
    for name, label in labels.items():
        folder = folders.get(name, root / name)
        images = list_images(folder) if name in folders else Listing()
        listing.paths += images.paths
        listing.left_out += images.left_out
        usable = validated([Record(path, label) for path in images.paths], config)
        if every_class and not config.classes:
            images.paths = [record.path for record in usable]
            images.require_images(folder)
        records += usable
    return records


def _assemble(
    benchmark: Benchmark, splits: Mapping[str, list[Record]], config: FolderConfig, checked: FolderConfig
) -> Benchmark:
    """The benchmark, after a check for repeated files; copies of an image stay on one side of the validation split."""
    refuse_repeated_files(splits)
    needs_split = "train" in splits and "val" not in splits and config.val_fraction > 0
    paths = (record.path for records in splits.values() for record in records)
    copies = copies_of_images(paths) if needs_split or config.check else {}
    if config.check:
        warn_of_copies(splits, benchmark.class_names, copies)
    group_key = _copy_key(splits.get("train", []), copies)
    return assemble(benchmark, splits, checked, group_key=group_key, every_class=not config.classes)


def _copy_key(records: Iterable[Record], copies: Mapping[Path, int]) -> Callable[[Record], Hashable]:
    """A key that copies of an image share, except in a class of copies only, which could not be split then."""
    contents: dict[int, set[Hashable]] = defaultdict(set)
    for record in records:
        contents[record.label].add(copies.get(record.path, record.path))
    return lambda record: copies.get(record.path, record.path) if len(contents[record.label]) > 1 else record.path


# ------------------------------------------------------------------------------------------------ CSV files


def _load_csv(root: Path, path: Path, config: FolderConfig) -> Benchmark:
    if not path.is_file():
        raise IfamError(f"There is no file {path}; give --data.csv the name of a CSV file below --root.")
    rows = read_csv(path, _needed_columns(config))
    if not rows:
        raise IfamError(f"{path} lists no images; add a row for each.")
    for line, row in rows:
        for column in (config.path_column, config.label_column):
            if not row[column]:
                raise IfamError(f"{path}, line {line} has no {column}; fill it in or remove the line.")
        for column in (config.label_column, config.group_column):
            if row.get(column, "").casefold() == "nan":
                raise IfamError(
                    f"{path}, line {line} has the {column} {row[column]!r}, which programs write for a missing value; "
                    f"fill it in, or rename it if it is a name."
                )
    classes = _listed_classes(path, rows, config)
    groups = _numbered(row[config.group_column] for _, row in rows if row.get(config.group_column))
    splits: dict[str, list[Record]] = {}
    others: dict[str, dict[Path, Record]] = {"swapped": {}, "third": {}}
    for line, row in rows:
        where = f"{path}, line {line}"
        group, mask = class_name(row.get(config.group_column, "")), row.get(config.mask_column, "")
        if groups and not group:
            raise IfamError(f"{where} has no {config.group_column}, but other lines have one; fill it in.")
        given = row.get(config.given_mask_column, "")
        if config.given_mask_column and not given:
            raise IfamError(f"{where} has no {config.given_mask_column}; name a mask for each image.")
        record = Record(
            _listed_path(root, row[config.path_column], where),
            classes[class_name(row[config.label_column])],
            groups[group] if groups else None,
            _listed_path(root, mask, where) if mask else None,
            line=where,
            given_mask=_listed_path(root, given, where) if given else None,
        )
        splits.setdefault(_split_of(row, config, where), []).append(record)
        for name, column in (("swapped", config.swapped_column), ("third", config.third_column)):
            if other := row.get(column):
                others[name][record.path] = replace(record, path=_listed_path(root, other, where))
    for records in (*splits.values(), *(other.values() for other in others.values())):
        require_inside([root], records, config)
    return _with_others(_listed(splits, classes, groups, config), others, config)


def _listed(
    splits: Mapping[str, list[Record]], classes: Mapping[str, int], groups: Mapping[str, int], config: FolderConfig
) -> Benchmark:
    """The benchmark of images that state their class, group and split."""
    names = config.classes or tuple(classes)
    known = {record.label for record in splits.get("train", [])} if not config.classes else set()
    stray = [r for records in splits.values() for r in records if known and r.label not in known]
    if stray:
        raise IfamError(
            f"{stray[0].line or stray[0].path} has the class {names[stray[0].label]}, which no training image has; "
            f"add one or remove {'the line' if stray[0].line else 'the image'}."
        )
    note = "validation images as listed" if "val" in splits else ""
    listed = {name: splits[name] for name in ("train", "val", "test", ALL) if name in splits}
    return _assemble(Benchmark("folder", {}, names, tuple(groups or names), note), listed, config, config)


def _with_others(benchmark: Benchmark, others: Mapping[str, Mapping[Path, Record]], config: FolderConfig) -> Benchmark:
    """The benchmark whose splits know the same objects on other backgrounds, where these are listed."""
    if not any(others.values()):
        return benchmark
    usable = {name: {record.path for record in validated(records.values(), config)} for name, records in others.items()}
    known = {
        name: {path: record for path, record in records.items() if record.path in usable[name]}
        for name, records in others.items()
    }
    splits: dict[str, ImageDataset] = {
        name: FilesWithOthers(split, known) if isinstance(split, ImageFiles) else split
        for name, split in benchmark.splits.items()
    }
    return replace(benchmark, splits=splits)


class FilesWithOthers(ImageFiles):
    """Images on disk, with pictures of the same objects in the same positions on other backgrounds.

    Args:
        files: The images.
        others: Records of the other pictures ("swapped", "third") by the path of the image.
    """

    def __init__(self, files: ImageFiles, others: Mapping[str, Mapping[Path, Record]]) -> None:
        super().__init__(files.records, files.reader)
        self.others = others

    @property
    def swapped(self) -> Callable[[], ImageFiles] | None:
        """Returns the objects on another class's background; None if an image has no such picture.

        Labels, groups and masks are those of the images here, and so below.
        """
        return self._elsewhere("swapped")

    @property
    def third(self) -> Callable[[], ImageFiles] | None:
        """Returns the objects on a third background; None if an image has no such picture."""
        return self._elsewhere("third")

    def _elsewhere(self, name: str) -> Callable[[], ImageFiles] | None:
        others = self.others[name]
        if not all(record.path in others for record in self.records):
            return None
        return lambda: ImageFiles([others[record.path] for record in self.records], self.reader)


def _listed_classes(path: Path, rows: Iterable[tuple[int, Mapping[str, str]]], config: FolderConfig) -> dict[str, int]:
    """The label of each class: that of the model, or by the order of the names."""
    classes = _numbered(row[config.label_column] for _, row in rows)
    if config.classes:
        labels = {class_name(name): index for index, name in enumerate(config.classes)}
        unknown = [name for name in classes if name not in labels]
        if unknown:
            raise IfamError(f"{path} has the class {unknown[0]!r}, which the model does not know; remove its images.")
        return labels
    if len(classes) < 2:
        raise IfamError(f"{path} has a single class, {next(iter(classes))}; at least two are needed.")
    warn_of_similar_names(classes)
    return classes


def _listed_path(root: Path, cell: str, where: str) -> Path:
    """The path of a file in a list, or an error that says where it is listed."""
    try:
        return listed_path(root, cell)
    except IfamError as error:
        raise IfamError(f"{where}: {error}") from None


def _needed_columns(config: FolderConfig) -> list[str]:
    """Required columns: path and label, and those that the user named."""
    defaults = FolderConfig()
    optional = [
        name
        for field in (f"{name}_column" for name in ("group", "split", "mask", "given_mask", "swapped", "third"))
        if (name := getattr(config, field)) != getattr(defaults, field)
    ]
    return [config.path_column, config.label_column, *optional]


def _refuse_given_masks(root: Path, config: FolderConfig) -> None:
    """Images that no CSV file lists have no other masks."""
    if column := config.given_mask_column:
        raise IfamError(f"{root} has no CSV file with a column {column!r} of masks; list the images in {LIST}.")


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(ordered({class_name(name) for name in names} - {""}))}


def _split_of(row: Mapping[str, str], config: FolderConfig, where: str) -> str:
    if config.split_column not in row:
        return "train" if config.val_fraction else ALL
    name = row[config.split_column]
    if name.casefold() not in SPLIT_NAMES:
        raise IfamError(f"{where} has the unknown split {name!r}; write one of {', '.join(SPLIT_NAMES)}.")
    return SPLIT_NAMES[name.casefold()]


# --------------------------------------------------------------------------------------------------- shards


def _load_shards(root: Path, shards: Sequence[Path], config: FolderConfig) -> Benchmark:
    _refuse_given_masks(root, config)
    left_out: Counter[str] = Counter()
    found = [
        (shard, one) for shard in reported(shards, "reading shards") for one in read_samples(shard, config, left_out)
    ]
    if left_out:
        reasons = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
        logger.warning("%s: %d images in %d shards; left out %s.", root, len(found), len(shards), reasons)
    if not found:
        raise IfamError(f"{shards[0]} has no image with a class; write it as {', '.join(_MEMBERS)}.")
    classes = _listed_classes(root, enumerate(sample.row for _, sample in found), config)
    groups = _numbered(sample.row.get(config.group_column, "") for _, sample in found)
    splits: dict[str, list[Record]] = {}
    named = [_split_of_sample(shard, root, sample, config) for shard, sample in found]
    stated = any(named)
    for (_, sample), split in zip(found, named, strict=True):
        group = class_name(sample.row.get(config.group_column, ""))
        for kind, missing in (("group", groups and not group), ("split", stated and not split)):
            if missing:
                raise IfamError(f"{sample.image} has no {kind}, but other images have one; add it to its JSON.")
        label = classes[class_name(sample.row[config.label_column])]
        split = split or ("train" if config.val_fraction else ALL)
        splits.setdefault(split, []).append(Record(sample.image, label, groups[group] if groups else None, sample.mask))
    return _listed(splits, classes, groups, config)


def _split_of_sample(shard: Path, root: Path, sample: Sample, config: FolderConfig) -> str:
    """The split that an image or the name of its shard states; empty where none does."""
    of_shard = shard_split(shard, root)
    if config.split_column not in sample.row:
        return of_shard
    split = _split_of(sample.row, config, str(sample.image))
    if of_shard not in ("", split):
        raise IfamError(f"{sample.image} has the split {split!r}, but its shard is named as one of {of_shard!r}.")
    return split
