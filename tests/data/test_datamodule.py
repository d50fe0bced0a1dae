"""A fold by image and by breast; samples depend on (seed, epoch, index) alone."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import albumentations
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from fabricated_crops import blank_path, save_crops

from rsna_bcd.data.augment import Augmentation
from rsna_bcd.data.datamodule import CropDataModule
from rsna_bcd.errors import InputError
from rsna_bcd.tables.distillation import SoftTargets
from rsna_bcd.tables.metadata import Metadata
from rsna_bcd.tables.views import Level, Views

LEVELS = pytest.mark.parametrize("level", ["image", "breast"])


@pytest.fixture
def output(tmp_path: Path) -> Path:
    save_crops(tmp_path)
    return tmp_path


def make(output: Path, fold: int | Literal["all"] = 0, **changes: Any) -> CropDataModule:
    settings = {"batch_size": 4, "negatives_per_positive": None, "workers": 0, "seed": 5}
    data = CropDataModule(
        output / "prepared" / "rsna" / "demo",
        output / "folds" / "rsna-stratified.csv",
        fold,
        Augmentation([albumentations.RandomBrightnessContrast(p=1)]),
        **settings | changes,
    )
    data.setup()
    return data


def add_columns(output: Path, **columns: Any) -> pd.DataFrame:
    """Columns of the table of crops, given for each of its 32 rows."""
    csv = output / "prepared" / "rsna" / "demo" / "train.csv"
    table = pd.read_csv(csv).assign(**columns)
    table.to_csv(csv, index=False)
    return table


def validation(data: CropDataModule) -> dict[str, torch.Tensor]:
    """All validation batches as one."""
    batches: Any = list(data.val_dataloader())
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@LEVELS
def test_data_module_holds_out_whole_patients(level: Level, output: Path) -> None:
    for fold in (0, 1):
        data = make(output, fold, level=level)
        samples = 16 if level == "image" else 8
        assert len(data.training) == len(data.held_out) == len(data.expected) == samples
        assert len(data.training_images) == len(data.held_out_images) == 16
        assert not set(data.training["patient_id"]) & set(data.held_out["patient_id"])
        assert set(data.held_out["fold"]) == {fold}
        breasts = data.training.groupby("prediction_id")["label"].first()
        assert data.prevalence == pytest.approx(breasts.mean())
        assert data.batches_per_epoch == samples // 4


@LEVELS
def test_data_module_of_fold_all_trains_on_everything(level: Level, output: Path) -> None:
    add_columns(output, age=50, invasive=0)
    data = make(output, "all", level=level, metadata=Metadata(["age"]), targets=["invasive"])
    assert (len(data.training), len(data.held_out)) == (32 if level == "image" else 16, 0)
    assert data.val_dataloader() == []


def test_a_share_of_the_patients_is_trained_on_and_all_are_held_out(output: Path) -> None:
    whole, half = make(output), make(output, training_share=0.5)
    pd.testing.assert_frame_equal(half.held_out, whole.held_out)
    patients = set(half.training["patient_id"])
    assert len(patients) == 2 < whole.training["patient_id"].nunique() == 4
    expected = whole.training[whole.training["patient_id"].isin(patients)]
    pd.testing.assert_frame_equal(half.training, expected.reset_index(drop=True))
    assert half.prevalence == half.training.drop_duplicates("prediction_id")["label"].mean()


def test_left_out_folds_are_neither_trained_on_nor_held_out(tmp_path: Path) -> None:
    save_crops(tmp_path, 12, n_folds=3)
    data = make(tmp_path, 0, left_out_folds=[2])
    assert set(data.training["fold"]) == {1}
    assert set(data.expected["fold"]) == set(data.held_out["fold"]) == {0}
    assert set(make(tmp_path, "all", left_out_folds=[2]).training["fold"]) == {0, 1}


@LEVELS
def test_targets_in_training_are_soft_and_all_else_is_hard(level: Level, output: Path) -> None:
    hard = make(output, level=level)
    key = "image_id" if level == "image" else "prediction_id"
    ids = pd.Index(hard.training[key], name=key)
    probability = pd.Series(np.linspace(0.2, 0.8, len(ids)), ids)
    data = make(output, level=level, soft_targets=SoftTargets(probability.sample(frac=1), 0.25))
    by_hand = 0.75 * hard.training["label"] + 0.25 * probability.to_numpy()
    batches: Any = list(data.train_dataloader())
    rows = torch.cat([batch["index"] for batch in batches])
    assert sorted(rows.tolist()) == list(range(len(ids)))
    labels = torch.cat([batch["label"] for batch in batches])
    np.testing.assert_allclose(labels, by_hand[rows.numpy()], rtol=1e-6)
    assert validation(data)["label"].tolist() == hard.held_out["label"].tolist()
    pd.testing.assert_frame_equal(data.training.drop(columns="target"), hard.training)
    assert data.prevalence == hard.prevalence
    assert list(data._train_sampler()) == list(hard._train_sampler())
    with pytest.raises(InputError, match=f"predict no {key} {ids[0]}: .*Train them again"):
        make(output, level=level, soft_targets=SoftTargets(probability[1:], 0.25))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"left_out_folds": [0]}, r"left_out_folds=\[0\] has 0, which is held out"),
        ({"left_out_folds": [7]}, "left_out_folds=.7. has 7, .* the folds 0, 1"),
        ({"training_share": 0.2}, "0 positive and 0 negative.*larger training_share="),
        ({"fold": 9}, r"fold=9 does not exist: .* the folds 0, 1"),
        ({"batch_size": 64}, "An epoch has 16 images.*smaller batch_size"),
        ({"level": "breast", "batch_size": 16}, "An epoch has 8 breasts"),
        ({"targets": ["cancer"]}, "cancer is no auxiliary target"),
        ({"targets": ["density"]}, "no values of density"),
        ({"level": "breast", "targets": ["view"]}, "a breast has several views"),
        ({"metadata": Metadata(["age"])}, "lacks the column.* age"),
        ({"level": "breast", "metadata": Metadata(["view"])}, "a breast has several"),
        ({"positives_per_batch": 4}, "less than batch_size=4"),
    ],
)
def test_data_module_refuses_settings(changes: dict[str, Any], key: str, output: Path) -> None:
    with pytest.raises(InputError, match=key):
        make(output, **changes)


def test_data_module_refuses_absent_crops_and_a_single_class(output: Path) -> None:
    add_columns(output, cancer=0)
    with pytest.raises(InputError, match="0 positive and 16 negative"):
        make(output)
    for name in ("3/12.png", "3/13.png"):
        (output / "prepared" / "rsna" / "demo" / "train" / name).unlink()
    with pytest.raises(InputError, match=r"2 crop.* absent, train/3/12\.png among them"):
        make(output)


def test_data_module_leaves_out_unreadable_images(output: Path) -> None:
    whole = make(output)
    lost = [part["image_id"].iloc[0] for part in (whole.training, whole.held_out)]
    blank_path(output / "prepared" / "rsna" / "demo", *map(int, lost))
    data = make(output)
    assert not set(lost) & {*data.training["image_id"], *data.held_out["image_id"]}
    assert lost[1] in set(data.expected["image_id"])


def test_data_module_leaves_out_unreadable_breasts(output: Path) -> None:
    patient = int(make(output).held_out["patient_id"].iloc[0])
    # Both images of the left breast, and the first of the right one.
    blank_path(output / "prepared" / "rsna" / "demo", *(4 * patient + i for i in range(3)))
    data = make(output, level="breast", views=Views("one_per_view", other_breast=True))
    expected, held_out = (set(t["prediction_id"]) for t in (data.expected, data.held_out))
    assert expected - held_out == {f"{patient}_L"}
    row = data.held_out.index[data.held_out["prediction_id"] == f"{patient}_R"][0]
    assert validation(data)["mask"][row].tolist() == [False, True, False, False]


@LEVELS
def test_val_dataloader_has_every_sample_once(level: Level, output: Path) -> None:
    data = make(output, batch_size=3, level=level, views=Views(other_breast=True))
    batches: Any = data.val_dataloader()
    shapes = {"image": (3, 1, 64, 32), "label": (3,), "index": (3,)}
    if level == "breast":
        shapes |= {"image": (3, 4, 1, 64, 32), "mask": (3, 4), "view": (3, 4), "other": (3, 4)}
    assert {name: tuple(value.shape) for name, value in next(iter(batches)).items()} == shapes
    whole = validation(data)
    assert whole["index"].tolist() == list(range(len(data.held_out)))
    assert whole["label"].tolist() == data.held_out["label"].tolist()


def test_batches_have_metadata_and_targets_of_images(output: Path) -> None:
    add_columns(output, age=[20 + i for i in range(32)], density=[None, "A", "B", "C"] * 8)
    data = make(output, metadata=Metadata(["age", "view"]), targets=["density", "view"])
    batch = validation(data)
    np.testing.assert_allclose(
        batch["metadata"][:, 0], (data.held_out["age"] - 58.5) / 10, rtol=1e-6
    )
    assert batch["metadata"][:, 2].tolist() == (data.held_out["view"] == "CC").tolist()
    unknown = torch.isnan(batch["target_density"])
    assert unknown.tolist() == data.held_out["density"].isna().tolist()
    assert batch["target_view"].tolist() == (data.held_out["view"] == "MLO").tolist()


def test_batches_have_metadata_and_targets_of_breasts(output: Path) -> None:
    table = add_columns(
        output,
        age=[20 + i for i in range(32)],
        machine_id=[29] * 16 + [49] * 16,
        BIRADS=[None, 1] * 8 + [0, 0, 2, 2] * 4,
        invasive=[0, 1] * 16,
    )
    # Unreadable images count too.
    blank_path(output / "prepared" / "rsna" / "demo", *range(0, 32, 2))
    metadata = Metadata(["age", "machine_id"], machines=[29, 49])
    data = make(output, level="breast", metadata=metadata, targets=["BIRADS", "invasive"])
    batch = validation(data)
    breast = table["patient_id"].astype(str) + "_" + table["laterality"]
    breasts = table.groupby(breast).agg({"age": "mean", "machine_id": "first", "BIRADS": "first"})
    expected = breasts.loc[data.held_out["prediction_id"]]
    np.testing.assert_allclose(batch["metadata"][:, 0], (expected["age"] - 58.5) / 10, rtol=1e-6)
    assert batch["metadata"][:, 2].tolist() == (expected["machine_id"] == 29).tolist()
    assert batch["target_BIRADS"].tolist() == expected["BIRADS"].tolist()
    assert batch["target_invasive"].tolist() == [1] * 8


def test_crops_in_memory_give_the_same_batches(output: Path) -> None:
    kept, read = make(output, crops_in_memory=True), make(output)
    for one, other in (
        (kept.train_dataloader(), read.train_dataloader()),
        (kept.val_dataloader(), read.val_dataloader()),
    ):
        for first, second in zip(one, other, strict=True):
            assert first.keys() == second.keys()
            assert all(torch.equal(first[name], second[name]) for name in first)
    part = make(output, crops_in_memory=True, training_share=0.5)
    used = pd.concat([part.training_images, part.held_out_images])["path"]
    assert set(part._in_memory) == {part._folder / path for path in used} < set(kept._in_memory)


def hashes(batch: dict[str, torch.Tensor]) -> list[str]:
    """Index and hash of each sample."""
    return [
        f"{index} {hashlib.sha256(image.numpy().tobytes()).hexdigest()}"
        for index, image in zip(batch["index"], batch["image"], strict=True)
    ]


def samples_of_rank(output: Path, workers: int, rank: int = 0, world_size: int = 1) -> list[str]:
    """The samples that one rank is given in 13 epochs, in order."""
    data = make(output, workers=workers)
    device = SimpleNamespace(root_device=torch.device("cpu"))
    epoch = SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)))
    trainer: Any = SimpleNamespace(
        global_rank=rank, world_size=world_size, strategy=device, fit_loop=epoch
    )
    data.trainer = trainer
    loader: Any = data.train_dataloader()
    given = []
    for number in range(13):
        loader.sampler.set_epoch(number)
        given += [sample for batch in loader for sample in hashes(batch)]
    return given


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_200_samples_are_the_same_with_other_workers_and_ranks(output: Path) -> None:
    alone = samples_of_rank(output, workers=0)
    assert len(alone) == 208
    assert len(set(alone)) == len(alone)  # each epoch augments by itself
    assert samples_of_rank(output, workers=4) == alone
    ranks = [samples_of_rank(output, workers=2, rank=rank, world_size=2) for rank in (0, 1)]
    assert [sample for pair in zip(*ranks, strict=True) for sample in pair] == alone


class Recorder(pl.LightningModule):
    """Trains nothing; records the samples of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: list[list[str]] = []

    def on_train_epoch_start(self) -> None:  # noqa: D102
        self.epochs.append([])

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:  # noqa: D102
        self.epochs[-1] += hashes(batch)
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:  # noqa: D102
        return torch.optim.SGD(self.parameters(), lr=0.0)


