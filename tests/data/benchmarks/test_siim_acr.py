"""X-rays in DICOM files, their preparation from the challenge's files, and a pickle that is not trusted."""

import ast
import collections
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import ifam.data
from ifam.data import load_benchmark, prepare_siim_acr
from ifam.data._pickles import read_plain_pickle
from ifam.data.benchmarks.siim_acr import dicom_size, load_dicom
from ifam.data.benchmarks.siim_acr_prepare import draw_runs
from ifam.errors import IfamError
from miniatures import HEIGHT, MINIATURES, WIDTH, draw_dicom, siim_raw, write_csv

ILL = {number for number in range(1, 25) if number % 3 == 0}


def numbers(examples):
    return sorted(int(path.name.removesuffix(".dcm").rsplit(".")[-1]) for path in examples.paths)


@pytest.fixture
def prepared(tmp_path):
    return tmp_path, load_benchmark("siim_acr", tmp_path, MINIATURES["siim_acr"](tmp_path))


# --- the benchmark ---------------------------------------------------------------------------------------


def test_sets_labels_and_groups(prepared):
    _, found = prepared
    assert found.class_names == ("no pneumothorax", "pneumothorax")
    assert numbers(found.split("test")) == list(range(1, 9))
    assert numbers(found.split("robust")) == [2, 3, 5]  # tube and healthy, ill and no tube
    assert numbers(found.split("non_robust")) == [1, 4, 6, 7, 8]
    assert sorted(numbers(found.split("train")) + numbers(found.split("val"))) == list(range(9, 25))
    for examples in found.splits.values():
        for path, label in zip(examples.paths, examples.labels, strict=True):
            assert label == (int(path.name.split(".")[2]) in ILL)
    groups = {
        number: found.group_names[group]
        for number, group in zip(
            [int(p.name.split(".")[2]) for p in found.split("test").paths], found.split("test").groups, strict=True
        )
    }
    assert groups == {
        **dict.fromkeys((1, 4, 7, 8), "no pneumothorax without tube"),
        **dict.fromkeys((2, 5), "no pneumothorax with tube"),
        3: "pneumothorax without tube",
        6: "pneumothorax with tube",
    }
    # Where tubes are not annotated, the group is the class.
    assert set(found.split("train").groups) == {0, 1}
    assert "by class, seed 0" in found.note


def test_what_programs_leave_behind_is_no_x_ray(prepared):
    root, before = prepared
    first = sorted((root / "train_set" / "0").glob("*.dcm"))[0]
    first.with_name(f"._{first.name}").write_bytes(b"what a Mac leaves behind")
    again = load_benchmark("siim_acr", root, {"val_fraction": 0.25})
    assert numbers(again.split("train")) == numbers(before.split("train"))


def test_masks_go_down_the_columns(prepared):
    _, found = prepared
    test = found.split("test")
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


def test_compressed_files_are_read(tmp_path):
    """Those of the challenge are: no further decoder must be needed."""
    image = load_dicom(draw_dicom(tmp_path / "1.2.3.dcm", RAMP * 6, jpeg=True))
    assert np.abs(np.asarray(image)[..., 0].astype(int) - RAMP * 6).max() < 8


def test_a_file_that_was_cut_off_is_named(prepared, caplog):
    root, found = prepared
    path = found.split("train").paths[0]
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(IfamError, match="is no DICOM image that can be read") as caught:
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


# --- preparation -----------------------------------------------------------------------------------------


def test_prepare_counts_and_can_be_started_again(tmp_path):
    siim_raw(tmp_path / "raw")
    told = []
    counts = prepare_siim_acr(tmp_path / "raw", tmp_path / "out", tell=lambda done, of: told.append((done, of)))
    assert counts == {"train_set": 16, "full_test_set": 8, "robust_test_set": 3, "non_robust_test_set": 5}
    assert told == [(done, 24) for done in range(1, 25)]
    assert len(list((tmp_path / "out" / "all_masks").iterdir())) == 24
    mask = tmp_path / "out" / "all_masks" / "1.2.9.png"
    when = mask.stat().st_mtime_ns
    (tmp_path / "out" / "all_masks" / "1.2.10.png").unlink()
    assert prepare_siim_acr(tmp_path / "raw", tmp_path / "out") == counts
    assert mask.stat().st_mtime_ns == when
    assert (tmp_path / "out" / "all_masks" / "1.2.10.png").exists()
    assert not list((tmp_path / "out").rglob("*.part"))


def test_prepare_copies_where_it_cannot_link(tmp_path, monkeypatch):
    import os

    def refuse(*args):
        raise OSError("another file system")

    siim_raw(tmp_path / "raw")
    linked = prepare_siim_acr(tmp_path / "raw", tmp_path / "linked")
    monkeypatch.setattr(os, "link", refuse)
    assert prepare_siim_acr(tmp_path / "raw", tmp_path / "copied") == linked
    files = [sorted((tmp_path / n).rglob("*.dcm")) for n in ("linked", "copied")]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    assert files[0][0].stat().st_nlink > files[1][0].stat().st_nlink == 1


