"""Prepared crops from disk."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

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
