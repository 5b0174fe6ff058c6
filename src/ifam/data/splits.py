"""Decide by their names which folders are splits and which are classes."""

import logging
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ifam.data.files import entries, list_images, readable_extensions, sub_folders
from ifam.errors import IfamError

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"val": "val", "valid": "val", "validation": "val"},
}
# The split of images without a split.
ALL = "all"
EXPECTED = "train, val and test (or training, valid, validation, testing)"
_WORDS = {
    **{"train": "train", "training": "train", "trn": "train", "trainval": "train", "unlabeled": "train"},
    **{"unlabelled": "train", "test": "test", "testing": "test", "tst": "test", "holdout": "test", "heldout": "test"},
    **{"val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val", "evaluation": "val"},
    **{"fold": "fold", "split": "fold"},
}
_LIKE_A_SPLIT = re.compile(
    rf"({'|'.join(_WORDS)}|held.?out|hold.?out)[\W_\d]*(set|data|images|imgs|split|samples|fold)?s?[\W_\d]*",
    re.IGNORECASE,
)
# A folder of images with such a name among other classes is a class, such as the vehicle.
_ALSO_CLASSES = frozenset({"train", "trains", "valid", "fold", "folds", "split", "splits"})


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, in the order train, val, test; empty where the folders are classes.

    A folder is a split if it has the name of one and contains class folders. One that contains images itself, and is
    called "train", "valid", "fold" or "split" next to other folders of images, is a class.

    Raises:
        IfamError: A folder looks like a split and cannot be one.
    """
    contents = {root / name: kind for name in sub_folders(root) if (kind := _content(root / name))}
    named = [path for path in contents if path.name.casefold() in SPLIT_NAMES]
    alike = [path for path in contents if path not in named and _LIKE_A_SPLIT.fullmatch(path.name)]
    if nested := [path for path in alike if contents[path] == "classes"]:
        raise IfamError(
            f"{nested[0]} looks like a split and contains class folders, but splits are called {EXPECTED}; rename it."
        )
    splits = [path for path in named if contents[path] == "classes"]
    flat = [path for path in (*named, *alike) if contents[path] == "images"]
    classes = [path for path in flat if path.name.casefold() in _ALSO_CLASSES]
    if flat and (splits or len(flat) > 1 or not classes):
        raise IfamError(
            f"{flat[0]} looks like a split, but contains images itself; sort them into a folder for each class below "
            f"it, move it, or, if it is a class, list the images in a CSV file (--data.csv)."
        )
    for path in classes:
        logger.warning("%s contains images itself: it is used as a class, not as a split.", path)
    if not splits:
        _refuse_split_pairs(contents)
        return {}
    if others := [path for path in contents if path not in splits]:
        raise IfamError(
            f"{root} has the split {splits[0].name!r} and next to it the folder {others[0].name!r}, which is not a "
            f"split; splits are called {EXPECTED}: rename or move it."
        )
    return _by_name(splits)


def _by_name(folders: Iterable[Path]) -> dict[str, Path]:
    """Folders by the split that they are, in the order train, val, test."""
    known: dict[str, Path] = {}
    for path in folders:
        name = SPLIT_NAMES[path.name.casefold()]
        if name in known:
            raise IfamError(f"{known[name]} and {path} are both the split {name!r}; merge them, or move one.")
        known[name] = path
    return {name: known[name] for name in ("train", "val", "test") if name in known}


def _refuse_split_pairs(folders: Iterable[Path]) -> None:
    """Refuse `cats_train` next to `cats_test`: such folders are not classes."""
    kinds: dict[str, Path] = {}
    for path in folders:
        for word in re.split(r"[\W_\d]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.name)):
            if kind := _WORDS.get(word.casefold()):
                kinds[kind] = path
    if len(kinds) > 1:
        first, second = list(kinds.values())[:2]
        raise IfamError(
            f"{first} and {second} look like splits, but have other names; name them {EXPECTED}, with a folder "
            f"for each class below."
        )


def _content(folder: Path) -> str:
    """Whether a folder contains "images" itself, "classes" of images, or neither."""
    if count_images(folder):
        return "images"
    return "classes" if any(list_images(folder / name).paths for name in sub_folders(folder)) else ""


def contains_images(root: Path) -> bool:
    """Whether a folder has class folders with images, or folders of splits that have."""
    return any(_content(root / name) for name in sub_folders(root))


def count_images(folder: Path) -> int:
    """Number of images directly in a folder."""
    extensions = readable_extensions()
    named = [entry for entry in entries(folder) if os.path.splitext(entry.name)[1].lower() in extensions]
    return sum(os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file() for entry in named)


def class_name(text: str) -> str:
    """The normalized name of a class, the same for folders, lists and models on every system."""
    return unicodedata.normalize("NFC", text).strip() or text


def class_folders(root: Path) -> dict[str, Path]:
    """The folder of each class by its name.

    Raises:
        IfamError: Two folder names differ only in the encoding of accents or in surrounding spaces, or a folder
            contains splits.
    """
    folders: dict[str, Path] = {}
    for name in sub_folders(root):
        folder = root / name
        known = folders.setdefault(class_name(name), folder)
        if known != folder:
            raise IfamError(f"{known} and {folder} are two folders of one class; merge them, or rename one.")
        _refuse_splits(folder, sub_folders(folder))
    _refuse_splits(root, folders)
    return folders


def _refuse_splits(folder: Path, names: Iterable[str]) -> None:
    """Refuse splits where classes are expected, or below them."""
    splits = sorted({SPLIT_NAMES[name.casefold()] for name in names if name.casefold() in SPLIT_NAMES})
    if len(splits) > 1:
        raise IfamError(
            f"{folder} contains the splits {' and '.join(splits)}, where class folders or images are expected; give "
            f"the folder that contains the splits with --root, and sort the images in each of them by class."
        )


def warn_of_similar_names(names: Iterable[str]) -> None:
    """Warn of classes whose names differ in case only."""
    known: dict[str, str] = {}
    for name in names:
        if (other := known.setdefault(name.casefold(), name)) != name:
            logger.warning("The classes %r and %r differ in case only; they stay separate classes.", other, name)
