"""Shards as a benchmark, against the same images in class folders and lists, and what is wrong in them."""

import json
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ifam.cli.main import main
from ifam.data import FolderConfig, TransformedDataset, load_benchmark, load_folder
from ifam.data.fingerprints import fingerprint, list_digest
from ifam.data.shards import expand_pattern
from ifam.errors import IfamError
from shards import picture, samples, write_shard


def load(root, **settings):
    return load_folder(root, FolderConfig(**settings))


def facts(data):
    """What a benchmark says of its images, and their pixels."""
    splits = {}
    for name, split in data.splits.items():
        splits[name] = [
            (path.name, np.asarray(split[i]["image"]).tobytes(), split.labels[i], split.groups[i])
            for i, path in enumerate(split.paths)
        ]
    return data.class_names, data.group_names, splits


def test_shards_are_the_same_images_in_class_folders(tmp_path):
    for split, numbers in (("train", range(10)), ("test", range(10, 14))):
        members = samples(numbers)
        write_shard(tmp_path / "shards" / f"{split}-000.tar", members)
        for number in numbers:
            path = tmp_path / "folders" / split / ("duck", "wren")[number % 2] / f"{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(members[f"{number:04d}.jpg"])
    shards, folders = load(tmp_path / "shards"), load(tmp_path / "folders")
    for one, other in zip(facts(shards)[:2], facts(folders)[:2], strict=True):
        assert one == other
    assert {name: sorted(split) for name, split in facts(shards)[2].items() if name == "test"} == {
        name: sorted(split) for name, split in facts(folders)[2].items() if name == "test"
    }
    assert set(shards.splits) == {"train", "val", "test"}
    names = sorted(path.name for name in ("train", "val") for path in shards.split(name).paths)
    assert names == [f"{number:04d}.jpg" for number in range(10)]


def test_classes_groups_splits_and_masks_of_members(tmp_path):
    """Of several shards with the same keys; numbers in `cls` are in the order of their values."""
    mask = Image.new("L", (40, 30))
    mask.paste(255, (0, 0, 20, 30))
    mask.save(tmp_path / "mask.png")
    for shard, split in enumerate(("train", "val", "testing", "train")):
        members = {}
        for number in range(12):
            members |= {
                f"birds/{number}.JPG": picture(100 * shard + number, kind="jpg"),
                f"birds/{number}.cls": str(number),
            }
            members |= {f"birds/{number}.json": {"group": f"group {number % 3}", "split": split, "place": "pond"}}
            members |= {f"birds/{number}.mask.png": (tmp_path / "mask.png").read_bytes()} if number else {}
        members |= {"birds/._0.JPG": b"of a Mac", "readme.txt": "by hand", "birds/0.txt": "a caption"}
        write_shard(tmp_path / "shards" / "part" / f"{shard}.tar", members)
    data = load(tmp_path / "shards")
    assert data.class_names == tuple(map(str, range(12)))
    assert data.group_names == ("group 0", "group 1", "group 2")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 24, "val": 12, "test": 12}
    split = data.split("val")
    assert [split.groups[i] == int(path.name[:-4]) % 3 for i, path in enumerate(split.paths)] == [True] * 12
    example = split[3]
    assert example["mask"].float().mean() == 0.5
    assert "mask" not in split[0]
    assert np.array_equal(np.asarray(example["image"]), np.asarray(data.split("val")[3]["image"]))
    with pytest.raises(IfamError, match="has none for image 0 of its split 'val'"):
        data.require_masks("val", "The method")


