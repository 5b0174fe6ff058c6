"""Cut-out objects and backgrounds: they are found, checked, and divided among the splits before any image is drawn.

    objects/bird/1.webp, objects/flower/2.png, ...      an object each, with its outline as transparency or as a mask
    backgrounds/land/1.jpg, backgrounds/water/2.jpg, ...

Kinds of objects make the classes, each of which has a place of its own. An object belongs to one split, files with the
same content count as one object. A background belongs to one split if its place has at least 20 pictures, or if they
are too small for pieces; of other backgrounds, the left half is for training, and the right half for either validation
or test. So no object, and no pixel of a background, is in two splits.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from ifam.data.duplicates import copies_of_images
from ifam.data.files import entries, list_images, readable_extensions, sub_folders
from ifam.data.images import load_image, load_rgba
from ifam.data.masks import load_mask
from ifam.data.splits import class_name
from ifam.data_config import CutoutsConfig
from ifam.errors import IfamError, suggestion
from ifam.pulse import reported

SPLITS = ("train", "val", "test")
# Least and greatest length of an object's larger side, as a share of the image's side.
SCALES = (0.35, 0.75)
# Greatest angle of an object, in degrees.
TURN = 20.0
# Pixels with at least this alpha belong to the object.
OPAQUE = 128

_VAL, _TEST = 0.15, 0.35
# A place with so many pictures is divided by pictures, not by pieces of them.
_ENOUGH = 20
# Blur of the outline in pixels, at 224 pixels.
_SOFTNESS = 0.7
# Least length in pixels of an outline's larger side.
_SHORTEST = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Cutout:
    """An object.

    Attributes:
        path: Its picture.
        mask: File with its pixels; None where the picture has transparency.
    """

    path: Path
    mask: Path | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a background that belongs to one split.

    Attributes:
        path: The picture.
        box: Left, top, right and bottom in pixels of the upright picture.
    """

    path: Path
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Material:
    """Objects and backgrounds, divided among the splits.

    Attributes:
        class_names: Name of each class.
        place_names: Name of each place that is a class's own.
        own: Index of each class's own place.
        objects: Objects by split and class.
        pieces: Pieces of backgrounds by split and place.
        third: Backgrounds of places that are no class's own, for the test images; may be empty.
        third_names: Names of these places.
        digests: A digest of the content of all files, by their option.
    """

    class_names: tuple[str, ...]
    place_names: tuple[str, ...]
    own: tuple[int, ...]
    objects: Mapping[str, Sequence[Sequence[Cutout]]]
    pieces: Mapping[str, Sequence[Sequence[Piece]]]
    third: Sequence[Piece]
    third_names: tuple[str, ...]
    digests: Mapping[str, str]


def find_material(objects: Path, backgrounds: Path, config: CutoutsConfig, masks: Path | None = None) -> Material:
    """Find, check and divide objects and backgrounds; every file is read once.

    Args:
        objects: Folder with a sub-folder for each kind of objects.
        backgrounds: Folder with a sub-folder for each place.
        config: Classes, places, size and seed.
        masks: Folder of masks, laid out as `objects`. Without it, objects have transparency, or a mask of the same
            name in a folder `masks` beside the picture, or one beside it whose name ends in `_mask`.

    Raises:
        IfamError: A folder, class or place is missing, a file cannot be used, or there are too few.
    """
    for folder, option in ((objects, "--objects"), (backgrounds, "--backgrounds"), (masks, "--masks")):
        if folder is not None and not folder.is_dir():
            raise IfamError(f"There is no folder {folder}; give one with {option}.")
    _by_stem.cache_clear()
    classes = _classes(objects, config.classes)
    own, third = _places(backgrounds, classes, config.places)
    places = tuple(dict.fromkeys(own.values()))
    found = {kind: _find_objects(objects, kind, masks) for kinds in classes.values() for kind in kinds}
    found = _without_copies(found, classes)
    for name, kinds in classes.items():
        if (number := sum(len(found[kind]) for kind in kinds)) < 3:
            raise IfamError(
                f"The class {name} has {number} object{'s' * (number != 1)} ({', '.join(kinds)}), but at least three "
                f"are needed, one for each split; add some, or leave the class out."
            )
    cutouts = [cutout for cutouts in found.values() for cutout in cutouts]
    for cutout in reported(cutouts, "reading objects"):
        load_cutout(cutout, config.size)
    pictures = _pictures(backgrounds, [*places, *third], config.size)
    pieces = [_divide_pictures(place, pictures[place], config) for place in places]
    divided = [_divide_class(kinds, found, config.seed) for kinds in classes.values()]
    files = [path for cutout in cutouts for path in (cutout.path, cutout.mask) if path]
    return Material(
        tuple(classes),
        tuple("+".join(place) for place in places),
        tuple(places.index(own[name]) for name in classes),
        {split: [one[split] for one in divided] for split in SPLITS},
        {split: [one[split] for one in pieces] for split in SPLITS},
        [Piece(path, (0, 0, *size)) for place in third for path, size in pictures[place]],
        tuple("+".join(place) for place in third),
        {
            "objects": _digest(files, masks or objects, objects),
            "backgrounds": _digest([path for place in pictures.values() for path, _ in place], backgrounds),
        },
    )


