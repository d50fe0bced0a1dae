"""What a run leaves behind while it trains: `metrics.csv`, and its settings in the checkpoints."""

import csv
import time
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from rsna_bcd.files import atomic_file
from rsna_bcd.models.checkpoints import is_cut


class History(pl.Callback):
    """One row of `metrics.csv` an epoch, and one line on the screen.

    Lightning's own CSV logger deletes the file when a run is resumed; here the rows of finished
    epochs stay.

    Args:
        file: the table to write.
    """

    def __init__(self, file: str | Path) -> None:
        self._file = Path(file)
        self._rows: list[dict[str, Any]] = []
        self._is_validated = False
        self._begun = (0.0, 0)  # when this process began to train, and with which epoch

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the rows of the epochs that the checkpoint has seen."""
        self._rows = kept_rows(self._file, trainer.current_epoch)
        self._begun = (time.monotonic(), trainer.current_epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for this epoch's validation, which `check_val_every_n_epoch` may leave out."""
        self._is_validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that there are scores of this epoch."""
        self._is_validated = True

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add this epoch's row; an epoch that is cut is trained again and has none yet."""
        if is_cut(trainer):
            return
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self._is_validated or name.startswith("train_")  # else it is of an earlier epoch
        }
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)  # the head's
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "learning_rate": rate}
        self._rows.append({**row, **metrics})
        write_rows(self._file, self._rows)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        done = trainer.current_epoch + 1
        left = time_left(*self._begun, done, trainer.max_epochs or done)
        trainer.print(f"epoch {done}/{trainer.max_epochs}  {shown}{left and f'  {left} left'}")


def time_left(begun: float, first: float, done: float, epochs: float) -> str:
    """Time that the rest of a run takes if its epochs stay as long, as h:mm:ss; "" if none is left.

    Args:
        begun: when this process began to train, by `time.monotonic`.
        first: epochs that were done then.
        done: that are done now, with fractions.
        epochs: of the run.
    """
    if not first < done < epochs:
        return ""
    seconds = (time.monotonic() - begun) * (epochs - done) / (done - first)
    return str(timedelta(seconds=round(seconds)))


def kept_rows(file: Path, epoch: int) -> list[dict[str, Any]]:
    """The rows of a table by epoch that a run resumed at `epoch` keeps, as text.

    As text, so that they stay digit for digit.
    """
    if not epoch or not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as text:
        return [row for row in csv.DictReader(text) if int(row["epoch"]) < epoch]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write a table by epoch; the file is either the new one or the one before.

    Columns are those of any row; where a row lacks one, its field is empty.
    """
    with atomic_file(file, "w", sync=True, newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(chain(*rows))))
        writer.writeheader()
        writer.writerows(rows)


class Record(pl.Callback):
    """Embeds the run's settings in every checkpoint, as `config`.

    Args:
        record: plain dicts, lists, strings and numbers.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self._record = record

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the settings to what Lightning saves; trainer.max_time begins anew when resumed."""
        checkpoint["config"] = self._record
        checkpoint["callbacks"].pop("Timer", None)
