"""Folders of real image files, drawn for the test."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifam.data import BENCHMARKS, FolderConfig, TransformedDataset, collate, load_benchmark, load_folder
from ifam.data.fingerprints import fingerprint
from ifam.errors import IfamError

NORMALIZATION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def draw(path, colour=(200, 30, 30), size=(40, 30)):
    """A picture of one colour with a little noise of its own, in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([*os.fsencode(path.parent.name + path.name)]).integers(0, 20, (size[1], size[0], 3))
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
    data = load(tree(tmp_path, wren=5, duck=5, owl=10))
    assert data.class_names == data.group_names == ("duck", "owl", "wren")
    assert set(data.splits) == {"train", "val"}
    assert by_class(data.split("train")) == [4, 8, 4]
    assert by_class(data.split("val")) == [1, 2, 1]
    for split in data.splits.values():
        for path, label in zip(split.paths, split.labels, strict=True):
            assert path.parent.name == data.class_names[label]
    assert "20%" in data.note


def test_examples_are_the_pictures(tmp_path):
    train = load(tree(tmp_path, a=3, b=3)).split("train")
    example = train[0]
    assert example["image"].size == (40, 30)
    assert example["image"].mode == "RGB"
    assert np.asarray(example["image"])[..., 0].mean() < 30
    assert {train[i]["label"] for i in range(len(train))} == {0, 1}
    batch = collate([TransformedDataset(train, (32, 48), NORMALIZATION)[i] for i in range(len(train))])
    assert batch.images.shape == (len(train), 3, 32, 48)
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
    data = load(tmp_path)
    assert data.class_names == ("a", "b")
    assert len(data.split("train")) + len(data.split("val")) == 7
    for split in data.splits.values():
        assert all(split[i]["image"].mode == "RGB" for i in range(len(split)))


def test_splits_of_their_own(tmp_path):
    tree(tmp_path / "train", cat=3, dog=4)
    tree(tmp_path / "val", cat=1, dog=2)
    tree(tmp_path / "test", cat=2, dog=1)
    data = load(tmp_path)
    assert {name: by_class(split) for name, split in data.splits.items()} == {
        "train": [3, 4],
        "val": [1, 2],
        "test": [2, 1],
    }
    assert data.note == "validation images from val/"


def test_without_val_the_training_images_are_cut_and_the_test_images_are_not_touched(tmp_path):
    tree(tmp_path / "train", cat=5, dog=5)
    tree(tmp_path / "test", cat=2, dog=1)
    data = load(tmp_path)
    assert {name: by_class(split) for name, split in data.splits.items()} == {
        "train": [4, 4],
        "val": [1, 1],
        "test": [2, 1],
    }


def test_load_benchmark_takes_settings_by_name(tmp_path):
    data = load_benchmark("folder", str(tree(tmp_path, a=10, b=10)), {"val_fraction": 0.5})
    assert by_class(data.split("val")) == [5, 5]


# --- the cut ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(2, 2), (2, 98), (3, 50, 2), (20, 20, 20), (7, 31)])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.95])
def test_every_class_is_on_both_sides_in_its_share(tmp_path, counts, share, monkeypatch):
    root = tree(tmp_path, **{f"c{i}": 0 for i in range(len(counts))})
    picture = draw(tmp_path.parent / "one.png", size=(4, 4)).read_bytes()
    for i, count in enumerate(counts):
        for j in range(count):
            (root / f"c{i}" / f"{j}.png").write_bytes(picture + bytes([i, j]))
    data = load(root, val_fraction=share)
    train, val = data.split("train"), data.split("val")
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
    with pytest.raises(
        IfamError, match=r"folder .*hollow contains no images .*\.jpg.*, but 1 \.txt; add some, or leave the folder out"
    ):
        load(tmp_path)


def test_a_class_with_one_image_is_named(tmp_path):
    with pytest.raises(IfamError, match="The class lonely has a single image, but at least two are needed"):
        load(tree(tmp_path, crowd=9, lonely=1))


def test_a_class_that_only_validation_has(tmp_path):
    tree(tmp_path / "train", cat=2, dog=2)
    tree(tmp_path / "val", cat=1, dog=1, emu=1)
    with pytest.raises(IfamError, match=r"val has a class 'emu', but only cat, dog are known from training"):
        load(tmp_path)


def test_a_class_that_validation_lacks(tmp_path):
    tree(tmp_path / "train", cat=2, dog=2)
    tree(tmp_path / "val", cat=1)
    assert by_class(load(tmp_path).split("val")) == [1]


