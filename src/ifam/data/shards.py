"""Images in WebDataset shards: tar files whose members with the same key belong to one image.

    0001.jpg  0001.cls  0001.mask.png      or      0001.jpg  0001.json

The key is everything before the first dot of the name, the rest is the kind of the member. `cls` holds the class;
`json` an object with the class, and, where there are some, group and split, under the names of the columns of a CSV
file; `mask.png` the mask. Shards are plain tar files, whose members are as good as files (`ifam.data.members`).
"""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ifam.data.files import entries, is_hidden, readable_extensions, sub_folders
from ifam.data.members import read_headers
from ifam.data.splits import SPLIT_NAMES, contains_images
from ifam.data_config import FolderConfig
from ifam.errors import IfamError

logger = logging.getLogger(__name__)

# Bytes of a class, or of a JSON object; more would fill the memory.
_LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a shard.

    Attributes:
        image: Its path.
        mask: Path of its mask, None where there is none.
        row: Class, group and split by their columns, as in a CSV file.
    """

    image: Path
    mask: Path | None
    row: Mapping[str, str]


# ------------------------------------------------------------------------------------------------- samples


def read_samples(shard: Path, config: FolderConfig, left_out: Counter[str]) -> Iterator[Sample]:
    """The images of a shard, in their order.

    Args:
        shard: The tar file.
        config: Names of the columns of class, group and split.
        left_out: Counts the members of other kinds, by kind.

    Raises:
        IfamError: The shard is damaged or compressed, or an image has no class, or several files.
    """
    keys: dict[str, dict[str, str]] = {}
    members = read_headers(shard)
    for name in members:
        if any(map(is_hidden, name.split("/"))):
            continue
        folder, _, last = name.rpartition("/")
        key, _, kind = last.partition(".")
        key = f"{folder}/{key}" if folder else key
        kinds = keys.setdefault(key, {})
        if kind.lower() in kinds:
            raise IfamError(f"{shard} has the members {kinds[kind.lower()]!r} and {name!r} of one key; rename one.")
        kinds[kind.lower()] = name
    images = {ending.removeprefix(".") for ending in readable_extensions()}
    with shard.open("rb") as file:

        def text(name: str) -> str:
            offset, size = members[name]
            if size > _LONGEST:
                raise ValueError(f"it has {size:,} bytes, more than {_LONGEST:,}")
            file.seek(offset)
            return file.read(size).decode("utf-8-sig")

        for key, kinds in keys.items():
            row = _row(shard, kinds, text, config)
            pictures = [kind for kind in kinds if kind in images]
            masks = [kind for kind in kinds if kind.startswith("mask.") and kind.removeprefix("mask.") in images]
            _check_kinds(shard, key, kinds, (pictures, masks), row, config)
            used = (*pictures, *masks, *(("cls", "json") if pictures else ()))
            left_out.update(f".{kind}" if kind else "without an ending" for kind in kinds if kind not in used)
            if pictures:
                yield Sample(shard / kinds[pictures[0]], shard / kinds[masks[0]] if masks else None, row)


def _check_kinds(
    shard: Path,
    key: str,
    kinds: Mapping[str, str],
    found: tuple[Sequence[str], Sequence[str]],
    row: Mapping[str, str],
    config: FolderConfig,
) -> None:
    """Refuse a key with two images or masks, or with an image and no class, or the other way round."""
    pictures, masks = found
    for several in found:
        if len(several) > 1:
            both = " and ".join(repr(kinds[kind]) for kind in several[:2])
            raise IfamError(f"{shard} has the members {both} of one key; give each image a key of its own.")
    if not pictures and (row or masks):
        raise IfamError(
            f"{shard} has no image for its member {next(iter(kinds.values()))!r}; add {key}.jpg, or another image that "
            f"can be read here, or remove it."
        )
    if pictures and config.label_column not in row:
        raise IfamError(
            f"{shard} has no class for its member {kinds[pictures[0]]!r}; add {key}.cls, or {key}.json with "
            f"{config.label_column!r}."
        )


def _row(shard: Path, kinds: Mapping[str, str], text: Callable[[str], str], config: FolderConfig) -> dict[str, str]:
    """Class, group and split of an image, as far as they are there."""
    row: dict[str, str] = {}
    if "json" in kinds:
        where = f"{shard}, member {kinds['json']!r}"
        try:
            content = json.loads(text(kinds["json"]))
        except (ValueError, RecursionError) as error:
            raise IfamError(f"{where} is no JSON ({str(error).rstrip('.')}); write it again.") from None
        if not isinstance(content, dict):
            raise IfamError(f"{where} holds {type(content).__name__}, but an object with the class is expected.")
        for column in (config.label_column, config.group_column, config.split_column):
            if (value := content.get(column)) is None:
                continue
            if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
                raise IfamError(f"{where} has the {column} {value!r}, but a text or a whole number is expected.")
            row[column] = str(value).strip()
    if "cls" in kinds:
        where = f"{shard}, member {kinds['cls']!r}"
        try:
            label = text(kinds["cls"]).strip()
        except ValueError as error:
            raise IfamError(f"{where} is no text ({error}); write the class into it.") from None
        if not label or "\n" in label:
            raise IfamError(f"{where} holds {label[:40]!r}, but a class is expected: a name or a whole number.")
        if row.setdefault(config.label_column, label) != label:
            raise IfamError(
                f"{where} holds the class {label!r}, but {kinds['json']!r} holds {row[config.label_column]!r}; "
                f"correct one."
            )
    return row


# --------------------------------------------------------------------------------------- names of shards


def expand_pattern(root: Path) -> list[Path]:
    """The shards of a pattern such as `photos-{000..007}.tar` or `/mnt/{a,b}/photos.tar`; none for other paths.

    Raises:
        IfamError: One of them does not exist, or they are on another machine.
    """
    text = os.fspath(root)
    if re.match(r"[a-z0-9+]{2,}:", text):
        raise IfamError(
            f"{text} is not on a disk of this machine; mount the storage, or copy the shards, and give their folder."
        )
    if not text.lower().endswith(".tar") or root.is_dir():
        return []
    paths = list(dict.fromkeys(map(Path, _braces(text))))
    for path in paths:
        if not path.is_file():
            of = f" of {root}" if len(paths) > 1 else ""
            raise IfamError(f"There is no shard {path}{of}; correct --root.")
    return paths


def _braces(text: str) -> Iterator[str]:
    """The texts that a shell would make of braces: `{000..007}`, `{train,val}`."""
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        yield text
        return
    before, inner, after = text[: match.start()], match[1], text[match.end() :]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        first, last = numbers.groups()
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = inner.split(",")
    for choice in choices:
        yield from _braces(before + choice + after)


def find_shards(root: Path) -> list[Path]:
    """The shards that a root names, or that its folder holds; none where it has images in class folders.

    Args:
        root: A folder with shards, or with folders of them, or a pattern of their names.

    Raises:
        IfamError: A named shard does not exist, or is compressed.
    """
    if not root.is_dir():
        return expand_pattern(root)
    images = contains_images(root)
    places = [root] if images else [root, *(root / name for name in sub_folders(root))]
    paths = [place / entry.name for place in places for entry in entries(place)]
    shards = [path for path in paths if path.suffix.lower() == ".tar" and path.is_file()]
    compressed = [path for path in paths if re.search(r"\.(tgz|tar\.\w+)$", path.name.lower())]
    if images and shards:
        logger.warning("%s has images in class folders, which are used; %s is left out.", root, shards[0])
    if images:
        return []
    if compressed:
        raise IfamError(f"{compressed[0]} is compressed; unpack it to a plain tar file, in which images are found.")
    return shards


def shard_split(shard: Path, root: Path) -> str:
    """The split that the name of a shard, or of its folder below the root, states; empty where none does.

    Raises:
        IfamError: It states two.
    """
    words = re.split(r"[\W_\d]+", shard.stem.casefold())
    if shard.parent != root:
        words.append(shard.parent.name.casefold())
    stated = {SPLIT_NAMES[word]: None for word in words if word in SPLIT_NAMES}
    if len(stated) > 1:
        raise IfamError(f"{shard} states the splits {' and '.join(stated)} in its name; rename it.")
    return next(iter(stated), "")
