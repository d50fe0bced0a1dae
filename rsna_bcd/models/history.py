"""What a run leaves behind while it trains: `metrics.csv`, and its settings in the checkpoints."""

import csv
import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
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

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the rows of the epochs that the checkpoint has seen."""
        self._rows = []
        if trainer.current_epoch and self._file.exists():
            with self._file.open(newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)  # as text, so that they stay digit for digit
                self._rows = [row for row in rows if int(row["epoch"]) < trainer.current_epoch]

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add this epoch's row."""
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "learning_rate": rate}
        self._rows.append({**row, **metrics})
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self._rows[-1]))
            writer.writeheader()
            writer.writerows(self._rows)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        trainer.print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {shown}")


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


def wandb_logger(project: str, name: str, folder: str | Path) -> WandbLogger:
    """Log to Weights & Biases, offline where nobody is logged in.

    Args:
        project: in W&B.
        name: of the run.
        folder: where the run's files go, under `wandb/`.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    return WandbLogger(project=project, name=name, save_dir=folder, offline=wandb_key() is None)


def wandb_key() -> str | None:
    """The key of whoever is logged in: from WANDB_API_KEY, or what `wandb login` left in netrc."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if not file.is_file():
        return None
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    entry = netrc.netrc(file).authenticators(urlsplit(server).hostname or "")
    return entry[2] if entry else None