@pytest.mark.parametrize("kind", ["text", "empty", "damaged"])
def test_a_file_that_is_no_image_is_named(tmp_path, caplog, kind):
    root = tree(tmp_path, a=4, b=4)
    bad = root / "b" / "bad.png"
    content = (root / "b" / "000.png").read_bytes()
    bad.write_bytes({"text": b"hello", "empty": b"", "damaged": content[:60] + b"?" + content[61:]}[kind])
    with pytest.raises(IfamError, match=r"b.bad\.png is not a readable image.*skip_bad true"):
        load(root)
    assert caplog.text == ""
    data = load(root, skip_bad=True)
    assert "b/bad.png" not in names(data.split("train")) + names(data.split("val"))
    assert sum(map(len, data.splits.values())) == 8
    assert f"Left out {bad}" in caplog.text


def test_skip_bad_leaves_out_what_was_cut_off(tmp_path):
    """A JPEG without its end has a valid header; training would fail on it later."""
    root = tree(tmp_path, a=4, b=4)
    path = draw(root / "a" / "cut.jpg", size=(400, 300))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    data = load(root, skip_bad=True)
    assert "a/cut.jpg" not in names(data.split("train")) + names(data.split("val"))
    for split in data.splits.values():
        assert all(split[i]["image"] for i in range(len(split)))


def test_skip_bad_does_not_hide_a_class_of_bad_files(tmp_path):
    root = tree(tmp_path, a=2, b=0)
    (root / "b" / "x.jpg").write_text("no")
    with pytest.raises(IfamError, match=r"folder .*b contains no images"):
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


# --- a class that is called like a split -----------------------------------------------------------------


def test_a_class_called_train_is_a_class(tmp_path):
    """Cars, buses and trains: `train` holds images and not classes."""
    data = load(tree(tmp_path, bus=5, car=5, train=10))
    assert data.class_names == ("bus", "car", "train")
    assert by_class(data.split("val")) == [1, 1, 2]


def test_a_class_called_train_may_have_folders_of_its_own(tmp_path):
    tree(tmp_path / "train", steam=2, diesel=2)
    data = load(tree(tmp_path, bus=5, car=5, train=6))
    assert data.class_names == ("bus", "car", "train")
    assert sum(map(len, data.splits.values())) == 20


def test_an_empty_train_folder_is_no_split(tmp_path):
    (tmp_path / "train" / "notes").mkdir(parents=True)
    with pytest.raises(IfamError, match=r"folder .*train contains no images"):
        load(tree(tmp_path, bus=2, car=2))


# --- folders by the names that people give ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "Valid", "Test"), ("training", "validation", "testing"), ("TRAIN", "VAL", "TEST")],
)
def test_splits_are_known_by_their_usual_names(tmp_path, train, val, test):
    for number, name in enumerate((train, val, test), 2):
        tree(tmp_path / name, cat=number, dog=number)
    images = load(tmp_path)
    assert images.class_names == ("cat", "dog")
    assert {name: len(split) for name, split in images.splits.items()} == {"train": 4, "val": 6, "test": 8}


@pytest.mark.parametrize(
    "name",
    [
        "dev",
        "eval",
        "Evaluation",
        "holdout",
        "held-out",
        "hold_out",
        "trainset",
        "train_images",
        "test-set",
        "test2",
        "val_data",
        "unlabeled",
        "trainval",
    ],
)
@pytest.mark.parametrize("beside", ["train", "cat"])
def test_a_folder_that_looks_like_a_split_is_an_error_that_says_so(tmp_path, name, beside):
    tree(tmp_path / name, cat=2, dog=2)
    tree(tmp_path / beside, cat=2, dog=2)
    with pytest.raises(IfamError, match=rf"{name} looks like a split .* called train, val and test \(or training"):
        load(tmp_path)


@pytest.mark.parametrize("names", [("training", "testing"), ("Train", "Test"), ("train", "val"), ("train", "holdout")])
def test_splits_that_hold_images_themselves_are_not_two_classes(tmp_path, names):
    with pytest.raises(IfamError, match="looks like a split, but contains images itself; sort them into a folder"):
        load(tree(tmp_path, **dict.fromkeys(names, 4)))


def test_a_split_without_classes_beside_one_with_classes(tmp_path):
    tree(tmp_path / "train", cat=2, dog=2)
    with pytest.raises(IfamError, match="val looks like a split, but contains images itself"):
        load(tree(tmp_path, val=4))


@pytest.mark.parametrize("name", ["test", "val", "training", "unlabeled", "holdout", "test_set"])
def test_a_split_of_images_beside_classes_is_no_class(tmp_path, name):
    """Competitions give `test/` unsorted, beside the classes."""
    with pytest.raises(IfamError, match=rf"{name} looks like a split, but contains images itself; .*--data\.csv"):
        load(tree(tmp_path, cat=4, dog=4, **{name: 4}))


