"""Runs that are asked to end: one sentence, the status of the signal, and nothing that looks finished."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ifam.cli import main as cli
from ifam.interruption import SIGNALS, Interrupted, deferred, follow_parent, handlers, interruptible
from programs import Program

QUICK = [
    *("--model.backbone", "ifam_tiny", "--model.image_size", "40", "--train.batch_size", "16"),
    *("--data.num_train", "64", "--data.num_val", "8", "--data.num_test", "8"),
]


# Exit status by signal; SIGUSR1 is a batch system's warning that SIGTERM will come.
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_are_exceptions_inside_and_what_they_were_outside(number):
    before = handlers()

    def wait():
        with interruptible():
            os.kill(os.getpid(), number)
            time.sleep(5)

    with pytest.raises(Interrupted) as caught:
        wait()
    assert caught.value.exit_status == STATUS[number]
    assert handlers() == before


def test_a_deferred_signal_is_a_request_and_then_an_exception():
    done = []

    def work():
        with interruptible(), deferred() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            done.append(stop.number)

    with pytest.raises(Interrupted) as caught:
        work()
    assert done == [signal.SIGUSR1]
    assert caught.value.number == signal.SIGUSR1


def test_a_second_signal_does_not_wait(monkeypatch):
    monkeypatch.setattr("ifam.interruption._REPEATED", 0.0)

    def work():
        with interruptible(), deferred():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(Interrupted) as caught:
        work()
    assert caught.value.number == signal.SIGTERM


def test_deferral_changes_nothing_elsewhere():
    """Python's own handling of Ctrl-C, where no verb runs."""

    def work():
        with deferred():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before)


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


def test_a_signal_that_is_repeated_at_once_is_one_request():
    """`timeout` and batch systems send one to the process and another to its group."""
    done = []

    def stop():
        with interruptible():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("cleaned up")

    with pytest.raises(Interrupted):
        stop()
    assert done == ["cleaned up"]


def test_an_error_while_ending_does_not_hide_the_signal():
    def stop():
        with interruptible():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                raise RuntimeError("a worker is gone")

    with pytest.raises(Interrupted):
        stop()


def test_threads_say_nothing_once_the_process_is_asked_to_end(capsys):
    """A logger's thread may write into a folder that the end has removed."""

    def fail():
        raise FileNotFoundError("the folder of the logs")

    def stop():
        with interruptible():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                thread = threading.Thread(target=fail)
                thread.start()
                thread.join()

    before = threading.excepthook
    with pytest.raises(Interrupted):
        stop()
    assert threading.excepthook is before
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_forks_of_the_process_leave_the_end_to_it():
    """Processes that load images get the signal of a terminal too."""
    with interruptible():
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGINT)
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_processes_that_load_images_outlive_a_signal_to_their_group():
    """Their parent finishes its step, and ends them."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            follow_parent()
            for number in SIGNALS:
                os.kill(os.getpid(), number)
            # Not for good: a worker that hangs must end.
            os._exit(7 if 0 < signal.alarm(0) <= 30 else 1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize("number", SIGNALS)
def test_the_sentence_and_the_status(number, capsys, monkeypatch, tmp_path):
    """The verb is replaced by one that is asked to end at once."""

    def verb(**settings):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.chdir(tmp_path)
    parsed = cli.parse(["evaluate"])
    monkeypatch.setattr(cli, "parse", lambda args: parsed)
    monkeypatch.setitem(cli.VERBS, "evaluate", verb)
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate"])
    assert caught.value.code == STATUS[number]
    name = signal.Signals(number).name
    assert capsys.readouterr().err == f"ifam: Stopped by {name}: nothing was written; the same command starts over.\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="systems without fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_loader_that_does_not_answer_ends_when_its_parent_has_waited():
    """Its group was interrupted before, so that the later signal is its parent's."""
    child = os.fork()
    if child == 0:
        follow_parent()
        while True:
            time.sleep(60)
    time.sleep(0.5)
    started = time.monotonic()
    os.kill(child, signal.SIGINT)
    time.sleep(2.2)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert time.monotonic() - started < 10


def installed(words):
    """The installed program, in a session of its own."""
    words = [sys.executable, "-m", "ifam.cli", *map(str, words)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def ended(words, number, seen, *, group=False, times=1):
    """Status, error output and last seconds of a command that gets a signal as soon as something is seen."""
    # Lightning starts the installed program again for another device.
    with installed(words) if "--train.devices" in words else Program(*words) as program:
        until = time.monotonic() + 100
        while not seen() and program.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        asked = time.monotonic()
        for _ in range(times):
            (os.killpg if group else os.kill)(program.pid, number)
            time.sleep(0.2)
        out, said = program.communicate()
    assert "Traceback" not in said + out
    return program.returncode, said.splitlines(), time.monotonic() - asked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "options", "how"),
    [
        # As from a terminal, by somebody impatient.
        (signal.SIGINT, ["--train.workers", "2"], {"group": True, "times": 3}),
        # As from a batch system, before the end and at it.
        (signal.SIGUSR1, ["--train.workers", "1"], {"group": True}),
        (signal.SIGTERM, ["--train.workers", "1"], {"group": True}),
        # As from one that knows one process.
        (signal.SIGTERM, ["--train.devices", "2", "--train.accelerator", "cpu"], {}),
    ],
)
def test_a_training_that_is_stopped_does_not_look_finished(number, options, how, tmp_path):
    out = tmp_path / "run"
    last = out / "checkpoints" / "last.ckpt"
    status, said, seconds = ended(
        ["train", *QUICK, *options, "--train.epochs", 1000, "--out", out], number, last.exists, **how
    )
    assert status == STATUS[number]
    # After as long, a process gives up waiting for another one.
    assert seconds < 10
    assert said[-1] == (
        f"ifam: Stopped by {signal.Signals(number).name}: the training is saved in {last}, and "
        f"`ifam train --out {out} --resume` goes on."
    )
    assert sum("Stopped" in line for line in said) == 1
    assert not (out / "config.json").exists()
    assert not (out / "results.json").exists()
    assert last.exists()


@pytest.mark.slow
def test_a_comparison_that_is_stopped_keeps_its_runs(tmp_path):
    rows = {"quick": {"method": "plain_vit", "train": {"epochs": 1}}, "endless": {"method": "plain_vit"}}
    (tmp_path / "rows.yaml").write_text(json.dumps({"methods": rows}), encoding="utf-8")
    out, runs = tmp_path / "out", tmp_path / "out" / "runs.jsonl"
    trainings = set()

    def second_is_saved():
        trainings.update(file.parts[-3] for file in out.glob("unfinished/*/checkpoints/last.ckpt"))
        return len(trainings) == 2

    words = ["compare", "--config", tmp_path / "rows.yaml", *QUICK, "--train.epochs", 1000, "--num_resamples", 0]
    status, said, _ = ended([*words, "--out", out], signal.SIGTERM, second_is_saved)
    assert status == 143
    assert said[-1] == (
        f"ifam: Stopped by SIGTERM: runs that were done are kept in {runs}, and the same command continues with the "
        "others, the first of them where it was stopped."
    )
    assert len(runs.read_text(encoding="utf-8").splitlines()) == 1
    assert not (out / "compare.json").exists()
