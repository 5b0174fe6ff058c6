"""Benchmarks from cut-out objects: what is divided stays divided, drawings repeat, bad input is one sentence."""

import csv
import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifam.auditing.background_swap import swap_backgrounds
from ifam.auditing.inputs import compute_outputs, from_benchmark
from ifam.data import load_benchmark
from ifam.data.composites import write_benchmark
from ifam.data.cutouts import SPLITS, find_material
from ifam.data_config import CutoutsConfig

PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "photographs"
KINDS = {"bird": (200, 40, 40), "cat": (200, 120, 40), "rose": (40, 40, 200)}
PLACES = {"land": (60, 140, 60), "water": (60, 120, 180)}
CLASSES = {"animal": ("bird", "cat"), "plant": ("rose",)}
SMALL = {"classes": CLASSES, "correlation": 0.75, "count": (16, 8, 16), "size": 32}
WORDS = ["--classes", "animal=bird,cat", "plant=rose", "--count", "16,8,16", "--size", "32", "--correlation", "0.75"]


def draw_object(path, color, seed, size=(60, 48)):
    """An ellipse with transparency around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[1], : size[0]]
    inside = ((x - size[0] / 2) / (size[0] / 2.2)) ** 2 + ((y - size[1] / 2) / (size[1] / 2.2)) ** 2 < 1
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    pixels[..., :3] = np.random.default_rng(seed).integers(-30, 30, (size[1], size[0], 3)) + color
    pixels[..., 3] = inside * 255
    Image.fromarray(pixels).save(path)
    return path


def draw_background(path, color, seed, size=(160, 80)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(-20, 20, (size[1], size[0], 3)) + color
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def material(tmp_path):
    """Folders of five objects of each kind and of three backgrounds of each place."""
    seed = 0
    for kind, color in KINDS.items():
        for number in range(5):
            draw_object(tmp_path / "objects" / kind / f"{number}.png", color, seed := seed + 1)
    for place, color in PLACES.items():
        for number in range(3):
            draw_background(tmp_path / "backgrounds" / place / f"{number}.png", color, seed := seed + 1)
    return tmp_path


def prepare(folder, out="out", overwrite=False, masks=None, **settings):
    """A small benchmark of the material in a folder."""
    config = CutoutsConfig(**{**SMALL, **settings})
    roots = {"objects": folder / "objects", "backgrounds": folder / "backgrounds"}
    material = find_material(*roots.values(), config, masks)
    write_benchmark(material, config, folder / out, roots, overwrite=overwrite)
    return folder / out


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_divided(out):
    """No object and no pixel of a background is in two splits."""
    objects, shown = defaultdict(set), defaultdict(lambda: defaultdict(list))
    for row in rows(out / "sources.csv"):
        objects[row["object"]].add(row["split"])
        box = [int(row[name]) for name in ("left", "top", "right", "bottom")]
        shown[row["background"]][row["split"]].append(box)
    assert {len(splits) for splits in objects.values()} == {1}
    for boxes in shown.values():
        right, bottom = (max(box[i] for several in boxes.values() for box in several) for i in (2, 3))
        used = np.zeros((len(SPLITS), bottom, right), bool)
        for split, several in boxes.items():
            for left, top, right, bottom in several:
                used[SPLITS.index(split), top:bottom, left:right] = True
        assert used.sum(axis=0).max() == 1


# --- what is drawn ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "size"),
    [({"land": 3}, (160, 80)), ({"land": 1, "water": 1}, (160, 80)), ({"land": 4}, (40, 40)), ({"land": 20}, (80, 40))],
    ids=["halves", "one picture", "small pictures", "many pictures"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_object_and_no_pixel_of_a_background_is_in_two_splits(material, numbers, size, seed):
    for place, number in numbers.items():
        shutil.rmtree(material / "backgrounds" / place)
        for index in range(number):
            draw_background(material / "backgrounds" / place / f"{index}.png", PLACES[place], index, size)
    out = prepare(material, seed=seed, count=(60, 30, 60))
    assert_divided(out)
    assert {row["split"] for row in rows(out / "sources.csv")} == {*SPLITS}


def test_groups_have_their_shares(material):
    out = prepare(material, count=(40, 20, 24), correlation=0.9)
    number = Counter((row["split"], row["group"]) for row in rows(out / "images.csv"))
    assert [number[split, "animal on land"] for split in SPLITS] == [18, 9, 6]
    assert [number[split, "animal on water"] for split in SPLITS] == [2, 1, 6]
    assert [number[split, "plant on land"] for split in SPLITS] == [2, 1, 6]
    assert [number[split, "plant on water"] for split in SPLITS] == [18, 9, 6]


def test_at_full_correlation_only_the_test_has_counterexamples(material):
    out = prepare(material, correlation=1.0)
    groups = defaultdict(set)
    for row in rows(out / "images.csv"):
        groups[row["split"]].add(row["group"])
    assert groups["train"] == groups["val"] == {"animal on land", "plant on water"}
    assert len(groups["test"]) == len(load_benchmark("folder", out).group_names) == 4


def test_the_same_seed_gives_the_same_bytes_and_what_was_stopped_goes_on(material):
    whole = contents(prepare(material))
    assert contents(prepare(material, "again")) == whole
    assert contents(prepare(material, "other", seed=1))["images/train/00000.jpg"] != whole["images/train/00000.jpg"]
    out = material / "out"
    for name in ("images.csv", "images/train/00003.jpg", "masks/test/00001.png", "third/test/00002.jpg"):
        (out / name).unlink()
    kept = out / "images/train/00000.jpg"
    time = kept.stat().st_mtime_ns
    assert contents(prepare(material)) == whole
    assert kept.stat().st_mtime_ns == time


def test_masks_are_the_objects(material):
    """The colors of objects and backgrounds are far apart, but for the soft edge."""
    test = load_benchmark("folder", prepare(material, correlation=0.5, size=64)).split("test")
    for example in (test[i] for i in range(len(test))):
        pixels, mask = np.asarray(example["image"]).astype(int), example["mask"].numpy()
        color = "red" if example["label"] == 0 else "blue"
        of_object = pixels[..., 0] > pixels[..., 1] + 20 if color == "red" else pixels[..., 2] > 2 * pixels[..., 1]
        assert (of_object == mask).mean() > 0.93
        assert 0.03 < mask.mean() < 0.5


def test_the_benchmark_is_read_with_groups_masks_and_swaps(material):
    out = prepare(material)
    for options in ({}, {"csv": "images.csv"}):
        benchmark = load_benchmark("folder", out, options)
        assert benchmark.class_names == ("animal", "plant")
        assert benchmark.group_names == ("animal on land", "animal on water", "plant on land", "plant on water")
        assert [len(benchmark.split(split)) for split in SPLITS] == [16, 8, 16]
    assert benchmark.split("train").swapped is benchmark.split("val").third is None
    test = benchmark.split("test")
    for other in (test.swapped(), test.third()):
        assert other.labels == test.labels
        for i in (0, 5):
            one, two = (np.asarray(examples[i]["image"]).astype(int) for examples in (test, other))
            mask = test[i]["mask"].numpy()
            inner = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
            assert np.abs(one - two)[inner].mean() < 5 < np.abs(one - two)[~mask].mean()
            assert torch.equal(other[i]["mask"], test[i]["mask"])


def test_swaps_show_another_place_and_the_third_is_the_same_place(material):
    out = prepare(material)
    shown = {row["path"]: row["background"] for row in rows(out / "sources.csv")}
    for row in rows(out / "images.csv"):
        assert row["group"].endswith(f"on {Path(shown[row['path']]).parent}")
        if row["split"] == "test":
            place, swapped, third = (Path(shown[row[name]]) for name in ("path", "swapped", "third"))
            assert swapped.parent != place.parent == third.parent
    assert json.loads((out / "cutouts.json").read_text())["third"] == "on another picture of the same place"


def test_a_place_of_no_class_is_the_third(material):
    draw_background(material / "backgrounds" / "desert" / "0.png", (200, 180, 120), 9)
    out = prepare(material, places={"animal": ("water",), "plant": ("land",)})
    thirds = [row["background"] for row in rows(out / "sources.csv") if row["path"].startswith("third")]
    assert {*thirds} == {"desert/0.png"}
    assert len(thirds) == 16
    assert len(load_benchmark("folder", out).group_names) == 4


def test_several_folders_make_a_place_and_classes_may_share_one(material):
    draw_background(material / "backgrounds" / "lake" / "0.png", (60, 120, 180), 9)
    places = {"bird": ("lake", "water"), "cat": ("land",), "rose": ("land",)}
    out = prepare(material, classes={}, places=places, correlation=1.0)
    groups = {row["group"] for row in rows(out / "images.csv") if row["split"] == "train"}
    assert groups == {"bird on lake+water", "cat on land", "rose on land"}
    assert_divided(out)


def test_an_audit_swaps_backgrounds_as_the_benchmark_does(material, make_model):
    model = make_model()
    benchmark = load_benchmark("folder", prepare(material))
    inputs = from_benchmark(benchmark, "test", model, 4)
    assert inputs.swapped.shape == inputs.images.shape
    assert from_benchmark(benchmark, "val", model, 4).swapped is None
    assert swap_backgrounds(model, inputs, compute_outputs(model, inputs.images), seed=0).source == "benchmark"