@pytest.mark.parametrize("name", ["train", "valid", "split"])
def test_a_class_that_is_called_like_a_split_is_said(tmp_path, caplog, name):
    assert name in load(tree(tmp_path, cat=4, dog=4, **{name: 4})).class_names
    assert f"{name} contains images itself: it is used as a class, not as a split" in caplog.text


@pytest.mark.parametrize(
    ("one", "two"), [("train_A", "test_A"), ("catsTrain", "catsTest"), ("2021 train", "2021 valid")]
)
@pytest.mark.parametrize("classes", [True, False])
def test_folders_that_look_like_splits_of_something_are_no_classes(tmp_path, one, two, classes):
    for name in (one, two):
        _ = tree(tmp_path / name, cat=2, dog=2) if classes else tree(tmp_path, **{name: 4})
    with pytest.raises(IfamError, match=r"look like splits, but have other names; name them train, val and test"):
        load(tmp_path)


def test_freight_trains_and_passenger_trains_are_classes(tmp_path):
    assert load(tree(tmp_path, freight_train=4, passenger_train=4)).class_names == ("freight_train", "passenger_train")


@pytest.mark.parametrize(("below", "fault"), [("photos", "photos"), ("train/photos", "photos"), ("train", "train")])
def test_splits_below_the_place_of_classes(tmp_path, below, fault):
    """`--root` too high by a level, or splits in each class."""
    for name in ("train", "val"):
        tree(tmp_path / below / name, cat=2, dog=2)
    with pytest.raises(IfamError, match=rf"{fault} contains the splits train and val, where .* with --root"):
        load(tmp_path)


def test_two_folders_for_one_split(tmp_path):
    for name in ("train", "val", "valid"):
        tree(tmp_path / name, cat=2, dog=2)
    with pytest.raises(IfamError, match=r"val and .*valid are both the split 'val'; merge them"):
        load(tmp_path)


def test_a_folder_of_images_beside_the_splits_is_not_ignored(tmp_path):
    tree(tmp_path / "train", cat=2, dog=2)
    (tmp_path / "notes").mkdir()  # holds no image, so it is not a split
    assert load(tmp_path).class_names == ("cat", "dog")
    tree(tmp_path, owl=3)
    with pytest.raises(IfamError, match="has the split 'train' and next to it the folder 'owl', which is not a split"):
        load(tmp_path)


def test_the_same_names_in_a_list(listed):
    images = listed("0.png,a,Training,", "1.png,b,TRAIN,", "2.png,a,Valid,", "3.png,b,Testing,", header=CELLS)
    assert {name: len(split) for name, split in images.splits.items()} == {"train": 2, "val": 1, "test": 1}


# --- files that are not the user's images ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints",
        "@eaDir",
        ".thumbnails",
        "__MACOSX",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
    ],
)
def test_folders_that_programs_leave_behind_are_skipped_and_counted(tmp_path, caplog, name):
    tree(tmp_path, cat=4, dog=4)
    draw(tmp_path / "cat" / name / "copy.png")
    images = load(tmp_path)
    assert sum(map(len, images.splits.values())) == 8
    assert "8 images; left out 1 hidden or of the system" in caplog.text


def test_other_files_are_counted_by_reason(tmp_path, caplog):
    root = tree(tmp_path, cat=4, dog=4)
    for name in ("._000.png", "Thumbs.db", "desktop.ini", "notes.txt", "more.txt", "x.dcm", "blank"):
        (root / "cat" / name).write_bytes(b"not an image")
    draw(root / "dog" / "real.png").rename(root / "dog" / "real.jpg_large")
    draw(root / "dog" / "big.png").rename(root / "dog" / "BIG.PNG")
    draw(root / "beside.png")
    os.mkfifo(root / "dog" / "pipe.png")
    (root / "dog" / "gone.png").symlink_to(root / "nowhere.png")
    images = load(root)
    assert sum(map(len, images.splits.values())) == 9
    for reason in (
        *("9 images", "3 hidden or of the system", "2 .txt", "1 .dcm", "1 without an ending", "1 not a regular file"),
        *("1 linked to nothing", "named .jpg_large (rename it)", "1 outside of the class folders"),
    ):
        assert reason in caplog.text


def test_what_our_own_verbs_wrote_is_not_trained_on(tmp_path, caplog):
    root = tree(tmp_path, cat=4, dog=4)
    for place, name in (("out", "predictions.json"), ("cat/audit", "audit.json"), ("runs/ifam", "train.yaml")):
        draw(root / place / "picture.png")
        (root / place / name).write_text("{}")
    images = load(root)
    assert images.class_names == ("cat", "dog")
    assert sum(map(len, images.splits.values())) == 8
    assert "1 written by ifam" in caplog.text


