"""The images that a model is evaluated on: those set aside in training, or others of its classes."""

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
from ifam.data.shards import expand_pattern
from ifam.data_config import data_config, refuse_function
from ifam.errors import IfamError

logger = logging.getLogger(__name__)

# Settings that determine the images and their splits.
_SELECT = ("csv", "path_column", "label_column", "split_column", "val_fraction", "seed", "skip_bad")


def load_eval_dataset(
    extra: Mapping[str, Any],
    benchmark: str | None,
    root: Path | None,
    data: Mapping[str, Any] | None,
    class_names: tuple[str, ...] = (),
    split: str | None = None,
) -> tuple[str, Benchmark, dict[str, Any]]:
    """Name, images and settings; by default those that the model was trained with.

    A folder without splits whose images are not those of the training is not split, unless "train" or "val" is named;
    its classes are matched with the model's by name. Images that the model was trained on are counted in a warning.

    Args:
        extra: What was saved of the model's training.
        benchmark: Name of the data set; that of the training where it is None.
        root: Folder of the images; that of the training where it is None.
        data: Settings that differ from those of the training.
        class_names: Classes of the model.
        split: Split to evaluate; `Benchmark.default_eval_split` where it is None.

    Raises:
        IfamError: The images cannot be loaded.
    """
    name, options = eval_options(extra, benchmark, data)
    same_benchmark = name == extra.get("benchmark")
    trained = _trained_options(extra) if same_benchmark else {}
    source = remembered_root(extra, benchmark, root)
    if name != "folder":
        return name, load_benchmark(name, source, options), options
    same_selection = same_benchmark and all(options.get(key) == trained.get(key) for key in _SELECT)
    if same_selection and _same_folder(source, extra):
        images = load_benchmark(name, source, options)
        _warn_if_changed(images, extra)
        return name, images, options
    unsplit = {"classes": class_names, **options}
    if split not in ("train", "val") and "val_fraction" not in (data or {}):
        unsplit["val_fraction"] = 0.0
    images = load_benchmark(name, source, unsplit)
    if same_selection and training_list(images) == {"image_list": extra.get("image_list")}:
        moved = load_benchmark(name, source, options)
        if "train" in moved.splits:
            # The same images in another folder.
            return name, moved, options
    outside = bool(options.get("allow_outside"))
    return name, _note_trained_images(images, split or images.default_eval_split, extra, outside), unsplit


def eval_options(
    extra: Mapping[str, Any], benchmark: str | None, data: Mapping[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    """Name and settings of the data set, checked before a model or an image is read.

    Args:
        extra: What was saved of the model's training.
        benchmark: Name of the data set; that of the training where it is None.
        data: Settings that differ from those of the training.

    Raises:
        IfamError: There is no such data set, or it has no such settings, or it is a function that only the model names.
    """
    name = benchmark or str(extra.get("benchmark", "pondbirds"))
    if benchmark is None:
        refuse_function(name, "The model")
    trained = _trained_options(extra) if name == extra.get("benchmark") else {}
    options = {**trained, **(data or {})}
    data_config(name, options)
    return name, options


def _trained_options(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the training's data, without the permission to leave the root: the model may be a stranger's."""
    return {name: value for name, value in (extra.get("data") or {}).items() if name != "allow_outside"}


def default_split(images: Benchmark, usual: str) -> str:
    """The split that is usual for a purpose, or all images where there are no splits."""
    return "all" if images.is_whole else usual


def training_list(images: Benchmark) -> dict[str, Any]:
    """A digest of the images in a folder, saved with a model to recognize them."""
    if images.name != "folder":
        return {}
    return {"image_list": list_digest(images)}


def remembered_root(extra: Mapping[str, Any], benchmark: str | None, root: Path | None) -> Path | None:
    """The folder of the images: the one given, or that of the training.

    Raises:
        IfamError: The folder of the training does not exist any more.
    """
    if root is not None or not extra.get("root") or benchmark not in (None, extra.get("benchmark")):
        return root
    source = Path(extra["root"])
    if not source.exists() and not expand_pattern(source):
        raise IfamError(
            f"The model was trained on images in {source}, which does not exist here; give their folder with --root."
        )
    return source


def _same_folder(root: Path | None, extra: Mapping[str, Any]) -> bool:
    """Whether this is the folder that a model was trained on."""
    trained = extra.get("root")
    return root is not None and trained is not None and os.path.realpath(root) == os.path.realpath(trained)


def _warn_if_changed(images: Benchmark, extra: Mapping[str, Any]) -> None:
    """Warn if the images of a folder have changed since training, since then its validation split has changed too."""
    if "image_list" in extra and (now := training_list(images)["image_list"]) != extra["image_list"]:
        logger.warning(
            "The images in %s have changed since the model was trained on them (%d then, %d now); its validation "
            "split may now contain images that it was trained on.",
            *(extra["root"], extra["image_list"]["count"], now["count"]),
        )


def _note_trained_images(images: Benchmark, split: str, extra: Mapping[str, Any], outside: bool) -> Benchmark:
    """The images, with a note and a warning of how many of a split the model was trained on."""
    root = extra.get("root")
    if extra.get("benchmark") != "folder" or not root or split not in images.splits:
        return images
    try:
        with _no_logs():
            options = {**_trained_options(extra), "check": False, "allow_outside": outside}
            trained: Any = load_benchmark("folder", root, options)
            trained = trained.split("train")
    except IfamError:
        logger.warning(
            "The images that the model was trained on are no longer in %s; whether some of these are among them cannot "
            "be checked.",
            root,
        )
        return images
    examples: Any = images.split(split)
    count = count_shared(trained.paths, examples.paths)
    if not count:
        return images
    logger.warning(
        "The model was trained on %d of these %d images; figures on them say nothing about new images.",
        *(count, len(examples)),
    )
    return replace(images, note="; ".join(filter(None, [images.note, f"{count} of them were trained on"])))


@contextmanager
def _no_logs() -> Iterator[None]:
    """Silence the warnings about a folder that were shown in training already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
