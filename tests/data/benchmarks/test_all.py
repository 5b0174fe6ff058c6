"""Every benchmark in miniature: what all of them promise, whatever their layout."""

import pickle
import shutil
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from ifam.data import BENCHMARKS, Augmentation, ImageDataset, TransformedDataset, collate, load_benchmark
from ifam.data_config import DATA_CONFIGS
from ifam.errors import IfamError
from miniatures import MINIATURES

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
DRAWN = ("pondbirds", "digits")
ON_DISK = [name for name in BENCHMARKS if name not in DRAWN]

# Split sizes of each miniature, by hand; the classes of these splits are of equal size unless told in other tests.
SIZES = {
    "pondbirds": {"train": 40, "val": 20, "test": 20},
    "digits": {"train": 40, "val": 20, "test": 20},
    "folder": {"train": 16, "val": 4},
    "cub": {"train": 15, "val": 3, "test": 6},
    "nabirds": {"train": 15, "val": 3, "test": 6},
    "waterbirds": {"train": 12, "val": 6, "test": 6},
    "metashift": {"train": 18, "val": 4, "test": 10},
    "siim_acr": {"train": 12, "val": 4, "test": 8, "robust": 3, "non_robust": 5},
    "imagenet": {"train": 18, "val": 6, "test": 6},
    "imagenet_a": {"test": 6},
    "imagenet_r": {"test": 4},
    "imagenet_v2": {"test": 6},
    "imagenet9": {"test": 18, "original": 18, "mixed_same": 18, "mixed_rand": 18},
    "part_imagenet": {"train": 7, "val": 2, "test": 4},
    "flowers102": {"train": 6, "val": 3, "test": 3},
    "turtles": {"train": 10, "val": 2, "test": 3},
}

