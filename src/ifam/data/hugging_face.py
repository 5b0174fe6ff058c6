"""Data sets of Hugging Face's `datasets` as splits of examples, without an import of it: columns are read by name."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ifam.data.files import ordered
from ifam.data.images import UNREADABLE, load_image, open_image, to_rgb
from ifam.data.masks import load_mask, to_mask
from ifam.data.splits import ALL, SPLIT_NAMES
from ifam.errors import IfamError, suggestion


@dataclass(frozen=True)
class Columns:
    """Names of the columns.

    Attributes:
        image: Pictures: PIL, paths, or dicts of `bytes` and `path`.
        label: Classes: ClassLabel, text or whole numbers.
        group: Groups, likewise; the classes where it is None.
        mask: Masks of the object, as pictures.
    """

    image: str
    label: str
    group: str | None = None
    mask: str | None = None

    @property
    def names(self) -> list[str]:
        """All that are used."""
        return [name for name in (self.image, self.label, self.group, self.mask) if name is not None]


class HuggingFaceImages:
    """One split, whose images are decoded on access.

    Args:
        rows: A `datasets.Dataset`, or a subset of its rows.
        columns: Names of its columns.
        labels: Class of each row.
        groups: Group of each row.
        where: What it is, for messages.
    """

    def __init__(self, rows: Any, columns: Columns, labels: list[int], groups: list[int], where: str) -> None:
        self.rows, self.columns, self.where = rows, columns, where
        self.labels, self.groups = labels, groups

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example.

        Raises:
            IfamError: Its image or mask cannot be read, or the mask has another size.
        """
        example: dict[str, Any] = {"label": self.labels[index], "group": self.groups[index]}
        place = f"{self.where}, row {index}"
        try:
            row = self.rows[index]
            example["image"] = image = _read_image(row[self.columns.image], Path(place))
            if self.columns.mask is not None and row[self.columns.mask] is not None:
                example["mask"] = mask = _read_mask(row[self.columns.mask])
                if mask.shape != (image.height, image.width):
                    raise ValueError(f"its mask is {mask.shape[1]} x {mask.shape[0]} pixels, not {image.size}")
        except IfamError as error:
            raise IfamError(f"{place}: {error}") from error
        except UNREADABLE as error:
            raise IfamError(f"{place} is not readable ({error}); leave it out with `filter`, or repair it.") from error
        return example


def read_hugging_face(
    dataset: Any, columns: Columns, splits: Mapping[str, str] | None, val_fraction: float, seed: int
) -> tuple[dict[str, HuggingFaceImages], tuple[str, ...], tuple[str, ...], str]:
    """Splits, names of the classes and of the groups, and where validation images come from.

    Args:
        dataset: A `datasets.DatasetDict`, or a `Dataset` without splits.
        columns: Names of its columns.
        splits: Its name of each split "train", "val" and "test"; by their usual names where it is None.
        val_fraction: Share of the training images to validate with where there is no such split; 0 for none.
        seed: Seed of that choice.

    Raises:
        IfamError: A split or column is missing, or a label cannot be a class.
    """
    if not 0 <= val_fraction < 1:
        raise IfamError(f"val_fraction is {val_fraction}, but a share from 0 to below 1 is expected.")
    found = _splits(dataset, splits, whole=not val_fraction)
    for name, rows in found.items():
        _require_columns(name, rows, columns)
    class_names, labels = _numbered(found, columns.label)
    if len(class_names) < 2:
        raise IfamError(
            f"All rows have the {columns.label!r} {class_names[0]!r}, but two or more classes are expected."
        )
    group_names, groups = (class_names, labels) if columns.group is None else _numbered(found, columns.group)
    made = {
        # Formats and transforms of the data set are for other libraries.
        name: HuggingFaceImages(_plain(rows, columns), columns, labels[name], groups[name], f"split {name!r}")
        for name, rows in found.items()
    }
    note = ""
    if "train" in made and "val" not in made and val_fraction:
        train = made.pop("train")
        sides = _divided(list(zip(train.labels, train.groups, strict=True)), val_fraction, seed, class_names)
        cut = {name: _subset(train, side) for name, side in zip(("train", "val"), sides, strict=True)}
        made = cut | made
        note = f"validation: {val_fraction:.0%} of the training images, by class and group, seed {seed}"
    return made, class_names, group_names, note


