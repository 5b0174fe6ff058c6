"""Draws the images of a benchmark from cut-out objects and backgrounds, with masks and the same objects elsewhere.

    images/train/00000.jpg, masks/train/00000.png, ...
    swapped/test/00000.jpg      the object of images/test/00000.jpg in the same position, on another class's place
    third/test/00000.jpg        ... and on a third background; only `swapped` has validation images, too
    images.csv                  path,label,group,split,mask,swapped,third, as `--benchmark folder` reads it
    sources.csv                 the object, the background and the part of it in each picture
    cutouts.json                the settings

Every number of an image is drawn from the seed, the split and the index of the image, so that drawing goes on where it
was stopped.
"""

import csv
import io
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ifam.data.benchmarks.folder import LIST, SETTINGS
from ifam.data.cutouts import (
    OPAQUE,
    SCALES,
    SPLITS,
    TURN,
    Cutout,
    Material,
    Piece,
    find_material,
    load_cutout,
    load_piece,
    reduced,
    scaled,
    turned,
)
from ifam.data.images import load_image
from ifam.data_config import CutoutsConfig
from ifam.errors import IfamError
from ifam.io import ensure_space, ensure_writable, replacing, write_json, write_text
from ifam.pulse import reported

SOURCES = "sources.csv"
FOLDERS = {"path": "images", "mask": "masks", "swapped": "swapped", "third": "third"}

# Factors on the brightness of objects and of backgrounds; least share of a background's shorter side.
_OBJECT_LIGHT, _BACKGROUND_LIGHT, _LEAST_CROP = (0.8, 1.2), (0.85, 1.15), 0.6
# Bytes of objects, and of pieces of backgrounds, that are kept in memory.
_CACHE = 400_000_000
# To be raised when the same settings give other pictures.
_VERSION = 1


@dataclass(frozen=True)
class Scene:
    """A square of a piece of a background.

    Attributes:
        piece: The piece.
        corner: Left and top in pixels of the reduced piece.
        side: Side in the same pixels.
        flip: Whether it is mirrored.
        light: Factor on the brightness.
    """

    piece: Piece
    corner: tuple[int, int]
    side: int
    flip: bool
    light: float


@dataclass(frozen=True)
class Composite:
    """An image of the benchmark, before it is drawn.

    Attributes:
        split: Its split.
        index: Its number in the split.
        label: Its class.
        place: The place that it shows.
        cutout: The object.
        length: Larger side of the object, before it is turned, as a share of the image's side.
        degrees: Turn of the object.
        flip: Whether the object is mirrored.
        light: Factor on the object's brightness.
        position: Where the object is in the room that it leaves, from 0 (left, top) to 1.
        scenes: Backgrounds by column of the list: "path", but for training images "swapped", and for test images
            "third".
    """

    split: str
    index: int
    label: int
    place: int
    cutout: Cutout
    length: float
    degrees: float
    flip: bool
    light: float
    position: tuple[float, float]
    scenes: Mapping[str, Scene]

    def files(self) -> dict[str, str]:
        """Its pictures below the output folder, by column of the list."""
        names = {name: f"{FOLDERS[name]}/{self.split}/{self.index:05d}.jpg" for name in self.scenes}
        return {**names, "mask": f"{FOLDERS['mask']}/{self.split}/{self.index:05d}.png"}


# ------------------------------------------------------------------------------------------------- planning


def plan(material: Material, config: CutoutsConfig) -> list[Composite]:
    """Everything about all images but their pixels.

    In training and validation, the share `correlation` of each class is on the class's own place; the test images of
    each class are spread evenly over the places.

    Raises:
        IfamError: The number of images is too small for the classes and places.
    """
    classes, places = len(material.class_names), len(material.place_names)
    for split, number in zip(SPLITS, config.count, strict=True):
        least = classes * places if split == "test" else classes
        if number < least:
            each = "of each class on each place" if split == "test" else "of each class"
            raise IfamError(f"count has {number} for {split}, but at least {least} images are needed, one {each}.")
    return [
        _composite(material, config, split, index, label, place)
        for split, number in zip(SPLITS, config.count, strict=True)
        for index, (label, place) in enumerate(_assign(material, config, split, number))
    ]


def _assign(material: Material, config: CutoutsConfig, split: str, number: int) -> list[tuple[int, int]]:
    """Class and place of each image of a split, with exact numbers in random order."""
    classes, places = len(material.class_names), len(material.place_names)
    assigned = []
    for label in range(classes):
        members, own = len(range(label, number, classes)), material.own[label]
        others = [place for place in range(places) if place != own]
        # Rounded first, so that 0.05 of 50 is exactly 2.5.
        minority = math.floor(round((1 - config.correlation) * members, 6) + 0.5)
        if split == "test":
            assigned += [(label, i % places) for i in range(members)]
        else:
            assigned += [(label, others[i % len(others)] if i < minority else own) for i in range(members)]
    order = np.random.default_rng([config.seed, SPLITS.index(split)]).permutation(number)
    return [assigned[i] for i in order]


