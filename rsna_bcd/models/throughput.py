"""How fast a run trains, and what it waits for: `timings.csv`.

Nothing else that a run leaves depends on the clock, so that a resumed run equals a straight one.
"""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from rsna_bcd.models.history import kept_rows, write_rows
from rsna_bcd.models.prediction import Batch

COLUMNS = ("epoch", "images", "seconds", "images_per_second", "data_wait", "peak_gpu_gb")


class Throughput(pl.Callback):
    """One row of `timings.csv` an epoch, and the same to the loggers.

    `seconds` are those of training, from the start of the epoch to the end of its last step, less
    a validation in between; `data_wait` is the share of them between the end of a step and the
    start of the next, when the next batch is fetched and copied to the device. On a GPU both are
    measured on the GPU itself: while it is still at work, the process waits for nothing.
    `images` are this rank's, times the number of ranks. `peak_gpu_gb` is the most memory that
    torch had allocated on the first GPU; empty on a processor.

    Args:
        file: the table to write.
    """

    def __init__(self, file: str | Path) -> None:
        self._file = Path(file)
        self._rows: list[dict[str, Any]] = []
        self._images: Any = 0
        self._waits: list[tuple[Any, Any]] = []  # moments between which a batch was waited for
        self._steps: list[tuple[Any, Any]] = []
        self._last: Any = None  # the end of the step before; None after an interruption

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the rows of the epochs that the checkpoint has seen."""
        self._rows = kept_rows(self._file, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self._images, self._waits, self._steps = 0, [], []
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._last = _moment(pl_module.device)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """End a wait."""
        now = _moment(pl_module.device)
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
        now = _moment(pl_module.device)
        self._steps.append((self._last, now))
        self._last = now
        # As a tensor, for reading it would make the process wait for the GPU.
        self._images = self._images + (
            batch["mask"].sum() if "mask" in batch else len(batch["label"])
        )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What follows is no wait for training data."""
        self._last = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add this epoch's row."""
        waited, worked = _seconds(self._waits), _seconds(self._steps)
        seconds = waited + worked
        images = int(self._images) * trainer.world_size
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "images": images,
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 2),
            "data_wait": round(waited / seconds, 4),
            "peak_gpu_gb": _peak(pl_module.device),
        }
        self._write(row)
        logged = {key: row[key] for key in COLUMNS[3:] if row[key] != ""}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.global_step)

    @rank_zero_only
    def _write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        write_rows(self._file, self._rows)


def _moment(device: torch.device) -> Any:
    """Now; on a GPU, when it has done what it was given so far."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(intervals: list[tuple[Any, Any]]) -> float:
    """The sum of intervals between moments."""
    if intervals and not isinstance(intervals[-1][1], float):
        intervals[-1][1].synchronize()
        return sum(start.elapsed_time(end) for start, end in intervals) / 1000
    return sum(end - start for start, end in intervals)


def _peak(device: torch.device) -> float | str:
    if device.type != "cuda":
        return ""
    return round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
