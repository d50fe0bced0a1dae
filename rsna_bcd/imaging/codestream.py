"""Read the headers of a compressed frame, and check that it is complete, without decoding it.

Decoders written in C trust their input: a frame cut short, or a header that lies about the size,
ends in garbage, in gigabytes or in a crash. Size and end are cheap to check. No pydicom here, since
JPEG files are checked too.
"""

import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsna_bcd.imaging.mammogram import ImageError

# Transfer syntaxes (PS3.6 table A-1).
_JPEG_BASELINE, _JPEG_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.57"
_JPEG_LS, _JPEG2000 = "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91"
_HTJ2K = "1.2.840.10008.1.2.4.203"
# Frame headers of JPEG (ITU T.81 B.1.1.3; F7 is of JPEG-LS). C1, extended, and C2, progressive,
# have syntaxes of their own, but the decoders of C0.
_SYNTAXES = {
    0xC0: _JPEG_BASELINE, 0xC1: _JPEG_BASELINE, 0xC2: _JPEG_BASELINE, 0xC3: _JPEG_LOSSLESS,
    0xF7: _JPEG_LS,
}  # fmt: skip
_UNSUPPORTED_FRAMES = frozenset(range(0xC5, 0xD0)) - {0xC8, 0xCC}  # hierarchical, arithmetic
_HUFFMAN_TABLES, _SCAN_HEADER, _RESTART_INTERVAL, _END_OF_IMAGE = 0xC4, 0xDA, 0xDD, 0xD9
# In coded data FF is followed by 0 (T.81) or by a byte below 80 (T.87); else it is a marker.
_MARKER = re.compile(rb"\xff[^\x00-\x7f\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")

# Decoders of JPEG with discrete cosines silently replace absent bits by grey. Bits added before the
# end marker are read only where others are missing: then they change pixels.
FURTHER_BITS = b"\xaa" * 64

_ITEM, _UNDEFINED = b"\xfe\xff\x00\xe0", 0xFFFFFFFF
_START_OF_JPEG, _START_OF_JPEG2000 = b"\xff\xd8\xff", b"\xff\x4f\xff\x51"
# One or two segments, the first after the header (PS3.5 G.5).
_STARTS_OF_RLE = tuple(struct.pack("<II", count, 64) for count in (1, 2))
_JP2 = b"\x00\x00\x00\x0cjP  "


class Codestream(NamedTuple):
    """The header of a compressed frame.

    Attributes:
        syntax: the transfer syntax of the frame, whatever the file says.
        height: in pixels.
        width: in pixels.
        components: samples per pixel.
        bits: precision of a sample.
        signed: whether samples are signed; None where the format cannot say (JPEG, JPEG-LS).
        start: where the codestream begins in the frame, in bytes.
        end: where it ends, its end marker included.
        levels: how often its resolution can be halved (JPEG 2000 only).
    """

    syntax: str
    height: int
    width: int
    components: int
    bits: int
    signed: bool | None
    start: int
    end: int
    levels: int = 0


def compression(content: bytes) -> str | None:
    """Name the compressed format that bytes begin with, or None."""
    if content[:4] == _ITEM:
        return "encapsulated"
    if content[:4] == _START_OF_JPEG2000 or content[:8] == _JP2:
        return "JPEG 2000"
    return "JPEG" if content[:3] == _START_OF_JPEG else None


def join_fragments(content: bytes) -> bytes:
    """Join the fragments of the only frame (PS3.5 A.4).

    The offset table is ignored: for a single frame it is redundant, and often wrong. The sequence
    delimiter may be absent. A frame without items is returned as it is.

    Raises:
        ImageError: no frame, or a fragment that was cut short.
    """
    if compression(content) != "encapsulated":
        return content
    fragments: list[bytes] = []
    at = 0
    while content[at : at + 4] == _ITEM and at + 8 <= len(content):
        (length,) = struct.unpack_from("<I", content, at + 4)
        if length == _UNDEFINED and not fragments:  # a table without an end
            length = max(content.find(_ITEM, at + 8) - at - 8, 0)
        if at + 8 + length > len(content):
            raise ImageError("the file was cut short: its frame ends within a fragment")
        fragments.append(content[at + 8 : at + 8 + length])
        at += 8 + length
    if len(fragments) > 1 and compression(fragments[0]) is None:  # else there is no table
        is_rle = len(fragments[0]) >= 64 and fragments[0][:8] in _STARTS_OF_RLE
        del fragments[: not is_rle]
    if not any(fragments):
        raise ImageError("the pixel data have no frame")
    return fragments[0] if len(fragments) == 1 else b"".join(fragments)


