"""Weights & Biases: which run a training logs to."""

import netrc
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

ID_FILE = "wandb_id.txt"  # in the run's folder


def wandb_logger(
    project: str,
    name: str,
    folder: str | Path,
    group: str | None = None,
    tags: Sequence[str] = (),
) -> WandbLogger:
    """Log to Weights & Biases, offline where nobody is logged in.

    A resumed run goes on in the run of W&B that it began: its id is kept in `wandb_id.txt`.

    Args:
        project: in W&B.
        name: of the run.
        folder: where the run's files go, under `wandb/`.
        group: what W&B shows together: the folds of an experiment.
        tags: to find it by.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        project=project,
        name=name,
        save_dir=folder,
        offline=wandb_key() is None,
        group=group,
        tags=[str(tag) for tag in tags],
        id=_id(folder / ID_FILE),
    )


def wandb_run() -> Any:
    """The run of W&B that a logger has begun; None without one, and where W&B is not installed."""
    wandb = sys.modules.get("wandb")  # imported by the logger
    return None if wandb is None else wandb.run


def finish_wandb(exit_code: int) -> None:
    """End the run of W&B, if there is one: else the next run of this process would log into it."""
    if wandb_run() is not None:
        sys.modules["wandb"].finish(exit_code=exit_code)


@rank_zero_only  # which alone logs; several would write the file at once
def _id(file: Path) -> str:
    """The id that the folder has; a new one, where it has none."""
    if not file.exists():
        file.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


def wandb_key() -> str | None:
    """The key of whoever is logged in: from WANDB_API_KEY, or what `wandb login` left in netrc."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if not file.is_file():
        return None
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        entry = netrc.netrc(file).authenticators(urlsplit(server).hostname or "")
    except netrc.NetrcParseError:
        return None  # W&B itself cannot read it either
    return entry[2] if entry else None
