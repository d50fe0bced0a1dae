"""Checkpoints without pickle: the same weights, bit for bit, and the same record."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rsna_bcd.errors import InputError
from rsna_bcd.inference.run import find_checkpoint, read_checkpoint, save_safetensors

RECORD = {
    "name": "tiny",
    "fold": 0,
    "rate": 1e-3,
    "crop": {"bits": 8, "clahe": None},
    "views": ["CC"],
}


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    torch.manual_seed(0)
    weights = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    state = {
        "network.a": weights,
        "network.tied": weights,
        "network.part": weights[1:, :2],
        "network.odd": odd,
        "network.half": odd.half(),
        "network.count": torch.tensor(7),
    }
    return {"state_dict": state, "config": RECORD, "optimizer_states": [1]}


def test_every_weight_and_the_record_come_back(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "last.safetensors"
    save_safetensors(checkpoint, file)
    read = read_checkpoint(file)
    assert read.keys() == {"state_dict", "config"}
    assert read["config"] == RECORD
    assert read["state_dict"].keys() == checkpoint["state_dict"].keys()
    for name, values in checkpoint["state_dict"].items():
        back = read["state_dict"][name]
        assert (back.dtype, back.shape) == (values.dtype, values.shape)
        assert back.numpy().tobytes() == values.contiguous().numpy().tobytes()


def test_torch_and_safetensors_are_read_alike(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    ckpt = tmp_path / "checkpoints" / "last.ckpt"
    assert find_checkpoint(tmp_path, "last") is None
    ckpt.parent.mkdir()
    torch.save(checkpoint, ckpt)
    save_safetensors(read_checkpoint(ckpt), ckpt.with_suffix(".safetensors"))
    assert find_checkpoint(tmp_path, "last") == ckpt
    ckpt.unlink()
    assert find_checkpoint(tmp_path, "last") == ckpt.with_suffix(".safetensors")
    assert find_checkpoint(tmp_path, "best") is None


def test_a_checkpoint_of_before_has_no_record(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    del checkpoint["config"]
    save_safetensors(checkpoint, tmp_path / "last.safetensors")
    assert "config" not in read_checkpoint(tmp_path / "last.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_damage_is_named(checkpoint: dict[str, Any], tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"last{suffix}"
    torch.save(checkpoint, file) if suffix == ".ckpt" else save_safetensors(checkpoint, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"last{suffix} is damaged"):
        read_checkpoint(file)
