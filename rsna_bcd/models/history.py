"""What a run leaves behind while it trains: `metrics.csv`, and its settings in the checkpoints."""

import csv
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only


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

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the rows of the epochs that the checkpoint has seen."""
        self._rows = kept_rows(self._file, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for this epoch's validation, which `check_val_every_n_epoch` may leave out."""
        self._is_validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that there are scores of this epoch."""
        self._is_validated = True

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add this epoch's row."""
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
        trainer.print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {shown}")


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
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.part")
    with unfinished.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(chain(*rows))))
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(file)


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
        """Add the settings to what Lightning saves."""
        checkpoint["config"] = self._record
