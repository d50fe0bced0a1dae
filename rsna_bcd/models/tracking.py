"""Weights & Biases: which run a training logs to."""

import base64
import json
import netrc
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.utilities import rank_zero_only

ID_FILE = "wandb_id.txt"  # in the run's folder
_PATIENCE, _INIT_PATIENCE = 10, 30  # seconds: for an answer of the server; for a run to begin
_USER_MODE = os.environ.get("WANDB_MODE")  # before Lightning changes it


def wandb_logger(
    project: str,
    name: str,
    folder: str | Path,
    group: str | None = None,
    tags: Sequence[str] = (),
    entity: str | None = None,
) -> Logger:
    """Log to Weights & Biases, or offline where it cannot be reached: training never waits for it.

    A resumed run continues the run of W&B that it began: its id is kept in `wandb_id.txt`.
    WANDB_MODE=disabled logs nothing.

    Args:
        project: in W&B.
        name: of the run.
        folder: where the run's files go, under `wandb/`.
        group: of runs that W&B shows together: the folds of an experiment.
        tags: to find it by.
        entity: team or user; None for the default one of the key.
    """
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "disabled":
        return DummyLogger()
    import wandb  # deferred: training without this logger runs where W&B is not installed

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "project": project,
        "name": name,
        "save_dir": folder,
        "group": group,
        "tags": [str(tag) for tag in tags],
        "id": _id(folder / ID_FILE),
        "entity": entity,
        "settings": wandb.Settings(init_timeout=_INIT_PATIENCE),
    }
    if mode in ("offline", "dryrun") or getattr(rank_zero_only, "rank", None):
        return WandbLogger(offline=True, **options)
    key = wandb_key()
    problem = "no key (`wandb login`)" if key is None else connection_problem(key)
    if problem is None:
        logger = WandbLogger(offline=False, **options)
        try:
            _ = logger.experiment  # begins the run
        except (wandb.errors.Error, OSError) as error:
            problem = f"{error} (logger.wandb.project={project}, entity={entity})"
        else:
            return logger
    print(
        f"W&B: {problem}. The run is recorded offline; upload it later with "
        f"`wandb sync {folder / 'wandb'}/offline-run-*`. Nothing is logged with logger=csv."
    )
    return WandbLogger(offline=True, **options)


def connection_problem(key: str) -> str | None:
    """Why the server of W&B cannot be logged to with a key; None if it can.

    Asked before W&B's own client, which waits for minutes where there is no network.
    """
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")
    request = urllib.request.Request(
        f"{server}/graphql",
        data=json.dumps({"query": "query {viewer {id}}"}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": "Basic " + base64.b64encode(f"api:{key}".encode()).decode(),
        },
    )
    refused = (
        f"{server} refuses the key of WANDB_API_KEY or of the netrc file; log in with "
        "`wandb login --relogin`"
    )
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            found = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return refused if error.code in (401, 403) else f"{server} answers {error}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"{server} cannot be reached ({reason}); check the network or WANDB_BASE_URL"
    viewer = (found.get("data") or {}).get("viewer") if isinstance(found, dict) else None
    return None if viewer else refused


def wandb_run() -> Any:
    """The run of W&B that a logger has begun; None without one, and where W&B is not installed."""
    wandb = sys.modules.get("wandb")  # imported by the logger
    return None if wandb is None else wandb.run


def finish_wandb(exit_code: int) -> None:
    """End the run of W&B, if there is one: else the next run of this process would log into it."""
    if wandb_run() is not None:
        sys.modules["wandb"].finish(exit_code=exit_code)
    # Lightning sets `dryrun` for a run that is recorded offline; the next run may be online again.
    os.environ.pop("WANDB_MODE", None)
    if _USER_MODE is not None:
        os.environ["WANDB_MODE"] = _USER_MODE


@rank_zero_only  # which alone logs; several would write the file at once
def _id(file: Path) -> str:
    """The id that the folder has; a new one, where it has none."""
    if not file.exists():
        file.write_text(secrets.token_hex(4) + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


def wandb_key() -> str | None:
    """The API key, from WANDB_API_KEY or the netrc file that `wandb login` writes."""
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
