"""Checkpoints on disk: written whole, resumed only if intact, and which epoch is the best."""

import errno
import shutil
import sys
import zipfile
from _pickle import UnpicklingError  # raised by torch for foreign files; nothing is pickled here
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from rsna_bcd.errors import InputError, StorageError
from rsna_bcd.files import atomic_file

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, UnpicklingError)


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints that are whole or absent, whenever the process is killed.

    Lightning's own way writes to the folder for temporary files and moves the file from there: a
    copy, half of which may be left, where that is another file system.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write beside the file, then rename.

        Raises:
            StorageError: the disk is full; an earlier file of this name is still there.
        """
        assert storage_options is None
        path = Path(path)
        try:
            with atomic_file(path, sync=True) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # Where a write fails, torch may raise a RuntimeError of its own instead.
            number = getattr(error, "errno", None) or getattr(error.__context__, "errno", None)
            needed = sum(t.nbytes for t in _tensors(checkpoint))
            free = shutil.disk_usage(path.parent).free
            if number not in _NO_SPACE and (number is not None or free > needed):
                raise
            kept = "The checkpoint before it is kept. " if path.exists() else ""
            raise StorageError(
                f"{path} cannot be written: the disk has {free / 1e6:,.0f} MB left, a checkpoint "
                f"needs {needed / 1e6:,.0f} MB. {kept}Free some space, then run the same command "
                "to resume."
            ) from error


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def read_whole(file: Path) -> dict[str, Any]:
    """Read a checkpoint of training after its checksums.

    torch itself does not compare them: a file with a flipped bit would be resumed.

    Raises:
        InputError: the file is absent or damaged.
    """
    remedy = "Copy it again from where it was trained, or train again with overwrite=true."
    if not file.is_file():
        raise InputError(f"{file} is absent. {remedy}")
    try:
        with zipfile.ZipFile(file) as parts:
            damaged = parts.testzip()
        if damaged is not None:
            raise ValueError(f"checksum of {damaged}")
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (*_UNREADABLE, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise InputError(f"{file} is damaged ({error}). {remedy}") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(f"{file} is not a checkpoint of training. {remedy}")
    return content


def is_cut(trainer: pl.Trainer) -> bool:
    """Whether training ends here in the middle of an epoch, as max_steps or max_time ask for."""
    over = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return not trainer.is_last_batch and (over or trainer.should_stop)


class _WholeEpochs(ModelCheckpoint):
    """Saves whole epochs only, so that a resumed run equals an undisturbed one."""

    def _should_skip_saving_checkpoint(self, trainer: pl.Trainer) -> bool:
        return super()._should_skip_saving_checkpoint(trainer) or is_cut(trainer)

    @property
    def state_key(self) -> str:
        """Name of its state in a checkpoint: that of Lightning's class."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)


class LastEpoch(_WholeEpochs):
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
        """Take up nothing: its state is the path of a file, which may have moved."""


class BestEpoch(_WholeEpochs):
    """Saves `best.ckpt` after each validation with the best AUROC so far.

    Lightning takes up the best score only if the checkpoints are still under the path that they
    were saved to: after the folder has moved, any epoch would count as the best.

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
        """Take up the best score, wherever the folder is now.

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

    @property
    def is_exhausted(self) -> bool:
        """Whether it has ended training."""
        return self.wait_count >= self.patience

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End at once if the run that is resumed had ended already."""
        trainer.should_stop = trainer.should_stop or self.is_exhausted