def _composite(material: Material, config: CutoutsConfig, split: str, index: int, label: int, place: int) -> Composite:
    def stream(number: int) -> np.random.Generator:
        return np.random.default_rng([config.seed, SPLITS.index(split), index, number])

    draws, objects, pieces = stream(0), material.objects[split][label], material.pieces[split]
    scenes = {"path": _scene(pieces[place], config.size, stream(1))}
    if split != "train":
        scenes["swapped"] = _scene(pieces[(place + 1) % len(pieces)], config.size, stream(2))
    if split == "test":
        shown = scenes["path"].piece
        others = material.third or [piece for piece in pieces[place] if piece.path != shown.path] or pieces[place]
        scenes["third"] = _scene(others, config.size, stream(3))
    return Composite(
        split,
        index,
        label,
        place,
        cutout=objects[int(draws.integers(len(objects)))],
        length=float(draws.uniform(*SCALES)),
        degrees=float(draws.uniform(-TURN, TURN)),
        flip=bool(draws.random() < 0.5),
        light=float(draws.uniform(*_OBJECT_LIGHT)),
        position=(float(draws.random()), float(draws.random())),
        scenes=scenes,
    )


def _scene(pieces: Sequence[Piece], size: int, draws: np.random.Generator) -> Scene:
    piece = pieces[int(draws.integers(len(pieces)))]
    width, height = reduced(piece, size)
    side = round(draws.uniform(max(size, _LEAST_CROP * min(width, height)), min(width, height)))
    corner = int(draws.integers(width - side + 1)), int(draws.integers(height - side + 1))
    return Scene(piece, corner, side, bool(draws.random() < 0.5), float(draws.uniform(*_BACKGROUND_LIGHT)))


def crop_box(scene: Scene, size: int) -> tuple[int, int, int, int]:
    """The part of the picture that a scene shows: left, top, right and bottom in pixels of the picture."""
    left, top, right, bottom = scene.piece.box
    width, height = reduced(scene.piece, size)
    across, down = (right - left) / width, (bottom - top) / height
    x, y = scene.corner
    return (
        left + math.floor(x * across),
        top + math.floor(y * down),
        min(right, left + math.ceil((x + scene.side) * across)),
        min(bottom, top + math.ceil((y + scene.side) * down)),
    )


# -------------------------------------------------------------------------------------------------- drawing


