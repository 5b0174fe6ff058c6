"""Paths of users, and files that are written atomically and not replaced without `--overwrite`.

The rule of every verb: a file replaces one that the same run wrote (the same command under the same conditions); any
other file is only replaced with `--overwrite`.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ifam.distributed import first_process
from ifam.errors import IfamError

# Enough to detect a full disk before the work whose result would not fit.
_PROBE = bytes(1 << 16)
_ELSEWHERE = "choose another place with --out"
# Longer words are shortened in messages.
_LONGEST_WORD = 500


def local_path(path: str | Path) -> Path:
    """A path with the expansions of a shell: `~`, `~user`, `$NAME` and `${NAME}`.

    A shell expands `--root ~/x` but not `--root=~/x`, and nothing in a YAML file. In a path that exists as written,
    only `~` is expanded. Except on Windows, a backslash is read as a slash.

    Raises:
        IfamError: The path is empty, or begins with a variable, user or drive that does not exist here.
    """
    text = os.fspath(path)
    if not text.strip() or "\0" in text:
        raise IfamError(f"The path {text!r} names nothing; give a file or folder, or leave the option out.")
    text = os.path.expanduser(text)
    if os.path.lexists(text):
        return Path(text)
    text = os.path.expanduser(os.path.expandvars(text.replace("\\", "/") if os.sep == "/" else text))
    if os.path.lexists(text):
        return Path(text)
    if unknown := re.match(r"\$(\w+|\{\w+\})|~[^/]+(?=/)|[A-Za-z]:/" if os.sep == "/" else r"\$(\w+|\{\w+\})", text):
        raise IfamError(f"The path {os.fspath(path)} begins with {unknown[0]}, which is not known here; write it out.")
    return Path(text)


def ensure_writable(target: Path, *, folder: bool = False, option: str = "--out") -> None:
    """Check that a result can be written, before the work on it; no files are left behind.

    Args:
        target: The file, or the folder, that will be written; it need not exist.
        folder: Whether it is a folder.
        option: The option that names it.

    Raises:
        IfamError: It cannot be written: a file in the place of a folder, a read-only or full disk, ...
    """
    where = target if folder else target.parent
    if not first_process():
        return
    if os.path.exists(target) and folder != target.is_dir():
        kinds = ("a file", "a folder") if folder else ("a folder", "a file")
        raise IfamError(f"{target} is {kinds[0]}, but {kinds[1]} is expected; choose another {option}.")
    if _is_device(target):
        return
    fresh = [path for path in (where, *where.parents) if not os.path.exists(path)]
    probe = where / f".ifam-{os.getpid()}.tmp"
    try:
        with suppress(FileNotFoundError):
            os.lstat(target)
        where.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target) and not os.access(target, os.W_OK):
            raise PermissionError(None, "it is read-only")
    except OSError as error:
        raise _unwritable(target, error, f"choose another place with {option}") from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        for path in fresh:
            with suppress(OSError):
                path.rmdir()


def ensure_space(folder: Path, size: int, what: str = "models and checkpoints") -> None:
    """Refuse to start work that would fill the disk.

    Args:
        folder: A folder that exists, or will.
        size: Bytes that will be written to it.
        what: What they are for.

    Raises:
        IfamError: There is less space.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise IfamError(
            f"{folder} has {free / 1e6:,.0f} MB left, but about {size / 1e6:,.0f} MB are needed for {what}; "
            f"make room, or choose another --out."
        )


