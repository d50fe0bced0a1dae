"""Crops as tensors."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from rsna_bcd.data.augment import Augmentation
from rsna_bcd.errors import InputError


def read_crop(file: Path) -> NDArray[np.uint8]:
    """Read a prepared crop.

    Returns:
        (H, W) uint8, tissue bright, background 0.

    Raises:
        InputError: the file is absent or damaged, or is not an 8-bit image of one channel.
    """
    pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)  # None instead of an exception
    if pixels is None:
        raise InputError(f"{file} is absent or damaged. Run prepare again with overwrite=true.")
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise InputError(
            f"{file} is {pixels.dtype} of shape {pixels.shape} instead of 8-bit grey. "
            "Run prepare again with overwrite=true."
        )
    return pixels  # type: ignore[return-value]  # the dtype was checked above


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
            `image` (1, H, W) uint8, a quarter of the memory of float on its way to the device;
            `label` () float32; `index` () int64.
        """
        epoch, index = key
        pixels = read_crop(self._files[index])
        if self._augment is not None:
            pixels = self._augment(pixels, (self._seed, epoch, index))
        return {
            "image": torch.from_numpy(pixels)[None],
            "label": torch.tensor(self._labels[index]),
            "index": torch.tensor(index),
        }
