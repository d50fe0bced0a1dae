"""How fast a run trains, and what it waits for."""

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from rsna_bcd.models.callbacks import Throughput

READING, WORKING, STEPS = 0.03, 0.02, 5  # seconds an image, seconds a step


class _Slow(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 2 * STEPS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(READING)
        return {"label": torch.tensor(float(index)), "mask": torch.tensor([True, index < STEPS])}


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


@pytest.mark.filterwarnings("ignore")
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
    assert table["images"].tolist() == [3 * STEPS] * 2  # by the mask
    waiting, working = 2 * STEPS * READING, STEPS * WORKING
    assert (table["seconds"] >= waiting + working).all()
    assert table["seconds"].min() < 1.5 * (waiting + working)  # min: the machine may be busy
    assert table["data_wait"].min() > 0.5
    assert table["data_wait"].max() < 0.95
    rate = table["images"] / table["seconds"]
    assert table["images_per_second"].to_numpy() == pytest.approx(rate.to_numpy(), rel=0.01)
    assert table["peak_gpu_gb"].isna().all()
