"""Runs in a file: kept at once, read again, and never mixed under different settings."""

import json

import pytest

from ifam.errors import IfamError
from ifam.evaluation.comparisons import Run
from ifam.experiments.runs import Runs
from ifam.serialization import to_json

SETTINGS = {"train": {"epochs": 4, "kind": None}, "data": {}}
WANTED = {("ours", 0): SETTINGS, ("ours", 1): SETTINGS, ("theirs", 0): SETTINGS}


def run(row="ours", seed=0, elapsed=10.0, settings=SETTINGS, **figures):
    return Run(row, seed, figures, {}, {}, settings=settings, elapsed=elapsed)


def test_what_is_added_is_there_at_once_and_again_later(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    runs = Runs(path, WANTED)
    assert not runs.done
    runs.add(run(found=0.5))
    assert json.loads(path.read_text())["figures"] == {"found": 0.5}
    assert Runs(path, WANTED).done == {("ours", 0): run(found=0.5)}


def test_of_several_processes_one_writes(tmp_path, monkeypatch):
    runs = Runs(tmp_path / "runs.jsonl", WANTED)
    monkeypatch.setattr("ifam.experiments.runs.rank_and_world_size", lambda: (1, 2))
    runs.add(run())
    assert ("ours", 0) in runs.done
    assert not runs.path.read_text()


def test_a_line_that_was_not_finished_is_taken_away(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(to_json(run())) + "\n" + json.dumps(to_json(run(seed=1)))[:-5])
    runs = Runs(path, WANTED)
    assert list(runs.done) == [("ours", 0)]
    runs.add(run(seed=1))
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [0, 1]


def test_a_damaged_line_is_an_error(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text("{\n" + json.dumps(to_json(run())) + "\n")
    with pytest.raises(IfamError, match="line 1 is damaged"):
        Runs(path, WANTED)


def test_other_settings_are_refused_by_name(tmp_path):
    path = tmp_path / "runs.jsonl"
    Runs(path, WANTED).add(run())
    changed = {"train": {"epochs": 5, "kind": None}, "data": {}}
    with pytest.raises(
        IfamError, match=r"a run of 'ours', seed 0, with train\.epochs 4, but now it is 5; choose another"
    ):
        Runs(path, {("ours", 0): changed})
    # Rows and seeds that are new, or no longer wanted, are no contradiction.
    assert Runs(path, {("ours", 3): changed, ("new", 0): changed}).done


def test_a_run_on_images_that_have_changed_is_refused_or_done_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    before, now = ({**SETTINGS, "images": digest} for digest in ("aa", "bb"))
    Runs(path, WANTED).add(run(settings=before))
    wanted = {("ours", 0): now}
    with pytest.raises(IfamError, match="'ours', seed 0, on images that have changed since; choose another --out"):
        Runs(path, wanted)
    again = Runs(path, wanted, overwrite=True)
    assert not again.done
    again.add(run(settings=now))
    assert Runs(path, wanted).done["ours", 0].settings == now


def test_a_field_that_was_not_there_before_is_no_change_where_it_is_not_used(tmp_path):
    path = tmp_path / "runs.jsonl"
    Runs(path, WANTED).add(run())
    more = {"train": {"epochs": 4, "kind": None, "new": None}, "data": {}}
    assert Runs(path, {("ours", 0): more}).done
    with pytest.raises(IfamError, match=r"train\.new None, but now it is 3"):
        Runs(path, {("ours", 0): {"train": {"epochs": 4, "kind": None, "new": 3}, "data": {}}})


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IfamError, match="cannot be written"):
        Runs(tmp_path / "file" / "runs.jsonl", WANTED)


def test_the_time_left_is_that_of_the_runs_that_are_left(tmp_path, caplog):
    caplog.set_level("INFO", "ifam")
    runs = Runs(tmp_path / "runs.jsonl", WANTED)
    runs.announce("ours", 0)
    assert caplog.messages[-1] == "Run 1 of 3: ours, seed 0"
    runs.add(run(elapsed=100.0))
    runs.announce("theirs", 0)
    assert caplog.messages[-1] == "Run 2 of 3: theirs, seed 0, about 3 min left in all"
    runs.add(run("theirs", elapsed=20.0))
    runs.announce("ours", 1)
    assert caplog.messages[-1] == "Run 3 of 3: ours, seed 1, about 2 min left in all"


def test_settings_that_were_left_out_meanwhile_are_named(tmp_path):
    path = tmp_path / "runs.jsonl"
    before = {"train": {"epochs": 4, "kind": None}, "data": {"num_train": 200}}
    Runs(path, {("ours", 0): before}).add(run(settings=before))
    with pytest.raises(IfamError, match=r"with data\.num_train 200, but now it is None"):
        Runs(path, WANTED)
