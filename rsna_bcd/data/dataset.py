"""Crops as tensors."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from rsna_bcd.data.augment import Augmentation
from rsna_bcd.imaging.crops import as_training_input, read_crop


class CropDataset(Dataset[dict[str, torch.Tensor]]):
    """Crops and labels by (epoch, index).

    The epoch comes with each index, from the sampler, and so reaches a worker process however long
    that worker lives.

    Args:
        images: rows with `path`, relative to `folder`, and `label` (0 or 1).
        folder: the prepared folder.
        augment: None for validation.
        seed: of the augmentation.
    """

    def __init__(
        self, images: pd.DataFrame, folder: Path, augment: Augmentation | None, seed: int
    ) -> None:
        self._files = [folder / path for path in images["path"]]
        self._labels = images["label"].to_numpy(np.float32)
        self._augment = augment
        self._seed = seed

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Read one sample.

        Args:
            key: (epoch, index), the index being the row of `images`.

        Returns:
            `image` (1, H, W), uint8 or float32 in [0, 1] (see `as_training_input`);
            `label` () float32; `index` () int64.
        """
        epoch, index = key
        pixels = as_training_input(read_crop(self._files[index]))
        if self._augment is not None:
            pixels = self._augment(pixels, (self._seed, epoch, index))
        return {
            "image": torch.from_numpy(pixels)[None],
            "label": torch.tensor(self._labels[index]),
            "index": torch.tensor(index),
        }
