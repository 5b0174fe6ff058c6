"""Progress with rate and time left: a bar in a terminal, a line per minute in a log."""

import logging
import sys
import time
from typing import Any

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
from ifam.pulse import Pulse, described

logger = logging.getLogger(__name__)


class RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        """The rate, once one is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


class ProgressBar(RichProgress):
    """A bar with count, rate, elapsed and remaining time; where the output is not a terminal, lines in the log.

    Args:
        disable: Show and log nothing.
        console: Console of the bar.
    """

    def __init__(self, *, disable: bool = False, console: Console | None = None) -> None:
        console = console or PlainConsole()
        self.pulse = None if disable or console.is_terminal else Pulse(self._described)
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
            # What is printed goes above the bar, on its console: not where it is to go to a file.
            redirect_stdout=sys.stdout.isatty(),
            disable=disable or not console.is_terminal,
        )

    def start(self) -> None:
        """Start the bar, or the log."""
        super().start()
        if self.pulse is not None:
            self.pulse.start()

    def stop(self) -> None:
        """Stop the bar, or the log."""
        super().stop()
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


class Progress(L.Callback):
    """One bar for all epochs, and a log line with the validation metrics of each.

    Args:
        label: Label of the bar.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: ProgressBar | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        if not trainer.is_global_zero:
            return
        self.bar = ProgressBar()
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        self.task = self.bar.add_task(self.label, total=total, completed=trainer.fit_loop.total_batch_idx + 1)
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Advance by one step."""
        if self.bar is not None:
            self.bar.advance(self.task)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add a bar for validation."""
        if self.bar is not None:
            label, total = f"validation of epoch {trainer.current_epoch + 1}", sum(trainer.num_val_batches)
            self.validation = self.bar.add_task(label, total=total)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Advance validation by one batch."""
        if self.bar is not None:
            self.bar.advance(self.validation)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the validation metrics."""
        if self.bar is not None:
            self.bar.remove_task(self.validation)
            metrics = trainer.callback_metrics
            note = ", ".join(
                f"{name} {float(metrics[key]):.1%}"
                for key, name in (("val/accuracy", "val accuracy"), ("val/worst_group", "worst group"))
                if key in metrics
            )
            epoch = trainer.current_epoch
            alone = " (the selector alone)" if epoch < getattr(pl_module, "selector_epochs", 0) else ""
            logger.info("epoch %d of %d%s: %s", epoch + 1, trainer.max_epochs, alone, note)

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