def train(data: CropDataModule, folder: Path, epochs: int) -> list[list[str]]:
    """The samples of each epoch, from a Trainer that resumes where there is a checkpoint."""
    checkpoint = pl.callbacks.ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[checkpoint],
        use_distributed_sampler=False, **quiet,
    )  # fmt: skip
    recorder = Recorder()
    last = folder / "last.ckpt"
    trainer.fit(recorder, datamodule=data, ckpt_path=last if last.exists() else None)
    return recorder.epochs


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec", "ignore:You passed in a `val_dataloader`", "ignore:Checkpoint directory"
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"level": "breast", "views": Views(other_breast=True), "positives_per_batch": 1},
        {"level": "breast", "views": Views("random_per_epoch"), "positives_per_batch": 1},
    ],
)
def test_resumed_run_has_the_samples_of_a_straight_one(
    settings: dict[str, Any], output: Path, tmp_path: Path
) -> None:
    add_columns(output, view="CC")  # two images of one view, so that there is one to draw
    straight = train(make(output, **settings), tmp_path / "a", epochs=3)
    assert [len(epoch) for epoch in straight] == [8 if settings else 16] * 3
    assert not set(straight[0]) & set(straight[1])
    first = train(make(output, workers=2, **settings), tmp_path / "b", epochs=1)
    rest = train(make(output, workers=2, **settings), tmp_path / "b", epochs=3)
    assert first + rest == straight
