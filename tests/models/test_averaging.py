"""The average of the weights, by formula: what is validated, saved, resumed and left."""

import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rsna_bcd.errors import StorageError
from rsna_bcd.models.callbacks import EMA, Patience
from rsna_bcd.models.checkpoint import AtomicCheckpointIO

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 4  # an epoch


class Counter(pl.LightningModule):
    """Its weight is the number of steps taken, and a buffer stays what it is."""

    constant: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("constant", torch.tensor(0.1))
        self.validated: list[float] = []
        self.auroc = [0.5, 0.9, 0.8, 0.8, 0.95]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One more."""
        return -self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Note the weight."""
        self.validated.append(self.weight.item())
        self.log("auroc", self.auroc[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Steps of 1."""
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(
    folder: Path, callback: pl.Callback, epochs: int = 2, resume: bool = False
) -> tuple[Counter, dict[str, Any], pl.Trainer]:
    module = Counter()
    checkpoints = pl.callbacks.ModelCheckpoint(
        dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[callback, checkpoints], logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    steps: Any = DataLoader([0] * STEPS)  # type: ignore[arg-type]
    once: Any = DataLoader([0])  # type: ignore[arg-type]
    path = folder / "last.ckpt" if resume else None
    trainer.fit(module, steps, once, ckpt_path=path, weights_only=True)
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    return module, saved, trainer


def averages(decay: float, start: int, steps: int) -> list[float]:
    """The average after each step, as a loop."""
    found: list[float] = []
    average = None
    for step in range(steps):
        weight = step + 1.0
        if step < start or average is None:
            value = weight
        else:
            value = decay * average + (1 - decay) * weight
        if step >= start:
            average = value
        found.append(value)
    return found


@pytest.mark.parametrize("start", [0, 2, 6, 99])
def test_ema_is_validated_saved_and_left(start: int, tmp_path: Path) -> None:
    module, saved, _ = fit(tmp_path, EMA(0.9, start))
    expected = averages(0.9, start, 2 * STEPS)
    assert module.validated == pytest.approx([expected[STEPS - 1], expected[-1]])
    assert saved["state_dict"]["weight"].item() == pytest.approx(expected[-1])
    assert saved["current_model_state"]["weight"].item() == 2 * STEPS
    assert module.weight.item() == pytest.approx(expected[-1])
    assert saved["state_dict"]["constant"] == module.constant  # digit for digit


@pytest.mark.parametrize("start", [0, 6])
def test_a_resumed_ema_equals_a_straight_one(start: int, tmp_path: Path) -> None:
    _, straight, _ = fit(tmp_path / "a", EMA(0.9, start), epochs=3)
    fit(tmp_path / "b", EMA(0.9, start), epochs=1)
    _, resumed, _ = fit(tmp_path / "b", EMA(0.9, start), epochs=3, resume=True)
    for state in ("state_dict", "current_model_state", "averaging_state"):
        assert straight[state].keys() == resumed[state].keys()
        assert all(torch.equal(straight[state][k], resumed[state][k]) for k in straight[state])


def test_ema_without_decay_changes_nothing(tmp_path: Path) -> None:
    module, saved, _ = fit(tmp_path, EMA(None))
    assert module.validated == [STEPS, 2 * STEPS]
    assert saved["state_dict"]["weight"].item() == module.weight.item() == 2 * STEPS
    assert "current_model_state" not in saved


@pytest.mark.parametrize(("patience", "epochs"), [(None, 5), (1, 3), (2, 4), (3, 5)])
def test_patience_ends_training_without_improvement(
    patience: int | None, epochs: int, tmp_path: Path
) -> None:
    module, _, _ = fit(tmp_path, Patience(patience), epochs=5)
    assert len(module.validated) == epochs


def test_patience_ends_a_resumed_run_at_once(tmp_path: Path) -> None:
    fit(tmp_path, Patience(1), epochs=5)
    module, saved, trainer = fit(tmp_path, Patience(1), epochs=5, resume=True)
    assert module.validated == []
    assert trainer.global_step == saved["global_step"] == 3 * STEPS


def test_a_full_disk_keeps_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, file)

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=r"last.ckpt cannot be written: .*is kept. Free some"):
        AtomicCheckpointIO().save_checkpoint({"a": 2}, file)
    assert torch.load(file, weights_only=True) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