def test_tubes_as_json_and_with_file_names(tmp_path):
    siim_raw(tmp_path)
    tubes = {f"1.2.{n}.dcm": n in (2, 5, 6) for n in range(1, 9)}
    (tmp_path / "tubes.json").write_text(json.dumps(tubes))
    counts = prepare_siim_acr(tmp_path, tmp_path / "out", tmp_path / "tubes.json")
    assert (counts["robust_test_set"], counts["non_robust_test_set"]) == (3, 5)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "train-rle.csv").unlink(), r"train-rle\.csv, which is missing"),
        (lambda root: (root / "cxr_tube_dict.pkl").unlink(), r"There are no tube annotations .*cxr_tube_dict\.pkl"),
        (
            lambda root: (root / "cxr_tube_dict.pkl").write_bytes(pickle.dumps([1, 2])),
            "is not a dict from ImageId to 0 or 1",
        ),
        (
            lambda root: (root / "cxr_tube_dict.pkl").write_bytes(pickle.dumps({"a": 2})),
            "is not a dict from ImageId to 0 or 1",
        ),
        (lambda root: next(root.rglob("1.2.7.dcm")).unlink(), r"lacks 1\.2\.7\.dcm, which train-rle\.csv lists"),
        (
            lambda root: write_csv(root / "train-rle.csv", "ImageId,Pixels", ("1.2.1", "-1")),
            "has no column 'EncodedPixels'",
        ),
        (
            lambda root: write_csv(root / "train-rle.csv", "ImageId, EncodedPixels", ("1.2.1", "")),
            "line 2 has no EncodedPixels",
        ),
        (
            lambda root: write_csv(root / "train-rle.csv", "ImageId, EncodedPixels", ("1.2.1", "5 x")),
            r"1\.2\.1: the runs are not pairs",
        ),
        (
            lambda root: write_csv(root / "train-rle.csv", "ImageId, EncodedPixels", ("1.2.1", "5 6 7")),
            r"1\.2\.1: the runs are not pairs",
        ),
        (
            lambda root: write_csv(root / "train-rle.csv", "ImageId, EncodedPixels", ("1.2.1", "1199 2")),
            "do not fit into 40 x 30",
        ),
        (
            lambda root: write_csv(root / "train-rle.csv", "ImageId, EncodedPixels", ("1.2.1", "9 -3")),
            "do not fit into 40 x 30",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, spoil, words):
    siim_raw(tmp_path)
    spoil(tmp_path)
    with pytest.raises(IfamError, match=words):
        prepare_siim_acr(tmp_path, tmp_path / "out")


def test_runs_are_relative_to_each_other():
    expected = np.zeros((4, 3), bool)
    expected[3, 0] = expected[0, 1] = True  # after three pixels, two: down the first column and into the second
    expected[3, 1] = True  # two skipped, one more
    assert np.array_equal(draw_runs(["3 2 2 1"], (3, 4), "here"), expected)
    both = draw_runs(["3 2 2 1", "0 1"], (3, 4), "here")
    expected[0, 0] = True
    assert np.array_equal(both, expected)
    assert not draw_runs([], (3, 4), "here").any()


# --- pickles ---------------------------------------------------------------------------------------------


class Runs:
    """What an attacker would write."""

    def __reduce__(self):
        return (open, ("/tmp/this-should-never-exist-ifam", "w"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_are_read(tmp_path, protocol):
    plain = {
        "a": [1, 2.5, True, None, "text"],
        "b": (1, {2, 3}, frozenset({4})),
        "c": collections.OrderedDict(x=b"bytes"),
        "d": 2**80,
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(plain, protocol=protocol))
    if protocol < 3:
        # Python 3 writes bytes as a call of `_codecs.encode` in the protocols of Python 2, and a call is a call.
        with pytest.raises(IfamError, match=r"_codecs\.encode"):
            read_plain_pickle(tmp_path / "x.pkl", "mend")
        plain["c"] = collections.OrderedDict(x=1)
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(plain, protocol=protocol))
    assert read_plain_pickle(tmp_path / "x.pkl", "mend") == plain


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Runs()),
        pickle.dumps({"a": Runs()}),
        pickle.dumps(np.int64(1)),
        pickle.dumps(np.zeros(2)),
        pickle.dumps(torch.zeros(2)),
        pickle.dumps(collections.Counter("a")),
        pickle.dumps(print),
        b"cos\nsystem\n(S'touch /tmp/this-should-never-exist-ifam'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\ngetattr\n.",
        b"",
        b"hello",
        pickle.dumps({"a": 1})[:-3],
    ],
    # The bytes of a pickle differ between processes, and ids must not.
    ids=[
        "call",
        "nested call",
        "numpy scalar",
        "numpy array",
        "torch tensor",
        "Counter",
        "builtin",
        "protocol 0 system",
        "protocol 0 eval",
        "protocol 0 getattr",
        "empty",
        "text",
        "truncated",
    ],
)
def test_all_else_is_refused_and_never_run(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(
        IfamError, match=r"x\.pkl is no pickle of plain containers.*could run code; do this\."
    ) as caught:
        read_plain_pickle(tmp_path / "x.pkl", "do this")
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/this-should-never-exist-ifam").exists()
