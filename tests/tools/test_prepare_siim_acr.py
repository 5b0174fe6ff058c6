"""X-rays sorted from the challenge's files, and a pickle that is not trusted."""

import collections
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tools.prepare_siim_acr import draw_runs, main, prepare, read_plain_pickle

from ifam.errors import IfamError
from miniatures import siim_raw, write_csv

# --- preparation -----------------------------------------------------------------------------------------


def test_prepare_counts_and_can_be_started_again(tmp_path):
    siim_raw(tmp_path / "raw")
    counts = prepare(tmp_path / "raw", tmp_path / "out")
    assert counts == {"train_set": 16, "full_test_set": 8, "robust_test_set": 3, "non_robust_test_set": 5}
    assert len(list((tmp_path / "out" / "all_masks").iterdir())) == 24
    mask = tmp_path / "out" / "all_masks" / "1.2.9.png"
    when = mask.stat().st_mtime_ns
    (tmp_path / "out" / "all_masks" / "1.2.10.png").unlink()
    assert prepare(tmp_path / "raw", tmp_path / "out") == counts
    assert mask.stat().st_mtime_ns == when
    assert (tmp_path / "out" / "all_masks" / "1.2.10.png").exists()
    assert not list((tmp_path / "out").rglob(".*"))


def test_prepare_copies_where_it_cannot_link(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("another file system")

    siim_raw(tmp_path / "raw")
    linked = prepare(tmp_path / "raw", tmp_path / "linked")
    monkeypatch.setattr(os, "link", refuse)
    assert prepare(tmp_path / "raw", tmp_path / "copied") == linked
    files = [sorted((tmp_path / n).rglob("*.dcm")) for n in ("linked", "copied")]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    assert files[0][0].stat().st_nlink > files[1][0].stat().st_nlink == 1


def test_tubes_as_json_and_with_file_names(tmp_path):
    siim_raw(tmp_path)
    tubes = {f"1.2.{n}.dcm": n in (2, 5, 6) for n in range(1, 9)}
    (tmp_path / "tubes.json").write_text(json.dumps(tubes))
    counts = prepare(tmp_path, tmp_path / "out", tmp_path / "tubes.json")
    assert (counts["robust_test_set"], counts["non_robust_test_set"]) == (3, 5)


def test_the_command(tmp_path, capsys):
    siim_raw(tmp_path / "raw")
    words = ["--root", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    main(words)
    assert "robust_test_set: 3 images" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"no\.pkl"):
        main([*words, "--tubes", str(tmp_path / "no.pkl")])
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="choose another"):
        main(["--root", "nowhere", "--out", str(tmp_path / "file" / "x")])


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
        prepare(tmp_path, tmp_path / "out")


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
            read_plain_pickle(tmp_path / "x.pkl", "fix")
        plain["c"] = collections.OrderedDict(x=1)
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(plain, protocol=protocol))
    assert read_plain_pickle(tmp_path / "x.pkl", "fix") == plain


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
        IfamError, match=r"x\.pkl is not a pickle of plain containers.*could run code; do this\."
    ) as caught:
        read_plain_pickle(tmp_path / "x.pkl", "do this")
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/this-should-never-exist-ifam").exists()
