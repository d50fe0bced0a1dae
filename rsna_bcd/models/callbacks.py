"""Lightning callbacks: EMA, checkpoints, early stopping, tables by epoch, progress, finite values.

`metrics.csv` and checkpoints do not depend on the clock, so that a resumed run equals a straight
one; `timings.csv` does.
"""

import csv
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
    Timer,
    WeightAveraging,
)
from pytorch_lightning.utilities import rank_zero_only
from rich.progress import ProgressColumn, Task
from rich.text import Text
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rsna_bcd.durations import seconds_left
from rsna_bcd.errors import InputError
from rsna_bcd.files import atomic_file
from rsna_bcd.models.prediction import Batch

TIMING_COLUMNS = ("epoch", "images", "seconds", "images_per_second", "data_wait", "peak_gpu_gb")
_PENDING = 50  # steps between two looks at the losses on a GPU, each of which waits for it
_SHOWN = 3  # tensors named in a message


def is_cut(trainer: pl.Trainer) -> bool:
    """Whether max_steps or max_time end training here, in the middle of an epoch."""
    over = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return not trainer.is_last_batch and (over or trainer.should_stop)


class EMA(WeightAveraging):
    """Exponential moving average of weights and buffers, updated at each optimizer step.

    It is validated, and saved as `state_dict`; the trained weights are `current_model_state`. Until
    it starts it is a copy of them: Lightning's `EMAWeightAveraging` would validate and save the
    weights of before the first step.

    Args:
        decay: share of the old average at each step; None averages nothing.
        start: optimizer step at which the average starts, as a copy of the weights.
    """

    state_key = "Average"  # as in existing checkpoints

    def __init__(self, decay: float | None, start: int = 0) -> None:
        # All tensors at once; an average of equal values is that value, digit for digit.
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(0.0 if decay is None else decay))
        self._is_on = decay is not None
        self._start = start

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the average has started."""
        return self._is_on and step_idx is not None and step_idx >= self._start

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the module to the training device; it has not been moved there yet."""
        if self._is_on:
            self._device = trainer.strategy.root_device
            super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average."""
        self._copy_until_started(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average in the place of the weights."""
        if self._average_model is not None:
            self._copy_until_started(pl_module)
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore both."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average in the module."""
        if self._average_model is not None:
            self._copy_until_started(pl_module)
            super().on_train_end(trainer, pl_module)

    def _copy_until_started(self, pl_module: pl.LightningModule) -> None:
        average = self._average_model
        if average is not None and average.n_averaged == 0:
            average.module.load_state_dict(pl_module.state_dict())


class _EpochCheckpoint(ModelCheckpoint):
    """Saves whole epochs only, so that a resumed run equals a straight one."""

    def _should_skip_saving_checkpoint(self, trainer: pl.Trainer) -> bool:
        return super()._should_skip_saving_checkpoint(trainer) or is_cut(trainer)

    @property
    def state_key(self) -> str:
        """Name of its state in a checkpoint: that of Lightning's class."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)


class LastCheckpoint(_EpochCheckpoint):
    """Saves `last.ckpt` after each epoch.

    Args:
        dirpath: the folder of the checkpoints.
        every_n_epochs: epochs between two checkpoints: a run is resumed from the last one.
    """

    def __init__(self, dirpath: str, every_n_epochs: int = 1) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="last",
            every_n_epochs=every_n_epochs,
            save_on_train_epoch_end=True,  # whole epochs, also where there is no validation
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing: its state is the path of a file, which may have moved."""