@pytest.mark.parametrize("place", ["", "runs"])
def test_tokens_kept_beside_a_run_are_no_class(tmp_path, place):
    root = tree(tmp_path, cat=4, dog=4)
    for name in ("ifam/train.yaml", "tokens/0123456789abcdef/float32-1.npy"):
        (root / place / name).parent.mkdir(parents=True)
        (root / place / name).touch()
    assert load(root).class_names == ("cat", "dog")


def test_images_of_tokens_are_a_class(tmp_path):
    assert load(tree(tmp_path, cat=4, tokens=4)).class_names == ("cat", "tokens")


@pytest.mark.parametrize("splits", [False, True])
def test_an_audit_written_beside_the_images_is_not_in_the_way(tmp_path, splits):
    root = tree(tmp_path, cat=4, dog=4)
    if splits:
        for split in ("train", "test"):
            shutil.copytree(root / "cat", root / split / "cat")
            shutil.copytree(root / "dog", root / split / "dog")
        shutil.rmtree(root / "cat")
        shutil.rmtree(root / "dog")
    draw(root / "audit_pictures" / "00000-input.png")
    (root / "audit.json").write_text("{}")
    assert load(root, check=False).class_names == ("cat", "dog")


def test_a_class_whose_images_are_all_left_out_says_why(tmp_path):
    root = tree(tmp_path, cat=4, dog=0)
    for number in range(3):
        (root / "dog" / f"{number}.jxl").write_bytes(b"no reader")
    with pytest.raises(IfamError, match=r"dog contains no images .*, but 3 \.jxl; add some"):
        load(root)


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    root = tree(tmp_path, cat=4, dog=4)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", refuse)
        with pytest.raises(IfamError, match=r"cannot be read \(Permission denied\); change its permissions"):
            load(root)


def test_a_link_to_a_folder_above_is_left_out(tmp_path, caplog):
    root = tree(tmp_path / "photos", cat=4, dog=4)
    (root / "cat" / "up").symlink_to(tmp_path)
    assert sum(map(len, load(root).splits.values())) == 8
    assert "1 linked twice" in caplog.text


def test_a_folder_is_not_an_image_whatever_its_name(tmp_path):
    tree(tmp_path, cat=4, dog=4)
    draw(tmp_path / "cat" / "x.jpg" / "inside.png")
    assert sum(map(len, load(tmp_path).splits.values())) == 9


def test_links_are_followed_once(tmp_path, caplog):
    root = tree(tmp_path / "photos", cat=4, dog=4)
    tree(tmp_path / "elsewhere", more=12)
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "cat" / "again").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "cat" / "up").symlink_to(root / "cat")
    (root / "dog" / "twice.png").symlink_to(root / "dog" / "000.png")
    (root / "dog" / "circle.png").symlink_to(root / "dog" / "circle.png")
    images = load(root)
    assert sum(map(len, images.splits.values())) == 20
    assert "3 linked twice" in caplog.text
    assert "1 linked in a circle" in caplog.text


def test_formats_that_need_a_library_are_read_or_named(tmp_path, caplog, monkeypatch):
    pytest.importorskip("pi_heif")
    root = tree(tmp_path, cat=4, dog=4)
    shutil.copy(Path(__file__).parent / "phone.heic", root / "cat")
    assert sum(map(len, load(root).splits.values())) == 9
    assert load(root, val_fraction=0.0).split("all")[4]["image"].size == (40, 30)
    (root / "dog" / "sent.jpg").write_bytes((root / "cat" / "phone.heic").read_bytes())
    assert sum(map(len, load(root).splits.values())) == 10
    (root / "dog" / "sent.jpg").unlink()
    monkeypatch.setattr("ifam.data.files.READS_HEIF", False)
    assert sum(map(len, load(root).splits.values())) == 8
    assert "1 .heic (needs `pip install 'ifam[heif]'`)" in caplog.text


# --- the same image twice --------------------------------------------------------------------------------


def test_a_file_in_two_splits_or_classes_is_refused(tmp_path):
    tree(tmp_path / "train", cat=2, dog=2)
    tree(tmp_path / "val", cat=1, dog=1)
    (tmp_path / "val" / "cat" / "linked.png").symlink_to(tmp_path / "train" / "cat" / "000.png")
    with pytest.raises(IfamError, match=r"listed twice, as .*train/cat/000\.png and as .*val/cat/linked\.png; remove"):
        load(tmp_path)


