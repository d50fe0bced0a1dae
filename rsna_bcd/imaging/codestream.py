"""What a compressed frame says about itself, read without decoding it.

Decoders written in C trust their input: a frame cut short, or a header that lies about the size,
ends in garbage, in gigabytes or in the death of the process. Size and end are cheap to check here.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsna_bcd.imaging.mammogram import ImageError

# Frame headers of JPEG: SOF0 to SOF15 without DHT, JPG and DAC, and SOF55 of JPEG-LS.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_HUFFMAN_TABLES, _SCAN_HEADER, _RESTART_INTERVAL = 0xC4, 0xDA, 0xDD


@dataclass(frozen=True)
class Codestream:
    """The frame's own header.

    Attributes:
        height: in pixels.
        width: in pixels.
        components: samples per pixel.
        bits: precision of a sample.
        signed: whether samples are signed; None where the format cannot say (JPEG, JPEG-LS).
        start: where the codestream begins in the frame, in bytes.
        levels: how often its resolution can be halved (JPEG 2000 only).
    """

    height: int
    width: int
    components: int
    bits: int
    signed: bool | None
    start: int = 0
    levels: int = 0


def read_jpeg2000(frame: bytes) -> Codestream:
    """Read the SIZ segment (ISO 15444-1 A.5.1) and check that the codestream ends.

    Raises:
        ImageError: not a codestream, or one that was cut short.
    """
    at = _codestream_start(frame)
    if frame[at : at + 4] != b"\xff\x4f\xff\x51" or len(frame) < at + 48:
        raise ImageError("the frame is not a JPEG 2000 codestream")
    _check_end(frame)
    _check_tiles(frame, at)
    x1, y1, x0, y0 = struct.unpack_from(">IIII", frame, at + 8)
    components, depth = struct.unpack_from(">HB", frame, at + 40)
    return Codestream(
        height=y1 - y0,
        width=x1 - x0,
        components=components,
        # Ssiz: the highest bit is the sign, the others are the precision less one.
        bits=(depth & 0x7F) + 1,
        signed=bool(depth & 0x80),
        start=at,
        levels=_decomposition_levels(frame, at),
    )


def _check_tiles(frame: bytes, at: int) -> None:
    """Follow the tile-parts from one to the next: they end where the codestream ends (A.4.2).

    A tile that is missing, or one that was cut short, would be decoded as grey.
    """
    x1, y1, x0, y0, width, height, left, top = struct.unpack_from(">8I", frame, at + 8)
    if not width or not height:
        raise ImageError("the frame has tiles without an area")
    count = -(-(x1 - left) // width) * -(-(y1 - top) // height)
    at += 2
    while frame[at : at + 2] != b"\xff\x90":  # the main header ends with the first tile-part
        if at + 4 > len(frame) or frame[at] != 0xFF:
            raise ImageError("the frame's main header is damaged")
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    found = set()
    while frame[at : at + 2] == b"\xff\x90" and at + 12 <= len(frame):
        tile, length = struct.unpack_from(">HI", frame, at + 4)
        found.add(tile)
        if length == 0:  # the last one, up to the end
            at = frame.rindex(b"\xff\xd9")
            break
        at += max(length, 12)
    if frame[at : at + 2] != b"\xff\xd9":
        raise ImageError("the file was cut short: its frame ends within a tile")
    if len(found) != count:
        raise ImageError(f"the frame has {len(found)} of {count} tiles")


def _decomposition_levels(frame: bytes, at: int) -> int:
    """How often the wavelet transform halved the image: COD, in the main header (A.6.1).

    0, no reduction, where that would not hold for the whole image: an image area that does not
    begin at the origin, more than one tile, or a component with a transform of its own (COC).
    """
    (x1, y1, x0, y0, tile_width, tile_height) = struct.unpack_from(">6I", frame, at + 8)
    if x0 or y0 or tile_width < x1 or tile_height < y1:
        return 0
    levels, at = 0, at + 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker, length = struct.unpack_from(">xBH", frame, at)
        if marker in (0x53, 0x90):  # COC; SOT: the end of the main header
            return levels if marker == 0x90 else 0
        if marker == 0x52:  # COD: Scod 1 byte, SGcod 4 bytes, then the number of levels
            levels = frame[at + 9]
        at += 2 + length
    return 0


def read_jpeg(frame: bytes) -> Codestream:
    """Read the frame header of JPEG (ITU T.81 B.2.2) or JPEG-LS (T.87 C.2.2), and check the end.

    Raises:
        ImageError: not such a frame, or one that was cut short.
    """
    if frame[:2] != b"\xff\xd8":
        raise ImageError("the frame is not a JPEG stream")
    _check_end(frame)
    for marker, at in _segments(frame):
        if marker in _FRAME_HEADERS and at + 6 <= len(frame):
            bits, height, width, components = struct.unpack_from(">BHHB", frame, at)
            return Codestream(height, width, components, bits, None)
    raise ImageError("the JPEG stream has no frame header")


def _segments(frame: bytes) -> Iterator[tuple[int, int]]:
    """Marker and start of content of the segments of a JPEG stream, the first scan header last."""
    at = 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        if frame[at + 1] == 0xFF:  # any number of them may fill up before a marker (T.81 B.1.1.2)
            at += 1
            continue
        marker, length = struct.unpack_from(">xBH", frame, at)
        yield marker, at + 4
        if marker == _SCAN_HEADER:
            return
        at += 2 + length


def holds_all_pixels(frame: bytes, pixels: NDArray[np.integer[Any]], bits: int) -> bool | None:
    """Whether a JPEG lossless frame is long enough for the pixels that were decoded from it.

    Counts the bits of their codes (T.81 H.1.2): each difference from the pixel before has the code
    of its category, then as many bits as the category says.

    Args:
        frame: checked by `read_jpeg`.
        pixels: (H, W), as decoded.
        bits: precision of the frame.

    Returns:
        None where that cannot be told: restart intervals, other predictors, several tables.
    """
    lengths = np.zeros(17, np.int64)
    start = tables = 0
    for marker, at in _segments(frame):
        if marker == _RESTART_INTERVAL:
            return None
        if marker == _HUFFMAN_TABLES:
            tables += 1
            (size,) = struct.unpack_from(">H", frame, at - 2)
            counts = frame[at + 1 : at + 17]
            categories = frame[at + 17 : at + 17 + sum(counts)]
            if len(counts) < 16 or size != 19 + len(categories) or max(categories, default=17) > 16:
                return None
            lengths[list(categories)] = np.repeat(np.arange(1, 17), list(counts))
        if marker == _SCAN_HEADER:
            start = at - 2 + struct.unpack_from(">H", frame, at - 2)[0]
            predictor, transform = frame[start - 3], frame[start - 1] & 0x0F
            if predictor != 1 or transform:
                return None
    if not start or tables != 1:
        return None
    values = pixels.astype(np.int32)
    before = np.empty_like(values)
    before[:, 1:] = values[:, :-1]
    before[1:, 0] = values[:-1, 0]
    before[0, 0] = 2 ** (bits - 1)
    difference = (values - before + 2**15) % 2**16 - 2**15
    category = np.bincount(np.frexp(np.abs(difference).astype(np.float32))[1].ravel(), minlength=17)
    if (lengths[category > 0] == 0).any():  # the table has no code for it
        return False
    extra = np.arange(17) % 16  # the only difference of category 16 needs no bits
    coded = frame[start : frame.rindex(b"\xff\xd9")]
    available = 8 * (len(coded) - coded.count(b"\xff\x00"))  # FF is followed by 0 that is no code
    return bool(category @ (lengths + extra) <= available)


def check_rle(frame: bytes, bytes_a_pixel: int) -> None:
    """Check the header of an RLE frame (PS3.5 G.5): its segments, one a byte of a pixel.

    Raises:
        ImageError: other segments than the pixels need, or some that lie outside the frame.
    """
    if len(frame) < 64:
        raise ImageError("the frame is not an RLE frame")
    count, *offsets = struct.unpack_from("<16I", frame)
    starts = [*offsets[:count], len(frame)]
    ordered = all(a < b for a, b in zip(starts, starts[1:], strict=False))
    if count != bytes_a_pixel or starts[0] != 64 or not ordered:
        raise ImageError(f"the RLE frame's header is damaged: {count} segments at {starts[:-1]}")


def _codestream_start(frame: bytes) -> int:
    """Where the codestream begins.

    DICOM wants the bare codestream (PS3.5 A.4.4); the competition's files have it in the box `jp2c`
    of a JP2 file (ISO 15444-1 I.4).
    """
    at = 0
    if frame[4:8] == b"jP  ":
        while at + 8 <= len(frame):
            length, kind = struct.unpack_from(">I4s", frame, at)
            if kind == b"jp2c":
                return at + (16 if length == 1 else 8)  # 1: the length follows, in 8 bytes
            if length < 8:
                break
            at += length
    return at


def _check_end(frame: bytes) -> None:
    """Both families end with the bytes FF D9; zeros after it are padding, not damage."""
    if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ImageError("the file was cut short: its frame has no end marker")
