"""Stored samples: alignment, sign and overlay bits of a word (PS3.5 8.1.1)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from rsna_bcd.imaging.codestream import Codestream
from rsna_bcd.imaging.mammogram import StoredPixels

Words = NDArray[np.integer[Any]]  # uint8 or uint16, as decoded

_OVERLAYS = range(0x6000, 0x6020, 2)  # groups of overlay planes


@dataclass(frozen=True)
class Samples:
    """How a word holds its pixel.

    Attributes:
        bits: of a pixel.
        signed: whether pixels are signed.
        above: number of bits below the pixel.
        overlays: mask of the bits that hold overlays; 0 if there are none.
        bits_of_header: bits of a signed pixel whose codestream says that it is unsigned; None
            otherwise. The codestream has more bits if it holds the sign extended to them.
    """

    bits: int
    signed: bool
    above: int = 0
    overlays: int = 0
    bits_of_header: int | None = None

    @property
    def are_values(self) -> bool:
        """Whether words are pixel values, so that the codec may average them."""
        return not self.overlays and self.bits_of_header is None

    def interpret(self, words: Words) -> StoredPixels:
        """Turn decoded words into pixels, uint8, uint16 or int16.

        Bits above those stored may hold anything in signed images. Unsigned values keep them unless
        they are overlays: files exist whose values exceed their BitsStored and are right. Pixels
        stay where they are if the bits below them are in use: then the header's HighBit is wrong.
        """
        if self.overlays:
            words = words & words.dtype.type(~self.overlays & (2 ** (8 * words.itemsize) - 1))
        if self.above and not (words & words.dtype.type(2**self.above - 1)).any():
            words = words >> self.above
        if not self.signed:
            return words
        bits = self.bits
        if self.bits_of_header is not None and int(words.max()) < 2**self.bits_of_header:
            bits = self.bits_of_header
        shift = 16 - bits
        return (words.astype(np.uint16) << shift).view(np.int16) >> shift


def samples_of(dataset: Dataset, stream: Codestream | None) -> Samples:
    """How the words of a file hold their pixels.

    Where header and codestream disagree on the precision, the codestream is right. A codestream
    that says unsigned under a signed header holds two's complement.

    Args:
        dataset: the header.
        stream: of the compressed frame; None for raw pixels and RLE.
    """
    stored, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
    signed = bool(dataset.get("PixelRepresentation", 0))
    above = int(dataset.get("HighBit") or 0) - (stored - 1)
    above = above if 0 < above <= allocated - stored else 0
    overlays = _overlay_bits(dataset, range(above, above + stored), allocated)
    if stream is None:
        return Samples(stored, signed, above, overlays)
    if overlays:  # the codestream's precision includes them
        return Samples(stored, signed, above, overlays)
    if signed and stream.signed is not True:
        return Samples(stream.bits, True, bits_of_header=min(stored, stream.bits))
    return Samples(stream.bits, bool(stream.signed))


def _overlay_bits(dataset: Dataset, pixel: range, allocated: int) -> int:
    """The bits of a word that hold overlays: outside the pixel, as PS3.3-2004 C.9.2 allowed."""
    positions = (dataset.get((group, 0x0102)) for group in _OVERLAYS)
    values = (first_integer(element.value) for element in positions if element is not None)
    return sum(
        {1 << v for v in values if v is not None and v in range(allocated) and v not in pixel}
    )


def first_integer(value: Any) -> int | None:
    """The first value of an element, if it is a whole number."""
    if isinstance(value, MultiValue | list):
        value = value[0] if len(value) else None
    return int(value) if isinstance(value, int) else None
