"""Which images a model is measured on, and what is said of them."""

import shutil

import pytest
from PIL import Image

from ifam.data import load_benchmark
from ifam.data.eval_dataset import default_split, load_eval_dataset, training_list
from ifam.errors import IfamError

CLASSES = ("cat", "dog", "owl")


def tree(root, **counts):
    """Class folders with images that differ from those in any other folder."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            shade = sum(f"{root.name}{name}{number}".encode()) % 256
            Image.new("RGB", (8 + number, 8), (shade, number, len(root.name))).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def photos(tmp_path):
    return tree(tmp_path / "photos", cat=10, dog=10, owl=10)


@pytest.fixture
def extra(photos):
    """What a model that was trained on the photos remembers."""
    images = load_benchmark("folder", photos)
    return {"benchmark": "folder", "root": str(photos), "data": {}, **training_list(images)}


def measured(extra, root=None, split=None, **data):
    """The images that are measured, and the first line that says what they are."""
    name, images, _ = load_eval_dataset(extra, None, root, data, CLASSES, split)
    assert name == "folder"
    chosen = split or images.default_eval_split
    return images.split(chosen), images.describe(chosen)


def test_where_it_was_trained_those_that_were_set_aside_are_measured(extra, photos, tmp_path, caplog):
    set_aside = load_benchmark("folder", photos).split("val").paths
    (tmp_path / "link").symlink_to(photos)
    for root in (None, photos, photos.parent / "." / "photos", tmp_path / "link"):
        images, said = measured(extra, root)
        assert [path.name for path in images.paths] == [path.name for path in set_aside]
        assert said == "6 images of 3 classes, split val (validation: 20% of the training images, by class, seed 0)"
    assert caplog.text == ""


@pytest.mark.parametrize("gone", [True, False])
def test_the_same_images_in_another_place_are_known_again(extra, photos, tmp_path, gone):
    shutil.copytree(photos, tmp_path / "elsewhere")
    if gone:
        shutil.rmtree(photos)
    assert len(measured(extra, tmp_path / "elsewhere")[0]) == 6


def test_other_images_of_the_same_names_are_taken_whole(extra, tmp_path, caplog):
    images, said = measured(extra, tree(tmp_path / "others", cat=10, dog=10, owl=10))
    assert (len(images), said) == (30, "30 images of 3 classes, no split named")
    assert caplog.text == ""


def test_that_nothing_can_be_checked_is_said(extra, photos, tmp_path, caplog):
    """Moved, and changed since: whatever was trained on may be among them."""
    photos.rename(tmp_path / "moved")
    tree(tmp_path / "moved", cat=12)
    assert len(measured(extra, tmp_path / "moved")[0]) == 32
    assert "trained on are no longer in" in caplog.text


def test_a_subset_of_the_classes_keeps_their_numbers(extra, tmp_path):
    images, said = measured(extra, tree(tmp_path / "others", owl=1, dog=2))
    assert (images.labels, said) == ([1, 1, 2], "3 images of 2 classes, no split named")
    with pytest.raises(IfamError, match="has a class 'emu', but only cat, dog, owl are known from the model"):
        measured(extra, tree(tmp_path / "others", emu=1))


def test_permission_to_leave_the_root_is_not_taken_from_a_model(photos, tmp_path):
    """The model may be a stranger's; who evaluates it says so again."""
    rows = [f"{path},{path.parent.name}" for path in sorted(photos.glob("*/*.png"))]
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "images.csv").write_text("\n".join(["path,label", *rows]))
    data = {"csv": "images.csv", "allow_outside": True}
    listed = training_list(load_benchmark("folder", tmp_path / "root", data))
    extra = {"benchmark": "folder", "root": str(tmp_path / "root"), "data": data, **listed}
    with pytest.raises(IfamError, match=r"outside of .*root .*line 2\).*--data\.allow_outside true"):
        measured(extra)
    assert len(measured(extra, allow_outside=True)[0]) == 6
    other = tree(tmp_path / "other", cat=2, dog=2)
    (other / "images.csv").write_text("\n".join(["path,label", *rows[:4], *rows[-4:]]))
    with pytest.raises(IfamError, match=r"outside of .*other .*line 2\)"):
        measured(extra, other)


def test_a_list_is_taken_whole_too(extra, tmp_path):
    tree(tmp_path / "others", cat=2, owl=2)
    rows = [f"others/{name}/{number}.png,{name}" for name in ("cat", "owl") for number in range(2)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    images, said = measured(extra, tmp_path, csv="list.csv")
    assert (images.labels, said) == ([0, 0, 2, 2], "4 images of 2 classes, no split named")


@pytest.mark.parametrize("how", ["setting", "list", "below", "above", "copies"])
def test_images_that_it_was_trained_on_are_never_measured_in_silence(extra, photos, tmp_path, caplog, how):
    """Of the 30 photos, 24 were trained on."""
    root, data = photos, {}
    if how == "setting":
        data = {"val_fraction": 0.0}
    elif how == "list":
        rows = [f"{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(photos.glob("*/*.png"))]
        (photos / "list.csv").write_text("\n".join(["path,label", *rows]))
        data = {"csv": "list.csv"}
    elif how == "below":
        root = tmp_path / "below"
        for name in CLASSES:
            (root / name).mkdir(parents=True)
            (root / name / "more").symlink_to(photos / name)
    elif how == "above":
        photos.rename(tmp_path / "train")
        (tmp_path / "all").mkdir()
        (tmp_path / "all" / "test").symlink_to(tmp_path / "train")
        extra, root = {**extra, "root": str(tmp_path / "train")}, tmp_path / "all"
    else:
        root = tree(tmp_path / "others", cat=1, dog=1)
        for path in photos.glob("*/*.png"):
            shutil.copy(path, root / path.parent.name / f"copy{path.name}") if path.parent.name != "owl" else None
        shutil.copytree(photos / "owl", root / "owl")
    images, said = measured(extra, root, **data)
    assert len(images) >= 30
    assert f"The model was trained on 24 of these {len(images)} images" in caplog.text
    assert "24 of them were trained on" in said or how == "above"


def test_a_folder_that_has_changed_since_is_said(extra, photos, caplog):
    tree(photos, cat=12)
    measured(extra)
    assert "have changed since the model was trained on them (30 then, 32 now)" in caplog.text


def test_a_folder_without_splits_is_cut_only_where_that_is_asked_for(extra, tmp_path):
    root = tree(tmp_path / "others", cat=5, dog=5)
    with pytest.raises(IfamError, match="has no splits here; leave --split out"):
        measured(extra, root, "test")
    assert measured(extra, root, "all")[1] == "10 images of 2 classes, no split named"
    assert measured(extra, root, "val")[1].startswith("2 images of 2 classes, split val (validation: 20% of")
    assert measured(extra, root, "train")[1] == "8 images of 2 classes, split train"
    assert len(measured(extra, root, val_fraction=0.4)[0]) == 4


def test_what_is_usual_for_a_purpose(extra, photos, tmp_path):
    _, own, _ = load_eval_dataset(extra, None, None, {}, CLASSES)
    _, other, _ = load_eval_dataset(extra, None, tree(tmp_path / "others", cat=1), {}, CLASSES)
    assert (default_split(own, "train"), default_split(other, "train")) == ("train", "all")
