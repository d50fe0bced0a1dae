"""The one frame of a file's pixel data: taken out, and refused where it is not whole."""

import struct
from dataclasses import replace

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from rsna_bcd.imaging.codestream import (
    check_rle,
    compression,
    join_fragments,
    read_codestream,
)
from rsna_bcd.imaging.decoders import (
    JPEG_DCT,
    JPEG_HUFFMAN,
    RAW,
    RLE,
    EncapsulatedUncompressed,
    Encoded,
    Words,
    refuse_partial_cosines,
)
from rsna_bcd.imaging.jpeg_lossless import refuse_partial_lossless
from rsna_bcd.imaging.mammogram import FLAT, ImageError

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
