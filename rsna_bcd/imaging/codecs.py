"""Extract the frame from the pixel data and decode it.

The decoders are listed fastest first, as measured by `benchmarks/decode.py` per transfer syntax. A
frame that one of them refuses is tried with the next. OpenJPEG is a little slower than dicomsdl,
which contains it, but can reduce the resolution: half the size takes a quarter of the time.
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
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from rsna_bcd.imaging.codestream import (
    FURTHER_BITS,
    Codestream,
    check_jpeg_lossless_complete,
    check_rle_header,
    compression,
    join_fragments,
    read_codestream,
)
from rsna_bcd.imaging.mammogram import FLAT, ImageError

Words = NDArray[np.integer[Any]]  # uint8 or uint16, as decoded

_ENCAPSULATED_RAW = UID("1.2.840.10008.1.2.1.98")
_RAW = frozenset({*uid.UncompressedTransferSyntaxes, _ENCAPSULATED_RAW})
_JPEG_DCT = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit})
_JPEG_HUFFMAN = frozenset({uid.JPEGLosslessSV1, uid.JPEGLossless})
_JPEG_LOSSLESS = _JPEG_HUFFMAN | {uid.JPEGLSLossless, uid.JPEGLSNearLossless}
_JPEG2000 = frozenset({uid.JPEG2000Lossless, uid.JPEG2000})
# High throughput, with a block coder of its own.
_HTJ2K = frozenset({uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K})

# Bits per pixel of a compressed frame. The emptiest of real mammograms take 0.7; a flat grey takes
# less than this. In JPEG lossless each pixel has a Huffman code of at least one bit.
_LEAST_BITS = 0.01
_LABEL_REMEDY = "export the file again, or correct the transfer syntax"
_MOST_SURPLUS = 2**16  # bytes after raw pixels that are padding; more belong to an image


@dataclass(frozen=True)
class Frame:
    """The one frame of a file, checked but not decoded.

    Attributes:
        rows: height in pixels.
        columns: width in pixels.
        allocated: bits of a decoded word, 8 or 16, as the frame needs.
        signed: whether the header declares samples as signed.
        syntax: the actual transfer syntax of the pixels; little endian if not compressed.
        content: the codestream without bytes before and after it; or the raw pixels.
        stream: the codestream's header; None for raw pixels and RLE.
    """

    rows: int
    columns: int
    allocated: int
    signed: bool
    syntax: UID
    content: bytes
    stream: Codestream | None = None


def transfer_syntax(dataset: Dataset) -> UID:
    """The transfer syntax in the meta information; without one, as the file was parsed."""
    named = str(dataset.file_meta.get("TransferSyntaxUID") or "").strip(" \0")
    if named:
        return UID(named)
    if dataset["PixelData"].is_undefined_length:
        content = join_fragments(dataset.PixelData)
        return UID(read_codestream(content).syntax) if compression(content) else uid.RLELossless
    implicit, little = dataset.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def extract_frame(dataset: Dataset, syntax: UID) -> Frame:
    """Take the frame out of the pixel data; it is complete, and agrees with the header.

    Args:
        dataset: the file; its header was checked.
        syntax: its transfer syntax. A compressed frame of another kind is decoded by its own kind.

    Raises:
        ImageError: too few bytes, another size than in the header, or several images.
    """
    content = dataset.PixelData
    if not isinstance(content, bytes):
        raise ImageError("the pixel data have no content")
    rows, columns, allocated = int(dataset.Rows), int(dataset.Columns), dataset.BitsAllocated
    signed = bool(dataset.get("PixelRepresentation", 0))
    if syntax in _RAW:
        content = _raw_pixels(content, dataset, syntax)
        return Frame(rows, columns, allocated, signed, uid.ExplicitVRLittleEndian, content)
    content = join_fragments(content)
    if compression(content) is None:
        if 0 <= len(content) - rows * columns * allocated // 8 <= 1 and syntax != uid.RLELossless:
            raise ImageError(
                f"the transfer syntax {syntax.name} says that the pixels are compressed, but they "
                f"are not: {_LABEL_REMEDY}"
            )
        if syntax != uid.RLELossless and content[:4] != struct.pack("<I", allocated // 8):
            raise ImageError("the frame is neither JPEG nor JPEG 2000 nor RLE")
        _check_length(content, rows * columns * _LEAST_BITS)
        check_rle_header(content, allocated // 8)
        return Frame(rows, columns, allocated, signed, uid.RLELossless, content)
    stream = read_codestream(content)
    if (stream.height, stream.width) != (rows, columns):
        raise ImageError(
            f"the header says {rows} x {columns} pixels, the compressed frame "
            f"{stream.height} x {stream.width}"
        )
    content = content[stream.start : stream.end]
    if stream.syntax in _JPEG_HUFFMAN:
        _check_length(content, rows * columns)
    elif len(content) * 8 < rows * columns * _LEAST_BITS:
        raise ImageError(
            f"{FLAT} are equal, or the frame of {len(content)} bytes lacks most of them"
        )
    if stream.components != 1 or stream.bits > 16:
        raise ImageError(f"{stream.components} sample(s) of {stream.bits} bits in the frame")
    allocated = 8 if stream.bits <= 8 else 16
    return Frame(rows, columns, allocated, signed, UID(stream.syntax), content, stream)


def _raw_pixels(content: bytes, dataset: Dataset, syntax: UID) -> bytes:
    """Uncompressed pixels, without the bytes after them."""
    needed = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    if syntax == _ENCAPSULATED_RAW:
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


def _check_length(content: bytes, bits: float) -> None:
    if len(content) * 8 < bits:
        raise ImageError(f"a frame of {len(content)} bytes cannot hold so many pixels")


def decode(frame: Frame, names: Sequence[str], reduced: int = 0) -> tuple[Words, int, str]:
    """Decode a frame.

    Args:
        frame: the frame.
        names: of decoders, tried in this order.
        reduced: how often to halve the resolution; 0 where the format cannot.

    Returns:
        The stored words, (Rows, Columns) or their reduction, uint8 or uint16, whose sign is not
        interpreted; how often the resolution was halved (0 if OpenJPEG refused the frame); and the
        decoder's name.

    Raises:
        ImageError: every decoder refused the frame.
        MemoryError: there is too little memory.
    """
    refusals = []
    attempts = [("openjpeg", reduced)] if reduced else []
    attempts += [(name, 0) for name in names if frame.syntax in DECODERS[name].reads]
    for name, level in attempts:
        try:
            words = DECODERS[name].decode(frame, level)
        except MemoryError:
            raise  # its limit is known to the caller who set it
        except _REFUSALS as error:
            refusals.append(f"{name}: {error}")
            continue
        if words.shape == (-(-frame.rows // 2**level), -(-frame.columns // 2**level)):
            return words.view(np.uint8 if words.itemsize == 1 else np.uint16), level, name
        refusals.append(f"{name}: returned the shape {words.shape}")
    raise ImageError(
        f"cannot be decoded ({'; '.join(refusals)})"
        if attempts
        else f"none of the decoders {', '.join(names)} reads {frame.syntax.name}"
    )


def check_decoded(frame: Frame, words: Words, decoder: str) -> None:
    """Check that a JPEG frame with an end marker did not end early: decoders fill up silently.

    Raises:
        ImageError: it did.
    """
    if frame.syntax in _JPEG_HUFFMAN and frame.stream is not None:
        check_jpeg_lossless_complete(frame.content, words, frame.stream.bits)
    elif frame.syntax in _JPEG_DCT:
        longer = replace(frame, content=frame.content[:-2] + FURTHER_BITS + frame.content[-2:])
        try:
            complete = np.array_equal(decode(longer, [decoder])[0], words)
        except ImageError:
            complete = False
        if not complete:
            raise ImageError("the file was cut short: its last rows were never encoded")


# dicomsdl also writes its exceptions to stderr.
dicomsdl.set_loglevel(dicomsdl.LogLevel.DISABLE)


def _dicomsdl(frame: Frame, reduced: int) -> NDArray:
    """Decode with dicomsdl. Damaged headers crash it, so it reads the frame in a new file."""
    assert frame.stream is not None
    file = _minimal_file(frame, frame.stream.bits)
    return dicomsdl.open_memory(file).pixelData(storedvalue=True)


def _minimal_file(frame: Frame, bits: int) -> bytes:
    """A DICOM file with nothing but the pixels and their description (PS3.5 7.1.2, PS3.10 7.1).

    pydicom needs 20 ms to write the same with a frame of 5 MB; this, 4 ms.
    """

    def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
        value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
        return struct.pack("<HH2sH", group, number, vr, len(value)) + value

    syntax = element(0x0002, 0x0010, b"UI", frame.syntax.encode())
    numbers = {
        0x0002: 1, 0x0010: frame.rows, 0x0011: frame.columns, 0x0100: frame.allocated,
        0x0101: bits, 0x0102: bits - 1, 0x0103: int(frame.signed),
    }  # fmt: skip
    description = {number: (b"US", struct.pack("<H", value)) for number, value in numbers.items()}
    description[0x0004] = b"CS", b"MONOCHROME2"
    length = len(frame.content) + len(frame.content) % 2
    return b"".join(
        (
            bytes(128) + b"DICM",
            element(0x0002, 0x0000, b"UL", struct.pack("<I", len(syntax))) + syntax,
            *(element(0x0028, number, *description[number]) for number in sorted(description)),
            struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF),
            struct.pack("<HHIHHI", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE000, length),
            frame.content.ljust(length, b"\0"),
            struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        )
    )


def _pydicom(plugin: str) -> Callable[[Frame, int], NDArray]:
    """Decode with a plugin of pydicom, all bits declared as stored: it masks the others."""

    def decode(frame: Frame, reduced: int) -> NDArray:
        compressed = frame.syntax.is_compressed
        options: dict[str, Any] = {
            "rows": frame.rows,
            "columns": frame.columns,
            "number_of_frames": 1,
            "samples_per_pixel": 1,
            "photometric_interpretation": "MONOCHROME2",
            "bits_allocated": frame.allocated,
            "bits_stored": frame.allocated,
            "pixel_representation": 0,
            "pixel_keyword": "PixelData",
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd values that the checks have accepted
            words, _ = get_decoder(frame.syntax).as_array(
                encapsulate([frame.content], has_bot=False) if compressed else frame.content,
                index=0,
                raw=True,
                decoding_plugin=plugin if compressed else "",
                **options,
            )
        return words

    return decode


def _pillow(frame: Frame, reduced: int) -> NDArray:
    """Decode JPEG with discrete cosines, of 8 bits, with Pillow's libjpeg-turbo."""
    with Image.open(io.BytesIO(frame.content), formats=["JPEG"]) as image:
        return np.asarray(image)