def read_codestream(frame: bytes) -> Codestream:
    """Read the headers of a compressed frame, and check that it is one complete image.

    Bytes after its end are padding, unless another image begins there.

    Raises:
        ImageError: no codestream, one that was cut short, or several of them.
    """
    kind = compression(frame)
    if kind not in ("JPEG", "JPEG 2000"):
        raise ImageError("the frame is neither JPEG nor JPEG 2000")
    stream = read_jpeg(frame) if kind == "JPEG" else _read_jpeg2000(frame)
    rest = frame[stream.end :]
    if _START_OF_JPEG in rest or _START_OF_JPEG2000 in rest:
        raise ImageError("a second image follows in the frame; one is expected")
    return stream


def _read_jpeg2000(frame: bytes) -> Codestream:
    """Read the main header (ISO 15444-1 A.5.1, A.6.1) and check that the codestream ends."""
    start = _jpeg2000_start(frame)
    if frame[start : start + 4] != _START_OF_JPEG2000 or len(frame) < start + 48:
        raise ImageError("the frame is not a JPEG 2000 codestream")
    (capabilities,) = struct.unpack_from(">H", frame, start + 6)
    x1, y1, x0, y0 = struct.unpack_from(">4I", frame, start + 8)
    components, depth = struct.unpack_from(">HB", frame, start + 40)
    return Codestream(
        # Rsiz: its bit 14 stands for the block coder of high-throughput JPEG 2000.
        syntax=_HTJ2K if capabilities & 0x4000 else _JPEG2000,
        height=y1 - y0,
        width=x1 - x0,
        components=components,
        # Ssiz: the highest bit is the sign, the others are the precision less one.
        bits=(depth & 0x7F) + 1,
        signed=bool(depth & 0x80),
        start=start,
        end=_end_of_tiles(frame, start),
        levels=_decomposition_levels(frame, start),
    )


def _decomposition_levels(frame: bytes, at: int) -> int:
    """How often the wavelet transform halved the image: COD, in the main header (A.6.1).

    0, no reduction, where that may not hold for the whole image: an image area that does not begin
    at the origin, more than one tile, or a component with a transform of its own (COC).
    """
    x1, y1, x0, y0, tile_width, tile_height = struct.unpack_from(">6I", frame, at + 8)
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


def _jpeg2000_start(frame: bytes) -> int:
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


