"""Helpers of loaders: find the folder of a data set, and read lists in text files."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ifam.errors import IfamError


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
    """The rows of a CSV file, each with its line number.

    Args:
        path: The file, with a header; in UTF-8 or UTF-16, with values separated by commas, semicolons or tabs.
        columns: Required columns.

    Raises:
        IfamError: The file cannot be read, or lacks a column, or has a line that is too short or too long.
    """
    text = _decoded(path)
    columns = list(columns)
    try:
        # The separator is the one that gives the required columns.
        tables = [list(_lines_of(text, separator)) for separator in ",;\t"]
    except csv.Error as error:
        raise IfamError(f"{path} cannot be read as a CSV file ({error}); save it as CSV again.") from None
    headers = [[name.strip() for name in table[0][1]] if table else [] for table in tables]
    chosen = next((i for i, names in enumerate(headers) if {*columns} <= {*names}), None)
    if chosen is None:
        header = max(headers, key=len)
        missing = next(name for name in columns if name not in header)
        raise IfamError(f"{path} has no column {missing!r}; it has {', '.join(header) or 'no header at all'}.")
    header, rows = headers[chosen], tables[chosen][1:]
    if repeated := [name for name in header if name and header.count(name) > 1]:
        raise IfamError(f"{path} has two columns {repeated[0]!r}; rename or remove one.")
    named = sum(map(bool, header))
    for line, values in rows:
        # Spreadsheets may add empty columns.
        if len(values) < named or any(value.strip() for value in values[len(header) :]):
            raise IfamError(
                f"{path}, line {line} has {len(values)} values, but the header has {len(header)}; quote values that "
                f"contain a {('comma', 'semicolon', 'tab')[chosen]}."
            )
    return [
        (line, {name: value.strip() for name, value in zip(header, values, strict=False) if name})
        for line, values in rows
    ]


def _decoded(path: Path) -> str:
    """The text of a file in UTF-8 or UTF-16."""
    try:
        data = path.read_bytes()
        encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        text = data.decode(encoding)
    except OSError as error:
        raise IfamError(f"{path} cannot be read ({error.strerror}); change its permissions.") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise IfamError(
            f"{path}, line {line} cannot be read as a CSV file, since it is not in UTF-8; save it again in UTF-8."
        ) from None
    if "\0" in text:
        raise IfamError(f"{path} is not a CSV file: it contains zero bytes; save it as CSV in UTF-8.")
    return text


def _lines_of(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Number and values of each line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    for values in reader:
        if any(value.strip() for value in values):
            yield reader.line_num, values


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
