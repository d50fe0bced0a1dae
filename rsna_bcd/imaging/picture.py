"""Mammograms that somebody has already turned into PNG, JPEG or TIFF pictures."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rsna_bcd.imaging.breast import has_bright_background
from rsna_bcd.imaging.mammogram import (
    EMPTY,
    ImageError,
    Mammogram,
    StoredPixels,
    in_memory,
)
from rsna_bcd.imaging.ramp import fit_ramp, value_range
from rsna_bcd.imaging.window import Presentation, Range, Rescale

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def read_picture(path: Path) -> Mammogram:
    """Read a picture; a bright background (MONOCHROME1 taken as it was) is recognised.

    Pictures of 8 bits are shown over 0 to 255. Pictures of 16 bits hold 10 to 16 bits of content,
    and no header says which: a ramp is fitted to their tissue.

    Raises:
        ImageError: no picture, not grey, or without content.
    """
    content = path.read_bytes()
    if not content:  # to which OpenCV has no answer
        raise ImageError(EMPTY)
    pixels: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError("not a picture that OpenCV can read, or a damaged one")
    if pixels.ndim == 3:
        first, second, third, *_ = cv2.split(pixels)
        # JPEG stores grey as luminance, so the three channels agree to within rounding.
        if max(cv2.absdiff(first, second).max(), cv2.absdiff(second, third).max()) > 2:
            raise ImageError("a colour picture; mammograms are grey")
        pixels = second
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"a picture of {pixels.dtype}; 8 or 16 bits without sign are expected")
    mammogram = in_memory(pixels, "opencv", _presentation, {})
    return replace(
        mammogram,
        facts={
            "transfer_syntax": path.suffix.lower().lstrip("."),
            "photometric": "MONOCHROME1" if mammogram.presentation.inverted else "MONOCHROME2",
            "bits_stored": 8 * pixels.dtype.itemsize,
            "source_sha256": hashlib.sha256(content).hexdigest(),
        },
    )


def _presentation(overview: StoredPixels) -> Presentation:
    """Black to white, or a ramp fitted to the tissue; inverted if the background is bright."""
    values = overview.astype(np.float32)
    whole = Range(0, 255) if overview.dtype == np.uint8 else Range(*value_range(values))
    inverted = has_bright_background(whole(values))
    voi = whole if overview.dtype == np.uint8 else fit_ramp(values, inverted=inverted)
    return Presentation(Rescale(), voi, inverted)