def _end_of_tiles(frame: bytes, at: int) -> int:
    """Follow the tile-parts to the end of the codestream (A.4.2).

    A tile that is missing or was cut short would be decoded as grey.
    """
    x1, y1, _, _, width, height, left, top = struct.unpack_from(">8I", frame, at + 8)
    if not width or not height:
        raise ImageError("the frame has tiles without an area")
    count = -(-(x1 - left) // width) * -(-(y1 - top) // height)
    at = _skip_segments(frame, at + 2, b"\xff\x90")  # the first tile-part
    found = set()
    while frame[at : at + 2] == b"\xff\x90" and at + 12 <= len(frame):
        tile, length = struct.unpack_from(">HI", frame, at + 4)
        found.add(tile)
        if length == 0:  # the last one, up to the end, and coded data hold no FF90 or above
            at = frame.find(b"\xff\xd9", _skip_segments(frame, at + 12, b"\xff\x93"))
            break
        at += max(length, 12)
    if at < 0 or b"\xff\xd9" not in frame[at:]:
        raise ImageError("the file was cut short: its frame has no end marker")
    if frame[at : at + 2] != b"\xff\xd9":
        raise ImageError("the file was cut short: its frame ends within a tile")
    if len(found) != count:
        raise ImageError(f"the frame has {len(found)} of {count} tiles")
    return at + 2


def _skip_segments(frame: bytes, at: int, marker: bytes) -> int:
    """Skip the marker segments of a JPEG 2000 header until `marker`."""
    while frame[at : at + 2] != marker:
        if at + 4 > len(frame) or frame[at] != 0xFF:
            raise ImageError("the frame's header is damaged or cut short")
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return at


def read_jpeg(frame: bytes) -> Codestream:
    """Read the frame header of JPEG (ITU T.81 B.2.2) or JPEG-LS (T.87 C.2.2), and check the end.

    Raises:
        ImageError: not such a frame, one of a rare process, or one that was cut short.
    """
    if frame[:2] != b"\xff\xd8":
        raise ImageError("the frame is not a JPEG stream")
    header, interval, scans, end = None, 0, [], 0
    for marker, at in _jpeg_segments(frame):
        if marker in _SYNTAXES and at + 6 <= len(frame):
            header = (marker, *struct.unpack_from(">BHHB", frame, at))
        elif marker in _UNSUPPORTED_FRAMES:
            raise ImageError(
                f"the frame is arithmetic or hierarchical JPEG (SOF{marker - 0xC0}), which no "
                "decoder reads: export the file uncompressed"
            )
        elif marker == _RESTART_INTERVAL and at + 2 <= len(frame):
            (interval,) = struct.unpack_from(">H", frame, at)
        elif marker == _SCAN_HEADER:
            scans.append(at)
        elif marker == _END_OF_IMAGE:
            end = at
    if not end:
        raise ImageError("the file was cut short: its frame has no end marker")
    if header is None or not scans:
        raise ImageError("the JPEG stream has no frame header")
    marker, bits, height, width, components = header
    if _SYNTAXES[marker] == _JPEG_BASELINE and bits not in (8, 12):  # T.81 table B.2
        raise ImageError(f"lossy JPEG of {bits} bits, which no standard knows: export it again")
    if interval and len(scans) == 1 and marker != 0xF7:
        units = height * width if marker == 0xC3 else -(-height // 8) * -(-width // 8)
        found = len(_RESTART.findall(frame, scans[0], end))
        if components == 1 and found != -(-units // interval) - 1:
            raise ImageError(f"the frame was cut short: it has {found} restart markers")
    return Codestream(_SYNTAXES[marker], height, width, components, bits, None, 0, end)


def _jpeg_segments(frame: bytes) -> Iterator[tuple[int, int]]:
    """Marker and start of content of each segment; of the end marker, its end."""
    at = 2
    while at + 2 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # any number of them may fill up before a marker (T.81 B.1.1.2)
            at += 1
            continue
        if marker == _END_OF_IMAGE:
            yield marker, at + 2
            return
        if at + 4 > len(frame):
            return
        yield marker, at + 4
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
        if marker == _SCAN_HEADER:
            found = _MARKER.search(frame, at)
            if found is None:
                return
            at = found.start()


def check_rle_header(frame: bytes, bytes_per_pixel: int) -> None:
    """Check the header of an RLE frame (PS3.5 G.5): one segment per byte of a pixel.

    Raises:
        ImageError: another number of segments, or segments outside the frame.
    """
    if len(frame) < 64:
        raise ImageError("the frame is not an RLE frame")
    count, *offsets = struct.unpack_from("<16I", frame)
    starts = [*offsets[:count], len(frame)]
    ordered = all(a < b for a, b in zip(starts, starts[1:], strict=False))
    if count != bytes_per_pixel or starts[0] != 64 or not ordered:
        raise ImageError(f"the RLE frame's header is damaged: {count} segments at {starts[:-1]}")


_LAST = 24  # pixels whose codes are compared


class _Scan(NamedTuple):
    """The header of the first scan of a JPEG lossless frame.

    Attributes:
        start: of its coded data, in bytes.
        predictor: selection value, 1 to 7.
        transform: point transform, the number of low bits that were left out.
        interval: pixels of a restart interval; 0 for no intervals.
        codes: of the categories 0 to 16, as strings of 0 and 1; empty for no code.
    """

    start: int
    predictor: int
    transform: int
    interval: int
    codes: list[str]


def check_jpeg_lossless_complete(frame: bytes, pixels: NDArray[np.integer[Any]], bits: int) -> None:
    """Check that a JPEG lossless frame (ITU T.81 Annex H) with an end marker did not end early.

    Decoders silently replace absent bits by zeros. The codes of the last pixels must be the end of
    the frame. All pixels are counted where that cannot be decided: if the last row has the value
    that prediction begins with, as decoders fill up rows (also the darkest value of signed images),
    or if pixels are not predicted from their left neighbour.

    Args:
        frame: checked by `read_jpeg`, of one component, without bytes after its end.
        pixels: (H, W), as decoded.
        bits: precision of the frame.

    Raises:
        ImageError: it did.
    """
    scan = _read_scan(frame)
    complete = (
        scan is not None
        and scan.predictor == 1
        and not scan.interval
        and not (pixels[-1] == 2 ** (bits - 1)).all()
        and _ends_with_last_pixels(frame, pixels, scan)
    )
    if not complete and not holds_all_pixels(frame, pixels, bits):
        raise ImageError("the file was cut short: its last row was never encoded")


def _ends_with_last_pixels(frame: bytes, pixels: NDArray[np.integer[Any]], scan: _Scan) -> bool:
    """Whether the coded data end with the codes of the last pixels, predicted from the left."""
    values = pixels[-1, -_LAST - 1 :].astype(np.int32) >> scan.transform
    if len(values) < 2:
        return False
    expected = []
    for difference in ((np.diff(values) + 2**15) % 2**16 - 2**15).tolist():
        category = abs(difference).bit_length()
        low = difference if difference > 0 else difference + 2**category - 1
        expected.append(scan.codes[category])
        if not expected[-1]:
            return False
        expected.append(f"{low:0{category}b}" if 0 < category < 16 else "")
    last = "".join(expected)
    # Before a marker there may be bytes FF (B.1.1.2); one of the data is followed by 0.
    start = max(scan.start, len(frame) - 2 - len(last) // 4 - 64)
    end = frame[start:-2].rstrip(b"\xff").replace(b"\xff\0", b"\xff")
    stream = "".join(f"{byte:08b}" for byte in end)
    # At most 7 bits fill up the last byte.
    return any(stream[: len(stream) - filling].endswith(last) for filling in range(8))


def holds_all_pixels(frame: bytes, pixels: NDArray[np.integer[Any]], bits: int) -> bool:
    """Whether a JPEG lossless frame is long enough for the pixels that were decoded from it.

    Counts the bits of their codes (T.81 H.1.2): each difference from the prediction has the code
    of its category, then as many bits as the category says. For the arguments see
    `check_jpeg_lossless_complete`.
    """
    scan = _read_scan(frame)
    if scan is None:
        return False
    lengths = np.array([len(code) for code in scan.codes])
    rows = scan.interval // pixels.shape[1] or len(pixels)  # of a restart interval (H.1.1)
    values = pixels.astype(np.int32) >> scan.transform
    difference = values - _predict(values, scan.predictor, 2 ** (bits - scan.transform - 1), rows)
    difference = (difference + 2**15) % 2**16 - 2**15
    category = np.frexp(np.abs(difference).astype(np.float32))[1]
    counts = np.bincount(category.ravel(), minlength=17)
    if (lengths[counts > 0] == 0).any():  # the table has no code for it
        return False
    costs = lengths + np.arange(17) % 16  # the only difference of category 16 needs no bits
    tops = range(0, len(values), rows)
    # Each restart interval is filled up to a whole byte.
    needed = sum(-(-int(costs[category[top : top + rows]].sum()) // 8) for top in tops)
    coded = frame[scan.start : -2].rstrip(b"\xff")
    # FF is followed by 0 that is no code; restart markers are none either.
    return needed <= len(coded) - coded.count(b"\xff\x00") - 2 * (len(tops) - 1)


def _read_scan(frame: bytes) -> _Scan | None:
    """The header of the first scan; None where it has no table of Huffman codes."""
    tables: dict[int, list[str]] = {}
    interval = 0
    for marker, at in _jpeg_segments(frame):
        (length,) = struct.unpack_from(">H", frame, at - 2)
        if marker == _HUFFMAN_TABLES:
            tables |= _huffman_codes(frame[at : at - 2 + length])
        elif marker == _RESTART_INTERVAL:
            (interval,) = struct.unpack_from(">H", frame, at)
        elif marker == _SCAN_HEADER:
            codes = tables.get(frame[at + 2] >> 4)
            if codes is None:
                return None
            start, predictor, transform = at - 2 + length, frame[at + 3], frame[at + 5] & 0x0F
            return _Scan(start, predictor, transform, interval, codes)
    return None


def _huffman_codes(segment: bytes) -> dict[int, list[str]]:
    """Codes of categories 0 to 16 by table (T.81 B.2.4.2 and C.2)."""
    tables, at = {}, 0
    while at + 17 <= len(segment):
        counts = segment[at + 1 : at + 17]
        categories = iter(segment[at + 17 : at + 17 + sum(counts)])
        codes, code = [""] * 17, 0
        for length, count in enumerate(counts, 1):
            for category in (next(categories, 17) for _ in range(count)):
                if category > 16:
                    return {}
                codes[category] = f"{code:0{length}b}"
                code += 1
            code *= 2
        tables[segment[at] & 0x0F] = codes
        at += 17 + sum(counts)
    return tables


def _predict(values: NDArray[np.int32], predictor: int, first: int, rows: int) -> NDArray[np.int32]:
    """Predictions of JPEG lossless (T.81 table H.1), which restart every `rows` rows."""
    left, above, diagonal = (np.zeros_like(values) for _ in range(3))
    left[:, 1:], above[1:], diagonal[1:, 1:] = values[:, :-1], values[:-1], values[:-1, :-1]
    if predictor == 1:
        predicted = left
    elif predictor in (2, 3):
        predicted = above.copy() if predictor == 2 else diagonal
    elif predictor == 4:
        predicted = left + above - diagonal
    elif predictor == 5:
        predicted = left + (above - diagonal >> 1)
    else:
        predicted = above + (left - diagonal >> 1) if predictor == 6 else left + above >> 1
    predicted[1:, 0] = values[:-1, 0]
    predicted[::rows, 1:] = values[::rows, :-1]
    predicted[::rows, 0] = first
    return predicted
