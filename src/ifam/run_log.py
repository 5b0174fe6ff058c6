"""A log of JSON lines, one for each piece of work that is done, so that a command goes on where it was stopped."""

import json
import os
from codecs import getincrementaldecoder
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from ifam.errors import IfamError


def read_log(path: Path) -> Iterator[tuple[int, Any]]:
    """Number, from 1, and content of each line that was finished, read one by one.

    Args:
        path: The file.

    Raises:
        IfamError: A line is damaged.
    """
    # In bytes, only a line feed ends a line: names may hold other characters that do, such as U+2028.
    with path.open("rb") as file:
        for number, line in enumerate(takewhile(lambda line: line.endswith(b"\n"), file), 1):
            try:
                yield number, json.loads(line)
            except ValueError as error:
                advice = "remove the file to start over, or choose another --out"
                raise IfamError(f"{path}, line {number} is damaged ({error}); {advice}.") from error


class RunLog:
    """Lines that are kept at once and read again later.

    Args:
        path: The file; made if need be. A last line that was not finished is left out, and overwritten.

    Raises:
        IfamError: The file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._size = self._whole_lines()
        except OSError as error:
            raise self._unwritable(error) from error
        except ValueError as error:
            raise IfamError(f"{path} is not text in UTF-8 ({error}); remove it, or choose another --out.") from error

    @property
    def empty(self) -> bool:
        """Whether there is no line."""
        return self._size == 0

    def entries(self) -> Iterator[tuple[int, Any]]:
        """Number, from 1, and content of each line, which are read one by one.

        Raises:
            IfamError: A line is damaged.
        """
        return read_log(self.path)

    def _whole_lines(self) -> int:
        """Bytes of the lines that were finished; the last character of the one after them may be cut."""
        decoder, size = getincrementaldecoder("utf-8")(), 0
        with self.path.open("rb") as file:
            for line in file:
                decoder.decode(line)
                size += len(line) if line.endswith(b"\n") else 0
        return size

    def add(self, entry: Any) -> None:
        """Write a line to the disk: what comes after it may be interrupted.

        Raises:
            IfamError: The file cannot be written.
        """
        line = json.dumps(entry, ensure_ascii=False, default=str)
        try:
            with self.path.open("r+", encoding="utf-8", errors="backslashreplace") as file:
                file.truncate(self._size)
                file.seek(0, os.SEEK_END)
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
                self._size = file.tell()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> IfamError:
        reason = error.strerror or error
        return IfamError(f"{self.path} cannot be written ({reason}); choose another --out.")
