"""Waterbirds: birds of CUB pasted on land or water, which in training agrees with the class 95 times in 100.

From https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz (Sagawa et al., arXiv 1911.08731).
License: made from CUB and Places, whose terms apply; for non-commercial research, see the sources.

    waterbird_complete95_forest2water2/
      metadata.csv    img_id, img_filename, y (1 waterbird), split (0 train, 1 val, 2 test), place (1 water), ...
      001.Black_footed_Albatross/*.jpg

The root is this folder or its parent, such as that of CUB. Where CUB's `segmentations/` (see
`ifam.data.benchmarks.cub`) are next to the folder or in it, they are the masks: the birds have the same positions as in
CUB.

Splits as published; groups are class and place. With `labels="species"` the images carry CUB's 200 classes and CUB's
own train, val and test images are the splits, so that a model trained on CUB is evaluated on other backgrounds (the
paper's out-of-distribution column); the folder must then be in that of CUB. Groups stay class and place.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ifam.data.base import Benchmark
from ifam.data.benchmarks.cub import LISTS, BirdFiles, read_birds
from ifam.data.records import ImageFiles, Reader, Record, assemble
from ifam.data.source_files import find_root, read_csv
from ifam.data_config import WaterbirdsConfig
from ifam.errors import IfamError

SOURCE = "https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz"
FOLDER = "waterbird_complete95_forest2water2"
COLUMNS = ("img_id", "img_filename", "y", "split", "place")
CLASSES = ("landbird", "waterbird")
GROUPS = tuple(f"{bird} on {place}" for bird in CLASSES for place in ("land", "water"))
_SPLITS = {"0": "train", "1": "val", "2": "test"}


def load_waterbirds(root: Path | None, config: WaterbirdsConfig) -> Benchmark:
    """Waterbirds, from its folder or the parent of it."""
    inner = root if root is None or not (root / FOLDER).is_dir() else root / FOLDER
    images = find_root("waterbirds", inner, ("metadata.csv",), SOURCE)
    masks = next((p for p in (images / "segmentations", images.parent / "segmentations") if p.is_dir()), None)
    splits: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    for line, row in read_csv(images / "metadata.csv", COLUMNS):
        where = f"{images / 'metadata.csv'}, line {line}"
        for column, allowed in (("y", "01"), ("place", "01"), ("split", "012")):
            if len(row[column]) != 1 or row[column] not in allowed:
                raise IfamError(
                    f"{where} has {column}={row[column]!r}, but one of {', '.join(allowed)} is expected; re-download "
                    "it."
                )
        label, name = int(row["y"]), row["img_filename"]
        mask = None if masks is None else (masks / name).with_suffix(".png")
        record = Record(images / name, label, label * 2 + int(row["place"]), mask, line=where)
        splits[_SPLITS[row["split"]]].append(record)
    if config.labels == "species":
        return _by_species(images, splits, config)
    published = Benchmark("waterbirds", {}, CLASSES, GROUPS, "validation images as published")
    return assemble(published, splits, config, roots=[images, masks or images], files=BirdFiles)


def _by_species(images: Path, splits: dict[str, list[Record]], config: WaterbirdsConfig) -> Benchmark:
    """The same images with the classes, splits, keypoints and boxes of CUB."""
    cub = find_root("cub", images.parent, LISTS, "https://www.vision.caltech.edu/datasets/cub_200_2011/")
    groups = {record.path: record.group for records in splits.values() for record in records}
    birds = read_birds(cub, images)
    for record in (record for records in birds.splits.values() for record in records):
        if record.path not in groups:
            raise IfamError(
                f"{images / 'metadata.csv'} does not list {record.path.name}, which CUB has; re-download the data."
            )
    empty = Benchmark("waterbirds", {}, birds.class_names, GROUPS, keypoint_names=birds.keypoint_names)

    def grouped(records: Sequence[Record], reader: Reader) -> ImageFiles:
        return BirdFiles([replace(record, group=groups[record.path]) for record in records], reader)

    # Groups are added after the validation split, so that it is the same as for CUB.
    return assemble(empty, birds.splits, config, roots=[cub, images], files=grouped)
