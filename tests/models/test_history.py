"""The table by epoch: whose rate, and whose scores."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from rsna_bcd.models.callbacks import History, read_rows_before, write_rows


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


def test_scores_are_in_the_rows_of_their_epochs(tmp_path: Path) -> None:
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