# ------------------------------------------------------------------------------------------ classes and places


def _classes(objects: Path, given: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The kinds of each class, in the order of the classes' names."""
    known = sub_folders(objects)
    classes = {name: _as_spelled(kinds, known) for name, kinds in given.items()} or {kind: (kind,) for kind in known}
    if len(classes) < 2:
        where = "--classes has" if given else f"{objects} has"
        raise IfamError(
            f"{where} {len(classes)} class{'es' * (len(classes) != 1)}, but at least two are needed; add another, or "
            f"give the folder whose sub-folders are kinds of objects with --objects."
        )
    _refuse_unknown("classes", classes, known, f"kind of objects in {objects}")
    owner: dict[str, str] = {}
    for name, kinds in classes.items():
        for kind in kinds:
            if owner.setdefault(kind, name) != name or kinds.count(kind) > 1:
                raise IfamError(f"--classes has {kind!r} in {owner[kind]} and in {name}; leave one of them out.")
    return dict(sorted(classes.items()))


def _places(
    backgrounds: Path, classes: Iterable[str], given: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, tuple[str, ...]], list[tuple[str, ...]]]:
    """The place of each class, and places that are no class's own; a place is one folder or several."""
    classes, known = list(classes), sub_folders(backgrounds)
    if len(known) < (2 if given else len(classes)):
        raise IfamError(
            f"{backgrounds} has {len(known)} place{'s' * (len(known) != 1)} for {len(classes)} classes; add "
            f"sub-folders of backgrounds, or, if there are two, assign them with --places."
        )
    names = _as_spelled(given, classes)
    own = {name: _as_spelled(place, known) for name, place in zip(names, given.values(), strict=True)}
    own = own or {name: (place,) for name, place in zip(classes, known, strict=False)}
    for name in own:
        if name not in classes:
            raise IfamError(
                f"--places names the class {name!r}, which does not exist{suggestion(name, classes)}; the classes are "
                f"{', '.join(classes)}."
            )
    for name in classes:
        if name not in own:
            raise IfamError(f"The class {name} has no place; add it to --places, such as {name}={known[0]}.")
    _refuse_unknown("places", own, known, f"place in {backgrounds}")
    folders: dict[str, tuple[str, ...]] = {}
    for place in own.values():
        for folder in place:
            if folders.setdefault(folder, place) != place or place.count(folder) > 1:
                raise IfamError(f"--places has {folder!r} in two lists that differ; leave it out of one.")
    if len({*own.values()}) < 2:
        raise IfamError("--places has the same place for all classes, but at least two are needed; add another.")
    return {name: own[name] for name in classes}, [(folder,) for folder in known if folder not in folders]