@pytest.mark.parametrize("again", ["0.png,a", "sub/../0.png,a", "0.png,b", "./0.png,b"])
def test_a_row_that_is_there_twice_is_refused_with_both_lines(listed, tmp_path, again):
    (tmp_path / "sub").mkdir()
    with pytest.raises(IfamError, match=r"listed twice.*line 2.*and as .*line 4"):
        listed("0.png,a", "1.png,b", again, header="path,label")


def test_copies_in_two_splits_and_in_two_classes_are_counted(tmp_path, caplog):
    for number, name in enumerate(
        ("train/cat/0", "train/cat/1", "train/dog/0", "train/dog/1", "val/cat/0", "val/dog/0")
    ):
        draw(tmp_path / f"{name}.png", (20 * number, 50, 200))
    load(tmp_path)
    assert "same content" not in caplog.text
    for target in ("val/cat/x.png", "train/dog/y.png"):
        shutil.copy(tmp_path / "train" / "cat" / "1.png", tmp_path / target)
    load(tmp_path)
    assert "3 images have the same content as one in another split" in caplog.text
    assert "3 images have the same content as one of another class" in caplog.text


def test_copies_are_on_one_side_of_the_cut(tmp_path, caplog):
    root = tree(tmp_path, cat=6, dog=6)
    for number in range(6):
        shutil.copy(root / "cat" / f"00{number}.{'jpg' if number % 2 else 'png'}", root / "cat" / f"copy{number}")
        (root / "cat" / f"copy{number}").rename(root / "cat" / f"copy{number}.png")
    for check in (True, False):
        images = load(root, val_fraction=0.5, check=check)
        sides = [{path.read_bytes() for path in images.split(split).paths} for split in ("train", "val")]
        assert not sides[0] & sides[1]
        assert (len(images.split("train")), len(images.split("val"))) == (9, 9)
    assert "12 images have the same content as another of the same class and split" in caplog.text


def test_a_class_of_nothing_but_copies_is_cut_and_said(tmp_path, caplog):
    root = tree(tmp_path, cat=1, dog=4)
    shutil.copy(root / "cat" / "000.png", root / "cat" / "again.png")
    assert by_class(load(root).split("val")) == [1, 1]
    assert "2 images have the same content as another of the same class and split" in caplog.text


# --- folders to evaluate on ------------------------------------------------------------------------------


def test_a_folder_without_splits_is_taken_whole_by_the_names_that_a_model_knows(tmp_path):
    images = load(tree(tmp_path, wren=3, owl=1), val_fraction=0.0, classes=("duck", "owl", "wren"))
    assert list(images.splits) == ["all"]
    assert images.default_eval_split == "all"
    assert images.class_names == ("duck", "owl", "wren")
    assert by_class(images.split("all")) == [0, 1, 3]
    assert images.describe("all") == "4 images of 2 classes, no split named"
    with pytest.raises(IfamError, match="has a class 'wren', but only duck, owl are known from the model"):
        load(tmp_path, val_fraction=0.0, classes=("duck", "owl"))


def test_a_test_folder_alone_can_be_judged_on(tmp_path):
    tree(tmp_path / "test", cat=1, dog=3)
    images = load(tmp_path)
    assert images.default_eval_split == "test"
    assert images.describe("test") == "4 images of 2 classes, split test"


def test_a_list_without_splits_is_taken_whole(listed):
    images = listed("0.png,b", "1.png,c", header="path,label", val_fraction=0.0, classes=("a", "b", "c"))
    assert images.split("all").labels == [1, 2]
    with pytest.raises(IfamError, match="has the class 'b', which the model does not know"):
        listed("0.png,b", "1.png,c", header="path,label", val_fraction=0.0, classes=("a", "c"))


# --- a folder and a list of the same images --------------------------------------------------------------


@pytest.mark.parametrize("classes", [("1", "2", "10"), ("a", "b", "10"), ("duck, wild", "wren", "Übung")])
def test_a_folder_and_a_list_agree(tmp_path, classes):
    root = tree(tmp_path, **dict.fromkeys(classes, 5))
    rows = [f'"{name}/{path.name}","{name}"' for name in classes for path in sorted((root / name).iterdir())]
    (root / "list.csv").write_text("path,label\n" + "\n".join(rows), encoding="utf-8")
    a, b = load(root), load(root, csv="list.csv")
    assert a.class_names == b.class_names
    for split in ("train", "val"):
        assert sorted(zip(names(a.split(split)), a.split(split).labels, strict=True)) == sorted(
            zip(names(b.split(split)), b.split(split).labels, strict=True)
        )