def test_labels_under_other_names(tmp_path):
    members = {}
    for number in range(8):
        members |= {
            f"{number}.png": picture(number),
            f"{number}.json": {"species": "ab"[number % 2], "side": number // 4},
        }
    write_shard(tmp_path / "photos.tar", members)
    data = load(tmp_path / "photos.tar", label_column="species", group_column="side", val_fraction=0.0)
    assert data.class_names == ("a", "b")
    assert data.group_names == ("0", "1")
    assert data.is_whole
    with pytest.raises(
        IfamError, match=r"photos.tar has no class for its member '0.png'; add 0.cls, or 0.json with 'l"
    ):
        load(tmp_path / "photos.tar")


@pytest.mark.parametrize("where", ["names", "folders", "patterns"])
def test_splits_by_names_of_shards_or_of_their_folders(where, tmp_path):
    """Also on several disks."""
    for disk, split in enumerate(("train", "val", "test")):
        for number in range(2):
            path = tmp_path / f"disk{disk}" / f"birds-{split}-{number:03d}.tar"
            path = tmp_path / split / f"{number:03d}.tar" if where == "folders" else path
            path = tmp_path / path.name if where == "names" else path
            write_shard(path, samples(range(10 * disk + 5 * number, 10 * disk + 5 * number + 4)))
    root = tmp_path / "disk{0,1,2}" / "birds-{train,val,test}-{000..001}.tar" if where == "patterns" else tmp_path
    if where == "patterns":
        with pytest.raises(IfamError, match=r"There is no shard .*disk0/birds-val-000.tar of .*; correct --root"):
            load(root)
        data = load(tmp_path / "disk0" / "birds-train-{000..001}.tar")
        assert set(data.splits) == {"train", "val"}
        assert "20%" in data.note
        return
    assert {name: len(split) for name, split in load(root).splits.items()} == {"train": 8, "val": 8, "test": 8}


def test_patterns_are_those_of_a_shell(tmp_path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b-9.tar", "b-10.tar"):
        write_shard(tmp_path / name, {})
    names = {
        "a-{08..10}.tar": ["a-08.tar", "a-09.tar", "a-10.tar"],
        "b-{9..10}.tar": ["b-9.tar", "b-10.tar"],
        "{a-08,b-{9,10}}.tar": ["a-08.tar", "b-9.tar", "b-10.tar"],
        "a-08.tar": ["a-08.tar"],
        "folder": [],
    }
    for pattern, expected in names.items():
        assert [path.name for path in expand_pattern(tmp_path / pattern)] == expected
    for remote in ("s3://bucket/a-{0..1}.tar", "gs://x/a.tar", "pipe:cat a.tar"):
        with pytest.raises(IfamError, match="is not on a disk of this machine; mount the storage, or copy the shards"):
            expand_pattern(type(tmp_path)(remote))


def huge_png():
    """A picture of a few bytes that states 20,000 x 20,000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"0003.json": None}, " has no class for its member '0003.jpg'; add 0003.cls, or 0003.json with 'label'."),
        ({"0003.json": {"group": "a"}}, " has no class for its member '0003.jpg'"),
        ({"0003.json": "{"}, ", member '0003.json' is no JSON"),
        ({"0003.json": b"\xff"}, ", member '0003.json' is no JSON"),
        ({"0003.json": "[" * 100000}, ", member '0003.json' is no JSON"),
        (
            {"0003.json": b" " * (1 << 21)},
            ", member '0003.json' is no JSON (it has 2,097,152 bytes, more than",
        ),
        ({"0003.json": [1]}, ", member '0003.json' holds list, but an object"),
        ({"0003.json": {"label": 1.5}}, ", member '0003.json' has the label 1.5, but a text or a whole number"),
        ({"0003.json": {"label": True}}, ", member '0003.json' has the label True, but a text or a whole number"),
        ({"0003.json": {"label": " "}}, ", member '0003.json' has the label ' ', but a text or a whole number"),
        ({"0003.json": {"label": "duck", "split": "dev"}}, "/0003.jpg has the unknown split 'dev'"),
        (
            {"0003.json": {"label": "duck", "split": "test"}},
            "/0003.jpg has the split 'test', but its shard is named",
        ),
        ({"0003.json": {"label": "duck", "group": "a"}}, "/0000.jpg has no group, but other images have one"),
        ({"0003.cls": "duck"}, ", member '0003.cls' holds the class 'duck', but '0003.json' holds 'wren'"),
        ({"0003.cls": ""}, ", member '0003.cls' holds '', but a class is expected"),
        ({"0003.cls": b"\xff"}, ", member '0003.cls' is no text"),
        ({"0003.png": picture(3)}, " has the members '0003.jpg' and '0003.png' of one key"),
        ({"0003.JPG": picture(3)}, " has the members '0003.jpg' and '0003.JPG' of one key"),
        (
            {"0003.mask.png": picture(3), "0003.mask.jpg": picture(3)},
            " has the members '0003.mask.png' and '0003.mask.jpg'",
        ),
        ({"0003.jpg": None}, " has no image for its member '0003.json'; add 0003.jpg"),
        ({"0003.jpg": b"no image"}, "/0003.jpg is not a readable image (cannot identify image file)"),
        ({"0003.jpg": b""}, "/0003.jpg is not a readable image (the file is empty"),
        ({"0003.jpg": huge_png()}, "/0003.jpg is not a readable image (it has more than 178,956,970 pixels"),
        (
            {"0003.mask.png": picture(3, (9, 9))},
            "/0003.mask.png is 9 x 9 pixels, but its image {shard}/0003.jpg is 40 x 30",
        ),
    ],
)
def test_what_is_wrong_names_the_shard_and_the_member(changes, said, tmp_path):
    members = {name: content for name, content in {**samples(range(8)), **changes}.items() if content is not None}
    shard = write_shard(tmp_path / "train-000.tar", members)
    with pytest.raises(IfamError, match=re.escape(f"{shard}{said.format(shard=shard)}")):
        load(tmp_path)


def test_what_cannot_be_read_may_be_left_out(tmp_path, caplog):
    write_shard(tmp_path / "train-000.tar", {**samples(range(12)), "0003.jpg": picture(3, kind="jpg")[:600]})
    data = load(tmp_path, skip_bad=True)
    assert sum(map(len, data.splits.values())) == 11
    assert f"Left out {tmp_path / 'train-000.tar' / '0003.jpg'}: it is not a readable image" in caplog.text


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train-000.tar", "val.tar.gz"], "val.tar.gz is compressed; unpack it to a plain tar file"),
        (["photos.tgz"], "photos.tgz is compressed; unpack it to a plain tar file"),
        (["train-val.tar"], "train-val.tar states the splits train and val in its name; rename it"),
        (["train-000.tar", "more.tar"], r"more.tar/0000.jpg has no split, but other images have one"),
        (["val/train-000.tar"], "train-000.tar states the splits train and val in its name"),
    ],
)
def test_names_that_cannot_be_used_are_a_sentence(names, said, tmp_path):
    for name in names:
        write_shard(tmp_path / name, samples(range(8)))
    with pytest.raises(IfamError, match=said):
        load(tmp_path)


def test_tar_files_beside_class_folders_are_left_out_with_a_warning(tmp_path, caplog):
    """Such as the file that was downloaded."""
    write_shard(tmp_path / "photos.tar", samples(range(4)))
    for number in range(8):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(number))
    assert load(tmp_path).class_names == ("a", "b")
    assert "has images in class folders, which are used; " in caplog.text


def test_shards_are_recognized_in_another_place(tmp_path):
    """By the digests of results, checkpoints and models."""
    for place in ("here", "there"):
        write_shard(tmp_path / place / "train-000.tar", samples(range(8)))
        write_shard(tmp_path / place / "train-001.tar", samples(range(8, 16)))
    one, other = (load(tmp_path / place) for place in ("here", "there"))
    assert fingerprint(one) == fingerprint(other)
    assert list_digest(one) == list_digest(other)
    write_shard(tmp_path / "there" / "train-001.tar", {**samples(range(8, 16)), "0009.jpg": picture(99, kind="jpg")})
    changed = load(tmp_path / "there")
    assert fingerprint(one) != fingerprint(changed)


def test_copies_between_shards_are_found(tmp_path, caplog):
    write_shard(tmp_path / "train-000.tar", samples(range(8)))
    write_shard(tmp_path / "test-000.tar", samples(range(4)))
    load(tmp_path)
    assert "8 images have the same content as one in another split" in caplog.text


@pytest.mark.slow
def test_a_model_is_trained_and_evaluated_on_shards(tmp_path, capsys):
    """And finds them again by their pattern."""
    for number in range(3):
        write_shard(tmp_path / f"photos-{number:03d}.tar", samples(range(10 * number, 10 * number + 4 + 3 * number)))
    root, run = tmp_path / "photos-{000..002}.tar", tmp_path / "run"
    words = [
        "--model.backbone",
        "ifam_tiny",
        "--model.image_size",
        "40",
        "--train.epochs",
        "1",
        "--train.accelerator",
        "cpu",
    ]
    main(["train", str(root), *words, "--out", str(run)])
    main(["evaluate", str(run)])
    said = capsys.readouterr().out
    assert "split val" in said
    trained, evaluated = (json.loads(path.read_text()) for path in sorted(tmp_path.rglob("results.json")))
    assert trained["count"] == evaluated["count"]
    data = load_benchmark("folder", root)
    examples = TransformedDataset(data.split("val"), (40, 40), ((0.5,) * 3, (0.5,) * 3))
    assert all(torch.isfinite(examples[i]["image"]).all() for i in range(len(examples)))
