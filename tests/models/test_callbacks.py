"""Averaged weights, patience, the table by epoch, the time left, the throughput."""

import io
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rsna_bcd.errors import StorageError
from rsna_bcd.models.callbacks import (
    EMA,
    History,
    Patience,
    RunProgress,
    Throughput,
    format_time_left,
    read_rows_before,
    write_rows,
)
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
    """The average after each step; until the first that counts, the weight itself."""
    found = [step + 1.0 for step in range(steps)]
    for step in range(start + 1, steps):
        found[step] = decay * found[step - 1] + (1 - decay) * (step + 1)
    return found


@pytest.mark.parametrize(("decay", "start"), [(0.9, 0), (0.9, 2), (0.9, 6), (0.9, 99), (None, 0)])
def test_ema_is_validated_saved_and_left(decay: float | None, start: int, tmp_path: Path) -> None:
    module, saved, _ = fit(tmp_path, EMA(decay, start))
    expected = averages(decay or 0, start, 2 * STEPS)
    assert module.validated == pytest.approx([expected[STEPS - 1], expected[-1]])
    assert saved["state_dict"]["weight"].item() == pytest.approx(expected[-1])
    assert ("current_model_state" in saved) == (decay is not None)
    assert saved.get("current_model_state", saved["state_dict"])["weight"].item() == 2 * STEPS
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


def epoch(history: History, number: int, *, validated: bool, metrics: dict[str, Any]) -> None:
    groups = [{"lr": 0.001}, {"lr": 0.1}, {"lr": 0.01}]
    trainer: Any = SimpleNamespace(
        callback_metrics=metrics, optimizers=[SimpleNamespace(param_groups=groups)],
        current_epoch=number, global_step=4 * number, max_epochs=3, print=lambda _: None,
        max_steps=-1, is_last_batch=True, should_stop=False,
    )  # fmt: skip
    module: Any = None
    if number == 0:
        history.on_train_start(trainer, module)
    history.on_train_epoch_start(trainer, module)
    if validated:
        history.on_validation_end(trainer, module)
    history.on_train_epoch_end(trainer, module)


def test_history_has_scores_in_the_rows_of_their_epochs(tmp_path: Path) -> None:
    """Lightning keeps the last ones, where `check_val_every_n_epoch` leaves validation out."""
    history = History(tmp_path / "metrics.csv")
    epoch(history, 0, validated=False, metrics={"train_loss": torch.tensor(3.0)})
    scores = {"train_loss": torch.tensor(2.0), "auroc": torch.tensor(0.5)}
    epoch(history, 1, validated=True, metrics=scores)
    epoch(history, 2, validated=False, metrics=scores)
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert list(table) == ["epoch", "step", "learning_rate", "train_loss", "auroc"]
    assert table["train_loss"].tolist() == [3, 2, 2]
    assert table["auroc"].isna().tolist() == [True, False, True]
    assert table["learning_rate"].tolist() == pytest.approx([0.1] * 3)  # the head's


def test_rows_that_are_kept_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    write_rows(file, [{"epoch": 0, "a": 1 / 3}, {"epoch": 1, "a": 0.1, "b": 2}])
    before = file.read_bytes()
    write_rows(file, read_rows_before(file, 2))
    assert file.read_bytes() == before


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)


@pytest.mark.usefixtures("now")
@pytest.mark.parametrize(
    ("begun", "first", "done", "left"),
    [
        (900, 0, 1, "0:15:00"),  # 100 s an epoch, 9 to come
        (900, 4, 5, "0:08:20"),  # resumed: epochs of before cost this process nothing
        (900, 0, 0.5, "0:31:40"),
        (900, 0, 10, ""),
        (900, 3, 3, ""),
    ],
)
def test_the_rest_takes_as_long_as_what_was_done(
    begun: float, first: float, done: float, left: str
) -> None:
    assert format_time_left(begun, first, done, 10) == left


def trainer(epoch: int, batch: int, **changes: Any) -> Any:
    loop = SimpleNamespace(batch_idx=batch - 1)
    defaults = {"training": True, "validating": False, "max_epochs": 10, "num_training_batches": 4}
    return SimpleNamespace(current_epoch=epoch, fit_loop=loop, **defaults | changes)


@pytest.mark.usefixtures("now")
def test_the_bar_shows_the_time_left_of_the_run() -> None:
    bar = RunProgress()
    bar._start = (900.0, 2)
    assert bar.time_left(trainer(2, 2)) == "0:25:00"  # 100 s half an epoch, 7.5 to come
    assert bar.time_left(trainer(9, 4)) == ""
    assert bar.time_left(trainer(2, 2, training=False)) == ""
    screen = io.StringIO()
    console = Console(file=screen, width=120, force_terminal=True)
    with Progress(*bar.configure_columns(trainer(2, 2)), console=console) as progress:
        progress.add_task("epoch", total=4, completed=2)
        progress.refresh()
    assert "0:25:00 left of the run" in screen.getvalue()


READING, WORKING, BATCHES = 0.03, 0.02, 5  # seconds per image, seconds per step


class _Slow(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 2 * BATCHES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(READING)
        return {"label": torch.tensor(float(index)), "mask": torch.tensor([True, index < BATCHES])}


class _Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(WORKING)
        return (self.weight * batch["label"]).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(0.1)  # is none of training's seconds

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_seconds_waits_and_images_are_those_that_were_planted(tmp_path: Path) -> None:
    file = tmp_path / "timings.csv"
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, callbacks=[Throughput(file)],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(_Module(), DataLoader(_Slow(), batch_size=2), DataLoader(_Slow(), batch_size=10))
    table = pd.read_csv(file)
    assert table["epoch"].tolist() == [0, 1]
    assert table["images"].tolist() == [3 * BATCHES] * 2  # by the mask
    waiting, working = 2 * BATCHES * READING, BATCHES * WORKING
    assert (table["seconds"] >= waiting + working).all()
    assert table["seconds"].min() < 1.5 * (waiting + working)  # min: the machine may be busy
    assert table["data_wait"].min() > 0.5
    assert table["data_wait"].max() < 0.95
    rate = table["images"] / table["seconds"]
    assert table["images_per_second"].to_numpy() == pytest.approx(rate.to_numpy(), rel=0.01)
    assert table["peak_gpu_gb"].isna().all()