def test_names_are_the_same_however_accents_are_encoded(tmp_path):
    """Archives from macOS have letters and their accents apart."""
    apart, together = (unicodedata.normalize(form, "Übung") for form in ("NFD", "NFC"))
    tree(tmp_path / "a" / "train", **{apart: 2, "wren": 2})
    tree(tmp_path / "a" / "val", **{together: 2, "wren ": 1})
    images = load(tmp_path / "a")
    assert images.class_names == ("wren", together)
    assert by_class(images.split("val")) == [1, 2]
    rows = [f"{together}/000.png,{apart}", f"{together}/001.jpg,{together}", "wren/000.png,wren"]
    (tmp_path / "a" / "train" / "list.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    images = load(tmp_path / "a" / "train", csv="list.csv", val_fraction=0.0)
    assert images.class_names == ("wren", together)
    tree(tmp_path / "a" / "train", **{together: 2})
    with pytest.raises(IfamError, match="are two folders of one class; merge them"):
        load(tmp_path / "a")


def test_classes_that_differ_in_case_are_said(tmp_path, caplog):
    assert load(tree(tmp_path, Cat=2, cat=2, dog=2)).class_names == ("Cat", "cat", "dog")
    assert "The classes 'Cat' and 'cat' differ in case only" in caplog.text


def test_paths_in_a_list_are_taken_as_written_first(tmp_path):
    """A shell would read each of these names otherwise."""
    odd = ["$x.png", "a\\b.png", "~q.png", "with space.png", " ".join("äöü") + ".png"]
    for name in odd:
        draw(tmp_path / name)
    rows = [f'"{name}",{"ab"[number % 2]}' for number, name in enumerate(odd)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows), encoding="utf-8")
    images = load(tmp_path, csv="list.csv", val_fraction=0.0)
    assert [path.name for path in images.split("all").paths] == odd


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_lists_as_spreadsheets_write_them(tmp_path, encoding, separator):
    root = tree(tmp_path, Größe=2, wren=2)
    lines = [
        ["path", "label", ""],
        *[[f"{name}\\{i:03d}.{end}", name, ""] for name in ("Größe", "wren") for i, end in enumerate(("png", "jpg"))],
        ["", "", ""],
    ]
    text = "\r\n".join(separator.join(line) for line in lines)
    (root / "list.csv").write_bytes(text.encode(encoding))
    images = load(root, csv="list.csv", val_fraction=0.0)
    assert images.class_names == ("Größe", "wren")
    assert len(images.split("all")) == 4


# --- CSV files -------------------------------------------------------------------------------------------

HEADER = "path,label,group,split,mask"
CELLS = "path,label,split,mask"


@pytest.fixture
def listed(tmp_path):
    """Loads the images of a list; each path that ends in .png is drawn, masks included."""

    def read(*lines, header=HEADER, **settings):
        for line in lines:
            for cell in str(line).split(","):
                if cell.endswith(".png") and not cell.startswith("missing"):
                    draw(tmp_path / cell, (0, 0, 0) if "mask" in cell else (9, 9, 99))
        (tmp_path / "images.csv").write_text("\n".join([header, *map(str, lines)]) + "\n")
        return load(tmp_path, csv="images.csv", **settings)

    return read


def test_a_list_with_everything(listed, tmp_path):
    data = listed(
        "a/1.png,wren,wren on land,train,mask1.png",
        "a/2.png,duck,duck on land,train,mask2.png",
        "b/3.png,duck,duck on sea,valid,mask3.png",
        "b/4.png,wren,wren on land,Test,",
    )
    assert list(data.splits) == ["train", "val", "test"]
    assert data.class_names == ("duck", "wren")
    assert data.group_names == ("duck on land", "duck on sea", "wren on land")
    assert data.split("train").paths == [tmp_path / "a/1.png", tmp_path / "a/2.png"]
    assert (data.split("train").labels, data.split("train").groups) == ([1, 0], [2, 0])
    assert (data.split("val").labels, data.split("val").groups) == ([0], [1])
    assert data.split("train")[0]["mask"].shape == (30, 40)
    assert "mask" not in data.split("test")[0]
    assert data.note == "validation images as listed"


def test_a_list_of_paths_and_labels_alone(listed):
    data = listed(*(f"{i}.png,{('x', 'y')[i % 2]}" for i in range(20)), header="path,label")
    assert {name: by_class(split) for name, split in data.splits.items()} == {"train": [8, 8], "val": [2, 2]}
    assert data.group_names == ("x", "y")
    assert "mask" not in data.split("train")[0]


