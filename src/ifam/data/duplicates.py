"""The same image twice: on both sides of a split, or with two labels."""

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from ifam.data.tables import Record
from ifam.errors import IfamError

logger = logging.getLogger(__name__)


def refuse_repeated_files(splits: Mapping[str, Sequence[Record]]) -> None:
    """Refuse a file that is listed twice, under whatever names: two rows, two splits or two classes.

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
                    f"The same image is listed twice, as {_place(other)} and as {_place(record)}; remove one of them."
                )


def _place(record: Record) -> str:
    return f"{record.path} ({record.line})" if record.line else str(record.path)


def warn_of_copies(splits: Mapping[str, Sequence[Record]], class_names: Sequence[str]) -> None:
    """Warn of images that are copies of each other, in two splits or in two classes.

    Args:
        splits: Images by split.
        class_names: For the message.
    """
    named = [(split, record) for split, records in splits.items() for record in records]
    pairs = [pair for copies in _copies([record.path for _, record in named]) for pair in combinations(copies, 2)]
    across = [(named[i], named[j]) for i, j in pairs if named[i][0] != named[j][0]]
    labels = [(named[i][1], named[j][1]) for i, j in pairs if named[i][1].label != named[j][1].label]
    for (split, first), (other, second) in across[:1]:
        logger.warning(
            "%d pairs of images have the same content in two splits, such as %s (%s) and %s (%s); figures on them say "
            "nothing about new images: remove one of each.",
            *(len(across), first.path, split, second.path, other),
        )
    for one, two in labels[:1]:
        logger.warning(
            "%d pairs of images have the same content and different classes, such as %s (%s) and %s (%s); remove what "
            "is wrong.",
            *(len(labels), one.path, class_names[one.label], two.path, class_names[two.label]),
        )


def _copies(paths: Sequence[Path]) -> list[list[int]]:
    """Indices of files with the same content; only files of the same size are read."""
    sizes: dict[int, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        try:
            sizes[path.stat().st_size].append(index)
        except OSError:
            continue  # named when the file is read
    contents: dict[bytes, list[int]] = defaultdict(list)
    for indices in sizes.values():
        for index in indices if len(indices) > 1 else ():
            with paths[index].open("rb") as file:
                contents[hashlib.file_digest(file, "sha256").digest()].append(index)
    return [indices for indices in contents.values() if len(indices) > 1]
