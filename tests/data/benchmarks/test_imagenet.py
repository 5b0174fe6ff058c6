"""ImageNet, its test sets, ImageNet-9 and PartImageNet, read from their miniatures."""

import json

import pytest
import torch

from ifam.data import part_masks
from ifam.data.benchmarks.imagenet import imagenet_classes
from ifam.errors import IfamError
from miniatures import HEIGHT, OBJECT, WIDTH, WNIDS, draw, write

TRUTH = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
TRUTH[OBJECT] = True


def names(examples):
    return [path.name for path in examples.paths]


def labels_by_folder(examples):
    return {(path.parent.name, label) for path, label in zip(examples.paths, examples.labels, strict=True)}


# --- ImageNet --------------------------------------------------------------------------------------------


def test_the_table_of_classes():
    classes = imagenet_classes()
    assert len(classes) == len({c.wnid for c in classes}) == 1000
    assert [c.wnid for c in classes] == sorted(c.wnid for c in classes)
    assert (classes[0].name, classes[999].name) == ("tench", "toilet tissue")
    assert sum("A" in c.subsets for c in classes) == sum("R" in c.subsets for c in classes) == 200
    # The published lists agree on 86 classes; these are the first indices of each.
    assert [i for i, c in enumerate(classes) if "A" in c.subsets][:3] == [6, 11, 13]
    assert [i for i, c in enumerate(classes) if "R" in c.subsets][:3] == [1, 2, 4]


def test_imagenet(load):
    imagenet = load("imagenet")
    assert len(imagenet.class_names) == 1000
    assert imagenet.class_names[6] == "stingray (n01498041)"
    for examples in imagenet.splits.values():
        assert labels_by_folder(examples) == set(zip(WNIDS, (6, 11, 13), strict=True))
    assert {path.parts[-3] for path in imagenet.split("test").paths} == {"val"}
    assert {path.parts[-3] for path in imagenet.split("val").paths} == {"train"}
    assert imagenet.logit_classes is None
    assert "test images are those that ImageNet calls validation; only 3 of 1,000" in imagenet.note


@pytest.mark.parametrize("name", ["imagenet", "imagenet_a", "imagenet_r", "imagenet_v2"])
def test_an_incomplete_copy_must_be_wanted(load, name):
    load(name)
    with pytest.raises(IfamError, match=r"which is missing \(\d of 1?\d+00 class folders .*--data.partial true"):
        load(name, partial=False)


@pytest.mark.parametrize(
    ("name", "stray"), [("imagenet_a", "n01440764"), ("imagenet_v2", "1000"), ("imagenet_r", "n01498041x")]
)
def test_a_folder_of_another_class_is_refused(load, tmp_path, name, stray):
    load(name)
    draw(next(p for p in tmp_path.iterdir() if p.is_dir()) / stray / "x.jpg")
    with pytest.raises(IfamError, match=f"has a folder '{stray}', which is not a class of {name}"):
        load(name)


@pytest.mark.parametrize(("name", "letter"), [("imagenet_a", "A"), ("imagenet_r", "R")])
def test_logits_are_restricted_to_200_classes(load, name, letter):
    subset = load(name)
    assert subset.logit_classes == tuple(i for i, c in enumerate(imagenet_classes()) if letter in c.subsets)
    assert len(subset.logit_classes) == 200
    assert set(subset.split("test").labels) <= set(subset.logit_classes)
    logits = torch.randn(5, 1000)
    logits[:, 0] = 99  # no class of either
    answers = subset.answers(logits)
    assert set(answers.tolist()) <= set(subset.logit_classes)
    assert torch.equal(answers, torch.tensor(subset.logit_classes)[logits[:, list(subset.logit_classes)].argmax(dim=1)])


def test_imagenet_v2_goes_by_number(load):
    imagenet_v2 = load("imagenet_v2")
    assert labels_by_folder(imagenet_v2.split("test")) == {("2", 2), ("10", 10), ("100", 100)}
    assert imagenet_v2.split("test").labels == [2, 2, 10, 10, 100, 100]


def test_imagenet9(load, tmp_path):
    imagenet9 = load("imagenet9")
    assert imagenet9.class_names[2] == "wheeled vehicle"
    for examples in imagenet9.splits.values():
        assert all(
            path.parent.name[3:] == imagenet9.class_names[x]
            for path, x in zip(examples.paths, examples.labels, strict=True)
        )
    assert imagenet9.split("test") is imagenet9.split("original")
    assert torch.equal(imagenet9.split("original")[3]["mask"], TRUTH)
    assert "mask" not in imagenet9.split("mixed_rand")[0]
    other = load("imagenet9", variant="mixed_rand")
    assert other.split("test") is other.split("mixed_rand")
    (tmp_path / "fg_mask" / "val" / "00_dog" / "n00_0.npy").unlink()
    assert "mask" not in load("imagenet9").split("original")[0]


