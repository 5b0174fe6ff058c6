"""What loaders need before there are images: settings, the folder and what must lie in it, and lists in text files."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, TypeVar

from ifam.data.images import EXTENSIONS
from ifam.errors import IfamError

# What a setting of a type may look like; `bool` is no number here, though it is one in Python.
_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number, zero or more"),
    float: ((int, float), "a share between 0 and 1"),
    str: ((str,), "text"),
}


@dataclass(frozen=True)
class FilesConfig:
    """Settings of every benchmark that is made of files.

    Attributes:
        skip_bad: Leave out files that are missing or no images, with a notice, instead of stopping.
        check: Open every file once at the start, so that a damaged one is found before it stops the training.
        white: The value that is white in images of more than 8 bits; 0 for the rule of `ifam.data.images.load_image`.
    """

    benchmark: ClassVar[str] = ""
    skip_bad: bool = False
    check: bool = True
    white: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            types, expected = _KINDS[type(field.default)]
            fits = isinstance(value, types) and (types[0] is bool or not isinstance(value, bool))
            if fits and not isinstance(value, bool | str):
                fits = value >= 0 if types == (int,) else 0 < value < 1
            if not fits:
                raise IfamError(f"{self.benchmark}: {field.name}={value!r} is not possible; give {expected}.")


@dataclass(frozen=True)
class CutConfig(FilesConfig):
    """Settings of benchmarks whose validation images may have to be cut from the training images.

    Attributes:
        val_fraction: Share of the training images set aside for validation, of each class (and group) the same,
            where the data have no validation images of their own.
        seed: Seed of that choice.
        skip_bad: See `FilesConfig`.
        check: See `FilesConfig`.
    """

    val_fraction: float = 0.1
    seed: int = 0


def choose(benchmark: str, setting: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices."""
    listed = list(choices)
    if value not in listed:
        raise IfamError(f"{benchmark}: {setting}={value!r} is unknown; choose one of {', '.join(listed)}.")


def find_root(benchmark: str, root: Path | None, needed: Sequence[str], source: str) -> Path:
    """The folder of a benchmark, if all that is needed lies below it.

    Args:
        benchmark: Name of the benchmark.
        root: What the user gave.
        needed: Files and folders that must exist, relative to it.
        source: Where the data can be had.

    Raises:
        IfamError: There is no such folder, or something is missing in it.
    """
    if root is None:
        raise IfamError(
            f"The benchmark '{benchmark}' needs to know where its files are; give --root DIR (to be had from {source})."
        )
    if not root.is_dir():
        raise IfamError(f"There is no folder {root}; give that of {benchmark} with --root DIR (from {source}).")
    for name in needed:
        if not (root / name).exists():
            raise IfamError(
                f"{benchmark} expects {root / name}, which is missing; give the folder that holds it with --root DIR, "
                f"or get the data from {source}."
            )
    return root


def image_files(folder: Path) -> list[Path]:
    """Every image in a folder, at any depth, in order of their paths; hidden files are none."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))


def sub_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, without what programs leave behind, in order."""
    return sorted(
        p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != "__MACOSX"
    )


def read_csv(path: Path, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file, each with the number of its line.

    Args:
        path: The file, with a header; UTF-8, with or without a byte order mark.
        columns: Columns that must be there.

    Raises:
        IfamError: The file cannot be read, or lacks a column, or has a line that is too short.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            missing = [name for name in columns if name not in header]
            if missing:
                raise IfamError(
                    f"{path} has no column {missing[0]!r}; it has {', '.join(header) or 'no header at all'}."
                )
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise IfamError(f"{path} cannot be read as a CSV file ({error}); give one in UTF-8.") from None
    for line, row in rows:
        if None in row or None in row.values():
            raise IfamError(f"{path}, line {line} has not as many values as the header ({len(header)}); mend it.")
    return [(line, {name: value.strip() for name, value in row.items()}) for line, row in rows]


def read_words(path: Path, values: int) -> dict[str, list[str]]:
    """A file with an identifier and some values on each line, separated by spaces; the last may hold spaces.

    Raises:
        IfamError: The file cannot be read, or a line has too few values.
    """
    found: dict[str, list[str]] = {}
    for number, line in enumerate(_lines(path), 1):
        words = line.split(maxsplit=values)
        if words and len(words) != values + 1:
            raise IfamError(
                f"{path}, line {number} has {len(words)} values, but {values + 1} are expected; get the file anew."
            )
        if words:
            found[words[0]] = words[1:]
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise IfamError(f"{path} cannot be read as text ({error}); get the file anew.") from None


Label = TypeVar("Label", int, str)


def number_labels(labels: Iterable[Label]) -> dict[Label, int]:
    """Labels to 0, 1, 2, ... in their order, without the gaps."""
    return {label: index for index, label in enumerate(sorted(set(labels)))}
