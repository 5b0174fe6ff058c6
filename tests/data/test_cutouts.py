"""Benchmarks from cut-out objects: what is divided stays divided, drawings repeat, bad input is one sentence."""

import csv
import json
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifam.auditing.background_swap import swap_backgrounds
from ifam.auditing.inputs import compute_outputs, from_benchmark
from ifam.cli.main import main
from ifam.cli.parser import parse
from ifam.data import load_benchmark
from ifam.data.composites import prepare_cutouts
from ifam.data.cutouts import SPLITS
from ifam.data.fingerprints import fingerprint
from ifam.data_config import CutoutsConfig
from ifam.errors import IfamError
from ifam.prediction.sources import ImageSources

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
    folders = (folder / name for name in ("objects", "backgrounds", out))
    prepare_cutouts(*folders, config, masks=masks, overwrite=overwrite)
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
    damaged = out / "images/test/00003.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
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
    train, val, test = map(benchmark.split, SPLITS)
    assert train.swapped is train.third is val.third is None
    # The third background has the color of the first.
    for own, other, between in ((val, val.swapped(), 20), (test, test.swapped(), 20), (test, test.third(), 5)):
        assert other.labels == own.labels
        for i in (0, 5):
            one, two = (np.asarray(examples[i]["image"]).astype(int) for examples in (own, other))
            mask = own[i]["mask"].numpy()
            inner = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
            assert np.abs(one - two)[inner].mean() < between < np.abs(one - two)[~mask].mean()
            assert torch.equal(other[i]["mask"], own[i]["mask"])


def test_swaps_show_another_place_and_the_third_is_the_same_place(material):
    out = prepare(material)
    shown = {row["path"]: row["background"] for row in rows(out / "sources.csv")}
    for row in rows(out / "images.csv"):
        assert row["group"].endswith(f"on {Path(shown[row['path']]).parent}")
        if row["split"] != "train":
            assert Path(shown[row["swapped"]]).parent != Path(shown[row["path"]]).parent
        if row["split"] == "test":
            assert Path(shown[row["third"]]).parent == Path(shown[row["path"]]).parent
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


def test_names_are_found_in_either_encoding_of_accents(material):
    for old, new in (("objects/bird", "objects/Vo\u0308gel "), ("backgrounds/land", "backgrounds/Gru\u0308n")):
        (material / old).rename(material / new)
    classes = {"V\u00f6gel": ("V\u00f6gel",), "plant": ("rose",)}
    out = prepare(material, classes=classes, places={"Vo\u0308gel": ("Gr\u00fcn",), "plant": ("water",)})
    assert load_benchmark("folder", out).class_names == ("V\u00f6gel", "plant")


def test_a_changed_picture_on_another_background_is_noticed(material):
    out = prepare(material)
    seen = {fingerprint(load_benchmark("folder", out))}
    for name in ("swapped/test/00003.jpg", "swapped/val/00001.jpg", "third/test/00000.jpg"):
        with (out / name).open("ab") as file:
            file.write(b"\0")
        seen.add(fingerprint(load_benchmark("folder", out)))
    text = (out / "images.csv").read_text()
    (out / "images.csv").write_text(re.sub(r"swapped/test/\d+\.jpg", "", text))
    seen.add(fingerprint(load_benchmark("folder", out)))
    assert len(seen) == 5


def test_predict_sees_the_images_of_the_list_alone(material):
    out = prepare(material)
    found = [one.path.relative_to(out).as_posix() for one in ImageSources(out)]
    assert found == [row["path"] for row in rows(out / "images.csv")]
    # A list of something else changes nothing.
    (out / "images.csv").write_text("path,score\nx,1\n")
    assert len(list(ImageSources(out))) > len(found)


def test_a_picture_of_another_size_than_its_mask_is_named(material):
    out = prepare(material)
    Image.new("RGB", (50, 40)).save(out / "swapped" / "test" / "00003.jpg")
    with pytest.raises(IfamError, match=r"its image \S+swapped/test/00003\.jpg is 50 x 40"):
        load_benchmark("folder", out)