class _Jpeg2000(Jpeg2KImagePlugin.Jpeg2KImageFile):
    """Pillow's JPEG 2000, reduced for every size.

    Pillow expects reduced sizes rounded to nearest, OpenJPEG rounds them up. They agree for
    multiples; else most images fail from a quarter of the size downwards.
    """

    halvings = 0

    def load(self) -> Any:
        if self.tile and self.halvings:
            unit = 2**self.halvings
            width, height = self.size
            self._size = (-(-width // unit) * unit, -(-height // unit) * unit)
            self.reduce = self.halvings
        return super().load()


def _openjpeg(frame: Frame, reduced: int) -> NDArray:
    """Decode the bare codestream with Pillow's OpenJPEG."""
    stream = frame.stream
    assert stream is not None
    image = _Jpeg2000(io.BytesIO(frame.content))
    image.halvings = reduced
    values = np.asarray(image)  # shifted to the top of 8 or 16 bits, signed ones made positive
    values = values >> (8 * values.itemsize - stream.bits)
    return values - values.dtype.type(2 ** (stream.bits - 1)) if stream.signed else values


@dataclass(frozen=True)
class Decoder:
    """Attributes: `reads`, transfer syntaxes; `decode`, a function of frame and halvings."""

    reads: frozenset[UID]
    decode: Callable[[Frame, int], NDArray]


DECODERS = {
    "pydicom": Decoder(_RAW | {uid.RLELossless}, _pydicom("pydicom")),
    # dicomsdl is slower with raw pixels. RLE has no end marker, so that only the decoder notices a
    # frame that was cut short: pydicom does, dicomsdl reads on.
    "dicomsdl": Decoder(_JPEG_DCT | _JPEG_LOSSLESS | _JPEG2000, _dicomsdl),
    # Damaged JPEG with discrete cosines makes GDCM end the process.
    "gdcm": Decoder(_JPEG_LOSSLESS | _JPEG2000, _pydicom("gdcm")),
    "openjpeg": Decoder(_JPEG2000 | _HTJ2K, _openjpeg),
    "pillow": Decoder(_JPEG_DCT, _pillow),
}
SUPPORTED = frozenset().union(*(decoder.reads for decoder in DECODERS.values()))

# Exceptions of the decoders; anything else is a bug and stays visible.
_REFUSALS = (RuntimeError, ValueError, OSError, SyntaxError, dicomsdl.DicomException)
