"""Padding pixels (PS3.3 C.7.5.1.1.2): left out of statistics, and shown black."""

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from rsna_bcd.imaging.mammogram import Level, Mammogram, StoredPixels, overview_of
from rsna_bcd.imaging.samples import first_integer
from rsna_bcd.imaging.window import Presentation

_WORD = 2**16
# Pixels of the overview around padding that are left out too: averages and wavelets mix the two.
_MIXED = 3
_BLACK = 0.02  # of [0, 1]; padding that is shown darker stays as it is


def padding_range(dataset: Dataset, *, signed: bool) -> tuple[int, int] | None:
    """The lowest and highest stored value of padding (PS3.3 C.7.5.1.1.2); None without padding."""
    value = first_integer(dataset.get("PixelPaddingValue"))
    if value is None:
        return None
    limit = first_integer(dataset.get("PixelPaddingRangeLimit"))
    ends = [value, value if limit is None else limit]
    # With the pixels' sign, whatever VR the elements have.
    ends = [(v + _WORD // 2) % _WORD - _WORD // 2 if signed else v % _WORD for v in ends]
    return min(ends), max(ends)


def is_padding(pixels: StoredPixels, ends: tuple[int, int]) -> NDArray[np.bool_]:
    """Find pixels whose value lies between the ends, both included."""
    return (pixels >= ends[0]) & (pixels <= ends[1])


def without_padding(dataset: Dataset, pixels: StoredPixels) -> NDArray[np.bool_] | None:
    """Find the pixels that are no padding.

    Args:
        dataset: the header.
        pixels: (H, W), of the overview.

    Returns:
        (H, W), False in areas of padding and close to them; None if there is no such area, or
        nothing else. Single pixels of tissue may have the value of padding by chance.
    """
    ends = padding_range(dataset, signed=pixels.dtype.kind == "i")
    if ends is None:
        return None
    square = np.ones((3, 3), np.uint8)
    areas = cv2.erode(is_padding(pixels, ends).astype(np.uint8), square)
    if not areas.any():
        return None
    valid = cv2.dilate(areas, square, iterations=1 + _MIXED) == 0
    return valid if valid.any() else None


def bright_padding(
    dataset: Dataset, overview: StoredPixels, presentation: Presentation
) -> tuple[int, int] | None:
    """The lowest and highest value of padding that would be shown bright; None without such."""
    ends = padding_range(dataset, signed=overview.dtype.kind == "i")
    if ends is None or without_padding(dataset, overview) is None:
        return None
    values = overview[is_padding(overview, ends)]
    return ends if presentation.apply(values).max() > _BLACK else None


def blackened(mammogram: Mammogram, ends: tuple[int, int]) -> Mammogram:
    """The same image, padding replaced by a value that is shown black.

    It is decoded in full: a codec that halves the resolution would mix padding with tissue.

    Args:
        mammogram: the image.
        ends: the lowest and highest value of padding.
    """
    dtype = mammogram.overview.pixels.dtype
    info = np.iinfo(dtype)
    candidates = np.arange(info.min, info.max + 1).astype(dtype)
    candidates = candidates[~is_padding(candidates, ends)]
    shown = mammogram.presentation.apply(candidates)
    # The nearest to the tissue: at the border, both are averaged.
    darkest = candidates[shown <= shown.min()].astype(np.int64)
    middle = int(np.median(mammogram.overview.pixels))
    black = darkest[np.argmin(np.abs(darkest - middle))]

    @cache
    def decode(_: int) -> Level:
        whole = mammogram.decode(0)
        pixels = np.where(is_padding(whole.pixels, ends), dtype.type(black), whole.pixels)
        return replace(whole, pixels=pixels)

    return replace(mammogram, overview=overview_of(decode(0)), most_reduced=0, decode=decode)
