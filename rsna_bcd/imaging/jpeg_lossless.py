"""Whether a JPEG lossless frame (ITU T.81 Annex H) holds all pixels that a decoder returned.

Decoders replace absent bits by zeros, and say nothing.
"""

import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsna_bcd.imaging.codestream import HUFFMAN_TABLES, RESTART_INTERVAL, SCAN_HEADER, segments
from rsna_bcd.imaging.mammogram import ImageError

_LAST = 24  # pixels whose codes are compared


class _Header(NamedTuple):
    """What the first scan of a frame says.

    Attributes:
        start: of its coded data, in bytes.
        predictor: selection value, 1 to 7.
        transform: point transform, the low bits that were left out.
        interval: pixels of a restart interval; 0 for no intervals.
        codes: of the categories 0 to 16, as strings of 0 and 1; empty for no code.
    """

    start: int
    predictor: int
    transform: int
    interval: int
    codes: list[str]


def refuse_partial_lossless(frame: bytes, pixels: NDArray[np.integer[Any]], bits: int) -> None:
    """Raise if a JPEG lossless frame ended early, though it has an end marker.

    All pixels are counted where there is a reason to: the codes of the last ones are not the end
    of the frame; the last row has the value that prediction begins with, as decoders fill up rows
    (also the darkest value of signed images); or pixels are not predicted from the one before.

    Args:
        frame: checked by `read_jpeg`, of one component, without bytes after its end.
        pixels: (H, W), as decoded.
        bits: precision of the frame.

    Raises:
        ImageError: it did.
    """
    header = _read_header(frame)
    whole = (
        header is not None
        and header.predictor == 1
        and not header.interval
        and not (pixels[-1] == 2 ** (bits - 1)).all()
        and _ends_with_last_pixels(frame, pixels, header)
    )
    if not whole and not holds_all_pixels(frame, pixels, bits):
        raise ImageError("the file was cut short: its last row was never encoded")


def _ends_with_last_pixels(frame: bytes, pixels: NDArray[np.integer[Any]], header: _Header) -> bool:
    """Whether the coded data end with the codes of the last pixels, predicted from the left."""
    values = pixels[-1, -_LAST - 1 :].astype(np.int32) >> header.transform
    if len(values) < 2:
        return False
    expected = []
    for difference in ((np.diff(values) + 2**15) % 2**16 - 2**15).tolist():
        category = abs(difference).bit_length()
        low = difference if difference > 0 else difference + 2**category - 1
        expected.append(header.codes[category])
        if not expected[-1]:
            return False
        expected.append(f"{low:0{category}b}" if 0 < category < 16 else "")
    last = "".join(expected)
    # Before a marker there may be bytes FF (B.1.1.2); one of the data is followed by 0.
    start = max(header.start, len(frame) - 2 - len(last) // 4 - 64)
    end = frame[start:-2].rstrip(b"\xff").replace(b"\xff\0", b"\xff")
    stream = "".join(f"{byte:08b}" for byte in end)
    # At most 7 bits fill up the last byte.
    return any(stream[: len(stream) - filling].endswith(last) for filling in range(8))


def holds_all_pixels(frame: bytes, pixels: NDArray[np.integer[Any]], bits: int) -> bool:
    """Whether a JPEG lossless frame is long enough for the pixels that were decoded from it.

    Counts the bits of their codes (T.81 H.1.2): each difference from the prediction has the code
    of its category, then as many bits as the category says.

    Args:
        frame: checked by `read_jpeg`, of one component, without bytes after its end.
        pixels: (H, W), as decoded.
        bits: precision of the frame.
    """
    header = _read_header(frame)
    if header is None:
        return False
    lengths = np.array([len(code) for code in header.codes])
    rows = header.interval // pixels.shape[1] or len(pixels)  # of a restart interval (H.1.1)
    values = pixels.astype(np.int32) >> header.transform
    difference = values - _predicted(
        values, header.predictor, 2 ** (bits - header.transform - 1), rows
    )
    difference = (difference + 2**15) % 2**16 - 2**15
    category = np.frexp(np.abs(difference).astype(np.float32))[1]
    counts = np.bincount(category.ravel(), minlength=17)
    if (lengths[counts > 0] == 0).any():  # the table has no code for it
        return False
    costs = lengths + np.arange(17) % 16  # the only difference of category 16 needs no bits
    tops = range(0, len(values), rows)
    # Each restart interval is filled up to a whole byte.
    needed = sum(-(-int(costs[category[top : top + rows]].sum()) // 8) for top in tops)
    coded = frame[header.start : -2].rstrip(b"\xff")
    # FF is followed by 0 that is no code; restart markers are none either.
    return needed <= len(coded) - coded.count(b"\xff\x00") - 2 * (len(tops) - 1)


def _read_header(frame: bytes) -> _Header | None:
    """The header of the first scan; None where it has no table of Huffman codes."""
    tables: dict[int, list[str]] = {}
    interval = 0
    for marker, at in segments(frame):
        (length,) = struct.unpack_from(">H", frame, at - 2)
        if marker == HUFFMAN_TABLES:
            tables |= _codes(frame[at : at - 2 + length])
        elif marker == RESTART_INTERVAL:
            (interval,) = struct.unpack_from(">H", frame, at)
        elif marker == SCAN_HEADER:
            codes = tables.get(frame[at + 2] >> 4)
            if codes is None:
                return None
            start, predictor, transform = at - 2 + length, frame[at + 3], frame[at + 5] & 0x0F
            return _Header(start, predictor, transform, interval, codes)
    return None


def _codes(segment: bytes) -> dict[int, list[str]]:
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


def _predicted(
    values: NDArray[np.int32], predictor: int, first: int, rows: int
) -> NDArray[np.int32]:
    """Predictions of JPEG lossless (T.81 table H.1), that begin again every `rows` rows."""
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