def test_imagenet9_translates_a_thousand_logits(load):
    imagenet9 = load("imagenet9")
    logits = torch.zeros(4, 1000)
    for row, best in enumerate((20, 38, 9, 999)):  # i % 10 in the miniature, none for 9
        logits[row, best] = 1
    assert imagenet9.answers(logits).tolist() == [0, 8, -1, -1]
    nine = torch.eye(9)
    assert imagenet9.answers(nine).tolist() == list(range(9))
    with pytest.raises(IfamError, match="needs a model of 9 or 1000 classes, but this one has 10"):
        imagenet9.answers(torch.zeros(1, 10))


@pytest.mark.parametrize(
    "content", ["[1, 2]", "{}", '{"0": 12}', "no json", json.dumps({str(i): i % 11 for i in range(1000)})]
)
def test_imagenet9_refuses_another_mapping(load, tmp_path, content):
    load("imagenet9")
    (tmp_path / "in_to_in9.json").write_text(content)
    with pytest.raises(IfamError, match=r"in_to_in9\.json does not give a class from -1 to 8 for each of 1,000"):
        load("imagenet9")


def test_imagenet9_needs_all_nine_folders(load, tmp_path):
    load("imagenet9")
    (tmp_path / "mixed_rand" / "val" / "03_reptile").rename(tmp_path / "elsewhere")
    with pytest.raises(IfamError, match="has 8 class folders, but 9 are expected"):
        load("imagenet9")


# --- parts -----------------------------------------------------------------------------------------------


def test_part_imagenet(load):
    part_imagenet = load("part_imagenet")
    assert part_imagenet.class_names == ("goldfinch (n01531178)", "junco (n01534433)")
    assert part_imagenet.part_names == ("Bird Head", "Bird Body", "Bird Wing")  # by identifier, not as listed
    for examples in part_imagenet.splits.values():
        assert all(WNIDS[1 + label] in path.name for path, label in zip(examples.paths, examples.labels, strict=True))
    # The image without a part is left out.
    assert "n01534433_train4.JPEG" not in names(part_imagenet.split("train")) + names(part_imagenet.split("val"))
    test = part_imagenet.split("test")
    even, odd = test[0], test[1]
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.int16)
    expected[5:25, 15:30] = 2
    expected[5:25, 10:20] = 1  # the head is on top
    assert torch.equal(even["part_labels"], expected)
    assert torch.equal(even["mask"], TRUTH)  # without the outline of the crowd
    expected[0:5, 0:5] = 3  # two corners are a box
    assert torch.equal(odd["part_labels"], expected)
    assert torch.equal(part_masks(odd["part_labels"], 3), torch.stack([expected == part for part in (1, 2, 3)]))


def test_part_imagenet_in_class_folders(load, tmp_path):
    flat = load("part_imagenet").split("test")
    drawn = flat[1]["part_labels"]
    for split in ("train", "test"):
        for path in sorted((tmp_path / split).glob("*.JPEG")):
            (tmp_path / split / path.name[:9]).mkdir(exist_ok=True)
            path.rename(tmp_path / split / path.name[:9] / path.name)
    nested = load("part_imagenet")
    assert names(nested.split("test")) == names(flat)
    assert torch.equal(nested.split("test")[1]["part_labels"], drawn)


def test_part_imagenet_divided_by_a_list(load, tmp_path):
    load("part_imagenet")
    table = json.loads((tmp_path / "train.json").read_text())
    rows = [f"{i['id']}\t{int(i['file_name'].endswith('0.JPEG'))}\t0 tench {i['file_name']}" for i in table["images"]]
    write(tmp_path / "list.txt", *rows)
    part_imagenet = load("part_imagenet", split_list="list.txt")
    assert names(part_imagenet.split("test")) == ["n01531178_train0.JPEG", "n01534433_train0.JPEG"]
    assert len(part_imagenet.split("train")) + len(part_imagenet.split("val")) == 7
    write(tmp_path / "list.txt", *rows[1:])
    with pytest.raises(IfamError, match=r"list\.txt does not say, with 0 or 1, whether image 0 is for testing"):
        load("part_imagenet", split_list="list.txt")


def test_part_imagenet_refuses_files_of_different_classes(load, tmp_path):
    load("part_imagenet")
    table = json.loads((tmp_path / "test.json").read_text())
    table["images"][0]["file_name"] = "n01498041_1.JPEG"
    (tmp_path / "test.json").write_text(json.dumps(table))
    with pytest.raises(IfamError, match=r"test\.json has the class n01498041, which train\.json lacks; .*split_list"):
        load("part_imagenet")
    (tmp_path / "train.json").write_text('{"images": []}')
    with pytest.raises(IfamError, match=r"train\.json is not a COCO file"):
        load("part_imagenet")