def test_a_list_is_cut_by_group(listed):
    lines = [f"{i}.png,{'xy'[i % 2]},{'xy'[i % 2]}{i % 4 // 2}" for i in range(40)]
    data = listed(*lines, header="path,label,group")
    assert np.bincount(data.split("val").groups).tolist() == [2, 2, 2, 2]
    assert "by class and group" in data.note


def test_columns_can_be_named(listed):
    settings = {
        "path_column": "file",
        "label_column": "kind",
        "group_column": "g",
        "split_column": "part",
        "mask_column": "where",
    }
    data = listed(
        "0.png,1,a,train,mask0.png",
        "1.png,0,b,train,mask1.png",
        "2.png,1,a,val,mask2.png",
        header="file,kind,g,part,where",
        **settings,
    )
    assert data.group_names == ("a", "b")
    assert data.split("train").labels == [1, 0]
    assert "mask" in data.split("val")[0]


def test_other_masks_are_given_beside_the_true_ones(listed):
    lines = [f"{i}.png,{'ab'[i % 2]},test,mask{i}.png,mask-found{i}.png" for i in range(2)]
    data = listed(*lines, header="path,label,split,mask,found", given_mask_column="found")
    first = data.split("test").records[0]
    Image.new("L", (40, 30), 0).save(first.mask)
    Image.new("L", (40, 30), 255).save(first.given_mask)
    batch = collate([TransformedDataset(data.split("test"), (8, 8), ([0.5] * 3, [0.5] * 3))[0]])
    assert batch.masks_to_give.all()
    assert not batch.masks.any()
    assert fingerprint(data, ["test"]) != fingerprint(listed(*lines, header="path,label,split,mask,found"), ["test"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0.png,a,mask0.png", "1.png,b,"], "line 3 has no found; name a mask for each image"),
        (["0.png,a,mask0.png", "1.png,b,missing-found.png"], r"mask .*missing-found\.png does not exist .*line 3"),
    ],
)
def test_other_masks_are_needed_of_each_image(listed, tmp_path, lines, message):
    listed(*lines[:1], "1.png,b,mask1.png", header="path,label,found", val_fraction=0.0)
    (tmp_path / "images.csv").write_text("\n".join(["path,label,found", *lines]))
    with pytest.raises(IfamError, match=message):
        load(tmp_path, given_mask_column="found", val_fraction=0.0)


def test_class_folders_have_no_other_masks(tmp_path):
    tree(tmp_path, wren=5, duck=5)
    with pytest.raises(IfamError, match="no CSV file with a column 'found' of masks"):
        load(tmp_path, given_mask_column="found", val_fraction=0.0)


def test_numbered_labels_are_in_the_order_of_their_values(listed):
    data = listed(*(f"{i}{j}.png,{i}" for i in (10, 9, 100) for j in (0, 1)), header="path,label")
    assert data.class_names == ("9", "10", "100")


def test_paths_may_be_absolute_and_the_list_elsewhere(tmp_path):
    lines = [f"{draw(tmp_path / 'far' / f'{i}.png')},{'ab'[i % 2]}" for i in range(4)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines))
    (tmp_path / "here").mkdir()
    data = load(tmp_path / "here", csv=str(tmp_path / "list.csv"), allow_outside=True)
    assert len(data.split("train")) == len(data.split("val")) == 2
    # The list may be anywhere, as long as what it names is below the root.
    assert len(load(tmp_path / "far", csv=str(tmp_path / "list.csv")).split("val")) == 2


OUTSIDE = {
    "..": lambda root, secret: f"../{secret.name}",
    ".. on the way": lambda root, secret: f"in/../../{secret.name}",
    "absolute": lambda root, secret: str(secret),
    "a variable": lambda root, secret: "$OUTSIDE/secret.png",
    "a link": lambda root, secret: (root / "link.png").symlink_to(secret) or "link.png",
    "a linked folder": lambda root, secret: (root / "far").symlink_to(secret.parent) or f"far/{secret.name}",
    # The root's name is the beginning of the other's.
    "a sibling": lambda root, secret: f"../{root.name}-2/secret.png",
}


