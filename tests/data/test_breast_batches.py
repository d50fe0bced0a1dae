"""A fold by breast: tables, batches, and random streams of (seed, epoch, index) alone."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from fabricated_crops import blank_path, save_crops
from test_datamodule import make, samples

from rsna_bcd.data.datamodule import CropDataModule
from rsna_bcd.errors import InputError
from rsna_bcd.tables.metadata import Metadata
from rsna_bcd.tables.views import Views

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec", "ignore:You passed in a `val_dataloader`", "ignore:Checkpoint directory"
)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    save_crops(tmp_path)
    return tmp_path


def by_breast(output: Path, fold: int | Literal["all"] = 0, **changes: Any) -> CropDataModule:
    data = make(output, fold, level="breast", **changes)
    data.setup()
    return data


def add_columns(output: Path, **columns: Any) -> pd.DataFrame:
    """Columns of the table of crops, given for each of its 32 rows."""
    csv = output / "prepared" / "rsna" / "demo" / "train.csv"
    table = pd.read_csv(csv).assign(**columns)
    table.to_csv(csv, index=False)
    return table


def test_one_row_a_breast(output: Path) -> None:
    data = by_breast(output)
    assert len(data.training) == len(data.held_out) == len(data.expected) == 8
    assert data.training["prediction_id"].is_unique
    assert {"prediction_id", "patient_id", "laterality", "label", "fold"} <= set(data.training)
    assert len(data.training_images) == len(data.held_out_images) == 16
    assert not set(data.training["patient_id"]) & set(data.held_out["patient_id"])
    assert data.prevalence == pytest.approx(data.training["label"].mean())
    assert data.batches_per_epoch == 2


def test_fold_all_trains_on_all_breasts(output: Path) -> None:
    add_columns(output, age=50, invasive=0)
    data = by_breast(output, "all", metadata=Metadata(["age"]), targets=["invasive"])
    assert len(data.training) == 16
    assert data.held_out.empty
    assert data.val_dataloader() == []


def test_validation_batches(output: Path) -> None:
    data = by_breast(output, batch_size=3, views=Views(other_breast=True))
    batches: Any = data.val_dataloader()
    batch = next(iter(batches))
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "image": (3, 4, 1, 64, 32), "mask": (3, 4), "view": (3, 4), "other": (3, 4),
        "label": (3,), "index": (3,),
    }  # fmt: skip
    index = torch.cat([b["index"] for b in batches])
    labels = torch.cat([b["label"] for b in batches])
    assert index.tolist() == list(range(8))
    assert labels.tolist() == data.held_out["label"].tolist()


def test_unreadable_images_and_breasts(output: Path) -> None:
    whole = by_breast(output)
    patient = int(whole.held_out["patient_id"].iloc[0])
    # Both images of the left breast, and the first of the right one.
    blank_path(output / "prepared" / "rsna" / "demo", *(4 * patient + i for i in range(3)))
    data = by_breast(output, views=Views("one_per_view", other_breast=True))
    lost, halved = f"{patient}_L", f"{patient}_R"
    assert lost not in set(data.held_out["prediction_id"])
    assert lost in set(data.expected["prediction_id"])
    assert len(data.expected) == 8
    row = data.held_out.index[data.held_out["prediction_id"] == halved][0]
    batches: Any = data.val_dataloader()
    mask = torch.cat([batch["mask"] for batch in batches])[row]
    assert mask.tolist() == [False, True, False, False]


def test_metadata_and_targets_belong_to_their_breasts(output: Path) -> None:
    table = add_columns(
        output,
        age=[20 + i for i in range(32)],
        machine_id=[29] * 16 + [49] * 16,
        BIRADS=[None, 1] * 8 + [0, 0, 2, 2] * 4,
        invasive=[0, 1] * 16,
    )
    # Annotations also where the image cannot be read.
    blank_path(output / "prepared" / "rsna" / "demo", *range(0, 32, 2))
    data = by_breast(
        output,
        metadata=Metadata(["age", "machine_id"], machines=[29, 49]),
        targets=["BIRADS", "invasive"],
    )
    batches: Any = data.val_dataloader()
    found = {
        name: torch.cat([batch[name] for batch in batches]).numpy()
        for name in ("metadata", "target_BIRADS", "target_invasive")
    }
    table = table.assign(breast=table["patient_id"].astype(str) + "_" + table["laterality"])
    breasts = table.groupby("breast").agg({"age": "mean", "machine_id": "first", "BIRADS": "first"})
    expected = breasts.loc[data.held_out["prediction_id"]]
    np.testing.assert_allclose(found["metadata"][:, 0], (expected["age"] - 58.5) / 10, rtol=1e-6)
    assert found["metadata"][:, 2].tolist() == (expected["machine_id"] == 29).tolist()
    assert found["target_BIRADS"].tolist() == expected["BIRADS"].tolist()
    assert found["target_invasive"].tolist() == [1] * 8


def test_metadata_and_targets_by_image(output: Path) -> None:
    add_columns(output, age=[20 + i for i in range(32)], density=[None, "A", "B", "C"] * 8)
    data = make(output, metadata=Metadata(["age", "view"]), targets=["density", "view"])
    data.setup()
    batches: Any = data.val_dataloader()
    metadata = torch.cat([batch["metadata"] for batch in batches]).numpy()
    np.testing.assert_allclose(metadata[:, 0], (data.held_out["age"] - 58.5) / 10, rtol=1e-6)
    assert metadata[:, 2].tolist() == (data.held_out["view"] == "CC").tolist()
    density = torch.cat([batch["target_density"] for batch in batches])
    assert torch.isnan(density).tolist() == data.held_out["density"].isna().tolist()
    view = torch.cat([batch["target_view"] for batch in batches])
    assert view.tolist() == (data.held_out["view"] == "MLO").tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["cancer"]}, "cancer is no auxiliary target"),
        ({"targets": ["density"]}, "no values of density"),
        ({"targets": ["view"]}, "a breast has several views"),
        ({"metadata": Metadata(["age"])}, "lacks the column.* age"),
        ({"metadata": Metadata(["view"])}, "a breast has several"),
        ({"batch_size": 16}, "An epoch has 8 breasts"),
        ({"positives_per_batch": 4}, "less than batch_size=4"),
    ],
)
def test_bad_settings_are_refused(output: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        by_breast(output, **changes)


@pytest.mark.parametrize("views", [Views(other_breast=True), Views("random_per_epoch")])
def test_samples_depend_on_seed_epoch_and_index_alone(
    output: Path, tmp_path: Path, views: Views
) -> None:
    """With other workers, and resumed after two epochs."""
    # Every breast has two images of one view, so that there is something to draw.
    add_columns(output, view="CC")
    settings: dict[str, Any] = {"level": "breast", "views": views, "positives_per_batch": 1}
    straight = samples(output, tmp_path / "a" / "last.ckpt", workers=0, epochs=4, **settings)
    assert [len(epoch) for epoch in straight] == [8] * 4
    assert not set(straight[0]) & set(straight[1])
    checkpoint = tmp_path / "b" / "last.ckpt"
    first = samples(output, checkpoint, workers=2, epochs=2, **settings)
    rest = samples(output, checkpoint, workers=2, epochs=4, **settings)
    assert first + rest == straight
