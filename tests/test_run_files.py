"""The status of a run: written at once and then again and again, gone when it is done, kept when it is not."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ifam.errors import IfamError
from ifam.pulse import under_way
from ifam.run_files import STATUS, RunStatus, kept_status, read_status


def test_a_status_is_kept_up_to_date_and_removed_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(RunStatus, "interval", 0.01)
    (tmp_path / ".status.123.tmp.json").write_text("left by a process that was killed")
    with kept_status(tmp_path, [("ifam", 0)]):
        first = read_status(tmp_path)
        with under_way(lambda: "training: 3 of 9"):
            time.sleep(0.2)
        then = read_status(tmp_path)
    assert (first.state, first.process, first.host) == ("running", os.getpid(), socket.gethostname())
    assert first.running
    assert first.runs == (("ifam", 0),)
    assert (first.progress, then.progress) == ("", "training: 3 of 9")
    assert then.updated > first.updated
    assert then.started == first.started
    assert not list(tmp_path.iterdir())
    assert read_status(tmp_path) is None


def stop(folder, error):
    """A run that has written something when it is stopped."""
    (folder / "model.safetensors").write_text("a part of it")
    raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [(IfamError("The disk is full."), "The disk is full."), (KeyboardInterrupt(), "KeyboardInterrupt")],
)
def test_a_run_that_is_stopped_says_why(tmp_path, error, reason):
    with pytest.raises(type(error)), kept_status(tmp_path):
        stop(tmp_path, error)
    status = read_status(tmp_path)
    assert (status.state, status.reason, status.running) == ("stopped", reason, False)


def test_a_run_that_is_refused_leaves_the_status_of_an_earlier_one(tmp_path):
    for earlier in (None, "stopped"):
        if earlier:
            with pytest.raises(KeyboardInterrupt), kept_status(tmp_path):
                raise KeyboardInterrupt
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        with pytest.raises(IfamError), kept_status(tmp_path):
            raise IfamError("The settings differ.")
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_whether_a_run_still_runs_is_told_by_its_process_and_its_last_sign():
    now = time.time()
    status = RunStatus("running", now, now, os.getpid(), socket.gethostname())
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert status.running
    assert not replace(status, process=ended.pid).running
    assert not replace(status, updated=now - RunStatus.patience - 1).running
    # Of another machine, only the last sign is known.
    assert replace(status, process=ended.pid, host="another machine").running
    assert RunStatus.patience > 2 * RunStatus.interval


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / STATUS).mkdir()
    with kept_status(tmp_path):
        done = True
    assert done


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"state": "asleep"})])
def test_a_status_that_is_damaged_is_none(tmp_path, content):
    (tmp_path / STATUS).write_text(content)
    assert read_status(tmp_path) is None
