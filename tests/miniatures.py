"""Every benchmark in miniature: few and small files, but real ones in the layout of the source.

    for name, build in MINIATURES.items():
        benchmark = load_benchmark(name, path, build(path))

Each function writes a data set below a path and returns the options to load it with. Sizes, labels, groups and masks
are simple enough to be written down in the tests.
"""

import csv
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30
# The object of every image with a mask: columns 10 to 29 and rows 5 to 24, one image excepted where it says so.
OBJECT = (slice(5, 25), slice(10, 30))
WNIDS = ("n01498041", "n01531178", "n01534433")  # stingray, goldfinch, junco: ImageNet-A's first three
SPECIES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
PARTS = ("back", "beak", "tail")


def draw(path: Path, colour: tuple[int, int, int] = (90, 120, 60), size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """A picture of one colour with a red object and a little noise of its own, in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng([*os.fsencode(path.parent.name + path.name)])
    pixels = chance.integers(0, 20, (size[1], size[0], 3)) + np.array(colour)
    pixels[OBJECT] = (220, 30, 30)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def draw_mask(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), value: int = 255) -> Path:
    """A grey mask of the object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[OBJECT] = value
    Image.fromarray(pixels).save(path)
    return path


def write(path: Path, *lines: str) -> None:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_csv(path: Path, header: str, *rows: tuple[Any, ...]) -> None:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def _drawn(path: Path) -> dict[str, Any]:
    """Nothing to write: the benchmark draws itself."""
    return {"num_train": 40, "num_val": 20, "num_test": 20}


def folder(root: Path) -> dict[str, Any]:
    """Two classes in class folders, ten images each, JPEG and PNG in turn."""
    for name in ("duck", "wren"):
        for number in range(10):
            draw(root / name / f"{number:03d}.{'jpg' if number % 2 else 'png'}")
    return {}


def birds(root: Path, ids: Callable[[int], str], labels: tuple[int, ...], names: tuple[str, ...]) -> None:
    """The lists and images of CUB or NABirds: of each class, six images for training and two for testing.

    In the image with running number n, keypoint p is at (10 + p, 5 + n % 8) and the last part is never visible.
    """
    lists: dict[str, list[str]] = {name: [] for name in ("images", "labels", "split", "boxes", "parts")}
    running = 0
    for label, folder_name in zip(labels, names, strict=True):
        for number in range(8):
            image, name = ids(running), f"{folder_name}/{folder_name[4:]}_{number:04d}.jpg"
            draw(root / "images" / name)
            lists["images"].append(f"{image} {name}")
            lists["labels"].append(f"{image} {label}")
            lists["split"].append(f"{image} {int(number < 6)}")
            lists["boxes"].append(f"{image} 10.0 5.0 20.0 20.0")
            for part in range(len(PARTS)):
                seen = part < len(PARTS) - 1
                place = f"{10.0 + part} {5.0 + running % 8}" if seen else "0.0 0.0"
                lists["parts"].append(f"{image} {part + 1} {place} {int(seen)}")
            running += 1
    write(root / "images.txt", *lists["images"])
    write(root / "image_class_labels.txt", *lists["labels"])
    write(root / "train_test_split.txt", *lists["split"])
    write(root / "bounding_boxes.txt", *lists["boxes"])
    write(root / "parts" / "parts.txt", *(f"{number} {name}" for number, name in enumerate(PARTS, 1)))
    write(root / "parts" / "part_locs.txt", *lists["parts"])


def cub(root: Path) -> dict[str, Any]:
    """Three species, with masks."""
    birds(root, lambda number: str(number + 1), (1, 2, 3), SPECIES)
    write(root / "classes.txt", *(f"{label} {name}" for label, name in enumerate(SPECIES, 1)))
    for path in sorted((root / "images").rglob("*.jpg")):
        # Four of five annotators saw the bird.
        draw_mask(root / "segmentations" / path.parent.name / f"{path.stem}.png", value=204)
    return {}


def nabirds(root: Path) -> dict[str, Any]:
    """Three categories 9, 295 and 1010; further names are those of families, and two categories share one."""
    birds(root, lambda number: f"0{number:03x}-4e1a", (9, 295, 1010), ("0009", "0295", "1010"))
    write(
        root / "classes.txt", "0 Birds", "1 Ducks, Geese", "9 Wood Duck", "295 Wood Duck", "1010 Oak Titmouse (Adult)"
    )
    return {}


def waterbirds(root: Path) -> dict[str, Any]:
    """The images of `cub` once more, on other backgrounds; the first species are waterbirds.

    Of the eight images of each species, four are in training (one of them on the other background), two in
    validation and two in test (on either background).
    """
    cub(root)
    rows = []
    for number, line in enumerate((root / "images.txt").read_text().splitlines()):
        image, name = line.split()
        draw(root / "waterbird_complete95_forest2water2" / name, (30, 60, 160))
        label, nth = int(number < 16), number % 8
        split = 0 if nth < 4 else 1 if nth < 6 else 2
        place = 1 - label if nth in (3, 5, 7) else label
        rows.append((image, name, label, split, place, "/o/ocean/00002129.jpg"))
    header = "img_id,img_filename,y,split,place,place_filename"
    write_csv(root / "waterbird_complete95_forest2water2" / "metadata.csv", header, *rows)
    return {}


def metashift(root: Path) -> dict[str, Any]:
    """Cats on beds and sofas, dogs on benches and bikes; shelves in the test set. One cat is on bed and sofa."""
    contexts = {
        "train": {"cat": ("bed", "sofa"), "dog": ("bench", "bike")},
        "test": {"cat": ("shelf",), "dog": ("shelf",)},
    }
    for split, classes in contexts.items():
        for name, places in classes.items():
            for place in places:
                for number in range(5):
                    draw(root / split / name / f"{name}({place})" / f"{place}{number}.jpg")
    for place in ("bed", "sofa"):
        draw(root / "train" / "cat" / f"cat({place})" / "both.jpg")
    return {}


def draw_dicom(path: Path, pixels: np.ndarray, bits: int = 8, jpeg: bool = False, inverted: bool = False) -> Path:
    """An X-ray: stored as it is, or compressed as those of the challenge are."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, SecondaryCaptureImageStorage

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = path.name.removesuffix(".dcm")
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = (8 if bits <= 8 else 16), bits, bits - 1
    path.parent.mkdir(parents=True, exist_ok=True)
    if jpeg:
        beside = path.with_suffix(".jpg")
        Image.fromarray(pixels.astype(np.uint8)).save(beside, quality=95)
        data.PixelData = encapsulate([beside.read_bytes()])
        beside.unlink()
    else:
        data.PixelData = pixels.astype(np.uint8 if bits <= 8 else "<u2").tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def siim_raw(root: Path) -> None:
    """The challenge's files: X-rays 1.2.1 to 1.2.24, of which every third is ill; the first eight have tube labels.

    Of these, the tubes are on 1.2.2, 1.2.5 and 1.2.6. The collapsed lung is at column 10, rows 5 to 9, and of
    1.2.3, which has two lines, at column 20, rows 0 to 1, too.
    """
    rows: list[tuple[str, str]] = []
    for number in range(1, 25):
        name = f"1.2.{number}"
        pixels = np.full((HEIGHT, WIDTH), 100, np.uint8)
        draw_dicom(root / "dicom-images-train" / f"9.{number}" / f"8.{number}" / f"{name}.dcm", pixels, jpeg=True)
        runs = [f" {10 * HEIGHT + 5} 5"] if number % 3 == 0 else [" -1"]
        if number == 3:
            runs.append(f" {20 * HEIGHT} 2")
        rows += [(name, run) for run in runs]
    write_csv(root / "train-rle.csv", "ImageId, EncodedPixels", *rows)
    (root / "cxr_tube_dict.pkl").write_bytes(pickle.dumps({f"1.2.{n}": int(n in (2, 5, 6)) for n in range(1, 9)}))


def siim_acr(root: Path) -> dict[str, Any]:
    """What the preparation makes of `siim_raw`."""
    from tools.prepare_siim_acr import prepare

    siim_raw(root / "raw")
    prepare(root / "raw", root)
    return {"val_fraction": 0.25}


def by_wnid(root: Path, count: int, extension: str = "JPEG") -> None:
    """Some images of each of three classes."""
    for wnid in WNIDS:
        for number in range(count):
            draw(root / wnid / f"{wnid}_{number}.{extension}")


def imagenet(root: Path) -> dict[str, Any]:
    """Three of the 1,000 classes, eight images for training and two others each."""
    by_wnid(root / "train", 8)
    by_wnid(root / "val", 2)
    return {"partial": True, "val_fraction": 0.25}


def imagenet_a(root: Path) -> dict[str, Any]:
    """Three of the 200 classes, two images each."""
    by_wnid(root / "imagenet-a", 2, "jpg")
    return {"partial": True}


def imagenet_r(root: Path) -> dict[str, Any]:
    """Two of the 200 classes, two images each."""
    for wnid in ("n01443537", "n01531178"):
        for number in range(2):
            draw(root / "imagenet-r" / wnid / f"art_{number}.jpg")
    return {"partial": True}


def imagenet_v2(root: Path) -> dict[str, Any]:
    """Classes 2, 10 and 100, two images each."""
    for label in (2, 10, 100):
        for number in range(2):
            draw(root / "imagenetv2-matched-frequency-format-val" / str(label) / f"{number}.jpeg")
    return {"partial": True}


def imagenet9(root: Path) -> dict[str, Any]:
    """All nine classes and three treatments, two images each; class i of 1,000 is i % 10 here, or none for 9.

    Files of mixed treatments are named after object and background, as those of the archive.
    """
    names = (
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
    for number, name in enumerate(names):
        for variant in ("original", "mixed_same", "mixed_rand"):
            for image in range(2):
                thing, scene = f"n0{number}_{image}", f"n0{(number + 2) % 9}_{image}"
                file = thing if variant == "original" else f"fg_{thing}_bg_{scene}"
                draw(root / variant / "val" / f"{number:02d}_{name}" / f"{file}.JPEG")
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[OBJECT] = True
        (root / "fg_mask" / "val" / f"{number:02d}_{name}").mkdir(parents=True, exist_ok=True)
        for image in range(2):
            np.save(root / "fg_mask" / "val" / f"{number:02d}_{name}" / f"n0{number}_{image}.npy", mask)
    mapping = {str(label): label % 10 if label % 10 < 9 else -1 for label in range(1000)}
    (root / "in_to_in9.json").write_text(json.dumps(mapping))
    return {}


def imagenet9_challenge(root: Path) -> dict[str, Any]:
    """The same with what the challenge needs: objects alone, red on black, and backgrounds, one colour each.

    Each class has three objects alone, one more than there are masks.
    """
    options = imagenet9(root)
    for folder in sorted((root / "original" / "val").iterdir()):
        number = int(folder.name[:2])
        for image in range(3):
            black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            black[OBJECT] = (220, 30 + 20 * number, 30)
            scene = np.full((HEIGHT, WIDTH, 3), (28 * number, 90 * image, 255 - 28 * number), np.uint8)
            for treatment, pixels in (("only_fg", black), ("only_bg_t", scene)):
                path = root / treatment / "val" / folder.name / f"n0{number}_{image}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, quality=95)
    return options


def part_imagenet(root: Path) -> dict[str, Any]:
    """Two classes with three categories of parts, numbered with a gap; five images for training, two for testing.

    The head (2) is columns 10 to 19, the body (5) columns 15 to 29, both on rows 5 to 24, so the head hides a part of
    the body; the wing (9) is a box given by two corners, on odd images only. The last training image has no part.
    """
    categories = [
        {"id": 9, "name": "Bird Wing", "supercategory": "Bird"},
        {"id": 2, "name": "Bird Head", "supercategory": "Bird"},
        {"id": 5, "name": "Bird Body", "supercategory": "Bird"},
    ]
    for split, count in (("train", 5), ("test", 2)):
        images: list[dict[str, Any]] = []
        notes: list[dict[str, Any]] = []
        for wnid in WNIDS[1:]:
            for number in range(count):
                name = f"{wnid}_{split}{number}.JPEG"
                draw(root / split / name)
                images.append({"id": len(images), "file_name": name, "width": WIDTH, "height": HEIGHT})
                if split == "train" and wnid == WNIDS[2] and number == count - 1:
                    continue
                outlines = {2: [10, 5, 19, 5, 19, 24, 10, 24], 5: [15, 5, 29, 5, 29, 24, 15, 24]}
                if number % 2:
                    outlines[9] = [0, 0, 4, 4]
                for category, corners in outlines.items():
                    box = [0, 0, 4, 4] if category == 9 else [0, 0, 1, 1]
                    notes.append(_annotation(images[-1]["id"], category, corners, box))
        notes.append(_annotation(0, 9, [0, 0, 39, 0, 39, 29, 0, 29], [0, 0, 40, 30], crowd=1))
        table = {"images": images, "annotations": notes, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(table))
    return {"val_fraction": 0.25}


def _annotation(image: int, category: int, corners: list[int], box: list[int], crowd: int = 0) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": category,
        "segmentation": [corners],
        "bbox": box,
        "area": 100,
        "iscrowd": crowd,
    }


def flowers102(root: Path) -> dict[str, Any]:
    """Three classes; of twelve images, 1 to 6 are for training, 7 to 9 for validation and 10 to 12 for testing."""
    from scipy.io import savemat

    below = root / "flowers-102"
    for number in range(1, 13):
        draw(below / "jpg" / f"image_{number:05d}.jpg")
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        pixels[..., 2] = 254
        pixels[OBJECT] = (200, 180, 40)
        path = below / "segmim" / f"segmim_{number:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=100, subsampling=0)
    savemat(below / "imagelabels.mat", {"labels": np.array([[1, 2, 3] * 4])})
    savemat(below / "setid.mat", {"trnid": np.arange(1, 7), "valid": np.arange(7, 10), "tstid": np.arange(10, 13)})
    return {}


def turtles(root: Path) -> dict[str, Any]:
    """Two turtles that are known, and one that `split_open` meets in the test set only."""
    rows = []
    for identity in ("t002", "t010"):
        for number in range(6):
            split = ("train", "train", "train", "train", "valid", "test")[number]
            rows.append((f"images/{identity}/{number}.JPG", identity, split, split, split))
    rows += [(f"images/t001/{n}.JPG", "t001", ("train", "train", "test")[n], "train", "test") for n in range(3)]
    for row in rows:
        draw(root / row[0])
    header = "file_name,identity,split_closed,split_closed_random,split_open"
    write_csv(root / "metadata_base.csv", header, *rows)
    return {}


MINIATURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "pondbirds": _drawn,
    "digits": _drawn,
    "folder": folder,
    "cub": cub,
    "nabirds": nabirds,
    "waterbirds": waterbirds,
    "metashift": metashift,
    "siim_acr": siim_acr,
    "imagenet": imagenet,
    "imagenet_a": imagenet_a,
    "imagenet_r": imagenet_r,
    "imagenet_v2": imagenet_v2,
    "imagenet9": imagenet9,
    "part_imagenet": part_imagenet,
    "flowers102": flowers102,
    "turtles": turtles,
}


def write_deep_png(path, pixels):
    """A PNG file of colors with 16 bits, [H, W, 3], which Pillow cannot write."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
