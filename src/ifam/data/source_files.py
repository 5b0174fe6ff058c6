"""Helpers of loaders: find the folder of a data set, and read lists in text files."""

import csv
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ifam.errors import IfamError
from ifam.io import local_path


def find_root(benchmark: str, root: Path | None, needed: Sequence[str], source: str) -> Path:
    """The folder of a benchmark, after a check that it has all needed files.

    Args:
        benchmark: Name of the benchmark.
        root: The folder that the user gave.
        needed: Files and folders that must exist, relative to it.
        source: Where the data are available.

    Raises:
        IfamError: There is no such folder, or something is missing in it.
    """
    if root is None:
        raise IfamError(
            f"The benchmark '{benchmark}' needs the folder of its files; give --root DIR (available from {source})."
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


def read_csv(path: Path, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file, each with its line number; see `iter_csv`."""
    return list(iter_csv(path, columns))


def iter_csv(path: Path, columns: Iterable[str], advice: str = "") -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file, each with its line number, which are read one by one.

    Args:
        path: The file, with a header; in UTF-8 or UTF-16, with values separated by commas, semicolons or tabs.
        columns: Required columns.
        advice: What to do where one of them is missing.

    Raises:
        IfamError: The file cannot be read, or lacks a column, or has a line that is too short or too long.
    """
    columns = list(columns)
    # The separator is the one that gives the required columns.
    headers = {separator: _header(path, separator) for separator in ",;\t"}
    separator = next((one for one, names in headers.items() if {*columns} <= {*names}), None)
    if separator is None:
        header = max(headers.values(), key=len)
        missing = next(name for name in columns if name not in header)
        advice = f"; {advice}" if advice else ""
        raise IfamError(f"{path} has no column {missing!r}; it has {', '.join(header) or 'no header at all'}{advice}.")
    header = headers[separator]
    if repeated := [name for name in header if name and header.count(name) > 1]:
        raise IfamError(f"{path} has two columns {repeated[0]!r}; rename or remove one.")
    named = sum(map(bool, header))
    for line, values in islice(_rows_of(path, separator), 1, None):
        # Spreadsheets may add empty columns.
        if len(values) < named or any(value.strip() for value in values[len(header) :]):
            kind = {",": "comma", ";": "semicolon", "\t": "tab"}[separator]
            raise IfamError(
                f"{path}, line {line} has {len(values)} values, but the header has {len(header)}; quote values that "
                f"contain a {kind}."
            )
        yield line, {name: value.strip() for name, value in zip(header, values, strict=False) if name}


def _header(path: Path, separator: str) -> list[str]:
    return [name.strip() for name in next(iter(_rows_of(path, separator)), (0, []))[1]]


def _rows_of(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Number and values of each line that is not blank."""
    reader = csv.reader(_lines_of(path), delimiter=separator)
    try:
        for values in reader:
            if any(value.strip() for value in values):
                yield reader.line_num, values
    except csv.Error as error:
        raise IfamError(f"{path} cannot be read as a CSV file ({error}); save it as CSV again.") from None


def _lines_of(path: Path) -> Iterator[str]:
    """The lines of a file in UTF-8 or UTF-16."""
    try:
        with path.open("rb") as file:
            marked = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
        with path.open(encoding="utf-16" if marked else "utf-8-sig", newline="") as text:
            for line in text:
                if "\0" in line:
                    raise IfamError(f"{path} is not a CSV file: it contains zero bytes; save it as CSV in UTF-8.")
                yield line
    except OSError as error:
        raise IfamError(f"{path} cannot be read ({error.strerror}); change its permissions.") from None
    except UnicodeDecodeError:
        raise IfamError(
            f"{path}, line {_undecodable(path)} cannot be read as a CSV file, since it is not in UTF-8; save it again "
            f"in UTF-8."
        ) from None


def _undecodable(path: Path) -> int:
    """Number of the first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def listed_path(root: Path, cell: str) -> Path:
    """The path of a file in a list: as written, or else after the expansions of a shell or in another Unicode form.

    Raises:
        IfamError: It begins with a variable, user or drive that does not exist here.
    """
    for text in (cell, *(unicodedata.normalize(form, cell) for form in ("NFC", "NFD"))):
        if os.path.lexists(root / text):
            return root / text
    return root / local_path(cell)


def read_words(path: Path, values: int) -> dict[str, list[str]]:
    """A file with an identifier and some values on each line, separated by spaces; the last may contain spaces.

    Raises:
        IfamError: The file cannot be read, or a line has too few values.
    """
    values_by_id: dict[str, list[str]] = {}
    for number, line in enumerate(_lines(path), 1):
        words = line.split(maxsplit=values)
        if words and len(words) != values + 1:
            raise IfamError(
                f"{path}, line {number} has {len(words)} values, but {values + 1} are expected; re-download the file."
            )
        if words:
            values_by_id[words[0]] = words[1:]
    return values_by_id


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise IfamError(f"{path} cannot be read as text ({error}); re-download the file.") from None


Label = TypeVar("Label", int, str)


def number_labels(labels: Iterable[Label]) -> dict[Label, int]:
    """Map sorted labels to 0, 1, 2, ..."""
    return {label: index for index, label in enumerate(sorted(set(labels)))}
