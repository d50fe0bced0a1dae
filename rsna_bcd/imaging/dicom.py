"""Read one DICOM file into a `Mammogram`.

Everything that can be checked is checked before a decoder runs. Where the header and the compressed
frame disagree on precision, the frame is right: the encoder wrote it.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from rsna_bcd.files import read_bytes
from rsna_bcd.imaging.codecs import (
    DECODERS,
    SUPPORTED,
    Words,
    check_decoded,
    decode,
    extract_frame,
    transfer_syntax,
)
from rsna_bcd.imaging.codestream import Codestream
from rsna_bcd.imaging.display import blacken_padding, display_transform
from rsna_bcd.imaging.headers import header_flags, non_mammogram_kind
from rsna_bcd.imaging.mammogram import (
    EMPTY,
    MOST_PIXELS,
    ImageError,
    Mammogram,
    ResolutionLevel,
    StoredPixels,
    averaged_overview,
    check_not_constant,
    overview_level,
    reduce_to_overview,
)
from rsna_bcd.imaging.parsing import first_integer, header_errors, parse_dicom

_MOST_ASPECT = 4  # height by width of a pixel, or the other way round
_SQUARE = 0.01  # pixels that differ less in height and width are square
_REQUIRED = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel",
    "PhotometricInterpretation",
)  # fmt: skip
_OVERLAY_GROUPS = range(0x6000, 0x6020, 2)

_RAW_REMEDY = "convert it, e.g. with `gdcmconv --raw in.dcm out.dcm`"
_VIDEO_REMEDY = "a video; export one frame of it as an uncompressed DICOM file"
_SERVER_REMEDY = "the pixels are on a server; export the file uncompressed"
# By the beginning of the transfer syntax UID, where _RAW_REMEDY does not help.
_REMEDIES = {
    "1.2.840.10008.1.2.4.10": _VIDEO_REMEDY,
    "1.2.840.10008.1.2.7": _VIDEO_REMEDY,
    "1.2.840.10008.1.2.4.11": "JPEG XL; export the file uncompressed (Explicit VR Little Endian)",
    "1.2.840.10008.1.2.4.94": _SERVER_REMEDY,
    "1.2.840.10008.1.2.4.95": _SERVER_REMEDY,
    "1.2.840.10008.1.2.4.20": f"JPIP; {_SERVER_REMEDY}",
}


def read_dicom(path: Path, decoders: Sequence[str] = tuple(DECODERS)) -> Mammogram:
    """Read a DICOM file with one mammogram.

    JPEG 2000 is decoded at a low resolution for the overview, and further on demand. Other formats
    are decoded in full.

    Args:
        path: the file.
        decoders: names of the `codecs.DECODERS` to try, in order of preference.

    Raises:
        ImageError: not a DICOM file, not a mammogram, damaged, of an unsupported kind, or without
            content; the message is the reason.
    """
    content = read_bytes(path)
    if not content:
        raise ImageError(EMPTY)
    with header_errors():
        dataset = parse_dicom(io.BytesIO(content))
        syntax = check_header(dataset)
        frame = extract_frame(dataset, syntax)
        samples = _sample_layout(dataset, frame.stream)
        aspect = _pixel_aspect(dataset)
        orientation = dataset.get("PatientOrientation") or ""
        if not isinstance(orientation, str):
            orientation = "\\".join(map(str, orientation))
    facts: dict[str, str | int] = {
        "transfer_syntax": str(syntax),
        "photometric": str(dataset.PhotometricInterpretation),
        "bits_stored": samples.bits,
        "source_sha256": hashlib.sha256(content).hexdigest(),
        "patient_orientation": orientation,
    }

    @cache
    def level(reduced: int) -> ResolutionLevel:
        words, halvings, decoder = decode(frame, decoders, reduced)
        check_decoded(frame, words, decoder)
        pixels = samples.to_pixels(words)
        check_not_constant(pixels)
        return ResolutionLevel(pixels, halvings, decoder)

    can_reduce = frame.stream and samples.can_be_averaged and "openjpeg" in decoders
    most_reduced = frame.stream.levels if frame.stream and can_reduce else 0
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    first = level(min(most_reduced, overview_level(rows, columns)))
    overview = reduce_to_overview(first)
    with header_errors():
        averaged = averaged_overview(first, rows, columns) if first.reduced else overview.pixels
        display = display_transform(dataset, averaged)
        flags = header_flags(dataset).flags + display.flags
    mammogram = Mammogram(
        rows, columns, overview, display, facts, most_reduced, level, flags, pixel_aspect=aspect
    )
    return blacken_padding(mammogram, dataset)


def check_header(dataset: Dataset) -> UID:
    """Refuse files that are no mammogram or too large; return the transfer syntax.

    Raises:
        ImageError: the reason.
    """
    for keyword in (
        "PhotometricInterpretation", "Modality", "VOILUTFunction", "PresentationLUTShape",
    ):  # fmt: skip
        if isinstance(dataset.get(keyword), str):  # padding and lower case occur
            setattr(dataset, keyword, dataset[keyword].value.strip(" \0\t\r\n").upper())
    kind = non_mammogram_kind(dataset)
    if kind:
        raise ImageError(f"{kind}, no mammogram")
    if "PixelData" not in dataset:
        raise ImageError("no pixel data: the file was cut short, or is not an image")
    syntax = transfer_syntax(dataset)
    if syntax not in SUPPORTED:
        remedy = next((r for uid, r in _REMEDIES.items() if syntax.startswith(uid)), _RAW_REMEDY)
        raise ImageError(f"transfer syntax {syntax.name} is not supported: {remedy}")
    absent = [keyword for keyword in _REQUIRED if dataset.get(keyword) is None]
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
    """Height of a pixel divided by its width; 1 if the header has no plausible value.

    The spacings come first: PixelAspectRatio is for images without them (PS3.3 C.7.6.3.1.7).
    """
    spacings = ("ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing")
    for keyword in (*spacings, "PixelAspectRatio"):
        try:
            height, width = (float(value) for value in dataset.get(keyword) or ())
        except (TypeError, ValueError):
            continue
        if min(height, width) > 0 and 1 / _MOST_ASPECT <= height / width <= _MOST_ASPECT:
            return height / width if abs(height / width - 1) > _SQUARE else 1.0
    return 1.0


@dataclass(frozen=True)
class _SampleLayout:
    """How a word holds its pixel (PS3.5 8.1.1).

    Attributes:
        bits: of a pixel.
        signed: whether pixels are signed.
        shift: number of bits below the pixel.
        overlays: mask of the bits that hold overlays; 0 if there are none.
        bits_of_header: bits of a signed pixel whose codestream is declared unsigned; else None.
            The codestream has more bits if it holds the extended sign.
    """

    bits: int
    signed: bool
    shift: int = 0
    overlays: int = 0
    bits_of_header: int | None = None

    @property
    def can_be_averaged(self) -> bool:
        """Whether words are pixel values, so that the codec may reduce the resolution."""
        return not self.overlays and self.bits_of_header is None

    def to_pixels(self, words: Words) -> StoredPixels:
        """Turn decoded words into pixels, uint8, uint16 or int16.

        Unsigned values keep the bits above those stored unless they are overlays: in some files
        values exceed BitsStored and are right. Pixels are not shifted if the bits below them are in
        use, because HighBit is wrong then.
        """
        if self.overlays:
            words = words & words.dtype.type(~self.overlays & (2 ** (8 * words.itemsize) - 1))
        if self.shift and not (words & words.dtype.type(2**self.shift - 1)).any():
            words = words >> self.shift
        if not self.signed:
            return words
        bits = self.bits
        if self.bits_of_header is not None and int(words.max()) < 2**self.bits_of_header:
            bits = self.bits_of_header
        shift = 16 - bits
        return (words.astype(np.uint16) << shift).view(np.int16) >> shift


def _sample_layout(dataset: Dataset, stream: Codestream | None) -> _SampleLayout:
    """Combine header and codestream, which is None for raw pixels and RLE.

    The codestream's precision is right. A codestream that is declared unsigned under a signed
    header holds two's complement.
    """
    stored, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
    signed = bool(dataset.get("PixelRepresentation", 0))
    shift = int(dataset.get("HighBit") or 0) - (stored - 1)
    shift = shift if 0 < shift <= allocated - stored else 0
    # Overlays in unused bits, which PS3.3-2004 C.9.2 allowed.
    elements = [dataset.get((group, 0x0102)) for group in _OVERLAY_GROUPS]
    positions = {first_integer(element.value) for element in elements if element is not None}
    unused = {*range(allocated)} - {*range(shift, shift + stored)}
    overlays = sum(1 << position for position in unused & positions)
    if stream is None or overlays:  # the codestream's precision includes overlays
        return _SampleLayout(stored, signed, shift, overlays)
    if signed and stream.signed is not True:
        return _SampleLayout(stream.bits, True, bits_of_header=min(stored, stream.bits))
    return _SampleLayout(stream.bits, bool(stream.signed))