@pytest.mark.parametrize("column", ["path", "mask", "swapped", "third"])
@pytest.mark.parametrize("how", OUTSIDE)
def test_a_listed_file_outside_of_the_root_is_named_with_its_line(tmp_path, monkeypatch, how, column):
    """A list may come from somebody else, and pages of results, which are shared, show what it names."""
    root, secret = tmp_path / "root", draw(tmp_path / "secret.png")
    draw(tmp_path / "root-2" / "secret.png")
    monkeypatch.setenv("OUTSIDE", str(tmp_path))
    (root / "in").mkdir(parents=True)
    rows = [{"path": draw(root / f"{i}.png").name, "label": "ab"[i % 2]} for i in range(4)]
    rows[2][column] = OUTSIDE[how](root, secret)
    columns = ("path", "label", "mask", "swapped", "third")
    lines = [",".join(row.get(name, "") for name in columns) for row in rows]
    (root / "images.csv").write_text("\n".join([",".join(columns), *lines]))
    kind = "mask" if column == "mask" else "image"
    words = rf"The {kind} \S+ is outside of {root} \(\S+images\.csv, line 4\); .*--data\.allow_outside true\.$"
    with pytest.raises(IfamError, match=words):
        load(root)
    assert len(load(root, allow_outside=True).split("val")) == 2


def test_a_root_that_is_a_link_and_links_inside_of_it_are_inside(tmp_path):
    for i in range(4):
        draw(tmp_path / "real" / "in" / f"{i}.png")
    (tmp_path / "real" / "linked").symlink_to("in")
    (tmp_path / "real" / "in" / "one.png").symlink_to("0.png")
    (tmp_path / "root").symlink_to("real")
    lines = ["linked/1.png,a", f"{tmp_path}/real/in/2.png,b", f"{tmp_path}/root/in/../in/3.png,a", "in/one.png,b"]
    (tmp_path / "root" / "images.csv").write_text("path,label\n" + "\n".join(lines))
    assert len(load(tmp_path / "root").split("train")) == 2


def test_a_list_without_training_images_can_be_tested_on(listed):
    data = listed("0.png,a,test", "1.png,b,test", header="path,label,split")
    assert list(data.splits) == ["test"]


@pytest.mark.parametrize(
    ("lines", "header", "words"),
    [
        (["0.png,a"], "file,label", r"images\.csv has no column 'path'; it has file, label"),
        (["0.png,a"], "path,kind", r"images\.csv has no column 'label'; it has path, kind"),
        ([], "path,label", "lists no image"),
        (["0.png,a", "1.png,a"], "path,label", "has a single class, a; at least two"),
        (
            ["0.png,a", "C:\\photos\\1.jpg,b"],
            "path,label",
            r"line 3: The path C:.* begins with C:/, which",
        ),
        (["0.png,a", f"{'x' * 300}.jpg,b"], "path,label", r"x\.jpg does not exist .*line 3"),
        (["0.png,a", "1.png"], "path,label", "line 3 has 1 values, but the header has 2"),
        (["0.png,a", ",b"], "path,label", "line 3 has no path"),
        (["0.png,a", "1.png,"], "path,label", "line 3 has no label"),
        (["0.png,a,train", "1.png,b,dev"], "path,label,split", "line 3 has the unknown split 'dev'"),
        (["0.png,a,", "1.png,b,train"], "path,label,split", "line 2 has the unknown split ''"),
        (["0.png,a,g", "1.png,b,"], "path,label,group", "line 3 has no group, but other lines have one"),
        (["0.png,a", "1.png,b", "missing.png,b"], "path,label", r"missing\.png does not exist .*line 4"),
        (
            ["0.png,a,mask.png", "1.png,b,missing.png"],
            "path,label,mask",
            r"mask .*missing\.png does not exist .*line 3",
        ),
        (["0.png,a,train", "1.png,b,train", "2.png,c,test"], "path,label,split", "line 4 has the class c, which no tr"),
    ],
)
def test_the_line_that_is_wrong_is_named(listed, lines, header, words):
    with pytest.raises(IfamError, match=words) as caught:
        listed(*lines, header=header)
    assert "images.csv" in str(caught.value)


def test_a_mask_of_another_size_is_named_with_its_line(listed, tmp_path):
    lines = ["0.png,a,", "1.png,b,mask.png"]
    listed_lines = [*lines, "2.png,a,", "3.png,b,"]
    draw(tmp_path / "mask.png", size=(41, 30))
    (tmp_path / "images.csv").write_text("path,label,mask\n" + "\n".join(listed_lines))
    for name in ("0.png", "1.png", "2.png", "3.png"):
        draw(tmp_path / name)
    with pytest.raises(IfamError, match=r"mask\.png is 41 x 30 pixels, but its image .*1\.png is 40 x 30 .*line 3"):
        load(tmp_path, csv="images.csv")


def test_a_column_that_was_asked_for_must_be_there(listed):
    with pytest.raises(IfamError, match="has no column 'place'; it has path, label"):
        listed("0.png,a", "1.png,b", header="path,label", group_column="place")


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(IfamError, match=r"There is no file .*nothing\.csv; give --data\.csv"):
        load(tree(tmp_path, a=1), csv="nothing.csv")
