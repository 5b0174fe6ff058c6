"""Progress in a log: early, at least once a minute, with count, rate and time left."""

import io
import logging

import pytest

from ifam import progress
from ifam.console import PlainConsole
from ifam.progress import ProgressBar, duration


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def run(clock, steps, seconds, caplog, **kwargs):
    """What is logged while so many steps are taken, each of so many seconds."""
    caplog.set_level(logging.INFO, "ifam")
    with ProgressBar(console=PlainConsole(file=io.StringIO()), **kwargs) as bar:
        task = bar.add_task("reading [bold]x", total=steps)
        for _ in range(steps):
            clock.now += seconds
            bar.advance(task)
    return [record.getMessage() for record in caplog.records]


def test_a_long_run_says_something_once_a_minute(clock, caplog):
    lines = run(clock, 100, 2.0, caplog)
    assert lines == [
        "reading [bold]x: 5 of 100, 30.0/min, 190 s left".replace("190 s", "3 min"),
        "reading [bold]x: 35 of 100, 30.0/min, 2 min left",
        "reading [bold]x: 65 of 100, 30.0/min, 70 s left",
        "reading [bold]x: 95 of 100, 30.0/min, 10 s left",
    ]


def test_a_short_run_says_nothing(clock, caplog):
    assert run(clock, 9, 1.0, caplog) == []


def test_what_is_silent_says_nothing(clock, caplog):
    assert run(clock, 100, 2.0, caplog, disable=True) == []


def test_a_terminal_gets_a_bar_and_no_lines(clock, caplog):
    screen = io.StringIO()
    caplog.set_level(logging.INFO, "ifam")
    with ProgressBar(console=PlainConsole(file=screen, force_terminal=True, width=100)) as bar:
        task = bar.add_task("reading", total=2)
        clock.now += 500
        bar.advance(task)
        bar.refresh()
    assert "1/2" in screen.getvalue()
    assert not caplog.records


@pytest.mark.parametrize(
    ("seconds", "words"), [(5.0, "5 s"), (90.0, "2 min"), (5400.0, "1.5 h"), (float("inf"), "unknown time")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words
