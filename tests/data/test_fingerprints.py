"""Results name the images that they are about: any change of these gives another fingerprint, a move does not."""

import shutil

import pytest

import miniatures
from ifam.data import load_benchmark
from ifam.data.fingerprints import fingerprint


@pytest.fixture
def images(tmp_path):
    miniatures.folder(tmp_path / "images")
    return tmp_path / "images"


def of(root, splits=None, **options):
    return fingerprint(load_benchmark("folder", root, options), splits)


def test_a_copy_elsewhere_is_the_same(images, tmp_path):
    before = of(images)
    shutil.copytree(images, tmp_path / "deep" / "copy")
    assert of(tmp_path / "deep" / "copy") == before == of(images)


def test_any_change_is_noticed(images):
    seen = {of(images)}
    path = min(images.rglob("*.jpg"))
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    seen.add(of(images))
    # The same size at the same time, and other bytes.
    path.write_bytes(content + b"\1")
    seen.add(of(images))
    path.rename(path.with_name("renamed.jpg"))
    seen.add(of(images))
    path.with_name("renamed.jpg").unlink()
    seen.add(of(images))
    seen.add(of(images, seed=1))
    assert len(seen) == 6
    assert of(images, ["val"]) != of(images, ["train"])


def test_the_middle_of_a_large_file_counts(images):
    path = min(images.rglob("*.jpg"))
    content = path.read_bytes() + bytes(100_000)
    path.write_bytes(content)
    before = of(images)
    middle = len(content) // 2
    path.write_bytes(content[:middle] + b"\1" + content[middle + 1 :])
    assert of(images) != before


def test_drawn_images_count_pixel_by_pixel():
    few = {"num_train": 10, "num_val": 10, "num_test": 10}
    for name in ("pondbirds", "digits"):
        birds = load_benchmark(name, options=few)
        before = fingerprint(birds)
        assert fingerprint(load_benchmark(name, options=few)) == before
        assert fingerprint(load_benchmark(name, options={**few, "seed": 1})) != before
        birds.splits["test"].images[0, 0, 0, 0] = 1 - birds.splits["test"].images[0, 0, 0, 0]
        assert fingerprint(birds) != before
