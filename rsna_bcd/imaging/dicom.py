"""One DICOM file to a `Mammogram`: header, guards, decoders, display transform.

Everything that can be checked is checked before a decoder sees the file. Where the header and the
compressed frame disagree on precision or sign, the frame is right: it is what was encoded.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID

from rsna_bcd.files import read_bytes
from rsna_bcd.imaging.codecs import (
    DECODERS,
    HTJ2K,
    JPEG,
    JPEG2000,
    RAW,
    RLE,
    check_frame,
    decode,
    refuse_partial,
    transfer_syntax,
)
from rsna_bcd.imaging.codestream import Codestream
from rsna_bcd.imaging.display import blackened, bright_padding, display_transform
from rsna_bcd.imaging.headers import foreign_kind, header_flags
from rsna_bcd.imaging.mammogram import (
    EMPTY,
    MOST_PIXELS,
    ImageError,
    Level,
    Mammogram,
    StoredPixels,
    as_averaged,
    overview_level,
    overview_of,
    refuse_constant,
)
from rsna_bcd.imaging.parsing import first_integer, parse_dicom, refusing_damaged_headers

_MOST_ASPECT = 4  # height by width of a pixel, or the other way round
_SQUARE = 0.01  # pixels that differ less in height and width are square

_RAW_REMEDY = "convert it, e.g. with `gdcmconv --raw in.dcm out.dcm`"
# Of transfer syntaxes that this remedy does not serve, by how their UIDs begin.
_REMEDIES = {
    "1.2.840.10008.1.2.4.10": "a video; export one frame of it as an uncompressed DICOM file",
    "1.2.840.10008.1.2.7": "a video; export one frame of it as an uncompressed DICOM file",
    "1.2.840.10008.1.2.4.11": "JPEG XL; export the file uncompressed (Explicit VR Little Endian)",
    "1.2.840.10008.1.2.4.94": "the pixels are on a server; export the file uncompressed",
    "1.2.840.10008.1.2.4.95": "the pixels are on a server; export the file uncompressed",
    "1.2.840.10008.1.2.4.20": "JPIP; the pixels are on a server; export the file uncompressed",
}
_CODES = ("PhotometricInterpretation", "Modality", "VOILUTFunction", "PresentationLUTShape")


def read_dicom(path: Path, decoders: Sequence[str] = tuple(DECODERS)) -> Mammogram:
    """Read a DICOM file with one mammogram.

    JPEG 2000 is decoded at a low resolution, for the overview; the rest follows when somebody asks
    for it. Other formats are decoded whole.

    Args:
        path: the file.
        decoders: names of those in `decoders.DECODERS` that may be used, in order of preference.

    Raises:
        ImageError: not a DICOM file, not a mammogram, damaged, of an unsupported kind, or without
            content; the message is the reason.
    """
    content = read_bytes(path)
    if not content:
        raise ImageError(EMPTY)
    with refusing_damaged_headers():
        dataset = parse_dicom(io.BytesIO(content))
        syntax = check_header(dataset)
        encoded = check_frame(dataset, syntax)
        samples = samples_of(dataset, encoded.stream)
        aspect = _pixel_aspect(dataset)
    facts: dict[str, str | int] = {
        "transfer_syntax": str(syntax),
        "photometric": str(dataset.PhotometricInterpretation),
        "bits_stored": samples.bits,
        "source_sha256": hashlib.sha256(content).hexdigest(),
        "patient_orientation": _patient_orientation(dataset),
    }

    @cache
    def level(reduced: int) -> Level:
        words, halvings, decoder = decode(encoded, decoders, reduced)
        refuse_partial(encoded, words, decoder)
        pixels = samples.interpret(words)
        refuse_constant(pixels)
        return Level(pixels, halvings, decoder)

    can_reduce = encoded.stream and samples.are_values and "openjpeg" in decoders
    most_reduced = encoded.stream.levels if encoded.stream and can_reduce else 0
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    first = level(min(most_reduced, overview_level(rows, columns)))
    small = overview_of(first)
    with refusing_damaged_headers():
        averaged = as_averaged(first, rows, columns) if first.reduced else small.pixels
        display = display_transform(dataset, averaged)
        padding = bright_padding(dataset, small.pixels, display)
        flags = header_flags(dataset).flags + display.flags
    mammogram = Mammogram(
        rows, columns, small, display, facts, most_reduced, level, flags, pixel_aspect=aspect
    )
    return mammogram if padding is None else blackened(mammogram, padding)


def _patient_orientation(dataset: Dataset) -> str:
    """Directions of rows and columns, separated by a backslash; empty where there are none."""
    value = dataset.get("PatientOrientation") or ""
    return value if isinstance(value, str) else "\\".join(map(str, value))


def check_header(dataset: Dataset) -> UID:
    """Refuse what is no mammogram, or would not fit; return the transfer syntax."""
    for keyword in _CODES:  # padding and lower case occur
        if isinstance(dataset.get(keyword), str):
            setattr(dataset, keyword, dataset[keyword].value.strip(" \0\t\r\n").upper())
    kind = foreign_kind(dataset)
    if kind:
        raise ImageError(f"{kind}, no mammogram")
    if "PixelData" not in dataset:
        raise ImageError("no pixel data: the file was cut short, or is not an image")
    syntax = transfer_syntax(dataset)
    if syntax not in RAW | RLE | JPEG | JPEG2000 | HTJ2K:
        remedy = next((r for uid, r in _REMEDIES.items() if syntax.startswith(uid)), _RAW_REMEDY)
        raise ImageError(f"transfer syntax {syntax.name} is not supported: {remedy}")
    required = (
        "Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel",
        "PhotometricInterpretation",
    )  # fmt: skip
    absent = [keyword for keyword in required if dataset.get(keyword) is None]
    if absent:
        raise ImageError(f"the header lacks {', '.join(absent)}")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise ImageError(f"{dataset.NumberOfFrames} frames; one is expected")
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise ImageError(f"{dataset.SamplesPerPixel} samples per pixel; one is expected")
    if dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(f"photometric interpretation {dataset.PhotometricInterpretation}")
    if dataset.BitsAllocated not in (8, 16) or not 1 <= dataset.BitsStored <= dataset.BitsAllocated:
        raise ImageError(f"{dataset.BitsStored} of {dataset.BitsAllocated} bits are stored")
    if not 0 < dataset.Rows * dataset.Columns <= MOST_PIXELS:
        raise ImageError(f"{dataset.Rows} x {dataset.Columns} pixels; at most {MOST_PIXELS}")
    return syntax


def _pixel_aspect(dataset: Dataset) -> float:
    """Height of a pixel divided by its width, 1 where nothing usable says otherwise.

    The spacings come first: PixelAspectRatio is for images without them (PS3.3 C.7.6.3.1.7).
    """
    for keyword in ("ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing",
                    "PixelAspectRatio"):  # fmt: skip
        try:
            height, width = (float(value) for value in dataset.get(keyword) or ())
        except (TypeError, ValueError):
            continue
        if min(height, width) > 0 and 1 / _MOST_ASPECT <= height / width <= _MOST_ASPECT:
            return height / width if abs(height / width - 1) > _SQUARE else 1.0
    return 1.0


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
