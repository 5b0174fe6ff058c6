"""Files, and members of tar files as if they were files: their paths are those of a folder, `photos-000.tar/0001.jpg`.

The headers of a tar file are read once, and then each member in its place. Nothing is unpacked.
"""

import io
import os
import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ifam.errors import IfamError

_TAR = f".tar{os.sep}"
_BLOCK = 512
# The first bytes of compressed files, and what unpacks them.
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


def open_file(path: Path) -> io.BufferedReader:
    """Open a file, or a member of a shard, to read its bytes.

    Raises:
        OSError: There is none, or it cannot be read.
        IfamError: The shard has been replaced by one that cannot be used.
    """
    if (place := _place(path)) is None:
        return path.open("rb")
    shard, (offset, size) = place
    return io.BufferedReader(_Window(shard, offset, size))


def is_file(path: Path) -> bool:
    """Whether there is such a file, or such a member of a shard; without an error for names that are too long."""
    return os.path.isfile(path) or _place_or_none(path) is not None


def file_size(path: Path) -> int:
    """Bytes of a file or of a member of a shard.

    Raises:
        OSError: There is none.
    """
    place = _place(path)
    return path.stat().st_size if place is None else place[1][1]


def read_start(path: Path, size: int) -> bytes | None:
    """The first bytes of a file or of a member of a shard; None where it cannot be read."""
    try:
        with open_file(path) as file:
            return file.read(size)
    except OSError:
        return None


def is_member(path: Path) -> bool:
    """Whether a path is that of a member of a shard."""
    return _shard_of(path) is not None


def _shard_of(path: Path) -> tuple[Path, str] | None:
    """The shard and the name of the member; None for other files."""
    text = os.fspath(path)
    end = text.lower().rfind(_TAR)
    if end < 0 or not os.path.isfile(shard := text[: end + 4]):
        return None
    return Path(shard), text[end + 5 :].replace(os.sep, "/")


def _place(path: Path) -> tuple[Path, tuple[int, int]] | None:
    """The shard of a member, and its first byte and size there; None for other files."""
    if (found := _shard_of(path)) is None:
        return None
    shard, name = found
    members = read_headers(shard)
    if name not in members:
        raise FileNotFoundError(2, f"the shard has no member {name!r}", os.fspath(path))
    return shard, members[name]


def _place_or_none(path: Path) -> tuple[Path, tuple[int, int]] | None:
    try:
        return _place(path)
    except FileNotFoundError:
        return None


class _Window(io.RawIOBase):
    """Some bytes of a file as a file."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self.file, self.offset, self.size, self.position = path.open("rb", buffering=0), offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = max(0, offset + (0, self.position, self.size)[whence])
        return self.position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self.size - self.position)]
        self.file.seek(self.offset + self.position)
        count = self.file.readinto(view) or 0
        self.position += count
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


# ------------------------------------------------------------------------------------------------- headers


def read_headers(shard: Path) -> Mapping[str, tuple[int, int]]:
    """First byte and size of each file in a shard, by its name; read once, unless the shard changes.

    Raises:
        OSError: There is no such file.
        IfamError: It is compressed or damaged, or holds what is not a file below it.
    """
    status = shard.stat()
    return _headers(shard, status.st_size, status.st_mtime_ns)


@cache
def _headers(shard: Path, size: int, changed: int) -> Mapping[str, tuple[int, int]]:
    """The members of a shard, as it was at one time."""
    members: dict[str, tuple[int, int]] = {}
    end = 0
    try:
        with shard.open("rb") as file:
            start = file.read(6)
            file.seek(0)
            for magic, program in _COMPRESSED.items():
                if start.startswith(magic):
                    raise IfamError(
                        f"{shard} is compressed, so that single members cannot be read; unpack it to a plain tar file "
                        f"with `{program}` (images are compressed themselves)."
                    )
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    end = info.offset_data + (-(-info.size // _BLOCK) * _BLOCK if info.isreg() else 0)
                    if (name := _checked(shard, info, members)) is None:
                        continue
                    if info.offset_data + info.size > size:
                        raise IfamError(f"{shard} is cut off within its member {info.name!r}; copy it again.")
                    members[name] = info.offset_data, info.size
            _check_end(shard, file, end)
    except (tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, IfamError):
            raise
        raise IfamError(f"{shard} is not a whole tar file ({error}); copy it again.") from None
    except OSError as error:
        raise IfamError(f"{shard} cannot be read ({error.strerror or error}).") from None
    return members


def _checked(shard: Path, info: tarfile.TarInfo, known: Mapping[str, Any]) -> str | None:
    """The name of a member that is a file; None for folders."""
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts:
        raise IfamError(f"{shard} has the member {info.name!r}, whose path leads out of it; write the shard again.")
    if info.isdir():
        return None
    if not info.isreg() or info.issparse():
        kind = "a link" if info.islnk() or info.issym() else "no regular file"
        raise IfamError(
            f"{shard} has the member {info.name!r}, which is {kind}; write the shard again with the file itself."
        )
    if str(path) in known:
        raise IfamError(f"{shard} has two members {info.name!r}; give each image a key of its own.")
    return str(path)


def _check_end(shard: Path, file: BinaryIO, end: int) -> None:
    """Refuse bytes behind the last member: a damaged header, or another tar file; what is there would be left out."""
    file.seek(end)
    while block := file.read(1 << 20):
        if block.count(0) != len(block):
            raise IfamError(
                f"{shard} has more after its last readable member, at byte {end:,}: a damaged header, or a second tar "
                f"file that was joined to it; write it again."
            )
