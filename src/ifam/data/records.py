"""Images listed in files: records, reading and checking them, and the validation split.

A loader in this package reads its lists into `Record`s, one per image, sorted into splits, and passes them to
`assemble`, which checks the files, splits validation images from the training images where there are none, and
returns a `Benchmark`.
"""

import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ifam._typing import Bool, Tensor
from ifam.data.base import Benchmark
from ifam.data.images import UNREADABLE, load_image, open_image, upright_size, why_unreadable
from ifam.data.masks import is_ambiguous, load_mask, mask_size, mask_turn
from ifam.data.members import is_file
from ifam.data_config import CutConfig, FilesConfig, ListedConfig
from ifam.errors import IfamError
from ifam.pulse import reported

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a benchmark.

    Attributes:
        path: The image.
        label: Its class.
        group: Its group, None where there are no groups.
        mask: File with the pixels of the object, None where there is none.
        given_mask: File with another mask for methods that are given one, None where they get the true one.
        extra: Further annotations, by name in the example (see `ImageDataset`); arrays, since each tensor would need a
            file descriptor to be sent to another process.
        line: Where it is listed ("images.csv, line 7"), for messages.
    """

    path: Path
    label: int
    group: int | None = None
    mask: Path | None = None
    extra: Mapping[str, np.ndarray] | None = None
    line: str = ""
    given_mask: Path | None = None

    @property
    def masks(self) -> tuple[Path, ...]:
        """The files of its masks."""
        return tuple(path for path in (self.mask, self.given_mask) if path is not None)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as a viewer would display it, from its header, which is also checked."""
    with open_image(path) as image:
        size = upright_size(image)
        image.verify()
        return size


class Reader(NamedTuple):
    """Functions that read a kind of image file.

    Attributes:
        load: Reads the image.
        size_of: Width and height from the header alone; raises an error if that is damaged.
    """

    load: Callable[[Path], Any]
    size_of: Callable[[Path], tuple[int, int]]


IMAGES = Reader(load_image, image_size)
_MASKS = Reader(load_mask, mask_size)


class ImageFiles:
    """Images on disk, which are read on access.

    Args:
        records: One for each image.
        reader: Reads an image file.
    """

    def __init__(self, records: Sequence[Record], reader: Reader = IMAGES) -> None:
        self.records, self.reader = list(records), reader

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [record.path for record in self.records]

    @property
    def labels(self) -> list[int]:
        """Class of each image."""
        return [record.label for record in self.records]

    @property
    def groups(self) -> list[int]:
        """Group of each image; its class where there are no groups."""
        return [record.label if record.group is None else record.group for record in self.records]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        image = self.reader.load(record.path)
        example: dict[str, Any] = {"image": image, "label": record.label}
        if record.group is not None:
            example["group"] = record.group
        if record.mask is not None:
            example["mask"] = self._mask(record.mask, image, record)
        if record.given_mask is not None:
            example["given_mask"] = self._mask(record.given_mask, image, record)
        return example | self.annotate(record, image)

    def read_mask(self, path: Path, image: Path) -> Bool[Tensor, "H W"]:
        """The pixels of the object, rotated with their image."""
        return load_mask(path, image)

    def _mask(self, path: Path, image: Image.Image, record: Record) -> Bool[Tensor, "H W"]:
        mask = self.read_mask(path, record.path)
        if mask.shape != (image.height, image.width):
            problem = _sizes_differ(path, record, (mask.shape[1], mask.shape[0]), image.size)
            raise IfamError(f"{problem}; give a mask of the image's size.")
        return mask

    def annotate(self, record: Record, image: Image.Image) -> dict[str, Any]:
        """The further entries of an example."""
        return {name: torch.tensor(values) for name, values in (record.extra or {}).items()}


def _sizes_differ(path: Path, record: Record, mask: tuple[int, int], image: tuple[int, int]) -> str:
    line = f" ({record.line})" if record.line else ""
    return (
        f"The mask {path} is {mask[0]} x {mask[1]} pixels, but its image {record.path} is {image[0]} x {image[1]}{line}"
    )


# ------------------------------------------------------------------------------------------------- checks