class BestCheckpoint(_EpochCheckpoint):
    """Saves `best.ckpt` after each validation with the best AUROC so far.

    Args:
        dirpath: the folder of the checkpoints.
        select: `best` if the run keeps this epoch, so that its file must be there to resume.
    """

    def __init__(self, dirpath: str, select: str = "last") -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor="auroc",
            mode="max",
            save_on_train_epoch_end=False,  # after validation; never, where there is none
            enable_version_counter=False,
        )
        self._select = select

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score; Lightning does only if the folder is still where it was.

        Raises:
            InputError: there was a best epoch, the run keeps it, and its file is gone.
        """
        score = state_dict["best_model_score"]
        if score is None:
            return
        assert self.dirpath is not None
        file = Path(self.dirpath) / "best.ckpt"
        if file.is_file():
            self.best_model_score = self.kth_value = score
            self.best_model_path = self.kth_best_model_path = str(file)
            self.best_k_models = {str(file): score}
        elif self._select == "best":
            raise InputError(
                f"{file} is absent, the best epoch so far, which select=best keeps. Copy it from "
                "where the run began, or train again with overwrite=true."
            )


class Patience(EarlyStopping):
    """Ends training when the held-out AUROC has not improved for some epochs.

    Args:
        epochs: how many; None trains to the end.
    """

    def __init__(self, epochs: int | None) -> None:
        super().__init__(
            monitor="auroc",
            mode="max",
            patience=sys.maxsize if epochs is None else epochs,
            check_finite=False,  # an undefined AUROC is no improvement
            check_on_train_epoch_end=False,
        )

    @property
    def is_exhausted(self) -> bool:
        """Whether it has ended training."""
        return self.wait_count >= self.patience

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End at once if it had ended the run that is resumed."""
        trainer.should_stop = trainer.should_stop or self.is_exhausted


class ConfigInCheckpoint(pl.Callback):
    """Saves the record of the run in every checkpoint, as `config`.

    Args:
        record: plain dicts, lists, strings and numbers.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self._record = record

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the record. The timer is left out: trainer.max_time starts again on resume."""
        checkpoint["config"] = self._record
        checkpoint["callbacks"].pop("Timer", None)


