"""What every reader returns: an image that is decoded no further than somebody asks for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.quality import QualityFlag
from rsna_bcd.imaging.voi import DisplayTransform, FittedRamp, Range

StoredPixels = NDArray[np.integer[Any]]  # uint8, uint16 or int16

# The breast is searched on at most so many pixels of the longer side: between this and half of it,
# whatever the detector.
OVERVIEW = 512

# The largest mammogram of the competition has 28 million pixels; a header may claim 4 billion.
MOST_PIXELS = 2**26

# How the reasons begin why a file without content is refused.
EMPTY = "the file is empty"
FLAT = "all pixels"


class ImageError(InputError):
    """An image file that cannot be used; the message is the reason, without the path."""


@dataclass(frozen=True)
class Level:
    """An image at one of its resolutions.

    Attributes:
        pixels: stored values, (ceil(H / 2**reduced), ceil(W / 2**reduced)) where the codec reduced
            them, rounded down where we did; not yet windowed or inverted.
        reduced: how often the resolution was halved.
        decoder: which one it came from.
    """

    pixels: StoredPixels
    reduced: int
    decoder: str


@dataclass(frozen=True)
class Mammogram:
    """One image.

    Attributes:
        height: in pixels, of the whole image.
        width: likewise.
        overview: the image reduced until its longer side is at most OVERVIEW.
        display: maps stored values to [0, 1] with tissue bright and background dark.
        facts: what was found in the file, for the manifest: `transfer_syntax`, `photometric`,
            `bits_stored`.
        most_reduced: the highest level that the codec offers; 0 if it offers the whole image only.
        decode: the image at a level from 0 to `most_reduced`. What comes back may be less reduced
            than asked for, where the reducing decoder refused the file.
        flags: quality flags, from the pixels and from the header.
        pixel_aspect: height of a pixel divided by its width.
    """

    height: int
    width: int
    overview: Level
    display: DisplayTransform
    facts: Mapping[str, str | int]
    most_reduced: int
    decode: Callable[[int], Level]
    flags: tuple[QualityFlag, ...] = ()
    pixel_aspect: float = 1.0

    @property
    def pixels(self) -> StoredPixels:
        """Stored values of the whole image, (height, width)."""
        return self.decode(0).pixels

    def preview(self) -> NDArray[np.float32]:
        """The overview in which the breast is found: as it is shown, (h, w) in [0, 1].

        Stored values are averaged before they are windowed: at this size nobody sees the
        difference (some hundredths of a grey level), and it saves a pass over 26 million pixels.
        A fitted ramp is widened to all values, since the skin may lie below it.
        """
        shown, voi = self.display, self.display.voi
        if isinstance(voi, FittedRamp):
            shown = replace(shown, voi=Range(*voi.widest))
        return shown.apply(self.overview.pixels)


def in_memory(
    pixels: StoredPixels,
    decoder: str,
    display_transform: Callable[[StoredPixels], DisplayTransform],
    facts: Mapping[str, str | int],
) -> Mammogram:
    """An image that has been decoded already.

    Args:
        pixels: stored values, (H, W).
        decoder: where they came from.
        display_transform: how to show them, given the stored values of the overview.
        facts: see `Mammogram`.

    Raises:
        ImageError: all pixels are equal.
    """
    refuse_constant(pixels)
    whole = Level(pixels, 0, decoder)
    small = overview_of(whole)
    height, width = pixels.shape
    display = display_transform(small.pixels)
    flags = display.flags
    return Mammogram(height, width, small, display, facts, 0, cache(lambda _: whole), flags)


def overview_of(level: Level) -> Level:
    """Halve a level until its longer side is at most OVERVIEW: each pixel the mean of four."""
    pixels, halvings = level.pixels, 0
    while max(pixels.shape) > OVERVIEW:
        height, width = pixels.shape
        # An odd last row or column is left out. With exact halves OpenCV is six times as fast.
        even = pixels[: height // 2 * 2, : width // 2 * 2]
        pixels = cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        halvings += 1
    return Level(pixels, level.reduced + halvings, level.decoder)


def centred(region: NDArray, reduced: int) -> NDArray:
    """Move a reduced image to where averages over areas would be.

    The low band of JPEG 2000 is sampled at even pixels (ISO 15444-1 F.4.8): after L halvings, pixel
    n lies on source pixel 2^L n, while the mean of 2^L pixels lies (2^L - 1) / 2 further. Linear
    interpolation makes up for it, and takes back the sharpness that the low band has over means:
    of all 4 x 4 kernels, least squares on real mammograms chose this one, to .02.
    """
    if not reduced:
        return region
    shift = (2**reduced - 1) / 2 / 2**reduced  # in pixels of the region
    kernel = np.array([1 - shift, shift], np.float32)
    return cv2.sepFilter2D(
        region, -1, kernel, kernel, anchor=(0, 0), borderType=cv2.BORDER_REPLICATE
    )


def as_averaged(level: Level, height: int, width: int) -> StoredPixels:
    """The overview as averages over the decoded image, whatever codec reduced it.

    Statistics of it do not depend on the transfer syntax: the codec's own low band is displaced,
    overshoots at edges, and has one more row or column where the size is odd.

    Args:
        level: not smaller than the overview.
        height: of the whole image.
        width: likewise.
    """
    if level.reduced:
        pixels = centred(level.pixels, level.reduced)
        pixels = pixels[: max(1, height >> level.reduced), : max(1, width >> level.reduced)]
        level = replace(level, pixels=pixels)
    return overview_of(level).pixels


def overview_level(height: int, width: int) -> int:
    """How often an image must be halved until its longer side is at most OVERVIEW."""
    level = 0
    while -(-max(height, width) // 2**level) > OVERVIEW:
        level += 1
    return level


def extremes_of(pixels: StoredPixels) -> NDArray[np.float32]:
    """The smallest and the largest value."""
    low, high, _, _ = cv2.minMaxLoc(pixels)
    return np.array([low, high], np.float32)


def refuse_constant(pixels: StoredPixels) -> None:
    """Raise if all pixels are equal: an image without content, or a decoder's silent failure."""
    low, high = extremes_of(pixels)
    if low == high:
        raise ImageError(f"{FLAT} have the value {low:.0f}")
