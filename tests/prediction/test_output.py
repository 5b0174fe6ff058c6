"""Rows are on the disk as they are computed, a run that was stopped goes on, and nothing is replaced unasked."""

import csv
import gc
import json
import os

import pytest
import torch
from PIL import Image

from ifam.config import ModelConfig
from ifam.errors import IfamError
from ifam.inference import iter_predictions, predict, print_predictions
from ifam.models.ifam import IFAM
from ifam.models.interventions import DropParts
from ifam.prediction.row import Prediction


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


def lines(path):
    """The rows of a table, if there is one."""
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def record(path):
    return json.loads(path.with_name(f"{path.name}.run.json").read_text(encoding="utf-8"))


def test_rows_are_written_as_they_come(model, three, tmp_path):
    """Whatever ends the program, the rows before it are kept: what is on disk is looked at during the next batch."""
    out, seen = tmp_path / "out.csv", []
    handle = model.register_forward_pre_hook(lambda *_: seen.append(len(lines(out))))
    try:
        rows = predict(model, three, batch_size=1, out=out)
    finally:
        handle.remove()
    assert seen == [0, 1, 2]
    assert [row["path"] for row in lines(out)] == [str(row.path) for row in rows]
    assert {key: record(out)[key] for key in ("complete", "rows", "errors")} == {
        "complete": True,
        "rows": 3,
        "errors": 0,
    }


