"""Data sets of Hugging Face's `datasets`: splits, columns, and what is refused."""

import sys
from io import BytesIO

import pytest
from PIL import Image

from ifam.cli.main import main
from ifam.data import Benchmark, load_benchmark
from ifam.data.base import ImageDataset
from ifam.data.images import load_image
from ifam.errors import IfamError


class ClassLabel:
    """As `datasets.ClassLabel`."""

    def __init__(self, names):
        self.names = names


class Columns:
    """The interface of a `datasets.Dataset` that is used, on lists."""

    def __init__(self, columns, features=None):
        self.columns, self.features = columns, features

    column_names = property(lambda self: list(self.columns))

    def __len__(self):
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, key):
        return self.columns[key] if isinstance(key, str) else {name: one[key] for name, one in self.columns.items()}


def stand_in(columns, names=None):
    return Columns(columns, None if names is None else {"label": ClassLabel(names)})


def real(columns, names=None):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict(columns)
    made = made.cast_column("image", datasets.Image())
    return made if names is None else made.cast_column("label", datasets.ClassLabel(names=names))


@pytest.fixture(params=[stand_in, real])
def dataset(request):
    return request.param


def png(value, mode="RGB", size=(6, 4)):
    file = BytesIO()
    Image.new(mode, size, value).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def rows(number, **columns):
    return {"image": [png((10 * i, 0, 0)) for i in range(number)], "label": [i % 2 for i in range(number)]} | columns


def test_splits_classes_and_groups(dataset):
    parts = {
        "train": dataset(rows(4, place=["b", "a", "a", "b"]), ["cat", "dog"]),
        "validation": dataset(rows(2, place=["a", "c"]), ["cat", "dog"]),
        "unsupervised": dataset(rows(2), ["cat", "dog"]),
    }
    images = Benchmark.from_hf(parts, group="place")
    assert list(images.splits) == ["train", "val"]
    assert (images.class_names, images.group_names) == (("cat", "dog"), ("a", "b", "c"))
    assert images.split("train").labels == [0, 1, 0, 1]
    assert images.groups("train").tolist() == [1, 0, 0, 1]
    example = images.split("val")[1]
    assert (example["label"], example["group"], example["image"].getpixel((0, 0))) == (1, 2, (10, 0, 0))
    assert isinstance(images.split("train"), ImageDataset)
    chosen = Benchmark.from_hf(parts, splits={"test": "validation"})
    assert (list(chosen.splits), chosen.group_names) == (["test"], ("cat", "dog"))


