"""Tables of answers on the disk: batches are added as they are computed, and a run goes on after its last row."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib import import_module
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from ifam.errors import IfamError
from ifam.importing import import_extra
from ifam.io import replacing
from ifam.prediction.row import Prediction

COLUMNS = tuple(field.name for field in fields(Prediction) if field.name != "maps")
# Rows that are written to a Parquet file at once.
ROW_GROUP = 10_000
# Of a name that is not UTF-8, the bytes that are not are written with escapes.
_ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}


def as_dict(row: Prediction) -> dict[str, Any]:
    """A row as JSON has it."""
    values = {name: getattr(row, name) for name in COLUMNS}
    for name in ("path", "overlay"):
        values[name] = None if values[name] is None else str(values[name])
    for name in ("top", "classes", "contributions", "flags"):
        values[name] = None if values[name] is None else [*values[name]]
    return values


def from_dict(values: dict[str, Any]) -> Prediction:
    """The opposite of `as_dict`.

    Raises:
        KeyError, TypeError, ValueError: It is not a row.
    """
    values = {name: values[name] for name in COLUMNS}
    values["path"] = Path(values["path"])
    values["overlay"] = None if values["overlay"] is None else Path(values["overlay"])
    values["top"] = tuple((str(name), float(share)) for name, share in values["top"])
    for name in ("classes", "contributions", "flags"):
        values[name] = None if values[name] is None else tuple(values[name])
    return Prediction(**values)


class Table:
    """A text file with a row after the other.

    Args:
        path: The file. It is made with the first row.

    Raises:
        IfamError: It cannot be read or written.
    """

    endings: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path) -> None:
        self.path, self._size = path, 0

    @property
    def empty(self) -> bool:
        """Whether there is no row."""
        return not self._size

    def go_on(self) -> None:
        """Go on after the last whole row; what was half-written after it is cut off.

        Raises:
            IfamError: The file is damaged, or cannot be read.
        """
        if self.path.exists():
            try:
                self._size = self._whole()
            except OSError as error:
                raise IfamError(f"{self.path} cannot be read ({error.strerror or error}).") from error

    def rows(self) -> Iterator[Prediction]:
        """The rows that are there, which are read one by one.

        Raises:
            IfamError: One is damaged.
        """
        for number, values in enumerate(self._records() if self._size else (), 1):
            try:
                yield from_dict(values)
            except (KeyError, TypeError, ValueError) as error:
                raise self._damaged(number, error) from error

    def add(self, rows: Sequence[Prediction]) -> None:
        """Write rows to the disk: what comes after them may be interrupted.

        Raises:
            IfamError: The file cannot be written.
        """
        text = ("" if self._size else self._header()) + "".join(map(self._line, rows))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self._size else "wb") as file:
                file.truncate(self._size)
                file.seek(self._size)
                file.write(text.encode(**_ENCODING))
                file.flush()
                os.fsync(file.fileno())
                self._size = file.tell()
        except OSError as error:
            raise IfamError(
                f"{self.path} cannot be written ({error.strerror or error}); make room or choose another --out, and "
                f"go on with --resume."
            ) from error

    def close(self, complete: bool) -> None:
        """Finish the file.

        Args:
            complete: Whether it has all rows.
        """

    def discard(self) -> None:
        """Remove what is there of an earlier run."""
        self.path.unlink(missing_ok=True)

    def _damaged(self, row: int, reason: object) -> IfamError:
        return IfamError(
            f"{self.path}, row {row} is damaged or not one of `ifam predict` ({reason}); remove it, or start over with "
            f"--overwrite."
        )

    def _header(self) -> str:
        return ""

    def _line(self, row: Prediction) -> str:
        raise NotImplementedError

    def _records(self) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def _whole(self) -> int:
        """Bytes up to the end of the last whole row."""
        raise NotImplementedError


class JsonLines(Table):
    """An object for each row, on a line of its own."""

    endings = (".jsonl",)

    def _line(self, row: Prediction) -> str:
        return json.dumps(as_dict(row), ensure_ascii=False) + "\n"

    def _records(self) -> Iterator[dict[str, Any]]:
        # In bytes, only a line feed ends a line: names may hold other characters that do, such as U+2028.
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise self._damaged(number, error) from error

    def _whole(self) -> int:
        with self.path.open("rb") as file:
            return sum(len(line) for line in file if line.endswith(b"\n"))


class CsvTable(Table):
    """Comma-separated values in UTF-8 under a header; lists are written as JSON."""

    endings = (".csv",)
    _lists = ("top", "classes", "contributions", "flags")
    _numbers = (
        *("label", "probability", "visible_fraction", "familiarity"),
        *("selector_probability", "prior"),
    )

    def _header(self) -> str:
        return _csv_line(COLUMNS)

    def _line(self, row: Prediction) -> str:
        values = as_dict(row)
        lists = {name: json.dumps(values[name], ensure_ascii=False) for name in self._lists if values[name] is not None}
        return _csv_line((values | lists).values())

    def _records(self) -> Iterator[dict[str, Any]]:
        for _, values in islice(self._values(), 1, None):
            record: dict[str, Any] = {name: value or None for name, value in zip(COLUMNS, values, strict=True)}
            for name in (*self._lists, *self._numbers):
                record[name] = None if record[name] is None else json.loads(record[name])
            yield record

    def _whole(self) -> int:
        whole = 0
        for number, (end, values) in enumerate(self._values()):
            if len(values) != len(COLUMNS) or (number == 0 and tuple(values) != COLUMNS):
                raise self._damaged(number, f"{len(values)} values in place of {len(COLUMNS)}, or other columns")
            whole = end
        return whole

    def _values(self) -> Iterator[tuple[int, list[str]]]:
        """The cells of each whole row, and the byte at which it ends; names may hold line breaks."""
        end, line, number = 0, b"\n", 0

        def lines() -> Iterator[str]:
            nonlocal end, line
            with self.path.open("rb") as file:
                for line in file:
                    end += len(line)
                    if line.endswith(b"\n"):
                        yield line.decode()

        reader = csv.reader(lines(), strict=True)
        try:
            for values in reader:
                yield end, values
                number += 1
        except (csv.Error, UnicodeDecodeError) as error:
            # In a row that was half-written, a quotation ends nowhere.
            if "unexpected end of data" not in str(error):
                raise self._damaged(number + 1, error) from error


def _csv_line(values: Any) -> str:
    text = StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


class Parquet(Table):
    """A Parquet file in groups of rows, which is whole only at its end: until then, rows are kept as JSON lines."""

    endings = (".parquet",)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        _pyarrow()
        self._journal = JsonLines(path.with_name(f"{path.name}.jsonl"))

    @property
    def empty(self) -> bool:
        """Whether there is no row."""
        return self._journal.empty

    def go_on(self) -> None:
        """Go on with the JSON lines, or with those of a file that was finished."""
        if not self._journal.path.exists() and self.path.exists():
            parquet = import_module("pyarrow.parquet")
            try:
                for group in parquet.ParquetFile(self.path).iter_batches(ROW_GROUP):
                    self._journal.add([_from_arrow(record) for record in group.to_pylist()])
            except (OSError, ValueError, KeyError, TypeError) as error:
                self._journal.discard()
                raise IfamError(
                    f"{self.path} is damaged or not one of `ifam predict` ({error}); start over with --overwrite."
                ) from error
        self._journal.go_on()

    def rows(self) -> Iterator[Prediction]:
        """The rows that are there."""
        return self._journal.rows()

    def add(self, rows: Sequence[Prediction]) -> None:
        """Write rows to the disk."""
        self._journal.add(rows)

    def close(self, complete: bool) -> None:
        """Write the Parquet file from the JSON lines, which are kept until all rows are there."""
        rows = self.rows()
        parquet = import_module("pyarrow.parquet")
        schema = _schema()
        with replacing(self.path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
            while group := [_to_arrow(row) for row in islice(rows, ROW_GROUP)]:
                writer.write_table(_pyarrow().Table.from_pylist(group, schema=schema))
        if complete:
            self._journal.discard()

    def discard(self) -> None:
        """Remove what is there of an earlier run."""
        super().discard()
        self._journal.discard()


def _pyarrow() -> Any:
    """The library that writes Parquet files.

    Raises:
        IfamError: It is not installed.
    """
    instead = ", or choose an --out that ends with .csv or .jsonl"
    return import_extra("pyarrow", "parquet", "Parquet files are written with", instead)


def _schema() -> Any:
    arrow = _pyarrow()
    text, real = arrow.string(), arrow.float64()
    kinds = {
        "label": arrow.int32(),
        "top": arrow.list_(arrow.struct([("class_name", text), ("probability", real)])),
        **dict.fromkeys(("classes", "flags"), arrow.list_(text)),
        "contributions": arrow.list_(real),
        **dict.fromkeys(("probability", "visible_fraction", "familiarity", "selector_probability", "prior"), real),
    }
    return arrow.schema([(name, kinds.get(name, text)) for name in COLUMNS])


def _to_arrow(row: Prediction) -> dict[str, Any]:
    values = as_dict(row)
    top = [{"class_name": name, "probability": share} for name, share in values["top"]]
    paths = {name: values[name] and values[name].encode(**_ENCODING).decode() for name in ("path", "overlay", "error")}
    return {**values, "top": top, **paths}


def _from_arrow(record: dict[str, Any]) -> Prediction:
    top = [(one["class_name"], one["probability"]) for one in record["top"]]
    return from_dict({**record, "top": top})


TABLES = {ending: table for table in (CsvTable, JsonLines, Parquet) for ending in table.endings}


def table_of(path: Path) -> Table:
    """The table for a file, by its ending.

    Raises:
        IfamError: There is none for this ending, or its library is not installed.
    """
    kind = TABLES.get(path.suffix.lower())
    if kind is None:
        raise IfamError(
            f"{path} ends with {path.suffix or 'nothing'}, but {', '.join(TABLES)} is expected, or an existing folder; "
            f"choose another --out."
        )
    return kind(path)
