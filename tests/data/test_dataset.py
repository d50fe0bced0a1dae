"""Crops become tensors unchanged; what is no crop is named."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from rsna_bcd.data.dataset import CropDataset, read_crop
from rsna_bcd.errors import InputError
from rsna_bcd.models.prediction import to_input


def test_pixels_label_and_index_arrive_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 10), dtype=np.uint8)
    for i, image in enumerate(pixels):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
    images = pd.DataFrame({"path": ["0.png", "1.png", "2.png"], "label": [0, 1, 0]})
    dataset = CropDataset(images, tmp_path, augment=None, seed=0)
    assert len(dataset) == 3
    for i, image in enumerate(pixels):
        sample = dataset[0, i]
        assert sample["image"].dtype == torch.uint8
        assert np.array_equal(sample["image"].numpy(), image[None])
        assert sample["label"].dtype == torch.float32
        assert (sample["label"].item(), sample["index"].item()) == (i == 1, i)


def test_an_absent_crop_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.png is absent or damaged"):
        read_crop(tmp_path / "nowhere.png")


def test_a_truncated_crop_is_named(tmp_path: Path) -> None:
    file = tmp_path / "half.png"
    cv2.imwrite(str(file), np.full((20, 10), 9, np.uint8))
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(InputError, match=r"half\.png is absent or damaged"):
        read_crop(file)


def test_another_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "odd.png"
    cv2.imwrite(str(file), np.zeros((20, 10, 3), np.uint8))
    with pytest.raises(InputError, match=r"odd\.png is uint"):
        read_crop(file)


def test_crops_of_16_bits_keep_their_depth(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 10), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "0.png"), pixels)
    images = pd.DataFrame({"path": ["0.png"], "label": [0]})
    image = CropDataset(images, tmp_path, augment=None, seed=0)[0, 0]["image"]
    np.testing.assert_allclose(to_input(image)[0].numpy(), pixels / 65535, atol=1e-7)
    shallow = torch.from_numpy((pixels >> 8).astype(np.uint8))
    assert (to_input(shallow) - to_input(image)[0]).abs().max() < 1 / 255
