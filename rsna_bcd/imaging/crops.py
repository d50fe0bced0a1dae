"""Prepared crops from disk."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna_bcd.errors import InputError

Crop = NDArray[np.unsignedinteger[Any]]  # (H, W), uint8 or uint16, tissue bright, background 0


def as_training_input(crop: Crop) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Crops of 8 bits as they are, those of 16 bits as float32 in [0, 1].

    uint8 is a quarter of the memory on its way to the device; of uint16, augmentation and torch
    know too little.
    """
    return crop if crop.dtype == np.uint8 else crop.astype(np.float32) / np.float32(65535)


def in_8_bits(crop: Crop) -> NDArray[np.uint8]:
    """The upper 8 bits of each pixel."""
    return crop if crop.dtype == np.uint8 else (crop >> 8).astype(np.uint8)


def read_crop(file: Path) -> Crop:
    """Read a prepared crop.

    Returns:
        (H, W) uint8 or uint16, as it was prepared.

    Raises:
        InputError: the file is absent or damaged, or is not an image of one channel.
    """
    pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)  # None instead of an exception
    if pixels is None:
        raise InputError(f"{file} is absent or damaged. Delete it and run prepare again.")
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 2:
        raise InputError(
            f"{file} is {pixels.dtype} of shape {pixels.shape} instead of grey of 8 or 16 bits. "
            "Delete it and run prepare again."
        )
    return pixels  # type: ignore[return-value]  # the dtype was checked above
