"""Find the images in a folder, by the same rule for training, evaluation and prediction."""

import errno
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import features

from ifam.data.images import READS_HEIF
from ifam.errors import IfamError
from ifam.pulse import reported

logger = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
HEIF = frozenset({".heic", ".heif"})
AVIF = frozenset({".avif"})

# Folders and files that programs leave behind, besides those whose name begins with a dot.
_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
)
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
# Marks folders of pictures that `ifam predict` has drawn.
OVERLAYS = "overlays.json"
# Files that mark the output folders of `ifam`, whose pictures are not images to read.
_OUR_FILES = (OVERLAYS, "predictions.json", "audit.json", "challenge.json", "results.json", "train.yaml")

# The first bytes of image files.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\x00", b"MM\x00*", b"BM")


def readable_extensions() -> frozenset[str]:
    """Endings of image files that can be read here, in lower case: HEIC and AVIF need libraries of their own."""
    return EXTENSIONS | (HEIF if READS_HEIF else frozenset()) | (AVIF if features.check("avif") else frozenset())


def is_hidden(name: str) -> bool:
    """Whether a file or folder is ignored by its name: hidden, or left behind by a program."""
    name = name.lower()
    return name.startswith(".") or name in _SYSTEM_FOLDERS or name in _SYSTEM_FILES


def is_ours(folder: Path) -> bool:
    """Whether a verb of `ifam` wrote to a folder, or to every folder in it, as in `runs/`."""
    return _has_ours(folder) or _holds_only_ours(folder)


def _has_ours(folder: str | Path) -> bool:
    above, name = os.path.split(folder)
    if name == "audit_pictures" and os.path.exists(os.path.join(above, "audit.json")):
        return True
    if name == "tokens" and _holds_tokens(folder):
        return True
    return any(os.path.exists(os.path.join(folder, name)) for name in _OUR_FILES)


def _holds_tokens(folder: str | Path) -> bool:
    """Whether a folder contains kept tokens (`ifam.models.token_cache`) and nothing else."""
    try:
        names = [name for name in os.listdir(folder) if not is_hidden(name)]
    except OSError:
        return False
    return bool(names) and all(re.fullmatch("[0-9a-f]{16}", name) for name in names)


