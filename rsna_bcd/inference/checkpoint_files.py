"""A run's checkpoint: as training leaves it, or as a bundle carries it, without pickle.

Either way it is a dictionary with the `state_dict` of the training module and, since training puts
it there, the run's record under `config`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rsna_bcd.errors import InputError

_RECORD = "config"
_SUFFIXES = (".ckpt", ".safetensors")


def find_checkpoint(run: Path, select: str) -> Path | None:
    """The file with the weights of a run (`<output>/runs/<name>/fold<k>`); None if there is none.

    Args:
        run: the run's folder.
        select: `last` or `best`.
    """
    files = [run / "checkpoints" / f"{select}{suffix}" for suffix in _SUFFIXES]
    return next((file for file in files if file.is_file()), None)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read `state_dict` and, if it is in it, `config`; on the processor.

    Raises:
        InputError: the file is damaged; the message says no remedy.
    """
    try:
        if file.suffix != ".safetensors":
            checkpoint: dict[str, Any] = torch.load(
                file, map_location="cpu", weights_only=True, mmap=True
            )
            return checkpoint
        with safe_open(file, framework="pt", device="cpu") as content:
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            record = (content.metadata() or {}).get(_RECORD)
    except (RuntimeError, EOFError, OSError, SafetensorError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__})") from error
    return {"state_dict": state, **({} if record is None else {_RECORD: json.loads(record)})}


def weights_hash(file: Path) -> str:
    """SHA-256 of the weights in a checkpoint: the same of `.ckpt` and of `.safetensors`.

    Raises:
        InputError: as `read_checkpoint`.
    """
    digest = hashlib.sha256()
    state = read_checkpoint(file)["state_dict"]
    for name in sorted(state):
        values = state[name]
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_safetensors(checkpoint: dict[str, Any], file: Path) -> None:
    """Write the weights of a checkpoint, bit for bit, and its record; the rest is for training.

    Args:
        checkpoint: from `read_checkpoint`.
        file: `.safetensors`.
    """
    # Weights may be laid out for channels_last, or share memory: the format knows neither.
    state = {name: values.contiguous().clone() for name, values in checkpoint["state_dict"].items()}
    record = checkpoint.get(_RECORD)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file, None if record is None else {_RECORD: json.dumps(record)})