def require_inside(roots: Sequence[Path], records: Iterable[Record], config: ListedConfig) -> None:
    """Refuse listed files outside of some folders, to which `..`, an absolute path or a link leads.

    A list may come from somebody else, and results, which are shared, contain pictures of what it names.

    Args:
        roots: The folders; the first is named in the message.
        records: Images and their masks.
        config: Allows such files, or not.

    Raises:
        IfamError: There is such a file, and the settings do not allow it.
    """
    if config.allow_outside:
        return
    homes = tuple(os.path.join(os.path.realpath(root), "") for root in roots)

    @cache
    def is_inside(folder: str) -> bool:
        return os.path.join(os.path.realpath(folder), "").startswith(homes)

    for record in records:
        for kind, path in (("image", record.path), *(("mask", mask) for mask in record.masks)):
            # Folders are resolved once each; `realpath` takes a system call for each part of a path.
            if not is_inside(os.path.dirname(path)) or (os.path.islink(path) and not is_inside(os.path.realpath(path))):
                line = f" ({record.line})" if record.line else ""
                raise IfamError(
                    f"The {kind} {path} is outside of {roots[0]}{line}; move it there, or, if you trust the list, "
                    f"allow files elsewhere with --data.allow_outside true."
                )


def validated(records: Iterable[Record], config: FilesConfig, reader: Reader = IMAGES) -> list[Record]:
    """The records with readable image files; others raise an error, or are left out with a warning."""
    if not (config.check or config.skip_bad):
        return list(records)
    records = list(records)
    valid = [one for one in reported(records, "checking files") if _is_valid(one, config.skip_bad, reader)]
    _warn_of_turned_masks(valid)
    return valid


def _warn_of_turned_masks(records: Sequence[Record]) -> None:
    """Warn of masks that are rotated with their images although they may have been drawn on the upright ones."""
    doubtful = []
    for mask, image in ((mask, record.path) for record in records for mask in record.masks):
        if is_ambiguous(size := mask_size(mask), mask_turn(mask, size, image)):
            doubtful.append(mask)
    if doubtful:
        warnings.warn(
            f"{len(doubtful)} masks are rotated by the EXIF orientation of their images, which they do not state "
            f"themselves (the first is {doubtful[0]}); if masks were drawn on the upright images, save these images "
            f"without EXIF orientation.",
            stacklevel=2,
        )


def _is_valid(record: Record, skip: bool, reader: Reader) -> bool:
    # Only decoding detects a truncated file; it takes time, so it is done with `skip_bad` only.
    problem = _problem(record, reader, decode=skip)
    if problem and skip:
        logger.warning("Left out %s: %s.", record.path, problem[0])
    elif problem:
        raise IfamError(f"{problem[1]}; remove it, or leave such files out with --data.skip_bad true.")
    return not problem


def _problem(record: Record, reader: Reader, decode: bool) -> tuple[str, str] | None:
    """What is wrong with a record: a short description, and the beginning of a sentence."""
    line = f" ({record.line})" if record.line else ""
    kinds = [("image", record.path, reader), *(("mask", mask, _MASKS) for mask in record.masks)]
    sizes = []
    for kind, path, (load, size_of) in kinds:
        if not is_file(path):
            short = "there is no such file" if kind == "image" else f"there is no mask {path}"
            return short, f"The {kind} {path} does not exist{line}"
        try:
            sizes.append(size_of(path))
            if decode:
                load(path)
        except (*UNREADABLE, IfamError) as error:
            short = "it is not a readable image" if kind == "image" else f"its mask {path} cannot be read"
            reason = "" if isinstance(error, IfamError) else f" ({why_unreadable(path, error)})"
            return short, f"{path} is not a readable {kind}{reason}{line}"
    for mask, size in zip(record.masks, sizes[1:], strict=True):
        upright = size[::-1] if mask_turn(mask, size, record.path) >= 5 else size
        if upright != sizes[0]:
            return f"its mask {mask} has another size", _sizes_differ(mask, record, upright, sizes[0])
    return None


# ----------------------------------------------------------------------------------------- validation split


