"""Masks as a segmentation model might give them: the true ones, blurred and shifted.

    python -m benchmarks.rough_masks FOLDER [--shift 14] [--blur 7] [--seed 0]

For each image of `FOLDER/images.csv` (as `ifam prepare cutouts` writes it), the mask is blurred, cut at one half and
shifted by so many pixels in a direction of its own. `FOLDER/rough.csv` is the same list with a column of these masks,
`rough`: rows of `ifam compare` that segment first get them by `--data.csv rough.csv --data.given_mask_column rough`.
"""

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

LIST, FOLDER = "rough.csv", "rough"


def rough_mask(mask: Image.Image, shift: float, blur: float, angle: float) -> Image.Image:
    """A blurred and shifted mask; what enters the image is background.

    Args:
        mask: Gray, 255 on the object.
        shift: Length of the shift in pixels.
        blur: Standard deviation of the blur in pixels.
        angle: Direction of the shift in radians.
    """
    smooth = mask.filter(ImageFilter.GaussianBlur(blur)).point([255 * (value >= 128) for value in range(256)])
    x, y = round(shift * math.cos(angle)), round(shift * math.sin(angle))
    return smooth.transform(mask.size, Image.Transform.AFFINE, (1, 0, -x, 0, 1, -y))


def write_rough_masks(folder: Path, shift: float, blur: float, seed: int) -> Path:
    """Write a rough mask of each image, and the list of images with them."""
    with (folder / "images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        angle = float(np.random.default_rng([seed, index]).uniform(0, 2 * math.pi))
        name = f"{FOLDER}/{row['mask'].partition('/')[2]}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(folder / row["mask"]) as mask:
            rough_mask(mask.convert("L"), shift, blur, angle).save(folder / name)
        row[FOLDER] = name
    with (folder / LIST).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / LIST


def main(argv: Sequence[str] | None = None) -> None:
    """Write the masks and their list."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--shift", type=float, default=14.0, help="pixels; a patch")
    options.add_argument("--blur", type=float, default=7.0, help="standard deviation in pixels")
    options.add_argument("--seed", type=int, default=0, help="of the directions")
    args = options.parse_args(argv)
    print(write_rough_masks(args.folder, args.shift, args.blur, args.seed))


if __name__ == "__main__":
    main()
