"""Progress of a training: one bar for all its epochs, or lines in the log."""

import math
import time
from typing import Any, ClassVar

import lightning as L

from ifam.progress import ProgressBar
from ifam.pulse import Pulse, say


class TrainingProgress(L.Callback):
    """One bar for all epochs, and a log line with the validation metrics of each.

    Args:
        label: Label of the bar.
    """

    # With more epochs than this, not every one is logged: none within ten seconds after another, except for the last.
    many: ClassVar[int] = 100

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: ProgressBar | None = None
        self.logged = -math.inf

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
            epochs, epoch, now = trainer.max_epochs or 1, trainer.current_epoch + 1, time.monotonic()
            if self.many < epochs != epoch and now - self.logged < Pulse.first:
                return
            self.logged = now
            metrics = trainer.callback_metrics
            note = ", ".join(
                f"{name} {float(metrics[key]):.1%}"
                for key, name in (("val/accuracy", "val accuracy"), ("val/worst_group", "worst group"))
                if key in metrics
            )
            alone = " (the selector alone)" if epoch <= getattr(pl_module, "selector_epochs", 0) else ""
            say(f"epoch {epoch} of {epochs}{alone}: {note}")

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
