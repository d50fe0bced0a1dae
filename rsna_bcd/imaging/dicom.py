"""One DICOM file to a `Mammogram`: header, guards, decoders, presentation.

Everything that can be checked is checked before a decoder sees the file. Where the header and the
compressed frame disagree on precision or sign, the frame is right: it is what was encoded.
"""

import hashlib
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from rsna_bcd.files import read_bytes
from rsna_bcd.imaging.decoders import DECODERS, HTJ2K, JPEG, JPEG2000, RAW, RLE, decode
from rsna_bcd.imaging.frames import check_frame, refuse_partial, transfer_syntax
from rsna_bcd.imaging.kinds import foreign_kind, header_flags
from rsna_bcd.imaging.mammogram import (
    EMPTY,
    MOST_PIXELS,
    ImageError,
    Level,
    Mammogram,
    as_averaged,
    overview_level,
    overview_of,
    refuse_constant,
)
from rsna_bcd.imaging.padding import blackened, bright_padding
from rsna_bcd.imaging.parsing import parse_dicom, refusing_damaged_headers
from rsna_bcd.imaging.presentation import presentation_of
from rsna_bcd.imaging.samples import samples_of

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
        syntax = _check_header(dataset)
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
        presentation = presentation_of(dataset, averaged)
        padding = bright_padding(dataset, small.pixels, presentation)
        flags = header_flags(dataset).flags + presentation.flags
    mammogram = Mammogram(
        rows, columns, small, presentation, facts, most_reduced, level, flags, pixel_aspect=aspect
    )
    return mammogram if padding is None else blackened(mammogram, padding)


def _patient_orientation(dataset: Dataset) -> str:
    """Directions of rows and columns, separated by a backslash; empty where there are none."""
    value = dataset.get("PatientOrientation") or ""
    return value if isinstance(value, str) else "\\".join(map(str, value))


def _check_header(dataset: Dataset) -> UID:
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
