"""Send a bundle to Kaggle by its client, with the credentials of whoever asks for it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from rsna_bcd.bundling.notebook import DATASET, KERNEL
from rsna_bcd.errors import InputError

How = Literal["create", "version"]

NOBODY = "OWNER"  # in the place of one who is not known

_FILES = ("kaggle.json", "access_token")
_PATIENCE_SECONDS, _PAUSE_SECONDS = 1800, 20

Run = Callable[[Sequence[str]], str]


def check_push(how: str, owner: str) -> How:
    """Refuse what the client would only refuse later; credentials are looked for, not read.

    Args:
        how: `create` or `version`.
        owner: of the dataset.

    Raises:
        InputError: unknown `how`, no owner, or no credentials.
    """
    if how not in get_args(How):
        raise InputError(f"push is {' or '.join(get_args(How))}, not {how!r}.")
    if owner == NOBODY:
        raise InputError("Whose is it? Say owner=<your name on Kaggle>, or set KAGGLE_USERNAME.")
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR", Path.home() / ".kaggle"))
    in_environment = "KAGGLE_API_TOKEN" in os.environ or (
        os.environ.keys() >= {"KAGGLE_USERNAME", "KAGGLE_KEY"}
    )
    if not in_environment and not any((folder / name).is_file() for name in _FILES):
        raise InputError(
            "No credentials for Kaggle. Make a token in your account's settings there, and put it "
            f"into {folder / _FILES[0]}, or set KAGGLE_USERNAME and KAGGLE_KEY."
        )
    return "create" if how == "create" else "version"


def push(dataset: Path, kernel: Path, how: How, run: Run | None = None) -> None:
    """Upload a dataset, wait until Kaggle has unpacked it, and start the notebook.

    Args:
        dataset: folder with `dataset-metadata.json`.
        kernel: folder with `kernel-metadata.json`.
        how: `create` it the first time, later a `version` of it.
        run: what runs the client with arguments and returns what it printed.

    Raises:
        InputError: the client failed, or Kaggle does not get ready.
    """
    run = _client if run is None else run
    address = json.loads((dataset / DATASET).read_text(encoding="utf-8"))["id"]
    accelerator = json.loads((kernel / KERNEL).read_text(encoding="utf-8"))["machine_shape"]
    message = [] if how == "create" else ["--message", "rsna_bcd.bundle"]
    run(["datasets", how, "--path", str(dataset), "--dir-mode", "zip", *message])
    started = time.monotonic()
    while "ready" not in run(["datasets", "status", address]):
        if time.monotonic() - started > _PATIENCE_SECONDS:
            raise InputError(f"{address} is still not ready on Kaggle. Later: push=version")
        time.sleep(_PAUSE_SECONDS)
    run(["kernels", "push", "--path", str(kernel), "--accelerator", accelerator])


def _client(arguments: Sequence[str]) -> str:
    """Run the `kaggle` client, which `uv` brings for the moment."""
    command = [sys.executable, "-m", "uv", "tool", "run", "kaggle", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    sys.stdout.write(done.stdout)
    if done.returncode:
        raise InputError(f"kaggle {' '.join(arguments[:2])} failed (see above).")
    return done.stdout
