"""Decoders, fastest first: a file that one of them refuses is tried with the next.

By transfer syntax, as `benchmarks/decode.py` measures them. OpenJPEG is a little slower than
dicomsdl, which contains it, and can leave resolution out: a quarter of the time for half the size.
"""

import io
import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dicomsdl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, Jpeg2KImagePlugin
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import HTJ2K as HTJ2KAny
from pydicom.uid import JPEG2000 as JPEG2000Lossy
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pydicom.uid import JPEGLossless as JPEGLosslessAnyPredictor

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.codestream import (
    FURTHER_BITS,
    Codestream,
    check_rle,
    compression,
    join_fragments,
    read_codestream,
    refuse_partial_lossless,
)
from rsna_bcd.imaging.mammogram import FLAT, ImageError

Words = NDArray[np.integer[Any]]  # uint8 or uint16

EncapsulatedUncompressed = UID("1.2.840.10008.1.2.1.98")

RAW = frozenset(
    {
        ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian, EncapsulatedUncompressed,
    }
)  # fmt: skip
RLE = frozenset({RLELossless})
JPEG_DCT = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit})
JPEG_HUFFMAN = frozenset({JPEGLosslessSV1, JPEGLosslessAnyPredictor})
JPEG = JPEG_DCT | JPEG_HUFFMAN | {JPEGLSLossless, JPEGLSNearLossless}
JPEG2000 = frozenset({JPEG2000Lossless, JPEG2000Lossy})
HTJ2K = frozenset({HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2KAny})  # its block coder is another


@dataclass(frozen=True)
class Encoded:
    """Pixel data that was checked and not yet decoded.

    Attributes:
        rows: height in pixels.
        columns: width in pixels.
        allocated: bits of a decoded word, 8 or 16: as the frame needs, whatever the header says.
        signed: whether the header says that samples are signed.
        syntax: the transfer syntax that the pixels have; little endian where not compressed.
        frame: the codestream, without bytes before and after; or the raw pixels.
        stream: its header; None where it has none (raw, RLE).
    """

    rows: int
    columns: int
    allocated: int
    signed: bool
    syntax: UID
    frame: bytes
    stream: Codestream | None = None


# It writes to stderr what it also raises.
dicomsdl.set_loglevel(dicomsdl.LogLevel.DISABLE)