def test_an_audit_swaps_backgrounds_as_the_benchmark_does(material, make_model):
    model = make_model()
    benchmark = load_benchmark("folder", prepare(material))
    inputs = from_benchmark(benchmark, "test", model, 4)
    assert inputs.swapped.shape == inputs.images.shape
    assert from_benchmark(benchmark, "train", model, 4).swapped is None
    assert swap_backgrounds(model, inputs, compute_outputs(model, inputs.images), seed=0).source == "benchmark"


# --- objects and masks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["masks beside", "suffix", "folder"])
def test_masks_in_files_give_the_same_as_transparency(material, where):
    """Up to the compression, which is none here."""
    expected = contents(prepare(material))
    for name in ("objects", "backgrounds"):
        shutil.copytree(material / name, material / "two" / name)
    for path in [*(material / "two" / "objects").rglob("*.png")]:
        image = Image.open(path)
        name = {"masks beside": f"masks/{path.name}", "suffix": f"{path.stem}_mask.png"}.get(where, path.name)
        target = (material / "masks" / path.parent.name if where == "folder" else path.parent) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        image.getchannel("A").save(target)
        image.convert("RGB").save(path)
        for ending in ("json", "txt"):
            target.with_suffix(f".{ending}").write_text("an annotation")
    found = contents(prepare(material / "two", masks=material / "masks" if where == "folder" else None))
    assert {name for name in found if found[name] != expected[name]} == {"cutouts.json"}


def test_a_mask_shows_nothing_that_is_transparent(material):
    """Below it may be any color, here magenta."""
    expected = contents(prepare(material))
    for path in [*(material / "objects").rglob("*.png")]:
        image = Image.open(path)
        pixels = np.asarray(image).copy()
        pixels[pixels[..., 3] == 0, :3] = (255, 0, 255)
        Image.fromarray(pixels).save(path)
        Image.new("L", image.size, 255).save(path.with_name(f"{path.stem}_mask.png"))
    found = contents(prepare(material, "again"))
    assert {name for name in found if found[name] != expected[name]} == {"cutouts.json"}


@pytest.mark.parametrize("ending", ["webp", "tif", "gif"])
def test_other_formats_with_transparency(material, ending):
    for path in [*(material / "objects" / "rose").iterdir()]:
        Image.open(path).save(path.with_suffix(f".{ending}"))
        path.unlink()
    shown = {row["object"] for row in rows(prepare(material) / "sources.csv") if row["object"].startswith("rose")}
    assert {Path(name).suffix for name in shown} == {f".{ending}"}


def test_files_of_the_same_content_are_one_object(material):
    shutil.copy(material / "objects" / "bird" / "1.png", material / "objects" / "bird" / "copy.png")
    shutil.copy(material / "backgrounds" / "land" / "1.png", material / "backgrounds" / "land" / "copy.png")
    out = prepare(material, count=(60, 30, 60))
    assert not any("copy" in cell for row in rows(out / "sources.csv") for cell in row.values())


def test_a_class_of_rare_kinds_has_objects_in_every_split(material):
    for number in range(3):
        (material / "objects" / "cat" / f"{number}.png").unlink()
        (material / "objects" / "bird" / f"{number + 1}.png").unlink()
    draw_object(material / "objects" / "bird" / "9.png", KINDS["bird"], 99)
    assert_divided(prepare(material))


# --- bad input -------------------------------------------------------------------------------------------


def fails(capsys, folder, *words, out=None):
    """The one sentence of a command that is refused."""
    capsys.readouterr()
    where = {"objects": folder / "objects", "backgrounds": folder / "backgrounds", "out": out or folder / "out"}
    options = [word for name, path in where.items() if f"--{name}" not in words for word in (f"--{name}", path)]
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in ["prepare", "cutouts", *options, *words]])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("ifam: ")
    assert said.count("\n") == 1
    return said


