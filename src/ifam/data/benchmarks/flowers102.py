"""Oxford Flowers 102: 8,189 photographs of 102 kinds of flowers.

From https://www.robots.ox.ac.uk/~vgg/data/flowers/102/ (Nilsback and Zisserman, 2008). License: see the source.

    root/
      flowers-102/              as torchvision's `Flowers102` lays it out
        imagelabels.mat         class of each image, 1 to 102
        setid.mat               trnid, valid, tstid: numbers of the images in each split
        jpg/image_00001.jpg ...
        segmim/segmim_00001.jpg ...    optional: the flower on plain blue, for masks

Splits as published; groups are the classes, which have no names in the source. In `segmim` the background is plain
blue: a pixel whose red and green together are a hundredth of its blue or less is background, and a median filter of
five pixels removes what JPEG left, so that masks are those of PDiscoFormer.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from ifam._typing import Bool, Tensor
from ifam.data.base import Benchmark
from ifam.data.images import load_image
from ifam.data.masks import turn_with
from ifam.data.records import ImageFiles, Record, assemble
from ifam.data.source_files import find_root
from ifam.data_config import Flowers102Config
from ifam.errors import IfamError

SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
_SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}


def load_flowers102(root: Path | None, config: Flowers102Config) -> Benchmark:
    """Oxford Flowers 102, from the folder that holds `flowers-102`."""
    inner = root / "flowers-102" if root is not None and (root / "flowers-102").is_dir() else root
    folder = find_root("flowers102", inner, ("imagelabels.mat", "setid.mat", "jpg"), SOURCE)
    labels = _read_mat(folder / "imagelabels.mat", "labels")
    segmented = (folder / "segmim").is_dir()
    splits: dict[str, list[Record]] = {}
    for split, key in _SPLITS.items():
        numbers = _read_mat(folder / "setid.mat", key)
        if numbers.size and not 1 <= numbers.min() <= numbers.max() <= labels.size:
            raise IfamError(
                f"{folder / 'setid.mat'} lists images beyond the {labels.size} of imagelabels.mat; re-download both."
            )
        splits[split] = [
            Record(
                folder / "jpg" / f"image_{number:05d}.jpg",
                int(labels[number - 1]) - 1,
                mask=folder / "segmim" / f"segmim_{number:05d}.jpg" if segmented else None,
            )
            for number in numbers.tolist()
        ]
    classes = tuple(f"flower {label}" for label in range(1, int(labels.max()) + 1))
    published = Benchmark("flowers102", {}, classes, classes, "validation images as published")
    return assemble(published, splits, config, files=FlowerFiles)


class FlowerFiles(ImageFiles):
    """Flowers, whose masks are pictures on plain blue."""

    def read_mask(self, path: Path, image: Path) -> Bool[Tensor, "H W"]:
        """The pixels that are not plain blue."""
        return torch.from_numpy(turn_with(flower_mask(path).numpy(), path, image).copy())


def flower_mask(path: Path) -> Bool[Tensor, "H W"]:
    """The pixels of a picture of `segmim` that are not plain blue."""
    red, green, blue = np.asarray(load_image(path), np.float32).transpose(2, 0, 1)
    flower = ~(blue > 100 * (red + green))
    smooth = Image.fromarray(flower.astype(np.uint8) * 255).filter(ImageFilter.MedianFilter(5))
    return torch.from_numpy(np.asarray(smooth) > 127)


def _read_mat(path: Path, key: str) -> np.ndarray:
    """A list of numbers from a MATLAB file."""
    # Slow to import, and needed only here.
    from scipy.io import loadmat

    try:
        return np.asarray(loadmat(path)[key], np.int64).ravel()
    except Exception as error:  # scipy can raise anything on a damaged file
        raise IfamError(f"{path} has no readable list {key!r} ({error}); re-download it from {SOURCE}.") from None
