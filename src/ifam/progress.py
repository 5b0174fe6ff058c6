"""Progress with rate and time left: a bar in a terminal, a line a minute in a log."""

import logging
import math
import time
from typing import Any, ClassVar

import lightning as L
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

logger = logging.getLogger(__name__)


class RateColumn(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        """The rate, once one is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


class ProgressBar(RichProgress):
    """A bar with count, rate, time gone and time left; where the output is not a terminal, lines in the log.

    Args:
        disable: Show and log nothing.
        console: Where the bar is drawn.
    """

    # Seconds before the first line in the log, and from one to the next.
    first: ClassVar[float] = 10.0
    interval: ClassVar[float] = 60.0

    def __init__(self, *, disable: bool = False, console: Console | None = None) -> None:
        self.silent = disable
        console = console or PlainConsole()
        self.in_terminal = console.is_terminal
        self.begun = time.monotonic()
        self.due = self.begun + self.first
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
            disable=disable or not self.in_terminal,
        )

    def advance(self, task_id: TaskID, advance: int | float = 1) -> None:
        """Some steps more."""
        super().advance(task_id, advance)
        self._log(task_id)

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """Other fields of a task; see rich."""
        super().update(task_id, **fields)
        self._log(task_id)

    def _log(self, task_id: TaskID) -> None:
        """Log how far a task is, if it is time to."""
        now = time.monotonic()
        if self.silent or self.in_terminal or now < self.due:
            return
        self.due = now + self.interval
        task = next(task for task in self.tasks if task.id == task_id)
        rate = task.completed / (now - self.begun)
        total = "" if task.total is None else f" of {task.total:.0f}"
        left = "" if task.total is None or not rate else f", {duration((task.total - task.completed) / rate)} left"
        logger.info("%s: %.0f%s, %s%s", task.description, task.completed, total, _per_time(rate), left)


def _per_time(rate: float) -> str:
    """A rate in steps a second, or a minute where it is slow."""
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min"


def duration(seconds: float) -> str:
    """A duration in words: "45 s", "12 min", "3.5 h"."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class Progress(L.Callback):
    """One bar for all epochs, and for each a line in the log with the validation figures.

    Args:
        label: What is under way.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: ProgressBar | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        if not trainer.is_global_zero:
            return
        self.bar = ProgressBar()
        self.task = self.bar.add_task(self.label, total=int(trainer.num_training_batches) * (trainer.max_epochs or 1))
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """One step more."""
        if self.bar is not None:
            self.bar.advance(self.task)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what validation found."""
        if self.bar is not None:
            metrics = trainer.callback_metrics
            note = ", ".join(
                f"{name} {float(metrics[key]):.1%}"
                for key, name in (("val/accuracy", "val accuracy"), ("val/worst_group", "worst group"))
                if key in metrics
            )
            logger.info("epoch %d of %d: %s", trainer.current_epoch + 1, trainer.max_epochs, note)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the error is readable."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
