"""The layout of each source, read from its miniature: exact labels, groups, masks, keypoints and parts."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from ifam.data import load_benchmark
from ifam.errors import IfamError
from miniatures import HEIGHT, OBJECT, WIDTH, draw, draw_mask, write_csv

TRUTH = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
TRUTH[OBJECT] = True


def names(examples):
    return [path.name for path in examples.paths]


def labels_by_folder(examples):
    return {(path.parent.name, label) for path, label in zip(examples.paths, examples.labels, strict=True)}


# --- birds -----------------------------------------------------------------------------------------------


def test_cub(load, tmp_path):
    cub = load("cub")
    assert cub.class_names == ("Black footed Albatross", "Laysan Albatross", "Sooty Albatross")
    assert cub.group_names == cub.class_names
    assert cub.keypoint_names == ("back", "beak", "tail")
    for split, numbers in (("train", set(range(6))), ("val", set(range(6))), ("test", {6, 7})):
        examples = cub.split(split)
        assert labels_by_folder(examples) == {
            ("001.Black_footed_Albatross", 0),
            ("002.Laysan_Albatross", 1),
            ("003.Sooty_Albatross", 2),
        }
        assert {int(path.stem[-4:]) for path in examples.paths} <= numbers
        assert examples.groups == examples.labels
    test = cub.split("test")
    example = test[test.paths.index(next(p for p in test.paths if p.name == "Laysan_Albatross_0006.jpg"))]
    assert torch.equal(example["mask"], TRUTH)
    assert example["box"].tolist() == [10, 5, 20, 20]
    # Running number 14 of the miniature: two keypoints are visible.
    assert example["keypoints"].tolist() == [[10, 11, 1], [11, 11, 1], [0, 0, 0]]


def test_cub_without_masks(load, tmp_path):
    load("cub")
    (tmp_path / "segmentations").rename(tmp_path / "elsewhere")
    assert "mask" not in load("cub").split("test")[0]


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("images.txt", "99", "line 25 has 1 values, but 2 are expected"),
        ("bounding_boxes.txt", "99 1 2 3", "line 25 has 4 values, but 5 are expected"),
        ("parts/part_locs.txt", "1 2 x 4 1", "line 73 is not an image id"),
        ("parts/part_locs.txt", "1 77 3 4 1", "line 73 is not an image id"),
        ("images.txt", "99 001.Black_footed_Albatross/new.jpg", "has no line for the image 99"),
        ("image_class_labels.txt", "99 4", "has no line for the class 4"),
    ],
)
def test_cub_names_the_line_that_is_wrong(load, tmp_path, file, line, words):
    load("cub")
    with (tmp_path / file).open("a") as opened:
        opened.write(line + "\n")
    with pytest.raises(IfamError, match=words):
        load("cub")


@pytest.mark.parametrize("name", ["cub", "nabirds", "waterbirds", "turtles", "part_imagenet"])
def test_a_listed_image_that_is_a_link_out_of_the_root_is_refused(load, tmp_path, tmp_path_factory, name):
    path = load(name).split("test").paths[0]
    path.symlink_to(path.rename(tmp_path_factory.mktemp("elsewhere") / path.name))
    with pytest.raises(IfamError, match=rf"The image {path} is outside of \S+ .*--data\.allow_outside true"):
        load(name)
    assert path in load(name, allow_outside=True).split("test").paths


def test_nabirds_closes_the_gaps_between_its_labels(load):
    nabirds = load("nabirds")
    # Two categories of one name stay two classes.
    assert nabirds.class_names == ("Wood Duck (9)", "Wood Duck (295)", "Oak Titmouse (Adult)")
    for examples in nabirds.splits.values():
        assert labels_by_folder(examples) == {("0009", 0), ("0295", 1), ("1010", 2)}
    example = nabirds.split("test")[0]
    assert "mask" not in example
    assert example["keypoints"].shape == (3, 3)


def test_waterbirds(load):
    waterbirds = load("waterbirds")
    assert waterbirds.class_names == ("landbird", "waterbird")
    assert waterbirds.group_names == (
        "landbird on land",
        "landbird on water",
        "waterbird on land",
        "waterbird on water",
    )
    # Sixteen images of waterbirds and eight of landbirds; a quarter of the training images on the other background.
    assert Counter(waterbirds.split("train").groups) == {0: 3, 1: 1, 2: 2, 3: 6}
    assert Counter(waterbirds.split("val").groups) == {0: 1, 1: 1, 2: 2, 3: 2}
    assert Counter(waterbirds.split("test").groups) == {0: 1, 1: 1, 2: 2, 3: 2}
    for split, numbers in (("train", {0, 1, 2, 3}), ("val", {4, 5}), ("test", {6, 7})):
        examples = waterbirds.split(split)
        assert all(group // 2 == label for group, label in zip(examples.groups, examples.labels, strict=True))
        assert {int(path.stem[-4:]) for path in examples.paths} == numbers
    assert {label for folder, label in labels_by_folder(waterbirds.split("train")) if folder.startswith("003")} == {0}
    example = waterbirds.split("test")[0]
    assert torch.equal(example["mask"], TRUTH)
    assert np.asarray(example["image"])[0, 0, 2] > 140  # the background of Waterbirds, not that of CUB


def test_waterbirds_can_be_given_by_its_own_folder(load, tmp_path):
    by_parent = load("waterbirds")
    inner = load_benchmark("waterbirds", tmp_path / "waterbird_complete95_forest2water2")
    assert inner.split("test").paths == by_parent.split("test").paths
    assert torch.equal(inner.split("test")[0]["mask"], TRUTH)


def test_a_cub_model_can_be_judged_on_waterbirds(load, tmp_path):
    waterbirds, cub = load("waterbirds", labels="species"), load_benchmark("cub", tmp_path)
    assert waterbirds.class_names == cub.class_names
    for split in ("train", "val", "test"):
        assert names(waterbirds.split(split)) == names(cub.split(split))
        assert waterbirds.split(split).labels == cub.split(split).labels
    shown = waterbirds.split("test")
    assert {path.parts[-3] for path in shown.paths} == {"waterbird_complete95_forest2water2"}
    # Images 6 and 7 of each species: one on its own background, one on the other.
    assert Counter(shown.groups) == {0: 1, 1: 1, 2: 2, 3: 2}
    assert torch.equal(shown[0]["keypoints"], cub.split("test")[0]["keypoints"])
    assert torch.equal(shown[0]["mask"], TRUTH)


def test_species_need_the_lists_of_cub(load, tmp_path):
    load("waterbirds")
    (tmp_path / "image_class_labels.txt").unlink()
    with pytest.raises(IfamError, match=r"cub expects .*image_class_labels\.txt, which is missing"):
        load("waterbirds", labels="species")


def test_waterbirds_names_the_line_that_is_wrong(load, tmp_path):
    load("waterbirds")
    with (tmp_path / "waterbird_complete95_forest2water2" / "metadata.csv").open("a") as file:
        file.write("25,a.jpg,1,3,0,x\n")
    with pytest.raises(IfamError, match=r"metadata\.csv, line 26 has split='3', but one of 0, 1, 2"):
        load("waterbirds")


# --- contexts and identities -----------------------------------------------------------------------------


def test_metashift(load):
    metashift = load("metashift")
    assert metashift.class_names == ("cat", "dog")
    assert metashift.group_names == ("cat(bed)", "cat(shelf)", "cat(sofa)", "dog(bench)", "dog(bike)", "dog(shelf)")
    for examples in metashift.splits.values():
        for path, label, group in zip(examples.paths, examples.labels, examples.groups, strict=True):
            assert path.parent.name == metashift.group_names[group]
            assert path.parent.parent.name == metashift.class_names[label]
    assert Counter(metashift.split("test").groups) == {1: 5, 5: 5}
    # One of each context for validation; each context has five or six images.
    assert set(metashift.split("val").groups) == {0, 2, 3, 4}


def test_metashift_keeps_one_photograph_on_one_side(load):
    sides = set()
    for seed in range(20):
        metashift = load("metashift", seed=seed, val_fraction=0.3)
        inside = [names(metashift.split(split)).count("both.jpg") for split in ("train", "val")]
        assert sorted(inside) == [0, 2]
        sides.add(tuple(inside))
    assert len(sides) == 2


def test_metashift_without_contexts_and_with_val(load, tmp_path):
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            for number in range(2):
                draw(tmp_path / split / name / f"{split}{number}.jpg")
    metashift = load_benchmark("metashift", tmp_path)
    assert metashift.group_names == ("cat", "dog")
    assert names(metashift.split("val")) == ["val0.jpg", "val1.jpg"] * 2
    assert metashift.note == "validation images from val/"


def test_metashift_refuses_other_folders(load, tmp_path):
    load("metashift")
    draw(tmp_path / "train" / "cow" / "1.jpg")
    with pytest.raises(IfamError, match="has a folder 'cow', but cat and dog are expected"):
        load("metashift")


def test_turtles(load):
    turtles = load("turtles")
    assert turtles.class_names == turtles.group_names == ("t001", "t002", "t010")
    for examples in turtles.splits.values():
        assert all(
            path.parent.name == turtles.class_names[x] for path, x in zip(examples.paths, examples.labels, strict=True)
        )
    assert Counter(turtles.split("train").labels) == {0: 2, 1: 4, 2: 4}
    assert turtles.note == "validation images as published (split_closed)"
    unknown = load("turtles", split="split_open")
    assert Counter(unknown.split("train").labels) == {1: 4, 2: 4}
    assert "3 test images show turtles that are not in training" in unknown.note


def test_turtles_under_their_other_name_and_with_shorter_paths(load, tmp_path):
    for number in range(4):
        draw(tmp_path / "images" / f"{number}.JPG")
    rows = [(f"{n}.JPG", "ab"[n % 2], "train" if n < 3 else "") for n in range(4)]
    write_csv(tmp_path / "metadata_splits.csv", "file_name,identity,split_closed", *rows)
    with pytest.raises(IfamError, match="The class b has a single image"):
        load_benchmark("turtles", tmp_path)
    rows += [(f"{n}.JPG", "ab"[n % 2], "train") for n in (3,)]
    write_csv(tmp_path / "metadata_splits.csv", "file_name,identity,split_closed", *rows)
    turtles = load_benchmark("turtles", tmp_path)
    assert sorted(names(turtles.split("train")) + names(turtles.split("val"))) == ["0.JPG", "1.JPG", "2.JPG", "3.JPG"]
    assert "10%" in turtles.note


# --- flowers -------------------------------------------------------------------------------------------


def test_flowers102(load):
    flowers = load("flowers102")
    assert flowers.class_names == ("flower 1", "flower 2", "flower 3")
    assert [names(flowers.split(split)) for split in ("val", "test")] == [
        [f"image_{number:05d}.jpg" for number in numbers] for numbers in ((7, 8, 9), (10, 11, 12))
    ]
    assert flowers.split("train").labels == [0, 1, 2, 0, 1, 2]
    mask = flowers.split("test")[0]["mask"]
    # JPEG blurs the border, and the median filter rounds the corners.
    assert (mask != TRUTH).float().mean() < 0.1
    assert mask[8:22, 13:27].all()
    assert not mask[:2].any()


def test_flowers102_can_be_given_by_its_own_folder_and_without_masks(load, tmp_path):
    load("flowers102")
    (tmp_path / "flowers-102" / "segmim").rename(tmp_path / "elsewhere")
    flowers = load_benchmark("flowers102", tmp_path / "flowers-102")
    assert len(flowers.split("train")) == 6
    assert "mask" not in flowers.split("train")[0]


@pytest.mark.parametrize("file", ["imagelabels.mat", "setid.mat"])
def test_flowers102_names_a_damaged_list(load, tmp_path, file):
    load("flowers102")
    (tmp_path / "flowers-102" / file).write_bytes(b"MATLAB no more")
    with pytest.raises(IfamError, match=rf"{file} has no readable list"):
        load("flowers102")


# --- masks -----------------------------------------------------------------------------------------------


def test_a_missing_or_damaged_mask_is_named(load, tmp_path, caplog):
    load("cub")
    mask = tmp_path / "segmentations" / "002.Laysan_Albatross" / "Laysan_Albatross_0001.png"
    content = mask.read_bytes()
    mask.write_bytes(b"hello")
    with pytest.raises(IfamError, match=r"0001\.png is not a readable mask.*images\.txt, image 10"):
        load("cub")
    mask.unlink()
    with pytest.raises(IfamError, match=r"The mask .*0001\.png does not exist.*images\.txt, image 10"):
        load("cub")
    assert sum(len(e) for e in load("cub", skip_bad=True).splits.values()) == 23
    assert "Laysan_Albatross_0001.jpg: there is no mask" in caplog.text
    mask.write_bytes(content)
    draw_mask(mask, (WIDTH, HEIGHT + 1))
    with pytest.raises(IfamError, match=r"0001\.png is 40 x 31 pixels, but its image .* is 40 x 30"):
        load("cub")
    unchecked = load("cub", check=False)
    split = "train" if "Laysan_Albatross_0001.jpg" in names(unchecked.split("train")) else "val"
    with pytest.raises(IfamError, match=r"is 40 x 31 pixels, .*give a mask of the image's size"):
        unchecked.split(split)[names(unchecked.split(split)).index("Laysan_Albatross_0001.jpg")]


def test_an_image_turned_by_its_exif_data_fits_an_upright_mask(load, tmp_path):
    """A phone stores a portrait lying on its side; masks are drawn on what a viewer shows."""
    load("cub")
    path = tmp_path / "images" / "002.Laysan_Albatross" / "Laysan_Albatross_0007.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(path, exif=exif)
    test = load("cub").split("test")
    example = test[names(test).index(path.name)]
    assert example["image"].size == (WIDTH, HEIGHT)
    assert torch.equal(example["mask"], TRUTH)
