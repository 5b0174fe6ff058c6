"""A run is shown at any moment: while it runs, after it was stopped or killed, and before there is anything to show."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from chromium import chromium, complaints, needs_chromium
from ifam.cli.main import main
from ifam.config import ModelConfig, TrainConfig
from ifam.data import load_benchmark
from ifam.errors import IfamError
from ifam.evaluation.comparisons import Run
from ifam.io import write_json
from ifam.models.registry import build
from ifam.report.results import write_report
from ifam.run_files import STATUS, RunStatus, kept_status
from ifam.run_log import RunLog
from ifam.serialization import to_json
from ifam.training.fit import fit

TWO = TrainConfig(2, 8, accelerator="cpu")


def text_of(folder, out=None, overwrite=True):
    """The text of the page of a run, on one line."""
    page = write_report([folder], out or folder.parent / "page.html", overwrite=overwrite).read_text(encoding="utf-8")
    return " ".join(re.sub("<svg.*?</svg>|<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL).split()), page


def train(folder, look, config=TWO):
    """A training whose run is looked at before each batch."""
    birds = load_benchmark("pondbirds", options={"num_train": 8, "num_val": 8, "num_test": 8})
    model = build("plain_vit", ModelConfig("ifam_tiny", image_size=40, num_classes=2))
    model.register_forward_pre_hook(lambda module, _: look("training" if module.training else "validation"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.yaml").write_text("method: plain_vit\ntrain:\n  epochs: 2\n")
    with kept_status(folder):
        fit(model, birds, config, folder=folder)


@pytest.mark.slow
def test_a_training_is_shown_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(RunStatus, "interval", 0.01)
    seen = []

    def look(mode):
        time.sleep(0.1)
        seen.append((mode, *text_of(tmp_path / "run")))

    train(tmp_path / "run", look)
    assert [mode for mode, *_ in seen] == ["training", "validation"] * 2
    assert [re.search(r"Still running, in epoch \d of 2", text)[0][-6:] for _, text, _ in seen] == ["1 of 2"] * 2 + [
        "2 of 2"
    ] * 2
    assert all('<meta http-equiv="refresh" content="10">' in page for *_, page in seen)
    assert "Training: 0 of 2, 0 s gone." in seen[0][1]
    assert "Validation of epoch 1: 0 of 1" in seen[1][1]
    assert ["It was last saved at" in text for _, text, _ in seen] == [False, False, True, True]
    assert ["<svg" in page for *_, page in seen] == [False, False, True, True]
    assert re.search(r"epoch 1 [\d.]+ [\d.]+\s% [\d.]+\s%", seen[2][1])
    assert not (tmp_path / "run" / STATUS).exists()
    text, page = text_of(tmp_path / "run")
    assert "Not finished: after 2 epochs" in text
    assert "refresh" not in page


@pytest.mark.slow
def test_a_training_that_was_stopped_says_why_and_how_to_go_on(tmp_path):
    calls = []

    def fail(mode):
        calls.append(mode)
        if len(calls) == 3:
            raise IfamError("The disk is full; make room.")

    with pytest.raises(IfamError, match="The disk is full"):
        train(tmp_path / "run", fail)
    text, page = text_of(tmp_path / "run")
    assert "Stopped in epoch 2 of 2" in text
    assert re.search(r"It was stopped at [\d: -]+: The disk is full; make room. ifam train --out \S+ --resume", text)
    assert "refresh" not in page
    assert "It was last saved at" in text


@pytest.fixture
def running(tmp_path):
    """The folder of a run that has just begun, and its status."""
    now = time.time()
    status = RunStatus("running", now, now, os.getpid(), socket.gethostname())
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / STATUS, to_json(status))
    return tmp_path / "run", status


def test_a_run_that_was_killed_is_not_taken_for_one_that_runs(running):
    """Its status says that it runs, since it could not say anything else."""
    folder, status = running
    assert "Still running, in epoch 1" in text_of(folder)[0]
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    for changes in ({"process": ended.pid}, {"updated": time.time() - 1000}, {"host": "x", "updated": 0.0}):
        write_json(folder / STATUS, to_json(replace(status, **changes)))
        text, page = text_of(folder)
        assert "No sign of life, in epoch 1" in text
        assert "its process was killed, or its machine is gone" in text
        assert "refresh" not in page
    write_json(folder / STATUS, to_json(replace(status, host="another machine", process=ended.pid)))
    assert "Still running" in text_of(folder)[0]


def test_a_model_that_is_trained_and_not_evaluated_says_so(running):
    folder, status = running
    (folder / "train.yaml").write_text("train: {epochs: 1}")
    (folder / "logs").mkdir()
    (folder / "logs" / "metrics.csv").write_text("epoch,step,train/total\n0,3,1.5\n")
    (folder / "config.json").write_text("{}")
    assert "Still running, after its training" in text_of(folder)[0]
    write_json(folder / STATUS, to_json(replace(status, state="stopped", reason="SIGTERM")))
    text, _ = text_of(folder)
    assert "Stopped after its training" in text
    assert f"SIGTERM. ifam evaluate --model {folder} measures the model." in text


def test_a_comparison_is_shown_run_by_run(running):
    folder, status = running
    runs = (("plain_vit", 0), ("ifam", 0), ("ifam, wide", 0))
    write_json(folder / STATUS, to_json(replace(status, runs=runs, progress="ifam, seed 0: 3 of 9")))
    assert "Still running, in run 1 of 3" in text_of(folder)[0]
    figures = {"worst_group": 0.25, "average": 0.5, "seconds": 61.2}
    RunLog(folder / "runs.jsonl").add(to_json(Run("plain_vit", 0, figures, {}, {})))
    log = folder / "unfinished" / "ifam-0-x" / "logs" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text("epoch,step,train/total\n0,3,1.5\n1,7,1.25\n2,11,1.")
    text, page = text_of(folder)
    assert "Still running, in run 2 of 3 Ifam, seed 0: 3 of 9. It has run since" in text
    assert re.search(r"plain_vit, seed 0 done 25.0\s% 50.0\s% – – 61 ifam, seed 0 running – – – – –", text)
    assert "ifam, wide, seed 0 missing" in text
    assert "training loss by epoch: ifam" in page
    (folder / STATUS).unlink()
    assert "Not finished: after 1 run" in text_of(folder)[0]
    (folder / "compare.json").write_text("{}")
    with pytest.raises(IfamError, match="is not a valid result"):
        text_of(folder)


def test_nothing_to_show_is_one_sentence(tmp_path, capsys):
    for name, said in (("missing", "There is no file"), (".", "contains neither audit.json, .* nor a training that")):
        with pytest.raises(SystemExit):
            main(["report", str(tmp_path / name), "--out", str(tmp_path / "page.html")])
        assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train.yaml", "- a list"),
        ("logs/metrics.csv", ""),
        ("logs/metrics.csv", "epoch,step,train/total\n"),
        ("logs/metrics.csv", "epoch,step,train/total\n0,3,half"),
        ("runs.jsonl", ""),
        ("runs.jsonl", '{"row": "a"'),
        ("status.json", '{"state": "running", "started": 1e300, "updated": 1e300, "process": 1, "host": "x"}'),
        ("status.json", '{"state": "running", "started": NaN, "updated": -1e17, "process": 1, "host": "x"}'),
    ],
)
def test_files_that_say_little_are_no_hindrance(tmp_path, file, content):
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "train.yaml").touch()
    (tmp_path / "run" / file).write_text(content)
    assert re.search("Not finished|No sign of life|Still running", text_of(tmp_path / "run")[0])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("train.yaml", "train: 3"),
        ("train.yaml", "train: {"),
        ("logs/metrics.csv", "epoch,step,train/total\n0,3,nonsense\n"),
        ("runs.jsonl", '{"row": "a"}\n'),
        ("runs.jsonl", "nonsense\n"),
    ],
)
def test_files_that_are_damaged_are_named_in_a_sentence(tmp_path, file, content):
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / file).write_text(content)
    with pytest.raises(IfamError, match=re.escape(str(tmp_path / "run"))):
        text_of(tmp_path / "run")


def test_looking_changes_nothing(running):
    folder, status = running
    write_json(folder / STATUS, to_json(replace(status, runs=(("a", 0),))))
    (folder / "runs.jsonl").write_text('{"row": "a"')
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*")}
    text_of(folder)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*")} == before


def test_a_page_is_written_again_until_the_run_ends(running, monkeypatch, capsys):
    folder, _ = running
    monkeypatch.setattr(RunStatus, "interval", 0.05)
    page = folder.parent / "page.html"
    threading.Timer(1.0, lambda: write_json(folder / STATUS, {"state": "no longer"})).start()
    (folder / "train.yaml").write_text("train: {epochs: 7}")
    main(["report", str(folder), "--out", str(page), "--follow"])
    assert "in epoch 1 of 7" in page.read_text(encoding="utf-8")
    assert "Not finished" in page.read_text(encoding="utf-8")
    assert capsys.readouterr().out.count("\n") == 1


def test_a_page_of_a_run_is_replaced_by_that_of_its_results(running):
    """The same folder, later: no need for --overwrite."""
    folder, _ = running
    out = folder.parent / "page.html"
    text_of(folder, out, overwrite=False)
    text_of(folder, out, overwrite=False)
    with pytest.raises(IfamError, match="under other conditions"):
        write_report([folder, folder], out)
    assert Path(out).exists()


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_running_training_is_whole_on_a_desk_and_on_a_phone(running, width):
    """In a real browser: nothing complains, nothing has to be pushed sideways, and the curves are there."""
    folder, _ = running
    (folder / "train.yaml").write_text("method: ifam\ntrain: {epochs: 9}")
    (folder / "logs").mkdir()
    rows = [f"{n},{n},{3 - 0.4 * n},{0.6 + 0.1 * n},{0.3 + 0.1 * n},{0.4 + 0.1 * n}" for n in range(3)]
    head = "epoch,step,train/total,val/accuracy,val/worst_group,val/mask_iou"
    (folder / "logs" / "metrics.csv").write_text("\n".join([head, *rows, ""]))
    page = write_report([folder], folder.parent / "page.html")
    with chromium() as browser:
        shown = browser.new_page(viewport={"width": width, "height": 900})
        said = complaints(shown)
        shown.goto(page.resolve().as_uri())
        assert "Still running, in epoch 4 of 9" in shown.inner_text("main")
        assert shown.locator(".charts svg").count() >= 3
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        shown.screenshot(path=folder.parent / f"page-{width}.png", full_page=True)
        # It is read again by itself, and says the new state.
        (folder / "train.yaml").write_text("method: ifam\ntrain: {epochs: 8}")
        write_report([folder], page)
        shown.reload()
        assert "in epoch 4 of 8" in shown.inner_text("main")
        assert not said