class FiniteGuard(pl.Callback):
    """Ends training at the first loss or weight that is not finite, before it is saved.

    Losses are checked after each step on a CPU and every 50 steps on a GPU, where each look waits
    for it; weights and buffers before validation and after each epoch.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[torch.Tensor, int]] = []  # a loss, and its step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the initial weights."""
        if broken := non_finite(pl_module.state_dict()):
            raise InputError(
                f"Training would start from weights that are not finite: {_list_names(broken)}. "
                "Choose another checkpoint_path=, or train again with overwrite=true."
            )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Keep the loss of a step."""
        steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        step = trainer.global_step + (0 if steps else 1)
        self._pending.append((outputs["loss"].detach(), step))
        if pl_module.device.type == "cpu" or len(self._pending) >= _PENDING:
            self._check_losses(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check losses and weights before they are scored and saved as the best."""
        self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check losses and weights before they are saved as the last."""
        self._check(trainer, pl_module)

    def _check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_losses(trainer)
        if broken := non_finite(pl_module.state_dict()):
            self._stop(
                trainer, f"Weights are not finite ({_list_names(broken)})", trainer.global_step
            )

    def _check_losses(self, trainer: pl.Trainer) -> None:
        if not self._pending:
            return
        losses = torch.stack([loss.float() for loss, _ in self._pending]).tolist()
        steps = [step for _, step in self._pending]
        self._pending.clear()
        for loss, step in zip(losses, steps, strict=True):
            if not abs(loss) < float("inf"):
                self._stop(trainer, f"The loss is {loss}", step)

    def _stop(self, trainer: pl.Trainer, problem: str, step: int) -> None:
        rate = max(group["initial_lr"] for group in trainer.optimizers[0].param_groups)
        remedies = [f"a lower learning_rate= (it is {rate:g})"]
        if trainer.gradient_clip_val is None:
            remedies.append("trainer.gradient_clip_val=1.0")
        if trainer.precision != "32-true":
            remedies.append(f"trainer.precision=32-true (it is {trainer.precision})")
        raise InputError(
            f"{problem} in epoch {trainer.current_epoch + 1}, step {step}: training has stopped, "
            f"and nothing of this epoch is kept. Train again with {' or '.join(remedies)}, and "
            "overwrite=true."
        )


def non_finite(state: dict[str, torch.Tensor]) -> list[str]:
    """Names of the floating-point tensors that hold an infinite value or NaN."""
    floating = {name: t for name, t in state.items() if t.is_floating_point()}
    if not floating:
        return []
    finite = torch.stack([t.isfinite().all() for t in floating.values()]).tolist()
    return [name for name, is_finite in zip(floating, finite, strict=True) if not is_finite]


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


@dataclass(frozen=True)
class Ending:
    """Why training ended.

    Attributes:
        is_finished: whether nothing of it is left to do.
        reason: one sentence.
    """

    is_finished: bool
    reason: str


def find_ending(trainer: pl.Trainer) -> Ending:
    """Find out why `trainer.fit` has returned."""
    cut = is_cut(trainer)
    callbacks: list[pl.Callback] = getattr(trainer, "callbacks", [])
    progress: Any = trainer.fit_loop.epoch_progress.current
    epochs = progress.processed - int(cut)
    of_all = f"{epochs} of {trainer.max_epochs} epochs"
    patience = next((c for c in callbacks if isinstance(c, Patience)), None)
    if not cut and epochs >= (trainer.max_epochs or 0):
        return Ending(True, f"Finished: {epochs} of {epochs} epochs trained.")
    if not cut and patience is not None and patience.is_exhausted:
        return Ending(
            True,
            f"Finished after {of_all}: no better AUROC for patience={patience.patience} "
            f"epochs (the best is {float(patience.best_score):.4f}).",
        )
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        limit = f"trainer.max_steps={trainer.max_steps}"
    elif any(isinstance(c, Timer) and (c.time_remaining() or 0) <= 0 for c in callbacks):
        limit = "trainer.max_time"
    else:
        limit = "a callback"
    return Ending(
        False,
        f"Not finished: {limit} ended training after {of_all}. Run it again without that "
        "limit, or with a larger one, to resume.",
    )


class History(pl.Callback):
    """Writes `metrics.csv`, one row per epoch, and prints each row.

    Lightning's CSV logger deletes the file when a run is resumed; here the rows of finished epochs
    stay.

    Args:
        file: the table to write.
    """

    def __init__(self, file: str | Path) -> None:
        self._file = Path(file)
        self._rows: list[dict[str, Any]] = []
        self._is_validated = False
        self._start = (0.0, 0)  # time and epoch at which this process began to train

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the rows of the epochs before the checkpoint."""
        self._rows = read_rows_before(self._file, trainer.current_epoch)
        self._start = (time.monotonic(), trainer.current_epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Expect a validation, which `check_val_every_n_epoch` may leave out."""
        self._is_validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that there are scores of this epoch."""
        self._is_validated = True

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add this epoch's row. An epoch that is cut has none: it is trained again."""
        if is_cut(trainer):
            return
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self._is_validated or name.startswith("train_")  # else of an earlier epoch
        }
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)  # the head's
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "learning_rate": rate}
        self._rows.append({**row, **metrics})
        write_rows(self._file, self._rows)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        done = trainer.current_epoch + 1
        left = format_time_left(*self._start, done, trainer.max_epochs or done)
        trainer.print(f"epoch {done}/{trainer.max_epochs}  {shown}{left and f'  {left} left'}")


def format_time_left(start: float, first: float, done: float, epochs: float) -> str:
    """Estimate the time until the last epoch ends, as h:mm:ss; "" if unknown.

    Args:
        start: when this process began to train, by `time.monotonic`.
        first: epochs that were done then.
        done: that are done now, with fractions.
        epochs: of the run.
    """
    left = seconds_left(time.monotonic() - start, done, first, epochs)
    return "" if left is None else str(timedelta(seconds=round(left)))


