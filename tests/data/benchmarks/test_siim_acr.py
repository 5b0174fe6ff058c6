"""X-rays in DICOM files."""

import pytest
import torch

from ifam.data import load_benchmark
from ifam.data.dicom import load_dicom
from ifam.errors import IfamError
from miniatures import HEIGHT, MINIATURES, WIDTH

ILL = {number for number in range(1, 25) if number % 3 == 0}


def numbers(examples):
    return sorted(int(path.name.removesuffix(".dcm").rsplit(".")[-1]) for path in examples.paths)


@pytest.fixture
def prepared(tmp_path):
    return tmp_path, load_benchmark("siim_acr", tmp_path, MINIATURES["siim_acr"](tmp_path))


# --- the benchmark ---------------------------------------------------------------------------------------


def test_sets_labels_and_groups(prepared):
    _, data = prepared
    assert data.class_names == ("no pneumothorax", "pneumothorax")
    assert numbers(data.split("test")) == list(range(1, 9))
    assert numbers(data.split("robust")) == [2, 3, 5]  # tube and healthy, ill and no tube
    assert numbers(data.split("non_robust")) == [1, 4, 6, 7, 8]
    assert sorted(numbers(data.split("train")) + numbers(data.split("val"))) == list(range(9, 25))
    for examples in data.splits.values():
        for path, label in zip(examples.paths, examples.labels, strict=True):
            assert label == (int(path.name.split(".")[2]) in ILL)
    groups = {
        number: data.group_names[group]
        for number, group in zip(
            [int(p.name.split(".")[2]) for p in data.split("test").paths], data.split("test").groups, strict=True
        )
    }
    assert groups == {
        **dict.fromkeys((1, 4, 7, 8), "no pneumothorax without tube"),
        **dict.fromkeys((2, 5), "no pneumothorax with tube"),
        3: "pneumothorax without tube",
        6: "pneumothorax with tube",
    }
    # Where tubes are not annotated, the group is the class.
    assert set(data.split("train").groups) == {0, 1}
    assert "by class, seed 0" in data.note


def test_what_programs_leave_behind_is_no_x_ray(prepared):
    root, before = prepared
    first = sorted((root / "train_set" / "0").glob("*.dcm"))[0]
    first.with_name(f"._{first.name}").write_bytes(b"what a Mac leaves behind")
    again = load_benchmark("siim_acr", root, {"val_fraction": 0.25})
    assert numbers(again.split("train")) == numbers(before.split("train"))


def test_masks_go_down_the_columns(prepared):
    _, data = prepared
    test = data.split("test")
    by_number = {int(path.name.split(".")[2]): test[i] for i, path in enumerate(test.paths)}
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    assert torch.equal(by_number[1]["mask"], expected)
    expected[5:10, 10] = True
    assert torch.equal(by_number[6]["mask"], expected)
    expected[0:2, 20] = True  # the second line of this X-ray
    assert torch.equal(by_number[3]["mask"], expected)


def test_without_masks(prepared):
    root, _ = prepared
    (root / "all_masks").rename(root / "elsewhere")
    assert "mask" not in load_benchmark("siim_acr", root).split("test")[0]


def test_a_file_that_was_cut_off_is_named(prepared, caplog):
    root, data = prepared
    path = data.split("train").paths[0]
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(IfamError, match="is not a readable DICOM image") as caught:
        load_dicom(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    kept = load_benchmark("siim_acr", root, {"skip_bad": True})
    assert path not in kept.split("train").paths + kept.split("val").paths
    assert f"Left out {path}" in caplog.text


def test_without_pydicom_the_extra_is_named(prepared, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(IfamError, match=r"not installed; run `pip install 'ifam\[medical\]'`\."):
        load_benchmark("siim_acr", prepared[0])
