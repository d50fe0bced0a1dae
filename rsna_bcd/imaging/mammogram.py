"""The image that every reader returns, decoded on demand."""

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

# The longer side of the overview is between this and half of it, whatever the detector.
OVERVIEW = 512

# The largest mammogram of the competition has 28 million pixels; a header may claim 4 billion.
MOST_PIXELS = 2**26

# How the reasons begin why a file without content is refused.
EMPTY = "the file is empty"
FLAT = "all pixels"


class ImageError(InputError):
    """An image file that cannot be used; the message is the reason, without the path."""


@dataclass(frozen=True)
class ResolutionLevel:
    """An image at one of its resolutions.

    Attributes:
        pixels: stored values, (ceil(H / 2**reduced), ceil(W / 2**reduced)) where the codec reduced
            them, rounded down where we did; not yet windowed or inverted.
        reduced: how often the resolution was halved.
        decoder: its name.
    """

    pixels: StoredPixels
    reduced: int
    decoder: str


@dataclass(frozen=True)
class Mammogram:
    """One image.

    Attributes:
        height, width: in pixels, of the whole image.
        overview: the image reduced until its longer side is at most OVERVIEW.
        display: maps stored values to [0, 1] with tissue bright and background dark.
        facts: properties of the file for the manifest: `transfer_syntax`, `photometric`,
            `bits_stored`, `source_sha256`.
        most_reduced: the highest level that the codec offers; 0 if only the whole image.
        decode: the image at a level from 0 to `most_reduced`, or at level 0 where the reducing
            decoder refused the file.
        flags: quality flags, from the pixels and from the header.
        pixel_aspect: height of a pixel divided by its width.
    """

    height: int
    width: int
    overview: ResolutionLevel
    display: DisplayTransform
    facts: Mapping[str, str | int]
    most_reduced: int
    decode: Callable[[int], ResolutionLevel]
    flags: tuple[QualityFlag, ...] = ()
    pixel_aspect: float = 1.0

    @property
    def pixels(self) -> StoredPixels:
        """Stored values of the whole image, (height, width)."""
        return self.decode(0).pixels

    def preview(self) -> NDArray[np.float32]:
        """The overview as it is displayed, (h, w) in [0, 1]; the breast is segmented in it.

        Stored values are averaged before they are windowed: the difference is some hundredths of a
        grey level, and it saves a pass over 26 million pixels. A fitted ramp is widened to all
        values, since the skin may lie below it.
        """
        display, voi = self.display, self.display.voi
        if isinstance(voi, FittedRamp):
            display = replace(display, voi=Range(*voi.widest))
        return display.apply(self.overview.pixels)


def in_memory(
    pixels: StoredPixels,
    decoder: str,
    display_transform: Callable[[StoredPixels], DisplayTransform],
) -> Mammogram:
    """Make a `Mammogram` without facts of pixels that are decoded already.

    Args:
        pixels: stored values, (H, W).
        decoder: its name.
        display_transform: computes the display transform from the stored values of the overview.

    Raises:
        ImageError: all pixels are equal.
    """
    check_not_constant(pixels)
    whole = ResolutionLevel(pixels, 0, decoder)
    overview = reduce_to_overview(whole)
    height, width = pixels.shape
    display = display_transform(overview.pixels)
    decode = cache(lambda _: whole)
    return Mammogram(height, width, overview, display, {}, 0, decode, display.flags)


def reduce_to_overview(level: ResolutionLevel) -> ResolutionLevel:
    """Halve a level until its longer side is at most OVERVIEW: each pixel the mean of four."""
    pixels: NDArray[Any] = level.pixels
    halvings = 0
    while max(pixels.shape) > OVERVIEW:
        height, width = pixels.shape
        # An odd last row or column is left out. With exact halves OpenCV is six times as fast.
        even = pixels[: height // 2 * 2, : width // 2 * 2]
        pixels = cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        halvings += 1
    return ResolutionLevel(pixels, level.reduced + halvings, level.decoder)


def centred(region: NDArray, reduced: int) -> NDArray:
    """Shift an image that JPEG 2000 reduced to where area averages would be.

    The low band is sampled at even pixels (ISO 15444-1 F.4.8): after L halvings, pixel n lies on
    source pixel 2^L n, while the mean of 2^L pixels lies (2^L - 1) / 2 further. Linear
    interpolation corrects that, and removes the sharpness that the low band has over means: of all
    4 x 4 kernels, least squares on real mammograms chose this one, to .02.
    """
    if not reduced:
        return region
    shift = (2**reduced - 1) / 2 / 2**reduced  # in pixels of the region
    kernel = np.array([1 - shift, shift], np.float32)
    return cv2.sepFilter2D(
        region, -1, kernel, kernel, anchor=(0, 0), borderType=cv2.BORDER_REPLICATE
    )


def averaged_overview(level: ResolutionLevel, height: int, width: int) -> StoredPixels:
    """The overview as averages over a level that the codec reduced.

    So its statistics do not depend on the transfer syntax: the codec's low band is displaced,
    overshoots at edges, and has one more row or column where the size of the whole image,
    `height` x `width`, is odd.
    """
    pixels = centred(level.pixels, level.reduced)
    pixels = pixels[: max(1, height >> level.reduced), : max(1, width >> level.reduced)]
    return reduce_to_overview(replace(level, pixels=pixels)).pixels


def overview_level(height: int, width: int) -> int:
    """How often an image must be halved until its longer side is at most OVERVIEW."""
    return (-(-max(height, width) // OVERVIEW) - 1).bit_length()


def check_not_constant(pixels: StoredPixels) -> None:
    """Check that pixels differ; else the image is empty, or a decoder failed silently.

    Raises:
        ImageError: all pixels are equal.
    """
    low, high, _, _ = cv2.minMaxLoc(pixels)
    if low == high:
        raise ImageError(f"{FLAT} have the value {low:.0f}")
