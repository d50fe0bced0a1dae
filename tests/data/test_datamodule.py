"""The folds' promises, and that samples depend on (seed, epoch, index) alone."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import albumentations
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from fabricated_crops import blank_path, save_crops

from rsna_bcd.data.augment import Augmentation
from rsna_bcd.data.datamodule import CropDataModule
from rsna_bcd.errors import InputError


def make(output: Path, fold: int | Literal["all"] = 0, **changes: Any) -> CropDataModule:
    settings = {"batch_size": 4, "negatives_per_positive": None, "workers": 0, "seed": 5}
    return CropDataModule(
        output / "prepared" / "rsna" / "demo",
        output / "folds" / "rsna-stratified.csv",
        fold,
        Augmentation([albumentations.RandomBrightnessContrast(p=1)]),
        **{**settings, **changes},
    )


@pytest.fixture
def output(tmp_path: Path) -> Path:
    save_crops(tmp_path)
    return tmp_path


def test_a_fold_holds_out_whole_patients(output: Path) -> None:
    for fold in (0, 1):
        data = make(output, fold)
        data.setup()
        assert len(data.training) + len(data.held_out) == 32
        assert not set(data.training["patient_id"]) & set(data.held_out["patient_id"])
        assert set(data.held_out["fold"]) == {fold}
        assert data.prevalence == pytest.approx(
            data.training.groupby("prediction_id")["label"].first().mean()
        )


def test_fold_all_trains_on_everything(output: Path) -> None:
    data = make(output, "all")
    data.setup()
    assert len(data.training) == 32
    assert data.held_out.empty
    assert data.val_dataloader() == []


def test_a_fold_that_does_not_exist_is_refused(output: Path) -> None:
    with pytest.raises(InputError, match=r"fold=9 does not exist: .* the folds 0, 1"):
        make(output, 9).setup()


def test_unreadable_images_are_left_out_but_answered_for(output: Path) -> None:
    make_all = make(output)
    make_all.setup()
    lost = make_all.held_out["image_id"].iloc[0]
    lost_in_training = make_all.training["image_id"].iloc[0]
    blank_path(output / "prepared" / "rsna" / "demo", int(lost), int(lost_in_training))
    data = make(output)
    data.setup()
    assert lost not in set(data.held_out["image_id"])
    assert lost in set(data.expected["image_id"])
    assert lost_in_training not in set(data.training["image_id"])


def test_absent_crops_are_counted_and_named(output: Path) -> None:
    for name in ("3/12.png", "3/13.png"):
        (output / "prepared" / "rsna" / "demo" / "train" / name).unlink()
    with pytest.raises(InputError, match=r"2 crop.* absent, train/3/12\.png among them"):
        make(output).setup()


def test_one_class_only_is_refused(output: Path) -> None:
    csv = output / "prepared" / "rsna" / "demo" / "train.csv"
    csv.write_text(csv.read_text().replace(",1,train", ",0,train"))
    with pytest.raises(InputError, match="0 positive and 16 negative"):
        make(output).setup()


def test_an_epoch_smaller_than_a_batch_is_refused(output: Path) -> None:
    with pytest.raises(InputError, match="An epoch has 16 images.*smaller batch_size"):
        make(output, batch_size=64).setup()


def test_validation_sees_every_row_once_and_unaugmented(output: Path) -> None:
    data = make(output, batch_size=3)
    data.setup()
    batches: Any = data.val_dataloader()
    index = torch.cat([batch["index"] for batch in batches])
    labels = torch.cat([batch["label"] for batch in batches])
    assert index.tolist() == list(range(len(data.held_out)))
    assert np.array_equal(labels.numpy(), data.held_out["label"].to_numpy())


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec", "ignore:You passed in a `val_dataloader`", "ignore:Checkpoint directory"
)


class Recorder(pl.LightningModule):
    """Trains nothing; remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[str]] = []

    def on_train_epoch_start(self) -> None:  # noqa: D102
        self.seen.append([])

    def training_step(  # noqa: D102
        self, batch: dict[str, torch.Tensor], batch_idx: int
    ) -> torch.Tensor:
        for index, image in zip(batch["index"], batch["image"], strict=True):
            digest = hashlib.sha256(image.numpy().tobytes()).hexdigest()
            self.seen[-1].append(f"{index} {digest}")
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:  # noqa: D102
        return torch.optim.SGD(self.parameters(), lr=0.0)


