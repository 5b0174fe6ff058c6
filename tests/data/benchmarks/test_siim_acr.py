"""X-rays in DICOM files."""

import ast
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

import ifam.data
from ifam.data import load_benchmark
from ifam.data.benchmarks.siim_acr import dicom_size, load_dicom
from ifam.errors import IfamError
from miniatures import HEIGHT, MINIATURES, WIDTH, draw_dicom

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


# --- DICOM -----------------------------------------------------------------------------------------------

RAMP = np.tile(np.arange(WIDTH), (HEIGHT, 1))


@pytest.mark.parametrize(
    ("pixels", "settings", "expected"),
    [
        (RAMP, {}, RAMP),
        (RAMP, {"inverted": True}, 255 - RAMP),
        (RAMP * 16, {"bits": 12}, (RAMP * 16 / 4095 * 255).round()),
        (RAMP * 256, {"bits": 16}, (RAMP * 256 / 65535 * 255).round()),
    ],
)
def test_values_are_brought_to_eight_bits(tmp_path, pixels, settings, expected):
    path = draw_dicom(tmp_path / "1.2.3.dcm", pixels, **settings)
    image = load_dicom(path)
    assert (image.mode, image.size) == ("RGB", (WIDTH, HEIGHT))
    for channel in range(3):
        assert np.array_equal(np.asarray(image)[..., channel], expected)
    assert dicom_size(path) == (WIDTH, HEIGHT)


def test_a_file_that_states_a_huge_picture_is_refused(tmp_path):
    """Before it is decoded: compressed pixels take next to nothing in the file."""
    path = draw_dicom(tmp_path / "1.2.3.dcm", RAMP * 6, jpeg=True)
    file = pydicom.dcmread(path)
    file.Rows = file.Columns = 60_000
    file.save_as(path)
    with pytest.raises(IfamError, match=r"not a readable DICOM .*60,000 x 60,000 pixels, more than 178,956,970"):
        load_dicom(path)
    with pytest.raises(ValueError, match="178,956,970"):
        dicom_size(path)


def test_compressed_files_are_read(tmp_path):
    """Those of the challenge are: no further decoder must be needed."""
    image = load_dicom(draw_dicom(tmp_path / "1.2.3.dcm", RAMP * 6, jpeg=True))
    assert np.abs(np.asarray(image)[..., 0].astype(int) - RAMP * 6).max() < 8


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
    with pytest.raises(IfamError, match=r"not installed; install it with `pip install 'ifam\[medical\]'`\."):
        load_benchmark("siim_acr", prepared[0])


@pytest.mark.slow
def test_pydicom_is_imported_only_when_it_is_needed():
    """It is no base dependency: no file may import it at its top."""
    source = Path(ifam.data.__file__).parent
    assert "pydicom" in (source / "benchmarks" / "siim_acr.py").read_text()
    for path in source.parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not any(name.split(".")[0] == "pydicom" for name in named), path