def split_validation(
    records: Sequence[Record],
    config: CutConfig,
    class_names: Sequence[str],
    group_key: Callable[[Record], Hashable] | None = None,
) -> tuple[list[Record], list[Record]]:
    """Split into training and validation images, stratified by class and group.

    Each side has at least one image of each stratum; groups of a class with a single image are merged.

    Args:
        records: Training images.
        config: Share and seed.
        class_names: For the message about a class that cannot be split.
        group_key: Images with the same key stay on one side (several files of one photograph).
    """
    first: dict[Hashable, int] = {}
    for index, record in enumerate(records):
        first.setdefault((record.label, group_key(record)) if group_key else index, index)
    strata: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in first.values():
        group = records[index].group
        strata[records[index].label, -1 if group is None else group].append(index)
    for label, group in [key for key, members in strata.items() if len(members) == 1]:
        strata[label, -1] = sorted(strata.get((label, -1), []) + ([] if group == -1 else strata.pop((label, group))))
    generator = np.random.default_rng(config.seed)
    chosen: set[int] = set()
    for label, group in sorted(strata):
        members = generator.permutation(strata[label, group])
        if len(members) == 1 and not any(key[0] == label and key != (label, group) for key in strata):
            raise IfamError(
                f"The class {class_names[label]} has a single image, but at least two are needed: one to train on and "
                f"one to validate with."
            )
        number = min(max(round(len(members) * config.val_fraction), 1), len(members) - 1)
        chosen.update(members[:number].tolist())
    sides: tuple[list[Record], list[Record]] = ([], [])
    for index, record in enumerate(records):
        representative = first[(record.label, group_key(record)) if group_key else index]
        sides[representative in chosen].append(record)
    return sides


def assemble(
    benchmark: Benchmark,
    splits: Mapping[str, Sequence[Record]],
    config: FilesConfig,
    *,
    roots: Sequence[Path] = (),
    reader: Reader = IMAGES,
    files: Callable[[Sequence[Record], Reader], ImageFiles] = ImageFiles,
    group_key: Callable[[Record], Hashable] | None = None,
    every_class: bool = True,
) -> Benchmark:
    """The benchmark with its splits: files are checked, and validation images split off where there are none.

    Args:
        benchmark: All but the splits; a validation split is added to its note.
        splits: Records by split.
        config: A `CutConfig` where a missing "val" is to be split from "train".
        roots: Folders that listed files must be in, unless a `ListedConfig` allows others; none for files that were
            found, not listed.
        reader: Reads the files.
        files: Builds examples from records.
        group_key: See `split_validation`.
        every_class: Refuse training images that lack a class.

    Raises:
        IfamError: A file is missing, damaged or outside of the root, a split is empty, or a class has too few images.
    """
    if roots and isinstance(config, ListedConfig):
        require_inside(roots, (record for records in splits.values() for record in records), config)
    if reader is IMAGES and config.white:
        reader = IMAGES._replace(load=partial(load_image, white=config.white))
    valid = {name: validated(records, config, reader) for name, records in splits.items()}
    note = benchmark.note
    if "train" in valid and every_class:
        for label in sorted(set(range(len(benchmark.class_names))) - {record.label for record in valid["train"]})[:1]:
            raise IfamError(
                f"{benchmark.name} has no training image of the class {benchmark.class_names[label]}; re-download "
                f"the data, or remove the class."
            )
    if "train" in valid and "val" not in valid and isinstance(config, CutConfig) and config.val_fraction:
        train, val = split_validation(valid.pop("train"), config, benchmark.class_names, group_key)
        valid = {"train": train, "val": val} | valid
        how = "by class and group" if any(record.group is not None for record in train) else "by class"
        origin = f"validation: {config.val_fraction:.0%} of the training images, {how}, seed {config.seed}"
        note = "; ".join(part for part in (note, origin) if part)
    for name, records in valid.items():
        if not records:
            where = "" if name == "all" else f" in its split {name!r}"
            raise IfamError(f"{benchmark.name} has no images{where}; check that --root is the right folder.")
    return replace(benchmark, splits={name: files(records, reader) for name, records in valid.items()}, note=note)