def test_rows_come_as_they_are_computed_and_do_not_stay(model, three, tmp_path):
    """Of any number of images, no more rows are in memory than those of a batch."""
    for number in range(30):
        os.link(three / "a.png", three / f"{number}.png")
    calls, most = [], 0
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        for count, _row in enumerate(iter_predictions(model, three, batch_size=3, out=tmp_path / "out.csv"), 1):
            assert len(calls) == -(-count // 3)
            most = max(most, sum(type(one) is Prediction for one in gc.get_objects()))
    finally:
        handle.remove()
    assert count == 33
    assert most <= 2 * 3
    assert len(lines(tmp_path / "out.csv")) == 33


def test_a_folder_has_a_table_of_its_own(model, three, tmp_path):
    predict(model, three, out=tmp_path / "answers")
    assert sorted(path.name for path in (tmp_path / "answers").iterdir()) == [
        "predictions.csv",
        "predictions.csv.run.json",
    ]
    for name in ("out.xlsx", "out.json", "answers.v2"):
        with pytest.raises(
            IfamError, match=rf"{name} ends with \.\w+, but \.csv, \.jsonl, \.parquet is expected, or an"
        ):
            predict(model, three, out=tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers", "images"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_iteration_that_is_left_keeps_its_rows_and_goes_on(model, three, tmp_path, ending):
    out, drawn = tmp_path / f"out.{ending}", tmp_path / "drawn"
    whole = predict(model, three, batch_size=1, overlays=drawn)
    settings = {"batch_size": 1, "out": out, "overlays": drawn}
    rows = iter_predictions(model, three, **settings)
    first = next(rows)
    rows.close()
    assert (record(out)["complete"], record(out)["rows"]) == (False, 1)
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert list(iter_predictions(model, three, **settings, resume=True)) == whole
    assert (whole[0], len(calls)) == (first, 2)
    assert predict(model, three, **settings, resume=True) == whole
    handle.remove()
    assert (record(out)["complete"], len(calls)) == (True, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn", "images", out.name, f"{out.name}.run.json"]
    assert sorted(path.name for path in drawn.iterdir()) == ["a.png", "b.png", "c.png", "overlays.json"]


def test_images_that_came_later_are_added_and_those_that_left_are_counted(model, three, tmp_path, caplog):
    """Whatever their place in the order: a row is found by its path."""
    settings = {"out": tmp_path / "out.csv", "overlays": tmp_path / "drawn"}
    before = predict(model, three, **settings)
    os.link(three / "a.png", three / "0.png")
    (three / "a.JPG").write_bytes((three / "a.png").read_bytes())
    (three / "c.png").unlink()
    rows = predict(model, three, **settings, resume=True)
    assert rows[:3] == before
    assert [row.path.name for row in rows[3:]] == ["0.png", "a.JPG"]
    assert [row.overlay.name for row in rows] == ["a.png", "b.png", "c.png", "0.png", "a-2.png"]
    assert "Rows in the table of images that were not given now: 1." in caplog.text


def test_a_run_goes_on_under_its_own_conditions_only(model, three, tmp_path, make_model):
    out = tmp_path / "out.csv"
    predict(model, three, out=out)
    for name, changes in {
        "interventions": {"interventions": [DropParts([0])]},
        "white": {"white": 4095},
    }.items():
        with pytest.raises(IfamError, match=rf"out\.csv was begun with another {name} \(.*to go on, choose another"):
            predict(model, three, out=out, resume=True, **changes)
    with pytest.raises(IfamError, match="was begun with another model"):
        predict(make_model(image_size=32), three, out=out, resume=True)
    (tmp_path / "out.csv.run.json").write_text('{"conditions": {}}')
    with pytest.raises(IfamError, match="is not a record of `ifam predict`"):
        predict(model, three, out=out, resume=True)
    (tmp_path / "out.csv.run.json").unlink()
    with pytest.raises(IfamError, match=r"out\.csv already exists; choose another"):
        predict(model, three, out=out, resume=True)


def test_relative_paths_are_those_of_one_folder(model, three, tmp_path, monkeypatch):
    """The same names elsewhere are other images."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out.csv"
    predict(model, "images", out=out)
    (tmp_path / "other").mkdir()
    (tmp_path / "images").rename(tmp_path / "other" / "images")
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(IfamError, match="was begun with another working folder"):
        predict(model, "images", out=out, resume=True)


@pytest.mark.slow
def test_nothing_of_another_run_is_replaced_unasked(model, three, tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(IfamError, match=r"out\.csv already exists; choose another --out"):
        predict(model, three, out=out)
    assert out.read_text() == "mine"
    out.unlink()
    predict(model, three, out=out)
    predict(model, three, out=out)
    before = out.read_text()
    with pytest.raises(IfamError, match="a result under other conditions"):
        predict(model, three / "a.png", out=out)
    assert out.read_text() == before
    predict(model, three / "a.png", out=out, overwrite=True)
    assert len(lines(out)) == 1
    # Another list might have other images.
    predict(model, iter([three / "b.png"]), out=out, overwrite=True)
    with pytest.raises(IfamError, match="already exists"):
        predict(model, iter([three / "b.png"]), out=out)


def test_the_list_of_images_is_never_the_table(model, three, tmp_path):
    (three / "list.csv").write_text("path\na.png\n")
    with pytest.raises(IfamError, match=r"list\.csv is one of the lists of images; choose another --out"):
        predict(model, three / "list.csv", out=three / "list.csv", overwrite=True)
    assert (three / "list.csv").read_text() == "path\na.png\n"


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_images_are_never_drawn_over(model, three, overwrite):
    before = {path.name: path.read_bytes() for path in three.iterdir()}
    for given in (three, three / "a.png", iter([three / "a.png"])):
        with pytest.raises(
            IfamError, match=r"(has files that are not|is the folder of the images).*another --overlays"
        ):
            predict(model, given, overlays=three, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in three.iterdir()} == before


def test_pictures_are_not_drawn_among_other_files_unasked(model, three, tmp_path):
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    (drawn / "b.png").write_text("mine")
    with pytest.raises(IfamError, match="drawn has files that are not pictures of `ifam predict`"):
        predict(model, three, overlays=drawn)
    assert [path.name for path in drawn.iterdir()] == ["b.png"]
    predict(model, three, overlays=drawn, overwrite=True)
    predict(model, three, overlays=drawn)
    with pytest.raises(IfamError, match="a result under other conditions"):
        predict(model, three / "a.png", overlays=drawn)


def test_what_cannot_be_written_is_known_before(model, three, tmp_path):
    (tmp_path / "file").write_text("mine")
    for settings in ({"out": tmp_path / "file" / "out.csv"}, {"overlays": tmp_path / "file"}):
        with pytest.raises(IfamError, match=f"choose another.*--{next(iter(settings))}"):
            predict(model, three, **settings)


def test_a_name_that_is_not_utf8_loses_nothing(model, three, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.new("RGB", (40, 40)).save(three / name)
    except OSError:
        pytest.skip("this file system knows UTF-8 alone")
    for ending in ("csv", "jsonl", "parquet"):
        settings = {"out": tmp_path / f"out.{ending}", "overlays": tmp_path / f"{ending} drawn"}
        rows = predict(model, three, **settings)
        assert [row.path.name for row in rows] == ["a.png", "b.png", "c.png", name]
        assert rows[3].overlay.is_file()
        again = predict(model, three, **settings, resume=True)
        assert len(again) == 4
        assert again[3].path.name == (name if ending == "jsonl" else r"caf\udce9.png")
    print_predictions(rows)
    assert "b.png" in capsys.readouterr().out