PLACED = ["--places", "animal=land"]
WRONG = {
    "an unknown kind": (["--classes", "a=brid", "b=cat"], "'brid' for a, which is no kind of objects in .* 'bird'"),
    "a kind in two classes": (["--classes", "a=bird,cat", "b=cat"], "'cat' in a and in b; leave one"),
    "a kind twice": (["--classes", "a=bird,bird", "b=cat"], "'bird' in a and in a; leave one"),
    "a class without kinds": (["--classes", "a=", "b=cat"], "has nothing for a; write a="),
    "a class twice": (["--classes", "a=bird", "a=cat"], "'a' twice"),
    "no class": (["--classes", "=bird", "a=cat"], "a class without a name"),
    "one class": (["--classes", "a=bird"], "--classes has 1 class, but at least two"),
    "no equals sign": (["--classes", "bird", "cat"], "has 'bird', but NAME=FOLDER"),
    "more classes than places": ([], "has 2 places for 3 classes"),
    "a class without a place": ([*WORDS, *PLACED], "The class plant has no place; add it to --places"),
    "an unknown class": ([*WORDS, *PLACED, "plants=water"], "'plants', which does not exist .*'plant'"),
    "an unknown place": ([*WORDS, *PLACED, "plant=waters"], "'waters' for plant, which is no place in .*'water'"),
    "one place": ([*WORDS, *PLACED, "plant=land"], "the same place for all classes"),
    "a place in two lists": ([*WORDS, *PLACED, "plant=land,water"], "'land' in two lists that differ"),
    "a share": ([*WORDS, "--correlation", "1.5"], "correlation is 1.5, but a share from 0 to 1"),
    "no share": ([*WORDS, "--correlation", "nan"], "correlation is nan, but a share from 0 to 1"),
    "two numbers": ([*WORDS, "--count", "10,20"], "count is 10,20, but three numbers of at least 1"),
    "none to validate with": ([*WORDS, "--count", "10,0,20"], "count is 10,0,20, but three numbers"),
    "words": ([*WORDS, "--count", "a,b,c"], "count is a,b,c, but three numbers"),
    "fewer than classes": ([*WORDS, "--count", "10,1,20"], "count has 1 for val, but at least 2 .* of each class"),
    "fewer than groups": ([*WORDS, "--count", "10,2,3"], "count has 3 for test, but at least 4 .* on each place"),
    "more than the disk holds": (
        [*WORDS, "--count", "9000000000,8,16"],
        "MB left, but about .* for the images; make room",
    ),
    "a tiny size": ([*WORDS, "--size", "8"], "size is 8, but a whole number from 32"),
    "backgrounds too small": ([*WORDS, "--size", "96"], "160 x 80 pixels, but at least 96 x 96 are needed"),
    "a negative seed": ([*WORDS, "--seed", "-1"], "seed is -1"),
    "no objects": ([*WORDS, "--objects", "nowhere"], "no folder nowhere; give one with --objects"),
    "no backgrounds": ([*WORDS, "--backgrounds", "nowhere"], "no folder nowhere; give one with --backgrounds"),
    "no masks": ([*WORDS, "--masks", "nowhere"], "no folder nowhere; give one with --masks"),
}


@pytest.mark.parametrize(("words", "says"), WRONG.values(), ids=WRONG)
def test_wrong_settings_are_refused_in_one_sentence(material, words, says, capsys):
    before = contents(material)
    assert re.search(says, fails(capsys, material, *words))
    assert contents(material) == before
    assert not (material / "out").exists()


def _opaque(path):
    Image.open(path).convert("RGB").save(path)


def _alpha(path, value):
    image = Image.open(path)
    image.putalpha(value)
    image.save(path)


def _thin(path):
    pixels = np.zeros((60, 600, 4), np.uint8)
    pixels[30] = 255
    Image.fromarray(pixels).save(path)


