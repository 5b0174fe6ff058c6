"""Digests of the images of a data set, by which results and runs identify their images."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ifam._typing import Tensor
from ifam.data.base import Benchmark, evenly_spaced
from ifam.data.members import file_size, is_file, open_file
from ifam.data.records import Record
from ifam.pulse import reported

# Of larger files, the beginning, the middle and the end are hashed, which notices edits without reading all of a data
# set twice.
_WHOLE, _PIECE = 1 << 16, 1 << 14
# Number of files whose content is hashed, to distinguish lists of files of the same names and sizes.
_FEW = 64


def fingerprint(benchmark: Benchmark, splits: Iterable[str] | None = None) -> str:
    """A hash of the images of some splits with their classes, groups and annotations.

    It does not depend on where the files are, nor on when they were written. Drawn images are hashed pixel by
    pixel. Of examples of any other kind, the classes and groups that they list and a few images are hashed.

    Args:
        benchmark: The data set.
        splits: Names of its splits; all of them where None.

    Returns:
        Sixteen hexadecimal digits.
    """
    names = list(benchmark.splits) if splits is None else list(splits)
    digest = hashlib.sha256(repr((benchmark.class_names, benchmark.group_names)).encode())
    for name in names:
        examples: Any = benchmark.split(name)
        digest.update(f"{name} {len(examples)}".encode())
        if hasattr(examples, "records"):
            _add_files(digest, examples.records)
            _add_elsewhere(digest, examples.records, getattr(examples, "others", {}))
        elif isinstance(getattr(examples, "images", None), Tensor):
            for values in (examples.images.mul(255).round().to(torch.uint8), examples.labels, examples.groups):
                digest.update(values.contiguous().numpy().tobytes())
        else:
            _add_others(digest, examples)
    return digest.hexdigest()[:16]


def list_digest(benchmark: Benchmark) -> dict[str, Any]:
    """The number of files of a data set, and a hash by which they are recognized in another folder.

    The hash covers relative paths, classes and sizes of all files, and the content of a few.
    """
    files: list[tuple[Path, str]] = []
    for examples in benchmark.splits.values():
        records: Sequence[Record] = getattr(examples, "records", ())
        files += [(record.path, benchmark.class_names[record.label]) for record in records]
    files.sort()
    top = _common_folder([path for path, _ in files])
    digest = hashlib.sha256()
    for number, (path, name) in enumerate(files):
        relative = os.path.relpath(path.absolute(), top)
        size = file_size(path) if is_file(path) else 0
        digest.update(os.fsencode(f"{relative}|{name}|{size}|"))
        if number % (len(files) // _FEW + 1) == 0:
            digest.update(sample(path))
    return {"count": len(files), "digest": digest.hexdigest()[:16]}


def _common_folder(paths: Sequence[Path]) -> str:
    return os.path.commonpath([path.absolute().parent for path in paths]) if paths else ""


def _add_files(digest: Any, records: Sequence[Record]) -> None:
    """Hash every record, with samples of the content of its files."""
    top = _common_folder([record.path for record in records])
    for record in reported(records, "hashing images"):
        relative = os.path.relpath(record.path.absolute(), top)
        digest.update(os.fsencode(f"{relative}|{record.label}|{record.group}|"))
        for path in (record.path, *record.masks):
            digest.update(sample(path))
        for name, values in sorted((record.extra or {}).items()):
            digest.update(name.encode() + values.tobytes())


def _add_elsewhere(digest: Any, records: Sequence[Record], others: Mapping[str, Mapping[Path, Record]]) -> None:
    """Hash pictures of the same objects on other backgrounds, by which answers that flip are counted."""
    for name, known in sorted(others.items()):
        for number, record in enumerate(records):
            if other := known.get(record.path):
                digest.update(f"{name}|{number}|".encode() + sample(other.path))


def _add_others(digest: Any, examples: Any) -> None:
    """Hash what is listed of every example, and the pixels of a few."""
    for name in ("labels", "groups"):
        if (listed := getattr(examples, name, None)) is not None:
            digest.update(repr([int(value) for value in listed]).encode())
    for index in reported(evenly_spaced(len(examples), _FEW), "hashing images"):
        example = examples[index]
        pixels = np.ascontiguousarray(example["image"])
        digest.update(f"{pixels.shape} {int(example['label'])} {example.get('group')}".encode() + pixels.tobytes())


def sample(path: Path) -> bytes:
    """The size of a file and pieces of its content; a constant where it cannot be read, which is reported elsewhere."""
    try:
        size = file_size(path)
        with open_file(path) as file:
            if size <= _WHOLE:
                return f"{size}|".encode() + file.read()
            pieces = []
            for start in (0, (size - _PIECE) // 2, size - _PIECE):
                file.seek(start)
                pieces.append(file.read(_PIECE))
            return f"{size}|".encode() + b"".join(pieces)
    except OSError:
        return b"?"
