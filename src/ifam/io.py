"""Paths as users write them, and files that are complete or absent, and never replaced unasked.

The rule of every verb: a file takes the place of one that the same run wrote (the same command under the same
conditions); any other file stays, unless `--overwrite` asks for its replacement.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ifam.distributed import first_process
from ifam.errors import IfamError

# Enough to notice a full disk before the work whose result would not fit.
_PROBE = bytes(1 << 16)


def local_path(path: str | Path) -> Path:
    """A path with what a shell would have expanded: `~`, `~user`, `$NAME` and `${NAME}`.

    A shell expands `--root ~/x` but not `--root=~/x`, and nothing that stands in a YAML file. A path that exists as
    it is written is left alone, but for `~`. Elsewhere than on Windows, a backslash is read as a slash.

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


def ensure_writable(target: Path, *, folder: bool = False) -> None:
    """Try to write where a result will go, before the work whose result it is; nothing is left behind.

    Args:
        target: The file, or the folder, that will be written; it need not exist.
        folder: Whether it is a folder.

    Raises:
        IfamError: It cannot be written: a file in the place of a folder, a read-only or full disk, ...
    """
    where = target if folder else target.parent
    if not first_process():
        return
    if os.path.exists(target) and folder != target.is_dir():
        kinds = ("a file", "a folder") if folder else ("a folder", "a file")
        raise IfamError(f"{target} is {kinds[0]}, but {kinds[1]} is expected; choose another --out.")
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
        raise _unwritable(target, error) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        for path in fresh:
            with suppress(OSError):
                path.rmdir()


def ensure_space(folder: Path, size: int) -> None:
    """Refuse to begin what would fill the disk.

    Args:
        folder: A folder that exists.
        size: Bytes that will be written to it.

    Raises:
        IfamError: There is less space.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise IfamError(
            f"{folder} has {free / 1e6:,.0f} MB left, but about {size / 1e6:,.0f} MB are needed for models and "
            f"checkpoints; make room, or choose another --out."
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside a file to write to; what is there takes the file's place when the block ends without an error.

    Args:
        path: The file; folders above it are made. A link stays one, and a device is written to directly.

    Raises:
        IfamError: It cannot be written. What was there before is still there.
    """
    if _is_device(path):
        try:
            yield path
        except OSError as error:
            raise _unwritable(path, error) from error
        return
    target = Path(os.path.realpath(path))
    # The ending tells Pillow the format.
    beside = target.with_name(f".{target.stem[:80]}.{os.getpid()}.tmp{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        beside.replace(target)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, complete or not at all.

    File names that are not UTF-8 are written with escapes, which JSON gives back as they were.

    Raises:
        IfamError: It cannot be written.
    """
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: Path, content: Mapping[str, Any], **options: Any) -> None:
    """Write a JSON file, complete or not at all; `options` go to `json.dumps`.

    Raises:
        IfamError: It cannot be written.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, **options) + "\n")


def printable(text: object) -> str:
    """A text that can be printed: what is not UTF-8 in a file name, or would steer the terminal, is escaped."""
    shown = str(text).encode("utf-8", "backslashreplace").decode()
    # Spaces that do not break, and what joins the pieces of an emoji or the letters of some alphabets, are harmless.
    return "".join(c if c.isprintable() or c in "\n\t\u00a0\u202f\u200c\u200d" else repr(c)[1:-1] for c in shown)


def foreign_content(path: Path) -> str:
    """What a file holds that stands in the place of another, and how to get that one; empty where nothing is seen."""
    try:
        with path.open("rb") as file:
            start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    except OSError:
        return ""
    if not start:
        return "the file is empty; copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer in the place of the file; run `git lfs pull` to download that"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page in the place of the file; open it in a browser to see why, and download the file again"
    return ""


# ------------------------------------------------------------------------------------------------- replacing


def run_digest(conditions: Mapping[str, Any]) -> str:
    """Eight characters that name a run: equal where all of its conditions are."""
    text = json.dumps(conditions, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_replaceable(path: Path, run: str, overwrite: bool) -> None:
    """Refuse to replace a JSON file or page that another run wrote, or that is not a result at all.

    Args:
        path: The file, which need not exist.
        run: What `run_digest` gave for the run that is about to begin; results name theirs under `conditions`, pages
            in their head.
        overwrite: Whether the replacement was asked for.

    Raises:
        IfamError: It is there, and of something else.
    """
    if overwrite or not first_process() or not os.path.exists(path) or _is_device(path):
        return
    known = _run_of(path)
    if known != run:
        what = "is not a result of `ifam`" if known is None else "is a result under other conditions"
        raise IfamError(f"{path} exists and {what}; choose another --out, or replace it with --overwrite.")


def _run_of(path: Path) -> str | None:
    """The run that a result or a page names; None for any other file."""
    try:
        text = path.read_text(encoding="utf-8")
        if page := re.search(r'<meta name="ifam-run" content="(\w+)">', text[:2000]):
            return page[1]
        run = json.loads(text)["conditions"].get("run")
        return None if run is None else str(run)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def check_absent(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuse to replace anything.

    Args:
        paths: What is about to be written.
        overwrite: Whether the replacement was asked for.

    Raises:
        IfamError: One of them is there.
    """
    for path in paths if first_process() and not overwrite else ():
        if os.path.lexists(path) and not _is_device(path):
            raise IfamError(f"{path} already exists; choose another --out, or replace it with --overwrite.")


def check_folder(folder: Path, result: str, others: Iterable[str], run: str, overwrite: bool) -> None:
    """Refuse to write a result and the files that belong to it over those of another run, or of something else.

    Args:
        folder: Where they go.
        result: Name of the JSON file that names its run.
        others: Names of what is written with it.
        run: What `run_digest` gave.
        overwrite: Whether the replacement was asked for.

    Raises:
        IfamError: The folder holds one of them, and not of this run.
    """
    if (folder / result).exists():
        check_replaceable(folder / result, run, overwrite)
    else:
        check_absent([folder / name for name in others], overwrite)


def _is_device(path: Path) -> bool:
    """Whether this is something like /dev/null, which is written to and never replaced."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _unwritable(path: Path, error: OSError) -> IfamError:
    return IfamError(f"{path} cannot be written ({error.strerror or error}); choose another place with --out.")
