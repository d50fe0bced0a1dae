"""One DICOM file to a `Mammogram`: header, guards, decoders, presentation.

Everything that can be checked is checked before a decoder sees the file. Where the header and the
compressed frame disagree on precision or sign, the frame is right: it is what was encoded.
"""

import hashlib
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.uid import UID

from rsna_bcd.imaging.codestream import check_rle, holds_all_pixels, read_jpeg, read_jpeg2000
from rsna_bcd.imaging.decoders import (
    DECODERS,
    HTJ2K,
    JPEG,
    JPEG2000,
    JPEG_HUFFMAN,
    RAW,
    RLE,
    Encoded,
    Words,
    decode,
)
from rsna_bcd.imaging.kinds import foreign_kind, may_be_a_digitised_film
from rsna_bcd.imaging.mammogram import (
    EMPTY,
    FLAT,
    ImageError,
    Level,
    Mammogram,
    StoredPixels,
    overview_level,
    overview_of,
    refuse_constant,
)
from rsna_bcd.imaging.parsing import refusing_damaged_headers
from rsna_bcd.imaging.presentation import presentation_of

# The largest mammogram of the competition has 28 million pixels; a header may claim 4 billion.
_MOST_PIXELS = 2**26
_PREAMBLE = 128
# Of a pixel in a compressed frame. The emptiest of real mammograms take 0.7; a flat grey takes less
# than this, and is no mammogram. In JPEG lossless each pixel has a Huffman code, at least one bit.
_LEAST_BITS = 0.01
_RAMP = 12  # pixels at the end of a row


class _Samples(NamedTuple):
    """What one stored word means."""

    bits: int
    signed: bool
    above: int = 0  # how far above the lowest bit they lie, as the header says


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
    content = path.read_bytes()
    _check_preamble(content)
    with refusing_damaged_headers():
        dataset = pydicom.dcmread(io.BytesIO(content))
        syntax = _check_header(dataset)
        encoded, samples = _check_frame(dataset, syntax)
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
        if syntax in JPEG_HUFFMAN:
            _refuse_filled_up(encoded.frame, words, samples.bits)
        pixels = _interpret(_right_aligned(words, samples.above), samples)
        refuse_constant(pixels)
        return Level(pixels, halvings, decoder)

    most_reduced = encoded.stream.levels if encoded.stream and "openjpeg" in decoders else 0
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    small = overview_of(level(min(most_reduced, overview_level(rows, columns))))
    with refusing_damaged_headers():
        presentation = presentation_of(dataset, small.pixels)
    return Mammogram(rows, columns, small, presentation, facts, most_reduced, level)


def _patient_orientation(dataset: Dataset) -> str:
    """Directions of rows and columns, separated by a backslash; empty where there are none."""
    value = dataset.get("PatientOrientation") or ""
    return value if isinstance(value, str) else "\\".join(map(str, value))


def _check_preamble(content: bytes) -> None:
    if not content:
        raise ImageError(EMPTY)
    if content[_PREAMBLE : _PREAMBLE + 4] != b"DICM":
        raise ImageError("not a DICOM file: the letters DICM are not at byte 128")


def _check_header(dataset: Dataset) -> UID:
    """Refuse what is no mammogram, or would not fit; return the transfer syntax."""
    kind = foreign_kind(dataset)
    if kind and not may_be_a_digitised_film(dataset):
        raise ImageError(f"{kind}, no mammogram")
    if "PixelData" not in dataset:
        raise ImageError("no pixel data: the file was cut short, or is not an image")
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", ""))
    if syntax not in RAW | RLE | JPEG | JPEG2000 | HTJ2K:
        raise ImageError(f"transfer syntax {syntax.name or '(none)'} is not supported")
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
    if not 0 < dataset.Rows * dataset.Columns <= _MOST_PIXELS:
        raise ImageError(f"{dataset.Rows} x {dataset.Columns} pixels; at most {_MOST_PIXELS}")
    return syntax


