"""Which folders are splits, by the names that people give them, and which are classes."""

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
# The split of images that belong to none.
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
# Folders of images that have such a name alone among classes are classes: vehicles, answers, ways to treat paper.
_ALSO_CLASSES = frozenset({"train", "trains", "valid", "fold", "folds", "split", "splits"})


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, in the order train, val, test; none where the folders are classes.

    A folder is a split if it has the name of one and holds class folders. One that holds images itself, and is called
    "train", "valid", "fold" or "split" beside other folders of images, is a class.

    Raises:
        IfamError: A folder looks like a split and cannot be one.
    """
    contents = {root / name: kind for name in sub_folders(root) if (kind := _content(root / name))}
    named = [path for path in contents if path.name.casefold() in SPLIT_NAMES]
    alike = [path for path in contents if path not in named and _LIKE_A_SPLIT.fullmatch(path.name)]
    if nested := [path for path in alike if contents[path] == "classes"]:
        raise IfamError(
            f"{nested[0]} looks like a split and holds class folders, but splits are called {EXPECTED}; rename it."
        )
    splits = [path for path in named if contents[path] == "classes"]
    flat = [path for path in (*named, *alike) if contents[path] == "images"]
    classes = [path for path in flat if path.name.casefold() in _ALSO_CLASSES]
    if flat and (splits or len(flat) > 1 or not classes):
        raise IfamError(
            f"{flat[0]} looks like a split, but holds images itself; sort them into a folder for each class below it, "
            f"move it away, or, if it is a class, list the images in a CSV file (--data.csv)."
        )
    for path in classes:
        logger.warning("%s holds images itself: it is taken as a class, not as a split.", path)
    if not splits:
        _refuse_split_pairs(contents)
        return {}
    if others := [path for path in contents if path not in splits]:
        raise IfamError(
            f"{root} has the split {splits[0].name!r} and beside it the folder {others[0].name!r}, which is none; "
            f"splits are called {EXPECTED}: rename or move it."
        )
    return _by_name(splits)


def _by_name(folders: Iterable[Path]) -> dict[str, Path]:
    """Folders by the split that they are, in the order train, val, test."""
    known: dict[str, Path] = {}
    for path in folders:
        name = SPLIT_NAMES[path.name.casefold()]
        if name in known:
            raise IfamError(f"{known[name]} and {path} are both the split {name!r}; merge them, or move one away.")
        known[name] = path
    return {name: known[name] for name in ("train", "val", "test") if name in known}


def _refuse_split_pairs(folders: Iterable[Path]) -> None:
    """Refuse `cats_train` beside `cats_test`: such folders are no classes."""
    kinds: dict[str, Path] = {}
    for path in folders:
        for word in re.split(r"[\W_\d]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", path.name)):
            if kind := _WORDS.get(word.casefold()):
                kinds[kind] = path
    if len(kinds) > 1:
        first, second = list(kinds.values())[:2]
        raise IfamError(
            f"{first} and {second} look like splits, but are called otherwise; name them {EXPECTED}, with a folder "
            f"for each class below."
        )


def _content(folder: Path) -> str:
    """Whether a folder holds "images" itself, "classes" of images, or neither."""
    if count_images(folder):
        return "images"
    return "classes" if any(list_images(folder / name).paths for name in sub_folders(folder)) else ""


def count_images(folder: Path) -> int:
    """Number of images that lie in a folder itself."""
    extensions = readable_extensions()
    named = [entry for entry in entries(folder) if os.path.splitext(entry.name)[1].lower() in extensions]
    return sum(os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file() for entry in named)


def class_name(text: str) -> str:
    """The name of a class, the same whether a folder, a list or a model has it, and whatever system wrote it."""
    return unicodedata.normalize("NFC", text).strip() or text


def class_folders(root: Path) -> dict[str, Path]:
    """The folder of each class by its name.

    Raises:
        IfamError: Two folders have the same name but for the encoding of accents or for spaces around it, or a folder
            holds splits.
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
    """Refuse splits in the place of classes, or below them."""
    splits = sorted({SPLIT_NAMES[name.casefold()] for name in names if name.casefold() in SPLIT_NAMES})
    if len(splits) > 1:
        raise IfamError(
            f"{folder} holds the splits {' and '.join(splits)}, where class folders or images are expected; give the "
            f"folder that holds the splits with --root, and sort the images in each of them by class."
        )


def warn_of_similar_names(names: Iterable[str]) -> None:
    """Warn of classes whose names differ in upper and lower case alone."""
    known: dict[str, str] = {}
    for name in names:
        if (other := known.setdefault(name.casefold(), name)) != name:
            logger.warning(
                "The classes %r and %r differ in upper and lower case only; they are kept apart.", other, name
            )
