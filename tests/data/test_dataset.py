"""Crops as samples, by image and by breast: pixels, places, padding, random streams."""

from pathlib import Path
from typing import Any

import albumentations
import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from rsna_bcd.data.augment import Augmentation
from rsna_bcd.data.dataset import Annotations, BreastDataset, CropDataset, Crops, collate_breasts
from rsna_bcd.models.prediction import to_input
from rsna_bcd.tables.metadata import Metadata
from rsna_bcd.tables.views import Views

HEIGHT, WIDTH = 20, 10
# Image i is uniformly i + 100, so that pixels name their row.
IMAGES = pd.DataFrame(
    [
        ("1_L", "1", "CC"), ("1_L", "1", "MLO"), ("1_L", "1", "CC"), ("1_L", "1", "AT"),
        ("1_R", "1", "MLO"),
        ("2_L", "2", "LM"),
        ("3_R", "3", "MLO"), ("3_R", "3", "CC"),
    ],
    columns=["prediction_id", "patient_id", "view"],
)  # fmt: skip
BREASTS = IMAGES.drop_duplicates("prediction_id", ignore_index=True).assign(label=[1, 0, 0, 1])
NOISE = Augmentation([albumentations.RandomBrightnessContrast(p=1)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for row in range(len(IMAGES)):
        cv2.imwrite(str(tmp_path / f"{row}.png"), np.full((HEIGHT, WIDTH), row + 100, np.uint8))
    return tmp_path


def make(
    folder: Path, views: Views, augment: Augmentation | None = None, **more: Any
) -> BreastDataset:
    images = IMAGES.assign(path=[f"{row}.png" for row in range(len(IMAGES))])
    return BreastDataset(BREASTS, images, Crops(folder, augment, 5), views, **more)


def rows(sample: dict[str, torch.Tensor]) -> list[int | None]:
    """Which image is in which place."""
    values = sample["image"][:, 0].flatten(1)
    assert (values == values[:, :1]).all()
    return [
        int(value) - 100 if there else None
        for value, there in zip(values[:, 0], sample["mask"], strict=True)
    ]


def test_breast_dataset_policy_all(folder: Path) -> None:
    dataset = make(folder, Views())
    assert len(dataset) == 4
    assert [rows(dataset[0, i]) for i in range(4)] == [[0, 1, 2, 3], [4], [5], [7, 6]]
    sample = dataset[0, 0]
    assert sample["image"].shape == (4, 1, HEIGHT, WIDTH)
    assert sample["image"].dtype == torch.uint8
    assert sample["mask"].dtype == sample["other"].dtype == torch.bool
    assert sample["view"].tolist() == [0, 1, 0, 2]
    assert not sample["other"].any()
    assert (sample["label"].item(), sample["index"].item()) == (1, 0)


def test_breast_dataset_with_the_other_breast(folder: Path) -> None:
    dataset = make(folder, Views("one_per_view", other_breast=True))
    samples = [dataset[0, i] for i in range(4)]
    expected = [[0, 1, None, 4], [None, 4, 0, 1], [5, None, None, None], [7, 6, None, None]]
    assert [rows(sample) for sample in samples] == expected
    assert all(sample["other"].tolist() == [False, False, True, True] for sample in samples)
    views = [[0, 1, 2, 1], [2, 1, 0, 1], [2, 2, 2, 2]]
    assert [sample["view"].tolist() for sample in samples[:3]] == views
    assert not samples[2]["image"][1:].any()
    dataset = make(folder, Views(most=2, other_breast=True))
    assert [rows(dataset[0, i]) for i in range(4)] == [[0, 1, 4], [4, 0, 1], [5], [7, 6]]


def test_collate_breasts_pads_to_the_longest(folder: Path) -> None:
    dataset = make(folder, Views(other_breast=True))
    batch = collate_breasts([dataset[0, i] for i in (3, 0)])
    assert batch["image"].shape == (2, 5, 1, HEIGHT, WIDTH)
    assert batch["mask"].tolist() == [[True, True, False, False, False], [True] * 5]
    assert batch["view"].tolist() == [[0, 1, 2, 2, 2], [0, 1, 0, 2, 1]]
    assert batch["other"].tolist() == [[False] * 5, [False] * 4 + [True]]
    assert not batch["image"][0, 2:].any()
    assert batch["label"].tolist() == [1, 1]
    assert batch["index"].tolist() == [3, 0]


def test_breast_dataset_augments_each_image_by_itself(folder: Path) -> None:
    dataset = make(folder, Views(other_breast=True), NOISE)
    left, right = dataset[2, 0], dataset[2, 1]
    own = left["image"][:4, 0, 0, 0].tolist()
    assert len(set(own)) > 2
    assert right["image"][1:, 0, 0, 0].tolist() == own
    assert dataset[3, 0]["image"][:4, 0, 0, 0].tolist() != own


def test_breast_dataset_draws_repeats_in_training_only(folder: Path) -> None:
    still = Augmentation([])
    training = make(folder, Views("random_per_epoch"), still)
    drawn = [rows(training[epoch, 0]) for epoch in range(20)]
    assert {tuple(places) for places in drawn} == {(0, 1), (2, 1)}
    assert [rows(training[epoch, 0]) for epoch in range(20)] == drawn
    evaluation = make(folder, Views("random_per_epoch"))
    assert all(rows(evaluation[epoch, 0]) == [0, 1] for epoch in range(20))


def test_breast_dataset_adds_metadata_and_targets(folder: Path) -> None:
    encoder = Metadata(["implant"], forget=0.5)
    table = BREASTS.assign(implant=pd.Series([0, 1, None, 0]))
    known = Annotations(
        encoder.encode(table), encoder, {"BIRADS": np.array([2, np.nan, 0, 1], np.float32)}
    )
    sample = make(folder, Views(), annotations=known)[0, 1]
    assert sample["metadata"].tolist() == [1, 0]
    assert sample["metadata"].dtype == sample["target_BIRADS"].dtype == torch.float32
    assert torch.isnan(sample["target_BIRADS"])
    training = make(folder, Views(), Augmentation([]), annotations=known)
    drawn = [tuple(training[epoch, 1]["metadata"].tolist()) for epoch in range(20)]
    assert set(drawn) == {(1, 0), (0, 1)}
    assert [tuple(training[epoch, 1]["metadata"].tolist()) for epoch in range(20)] == drawn
    assert "metadata" not in make(folder, Views())[0, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_crop_dataset_keeps_pixels_label_and_index(dtype: Any, tmp_path: Path) -> None:
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(0, top, (3, 20, 10), dtype, endpoint=True)
    for i, image in enumerate(pixels):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
    images = pd.DataFrame({"path": ["0.png", "1.png", "2.png"], "label": [0, 1, 0]})
    dataset = CropDataset(images, Crops(tmp_path, None, seed=0))
    assert len(dataset) == 3
    for i, image in enumerate(pixels):
        sample = dataset[0, i]
        assert sample["image"].dtype == (torch.uint8 if dtype is np.uint8 else torch.float32)
        np.testing.assert_allclose(to_input(sample["image"])[0], image / top, atol=1e-7)
        assert sample["label"].dtype == torch.float32
        assert (sample["label"].item(), sample["index"].item()) == (i == 1, i)
