"""Results of an earlier run, kept until a run with `overwrite=true` has done its first step.

They wait in `earlier/`, which is always complete: while files are moved out of the run or back, the
folder is `earlier.part/`. A stop at any moment leaves a state that `restore` brings back to the
earlier run.
"""

import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_file

_COMPLETE, _PART = "earlier", "earlier.part"
_DELETED = "earlier.deleted."  # prefix
_PATIENCE = 60.0  # seconds


@rank_zero_only
def put_aside(run_dir: Path, results: Iterable[Path]) -> None:
    """Move results to `earlier/`, and copy `config.yaml`, which other ranks may be reading."""
    part = run_dir / _PART
    part.mkdir()
    if (config := run_dir / "config.yaml").is_file():
        write_file(part / "config.yaml", config.read_bytes())
    for path in results:
        path.rename(part / path.name)
    part.rename(run_dir / _COMPLETE)


@rank_zero_only
def restore(run_dir: Path, names: Sequence[str]) -> None:
    """Put the earlier results back, if there are any: the new run ended before its first step.

    Args:
        run_dir: the run's folder.
        names: of the results, those of the new run are deleted.
    """
    complete, part = run_dir / _COMPLETE, run_dir / _PART
    if complete.is_dir():
        for name in ("config.yaml", *names):
            path = run_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        complete.rename(part)
    if part.is_dir():
        for path in part.iterdir():
            path.replace(run_dir / path.name)
        part.rmdir()


def wait_until_restored(run_dir: Path) -> None:
    """Wait for the first rank, which puts earlier results back at its start.

    Raises:
        InputError: it has not after a minute.
    """
    until = time.monotonic() + _PATIENCE
    while (run_dir / _COMPLETE).is_dir() or (run_dir / _PART).is_dir():
        if time.monotonic() > until:
            raise InputError(
                f"{run_dir} has earlier results aside, in {_COMPLETE}/ or {_PART}/, and the first "
                "rank has not put them back."
            )
        time.sleep(0.1)


class DeleteEarlier(pl.Callback):
    """Deletes the earlier results after the first step."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir: Path | None = run_dir

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Delete them once: renamed first, so that a part of them is never put back."""
        if self._run_dir is None or not trainer.is_global_zero:
            return
        if (complete := self._run_dir / _COMPLETE).is_dir():
            complete.rename(Path(tempfile.mkdtemp(prefix=_DELETED, dir=self._run_dir)) / _COMPLETE)
        for folder in self._run_dir.glob(f"{_DELETED}*"):
            shutil.rmtree(folder, ignore_errors=True)  # on NFS, open files stay until the next time
        self._run_dir = None