def test_validation_images_are_set_aside_by_class_and_group(dataset):
    images = Benchmark.from_hf(dataset(rows(20, place=["x"] * 15 + ["y"] * 5)), group="place", val_fraction=0.2)
    assert (images.class_names, list(images.splits)) == (("0", "1"), ["train", "val"])
    both = [split[index] for split in images.splits.values() for index in range(len(split))]
    assert sorted(example["image"].getpixel((0, 0))[0] for example in both) == list(range(0, 200, 10))
    assert sorted(zip(images.split("val").labels, images.split("val").groups, strict=True)) == [
        (0, 0),
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert images.note == "validation: 20% of the training images, by class and group, seed 0"
    assert list(Benchmark.from_hf(dataset(rows(4)), val_fraction=0.0).splits) == ["all"]


def test_images_and_masks_are_read_as_files_are(dataset, tmp_path):
    shades = [png((0, 200, 0, 0), "RGBA"), png(30000, "I;16"), png(90, "L")]
    for place, shade in enumerate(shades):
        (tmp_path / f"{place}.png").write_bytes(shade["bytes"])
    masks = [png(0, "L"), png(255, "L"), None]
    columns = {"image": shades, "label": ["a", "b", "a"], "mask": masks}
    split = Benchmark.from_hf({"test": dataset(columns)}, mask="mask").split("test")
    for index in range(3):
        assert split[index]["image"].tobytes() == load_image(tmp_path / f"{index}.png").tobytes()
    assert not split[0]["mask"].any()
    assert split[1]["mask"].all()
    assert split[1]["mask"].shape == (4, 6)
    assert "mask" not in split[2]
    paths = {"image": [str(tmp_path / "2.png")] * 2, "label": ["a", "b"]}
    assert Benchmark.from_hf({"test": stand_in(paths)}).split("test")[0]["image"].getpixel((0, 0)) == (90, 90, 90)


@pytest.mark.parametrize(
    ("made", "options", "said"),
    [
        (lambda: {"test": stand_in(rows(2))}, {"image": "x"}, "has no column 'x'; it has image, label"),
        (lambda: {"test": stand_in(rows(2))}, {"group": "labl"}, "has no column 'labl' (did you mean 'label'?)"),
        (lambda: {"a": stand_in(rows(2))}, {}, "The splits are a; say which they are: splits={'train': ...}"),
        (
            lambda: {"test": stand_in(rows(2))},
            {"splits": {"test": "b"}},
            "There is no split 'b'; the data",
        ),
        (lambda: {"test": stand_in(rows(2))}, {"splits": {"dev": "test"}}, "`splits` names 'dev'"),
        (lambda: {"val": stand_in(rows(2)), "valid": stand_in(rows(2))}, {}, "'val' and 'valid' are both"),
        (lambda: {"test": stand_in(rows(0))}, {}, "The split 'test' has no images"),
        (lambda: stand_in(rows(8)), {"val_fraction": 1.0}, "val_fraction is 1.0, but a share from 0 to below 1"),
        (lambda: {"test": iter(())}, {}, "is expected; load it without `streaming`"),
        (
            lambda: {"test": stand_in(rows(2, label=[0, -1]), ["a", "b"])},
            {},
            "'label' of row 1 of the split 'test' is -1",
        ),
        (lambda: {"test": stand_in(rows(2, label=[0, None]))}, {}, "is None, but text or a whole number is expected"),
        (lambda: {"test": stand_in(rows(2, label=[0.5, 1.5]))}, {}, "is 0.5, but text or a whole number"),
        (lambda: {"test": stand_in(rows(2, label=[3, 3]))}, {}, "All rows have the 'label' '3'"),
        (lambda: stand_in(rows(2)), {}, "The class 0 has too few images to train and to validate with"),
        (lambda: stand_in(rows(2)), {"splits": {"train": "train"}}, "without splits; leave `splits` out"),
        (
            lambda: {"train": stand_in(rows(2), ["a", "b"]), "test": stand_in(rows(2), ["b", "a"])},
            {},
            "The classes in 'label' differ between splits",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(made, options, said):
    with pytest.raises(IfamError) as raised:
        Benchmark.from_hf(made(), **options)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": [b"GIF89a nothing"]}, "split 'test', row 0 is not readable (cannot identify image file"),
        ({"image": [{"bytes": None, "path": None}]}, "it holds a NoneType, but a picture, its bytes or its path"),
        ({"image": ["absent.png"]}, "split 'test', row 0: absent.png"),
        ({"image": [png(0, "L")], "mask": [png(0, "L", (3, 3))]}, "its mask is 3 x 3 pixels, not (6, 4)"),
    ],
)
def test_a_damaged_row_is_named(columns, said):
    columns = {"label": [0], "mask": [None]} | columns
    split = Benchmark.from_hf({"test": stand_in(columns, ["a", "b"])}, mask="mask").split("test")
    with pytest.raises(IfamError) as raised:
        split[0]
    assert said in str(raised.value)


@pytest.mark.slow
def test_a_module_of_five_lines_is_a_data_set_of_the_command_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    real(rows(20), ["cat", "dog"]).save_to_disk("pets_on_disk")
    (tmp_path / "pets_of_test.py").write_text(
        "from datasets import load_from_disk\n\nfrom ifam.data import Benchmark\n\n"
        "def load():\n    return Benchmark.from_hf(load_from_disk('pets_on_disk'))\n"
    )
    images = load_benchmark("pets_of_test:load")
    assert images.class_names == ("cat", "dog")
    tiny = "--model.backbone ifam_tiny --model.image_size 16 --train.batch_size 4 --train.epochs 1"
    main(["train", "--benchmark", "pets_of_test:load", "--out", "run", *tiny.split()])
    assert "pets_of_test:load, val" in capsys.readouterr().out
    sys.modules.pop("pets_of_test")
