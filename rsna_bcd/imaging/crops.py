"""Prepared crops: reading, conversion, intensity statistics."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna_bcd.errors import InputError

Crop = NDArray[np.unsignedinteger[Any]]  # (H, W), uint8 or uint16, tissue bright, background 0


def as_training_input(crop: Crop) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Convert crops of 16 bits to float32 in [0, 1]; those of 8 bits are returned unchanged.

    uint8 needs a quarter of the memory on its way to the device. Augmentation and torch support
    uint16 poorly.
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
    # WebP has no grey images: those of equal channels are read as one.
    is_webp = file.suffix.lower() == ".webp"
    flags = cv2.IMREAD_GRAYSCALE if is_webp else cv2.IMREAD_UNCHANGED
    pixels = cv2.imread(str(file), flags)  # None instead of an exception
    if pixels is None:
        raise InputError(f"{file} is absent or damaged. Delete it and run prepare again.")
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 2:
        raise InputError(
            f"{file} is {pixels.dtype} of shape {pixels.shape} instead of grey of 8 or 16 bits. "
            "Delete it and run prepare again."
        )
    return pixels  # type: ignore[return-value]  # the dtype was checked above


def read_crops(files: Iterable[Path]) -> Mapping[Path, Crop]:
    """Read many crops into memory, once per process as long as the files do not change.

    Returns:
        The crops by file. The arrays are read-only, because callers share them.

    Raises:
        InputError: as `read_crop`.
    """
    stamps = []
    for file in files:
        status = file.stat()
        stamps.append((file, status.st_size, status.st_mtime_ns))
    return _read_crops(tuple(sorted(stamps)))


@lru_cache(maxsize=2)  # folders of crops, e.g. of two sizes
def _read_crops(stamps: tuple[tuple[Path, int, int], ...]) -> Mapping[Path, Crop]:
    files = [file for file, _, _ in stamps]
    with ThreadPoolExecutor() as threads:  # OpenCV decodes outside the GIL
        crops = dict(zip(files, threads.map(read_crop, files), strict=True))
    for crop in crops.values():
        crop.flags.writeable = False
    return crops


_PERCENTILES = (1, 5, 25, 50, 75, 95, 99, 99.9)
_BINS = 16
_SPARSE = 10  # pixels; a breast with fewer has no statistics

FEATURES = (
    "area",
    "mean",
    "sd",
    "skewness",
    "kurtosis",
    *(f"percentile_{p:g}" for p in _PERCENTILES),
    *(f"bin_{i}" for i in range(_BINS)),
    "gradient_mean",
    "gradient_energy",
    "gradient_99",
)


def intensity_statistics(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute statistics of the breast's grey values and gradient, as features of a baseline.

    The breast is where pixels are above 0, the background of a crop.

    Args:
        pixels: (H, W), a crop.

    Returns:
        (len(FEATURES),): share of the frame; moments and percentiles in grey levels; share of each
        of 16 bins of 16 levels; mean, mean square and 99th percentile of the gradient's length in
        levels per pixel. All but the area are NaN below 10 pixels.
    """
    breast = pixels > 0
    count = int(breast.sum())
    if count < _SPARSE:
        return np.array([breast.mean(), *[np.nan] * (len(FEATURES) - 1)])
    levels = np.arange(256)
    share = np.bincount(pixels[breast], minlength=256) / count
    mean = share @ levels
    centred = levels - mean
    sd = np.sqrt(share @ centred**2)
    # A flat breast has no shape of its distribution: the moments are those of a point, 0.
    skewness, kurtosis = (share @ (centred / sd) ** k if sd > 0 else 0.0 for k in (3, 4))
    # The lowest level with at least p % of the pixels at or below it.
    percentiles = np.searchsorted(np.cumsum(share), np.array(_PERCENTILES) / 100 - 1e-12)
    gradient = _gradient(pixels, breast)
    moments, bins = [mean, sd, skewness, kurtosis], share.reshape(_BINS, -1).sum(axis=1)
    slopes = [gradient.mean(), np.mean(gradient**2), np.quantile(gradient, 0.99)]
    return np.concatenate([[breast.mean()], moments, percentiles, bins, slopes])


def _gradient(pixels: NDArray[np.uint8], breast: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Length of the forward difference wherever pixel, right and lower neighbour are breast."""
    inside = breast[:-1, :-1] & breast[:-1, 1:] & breast[1:, :-1]
    if not inside.any():
        return np.zeros(1)
    values = pixels.astype(np.float64)  # differences of uint8 would wrap
    down = (values[1:, :-1] - values[:-1, :-1])[inside]
    right = (values[:-1, 1:] - values[:-1, :-1])[inside]
    return np.hypot(down, right)
