"""Folders of real image files, drawn for the test."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ifam.data import BENCHMARKS, FolderConfig, Prepared, collate, load_benchmark, load_folder
from ifam.errors import IfamError

NORMALISATION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def draw(path, colour=(200, 30, 30), size=(40, 30)):
    """A picture of one colour with a little noise, in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 20, (size[1], size[0], 3))
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def tree(root, **counts):
    """A class folder for each keyword, with so many images; JPEG and PNG in turn."""
    for c, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            draw(root / name / f"{i:03d}.{'jpg' if i % 2 else 'png'}", (60 * c, 100, 200 - 60 * c))
    return root


def by_class(examples):
    return np.bincount(examples.labels).tolist()


def names(examples):
    return [f"{path.parent.name}/{path.name}" for path in examples.paths]


def load(root, **settings):
    return load_folder(root, FolderConfig(**settings))


# --- reading ---------------------------------------------------------------------------------------------


def test_sub_folders_are_classes_in_order_of_their_names(tmp_path):
    found = load(tree(tmp_path, wren=5, duck=5, owl=10))
    assert found.class_names == found.group_names == ("duck", "owl", "wren")
    assert set(found.splits) == {"train", "val"}
    assert by_class(found.split("train")) == [4, 8, 4]
    assert by_class(found.split("val")) == [1, 2, 1]
    for split in found.splits.values():
        for path, label in zip(split.paths, split.labels, strict=True):
            assert path.parent.name == found.class_names[label]
    assert "20%" in found.note


def test_examples_are_the_pictures(tmp_path):
    found = load(tree(tmp_path, a=3, b=3)).split("train")
    example = found[0]
    assert example["image"].size == (40, 30)
    assert example["image"].mode == "RGB"
    assert np.asarray(example["image"])[..., 0].mean() < 30
    assert {found[i]["label"] for i in range(len(found))} == {0, 1}
    batch = collate([Prepared(found, (32, 48), NORMALISATION)[i] for i in range(len(found))])
    assert batch.images.shape == (len(found), 3, 32, 48)
    assert torch.equal(batch.groups, batch.labels)
    assert batch.masks is None


def test_files_of_every_kind_in_folders_of_any_depth(tmp_path):
    for name in ("a/x.JPEG", "a/deep/er/y.webp", "a/z.bmp", "b/x.tif", "b/y.gif"):
        draw(tmp_path / name)
    Image.new("L", (9, 9), 7).save(tmp_path / "a" / "grey.png")
    Image.new("RGBA", (9, 9), (1, 2, 3, 0)).save(tmp_path / "b" / "clear.png")
    (tmp_path / "a" / "notes.txt").write_text("no image, and not meant as one")
    (tmp_path / "a" / "._x.jpg").write_bytes(b"what a Mac leaves behind")
    (tmp_path / "readme.md").write_text("beside the classes")
    (tmp_path / ".cache").mkdir()
    tree(tmp_path / "__MACOSX", a=1)
    found = load(tmp_path)
    assert found.class_names == ("a", "b")
    assert len(found.split("train")) + len(found.split("val")) == 7
    for split in found.splits.values():
        assert all(split[i]["image"].mode == "RGB" for i in range(len(split)))


def test_splits_of_their_own(tmp_path):
    tree(tmp_path / "train", cat=3, dog=4)
    tree(tmp_path / "val", cat=1, dog=2)
    tree(tmp_path / "test", cat=2, dog=1)
    found = load(tmp_path)
    assert {name: by_class(split) for name, split in found.splits.items()} == {
        "train": [3, 4],
        "val": [1, 2],
        "test": [2, 1],
    }
    assert found.note == "validation images as found in val/"


def test_without_val_the_training_images_are_cut_and_the_test_images_are_not_touched(tmp_path):
    tree(tmp_path / "train", cat=5, dog=5)
    tree(tmp_path / "test", cat=2, dog=1)
    found = load(tmp_path)
    assert {name: by_class(split) for name, split in found.splits.items()} == {
        "train": [4, 4],
        "val": [1, 1],
        "test": [2, 1],
    }


def test_load_benchmark_takes_settings_by_name(tmp_path):
    found = load_benchmark("folder", str(tree(tmp_path, a=10, b=10)), {"val_fraction": 0.5})
    assert by_class(found.split("val")) == [5, 5]


# --- the cut ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(2, 2), (2, 98), (3, 50, 2), (20, 20, 20), (7, 31)])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.95])
def test_every_class_is_on_both_sides_in_its_share(tmp_path, counts, share, monkeypatch):
    root = tree(tmp_path, **{f"c{i}": 0 for i in range(len(counts))})
    picture = draw(tmp_path.parent / "one.png", size=(4, 4)).read_bytes()
    for i, count in enumerate(counts):
        for j in range(count):
            (root / f"c{i}" / f"{j}.png").write_bytes(picture)
    found = load(root, val_fraction=share)
    train, val = found.split("train"), found.split("val")
    for count, here, there in zip(counts, by_class(train), by_class(val), strict=True):
        assert here + there == count
        assert min(here, there) >= 1
        assert abs(there - share * count) <= max(0.5, 1 - share * count, share * count - (count - 1))
    assert sorted(names(train) + names(val)) == sorted(f"c{i}/{j}.png" for i, c in enumerate(counts) for j in range(c))


