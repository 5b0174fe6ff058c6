"""ImageNet-9: 4,050 images of nine coarse classes, with eight treatments of foreground and background.

From https://github.com/MadryLab/backgrounds_challenge (Xiao et al., arXiv 2006.09994): the archive of the release and
`in_to_in9.json` of the repository. License: the images are ImageNet's; see the source.

    bg_challenge/
      original/val/00_dog/*.JPEG ...    nine folders, and the same below each of
      mixed_same/  mixed_rand/  mixed_next/  only_fg/  no_fg/  only_bg_b/  only_bg_t/
      fg_mask/val/00_dog/*.npy ...      masks of the objects in `original`; optional
      in_to_in9.json                    for each of the 1,000 classes its class here, -1 for none

Each existing treatment is a split by its name, and the one of the setting `variant` is also "test". The gap due
to the background is the accuracy on "mixed_same" minus that on "mixed_rand"; their images are named after their two
source photographs, the object's first ("fg_n02497673_5944_bg_n02536864_2721.JPEG"). Groups are the classes.
A model of 1,000 classes is evaluated by `Benchmark.answers`: its highest logit of all 1,000 decides, and classes
outside the nine count as wrong, as in the published figures. Masks are known for "original" and "only_fg" where
`fg_mask` is there; with them the backgrounds challenge (`ifam challenge`) pastes each object on every image of
"only_bg_t".
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image

from ifam.data.base import Benchmark
from ifam.data.files import image_files, sub_folders
from ifam.data.records import ImageFiles, Record, assemble
from ifam.data.source_files import find_root
from ifam.data_config import Imagenet9Config, Treatment
from ifam.errors import IfamError

SOURCE = "https://github.com/MadryLab/backgrounds_challenge"
VARIANTS = get_args(Treatment)
CLASSES = (
    "dog",
    "bird",
    "wheeled vehicle",
    "reptile",
    "carnivore",
    "insect",
    "musical instrument",
    "primate",
    "fish",
)
# The backgrounds of the challenge.
BACKGROUNDS = "only_bg_t"
# Largest value of the brightest channel that counts as black, because of compression.
BLACK = 16


class TreatedFiles(ImageFiles):
    """Images of a treatment."""

    @property
    def objects(self) -> list[str | None]:
        """The source photograph of each object, from the file name; None where it has none."""
        matches = (re.search(r"n\d+_\d+", path.stem) for path in self.paths)
        return [match and match[0] for match in matches]


class CutOuts(ImageFiles):
    """Objects to paste; without a mask file, the mask is everything that is not black."""

    def annotate(self, record: Record, image: Image.Image) -> dict[str, Any]:
        """Adds the mask where there is no file with it."""
        annotations = super().annotate(record, image)
        if record.mask is None:
            annotations["mask"] = torch.from_numpy(np.asarray(image).max(axis=2) > BLACK)
        return annotations


def cut_outs(benchmark: Benchmark) -> CutOuts:
    """Every object of ImageNet-9 with its mask.

    Pixels are those of "original" where `fg_mask` has a mask, as in the public script of the challenge, and
    otherwise those of "only_fg".

    Raises:
        IfamError: There are neither masks nor images of objects alone.
    """
    objects: dict[tuple[str, str], Record] = {}
    for name in ("original", "only_fg"):
        for record in getattr(benchmark.splits.get(name), "records", []):
            if record.mask is not None or name == "only_fg":
                objects.setdefault((record.path.parent.name, record.path.stem), record)
    if not objects:
        raise IfamError(
            f"{benchmark.name} has no objects to paste: neither original/ with fg_mask/ nor only_fg/ exists; get the "
            f"data from {SOURCE}."
        )
    return CutOuts([record for _, record in sorted(objects.items())])


def load_imagenet9(root: Path | None, config: Imagenet9Config) -> Benchmark:
    """ImageNet-9, from the folder of its treatments."""
    root = find_root("imagenet9", root, (f"{config.variant}/val", config.mapping), SOURCE)
    class_of_logit = _read_mapping(root / config.mapping)
    splits = {name: _read(root, name) for name in VARIANTS if (root / name / "val").is_dir()}
    empty = Benchmark(
        "imagenet9",
        {},
        CLASSES,
        CLASSES,
        f"test images are {config.variant}",
        class_of_logit=class_of_logit,
        treatments=VARIANTS,
        gap=("mixed_same", "mixed_rand"),
    )
    benchmark = assemble(empty, splits, config, files=TreatedFiles)
    return replace(benchmark, splits={"test": benchmark.splits[config.variant], **benchmark.splits})


def _read_mapping(path: Path) -> tuple[int, ...]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        mapping = tuple(int(table[str(label)]) for label in range(len(table)))
        if len(mapping) != 1000 or not set(mapping) <= set(range(-1, len(CLASSES))):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise IfamError(
            f"{path} does not give a class from -1 to {len(CLASSES) - 1} for each of 1,000 classes; get in_to_in9.json "
            f"from {SOURCE}."
        ) from None
    return mapping


def _read(root: Path, variant: str) -> list[Record]:
    """Images of a treatment, with masks for "original" and "only_fg"."""
    folder = root / variant / "val"
    names = sub_folders(folder)
    if len(names) != len(CLASSES):
        raise IfamError(
            f"{folder} has {len(names)} class folders, but {len(CLASSES)} are expected, from 00_dog to 08_fish; get "
            f"the data from {SOURCE}."
        )
    records = [Record(path, label) for label, name in enumerate(names) for path in image_files(folder / name)]
    if variant not in ("original", "only_fg"):
        return records
    masks = [root / "fg_mask" / "val" / record.path.parent.name / f"{record.path.stem}.npy" for record in records]
    return [replace(r, mask=mask if mask.exists() else None) for r, mask in zip(records, masks, strict=True)]