def samples(
    output: Path, checkpoint: Path, *, workers: int, epochs: int, **settings: Any
) -> list[list[str]]:
    """The samples of each epoch, in order, from a real Trainer."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=[
            pl.callbacks.ModelCheckpoint(
                checkpoint.parent,
                checkpoint.stem,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    recorder = Recorder()
    resumed = checkpoint if checkpoint.exists() else None
    trainer.fit(recorder, datamodule=make(output, workers=workers, **settings), ckpt_path=resumed)
    return recorder.seen


def test_samples_depend_on_seed_epoch_and_index_alone(output: Path, tmp_path: Path) -> None:
    straight = samples(output, tmp_path / "a" / "last.ckpt", workers=0, epochs=4)
    assert [len(epoch) for epoch in straight] == [16] * 4
    indices = [{line.split()[0] for line in epoch} for epoch in straight]
    assert indices[0] == indices[1]
    assert not set(straight[0]) & set(straight[1])  # the same images, augmented again
    assert samples(output, tmp_path / "b" / "last.ckpt", workers=2, epochs=4) == straight


def first_samples(output: Path, workers: int, rank: int = 0, world_size: int = 1) -> list[str]:
    """Index and hash of the samples that one rank is given in 13 epochs, in order."""
    data = make(output, workers=workers)
    data.setup()
    device = SimpleNamespace(root_device=torch.device("cpu"))
    epoch = SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)))
    trainer: Any = SimpleNamespace(
        global_rank=rank, world_size=world_size, strategy=device, fit_loop=epoch
    )
    data.trainer = trainer
    loader = data.train_dataloader()
    seen = []
    for number in range(13):
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        for batch in loader:
            for index, image in zip(batch["index"], batch["image"], strict=True):
                seen.append(f"{index} {hashlib.sha256(image.numpy().tobytes()).hexdigest()}")
    return seen


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_200_samples_are_the_same_whatever_the_workers_and_ranks(output: Path) -> None:
    alone = first_samples(output, workers=0)
    assert len(alone) == 208
    assert len(set(alone)) == len(alone)  # each epoch augments by itself
    for workers in (2, 4):
        assert first_samples(output, workers) == alone
    ranks = [first_samples(output, workers=2, rank=rank, world_size=2) for rank in (0, 1)]
    assert [sample for pair in zip(*ranks, strict=True) for sample in pair] == alone


def test_a_resumed_run_sees_the_samples_of_a_straight_one(output: Path, tmp_path: Path) -> None:
    straight = samples(output, tmp_path / "a" / "last.ckpt", workers=0, epochs=4)
    for workers in (0, 2):
        checkpoint = tmp_path / f"workers{workers}" / "last.ckpt"
        first = samples(output, checkpoint, workers=workers, epochs=2)
        rest = samples(output, checkpoint, workers=workers, epochs=4)
        assert first + rest == straight


def test_crops_in_memory_give_the_same_batches(output: Path) -> None:
    kept, read = make(output, crops_in_memory=True), make(output)
    for data in (kept, read):
        data.setup()
    for one, other in (
        (kept.train_dataloader(), read.train_dataloader()),
        (kept.val_dataloader(), read.val_dataloader()),
    ):
        for first, second in zip(one, other, strict=True):
            assert first.keys() == second.keys()
            assert all(torch.equal(first[name], second[name]) for name in first)
