"""Which files in a folder are the user's images: one rule for training, evaluation and prediction."""

import errno
import logging
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from PIL import features

from ifam.errors import IfamError

logger = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
HEIF = frozenset({".heic", ".heif"})
AVIF = frozenset({".avif"})

# What programs leave behind in folders, beside everything whose name begins with a dot.
_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
)
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})

# How image files begin, whatever they are called.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\x00", b"MM\x00*", b"BM")


def readable_extensions() -> frozenset[str]:
    """Endings of image files that can be read here, in lower case: HEIC and AVIF need libraries of their own."""
    heif = HEIF if find_spec("pillow_heif") else frozenset()
    avif = AVIF if features.check("avif") else frozenset()
    return EXTENSIONS | heif | avif


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is nobody's image by its name: hidden, or left behind by a program."""
    name = path.name.lower()
    return name.startswith(".") or name in _SYSTEM_FOLDERS or name in _SYSTEM_FILES


@dataclass
class Listing:
    """The images below a folder, and what else lies there.

    Attributes:
        paths: The images, in the order of their paths.
        left_out: Number of files and folders that were left out, by reason.
    """

    paths: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def warn(self, folder: Path) -> None:
        """Log what was left out of a folder, if anything was."""
        if self.left_out:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())
            logger.warning("%s: %d images; left out %s.", folder, len(self.paths), reasons)


def list_images(folder: Path, *, outside: Collection[Path] = ()) -> Listing:
    """Every image in a folder, at any depth.

    Hidden files and folders are left out, and those that programs leave behind. Links are followed, but no file or
    folder is read twice.

    Args:
        folder: The folder.
        outside: Folders below it that are none of it, resolved.

    Raises:
        IfamError: A folder cannot be read.
    """
    listing = Listing()
    extensions = readable_extensions()
    seen = {_identity(folder)}
    for path in _walk(folder, listing.left_out, seen, {*outside}):
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


def _walk(folder: Path, left_out: Counter[str], seen: set[tuple[int, int]], outside: set[Path]) -> Iterator[Path]:
    """Every visible file below a folder; links after what they may point to."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path.name))
    except OSError as error:
        raise IfamError(f"The folder {folder} cannot be read ({error.strerror}); change its permissions.") from error
    for path in entries:
        if is_hidden(path):
            left_out["hidden or of the system"] += 1
        elif not path.is_dir():
            yield path
        elif _identity(path) in seen:
            left_out["linked twice"] += 1
        elif not (outside and path.resolve() in outside):
            seen.add(_identity(path))
            yield from _walk(path, left_out, seen, outside)


def _identity(path: Path) -> tuple[int, int]:
    """What a file or folder is, whatever it is called."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _why_not(path: Path, extensions: frozenset[str]) -> str:
    """Why a file is not an image to read; empty where it is one."""
    try:
        status = path.stat()
    except OSError as error:
        return "linked in a circle" if error.errno == errno.ELOOP else "linked to nothing"
    ending = path.suffix.lower()
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if ending in HEIF - extensions:
        return f"{ending} (needs `pip install 'ifam[heif]'`)"
    if ending in AVIF - extensions:
        return ".avif (needs Pillow 11.3 or newer)"
    if ending not in extensions:
        if _looks_like_image(path):
            return f"an image by its content, but named {ending or 'without an ending'} (rename it)"
        return ending or "without an ending"
    return ""


def _looks_like_image(path: Path) -> bool:
    """Whether a file begins as images do."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or start[8:12] in (b"WEBP", b"avif", b"heic", b"mif1")


def image_files(folder: Path) -> list[Path]:
    """Every image in a folder, at any depth, in the order of their paths; what is left out is logged."""
    listing = list_images(folder)
    listing.warn(folder)
    return listing.paths


def sub_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, without hidden ones and those of the system, in order."""
    return ordered(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path))


def ordered(names: Iterable[str]) -> list[str]:
    """Names in their order, without repetition; whole numbers in the order of their values."""
    unique = {*names}
    if all(name.isascii() and name.isdigit() for name in unique):
        return sorted(unique, key=lambda name: (int(name), name))
    return sorted(unique)