def read_rows_before(file: Path, epoch: int) -> list[dict[str, Any]]:
    """Read the rows of epochs before `epoch`, as text, so that they stay digit for digit."""
    if not epoch or not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as text:
        return [row for row in csv.DictReader(text) if int(row["epoch"]) < epoch]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write a table atomically, with the columns of all rows; a value that a row lacks is empty."""
    with atomic_file(file, "w", sync=True, newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(chain(*rows))))
        writer.writeheader()
        writer.writerows(rows)


class Throughput(pl.Callback):
    """Writes `timings.csv`, one row per epoch, and logs the same.

    `seconds` are those of training, without a validation in between. `data_wait` is the share of
    them between the end of a step and the start of the next, when the next batch is fetched and
    copied to the device. On a GPU both are measured by its own events. `images` are this rank's
    times the number of ranks. `peak_gpu_gb` is the most memory that torch had allocated on the
    first GPU; empty on a CPU. (Lightning's `ThroughputMonitor` knows neither wait nor memory.)

    Args:
        file: the table to write.
    """

    def __init__(self, file: str | Path) -> None:
        self._file = Path(file)
        self._rows: list[dict[str, Any]] = []
        self._images: Any = 0
        self._waits: list[tuple[Any, Any]] = []  # start and end
        self._steps: list[tuple[Any, Any]] = []
        self._last: Any = None  # end of the previous step; None after an interruption

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the rows of the epochs before the checkpoint."""
        self._rows = read_rows_before(self._file, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the counts."""
        self._images, self._waits, self._steps = 0, [], []
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._last = _timestamp(pl_module.device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """End a wait."""
        now = _timestamp(pl_module.device)
        if self._last is not None:
            self._waits.append((self._last, now))
        self._last = now

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Begin a wait."""
        now = _timestamp(pl_module.device)
        self._steps.append((self._last, now))
        self._last = now
        # A tensor: to read it here would wait for the GPU.
        self._images = self._images + (
            batch["mask"].sum() if "mask" in batch else len(batch["label"])
        )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The time of a validation is no wait for training data."""
        self._last = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add this epoch's row."""
        waited, worked = _total_seconds(self._waits), _total_seconds(self._steps)
        seconds = waited + worked
        images = int(self._images) * trainer.world_size
        peak: float | str = ""
        if pl_module.device.type == "cuda":
            peak = round(torch.cuda.max_memory_allocated(pl_module.device) / 1e9, 3)
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "images": images,
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 2),
            "data_wait": round(waited / seconds, 4),
            "peak_gpu_gb": peak,
        }
        self._rows.append(row)
        if trainer.is_global_zero:
            write_rows(self._file, self._rows)
        logged = {key: row[key] for key in TIMING_COLUMNS[3:] if row[key] != ""}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.global_step)


def _timestamp(device: torch.device) -> Any:
    """Now; on a GPU, an event at the end of the work in its queue."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _total_seconds(intervals: list[tuple[Any, Any]]) -> float:
    if intervals and not isinstance(intervals[-1][1], float):
        intervals[-1][1].synchronize()
        return sum(start.elapsed_time(end) for start, end in intervals) / 1000
    return sum(end - start for start, end in intervals)


class RunProgress(RichProgressBar):
    """Lightning's progress bar of an epoch, with the time left until the last epoch ends."""

    def __init__(self) -> None:
        super().__init__()
        self._start = (0.0, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = (time.monotonic(), trainer.current_epoch)
        super().on_train_start(trainer, pl_module)

    def configure_columns(self, trainer: pl.Trainer) -> list[Any]:
        """Lightning's columns, with another one of time."""
        columns = super().configure_columns(trainer)
        names = [type(column).__name__ for column in columns]
        columns[names.index("CustomTimeColumn")] = _RunTime(self, trainer)
        return columns

    def time_left(self, trainer: pl.Trainer) -> str:
        """Time left of the run; "" if unknown."""
        batches = trainer.num_training_batches
        if not (trainer.training or trainer.validating) or not trainer.max_epochs or not batches:
            return ""
        done = trainer.current_epoch + (trainer.fit_loop.batch_idx + 1) / batches
        return format_time_left(*self._start, done, trainer.max_epochs)


class _RunTime(ProgressColumn):
    """Time of the bar so far, and time left of the run."""

    max_refresh = 0.5

    def __init__(self, bar: RunProgress, trainer: pl.Trainer) -> None:
        super().__init__()
        self._bar = bar
        self._trainer = trainer

    def render(self, task: Task) -> Text:
        elapsed = timedelta(seconds=int(task.elapsed or 0))
        left = self._bar.time_left(self._trainer)
        return Text(f"{elapsed} • {left} left of the run" if left else str(elapsed))
