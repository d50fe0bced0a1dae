"""An encoder of JPEG lossless (ITU T.81 Annex H) for tests: GDCM writes predictor 1 only."""

import struct

import numpy as np

_TABLE = bytes([0, 0, 0, 0, 17, *[0] * 11, *range(17)])  # 17 categories, a code of 5 bits each


def encode_jpeg_lossless(
    pixels: np.ndarray,
    bits: int,
    predictor: int = 1,
    *,
    restart_rows: int = 0,
    transform: int = 0,
) -> bytes:
    """Encode one component.

    Args:
        pixels: (H, W), unsigned, of `bits` bits.
        bits: precision, 2 to 16.
        predictor: selection value, 1 to 7.
        restart_rows: rows per restart interval; 0 for no intervals.
        transform: point transform, the low bits that are left out.
    """
    height, width = pixels.shape
    values = pixels.astype(int) >> transform
    interval = restart_rows or height
    scans = []
    for top in range(0, height, interval):
        part = values[top : top + interval]
        differences = (part - _prediction(part, predictor, bits - transform)) % 2**16
        scans.append(_packed(np.where(differences > 2**15, differences - 2**16, differences)))
    restarts = [bytes([0xFF, 0xD0 + number % 8]) for number in range(len(scans) - 1)]
    content = b"".join(a + b for a, b in zip(scans, [*restarts, b""], strict=True))
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xC3, struct.pack(">BHHB3B", bits, height, width, 1, 1, 0x11, 0)),
            _segment(0xC4, b"\0" + _TABLE),
            _segment(0xDD, struct.pack(">H", restart_rows * width)) if restart_rows else b"",
            _segment(0xDA, bytes([1, 1, 0, predictor, 0, transform])),
            content,
            b"\xff\xd9",
        )
    )


def _prediction(values: np.ndarray, predictor: int, bits: int) -> np.ndarray:
    """Predicted values of an interval, T.81 table H.1."""
    left, above, diagonal = (np.zeros_like(values) for _ in range(3))
    left[:, 1:], above[1:], diagonal[1:, 1:] = values[:, :-1], values[:-1], values[:-1, :-1]
    predicted = {
        1: left, 2: above, 3: diagonal, 4: left + above - diagonal,
        5: left + (above - diagonal >> 1), 6: above + (left - diagonal >> 1),
        7: left + above >> 1,
    }[predictor]  # fmt: skip
    predicted[0], predicted[1:, 0] = left[0], values[:-1, 0]
    predicted[0, 0] = 2 ** (bits - 1)
    return predicted


def _packed(differences: np.ndarray) -> bytes:
    """Huffman codes and additional bits, filled up with ones; a 0 after each FF."""
    codes = []
    for difference in differences.ravel().tolist():
        category = abs(difference).bit_length()
        codes.append(f"{category:05b}")
        if 0 < category < 16:
            low = difference if difference > 0 else difference + 2**category - 1
            codes.append(f"{low:0{category}b}")
    stream = "".join(codes)
    stream += "1" * (-len(stream) % 8)
    packed = int(stream, 2).to_bytes(len(stream) // 8)
    return packed.replace(b"\xff", b"\xff\0")


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
