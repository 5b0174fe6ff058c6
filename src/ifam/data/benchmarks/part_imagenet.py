"""PartImageNet: 24,095 of ImageNet's images of 158 classes, with outlined parts such as "Quadruped Head".

From https://github.com/TACJu/PartImageNet (He et al., arXiv 2112.00933). License: the images are ImageNet's; see the
source. Annotations are in COCO's style:

    root/
      train.json, val.json, test.json    images (id, file_name, height, width), categories (id, name),
                                         annotations (image_id, category_id, segmentation, bbox, area, iscrowd)
      train/*.JPEG, val/*.JPEG, test/*.JPEG    with or without a folder for each class (n01443537/)

The class of an image is the WordNet identifier that its file name begins with. The three files of the first release
have different classes, so a model trained on one cannot be tested on another; in this case, give `split_list`, the list
of PDiscoFormer (`data_sets/train_test_split_pimagenet_ood.txt` of https://github.com/ananthu-aniraj/pdiscoformer: image
id, 1 for test, ..., separated by tabs), which divides `train.json` into training and test images. In later releases,
with the same classes in every file, the files are the splits. Where there are no validation images, they are split from
training, class by class. Groups are the classes.

`part_labels` are drawn from the outlines; where two overlap, the category of the lower identifier is on top. The mask
is the union of all parts. Images without an outline are left out, and so are outlines of crowds, as in PDiscoFormer.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ifam.data.base import Benchmark
from ifam.data.benchmarks.imagenet import imagenet_classes
from ifam.data.records import ImageFiles, Record, assemble
from ifam.data.source_files import find_root, read_words
from ifam.data_config import PartImagenetConfig
from ifam.errors import IfamError

SOURCE = "https://github.com/TACJu/PartImageNet"


class PartFiles(ImageFiles):
    """Images with outlined parts: `Record.extra` holds the corners of each outline, by the number of its category."""

    def annotate(self, record: Record, image: Image.Image) -> dict[str, Any]:
        """Mask and part labels, drawn on access: stored as pixels, they would need too much memory."""
        canvas = Image.new("L", image.size)
        pen = ImageDraw.Draw(canvas)
        # The lowest number is drawn last.
        for name, corners in sorted((record.extra or {}).items(), reverse=True):
            pen.polygon(corners.ravel().tolist(), fill=int(name.split(".")[0]))
        labels = torch.from_numpy(np.array(canvas)).to(torch.int16)
        return {"part_labels": labels, "mask": labels > 0}


def load_part_imagenet(root: Path | None, config: PartImagenetConfig) -> Benchmark:
    """PartImageNet, from the folder of its annotations."""
    needed = ("train.json", "train", config.split_list) if config.split_list else ("train.json", "train")
    root = find_root("part_imagenet", root, needed, SOURCE)
    names = ["train"] if config.split_list else ["train", "val", "test"]
    tables = {name: _read_json(root / f"{name}.json") for name in names if (root / f"{name}.json").is_file()}
    parts = [c["name"] for c in sorted(tables["train"]["categories"], key=lambda c: c["id"])]
    wnids = sorted({_wnid(image) for table in tables.values() for image in table["images"]})
    splits = {name: _records(root, name, table, wnids) for name, table in tables.items()}
    if config.split_list:
        splits = _divide(splits["train"], tables["train"], root / config.split_list)
    known = {record.label for record in splits["train"]}
    for name, records in splits.items():
        stray = sorted({wnids[record.label] for record in records} - {wnids[label] for label in known})
        if stray:
            raise IfamError(
                f"{root / name}.json has the class {stray[0]}, which train.json lacks; divide train.json with "
                f"--data.split_list (PDiscoFormer's list), or remove {name}.json."
            )
    lemmas = {one.wnid: f"{one.name} ({one.wnid})" for one in imagenet_classes()}
    classes = tuple(lemmas.get(wnid, wnid) for wnid in wnids)
    note = "validation images as published" if "val" in splits else ""
    empty = Benchmark("part_imagenet", {}, classes, classes, note, part_names=tuple(parts))
    return assemble(empty, splits, config, roots=[root], files=PartFiles)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(table[key], list) for key in ("images", "annotations", "categories")):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IfamError(
            f"{path} is not a COCO file with images, annotations and categories ({error or type(error).__name__}); get "
            f"it from {SOURCE}."
        ) from None
    return dict(table)


def _wnid(image: dict[str, Any]) -> str:
    return Path(image["file_name"]).name.split("_")[0]


def _records(root: Path, split: str, table: dict[str, Any], wnids: Sequence[str]) -> list[Record]:
    """The images that have an outlined part."""
    categories = sorted(category["id"] for category in table["categories"])
    outlines: dict[Any, dict[str, np.ndarray]] = defaultdict(dict)
    for annotation in table["annotations"]:
        if annotation.get("iscrowd") or not annotation.get("area", 1):
            continue
        number = categories.index(annotation["category_id"]) + 1
        for corners in annotation["segmentation"]:
            of_image = outlines[annotation["image_id"]]
            # Zero-padded, so that the order of the names is that of the categories.
            of_image[f"{number:03d}.{len(of_image):03d}"] = _corners(corners, annotation["bbox"])
    path_of = _image_paths(root / split, table["images"])
    return [
        Record(path_of(image), wnids.index(_wnid(image)), extra=outlines[image["id"]], line=f"{root / split}.json")
        for image in table["images"]
        if image["id"] in outlines
    ]


def _corners(corners: Sequence[float | int], box: Sequence[float | int]) -> np.ndarray:
    """Corners [N, 2] of an outline; those of its box where only two are given."""
    if len(corners) >= 6:
        return np.array(corners, np.float32).reshape(-1, 2)
    x, y, width, height = box
    return np.array([(x, y), (x, y + height), (x + width, y + height), (x + width, y)], np.float32)


def _image_paths(folder: Path, images: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], Path]:
    """A function from an image to its path, in the one of the two layouts that exists."""

    def flat(image: dict[str, Any]) -> Path:
        return folder / str(image["file_name"])

    def by_class(image: dict[str, Any]) -> Path:
        return folder / _wnid(image) / Path(image["file_name"]).name

    return by_class if any(by_class(image).exists() for image in images[:20]) else flat


def _divide(records: Sequence[Record], table: dict[str, Any], path: Path) -> dict[str, list[Record]]:
    """Training and test images as in PDiscoFormer."""
    in_test = {image: words[0] for image, words in read_words(path, 2).items()}
    ids = {Path(image["file_name"]).name: str(image["id"]) for image in table["images"]}
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for record in records:
        chosen = in_test.get(ids[record.path.name])
        if chosen not in ("0", "1"):
            raise IfamError(
                f"{path} does not say, with 0 or 1, whether image {ids[record.path.name]} is for testing; re-download "
                "it."
            )
        splits["test" if chosen == "1" else "train"].append(record)
    return splits