DAMAGED = {
    "no outline": (_opaque, "neither transparency nor a mask"),
    "an empty outline": (lambda path: _alpha(path, 0), "is empty; cut the object out"),
    "a faint outline": (lambda path: _alpha(path, 100), "is empty; cut the object out"),
    "all of the picture": (lambda path: _alpha(path, 255), "is the whole picture"),
    "a thin outline": (_thin, "too thin for images of 32 pixels"),
    "a small outline": (lambda path: draw_object(path, KINDS["bird"], 0, (6, 6)), "too small .*5 x 5|too small"),
    "half of a file": (lambda path: path.write_bytes(path.read_bytes()[:900]), "is not a readable image"),
    "no image": (lambda path: path.write_bytes(b""), "the file is empty.*; remove it, or copy it again"),
    "a mask of another size": (
        lambda path: Image.new("L", (9, 9), 255).save(path.with_name("1_mask.png")),
        r"1_mask\.png is 9 x 9 pixels, but its picture 1\.png is 60 x 48",
    ),
    "an empty mask": (
        lambda path: Image.new("L", (60, 48)).save(path.with_name("1_mask.png")),
        r"outline of .*1_mask\.png is empty",
    ),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGED.values(), ids=DAMAGED)
def test_objects_that_cannot_be_used_are_named(material, damage, says, capsys):
    damage(material / "objects" / "bird" / "1.png")
    said = fails(capsys, material, *WORDS)
    assert re.search(says, said)
    assert str(material / "objects" / "bird" / "1") in said
    assert not (material / "out").exists()


def test_classes_with_too_little_material(material, capsys):
    for number in range(3):
        (material / "objects" / "rose" / f"{number}.png").unlink()
    assert "The class plant has 2 objects (rose), but at least three are needed" in fails(capsys, material, *WORDS)
    for number in (3, 4):
        (material / "objects" / "rose" / f"{number}.png").unlink()
    assert "contains no images" in fails(capsys, material, *WORDS)


def test_backgrounds_that_cannot_be_used_are_named(material, capsys):
    lands = material / "backgrounds" / "land"
    content = (lands / "1.png").read_bytes()
    (lands / "1.png").write_bytes(content[:2000])
    assert f"{lands / '1.png'} is not a readable image" in fails(capsys, material, *WORDS)
    (lands / "1.png").write_bytes((material / "backgrounds" / "water" / "1.png").read_bytes())
    assert "are the same picture in two places" in fails(capsys, material, *WORDS)
    draw_background(lands / "1.png", PLACES["land"], 0, (40, 40))
    (lands / "2.png").unlink()
    assert "has 2 backgrounds, and" in (said := fails(capsys, material, *WORDS))
    assert "1.png is too narrow to be divided (64 pixels are needed)" in said


def test_the_same_object_in_two_classes(material, capsys):
    shutil.copy(material / "objects" / "bird" / "1.png", material / "objects" / "rose" / "1.png")
    assert "are the same picture; remove one" in fails(capsys, material, *WORDS)


def test_a_missing_mask_is_named(material, capsys):
    (material / "masks").mkdir()
    said = fails(capsys, material, *WORDS, "--masks", material / "masks")
    assert f"has no mask {material / 'masks' / 'bird' / '0'}.*" in said


def test_a_mask_is_of_one_picture_and_a_picture_has_one(material, capsys):
    birds = material / "objects" / "bird"
    image = Image.open(birds / "1.png")
    image.getchannel("A").save(birds / "1_mask.png")
    draw_object(birds / "other.png", KINDS["bird"], 99)
    Image.open(birds / "other.png").convert("RGB").save(birds / "1.jpg")
    said = fails(capsys, material, *WORDS)
    assert f"{birds / '1.jpg'} and 1.png have the same mask {birds / '1_mask.png'}; rename one" in said
    (birds / "1.jpg").unlink()
    image.getchannel("A").save(birds / "1_mask.tif")
    assert f"1.png has two masks, {birds / '1_mask.png'} and {birds / '1_mask.tif'}" in fails(capsys, material, *WORDS)
    (birds / "masks").mkdir()
    (birds / "1_mask.tif").rename(birds / "masks" / "1.tif")
    assert "1.png has two masks" in fails(capsys, material, *WORDS)
    assert not (material / "out").exists()


