"""Which images are to be classified: files, folders, patterns, CSV files, and lists that are read as they come."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from ifam.data.benchmarks.folder import find_list
from ifam.data.dicom import DICOM
from ifam.data.files import choose_images, list_images, readable_extensions
from ifam.data.members import is_file
from ifam.data.source_files import iter_csv, listed_path
from ifam.data_config import FolderConfig
from ifam.errors import IfamError
from ifam.io import local_path

# Stands for a list on standard input, one path a line.
STDIN = "-"
EXPECTED = "give image files, folders, patterns such as 'photos/**/*.jpg', CSV files, or - for a list on stdin"


class Found(NamedTuple):
    """An image that was found.

    Attributes:
        path: The file, as it was given or below what was given.
        name: A name for its picture, which others may have too.
    """

    path: Path
    name: str


class _Source:
    """Some images, and their number where it is known before they are read."""

    count: int | None

    def __iter__(self) -> Iterator[Found]:
        raise NotImplementedError


def path_key(path: str | Path) -> bytes:
    """Identifies a file by its absolute path, in 16 bytes."""
    # As tables have it, where names that are not UTF-8 are written with escapes.
    text = os.path.abspath(path).encode("utf-8", "backslashreplace")
    return blake2b(text, digest_size=16).digest()


class ImageSources:
    """The images that were given, each once, in their order. Of lists and CSV files, 16 bytes a path are kept.

    Args:
        given: Files, folders, patterns, CSV files, `-`; or an iterator of paths of files, which is read as it goes.
        path_column: The column with the paths in CSV files.
        outside: Folders below those that were given to leave out, resolved.

    Attributes:
        count: Number of images, with those that were given twice; None where it is not known before they are read.
        done: Keys (`path_key`) of images to leave out, since they are done; those that were met are removed.
        done_at: When the last of these was done, in seconds of the file system.
        changed: Number of files that were changed after that, so far, and the first of them.
        repeated: Number of images that were given again, so far.

    Raises:
        IfamError: Nothing was given, or something that does not exist, is empty, or cannot be read.
    """

    def __init__(
        self,
        given: str | Path | Iterable[str | Path],
        *,
        path_column: str = "path",
        outside: Sequence[Path] = (),
    ) -> None:
        if isinstance(given, str | Path):
            given = [given]
        self._sources: list[_Source]
        if isinstance(given, Sequence):
            if not given:
                raise IfamError(f"No path was given; {EXPECTED}.")
            self._sources = [_source(one, path_column, outside) for one in given]
        else:
            self._sources = [_Lines(given)]
        counts = [source.count for source in self._sources]
        self.count = None if None in counts else sum(count or 0 for count in counts)
        self.done: set[bytes] = set()
        self.done_at = float("inf")
        self.changed: tuple[int, Path | None] = 0, None
        self.repeated = 0

    def __iter__(self) -> Iterator[Found]:
        """The images that are not done."""
        seen: set[bytes] = set()
        for source in self._sources:
            for found in source:
                key = path_key(found.path)
                if key in self.done:
                    self.done.remove(key)
                    self._compare_time(found.path)
                elif key in seen:
                    self.repeated += 1
                    continue
                else:
                    yield found
                seen.add(key)

    def _compare_time(self, path: Path) -> None:
        with suppress(OSError, ValueError):
            if path.stat().st_mtime > self.done_at:
                self.changed = self.changed[0] + 1, self.changed[1] or path


def _source(given: str | Path, path_column: str, outside: Sequence[Path]) -> _Source:
    """What one word of the command line stands for."""
    if given == STDIN:
        if sys.stdin is None:
            raise IfamError(f"There is no standard input to read a list from; {EXPECTED}.")
        return _Lines(getattr(sys.stdin, "buffer", sys.stdin))
    path = local_path(given)
    if path.is_dir() and (listed := find_list(path, path_column, FolderConfig().label_column)):
        return _Csv(listed, path_column)
    if path.is_dir():
        listing = list_images(path, outside=outside, extensions=readable_extensions() | DICOM)
        listing.require_images(path)
        listing.warn(path)
        return _Files(listing.paths, path)
    if is_file(path):
        return _Csv(path, path_column) if path.suffix.lower() == ".csv" else _Files([path], path.parent)
    if path.exists():
        raise IfamError(f"{path} is not a regular file; {EXPECTED}.")
    if glob.has_magic(str(path)):
        return _matches(path)
    raise IfamError(f"{path} does not exist; {EXPECTED}.")


def _matches(pattern: Path) -> "_Files":
    """The images that match a pattern; other files and folders are left out, as in folders, and counted."""
    listing = choose_images(map(Path, glob.iglob(str(pattern), recursive=True)), readable_extensions() | DICOM)
    if not listing.paths:
        but = f", only {listing.reasons}" if listing.left_out else ""
        raise IfamError(f"No image matches {pattern}{but}; check the pattern, and put it in quotes.")
    listing.warn(pattern)
    return _Files(listing.paths, None)


class _Files(_Source):
    """Files that are listed.

    Args:
        paths: The files.
        folder: What their names are relative to; None for the file names alone.
    """

    def __init__(self, paths: list[Path], folder: Path | None) -> None:
        self.paths, self.folder, self.count = paths, folder, len(paths)

    def __iter__(self) -> Iterator[Found]:
        for path in self.paths:
            inside = path.name if self.folder is None else str(path.relative_to(self.folder))
            yield Found(path, Path(inside).with_suffix("").as_posix().replace("/", "_"))


class _Csv(_Source):
    """Files that a CSV file lists, relative to its folder and written as for training.

    It is read once to check it, and once as it goes.
    """

    def __init__(self, path: Path, column: str) -> None:
        self.path, self.column, self.count = path, column, 0
        for line, row in iter_csv(path, [column], "give the column of the paths with --path_column"):
            if not row[column]:
                raise IfamError(f"{path}, line {line} has no {column}; fill it in or remove the line.")
            self.count += 1
        if not self.count:
            raise IfamError(f"{path} lists no images; add a row for each.")

    def __iter__(self) -> Iterator[Found]:
        for _, row in iter_csv(self.path, [self.column]):
            try:
                path = listed_path(self.path.parent, row[self.column])
            except IfamError:
                # It will be a row with an error.
                path = self.path.parent / row[self.column]
            yield Found(path, path.stem)


class _Lines(_Source):
    """Files that are listed one a line, or one by one, without an end that is known."""

    count = None

    def __init__(self, lines: Iterable[str | bytes | Path]) -> None:
        self.lines = lines

    def __iter__(self) -> Iterator[Found]:
        for line in self.lines:
            text = os.fsdecode(line.removeprefix(b"\xef\xbb\xbf") if isinstance(line, bytes) else line)
            if not isinstance(line, Path):
                text = text.rstrip("\r\n")
            if text.strip():
                yield Found(Path(text), Path(text).stem)