# What has to be there, below the root of the miniature, and the folder that is given as the root.
NEEDED = [
    *(
        (name, part)
        for name in ("cub", "nabirds")
        for part in (
            "images.txt",
            "image_class_labels.txt",
            "classes.txt",
            "train_test_split.txt",
            "bounding_boxes.txt",
            "parts/parts.txt",
            "parts/part_locs.txt",
            "images",
        )
    ),
    ("waterbirds", "waterbird_complete95_forest2water2/metadata.csv"),
    ("metashift", "train/cat"),
    ("metashift", "train/dog"),
    ("metashift", "test/cat"),
    ("metashift", "test/dog"),
    ("siim_acr", "train_set/0"),
    ("siim_acr", "full_test_set/1"),
    ("siim_acr", "robust_test_set/0"),
    ("siim_acr", "non_robust_test_set/1"),
    ("imagenet", "train"),
    ("imagenet", "val"),
    ("imagenet9", "original/val"),
    ("imagenet9", "in_to_in9.json"),
    ("part_imagenet", "train.json"),
    ("part_imagenet", "train"),
    ("flowers102", "flowers-102/imagelabels.mat"),
    ("flowers102", "flowers-102/setid.mat"),
    ("flowers102", "flowers-102/jpg"),
    ("turtles", "metadata_base.csv"),
    ("turtles", "images"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Root and options of each miniature, each written once; copy before changing it."""
    roots = {}

    def root_of(name):
        if name not in roots:
            root = tmp_path_factory.mktemp(name)
            options = MINIATURES[name](root)
            # What is drawn has no files.
            roots[name] = (None if name in ("pondbirds", "digits") else root, options)
        return roots[name]

    return root_of


@pytest.fixture
def copied(written, tmp_path):
    """The same, in a copy that may be changed."""

    def copy(name):
        root, options = written(name)
        shutil.copytree(root, tmp_path / "copy")
        return tmp_path / "copy", options

    return copy


def paths(examples):
    return [str(path) for path in examples.paths]


def test_there_is_a_miniature_of_each():
    assert list(MINIATURES) == list(BENCHMARKS) == list(DATA_CONFIGS) == list(SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_examples_become_batches(name, written):
    root, options = written(name)
    benchmark = load_benchmark(name, root, options)
    assert benchmark.name == name
    assert {split: len(examples) for split, examples in benchmark.splits.items()} == SIZES[name]
    for examples in benchmark.splits.values():
        assert isinstance(examples, ImageDataset)
        prepared = TransformedDataset(examples, (32, 48), PLAIN, Augmentation(flip=True, crop=0.5))
        batch = collate([prepared[i] for i in range(len(prepared))])
        assert batch.images.shape == (len(examples), 3, 32, 48)
        assert 0 <= batch.labels.min() <= batch.labels.max() < len(benchmark.class_names)
        assert 0 <= batch.groups.min() <= batch.groups.max() < len(benchmark.group_names)
    assert len(set(benchmark.class_names)) == len(benchmark.class_names)
    assert len(set(benchmark.group_names)) == len(benchmark.group_names)
    assert "val" not in benchmark.splits or "validation" in benchmark.note


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_examples_can_be_sent_to_another_process(name, written):
    root, options = written(name)
    for examples in load_benchmark(name, root, options).splits.values():
        there = pickle.loads(pickle.dumps(examples))
        first, again = TransformedDataset(examples, (16, 16), PLAIN)[0], TransformedDataset(there, (16, 16), PLAIN)[0]
        assert torch.equal(first["image"], again["image"])
        assert (first["label"], first["group"]) == (again["label"], again["group"])


@pytest.mark.parametrize("name", ON_DISK)
def test_splits_share_no_file(name, written):
    root, options = written(name)
    splits = load_benchmark(name, root, options).splits
    overlapping = {"robust", "non_robust", "test" if name == "imagenet9" else ""}  # parts of the test set
    counted = Counter(
        path for split, examples in splits.items() if split not in overlapping for path in paths(examples)
    )
    assert set(counted.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder", "cub", "nabirds", "metashift", "siim_acr", "imagenet", "part_imagenet"])
def test_the_cut_follows_its_seed_and_leaves_the_test_set_alone(name, written):
    root, options = written(name)
    loaded = [load_benchmark(name, root, {**options, "seed": seed}) for seed in (0, 0, 1, 2, 3)]
    cuts = [paths(b.splits["val"]) for b in loaded]
    assert cuts[0] == cuts[1]
    assert len(set(map(tuple, cuts))) > 1
    if "test" in loaded[0].splits:
        assert len({tuple(paths(b.splits["test"])) for b in loaded}) == 1


# --- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON_DISK)
def test_without_a_root_the_fix_is_named(name):
    with pytest.raises(IfamError, match=rf"'{name}' needs the folder of .*--root DIR"):
        load_benchmark(name)


@pytest.mark.parametrize("name", ON_DISK)
def test_a_missing_root_is_named(name, tmp_path):
    with pytest.raises(IfamError, match=r"There is no folder .*nowhere.*--root DIR"):
        load_benchmark(name, tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "part"), NEEDED)
def test_what_is_missing_is_named_with_its_path(name, part, copied):
    root, options = copied(name)
    target = root / part
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(IfamError) as caught:
        load_benchmark(name, root, options)
    message = str(caught.value)
    assert Path(part).name in message
    assert "which is missing" in message
    assert "--root DIR" in message
    assert "https://" in message


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_DISK)
@pytest.mark.parametrize("how", ["text", "empty", "gone"])
def test_a_bad_file_is_named_and_skip_bad_leaves_it_out(name, how, copied, caplog):
    root, options = copied(name)
    options = {**options, "check": True}
    split = "train" if "train" in SIZES[name] else "test"
    bad = load_benchmark(name, root, options).split(split).paths[1]
    bad.write_bytes({"text": b"hello", "empty": b"", "gone": b""}[how])
    if how == "gone":
        bad.unlink()
    listed = name not in {"folder", "metashift", "siim_acr"} and not name.startswith("imagenet")
    if how != "gone" or listed:
        with pytest.raises(IfamError) as caught:
            load_benchmark(name, None if name in ("pondbirds", "digits") else root, options)
        assert bad.name in str(caught.value)
        assert "--data.skip_bad true" in str(caught.value)
        assert "\n" not in str(caught.value)
    caplog.clear()
    kept = load_benchmark(name, root, {**options, "skip_bad": True})
    everything = [path for examples in kept.splits.values() for path in paths(examples)]
    assert str(bad) not in everything
    if how != "gone" or listed:
        assert f"Left out {bad}" in caplog.text
    total = sum(len(examples) for examples in kept.splits.values())
    # The X-rays of the test set and the originals of ImageNet-9 are in two splits.
    assert total == sum(SIZES[name].values()) - (2 if name == "imagenet9" else 1)


@pytest.mark.parametrize("name", ON_DISK)
def test_without_the_check_a_bad_file_is_named_when_it_is_read(name, copied):
    root, options = copied(name)
    options = {**options, "check": False}
    split = "train" if "train" in SIZES[name] else "test"
    bad = load_benchmark(name, root, options).split(split).paths[1]
    bad.write_bytes(b"hello")
    examples = load_benchmark(name, root, options).split(split)
    index = paths(examples).index(str(bad))
    with pytest.raises(IfamError, match="is not a readable") as caught:
        examples[index]
    assert str(bad) in str(caught.value)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_settings_are_checked_and_documented(name):
    settings = DATA_CONFIGS[name]
    # By the class itself, or the one that it has the setting from.
    documented = "".join(kind.__doc__ for kind in settings.__mro__ if "Attributes:" in (kind.__doc__ or ""))
    for field in fields(settings):
        assert f"\n        {field.name}: " in documented
    with pytest.raises(IfamError, match=rf"{name} has no setting 'colour'; it has .*seed|skip_bad"):
        load_benchmark(name, options={"colour": 1})
    assert settings.benchmark == name


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_file_says_where_the_data_are_from_and_under_which_license(name):
    text = (
        (Path(__file__).parents[3] / "src" / "ifam" / "data" / "benchmarks" / f"{name}.py").read_text().split('"""')[1]
    )
    if name not in {"pondbirds", "folder"}:
        assert "https://" in text
        assert "license" in text.lower() or "CC BY" in text


def test_the_documentation_lists_every_benchmark_and_setting():
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    for name, settings in DATA_CONFIGS.items():
        assert f"| `{name}` |" in text
        for field in fields(settings) if name != "pondbirds" else ():  # these have a page of their own
            assert f"`{field.name}`" in text, f"{name}: {field.name}"


def test_nothing_is_downloaded(written, monkeypatch):
    """Not even a name is looked up."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in BENCHMARKS:
        root, options = written(name)
        load_benchmark(name, None if name in ("pondbirds", "digits") else root, options)
