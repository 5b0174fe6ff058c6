"""Rows are on the disk as they are computed, and a run that was stopped goes on."""

import csv
import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.inference import iter_predictions, predict, print_predictions
from ifam.models.ifam import IFAM
from ifam.prediction_table import Prediction


@pytest.fixture(scope="module")
def model() -> IFAM:
    torch.manual_seed(0)
    vit = {"depth": 1, "embed_dim": 48, "num_heads": 3}
    config = ModelConfig("vit_tiny_patch16_224", image_size=32, num_parts=3, num_classes=7, backbone_kwargs=vit)
    return IFAM(config, pretrained=False).eval()


@pytest.fixture
def three(tmp_path):
    """A folder of three images."""
    (tmp_path / "images").mkdir()
    for name in "abc":
        Image.new("RGB", (40, 40), (90, 120, 60)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path / "images"


def lines(out):
    """The rows of a table, if there is one."""
    path = out / "predictions.csv"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def test_rows_are_written_as_they_come(model, three, tmp_path):
    """Whatever ends the program, the rows before it are kept: what is on disk is looked at during the next batch."""
    out, seen = tmp_path / "out", []
    handle = model.register_forward_pre_hook(lambda *_: seen.append(len(lines(out))))
    try:
        rows = predict(model, three, batch_size=1, out=out)
    finally:
        handle.remove()
    assert seen == [0, 1, 2]
    assert [row["path"] for row in lines(out)] == [str(row.path) for row in rows]
    assert json.loads((out / "predictions.json").read_text())["complete"]


def test_rows_come_as_they_are_computed_and_do_not_stay(model, three, tmp_path):
    """Of any number of images, no more rows are in memory than those of a batch."""
    for number in range(30):
        os.link(three / "a.png", three / f"{number}.png")
    calls, most = [], 0
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        for count, _row in enumerate(iter_predictions(model, three, batch_size=3, out=tmp_path / "out"), 1):
            assert len(calls) == -(-count // 3)
            most = max(most, sum(type(one) is Prediction for one in gc.get_objects()))
    finally:
        handle.remove()
    assert count == 33
    assert most <= 2 * 3
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]) == 33


def test_an_iteration_that_is_left_keeps_its_rows_and_goes_on(model, three, tmp_path):
    out = tmp_path / "out"
    rows = iter_predictions(model, three, batch_size=1, out=out, pictures=False)
    first = next(rows)
    rows.close()
    kept = json.loads((out / "predictions.json").read_text())
    assert (kept["complete"], len(kept["predictions"])) == (False, 1)
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    rest = list(iter_predictions(model, three, batch_size=1, out=out, pictures=False, resume=True))
    handle.remove()
    assert (rest[0], len(rest), len(calls)) == (first, 3, 2)
    assert sorted(path.name for path in out.iterdir()) == ["predictions.csv", "predictions.json"]
    with pytest.raises(IfamError, match="other conditions"):
        predict(model, three, out=out)


@pytest.mark.parametrize("mended", [True, False], ids=["restored", "left out"])
def test_a_damaged_image_stops_nothing_that_was_done_and_resume_goes_on(model, three, tmp_path, mended):
    whole, out, content = predict(model, three, batch_size=1), tmp_path / "out", (three / "b.png").read_bytes()
    (three / "b.png").write_bytes(content[:60])
    with pytest.raises(IfamError, match=r"b\.png"):
        predict(model, three, batch_size=1, out=out, pictures=False)
    kept = json.loads((out / "predictions.json").read_text())
    assert (kept["complete"], [os.path.basename(row["path"]) for row in kept["predictions"]]) == (False, ["a.png"])
    if mended:
        (three / "b.png").write_bytes(content)
    rows = predict(model, three, batch_size=1, out=out, pictures=False, resume=True, skip_bad=not mended)
    assert rows == (whole if mended else [whole[0], whole[2]])
    assert json.loads((out / "predictions.json").read_text())["complete"]


def test_files_left_out_after_the_last_image_are_in_the_table(model, three, tmp_path):
    for name in ("b", "d", "e"):
        (three / f"{name}.png").write_text("no image")
    predict(model, three, batch_size=1, out=tmp_path / "out", skip_bad=True)
    kept = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [os.path.basename(row["path"]) for row in kept["predictions"]] == ["a.png", "c.png"]
    assert [os.path.basename(row["path"]) for row in kept["skipped"]] == ["b.png", "d.png", "e.png"]


def test_many_rows_are_printed_one_by_one(capsys):
    """Each before the next one is asked for; a few are one table."""
    shown = []

    def rows(number):
        for count in range(number):
            shown.append(capsys.readouterr().out)
            yield Prediction(Path(f"{count}.png"), 0, "a bird", 0.75, (("a bird", 0.75),), 0.5, count == 3, None)

    print_predictions(rows(40))
    assert shown[-1] == "38.png  a bird  75.0%  50%\n"
    assert "image  class  probability  visible\n" in "".join(shown)
    assert "3.png  a bird  75.0%  nothing\n" in "".join(shown)
    shown.clear()
    capsys.readouterr()
    print_predictions(rows(20))
    assert not any(shown)
    assert "┃ image" in capsys.readouterr().out