@contextmanager
def replacing(path: Path, *, sync: bool = False, advice: str = _ELSEWHERE) -> Iterator[Path]:
    """A temporary path next to a file, which replaces the file when the block ends without an error.

    Args:
        path: The file; its parents are created. A link is followed, and a device is written to directly.
        sync: Whether the content must be on the disk before it replaces the file, in case of a power failure.
        advice: What to do where it cannot be written.

    Raises:
        IfamError: It cannot be written. An existing file is left unchanged.
    """
    if _is_device(path):
        try:
            yield path
        except OSError as error:
            raise _unwritable(path, error, advice) from error
        return
    target = Path(os.path.realpath(path))
    # Pillow takes the format from the suffix.
    temporary = target.with_name(f".{target.stem[:80]}.{os.getpid()}.tmp{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(target)
        if sync and os.name == "posix":
            _sync(target.parent)
    except OSError as error:
        raise _unwritable(path, error, advice) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def appending(path: Path) -> Iterator[TextIO]:
    """A text file to add lines to, which are on the disk when the block ends.

    Raises:
        IfamError: It cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error) from error


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what processes that were killed have left half-written in a folder."""
    for path in folder.glob(".*.tmp*"):
        if re.search(r"\.\d+\.tmp(\.\w+)?$", path.name):
            with suppress(OSError):
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    File names that are not UTF-8 are written with escapes, which JSON restores.

    Raises:
        IfamError: It cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: Path, content: Mapping[str, Any], **options: Any) -> None:
    """Write a JSON file atomically; `options` go to `json.dumps`.

    Raises:
        IfamError: It cannot be written.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, **options) + "\n")


def printable(text: object) -> str:
    """A printable text: bytes of file names that are not UTF-8 and control characters are escaped."""
    escaped = str(text).encode("utf-8", "backslashreplace").decode()
    # Non-breaking spaces and the joiners of emoji and some scripts are harmless.
    return "".join(c if c.isprintable() or c in "\n\t\u00a0\u202f\u200c\u200d" else repr(c)[1:-1] for c in escaped)


def one_line(text: object) -> str:
    """A printable text on one line, in which very long words are shortened."""
    line = printable(str(text).strip()).replace("\n", "\\n").replace("\t", "\\t")
    return re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: f"{word[0][:200]}[...]{word[0][-50:]}", line)


def foreign_content(path: Path) -> str:
    """What a file contains instead of the expected content, and how to fix it; empty if nothing is recognized."""
    try:
        with path.open("rb") as file:
            return foreign_bytes(file.read(512))
    except OSError:
        return ""


def foreign_bytes(start: bytes) -> str:
    """`foreign_content` of a file that begins with these bytes."""
    start = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "the file is empty; copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer instead of the file; run `git lfs pull` to download it"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page instead of the file; open it in a browser to see why, and download the file again"
    return ""


# ------------------------------------------------------------------------------------------------- replacing


def run_digest(conditions: Mapping[str, Any]) -> str:
    """A digest of eight characters that identifies a run by all of its conditions."""
    text = json.dumps(conditions, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_replaceable(path: Path, run: str, overwrite: bool, option: str = "--out") -> None:
    """Refuse to replace a JSON file or page that another run wrote, or that is not a result.

    Args:
        path: The file, which need not exist.
        run: The `run_digest` of the new run; results have theirs under `conditions`, pages in their head.
        overwrite: Whether to allow the replacement.
        option: The option that names it, for the message; empty where none does.

    Raises:
        IfamError: The file exists and was not written by this run.
    """
    if overwrite or not first_process() or not os.path.exists(path) or _is_device(path):
        return
    previous = run_of(path)
    if previous != run:
        what = "is not a result of `ifam`" if previous is None else "is a result under other conditions"
        raise IfamError(f"{path} exists and {what}; {_instead(option)}.")


def run_of(path: Path) -> str | None:
    """The digest of the run in a result or a page; None for any other file."""
    try:
        text = path.read_text(encoding="utf-8")
        if page := re.search(r'<meta name="ifam-run" content="(\w+)">', text[:2000]):
            return page[1]
        run = json.loads(text)["conditions"].get("run")
        return None if run is None else str(run)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def check_absent(paths: Iterable[Path], overwrite: bool, option: str = "--out") -> None:
    """Refuse to replace existing files.

    Args:
        paths: The files to write.
        overwrite: Whether to allow the replacement.
        option: The option that names their place, for the message; empty where none does.

    Raises:
        IfamError: One of them exists.
    """
    for path in paths if first_process() and not overwrite else ():
        if os.path.lexists(path) and not _is_device(path):
            raise IfamError(f"{path} already exists; {_instead(option)}.")


def check_folder(folder: Path, result: str, others: Iterable[str], run: str, overwrite: bool) -> None:
    """Refuse to replace a result and the files that belong to it, unless this run wrote them.

    Args:
        folder: Their folder.
        result: Name of the JSON file with the digest of its run.
        others: Names of the other files.
        run: The `run_digest` of the new run.
        overwrite: Whether to allow the replacement.

    Raises:
        IfamError: The folder contains one of them, from another run.
    """
    if (folder / result).exists():
        check_replaceable(folder / result, run, overwrite)
    else:
        check_absent((folder / name for name in others), overwrite)


def _instead(option: str) -> str:
    """What to do in the place of replacing a file unasked."""
    return f"{f'choose another {option}, or ' if option else ''}replace it with --overwrite"


def _is_device(path: Path) -> bool:
    """Whether this is a device such as /dev/null, which is written to and never replaced."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _unwritable(path: Path, error: OSError, advice: str = _ELSEWHERE) -> IfamError:
    return IfamError(f"{path} cannot be written ({error.strerror or error}); {advice}.")
