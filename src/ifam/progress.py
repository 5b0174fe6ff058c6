"""A progress bar over the whole training, with rate and time left."""

from typing import Any

import lightning as L
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text


class RateColumn(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        """The rate, once one is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


def progress_bar(**kwargs: Any) -> RichProgress:
    """A bar with count, rate, time gone and time left."""
    return RichProgress(
        TextColumn("{task.description}", markup=False),
        # Narrow enough that rate and time left still fit into 80 columns.
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        **kwargs,
    )


class Progress(L.Callback):
    """One bar for all epochs, and above it a line for each with the validation figures.

    Args:
        label: What is under way.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: RichProgress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        if not trainer.is_global_zero:
            return
        self.bar = progress_bar()
        self.task = self.bar.add_task(self.label, total=int(trainer.num_training_batches) * (trainer.max_epochs or 1))
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """One step more."""
        if self.bar is not None:
            self.bar.advance(self.task)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show what validation found."""
        if self.bar is not None:
            metrics = trainer.callback_metrics
            note = ", ".join(
                f"{name} {float(metrics[key]):.1%}"
                for key, name in (("val/accuracy", "val accuracy"), ("val/worst_group", "worst group"))
                if key in metrics
            )
            self.bar.console.print(
                f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {note}", highlight=False
            )

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