def decode(encoded: Encoded, chain: Sequence[str], reduced: int = 0) -> tuple[Words, int, str]:
    """Decode the one frame of a file.

    Args:
        encoded: the file, its header checked.
        chain: names of decoders, tried in this order.
        reduced: how often to halve the resolution; 0 where the format cannot.

    Returns:
        The stored words, (Rows, Columns) or their reduction, uint8 or uint16, their sign not yet
        interpreted; how often the resolution was halved, which is 0 if the decoder that can do it
        refused; and the decoder's name.

    Raises:
        ImageError: every decoder refused the file.
        MemoryError: there is too little memory.
    """
    refusals = []
    attempts = [("openjpeg", reduced)] if reduced else []
    attempts += [(name, 0) for name in chain if encoded.syntax in DECODERS[name].reads]
    for name, level in attempts:
        try:
            words = DECODERS[name].decode(encoded, level)
        except MemoryError:
            raise  # of a limit, which whoever set it can name
        except _REFUSALS as error:
            refusals.append(f"{name}: {error}")
            continue
        if words.shape == (-(-encoded.rows // 2**level), -(-encoded.columns // 2**level)):
            return words.view(np.uint8 if words.itemsize == 1 else np.uint16), level, name
        refusals.append(f"{name}: returned the shape {words.shape}")
    raise ImageError(
        f"cannot be decoded ({'; '.join(refusals)})"
        if attempts
        else f"none of the decoders {', '.join(chain)} reads {encoded.syntax.name}"
    )


def refuse_partial_cosines(encoded: Encoded, words: Words, decoder: str) -> None:
    """Raise if a JPEG frame with discrete cosines ended early, though it has an end marker.

    Raises:
        ImageError: they do.
    """
    longer = replace(encoded, frame=encoded.frame[:-2] + FURTHER_BITS + encoded.frame[-2:])
    try:
        again, _, _ = decode(longer, [decoder])
        same = np.array_equal(again, words)
    except ImageError:
        same = False
    if not same:
        raise ImageError("the file was cut short: its last rows were never encoded")


def _dicomsdl(encoded: Encoded, reduced: int) -> NDArray:
    """Dicomsdl reads files, and damaged headers kill it: it gets the frame in a header of ours."""
    return dicomsdl.open_memory(_file_of(encoded)).pixelData(storedvalue=True)


def _file_of(encoded: Encoded) -> bytes:
    """A DICOM file of the frame and what describes its pixels (PS3.5 7.1.2 and A.4, PS3.10 7.1)."""

    def short(group: int, element: int, vr: bytes, value: bytes) -> bytes:
        padded = value + (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
        return struct.pack("<HH2sH", group, element, vr, len(padded)) + padded

    def item(element: int, length: int) -> bytes:
        return struct.pack("<HHI", 0xFFFE, element, length)

    frame, stream = encoded.frame, encoded.stream
    assert stream is not None
    syntax = short(0x0002, 0x0010, b"UI", encoded.syntax.encode())
    numbers = (
        (0x0010, encoded.rows),
        (0x0011, encoded.columns),
        (0x0100, encoded.allocated),
        (0x0101, stream.bits),
        (0x0102, stream.bits - 1),
        (0x0103, int(encoded.signed)),
    )
    return b"".join(
        (
            bytes(128),
            b"DICM",
            short(0x0002, 0x0000, b"UL", struct.pack("<I", len(syntax))),
            syntax,
            short(0x0028, 0x0002, b"US", struct.pack("<H", 1)),
            short(0x0028, 0x0004, b"CS", b"MONOCHROME2"),
            *(short(0x0028, e, b"US", struct.pack("<H", value)) for e, value in numbers),
            struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF),
            item(0xE000, 0),  # no table of offsets
            item(0xE000, len(frame) + len(frame) % 2),
            frame,
            bytes(len(frame) % 2),
            item(0xE0DD, 0),
        )
    )


def _pydicom(plugin: str) -> Callable[[Encoded, int], NDArray]:
    """Pydicom with one of its plugins, told that all bits count: it masks by BitsStored."""

    def decode(encoded: Encoded, reduced: int) -> NDArray:
        compressed = encoded.syntax.is_compressed
        options: dict[str, Any] = {
            "rows": encoded.rows,
            "columns": encoded.columns,
            "number_of_frames": 1,
            "samples_per_pixel": 1,
            "photometric_interpretation": "MONOCHROME2",
            "bits_allocated": encoded.allocated,
            "bits_stored": encoded.allocated,
            "pixel_representation": 0,
            "pixel_keyword": "PixelData",
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd values that the guards have let pass
            words, _ = get_decoder(encoded.syntax).as_array(
                encapsulate([encoded.frame], has_bot=False) if compressed else encoded.frame,
                index=0,
                raw=True,
                decoding_plugin=plugin if compressed else "",
                **options,
            )
        return words

    return decode


def _pillow(encoded: Encoded, reduced: int) -> NDArray:
    """JPEG with discrete cosines, of 8 bits; libjpeg-turbo, which comes with Pillow."""
    with Image.open(io.BytesIO(encoded.frame), formats=["JPEG"]) as picture:
        return np.asarray(picture)


def _openjpeg(encoded: Encoded, reduced: int) -> NDArray:
    """OpenJPEG, which comes with Pillow, given the bare codestream."""
    stream = encoded.stream
    assert stream is not None
    picture = Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(encoded.frame))
    if reduced:
        # Pillow expects sizes rounded to nearest, OpenJPEG rounds them up; they agree where the
        # size is a multiple. Without this, most images fail from a quarter of the size downwards.
        unit = 2**reduced
        width, height = picture.size
        picture._size = (-(-width // unit) * unit, -(-height // unit) * unit)
        picture.reduce = reduced
    values = np.asarray(picture)  # shifted to the top of 8 or 16 bits, signed ones made positive
    values = values >> (8 * values.itemsize - stream.bits)
    return values - values.dtype.type(2 ** (stream.bits - 1)) if stream.signed else values


@dataclass(frozen=True)
class Decoder:
    """Attributes: `reads`, transfer syntaxes; `decode`, a function of file and halvings."""

    reads: frozenset[UID]
    decode: Callable[[Encoded, int], NDArray]


DECODERS = {
    "pydicom": Decoder(RAW | RLE, _pydicom("pydicom")),
    # Not raw pixels, where it is slower than pydicom. Not RLE: that has no end marker, so that
    # nothing shows beforehand whether the frame is whole. pydicom notices; dicomsdl would read on.
    "dicomsdl": Decoder(JPEG | JPEG2000, _dicomsdl),
    # Not JPEG with discrete cosines, of which damaged ones make GDCM end the process.
    "gdcm": Decoder(JPEG - JPEG_DCT | JPEG2000, _pydicom("gdcm")),
    "openjpeg": Decoder(JPEG2000 | HTJ2K, _openjpeg),
    "pillow": Decoder(JPEG_DCT, _pillow),
}

# How they say no; anything else is a bug and stays visible.
_REFUSALS = (
    RuntimeError, ValueError, OSError, SyntaxError, dicomsdl.DicomException,
)  # fmt: skip


def check_decoders(chain: Sequence[str]) -> None:
    """Refuse names of decoders that do not exist.

    Raises:
        InputError: an unknown name, or no name at all.
    """
    unknown = [name for name in chain if name not in DECODERS]
    if unknown or not chain:
        raise InputError(f"decoders={list(chain)}: choose from {', '.join(DECODERS)}.")


# Of a pixel in a compressed frame. The emptiest of real mammograms take 0.7; a flat grey takes less
# than this, and is no mammogram. In JPEG lossless each pixel has a Huffman code, at least one bit.
_LEAST_BITS = 0.01
_LABEL_REMEDY = "export the file again, or correct the transfer syntax"
_MOST_SURPLUS = 2**16  # bytes behind raw pixels that are no padding; more belong to an image


def transfer_syntax(dataset: Dataset) -> UID:
    """As the meta information says; without it, as the file was parsed."""
    named = str(dataset.file_meta.get("TransferSyntaxUID") or "").strip(" \0")
    if named:
        return UID(named)
    if dataset["PixelData"].is_undefined_length:
        frame = join_fragments(dataset.PixelData)
        return UID(read_codestream(frame).syntax) if compression(frame) else RLELossless
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def check_frame(dataset: Dataset, syntax: UID) -> Encoded:
    """Take the frame out of the pixel data; it is whole, and agrees with the header.

    Args:
        dataset: the file; its header was checked.
        syntax: its transfer syntax. A compressed frame of another kind is taken for what it is.

    Raises:
        ImageError: too few bytes, another size than the header says, or several images.
    """
    content = dataset.PixelData
    if not isinstance(content, bytes):
        raise ImageError("the pixel data have no content")
    pixels = dataset.Rows * dataset.Columns
    if syntax in RAW:
        frame = _raw_frame(content, pixels * dataset.BitsAllocated // 8, dataset, syntax)
        return _encoded(dataset, dataset.BitsAllocated, ExplicitVRLittleEndian, frame)
    frame = join_fragments(content)
    if compression(frame) is None:
        return _check_rle_frame(dataset, syntax, frame)
    stream = read_codestream(frame)
    if (stream.height, stream.width) != (dataset.Rows, dataset.Columns):
        raise ImageError(
            f"the header says {dataset.Rows} x {dataset.Columns} pixels, the compressed frame "
            f"{stream.height} x {stream.width}"
        )
    frame = frame[stream.start : stream.end]
    if stream.syntax in JPEG_HUFFMAN:
        _check_amount(frame, pixels)
    elif len(frame) * 8 < pixels * _LEAST_BITS:
        raise ImageError(f"{FLAT} are equal, or the frame of {len(frame)} bytes lacks most of them")
    if stream.components != 1 or stream.bits > 16:
        raise ImageError(f"{stream.components} sample(s) of {stream.bits} bits in the frame")
    allocated = 8 if stream.bits <= 8 else 16
    return replace(_encoded(dataset, allocated, UID(stream.syntax), frame), stream=stream)


def _encoded(dataset: Dataset, allocated: int, syntax: UID, frame: bytes) -> Encoded:
    signed = bool(dataset.get("PixelRepresentation", 0))
    return Encoded(int(dataset.Rows), int(dataset.Columns), allocated, signed, syntax, frame)


def _raw_frame(content: bytes, needed: int, dataset: Dataset, syntax: UID) -> bytes:
    """Pixels that are not compressed, without the bytes behind them."""
    if syntax == EncapsulatedUncompressed:
        content = join_fragments(content)
    kind = compression(content)
    if kind and not needed <= len(content) <= needed + 1:
        kind = compression(join_fragments(content)) or "encapsulated"
        raise ImageError(
            f"the transfer syntax {syntax.name} says that the pixels are not compressed, but they "
            f"are {kind}: {_LABEL_REMEDY}"
        )
    if len(content) < needed:
        raise ImageError(f"cut short: {len(content)} of {needed} bytes of pixels")
    surplus = content[needed:]
    rows, rest = divmod(len(surplus), dataset.Columns * dataset.BitsAllocated // 8)
    more_pixels = len(surplus) > _MOST_SURPLUS or (rows > 0 and rest <= 1)
    if more_pixels and surplus.strip(surplus[:1]):  # padding is one value
        raise ImageError(f"{len(content)} bytes of pixels, where the size needs {needed}")
    return content[:needed]


def _check_rle_frame(dataset: Dataset, syntax: UID, frame: bytes) -> Encoded:
    """Refuse a frame that is neither RLE nor a codestream."""
    pixels, allocated = dataset.Rows * dataset.Columns, dataset.BitsAllocated
    if 0 <= len(frame) - pixels * allocated // 8 <= 1 and syntax not in RLE:
        raise ImageError(
            f"the transfer syntax {syntax.name} says that the pixels are compressed, but they "
            f"are not: {_LABEL_REMEDY}"
        )
    if syntax not in RLE and frame[:4] != struct.pack("<I", allocated // 8):
        raise ImageError("the frame is neither JPEG nor JPEG 2000 nor RLE")
    _check_amount(frame, pixels * _LEAST_BITS)
    check_rle(frame, allocated // 8)
    return _encoded(dataset, allocated, RLELossless, frame)


def _check_amount(frame: bytes, bits: float) -> None:
    if len(frame) * 8 < bits:
        raise ImageError(f"a frame of {len(frame)} bytes cannot hold so many pixels")


def refuse_partial(encoded: Encoded, words: Words, decoder: str) -> None:
    """Raise if a frame ended early, though it has an end marker, and the decoder said nothing.

    Args:
        encoded: the frame.
        words: decoded from it.
        decoder: name of the decoder.

    Raises:
        ImageError: it did.
    """
    if encoded.syntax in JPEG_HUFFMAN and encoded.stream is not None:
        refuse_partial_lossless(encoded.frame, words, encoded.stream.bits)
    elif encoded.syntax in JPEG_DCT:
        refuse_partial_cosines(encoded, words, decoder)