def _as_spelled(names: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    """Names as `known` has them; accents that are encoded in one character or two, and spaces around, are the same."""
    spelled = {class_name(name): name for name in known}
    return tuple(name if name in known else spelled.get(class_name(name), name) for name in names)


def _refuse_unknown(option: str, given: Mapping[str, tuple[str, ...]], known: Sequence[str], what: str) -> None:
    for name, folders in given.items():
        if not folders:
            raise IfamError(f"--{option} has nothing for {name}; write {name}= and names of folders with commas.")
        for folder in folders:
            if folder not in known:
                raise IfamError(
                    f"--{option} has {folder!r} for {name}, which is no {what}{suggestion(folder, known)}; there are "
                    f"{', '.join(known[:9])}{' ...' * (len(known) > 9)}."
                )


# ------------------------------------------------------------------------------------------------- objects


def _find_objects(objects: Path, kind: str, masks: Path | None) -> list[Cutout]:
    listing = list_images(objects / kind)
    listing.require_images(objects / kind)
    stems = {(path.parent, path.stem) for path in listing.paths}
    cutouts = []
    for path in listing.paths:
        is_mask = path.stem.endswith("_mask") and (path.parent, path.stem.removesuffix("_mask")) in stems
        if not is_mask and path.parent.name != "masks":
            cutouts.append(Cutout(path, _mask_of(path, objects, masks)))
    owners: dict[Path, Path] = {}
    for path, mask in ((cutout.path, cutout.mask) for cutout in cutouts):
        if mask is not None and owners.setdefault(mask, path) != path:
            raise IfamError(
                f"{owners[mask]} and {path.name} have the same mask {mask}; rename one of them, with a mask of its "
                f"own, or remove it."
            )
    return cutouts


def _mask_of(path: Path, objects: Path, masks: Path | None) -> Path | None:
    if masks is not None:
        folder = masks / path.parent.relative_to(objects)
        found = _by_stem(folder).get(path.stem, [])
        if not found:
            raise IfamError(f"{path} has no mask {folder / path.stem}.*; add it, or remove the object.")
    else:
        beside = _by_stem(path.parent).get(f"{path.stem}_mask", [])
        found = beside + _by_stem(path.parent / "masks").get(path.stem, [])
    if len(found) > 1:
        raise IfamError(f"{path} has two masks, {found[0]} and {found[1]}; remove one.")
    return found[0] if found else None


@cache
def _by_stem(folder: Path) -> dict[str, list[Path]]:
    """The images of a folder by their names without endings; annotations may lie beside them."""
    paths = [Path(entry.path) for entry in entries(folder)] if folder.is_dir() else []
    found: dict[str, list[Path]] = {}
    for path in sorted(path for path in paths if path.suffix.lower() in readable_extensions()):
        found.setdefault(path.stem, []).append(path)
    return found


def _without_copies(
    found: Mapping[str, Sequence[Cutout]], classes: Mapping[str, Sequence[str]]
) -> dict[str, list[Cutout]]:
    """The objects without further files of the same content.

    Raises:
        IfamError: Two classes have a file of the same content.
    """
    copies = copies_of_images(cutout.path for cutouts in found.values() for cutout in cutouts)
    first: dict[int, tuple[str, Path]] = {}
    kept: dict[str, list[Cutout]] = {kind: [] for kind in found}
    for name, kinds in classes.items():
        for folder, cutout in [(kind, cutout) for kind in kinds for cutout in found[kind]]:
            number = copies.get(cutout.path)
            owner, path = (name, cutout.path) if number is None else first.setdefault(number, (name, cutout.path))
            if owner != name:
                raise IfamError(f"{path} ({owner}) and {cutout.path} ({name}) are the same picture; remove one.")
            if path == cutout.path:
                kept[folder].append(cutout)
    return kept


def load_cutout(cutout: Cutout, size: int) -> Image.Image:
    """Read an object, cropped to its outline and no larger than it will be drawn.

    Args:
        cutout: The object.
        size: Side of the images in pixels.

    Returns:
        An RGBA image.

    Raises:
        IfamError: A file is damaged, or the outline is missing, empty, too thin or the whole picture.
    """
    path = cutout.path
    image = _readable(load_rgba, path)
    if cutout.mask is not None:
        mask = _readable(partial(load_mask, image=path), cutout.mask).numpy()
        if mask.shape != (image.height, image.width):
            raise IfamError(
                f"The mask {cutout.mask} is {mask.shape[1]} x {mask.shape[0]} pixels, but its picture {path.name} is "
                f"{image.width} x {image.height}; give a mask of the picture's size."
            )
        alpha = Image.fromarray(mask.astype(np.uint8) * 255)
        if image.mode == "RGBA":
            # Nobody sees which colors are below what is transparent.
            alpha = ImageChops.darker(alpha, image.getchannel("A"))
        image.putalpha(alpha)
    if image.mode == "RGB":
        raise IfamError(
            f"{path} has neither transparency nor a mask; cut the object out, or add a mask {path.stem}_mask.png "
            f"beside it (or give a folder of masks with --masks)."
        )
    opaque = np.asarray(image.getchannel("A")) >= OPAQUE
    outline = cutout.mask or path
    if not opaque.any():
        raise IfamError(f"The outline of {outline} is empty; cut the object out again, or remove the file.")
    if opaque.all():
        raise IfamError(f"The outline of {outline} is the whole picture; cut the object out, or remove the file.")
    rows, columns = np.flatnonzero(opaque.any(axis=1)), np.flatnonzero(opaque.any(axis=0))
    image = image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    least = SCALES[0] * size
    smallest = np.asarray(turned(scaled(image, least), TURN, size).getchannel("A"))
    thin = min(image.size) * least / max(image.size) < 1 or smallest.max() < OPAQUE
    if thin or max(image.size) < _SHORTEST:
        raise IfamError(
            f"The outline of {outline} is too small ({image.width} x {image.height} pixels) or too thin for images of "
            f"{size} pixels; remove the file, or choose a larger --size."
        )
    largest = SCALES[1] * size
    return scaled(image, largest) if max(image.size) > largest else image


def scaled(image: Image.Image, length: float) -> Image.Image:
    """The image with its larger side of a length in pixels."""
    factor = length / max(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def turned(image: Image.Image, degrees: float, size: int) -> Image.Image:
    """An object turned counterclockwise, with a soft outline.

    Args:
        image: An RGBA image.
        degrees: The angle.
        size: Side of the image that it is drawn on, in pixels.

    Returns:
        A larger RGBA image.
    """
    layer = ImageOps.expand(image, 2, (0, 0, 0, 0)).rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    alpha = layer.getchannel("A")
    # Softer towards the inside only, since nothing is known of the colors outside.
    layer.putalpha(ImageChops.multiply(alpha, alpha.filter(ImageFilter.GaussianBlur(_SOFTNESS * size / 224))))
    return layer


def _readable(load: Callable[[Path], T], path: Path) -> T:
    try:
        return load(path)
    except IfamError as error:
        raise IfamError(f"{str(error).rpartition(';')[0]}; remove it, or copy it again.") from error


def _divide_class(kinds: Sequence[str], found: Mapping[str, Sequence[Cutout]], seed: int) -> dict[str, list[Cutout]]:
    """The objects of a class by split; of each kind the same share, kinds with fewer than three objects together."""
    few = [cutout for kind in kinds if len(found[kind]) < 3 for cutout in found[kind]]
    divided = [_divide(found[kind], _generator(seed, kind)) for kind in kinds if len(found[kind]) >= 3]
    divided.append(_divide(few, _generator(seed, "+".join(kinds))))
    return {split: [cutout for one in divided for cutout in one[split]] for split in SPLITS}


def _divide(items: Sequence[T], generator: np.random.Generator) -> dict[str, list[T]]:
    """Items by split, at random, at least one for each split of three or more items."""
    order = [items[i] for i in generator.permutation(len(items))]
    if len(order) < 3:
        return {"train": order[:1], "val": [], "test": order[1:]}
    val, test = (max(1, round(share * len(order))) for share in (_VAL, _TEST))
    return {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}


def _generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers for a folder, which do not depend on the other folders."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


# --------------------------------------------------------------------------------------------- backgrounds


def load_piece(piece: Piece, size: int) -> Image.Image:
    """Read a piece of a background, reduced to twice the side of the images; no pixel outside of the piece is used."""
    image = _readable(load_image, piece.path).crop(piece.box)
    return image.resize(reduced(piece, size), Image.Resampling.LANCZOS)


def reduced(piece: Piece, size: int) -> tuple[int, int]:
    """Width and height of a piece in which an image is a square of its pixels."""
    width, height = piece.box[2] - piece.box[0], piece.box[3] - piece.box[1]
    factor = min(1.0, 2 * size / min(width, height))
    return round(width * factor), round(height * factor)


def _pictures(
    backgrounds: Path, places: Sequence[tuple[str, ...]], size: int
) -> dict[tuple[str, ...], list[tuple[Path, tuple[int, int]]]]:
    """The pictures of each place, with width and height; further files of the same content are left out."""
    listed = {}
    for place in places:
        listings = [list_images(backgrounds / folder) for folder in place]
        for folder, listing in zip(place, listings, strict=True):
            listing.require_images(backgrounds / folder)
        listed[place] = [path for listing in listings for path in listing.paths]
    copies = copies_of_images(path for paths in listed.values() for path in paths)
    first: dict[int, tuple[tuple[str, ...], Path]] = {}
    pictures: dict[tuple[str, ...], list[tuple[Path, tuple[int, int]]]] = {place: [] for place in places}
    both = [(place, path) for place, paths in listed.items() for path in paths]
    for place, path in reported(both, "reading backgrounds"):
        number = copies.get(path)
        owner, original = (place, path) if number is None else first.setdefault(number, (place, path))
        if owner != place:
            raise IfamError(f"{original} and {path} are the same picture in two places; remove one.")
        if original != path:
            continue
        width, height = _readable(load_image, path).size
        if min(width, height) < size:
            raise IfamError(
                f"The background {path} is {width} x {height} pixels, but at least {size} x {size} are needed; remove "
                f"it, or choose a smaller --size."
            )
        pictures[place].append((path, (width, height)))
    return pictures


def _divide_pictures(
    place: tuple[str, ...], pictures: Sequence[tuple[Path, tuple[int, int]]], config: CutoutsConfig
) -> dict[str, list[Piece]]:
    """Pieces of the backgrounds of a place by split: whole pictures if there are enough, or else halves."""
    generator, count = _generator(config.seed, "+".join(place)), len(pictures)
    needed = config.size * (4 if count == 1 else 2)
    narrow = [path for path, (width, _) in pictures if width < needed]
    if count >= _ENOUGH or (narrow and count >= 3):
        divided = _divide(pictures, generator)
        return {split: [Piece(path, (0, 0, *size)) for path, size in divided[split]] for split in SPLITS}
    if narrow:
        raise IfamError(
            f"The place {'+'.join(place)} has {count} background{'s' * (count != 1)}, and {narrow[0]} is too narrow "
            f"to be divided ({needed} pixels are needed); add backgrounds until there are three, or wider ones."
        )
    pieces: dict[str, list[Piece]] = {split: [] for split in SPLITS}
    val = max(1, round(count * _VAL / (_VAL + _TEST)))
    for rank, index in enumerate(generator.permutation(count)):
        path, (width, height) = pictures[index]
        half, quarter = width // 2, width * 3 // 4
        pieces["train"].append(Piece(path, (0, 0, half, height)))
        if count == 1:
            pieces["val"].append(Piece(path, (half, 0, quarter, height)))
            pieces["test"].append(Piece(path, (quarter, 0, width, height)))
        else:
            pieces["val" if rank < val else "test"].append(Piece(path, (half, 0, width, height)))
    return pieces


def _digest(paths: Iterable[Path], *folders: Path) -> str:
    """A digest of the names and contents of files."""
    total = hashlib.sha256()
    for path in paths:
        name = next((path.relative_to(folder) for folder in folders if path.is_relative_to(folder)), path)
        total.update(name.as_posix().encode("utf-8", "surrogateescape") + b"\0")
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]
