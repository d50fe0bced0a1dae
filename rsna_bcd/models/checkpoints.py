"""How checkpoints reach the disk, and when training ends before its last epoch."""

import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.plugins.io import TorchCheckpointIO


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints that are whole or absent, whenever the process is killed.

    Lightning's own way writes to the folder for temporary files and moves the file from there: a
    copy, half of which may be left, where that is another file system.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write beside the file, then rename."""
        assert storage_options is None
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        with unfinished.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


class Patience(EarlyStopping):
    """Ends training when the held-out AUROC has not improved for some epochs.

    Args:
        epochs: how many; null trains to the end.
    """

    def __init__(self, epochs: int | None) -> None:
        super().__init__(
            monitor="auroc",
            mode="max",
            patience=sys.maxsize if epochs is None else epochs,
            check_finite=False,  # where it is not defined, it has not improved
            check_on_train_epoch_end=False,
        )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End at once if the run that is resumed had ended already."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience
