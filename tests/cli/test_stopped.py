"""What is left of a command that a signal has ended: the sentence is true, whenever the signal came."""

import os
import time
from pathlib import Path

import pytest

from ifam.cli.stopped import what_is_left

NOTHING = "nothing was written; the same command starts over"


def touch(path: Path, age: float = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\n", encoding="utf-8")
    os.utime(path, (time.time() - age,) * 2)


@pytest.mark.parametrize("earlier", [0, 100])
def test_training(tmp_path, earlier):
    """At every moment: before the first epoch, after it, with the model, and with its results."""
    settings = {"out": tmp_path / "run", "method": "ifam"}
    started = time.time()
    last = settings["out"] / "checkpoints" / "last.ckpt"
    if earlier:
        # Of a training before this one.
        touch(last, earlier)
    assert what_is_left("train", settings, started) == (
        "there is no model yet, and no step was finished; the same command starts over"
    )
    goes_on = f"the training is saved in {last}, and `ifam train --out {settings['out']} --resume` goes on"
    if earlier:
        # It was gone on with, and stopped before the next checkpoint.
        assert what_is_left("train", {**settings, "resume": True}, started) == goes_on
    touch(last)
    assert what_is_left("train", settings, started) == goes_on
    touch(settings["out"] / "config.json")
    assert what_is_left("train", settings, started) == (
        f"the model is in {settings['out']}, but was not evaluated; `ifam evaluate --model {settings['out']}` does it"
    )
    touch(settings["out"] / "results.json")
    assert what_is_left("train", settings, started) == f"the model and its results are in {settings['out']}"


def test_a_model_that_a_training_was_to_replace(tmp_path):
    touch(tmp_path / "config.json", 100)
    left = what_is_left("train", {"out": tmp_path, "method": "ifam"}, time.time())
    assert left == f"the earlier model in {tmp_path} is as it was; the same command starts over"


def test_the_folder_of_a_method():
    assert "no step was finished" in what_is_left("train", {"out": None, "method": "never"}, time.time())


def test_last_layer_fitted_again(tmp_path):
    settings, started = {"out": tmp_path}, time.time()
    assert what_is_left("retrain", settings, started) == NOTHING
    touch(tmp_path / "config.json")
    assert "but was not evaluated" in what_is_left("retrain", settings, started)


@pytest.mark.parametrize("verb", ["compare", "demo"])
def test_runs_of_a_comparison(tmp_path, verb):
    settings, runs = {"out": tmp_path}, tmp_path / "runs.jsonl"
    runs.touch()
    assert what_is_left(verb, settings, time.time()) == "no run was finished; the same command starts over"
    last = tmp_path / "unfinished" / "ifam-0" / "checkpoints" / "last.ckpt"
    touch(last)
    assert what_is_left(verb, settings, time.time()) == (
        f"no run was finished, and the same command goes on with the first one, which is saved in {tmp_path}"
    )
    touch(runs, 100)
    assert what_is_left(verb, settings, time.time()) == (
        f"runs that were done are kept in {runs}, and the same command continues with the others, the first of them "
        f"where it was stopped"
    )
    last.unlink()
    assert what_is_left(verb, settings, time.time()) == (
        f"runs that were done are kept in {runs}, and the same command continues with the others"
    )


def test_the_journal_of_a_challenge(tmp_path):
    settings = {"out": None, "model": str(tmp_path), "overwrite": False}
    assert what_is_left("challenge", settings, time.time()) == NOTHING
    journal = tmp_path / "challenge" / "challenge.jsonl"
    touch(journal)
    assert what_is_left("challenge", settings, time.time()) == (
        f"what was done is kept in {journal}, and the same command continues with the rest"
    )
    settings["overwrite"] = True
    assert "the same command without --overwrite continues" in what_is_left("challenge", settings, time.time())


@pytest.mark.parametrize(
    ("out", "written"), [("", "predictions.csv"), ("out.csv", "out.csv"), ("out.parquet", "out.parquet.jsonl")]
)
def test_rows_of_predictions(tmp_path, out, written):
    settings, started, file = {"out": tmp_path / out}, time.time(), tmp_path / written
    touch(file, 100)
    assert what_is_left("predict", settings, started) == NOTHING
    touch(file)
    assert what_is_left("predict", settings, started) == (
        f"rows of images that were done are kept in {file}, and the same command with --resume does the others"
    )


@pytest.mark.parametrize("verb", ["", "evaluate", "audit", "thresholds", "report", "convert"])
def test_verbs_that_write_at_the_end(verb):
    assert what_is_left(verb, {}, time.time()) == NOTHING


def test_images_of_a_benchmark(tmp_path):
    settings = {"out": tmp_path / "out"}
    assert what_is_left("prepare", settings, time.time()) == NOTHING
    touch(settings["out"] / "cutouts.json")
    assert what_is_left("prepare", settings, time.time()) == (
        f"images that were drawn are kept in {tmp_path / 'out'}, and the same command continues with the rest"
    )
