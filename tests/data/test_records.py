"""The cut for validation, files that are checked or not, and lists in text files."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifam.data.masks import load_mask
from ifam.data.records import ImageFiles, Record, split_validation, validated
from ifam.data.source_files import number_labels, read_csv, read_words
from ifam.data_config import CutConfig
from ifam.errors import IfamError
from miniatures import draw, draw_mask

NAMES = ("a", "b", "c")


def records(counts):
    """So many records for each class and group."""
    return [
        Record(Path(f"{label}-{group}-{number}.png"), label, group)
        for (label, group), count in counts.items()
        for number in range(count)
    ]


# --- the cut ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_every_group_of_every_class_is_cut_in_its_share(share):
    counts = {(0, 0): 20, (0, 1): 4, (1, 2): 50, (1, 3): 2}
    train, val = split_validation(records(counts), CutConfig(val_fraction=share), NAMES)
    there = Counter((r.label, r.group) for r in val)
    for key, count in counts.items():
        assert there[key] == min(max(round(share * count), 1), count - 1)
    assert sorted(r.path for r in train + val) == sorted(r.path for r in records(counts))


def test_single_images_of_a_group_stay_for_training_or_are_taken_together():
    train, val = split_validation(records({(0, 0): 10, (0, 1): 1, (1, 2): 2}), CutConfig(), NAMES)
    assert (0, 1) in {(r.label, r.group) for r in train}
    assert Counter(r.label for r in val) == {0: 1, 1: 1}
    # A class of two groups of one image each is cut as a class.
    train, val = split_validation(records({(0, 0): 1, (0, 1): 1, (1, 2): 2}), CutConfig(), NAMES)
    assert Counter(r.label for r in train) == Counter(r.label for r in val) == {0: 1, 1: 1}


@pytest.mark.parametrize("group", [None, 5])
def test_a_class_of_one_image_is_named(group):
    with pytest.raises(IfamError, match="The class b has a single image, but at least two are needed"):
        split_validation(records({(0, group): 3, (1, group): 1}), CutConfig(), NAMES)


def test_the_cut_keeps_the_order_and_follows_its_seed():
    given = records({(0, None): 30, (1, None): 30})
    cuts = [split_validation(given, CutConfig(seed=seed), NAMES) for seed in (0, 0, 1)]
    assert cuts[0] == cuts[1] != cuts[2]
    for side in cuts[0]:
        assert [given.index(r) for r in side] == sorted(given.index(r) for r in side)


def test_files_of_one_photograph_stay_together():
    given = [Record(Path(f"{group}/{number}.png"), 0, group) for number in range(12) for group in range(3)]
    for seed in range(5):
        train, val = split_validation(
            given, CutConfig(seed=seed, val_fraction=0.25), NAMES, group_key=lambda r: r.path.name
        )
        assert len(val) == 9
        assert not {r.path.name for r in train} & {r.path.name for r in val}


# --- files -----------------------------------------------------------------------------------------------


def test_nothing_is_opened_without_the_check(tmp_path):
    missing = [Record(tmp_path / "none.png", 0)]
    assert validated(missing, CutConfig(check=False)) == missing
    with pytest.raises(IfamError, match=r"The image .*none\.png does not exist; remove it"):
        validated(missing, CutConfig())


def test_skip_bad_looks_even_without_the_check(tmp_path, caplog):
    good, bad = draw(tmp_path / "good.png"), tmp_path / "bad.png"
    kept = validated([Record(good, 0), Record(bad, 1)], CutConfig(check=False, skip_bad=True))
    assert [r.path for r in kept] == [good]
    assert "bad.png: there is no such file" in caplog.text


def test_examples(tmp_path):
    image, mask = draw(tmp_path / "a.png"), draw_mask(tmp_path / "m.png")
    points = np.array([[1, 2, 1]], np.float32)
    files = ImageFiles([Record(image, 3, 7, mask, {"keypoints": points}), Record(image, 4)])
    assert (files.paths, files.labels, files.groups) == ([image, image], [3, 4], [7, 4])
    full, bare = files[0], files[1]
    assert set(full) == {"image", "label", "group", "mask", "keypoints"}
    assert set(bare) == {"image", "label"}
    full["keypoints"].zero_()
    assert files[0]["keypoints"].tolist() == [[1, 2, 1]]  # an example is not the record itself


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA", "I;16", "npy"])
def test_masks_of_every_kind(tmp_path, mode):
    truth = np.zeros((6, 8), bool)
    truth[1:3, 2:7] = True
    path = tmp_path / ("m.npy" if mode == "npy" else "m.png")
    if mode == "npy":
        np.save(path, truth)
    elif mode == "P":
        image = Image.fromarray(truth.astype(np.uint8))
        image.putpalette([9, 9, 9, 0, 0, 0])  # the background is not black, the object is: the index counts
        image.save(path)
    elif mode == "I;16":
        Image.fromarray(truth.astype(np.uint16) * 300).save(path)
    else:
        Image.fromarray(truth.astype(np.uint8) * 255).convert(mode).save(path)
    mask = load_mask(path)
    assert mask.dtype == torch.bool
    assert np.array_equal(mask.numpy(), truth)


def test_a_mask_with_code_in_it_is_refused(tmp_path):
    np.save(tmp_path / "m.npy", np.array([print], dtype=object))
    with pytest.raises(IfamError, match=r"m\.npy is not a readable mask"):
        load_mask(tmp_path / "m.npy")


# --- settings --------------------------------------------------------------------------------------------


# --- text ------------------------------------------------------------------------------------------------


def test_csv_files_of_every_kind(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes('\ufeffname, note\r\n"a, b", x \r\n\r\nü,"two\r\nlines"\r\n'.encode())
    assert read_csv(path, ("name", "note")) == [
        (2, {"name": "a, b", "note": "x"}),
        (5, {"name": "ü", "note": "two\r\nlines"}),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"has no column 'name'; it has no header at all"),
        (b"Name,note\n", r"has no column 'name'; it has Name, note"),
        (b"name,note\na\n", "line 2 has 1 values, but the header has 2"),
        (b"name,note\na,b,c\n", "line 2 has 3 values, but the header has 2"),
        (b"name,note\n\xff\xfe,b\n", "cannot be read as a CSV file"),
        (b'name,note\na,"b\x00' + b"c" * 200_000, "is not a CSV file"),
    ],
)
def test_csv_files_that_cannot_be_read(tmp_path, content, words):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(IfamError, match=rf"x\.csv.*{words}"):
        read_csv(tmp_path / "x.csv", ("name", "note"))


def test_words(tmp_path):
    (tmp_path / "x.txt").write_text("1 a long name\n\n2\tb\n")
    assert read_words(tmp_path / "x.txt", 1) == {"1": ["a long name"], "2": ["b"]}
    with pytest.raises(IfamError, match=r"x\.txt, line 3 has 2 values, but 3 are expected"):
        read_words(tmp_path / "x.txt", 2)
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(IfamError, match=r"x\.txt cannot be read as text"):
        read_words(tmp_path / "x.txt", 1)


def test_labels_are_numbered_in_their_order():
    assert number_labels([30, 4, 30, 100]) == {4: 0, 30: 1, 100: 2}
    assert number_labels(["b", "a"]) == {"a": 0, "b": 1}