def test_the_cut_is_repeatable_and_follows_its_seed(tmp_path):
    root = tree(tmp_path, a=20, b=20)
    first, again, other = (names(load(root, seed=seed).split("val")) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    # By chance and not the first of each: a folder is often sorted by something.
    assert first[:4] != ["a/000.png", "a/001.jpg", "a/002.png", "a/003.jpg"]


# --- bad input -------------------------------------------------------------------------------------------


def test_no_root():
    with pytest.raises(IfamError, match="give --root DIR"):
        load_benchmark("folder")


def test_a_missing_folder(tmp_path):
    with pytest.raises(IfamError, match=r"There is no folder .*nowhere"):
        load(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(IfamError, match=r"There is no folder .*x\.png"):
        load(draw(tmp_path / "x.png"))


@pytest.mark.parametrize("counts", [{}, {"only": 3}])
def test_fewer_than_two_classes(tmp_path, counts):
    with pytest.raises(IfamError, match=rf"has {len(counts)} sub-folders?, but .* two classes"):
        load(tree(tmp_path, **counts))


def test_a_class_without_an_image(tmp_path):
    tree(tmp_path, full=2, hollow=0)
    (tmp_path / "hollow" / "notes.txt").write_text("nothing here")
    with pytest.raises(IfamError, match=r"class folder .*hollow holds no image.*\.jpg.*remove the folder"):
        load(tmp_path)


def test_a_class_with_one_image_is_named(tmp_path):
    with pytest.raises(IfamError, match="The class lonely has a single image, but at least two are needed"):
        load(tree(tmp_path, crowd=9, lonely=1))


def test_a_class_that_only_validation_has(tmp_path):
    tree(tmp_path / "train", cat=2, dog=2)
    tree(tmp_path / "val", cat=1, dog=1, emu=1)
    with pytest.raises(IfamError, match=r"val has a class 'emu' that the training images lack"):
        load(tmp_path)


def test_a_class_that_validation_lacks(tmp_path):
    tree(tmp_path / "train", cat=2, dog=2)
    tree(tmp_path / "val", cat=1)
    with pytest.raises(IfamError, match=r"class folder .*val.dog holds no image"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["text", "empty", "damaged"])
def test_a_file_that_is_no_image_is_named(tmp_path, capsys, kind):
    root = tree(tmp_path, a=4, b=4)
    bad = root / "b" / "bad.png"
    content = (root / "b" / "000.png").read_bytes()
    bad.write_bytes({"text": b"hello", "empty": b"", "damaged": content[:60] + b"?" + content[61:]}[kind])
    with pytest.raises(IfamError, match=r"b.bad\.png is no image that can be read.*skip_bad true"):
        load(root)
    assert capsys.readouterr().out == ""
    found = load(root, skip_bad=True)
    assert "b/bad.png" not in names(found.split("train")) + names(found.split("val"))
    assert sum(map(len, found.splits.values())) == 8
    assert f"Left out {bad}" in capsys.readouterr().out


def test_skip_bad_leaves_out_what_was_cut_off(tmp_path):
    """A JPEG without its end has a sound header; training would stumble over it later."""
    root = tree(tmp_path, a=4, b=4)
    path = draw(root / "a" / "cut.jpg", size=(400, 300))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = load(root, skip_bad=True)
    assert "a/cut.jpg" not in names(found.split("train")) + names(found.split("val"))
    for split in found.splits.values():
        assert all(split[i]["image"] for i in range(len(split)))


def test_skip_bad_does_not_hide_a_class_of_bad_files(tmp_path):
    root = tree(tmp_path, a=2, b=0)
    (root / "b" / "x.jpg").write_text("no")
    with pytest.raises(IfamError, match=r"class folder .*b holds no image"):
        load(root, skip_bad=True)


def test_an_unknown_benchmark_lists_what_there_is():
    with pytest.raises(IfamError) as caught:
        load_benchmark("waterbird")
    assert "'waterbird'" in str(caught.value)
    assert all(name in str(caught.value) for name in BENCHMARKS)


@pytest.mark.parametrize(("benchmark", "known"), [("folder", "val_fraction"), ("pondbirds", "hue_spread")])
def test_an_unknown_setting_lists_what_there_is(benchmark, known):
    with pytest.raises(IfamError, match=rf"{benchmark} has no setting 'colour'; it has .*{known}"):
        load_benchmark(benchmark, options={"colour": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("val_fraction", 0.0),
        ("val_fraction", 1.0),
        ("val_fraction", float("nan")),
        ("seed", -1),
    ],
)
def test_impossible_settings_are_named(field, value):
    with pytest.raises(IfamError, match=f"folder: {field}={value!r} is not possible; give"):
        replace(FolderConfig(), **{field: value})
