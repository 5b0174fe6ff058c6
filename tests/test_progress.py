"""Progress in a log: early, at least once a minute, with count, rate and time left."""

import io
import logging
import re
import time

import pytest

from ifam.config import ModelConfig, TrainConfig
from ifam.console import PlainConsole
from ifam.data import load_benchmark
from ifam.models.registry import build
from ifam.progress import ProgressBar
from ifam.pulse import Pulse, described, duration, progress, reported, still_working
from ifam.training.fit import fit


def log_bar():
    """A bar whose output is not a terminal."""
    return ProgressBar(console=PlainConsole(file=io.StringIO()))


def test_a_step_that_takes_long_is_no_reason_to_say_nothing(often):
    with log_bar() as bar:
        task = bar.add_task("reading [bold]x", total=3)
        time.sleep(0.1)
        silent = len(often.messages)
        bar.advance(task)
        time.sleep(0.1)
    assert silent >= 3
    assert len(often.messages) > silent
    assert re.fullmatch(r"reading \[bold\]x: 0 of 3, 0 s gone", often.messages[0])
    assert re.fullmatch(r"reading \[bold\]x: 1 of 3, [\d.]+/(s|min), \d+ s left", often.messages[-1])
    time.sleep(0.05)
    assert len(often.messages) == len(often.records)


def test_a_bar_of_several_tasks_is_about_the_last_of_them(often):
    """Its rate is not that of the time before it."""
    with log_bar() as bar:
        bar.advance(bar.add_task("first", total=1))
        time.sleep(0.3)
        task = bar.add_task("second", total=100, completed=50)
        time.sleep(0.1)
        bar.advance(task, 10)
        time.sleep(0.05)
        line = often.messages[-1]
        bar.remove_task(task)
        time.sleep(0.05)
    rate = float(re.fullmatch(r"second: 60 of 100, ([\d.]+)/s, \d+ s left", line)[1])
    assert 20 < rate < 100
    assert often.messages[-1].startswith("first: 1 of 1")


def test_work_without_a_bar_says_something_too(often):
    for seconds in reported(iter([0.05, 0.05]), "listing x"):
        time.sleep(seconds)
    assert len(often.messages) == 2
    assert re.fullmatch(r"listing x: 1, [\d.]+/s", often.messages[0])
    often.clear()
    assert list(reported([1, 2], "checking")) == [1, 2]
    assert re.fullmatch(r"checking: 1 of 2, [\d.]+/s, 0 s left", often.messages[0])


def test_a_short_run_and_one_that_is_silent_say_nothing(often, monkeypatch):
    with ProgressBar(disable=True, console=PlainConsole(file=io.StringIO())) as bar:
        bar.advance(bar.add_task("reading", total=2))
        time.sleep(0.05)
    monkeypatch.setattr(Pulse, "first", 10.0)
    with log_bar() as bar:
        bar.advance(bar.add_task("reading", total=2))
        time.sleep(0.05)
    assert not often.messages


def test_a_terminal_gets_a_bar_and_no_lines(often):
    screen = io.StringIO()
    with ProgressBar(console=PlainConsole(file=screen, force_terminal=True, width=100)) as bar:
        task = bar.add_task("reading", total=2)
        time.sleep(0.05)
        bar.advance(task)
        bar.refresh()
    assert "1/2" in screen.getvalue()
    assert not often.messages


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"FORCE_COLOR": "1"}])
def test_where_no_bar_can_be_drawn_again_there_are_lines(often, monkeypatch, environment):
    """A terminal that cannot move its cursor, and a file that is to have colors."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    file = io.StringIO()
    with ProgressBar(console=PlainConsole(file=file, force_terminal=True if "TERM" in environment else None)) as bar:
        bar.add_task("reading", total=2)
        time.sleep(0.05)
    assert "reading: 0 of 2" in often.messages[0]
    assert "\x1b" not in file.getvalue()


class ZMQInteractiveShell:
    """By whose name programs know that they run in a notebook."""


@pytest.mark.slow
def test_a_notebook_gets_plain_lines(often, monkeypatch, capsys):
    """Without the widgets of notebooks, and with a log that nobody has set up."""
    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    birds = load_benchmark("pondbirds", options={"num_train": 16, "num_val": 64, "num_test": 8})
    often.set_level(logging.WARNING, "ifam")
    often.clear()
    model = build("plain_vit", ModelConfig("ifam_tiny", image_size=40, num_classes=2))
    fit(model, birds, TrainConfig(1, 8, accelerator="cpu"), label="training on birds")
    assert list(reported([1, 2], "checking")) == [1, 2]
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert any(re.fullmatch(r"training on birds: \d of 2, .*", line) for line in lines)
    assert any(re.fullmatch(r"epoch 1 of 1: val accuracy [\d.]+%, worst group [\d.]+%", line) for line in lines)
    assert any(re.fullmatch(r"checking: 1 of 2, .*", line) for line in lines)
    assert "\x1b" not in said.out + said.err
    assert not often.messages


def test_what_is_printed_beside_a_bar_goes_where_it_was_to_go(capsys):
    """`ifam predict photos > rows.txt` in a terminal, whose bar is on standard error."""
    screen = io.StringIO()
    with ProgressBar(console=PlainConsole(file=screen, force_terminal=True, width=100)) as bar:
        bar.add_task("reading", total=2)
        print("a row")
    assert capsys.readouterr().out == "a row\n"
    assert "a row" not in screen.getvalue()


def test_work_that_nothing_else_describes_still_says_something(often):
    with still_working("ifam audit"):
        time.sleep(0.1)
        assert re.fullmatch(r"ifam audit: still working, \d s gone", often.messages[-1])
        with log_bar() as bar:
            bar.add_task("reading", total=2)
            often.clear()
            time.sleep(0.1)
            assert progress().startswith("reading: 0 of 2")
    assert {message.partition(":")[0] for message in often.messages[1:]} == {"reading"}
    assert progress() == ""


def test_what_is_under_way_is_the_innermost_work():
    for _ in reported([1], "outer", 3):
        assert progress().startswith("outer: 0 of 3")
        with ProgressBar(disable=True, console=PlainConsole(file=io.StringIO())) as silent:
            silent.add_task("inner", total=2)
            assert progress().startswith("outer")
        with log_bar() as bar:
            bar.add_task("inner", total=2)
            assert progress().startswith("inner: 0 of 2")
    assert progress() == ""


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ((120, 400, 60.0), "x: 120 of 400, 2.0/s, 2 min left"),
        ((30, None, 60.0), "x: 30, 30.0/min"),
        ((0, 400, 10.0), "x: 0 of 400, 10 s gone"),
        # What was done before, by an earlier command, does not count for the rate.
        ((220, 400, 60.0, 100), "x: 220 of 400, 2.0/s, 2 min left"),
    ],
)
def test_lines(given, line):
    assert described("x", *given) == line


@pytest.mark.parametrize(
    ("seconds", "words"), [(5.0, "5 s"), (90.0, "2 min"), (5400.0, "1.5 h"), (float("inf"), "unknown time")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words
