"""One DICOM file to a `Mammogram`: header, guards, decoders, presentation.

Everything that can be checked is checked before a decoder sees the file. Where the header and the
compressed frame disagree on precision or sign, the frame is right: it is what was encoded.
"""

import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import JPEG2000 as JPEG2000Lossy
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pydicom.uid import JPEGLossless as JPEGLosslessAnyPredictor

from rsna_bcd.imaging.codestream import Codestream, read_jpeg, read_jpeg2000
from rsna_bcd.imaging.decoders import Words, decode
from rsna_bcd.imaging.mammogram import ImageError, Mammogram, StoredPixels, refuse_constant
from rsna_bcd.imaging.presentation import presentation_of

# The largest mammogram of the competition has 28 million pixels; a header may claim 4 billion.
_MOST_PIXELS = 2**26
_PREAMBLE = 128

_RAW = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_CODESTREAM_READERS = {
    JPEG2000Lossless: read_jpeg2000,
    JPEG2000Lossy: read_jpeg2000,
    JPEGLosslessSV1: read_jpeg,
    JPEGLosslessAnyPredictor: read_jpeg,
    JPEGLSLossless: read_jpeg,
}
_SUPPORTED = (*_RAW, RLELossless, *_CODESTREAM_READERS)

# What pydicom raises on bytes that are no header; anything else is a bug and stays visible.
_UNPARSABLE = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    ValueError,
    KeyError,
    NotImplementedError,
    struct.error,
    AttributeError,  # an element that another one announces is absent
    TypeError,  # several values where one belongs
)


# pydicom logs what it also raises or what the guards below report, once a file.
logging.getLogger("pydicom").setLevel(logging.ERROR)


class _Samples(NamedTuple):
    """What one stored word means."""

    bits: int
    signed: bool


def read_dicom(path: Path) -> Mammogram:
    """Read a DICOM file with one mammogram.

    Raises:
        ImageError: not a DICOM file, not a mammogram, damaged, of an unsupported kind, or without
            content; the message is the reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks of pydicom on odd values that we do not use
        _check_preamble(path)
        with _refusing_damaged_headers():
            dataset = pydicom.dcmread(path)
            syntax = _check_header(dataset)
            samples = _check_frame(dataset, syntax)
        words, decoder = decode(path, dataset, syntax)
        pixels = _interpret(words, samples)
        refuse_constant(pixels)
        with _refusing_damaged_headers():
            presentation = presentation_of(dataset, pixels)
    return Mammogram(
        pixels,
        presentation,
        {
            "decoder": decoder,
            "transfer_syntax": str(syntax),
            "photometric": str(dataset.PhotometricInterpretation),
            "bits_stored": samples.bits,
        },
    )


def _check_preamble(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(_PREAMBLE + 4)[_PREAMBLE:] != b"DICM":
            raise ImageError("not a DICOM file: the letters DICM are not at byte 128")


@contextmanager
def _refusing_damaged_headers() -> Iterator[None]:
    """Turn what pydicom raises into a reason; it parses an element when that is first looked at."""
    try:
        yield
    except _UNPARSABLE as error:
        raise ImageError(f"damaged header: {error}") from error


def _check_header(dataset: Dataset) -> UID:
    """Refuse what is no mammogram, or would not fit; return the transfer syntax."""
    if "PixelData" not in dataset:
        raise ImageError("no pixel data: the file was cut short, or is not an image")
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID", ""))
    if syntax not in _SUPPORTED:
        raise ImageError(f"transfer syntax {syntax.name or '(none)'} is not supported")
    required = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation")
    absent = [keyword for keyword in required if dataset.get(keyword) is None]
    if absent:
        raise ImageError(f"the header lacks {', '.join(absent)}")
    if dataset.get("Modality") not in (None, "", "MG"):
        raise ImageError(f"modality {dataset.Modality} is not mammography (MG)")
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


def _check_frame(dataset: Dataset, syntax: UID) -> _Samples:
    """Refuse pixel data that is too short or contradicts the header; say what a word means."""
    signed = bool(dataset.get("PixelRepresentation", 0))
    if syntax in _RAW:
        needed = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
        if len(dataset.PixelData) < needed:
            raise ImageError(f"cut short: {len(dataset.PixelData)} of {needed} bytes of pixels")
        return _Samples(dataset.BitsStored, signed)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if syntax == RLELossless:
        return _Samples(dataset.BitsStored, signed)
    stream: Codestream = _CODESTREAM_READERS[syntax](frame)
    if (stream.height, stream.width) != (dataset.Rows, dataset.Columns):
        raise ImageError(
            f"the header says {dataset.Rows} x {dataset.Columns} pixels, the compressed frame "
            f"{stream.height} x {stream.width}"
        )
    if stream.components != 1 or stream.bits > 16:
        raise ImageError(f"{stream.components} sample(s) of {stream.bits} bits in the frame")
    return _Samples(stream.bits, signed if stream.signed is None else stream.signed)


def _interpret(words: Words, samples: _Samples) -> StoredPixels:
    """Give stored words their sign: the sign bit is the highest of the bits stored (PS3.5 8.1.1).

    Bits above those stored may hold anything in signed images; unsigned values are left as they
    are, because files exist whose values exceed their BitsStored and are right.
    """
    if not samples.signed:
        return words
    shift = 16 - samples.bits
    return (words.astype(np.uint16) << shift).view(np.int16) >> shift