@pytest.mark.slow
def test_a_reader_that_leaves_stops_the_run_with_a_sentence(model, three, tmp_path):
    """As in `ifam predict photos | head -3`."""
    for number in range(60):
        os.link(three / "a.png", three / f"{number}.png")
    model.save_pretrained(tmp_path / "model")
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "ifam.cli",
        "predict",
        str(three),
        "--model",
        str(tmp_path / "model"),
    ]
    words += ["--out", str(tmp_path / "out"), "--pictures", "false", "--batch_size", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141
    # On a busy machine, it says before that it is still working.
    assert re.search(r"^ifam: Stopped by SIGPIPE: rows .* with --resume does the others\.\n\Z", said, re.MULTILINE)
    assert 0 < len(lines(tmp_path / "out")) < 63


def stopping_at(number):
    """A hook that ends the program before a batch."""
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt

    return stop


def test_a_run_that_was_stopped_is_done_again_in_the_same_folder(model, three, tmp_path):
    out = tmp_path / "out"
    handle = model.register_forward_pre_hook(stopping_at(2))
    try:
        with pytest.raises(KeyboardInterrupt):
            predict(model, three, batch_size=2, out=out)
    finally:
        handle.remove()
    assert len(lines(out)) == 2
    assert not json.loads((out / "predictions.json").read_text())["complete"]
    predict(model, three, batch_size=2, out=out)
    assert len(lines(out)) == 3


def test_a_run_that_was_stopped_goes_on_when_asked(model, three, tmp_path, monkeypatch):
    """What is left of one that was killed in the middle of a row: batches that were done are not classified again."""
    whole = predict(model, three, batch_size=1, out=tmp_path / "whole")
    out = tmp_path / "out"
    (three / "a.png").rename(three / "a.txt")
    (three / "a.png").write_text("no image")
    with monkeypatch.context() as patch:
        patch.setattr("ifam.inference.PredictionTable.close", lambda *args: None)  # the process is gone
        handle = model.register_forward_pre_hook(stopping_at(2))
        try:
            with pytest.raises(KeyboardInterrupt):
                predict(model, three, batch_size=1, out=out, skip_bad=True)
        finally:
            handle.remove()
    with (out / "predictions.csv").open("a") as file:
        file.write("half a r")
    seen = []
    for _ in range(2):  # the second time it is finished
        handle = model.register_forward_pre_hook(lambda *_: seen.append(1))
        rows = predict(model, three, batch_size=1, out=out, skip_bad=True, resume=True)
        handle.remove()
        assert [row.path for row in rows] == [three / "b.png", three / "c.png"]
        assert [row.probability for row in rows] == [row.probability for row in whole[1:]]
        assert [row["path"] for row in lines(out)] == [str(row.path) for row in rows]
        found = json.loads((out / "predictions.json").read_text())
        assert (found["complete"], len(found["predictions"]), len(found["skipped"])) == (True, 2, 1)
        assert len(seen) == 1
    assert not (out / "predictions.jsonl").exists()


def test_a_name_that_is_not_utf8_loses_nothing(model, three, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.new("RGB", (40, 40)).save(three / name)
    except OSError:
        pytest.skip("this file system knows UTF-8 alone")
    rows = predict(model, three, out=tmp_path / "out")
    assert [row.path.name for row in rows] == ["a.png", "b.png", "c.png", name]
    kept = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))["predictions"]
    assert kept[3]["path"] == str(three / name)
    assert (tmp_path / "out" / kept[3]["overlay"]).is_file()
    assert len(lines(tmp_path / "out")) == 4
    print_predictions(rows)
    assert "b.png" in capsys.readouterr().out


@pytest.mark.slow
def test_nothing_of_another_run_is_replaced_unasked(model, three, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.png").write_text("mine")
    with pytest.raises(IfamError, match=r"b\.png already exists; choose another --out"):
        predict(model, three, out=out)
    assert [path.name for path in out.iterdir()] == ["b.png"]
    (out / "b.png").unlink()
    predict(model, three, out=out)
    predict(model, three, out=out)
    before = (out / "predictions.csv").read_text()
    with pytest.raises(IfamError, match="a result under other conditions"):
        predict(model, three / "a.png", out=out)
    assert (out / "predictions.csv").read_text() == before
    predict(model, three / "a.png", out=out, overwrite=True)
    assert len(lines(out)) == 1


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_images_are_never_drawn_over(model, three, overwrite):
    before = {path.name: path.read_bytes() for path in three.iterdir()}
    for given in (three, three / "a.png"):
        with pytest.raises(IfamError, match="is the folder of the images; choose another --out"):
            predict(model, given, out=three, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in three.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_known_before(model, three, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(IfamError, match="choose another"):
            predict(model, three, out=out)
