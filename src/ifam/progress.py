"""Progress with rate and time left: a bar in a terminal or a notebook, a line per minute in a log."""

import os
import sys
import time
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from ifam.console import PlainConsole
from ifam.pulse import Pulse, described, under_way


class RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        """The rate, once one is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


def _shows_bars(console: Console) -> bool:
    """Whether a bar can be drawn again and again in its place."""
    if console.is_jupyter:
        # Without them, rich draws nothing.
        try:
            return bool(version("ipywidgets"))
        except PackageNotFoundError:
            return False
    # This variable is about colors, but rich takes what it is set for to be a terminal.
    forced = "FORCE_COLOR" in os.environ and not console.file.isatty()
    return console.is_terminal and not console.is_dumb_terminal and not forced


class ProgressBar(RichProgress):
    """A bar with count, rate, elapsed and remaining time, on standard error; where none can be drawn, lines in the log.

    Args:
        disable: Show and log nothing.
        console: Console of the bar.
    """

    def __init__(self, *, disable: bool = False, console: Console | None = None) -> None:
        console = console or PlainConsole(stderr=True)
        bars = _shows_bars(console)
        self.pulse = None if disable or bars else Pulse(self._described)
        self._under_way = ExitStack()
        # Start time of each task, and its progress then; the last one is the current task.
        self.begun: dict[TaskID, tuple[float, float]] = {}
        super().__init__(
            TextColumn("{task.description}", markup=False),
            # Narrow enough that rate and time left still fit into 80 columns.
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            # What is printed meanwhile goes above the bar, but not if it is to go to a file.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
            disable=disable or not bars,
        )

    def start(self) -> None:
        """Start the bar, or the log."""
        super().start()
        if self.pulse is not None or not self.disable:
            self._under_way.enter_context(under_way(self._described))
        if self.pulse is not None:
            self.pulse.start()

    def stop(self) -> None:
        """Stop the bar, or the log."""
        if self.console.is_jupyter:
            # There, rich leaves the bar as it was up to a tenth of a second before.
            self.refresh()
        super().stop()
        self._under_way.close()
        if self.pulse is not None:
            self.pulse.stop()

    def add_task(
        self,
        description: str,
        start: bool = True,
        total: int | float | None = 100.0,
        completed: int = 0,
        visible: bool = True,
        **fields: Any,
    ) -> TaskID:
        """Begin a task; see rich."""
        task_id = super().add_task(description, start, total, completed, visible, **fields)
        self.begun[task_id] = time.monotonic(), completed
        return task_id

    def remove_task(self, task_id: TaskID) -> None:
        """Remove a task; the previous one becomes current."""
        self.begun.pop(task_id)
        super().remove_task(task_id)

    def _described(self) -> str:
        """Progress of the current task as text."""
        task_id, (begun, before) = next(reversed(self.begun.items()), (None, (0.0, 0.0)))
        for task in self.tasks:
            if task.id == task_id:
                return described(task.description.strip(), task.completed, task.total, time.monotonic() - begun, before)
        return ""