@pytest.mark.parametrize("out", ["objects", "objects/bird/out", "backgrounds/new"])
def test_the_sources_are_not_written_to(material, out, capsys):
    before = contents(material)
    assert "choose another --out" in fails(capsys, material, *WORDS, out=material / out)
    assert contents(material) == before


def test_sources_that_would_be_replaced(material, capsys):
    (material / "objects").rename(material / "images")
    words = [*WORDS, "--objects", material / "images"]
    assert "or would replace it" in fails(capsys, material, *words, out=material)


def test_other_settings_and_other_files_are_refused_by_name(material, capsys):
    out = prepare(material)
    before = contents(out)
    assert f"{out} was made with other seed (0 instead of 1); choose another --out" in fails(
        capsys, material, *WORDS, "--seed", "1"
    )
    draw_object(material / "objects" / "bird" / "new.png", KINDS["bird"], 99)
    assert "was made with other objects" in fails(capsys, material, *WORDS)
    assert contents(out) == before
    prepare(material, overwrite=True, count=(8, 4, 8))
    assert len(contents(out)) == 8 * 2 + 4 * 3 + 8 * 4 + 3
    (out / "cutouts.json").unlink()
    assert "images exists, but" in fails(capsys, material, *WORDS, "--overwrite")


def test_an_unfinished_benchmark_is_not_read_as_class_folders(material):
    out = prepare(material)
    (out / "images.csv").unlink()
    with pytest.raises(IfamError, match=r"has no images\.csv: `ifam prepare` was stopped"):
        load_benchmark("folder", out)


def test_a_picture_on_another_background_that_is_missing_is_named(material):
    out = prepare(material)
    (out / "swapped" / "test" / "00003.jpg").unlink()
    with pytest.raises(IfamError, match=r"swapped/test/00003\.jpg does not exist .*images\.csv, line 29"):
        load_benchmark("folder", out)
    assert load_benchmark("folder", out, {"skip_bad": True}).split("test").swapped is None


# --- the command -----------------------------------------------------------------------------------------


def test_the_command_and_a_settings_file_do_the_same(material, capsys, monkeypatch):
    monkeypatch.chdir(material)
    main(["prepare", "cutouts", "--objects", "objects", "--backgrounds", "backgrounds", "--out", "one", *WORDS])
    assert "16 training, 8 validation and 16 test images" in capsys.readouterr().out
    Path("mine.yaml").write_text(
        "objects: objects\nbackgrounds: backgrounds\nout: two\ncorrelation: 0.75\nsize: 32\ncount: [16, 8, 16]\n"
        "classes:\n  animal: [bird, cat]\n  plant: rose\n",
        encoding="utf-8",
    )
    main(["prepare", "cutouts", "--config", "mine.yaml"])
    assert contents(material / "one") == contents(material / "two")
    with Image.open("one/examples.png") as sheet:
        assert sheet.width > 600


def test_words_of_classes():
    settings = parse(
        ["prepare", "cutouts", "--classes", "a=0", "b=no,x y", "--objects=o", "--backgrounds=b", "--out=c"]
    )
    assert settings[1]["classes"] == ["a=0", "b=no,x y"]
    assert settings[1]["kind"] == "cutouts"


@pytest.mark.parametrize("word", ["siim_acr", "anything"])
def test_what_has_moved(word, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["prepare", word, "--root", "siim"])
    assert caught.value.code == 2
    assert "`python -m tools.prepare_siim_acr` in a clone" in capsys.readouterr().err


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs are not here")
def test_photographs(tmp_path):
    config = CutoutsConfig(
        {"animal": ("bird", "mammal"), "plant": ("fruit", "flower", "vegetable")},
        {"animal": ("water",), "plant": ("land",)},
        count=(40, 20, 24),
    )
    prepare_cutouts(PHOTOGRAPHS / "objects", PHOTOGRAPHS / "backgrounds", tmp_path, config)
    assert_divided(tmp_path)
    masks = [np.asarray(Image.open(path)) > 0 for path in (tmp_path / "masks").rglob("*.png")]
    assert len(masks) == 84
    assert all(0.01 < mask.mean() < 0.6 for mask in masks)
