"""Runs that are asked to end: one sentence, the status of the signal, and nothing that looks finished."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from ifam.cli import main
from ifam.interruption import Interrupted, handlers, interruptible

QUICK = ["--model.backbone", "ifam_tiny", "--train.batch_size", "16", "--data.num_train", "64", "--data.num_val", "8"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_exceptions_inside_and_what_they_were_outside(number):
    before = handlers()

    def wait():
        with interruptible():
            os.kill(os.getpid(), number)
            time.sleep(5)

    with pytest.raises(Interrupted) as caught:
        wait()
    assert caught.value.exit_status == 128 + number
    assert handlers() == before


def test_other_threads_are_left_alone():
    errors = []

    def work():
        try:
            with interruptible():
                assert handlers() == {}
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["train"], r"there is no model yet, and no epoch was finished; the same command starts over"),
        (["compare"], r"are kept in runs/compare/runs\.jsonl, and the same command goes on with the others"),
        (["predict", "x.png"], r"are kept in predictions/predictions\.csv; the same command starts over"),
        (["evaluate"], "nothing was written; the same command starts over"),
    ],
)
def test_what_is_left_is_said_in_one_sentence(words, left, number, capsys, monkeypatch, tmp_path):
    """The verb is replaced by one that is asked to end at once."""

    def verb(**settings):
        os.kill(os.getpid(), number)
        time.sleep(5)

    from ifam import cli

    original = cli.VERBS[words[0]]
    verb.__doc__, verb.__signature__ = original.__doc__, cli.signature(original)
    monkeypatch.chdir(tmp_path)
    parsed = cli.parse(words)
    monkeypatch.setattr(cli, "parse", lambda args: parsed)
    monkeypatch.setitem(cli.VERBS, words[0], verb)
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 128 + number
    said = capsys.readouterr().err
    assert re.fullmatch(rf"ifam: Stopped by {signal.Signals(number).name}: .*{left}\.\n", said)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_stopped_does_not_look_finished(number, tmp_path):
    out = tmp_path / "run"
    words = [sys.executable, "-m", "ifam.cli", "train", *QUICK, "--train.epochs", "1000", "--out", str(out)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 100
        while not (out / "checkpoints" / "last.ckpt").exists() and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(number)
        out_text, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    last = said.splitlines()[-1]
    assert last.startswith(f"ifam: Stopped by {signal.Signals(number).name}: there is no model yet, and the weights of")
    assert "Traceback" not in said + out_text
    assert not (out / "config.json").exists()
    assert not (out / "results.json").exists()
    assert (out / "checkpoints" / "last.ckpt").exists()
