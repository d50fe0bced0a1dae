"""Mammograms that somebody has already turned into PNG, JPEG or TIFF pictures."""

from pathlib import Path

import cv2
import numpy as np

from rsna_bcd.imaging.breast import has_bright_background
from rsna_bcd.imaging.mammogram import ImageError, Mammogram, refuse_constant
from rsna_bcd.imaging.window import FullRange, Presentation, Rescale

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_OVERVIEW = 512


def read_picture(path: Path) -> Mammogram:
    """Read a picture; a bright background (MONOCHROME1 taken as it was) is recognised.

    Pictures of 8 bits are shown over 0 to 255. Pictures of 16 bits hold 10 to 16 bits of content,
    and no header says which: they are shown from their minimum to their maximum.

    Raises:
        ImageError: no picture, not grey, or without content.
    """
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError("not a picture that OpenCV can read, or a damaged one")
    if pixels.ndim == 3:
        colours = pixels[..., :3].astype(np.int32)
        # JPEG stores grey as luminance, so the three channels agree to within rounding.
        if np.ptp(colours, axis=2).max() > 2:
            raise ImageError("a colour picture; mammograms are grey")
        pixels = np.ascontiguousarray(pixels[..., 1])
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"a picture of {pixels.dtype}; 8 or 16 bits without sign are expected")
    refuse_constant(pixels)
    voi = FullRange(0, 255) if pixels.dtype == np.uint8 else _full_range(pixels)
    upright = Mammogram(pixels, Presentation(Rescale(), voi, inverted=False), {})
    inverted = has_bright_background(upright.overview(_OVERVIEW))
    return Mammogram(
        pixels,
        Presentation(Rescale(), voi, inverted),
        {
            "decoder": "opencv",
            "transfer_syntax": path.suffix.lower().lstrip("."),
            "photometric": "MONOCHROME1" if inverted else "MONOCHROME2",
            "bits_stored": 8 * pixels.dtype.itemsize,
        },
    )


def _full_range(pixels: np.ndarray) -> FullRange:
    return FullRange(float(pixels.min()), float(pixels.max()))