def _holds_only_ours(folder: Path) -> bool:
    """Whether a folder contains output folders of `ifam` and nothing else; stops at the first other entry."""
    count = 0
    with suppress(OSError), os.scandir(folder) as inside:
        for entry in inside:
            if not is_hidden(entry.name):
                if not (is_folder(entry) and _has_ours(entry.path)):
                    return False
                count += 1
    return count > 0


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden, links last, without a system call for each of them.

    Raises:
        IfamError: It cannot be read.
    """
    return [entry for entry in _entries(folder) if not is_hidden(entry.name)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as inside:
            return sorted(inside, key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        raise _unreadable(folder, error) from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether this is a folder, or a link to one; without an error for links that lead nowhere."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _unreadable(path: Path, error: OSError) -> IfamError:
    return IfamError(f"{path} cannot be read ({error.strerror or error}); change its permissions, or move it.")


@dataclass
class Listing:
    """The images below a folder, and a count of its other files.

    Attributes:
        paths: The images, in the order of their paths.
        left_out: Number of files and folders that were left out, by reason.
    """

    paths: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def reasons(self) -> str:
        """What was left out, by reason: "3 .txt, 1 linked twice"."""
        return ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())

    def warn(self, folder: Path) -> None:
        """Log what was left out of a folder, if anything was."""
        if self.left_out:
            logger.warning("%s: %d images; left out %s.", folder, len(self.paths), self.reasons)

    def require_images(self, folder: Path) -> None:
        """Refuse a folder without an image.

        Raises:
            IfamError: There is no image.
        """
        if not self.paths:
            but = f", but {self.reasons}" if self.left_out else ""
            known = ", ".join(sorted(readable_extensions()))
            raise IfamError(
                f"The folder {folder} contains no images ({known}){but}; add some, or leave the folder out."
            )


def list_images(folder: Path, *, outside: Collection[Path] = (), extensions: Collection[str] = ()) -> Listing:
    """Every image in a folder, at any depth.

    Hidden files and folders are left out, and those that programs leave behind, including `ifam`. Links are followed,
    but no file or folder is read twice, nor a parent of the given folder.

    Args:
        folder: The folder.
        outside: Folders below it to leave out, resolved.
        extensions: Endings of the images, in lower case; those that can be read where none are given.

    Raises:
        IfamError: A folder cannot be read.
    """
    listing = Listing()
    extensions = extensions or readable_extensions()
    real = folder.resolve()
    seen = {_identity(path) for path in (real, *real.parents)}
    for path in reported(_walk(folder, listing.left_out, seen, {*outside}), f"listing {folder}"):
        reason = _why_not(path, extensions)
        if not reason and path.is_symlink() and _identity(path) in seen:
            reason = "linked twice"
        if reason:
            listing.left_out[reason] += 1
            continue
        seen.add(_identity(path))
        listing.paths.append(path)
    listing.paths.sort()
    return listing


def choose_images(paths: Iterable[Path], extensions: Collection[str] = ()) -> Listing:
    """The images among some files and folders, by the rule of `list_images`; folders are left out.

    Args:
        paths: The files and folders.
        extensions: Endings of the images, in lower case; those that can be read where none are given.

    Raises:
        IfamError: A file may not be looked at.
    """
    listing = Listing()
    extensions = extensions or readable_extensions()
    for path in paths:
        if path.is_dir():
            reason = "folders"
        elif is_hidden(path.name):
            reason = "hidden or of the system"
        elif (path.parent / OVERLAYS).exists():
            reason = "written by ifam"
        else:
            reason = _why_not(path, extensions)
        if reason:
            listing.left_out[reason] += 1
        else:
            listing.paths.append(path)
    listing.paths.sort()
    return listing


def _walk(folder: Path, left_out: Counter[str], seen: set[tuple[int, int]], outside: set[Path]) -> Iterator[Path]:
    """Every visible file below a folder; links after their possible targets."""
    for entry in _entries(folder):
        path = Path(entry.path)
        if is_hidden(entry.name):
            left_out["hidden or of the system"] += 1
        elif not is_folder(entry):
            yield path
        elif _identity(path) in seen:
            left_out["linked twice"] += 1
        elif outside and path.resolve() in outside:
            continue
        elif is_ours(path):
            left_out["written by ifam"] += 1
        else:
            seen.add(_identity(path))
            yield from _walk(path, left_out, seen, outside)


def _identity(path: Path) -> tuple[int, int]:
    """Identifies a file or folder independently of its path."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _why_not(path: Path, extensions: Collection[str]) -> str:
    """Why a file is not an image to read; empty where it is one."""
    try:
        status = path.stat()
    except OSError as error:
        if error.errno == errno.EACCES:
            raise _unreadable(path, error) from error
        return "linked in a circle" if error.errno == errno.ELOOP else "linked to nothing"
    ending = path.suffix.lower()
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if ending in HEIF.difference(extensions):
        return f"{ending} (needs `pip install 'ifam[heif]'`)"
    if ending in AVIF.difference(extensions):
        return ".avif (needs a Pillow with AVIF)"
    if ending not in extensions:
        if _looks_like_image(path):
            return f"an image by its content, but named {ending or 'without an ending'} (rename it)"
        return ending or "without an ending"
    return ""


def _looks_like_image(path: Path) -> bool:
    """Whether the first bytes of a file are those of an image."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or start[8:12] in (b"WEBP", b"avif", b"heic", b"mif1")


def image_files(folder: Path, extensions: Collection[str] = ()) -> list[Path]:
    """Every image in a folder, at any depth, in the order of their paths; what is left out is logged."""
    listing = list_images(folder, extensions=extensions)
    listing.warn(folder)
    return listing.paths


def sub_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in order, without hidden ones, those of the system and the output of `ifam`."""
    folders = [Path(entry.path) for entry in entries(folder) if is_folder(entry)]
    return ordered(path.name for path in folders if not is_ours(path))


def ordered(names: Iterable[str]) -> list[str]:
    """Sorted names without duplicates; whole numbers are sorted by value."""
    unique = {*names}
    if all(name.isascii() and name.isdigit() for name in unique):
        return sorted(unique, key=lambda name: (int(name), name))
    return sorted(unique)
