"""NABirds: 48,562 photographs of North American birds in 555 visual categories, with 11 keypoints each.

From https://dl.allaboutbirds.org/nabirds. License: the terms of the Cornell Lab of Ornithology, to be agreed to before
the download; for non-commercial research and education, see the source. The layout is that of CUB (see
`ifam.data.benchmarks.cub`), without masks:

    nabirds/
      images.txt, image_class_labels.txt, classes.txt, train_test_split.txt, bounding_boxes.txt
      parts/parts.txt, parts/part_locs.txt
      images/0817/*.jpg
      segmentations/0817/*.png    optional, not part of the source

Identifiers of images are not numbers, and those of classes have gaps, since `classes.txt` also names the families and
orders above the categories. Classes here are those that have images, numbered from 0 in the order of their identifiers.

Splits: train and test as published; validation is split from training, category by category. Groups are the categories.
"""

from pathlib import Path

from ifam.data.base import Benchmark
from ifam.data.benchmarks.cub import LISTS, BirdFiles, read_birds
from ifam.data.records import assemble
from ifam.data.source_files import find_root
from ifam.data_config import NabirdsConfig

SOURCE = "https://dl.allaboutbirds.org/nabirds"


def load_nabirds(root: Path | None, config: NabirdsConfig) -> Benchmark:
    """NABirds, from the folder `nabirds`."""
    root = find_root("nabirds", root, (*LISTS, "images"), SOURCE)
    birds = read_birds(root, root / "images")
    classes = birds.class_names
    empty = Benchmark("nabirds", {}, classes, classes, keypoint_names=birds.keypoint_names)
    return assemble(empty, birds.splits, config, roots=[root], files=BirdFiles)
