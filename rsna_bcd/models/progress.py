"""The progress bar of training, with the time left of the whole run."""

import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from rich.progress import ProgressColumn, Task
from rich.text import Text

from rsna_bcd.models.history import time_left


class RunProgress(RichProgressBar):
    """Lightning's bar of an epoch, and beside it the time left until the last epoch ends."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = (0.0, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure."""
        self._begun = (time.monotonic(), trainer.current_epoch)
        super().on_train_start(trainer, pl_module)

    def configure_columns(self, trainer: pl.Trainer) -> list[Any]:
        """Lightning's columns, with another one of time."""
        columns = super().configure_columns(trainer)
        names = [type(column).__name__ for column in columns]
        columns[names.index("CustomTimeColumn")] = _RunTime(self, trainer)
        return columns

    def left(self, trainer: pl.Trainer) -> str:
        """Time left of the run; "" where it is not known."""
        batches = trainer.num_training_batches
        if not (trainer.training or trainer.validating) or not trainer.max_epochs or not batches:
            return ""
        done = trainer.current_epoch + (trainer.fit_loop.batch_idx + 1) / batches
        return time_left(*self._begun, done, trainer.max_epochs)


class _RunTime(ProgressColumn):
    """Time of the bar so far, and time left of the run."""

    max_refresh = 0.5

    def __init__(self, bar: RunProgress, trainer: pl.Trainer) -> None:
        super().__init__()
        self._bar = bar
        self._trainer = trainer

    def render(self, task: Task) -> Text:
        elapsed = timedelta(seconds=int(task.elapsed or 0))
        left = self._bar.left(self._trainer)
        return Text(f"{elapsed} • {left} left of the run" if left else str(elapsed))
