"""MetaShift, cats and dogs: photographs sorted by the surroundings of the animal, which differ in the test set.

From https://github.com/Wuyxin/DISC (its README links the subset that the paper uses); the images are those of Visual
Genome, see https://github.com/Weixin-Liang/MetaShift. License: CC BY 4.0 for Visual Genome's annotations, the images
belong to their owners; see the sources.

    MetaDatasetCatDog/
      train/cat/cat(bed)/*.jpg, train/cat/cat(sofa)/*.jpg, train/dog/dog(bench)/*.jpg, train/dog/dog(bike)/*.jpg
      test/cat/cat(shelf)/*.jpg, test/dog/dog(shelf)/*.jpg

Splits: train and test as published; where there is no `val` folder, validation is split from training, context by
context. One photograph may belong to several contexts; all its files stay on one side of the validation split. Groups
are the context folders over all splits; images directly in a class folder form a group of their own.
"""

from pathlib import Path

from ifam.data.base import Benchmark
from ifam.data.files import image_files, sub_folders
from ifam.data.records import Record, assemble
from ifam.data.source_files import find_root
from ifam.data_config import MetashiftConfig
from ifam.errors import IfamError

SOURCE = "https://github.com/Wuyxin/DISC"
CLASSES = ("cat", "dog")


def load_metashift(root: Path | None, config: MetashiftConfig) -> Benchmark:
    """MetaShift, from the folder with `train` and `test`."""
    needed = [f"{split}/{name}" for split in ("train", "test") for name in CLASSES]
    root = find_root("metashift", root, needed, SOURCE)
    images = [
        (split, label, path)
        for split in ("train", "val", "test")
        for label, name in enumerate(CLASSES)
        if (root / split / name).is_dir()
        for path in image_files(root / split / name)
    ]
    for split in sub_folders(root):
        stray = sorted(set(sub_folders(root / split)) - set(CLASSES)) if split in ("train", "val", "test") else []
        if stray:
            raise IfamError(f"{root / split} has a folder {stray[0]!r}, but cat and dog are expected; move it.")
    names = {(label, path): _group_name(root / split / CLASSES[label], path) for split, label, path in images}
    groups = sorted(set(names.values()), key=lambda name: (not name.startswith("cat"), name))
    splits: dict[str, list[Record]] = {}
    for split, label, path in images:
        splits.setdefault(split, []).append(Record(path, label, groups.index(names[label, path])))
    note = "validation images from val/" if "val" in splits else ""
    return assemble(
        Benchmark("metashift", {}, CLASSES, tuple(groups), note), splits, config, group_key=lambda r: r.path.name
    )


def _group_name(folder: Path, path: Path) -> str:
    """The context folder ("cat(bed)"), with the class in front if its name lacks it; or the class alone."""
    relative = path.relative_to(folder)
    if len(relative.parts) == 1:
        return folder.name
    context = relative.parts[0]
    return context if context.startswith(f"{folder.name}(") else f"{folder.name}({context})"