def _check_frame(dataset: Dataset, syntax: UID) -> tuple[Encoded, _Samples]:
    """Refuse pixel data that is too short or contradicts the header; say what a word means."""
    signed = bool(dataset.get("PixelRepresentation", 0))
    header = _Samples(dataset.BitsStored, signed, _bits_above(dataset))
    content = dataset.PixelData
    if not isinstance(content, bytes):
        raise ImageError("the pixel data have no content")
    pixels = dataset.Rows * dataset.Columns
    if syntax in RAW:
        needed = pixels * dataset.BitsAllocated // 8
        if len(content) < needed:
            raise ImageError(f"cut short: {len(content)} of {needed} bytes of pixels")
        if content[needed:].strip(b"\0"):
            raise ImageError(f"{len(content)} bytes of pixels, where the size needs {needed}")
        return Encoded(dataset, syntax, b"", None), header
    frame = get_frame(content, 0, number_of_frames=1)
    if syntax in RLE:
        _check_amount(frame, pixels * _LEAST_BITS)
        check_rle(frame, dataset.BitsAllocated // 8)
        return Encoded(dataset, syntax, frame, None), header
    stream = read_jpeg2000(frame) if syntax in JPEG2000 | HTJ2K else read_jpeg(frame)
    if (stream.height, stream.width) != (dataset.Rows, dataset.Columns):
        raise ImageError(
            f"the header says {dataset.Rows} x {dataset.Columns} pixels, the compressed frame "
            f"{stream.height} x {stream.width}"
        )
    if syntax in JPEG_HUFFMAN:
        _check_amount(frame, pixels)
    elif len(frame) * 8 < pixels * _LEAST_BITS:
        raise ImageError(f"{FLAT} are equal, or the frame of {len(frame)} bytes lacks most of them")
    if stream.components != 1 or stream.bits > 16:
        raise ImageError(f"{stream.components} sample(s) of {stream.bits} bits in the frame")
    samples = _Samples(stream.bits, signed if stream.signed is None else stream.signed)
    return Encoded(dataset, syntax, frame, stream), samples


def _check_amount(frame: bytes, bits: float) -> None:
    if len(frame) * 8 < bits:
        raise ImageError(f"a frame of {len(frame)} bytes cannot hold so many pixels")


def _refuse_filled_up(frame: bytes, words: Words, bits: int) -> None:
    """Raise if a JPEG lossless frame ended early, though it has an end marker.

    Decoders then go on with bits of 0, the same difference from pixel to pixel until the row ends,
    and with rows of the value that prediction begins with, half of the range. That is a reason to
    count, not to refuse: the darkest value of signed images is stored as half of the range.
    """
    last = words[-1]
    slope = np.diff(last[-_RAMP:])  # of unsigned words: it wraps, as prediction does
    ramp = len(slope) == _RAMP - 1 and slope[0] and (slope == slope[0]).all()
    if (ramp or (last == 2 ** (bits - 1)).all()) and not holds_all_pixels(frame, words, bits):
        raise ImageError("the file was cut short: its last row was never encoded")


def _bits_above(dataset: Dataset) -> int:
    """How many bits of a word lie below its pixel, as HighBit may say (retired in DICOM)."""
    above = int(dataset.get("HighBit") or 0) - (int(dataset.BitsStored) - 1)
    return above if 0 < above <= dataset.BitsAllocated - dataset.BitsStored else 0


def _right_aligned(words: Words, above: int) -> Words:
    """Move pixels down; where the bits below are in use, the header is wrong and they stay."""
    if not above or (words & words.dtype.type(2**above - 1)).any():
        return words
    shifted: Words = words >> above
    return shifted


def _interpret(words: Words, samples: _Samples) -> StoredPixels:
    """Give stored words their sign: the sign bit is the highest of the bits stored (PS3.5 8.1.1).

    Bits above those stored may hold anything in signed images; unsigned values are left as they
    are, because files exist whose values exceed their BitsStored and are right.
    """
    if not samples.signed:
        return words
    shift = 16 - samples.bits
    return (words.astype(np.uint16) << shift).view(np.int16) >> shift