def _splits(dataset: Any, given: Mapping[str, str] | None, whole: bool) -> dict[str, Any]:
    """Data of each split by our names."""
    if not isinstance(dataset, Mapping):
        if given is not None:
            raise IfamError(f"The data set is a {type(dataset).__name__} without splits; leave `splits` out.")
        dataset, given = {"all": dataset}, {ALL if whole else "train": "all"}
    if given is None:
        given = {}
        for name in dataset:
            if (ours := SPLIT_NAMES.get(str(name).casefold())) is not None:
                if ours in given:
                    raise IfamError(
                        f"{given[ours]!r} and {name!r} are both the split {ours!r}; name one with `splits`."
                    )
                given[ours] = name
        if not given:
            raise IfamError(
                f"The splits are {', '.join(map(str, dataset))}; say which they are: splits={{'train': ...}}."
            )
    found = {}
    for ours in ("train", "val", "test", ALL):
        if ours in given:
            if given[ours] not in dataset:
                raise IfamError(f"There is no split {given[ours]!r}; the data set has {', '.join(map(str, dataset))}.")
            found[ours] = dataset[given[ours]]
    if unknown := [name for name in given if name not in found]:
        raise IfamError(f"`splits` names {unknown[0]!r}, but only 'train', 'val' and 'test' are known here.")
    return found


def _require_columns(name: str, rows: Any, columns: Columns) -> None:
    if not (hasattr(rows, "__len__") and hasattr(rows, "column_names")):
        raise IfamError(
            f"The split {name!r} is a {type(rows).__name__}, but a `datasets.Dataset` is expected; load it without "
            f"`streaming`."
        )
    if not len(rows):
        raise IfamError(f"The split {name!r} has no images; leave it out: splits={{...}}.")
    for column in columns.names:
        if column not in rows.column_names:
            hint = suggestion(column, rows.column_names)
            raise IfamError(
                f"The split {name!r} has no column {column!r}{hint}; it has {', '.join(rows.column_names)}."
            )


def _numbered(splits: Mapping[str, Any], column: str) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Names of the values of a column in all splits, and the index of each row's among them."""
    values = {name: list(_without_format(rows)[column]) for name, rows in splits.items()}
    kinds = [(rows.features or {}).get(column) for rows in splits.values()]
    declared = [tuple(getattr(kind, "names", None) or ()) for kind in kinds]
    names = declared[0]
    if any(one != names for one in declared):
        raise IfamError(f"The classes in {column!r} differ between splits; make them the same with `cast_column`.")
    for name, found in values.items():
        for index, value in enumerate(found):
            fits = isinstance(value, int) and 0 <= value < len(names) if names else isinstance(value, int | str)
            if not fits:
                expected = f"a whole number from 0 to {len(names) - 1}" if names else "text or a whole number"
                raise IfamError(
                    f"The {column!r} of row {index} of the split {name!r} is {value!r}, but {expected} is expected; "
                    f"leave out unlabeled rows with `filter`, or the split with splits={{...}}."
                )
    if names:
        return names, values
    names = tuple(ordered(str(value) for found in values.values() for value in found))
    place = {name: index for index, name in enumerate(names)}
    return names, {name: [place[str(value)] for value in found] for name, found in values.items()}


def _without_format(rows: Any) -> Any:
    return rows.with_format(None) if hasattr(rows, "with_format") else rows


def _plain(rows: Any, columns: Columns) -> Any:
    """The rows with the columns that are needed alone, so that no others are decoded."""
    rows = _without_format(rows)
    return rows.select_columns(list(dict.fromkeys(columns.names))) if hasattr(rows, "select_columns") else rows


class _Rows:
    """Some rows of a data set."""

    def __init__(self, rows: Any, indices: Sequence[int]) -> None:
        self.rows, self.indices = rows, indices

    def __getitem__(self, index: int) -> Any:
        return self.rows[self.indices[index]]


def _subset(images: HuggingFaceImages, indices: Sequence[int]) -> HuggingFaceImages:
    labels, groups = ([listed[index] for index in indices] for listed in (images.labels, images.groups))
    return HuggingFaceImages(_Rows(images.rows, indices), images.columns, labels, groups, images.where)


def _divided(
    strata: Sequence[tuple[int, int]], fraction: float, seed: int, class_names: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Training and validation rows, with the same share of each class and group, at least one of each on both sides."""
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        members[stratum].append(index)
    generator = np.random.default_rng(seed)
    chosen: set[int] = set()
    for (label, _), rows in sorted(members.items()):
        if len(rows) == 1 and not any(key[0] == label and len(other) > 1 for key, other in members.items()):
            raise IfamError(
                f"The class {class_names[label]} has too few images to train and to validate with; give a split 'val'."
            )
        number = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
        chosen.update(generator.permutation(rows)[:number].tolist())
    return [index for index in range(len(strata)) if index not in chosen], sorted(chosen)


def _read_image(value: Any, place: Path) -> Image.Image:
    if isinstance(value, Image.Image):
        return to_rgb(value, place)
    if isinstance(value, Mapping) and value.get("bytes"):
        value = value["bytes"]
    elif isinstance(value, Mapping):
        value = value.get("path")
    if isinstance(value, bytes):
        with open_image(BytesIO(value)) as image:
            return to_rgb(image, place)
    if not isinstance(value, str | Path):
        raise ValueError(f"it holds a {type(value).__name__}, but a picture, its bytes or its path is expected")
    return load_image(value)


def _read_mask(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return to_mask(value)
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        with open_image(BytesIO(value)) as image:
            return to_mask(image)
    return load_mask(value)
