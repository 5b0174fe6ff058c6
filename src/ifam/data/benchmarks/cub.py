"""Caltech-UCSD Birds-200-2011: 11,788 photographs of 200 species of birds, with 15 keypoints each.

From https://www.vision.caltech.edu/datasets/cub_200_2011/ (images and lists) and
https://data.caltech.edu/records/w9d68-gec53 (masks, to be unpacked into `segmentations/`). License: the images come
from Flickr and belong to their owners; for non-commercial research, see the source.

    CUB_200_2011/
      images.txt                    image id, path below images/
      image_class_labels.txt        image id, class id
      classes.txt                   class id, name
      train_test_split.txt          image id, 1 for training
      bounding_boxes.txt            image id, x, y, width, height
      parts/parts.txt               part id, name
      parts/part_locs.txt           image id, part id, x, y, visible
      images/001.Black_footed_Albatross/*.jpg
      segmentations/001.Black_footed_Albatross/*.png    optional

Splits: train and test as published; validation is split from training, species by species. Groups are the species.
Keypoints and boxes are in pixels as published, masks are true where any annotator marked the bird.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ifam._typing import Bool, Tensor
from ifam.data.base import Benchmark
from ifam.data.masks import load_mask
from ifam.data.records import ImageFiles, Record, assemble
from ifam.data.source_files import find_root, number_labels, read_words
from ifam.data_config import CubConfig
from ifam.errors import IfamError

SOURCE = "https://www.vision.caltech.edu/datasets/cub_200_2011/"
LISTS = (
    "images.txt",
    "image_class_labels.txt",
    "classes.txt",
    "train_test_split.txt",
    "bounding_boxes.txt",
    "parts/parts.txt",
    "parts/part_locs.txt",
)


class BirdFiles(ImageFiles):
    """Birds, whose masks are gray where the five annotators disagree."""

    def read_mask(self, path: Path, image: Path) -> Bool[Tensor, "H W"]:
        """The pixels that any annotator marked; half of white would need three of them."""
        return load_mask(path, image, any_value=True)


class Birds(NamedTuple):
    """The content of the lists of CUB or NABirds.

    Attributes:
        splits: Images for training ("train") and testing ("test"), each with keypoints and box.
        ids: Published identifier of each image, by its path below `images/`.
        class_names: Name of each class.
        keypoint_names: Name of each keypoint.
    """

    splits: dict[str, list[Record]]
    ids: dict[str, str]
    class_names: tuple[str, ...]
    keypoint_names: tuple[str, ...]


def load_cub(root: Path | None, config: CubConfig) -> Benchmark:
    """CUB, from the folder `CUB_200_2011`."""
    root = find_root("cub", root, (*LISTS, "images"), SOURCE)
    birds = read_birds(root, root / "images")
    classes = birds.class_names
    empty = Benchmark("cub", {}, classes, classes, keypoint_names=birds.keypoint_names)
    return assemble(empty, birds.splits, config, roots=[root], files=BirdFiles)


def read_birds(root: Path, images: Path) -> Birds:
    """The lists of a data set in the layout of CUB; with masks if `root/segmentations` exists.

    Args:
        root: Folder of the lists.
        images: Folder that the paths in `images.txt` are relative to.

    Raises:
        IfamError: A list lacks an image.
    """
    names = read_words(root / "images.txt", 1)
    labels = read_words(root / "image_class_labels.txt", 1)
    training = read_words(root / "train_test_split.txt", 1)
    boxes = read_words(root / "bounding_boxes.txt", 4)
    known = read_words(root / "classes.txt", 1)
    parts = read_words(root / "parts" / "parts.txt", 1)
    keypoints = _read_keypoints(root / "parts" / "part_locs.txt", parts)
    lists: dict[str, Mapping[str, object]] = {
        "image_class_labels.txt": labels,
        "train_test_split.txt": training,
        "bounding_boxes.txt": boxes,
        "parts/part_locs.txt": keypoints,
    }
    for path, rows in lists.items():
        missing = next((name for name in names if name not in rows), None)
        if missing is not None:
            raise IfamError(f"{root / path} has no line for the image {missing} of images.txt; re-download the file.")
    numbers = number_labels(int(label) for (label,) in labels.values())
    masks = root / "segmentations"
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for image, (name,) in names.items():
        record = Record(
            images / name,
            numbers[int(labels[image][0])],
            mask=(masks / name).with_suffix(".png") if masks.is_dir() else None,
            extra={"keypoints": keypoints[image], "box": np.array(boxes[image], np.float32)},
            line=f"{root / 'images.txt'}, image {image}",
        )
        splits["train" if training[image][0] == "1" else "test"].append(record)
    return Birds(
        splits,
        {name: image for image, (name,) in names.items()},
        tuple(_class_names(known, numbers, root)),
        tuple(name for _, (name,) in sorted(parts.items(), key=lambda part: int(part[0]))),
    )


def _read_keypoints(path: Path, parts: Mapping[str, list[str]]) -> dict[str, np.ndarray]:
    """Keypoints [N, 3] of each image; parts that are not listed are not visible."""
    rows = {part: row for row, part in enumerate(sorted(parts, key=int))}
    keypoints: dict[str, np.ndarray] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                image, part, x, y, visible = line.split()
                points = keypoints.setdefault(image, np.zeros((len(rows), 3), np.float32))
                points[rows[part]] = float(x), float(y), int(visible) > 0
            except (ValueError, KeyError):
                raise IfamError(
                    f"{path}, line {number} is not an image id, part id, x, y and visibility; re-download the file."
                ) from None
    return keypoints


def _class_names(known: Mapping[str, list[str]], numbers: Mapping[int, int], root: Path) -> list[str]:
    """Names of the classes that have images, "001.Black_footed_Albatross" as "Black footed Albatross"."""
    by_id = {int(label): name for label, (name,) in known.items()}
    missing = next((label for label in numbers if label not in by_id), None)
    if missing is not None:
        raise IfamError(f"{root / 'classes.txt'} has no line for the class {missing}; re-download the file.")
    names = [by_id[label].split(".", 1)[-1].replace("_", " ") for label in numbers]
    return [name if names.count(name) == 1 else f"{name} ({label})" for name, label in zip(names, numbers, strict=True)]
