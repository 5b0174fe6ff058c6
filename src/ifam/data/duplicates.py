"""Duplicate images: in several splits, or with several labels."""

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from ifam.data.fingerprints import sample
from ifam.data.members import file_size, open_file
from ifam.data.records import Record
from ifam.errors import IfamError
from ifam.pulse import reported

logger = logging.getLogger(__name__)


def refuse_repeated_files(splits: Mapping[str, Sequence[Record]]) -> None:
    """Refuse a file that is listed twice, possibly under different paths: in rows, splits or classes.

    Args:
        splits: Images by split.

    Raises:
        IfamError: A file is listed twice.
    """
    first: dict[str, Record] = {}
    for records in splits.values():
        for record in records:
            other = first.setdefault(os.path.realpath(record.path), record)
            if other is not record:
                raise IfamError(
                    f"The same image is listed twice, as {_describe(other)} and as {_describe(record)}; remove one."
                )


def _describe(record: Record) -> str:
    return f"{record.path} ({record.line})" if record.line else str(record.path)


def copies_of_images(paths: Iterable[Path]) -> dict[Path, int]:
    """A number for each file that has the same content as another, the same for all of them.

    Only files of the same size are read, and completely only those with equal samples of their content.
    """
    groups = [list(paths)]
    for key in (_size, _beginning, _content):
        groups = [alike for group in groups for alike in _alike(group, key)]
    return {path: number for number, group in enumerate(groups) for path in group}


def count_shared(known: Sequence[Path], others: Sequence[Path]) -> int:
    """Number of files in `others` that are, or have the content of, one in `known`."""
    real_paths = {*map(os.path.realpath, known)}
    rest = [path for path in others if os.path.realpath(path) not in real_paths]
    copies = copies_of_images([*known, *rest])
    shared = {copies[path] for path in known if path in copies}
    return len(others) - len(rest) + sum(copies.get(path) in shared for path in rest)


def _alike(paths: Sequence[Path], key: Callable[[Path], Hashable]) -> list[list[Path]]:
    """Groups of at least two files with the same key; unreadable files are skipped, and reported elsewhere."""
    groups: dict[Hashable, list[Path]] = defaultdict(list)
    for path in reported(paths, "looking for copies"):
        try:
            groups[key(path)].append(path)
        except OSError:
            continue
    return [group for value, group in groups.items() if value and len(group) > 1]


def _size(path: Path) -> int:
    return file_size(path)


def _beginning(path: Path) -> bytes:
    return hashlib.sha256(sample(path)).digest()


def _content(path: Path) -> bytes:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def warn_of_copies(
    splits: Mapping[str, Sequence[Record]], class_names: Sequence[str], copies: Mapping[Path, int]
) -> None:
    """Warn of images that are copies of each other: across splits, across classes, or within both.

    Args:
        splits: Images by split.
        class_names: For the message.
        copies: See `copies_of_images`.
    """
    groups: dict[int, list[tuple[str, Record]]] = defaultdict(list)
    for split, records in splits.items():
        for record in records:
            if record.path in copies:
                groups[copies[record.path]].append((split, record))
    across, labels, others = [], [], []
    for group in groups.values():
        in_splits, in_classes = len({split for split, _ in group}) > 1, len({record.label for _, record in group}) > 1
        across += [group] if in_splits else []
        labels += [group] if in_classes else []
        others += [] if in_splits or in_classes else [group]
    if across:
        logger.warning(
            "%d images have the same content as one in another split, such as %s; figures on them say nothing about "
            "new images: remove all but one of each.",
            *(sum(map(len, across)), _two(across[0], [split for split, _ in across[0]])),
        )
    if labels:
        logger.warning(
            "%d images have the same content as one of another class, such as %s; remove what is wrong.",
            *(sum(map(len, labels)), _two(labels[0], [class_names[record.label] for _, record in labels[0]])),
        )
    if others:
        logger.warning(
            "%d images have the same content as another of the same class and split, such as %s; each copy counts.",
            *(sum(map(len, others)), _two(others[0], [str(number) for number in range(1, len(others[0]) + 1)])),
        )


def _two(group: Sequence[tuple[str, Record]], names: Sequence[str]) -> str:
    """Two of the copies with different names."""
    other = next(i for i, name in enumerate(names) if name != names[0])
    return f"{group[0][1].path} ({names[0]}) and {group[other][1].path} ({names[other]})"
