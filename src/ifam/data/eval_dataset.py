"""The images that a model is measured on: those that were set aside when it was trained, or others of its classes."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ifam.data import Benchmark, load_benchmark
from ifam.data.duplicates import count_shared
from ifam.data.fingerprints import list_digest
from ifam.data_config import data_config
from ifam.errors import IfamError

logger = logging.getLogger(__name__)

# Settings that change which images there are, or how they are divided.
_SELECT = ("csv", "path_column", "label_column", "split_column", "val_fraction", "seed", "skip_bad")


def load_eval_dataset(
    extra: Mapping[str, Any],
    benchmark: str | None,
    root: Path | None,
    data: Mapping[str, Any] | None,
    class_names: tuple[str, ...] = (),
    split: str | None = None,
) -> tuple[str, Benchmark, dict[str, Any]]:
    """Name, images and settings: those that the model was trained with where nothing else is asked for.

    A folder of images that are not those of the training is taken whole where it has no splits, unless "train" or "val"
    is asked for, and its classes are matched with the model's by their names. Images that the model was trained on are
    counted, and the count is said.

    Args:
        extra: What the model remembers of its training.
        benchmark: Name of the data set; that of the training where it is None.
        root: Where the images are; where they were in training if it is None.
        data: Settings that differ from those of the training.
        class_names: The classes that the model knows.
        split: Split that will be measured; `Benchmark.default_eval_split` where it is None.

    Raises:
        IfamError: The images cannot be loaded.
    """
    name, options = eval_options(extra, benchmark, data)
    known = name == extra.get("benchmark")
    trained = dict(extra.get("data") or {}) if known else {}
    source = remembered_root(extra, benchmark, root)
    if name != "folder":
        return name, load_benchmark(name, source, options), options
    same_selection = known and all(options.get(key) == trained.get(key) for key in _SELECT)
    if same_selection and _same_place(source, extra):
        images = load_benchmark(name, source, options)
        _warn_if_changed(images, extra)
        return name, images, options
    whole = {"classes": class_names, **options}
    if split not in ("train", "val") and "val_fraction" not in (data or {}):
        whole["val_fraction"] = 0.0
    images = load_benchmark(name, source, whole)
    if same_selection and training_list(images) == {"image_list": extra.get("image_list")}:
        again = load_benchmark(name, source, options)
        if "train" in again.splits:
            # The same images in another place.
            return name, again, options
    return name, _without_silence(images, split or images.default_eval_split, extra), whole


def eval_options(
    extra: Mapping[str, Any], benchmark: str | None, data: Mapping[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    """Name and settings of the images, known to be possible before a model or an image is read.

    Args:
        extra: What the model remembers of its training.
        benchmark: Name of the data set; that of the training where it is None.
        data: Settings that differ from those of the training.

    Raises:
        IfamError: There is no such data set, or it has no such settings.
    """
    name = benchmark or str(extra.get("benchmark", "pondbirds"))
    trained = extra.get("data") or {} if name == extra.get("benchmark") else {}
    options = {**trained, **(data or {})}
    data_config(name, options)
    return name, options


def default_split(images: Benchmark, usual: str) -> str:
    """The split that is usual for a purpose, or all images where there are no splits."""
    return "all" if images.is_whole else usual


def training_list(images: Benchmark) -> dict[str, Any]:
    """What a model remembers of the images in a folder, to know them again."""
    if images.name != "folder":
        return {}
    return {"image_list": list_digest(images)}


def remembered_root(extra: Mapping[str, Any], benchmark: str | None, root: Path | None) -> Path | None:
    """Where the images are: as asked for, or where they were when the model was trained.

    Raises:
        IfamError: They are no longer there.
    """
    if root is not None or not extra.get("root") or benchmark not in (None, extra.get("benchmark")):
        return root
    source = Path(extra["root"])
    if not source.exists():
        raise IfamError(
            f"The model was trained on images in {source}, which does not exist here; say where they are with --root."
        )
    return source


def _same_place(root: Path | None, extra: Mapping[str, Any]) -> bool:
    """Whether images lie where those lay that a model was trained on."""
    trained = extra.get("root")
    return root is not None and trained is not None and os.path.realpath(root) == os.path.realpath(trained)


def _warn_if_changed(images: Benchmark, extra: Mapping[str, Any]) -> None:
    """Say so where a folder has other images than in training: their cut is another one, too."""
    if "image_list" in extra and (now := training_list(images)["image_list"]) != extra["image_list"]:
        logger.warning(
            "The images in %s have changed since the model was trained on them (%d then, %d now); validation images "
            "that are cut from them anew may be ones that it was trained on.",
            *(extra["root"], extra["image_list"]["count"], now["count"]),
        )


def _without_silence(images: Benchmark, split: str, extra: Mapping[str, Any]) -> Benchmark:
    """The images, with a note and a warning of how many of a split the model was trained on."""
    root = extra.get("root")
    if extra.get("benchmark") != "folder" or not root or split not in images.splits:
        return images
    try:
        with _no_logs():
            trained: Any = load_benchmark("folder", root, {**(extra.get("data") or {}), "check": False})
            trained = trained.split("train")
    except IfamError:
        logger.warning(
            "The images that the model was trained on are no longer in %s; whether some of these are among them cannot "
            "be checked.",
            root,
        )
        return images
    judged: Any = images.split(split)
    count = count_shared(trained.paths, judged.paths)
    if not count:
        return images
    logger.warning(
        "The model was trained on %d of these %d images; figures on them say nothing about new images.",
        *(count, len(judged)),
    )
    return replace(images, note="; ".join(filter(None, [images.note, f"{count} of them were trained on"])))


@contextmanager
def _no_logs() -> Iterator[None]:
    """What has been said about a folder in training is not said again."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