class Painter:
    """Draws images; objects and backgrounds are read once, as far as the memory for them allows.

    Args:
        size: Side of the images in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        # Not of methods: the images would stay until Python's collector of cycles runs.
        self._object = lru_cache(max(8, _CACHE // (4 * int(SCALES[1] * size) ** 2)))(partial(load_cutout, size=size))
        self._piece = lru_cache(max(8, _CACHE // (3 * 6 * size**2)))(partial(load_piece, size=size))

    def draw(self, composite: Composite) -> dict[str, Image.Image]:
        """The pictures of an image by column of the list: RGB, and for "mask" gray, 255 on the object."""
        layer = self._layer(composite)
        alpha = layer.getchannel("A")
        x, y = composite.position
        corner = round(x * (self.size - layer.width)), round(y * (self.size - layer.height))
        pictures = {}
        for name, scene in composite.scenes.items():
            pictures[name] = self._background(scene)
            pictures[name].paste(layer.convert("RGB"), corner, alpha)
        pictures["mask"] = Image.new("L", (self.size, self.size))
        pictures["mask"].paste(alpha.point([255 * (value >= OPAQUE) for value in range(256)]), corner)
        return pictures

    def _layer(self, composite: Composite) -> Image.Image:
        """The object as it is pasted: scaled, turned, mirrored, brightened, with a soft outline."""
        layer = scaled(self._object(composite.cutout), composite.length * self.size)
        layer = ImageOps.mirror(layer) if composite.flip else layer
        layer = turned(ImageEnhance.Brightness(layer).enhance(composite.light), composite.degrees, self.size)
        return layer.crop(layer.getchannel("A").getbbox())

    def _background(self, scene: Scene) -> Image.Image:
        (x, y), side = scene.corner, scene.side
        image = self._piece(scene.piece).crop((x, y, x + side, y + side))
        image = image.resize((self.size, self.size), Image.Resampling.LANCZOS)
        image = ImageOps.mirror(image) if scene.flip else image
        return ImageEnhance.Brightness(image).enhance(scene.light)


# -------------------------------------------------------------------------------------------------- writing


def prepare_cutouts(
    objects: Path,
    backgrounds: Path,
    out: Path,
    config: CutoutsConfig,
    *,
    masks: Path | None = None,
    overwrite: bool = False,
    track: Callable[[Sequence[Composite]], Iterable[Composite]] = lambda items: reported(items, "drawing images"),
) -> tuple[Material, list[Composite]]:
    """Draw all images of a benchmark that are not there yet, and write their lists.

    Args:
        objects: Folder with a sub-folder for each kind of objects.
        backgrounds: Folder with a sub-folder for each place.
        out: The folder of the benchmark; created if needed.
        config: The settings.
        masks: Folder of masks, laid out as `objects`; see `find_material`.
        overwrite: Replace a benchmark with other settings.
        track: Iterates over the images and shows the progress.

    Returns:
        The divided objects and backgrounds, and all images.

    Raises:
        IfamError: A file or setting cannot be used, or the folder has a benchmark with other settings or other files,
            or cannot be written.
    """
    roots = {"objects": objects, "backgrounds": backgrounds} | ({"masks": masks} if masks else {})
    _check_folders(out, roots)
    ensure_writable(out, folder=True)
    # A validation image has one more with another background, a test image two; a pixel takes about half a byte.
    pictures = sum(config.count) + config.count[1] + 2 * config.count[2]
    ensure_space(out, pictures * config.size**2 // 2, "the images")
    material = find_material(objects, backgrounds, config, masks)
    composites = plan(material, config)
    settings = _settings(material, config)
    _check_settings(out, settings, overwrite)
    write_json(out / SETTINGS, settings)
    painter = Painter(config.size)
    for composite in track(composites):
        files = {name: out / file for name, file in composite.files().items()}
        if all(map(_is_drawn, files.values())):
            continue
        for name, picture in painter.draw(composite).items():
            with replacing(files[name]) as temporary:
                # Of no effect on masks; chroma subsampling would mix colors of object and background.
                picture.save(temporary, quality=92, subsampling=0)
    _write_lists(composites, material, config, out, roots)
    return material, composites


def _is_drawn(path: Path) -> bool:
    """Whether a picture is there, and not damaged since."""
    try:
        load_image(path)
    except IfamError:
        return False
    return True


def _check_folders(out: Path, roots: Mapping[str, Path]) -> None:
    """Refuse to write into the folders that are read, or to read those that are written."""
    for option, root in roots.items():
        source, target = root.resolve(), out.resolve()
        if target.is_relative_to(source) or any(source.is_relative_to(target / folder) for folder in FOLDERS.values()):
            raise IfamError(f"--out {out} is inside of --{option} {root}, or would replace it; choose another --out.")


def _settings(material: Material, config: CutoutsConfig) -> dict[str, Any]:
    """The settings as they are saved; equal settings give equal pictures."""
    own = {name: material.place_names[place] for name, place in zip(material.class_names, material.own, strict=True)}
    kinds = {name: list(kinds) for name, kinds in sorted(config.classes.items())}
    third = " or ".join(material.third_names)
    return {
        "classes": kinds or {name: [name] for name in material.class_names},
        "places": own,
        "correlation": config.correlation,
        "count": list(config.count),
        "size": config.size,
        "seed": config.seed,
        "third": f"on {third}" if third else "on another picture of the same place",
        **material.digests,
        "version": _VERSION,
    }


def _check_settings(out: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Refuse a folder with another benchmark, or remove that; a folder with other files is never changed."""
    path = out / SETTINGS
    if not path.exists():
        for name in (*FOLDERS.values(), LIST, SOURCES):
            if (out / name).exists():
                raise IfamError(f"{out / name} exists, but {path} does not; choose another --out.")
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        before = {}
    differing = [name for name in settings if before.get(name) != settings[name]]
    if differing and not overwrite:
        name = differing[0]
        raise IfamError(
            f"{out} was made with other {name} ({before.get(name)} instead of {settings[name]}); choose another --out, "
            f"or replace it with --overwrite."
        )
    if differing:
        for folder in FOLDERS.values():
            shutil.rmtree(out / folder, ignore_errors=True)
        for file in (LIST, SOURCES):
            (out / file).unlink(missing_ok=True)


def _write_lists(
    composites: Sequence[Composite], material: Material, config: CutoutsConfig, out: Path, roots: Mapping[str, Path]
) -> None:
    images, sources = [], []
    for one in composites:
        files, name = one.files(), material.class_names[one.label]
        group = f"{name} on {material.place_names[one.place]}"
        optional = [files.get(column, "") for column in ("swapped", "third")]
        images.append((files["path"], name, group, one.split, files["mask"], *optional))
        shown = one.cutout.path.relative_to(roots["objects"]).as_posix()
        for column, scene in one.scenes.items():
            background = scene.piece.path.relative_to(roots["backgrounds"]).as_posix()
            sources.append((files[column], one.split, shown, background, *crop_box(scene, config.size)))
    _write_csv(out / SOURCES, ("path", "split", "object", "background", "left", "top", "right", "bottom"), sources)
    _write_csv(out / LIST, ("path", "label", "group", "split", "mask", "swapped", "third"), images)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())
