"""Damaged DICOM files, seeded and so reproducible."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import dicom_files
import numpy as np
import pydicom
from dicom_files import encode_jpeg_lossless, make_dataset, write_dicom
from PIL import Image
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

UIDS = {
    "raw": str(ExplicitVRLittleEndian),
    **{name: str(dicom_files.SYNTAXES[name]) for name in ("rle", "jpeg", "jpeg_ls", "jpeg2000")},
    "jpeg_predicted": dicom_files.UIDS["lossless"],
    "jpeg_lossy": dicom_files.UIDS["baseline"],
    "deflated": dicom_files.UIDS["deflated"],
}
SYNTAXES = tuple(UIDS)
_BOMB = 60_000  # rows and columns
_END = b"\xff\xd9"


@dataclass(frozen=True)
class Damaged:
    """A file, the kind of its damage, and the pixels that it held before."""

    kind: str
    content: bytes
    pixels: np.ndarray


def damaged_files(syntax: str, count: int, seed: int = 0) -> Iterator[Damaged]:
    """Yield damaged files of a syntax, each kind in turn; same arguments, same files."""
    kinds = _KINDS | _SYNTAX_KINDS[syntax]
    if syntax == "deflated":  # its elements are not to be found in the file
        kinds = {kind: kinds[kind] for kind in _DEFLATED_KINDS}
    names = list(kinds)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        pixels, whole = whole_file(syntax, int(rng.integers(_VARIANTS)))
        kind = names[number % len(names)]
        yield Damaged(kind, kinds[kind](whole, rng), pixels)


# Permitted outcomes of each kind; all others must be refused.
EXPECTED = {
    "padding": {"unchanged"},
    "length": {"refused", "unchanged"},
    "other syntax": {"refused", "unchanged"},  # raw pixels may be explicit or implicit
    # Bits have no checksum.
    "bits of the header": {"refused", "unchanged", "changed"},
    "bits of the file": {"refused", "unchanged", "changed"},
    "bits of pixels": {"refused", "unchanged", "changed"},
    "coding": {"refused", "unchanged", "changed"},
    # Lies that agree with all else that the file says: a sign, 67 x 77 pixels as 77 x 67, or a
    # frame that could be that large.
    "lie": {"refused", "unchanged", "changed"},
    "size swapped": {"refused", "changed"},
    "larger": {"refused", "changed"},
}

_VARIANTS = 10


@cache
def whole_file(syntax: str, variant: int) -> tuple[np.ndarray, bytes]:
    """Pixels and a sound file of them."""
    rng = np.random.default_rng(variant)
    height, width = [(67, 77), (80, 64), (65, 66), (150, 201), (120, 90)][variant % 5]
    if variant == 9:
        height, width = 700, 520  # large enough for an overview of its own
    bits, dtype = [(12, np.uint16), (16, np.uint16), (8, np.uint8), (12, np.int16)][variant % 4]
    smooth = cv2.GaussianBlur(rng.normal(0, 1, (height, width)), (0, 0), 3)
    smooth = (smooth - smooth.min()) / np.ptp(smooth) + rng.normal(0, 0.01, smooth.shape)
    low = -(2 ** (bits - 1)) if dtype == np.int16 else 0
    pixels = np.rint(np.clip(smooth, 0, 1) * (2**bits - 1) + low).astype(dtype)
    if syntax not in ("jpeg_predicted", "jpeg_lossy", "deflated"):
        with TemporaryDirectory() as folder:
            path = write_dicom(Path(folder) / "a.dcm", pixels, bits=bits, syntax=syntax)
            if syntax == "raw" and variant % 2:
                implicit = pydicom.dcmread(path)
                implicit.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
                implicit.save_as(path, implicit_vr=True)
            return pixels, path.read_bytes()
    # GDCM does not write these.
    whole = b""
    if syntax == "jpeg_lossy":
        pixels, bits = (pixels >> max(bits - 8, 0)).astype(np.uint8), 8
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
        whole, pixels = buffer.getvalue(), np.asarray(Image.open(buffer))
    elif syntax == "jpeg_predicted":
        unsigned = pixels.view(np.uint16) & 2**bits - 1 if bits > 8 else pixels
        rows = 11 if variant % 2 else 0
        whole = encode_jpeg_lossless(unsigned, bits, 1 + variant % 7, restart_rows=rows)
    dataset = make_dataset(pixels, bits)
    if whole:
        dataset.PixelData = encapsulate([whole])
        dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = UID(UIDS[syntax])
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return pixels, file.getvalue()


Damage = Callable[[bytes, np.random.Generator], bytes]


def _with(whole: bytes, **elements: Any) -> bytes:
    """The file with other elements; None removes one."""
    dataset = pydicom.dcmread(BytesIO(whole))
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def _frame(whole: bytes) -> bytearray:
    return bytearray(get_frame(pydicom.dcmread(BytesIO(whole)).PixelData, 0, number_of_frames=1))


def _with_frame(whole: bytes, frame: bytes | bytearray, **elements: Any) -> bytes:
    return _with(whole, PixelData=encapsulate([bytes(frame)]), **elements)


def _resized(whole: bytes, size: int) -> bytes:
    """Header and codestream agree on a size that is not there."""
    frame = _frame(whole)
    if _syntax(whole) == UIDS["jpeg2000"]:
        struct.pack_into(">II", frame, 8, size, size)
        struct.pack_into(">II", frame, 24, size, size)  # one tile
    else:
        start = next(m for m in (b"\xff\xc3", b"\xff\xf7", b"\xff\xc0") if m in frame)
        struct.pack_into(">HH", frame, frame.index(start) + 5, size, size)
    return _with_frame(whole, frame, Rows=size, Columns=size)


def _pixel_start(whole: bytes) -> int:
    """Where the pixel data element begins."""
    return whole.rindex(b"\xe0\x7f\x10\x00")


def _flip(content: bytes, rng: np.random.Generator, first: int, last: int) -> bytes:
    """Flip one to eight bits in bytes `first` to `last`."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 9))):
        changed[int(rng.integers(first, last))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _cut(whole: bytes, rng: np.random.Generator) -> bytes:
    return whole[: int(rng.integers(1, _content_end(whole)))]


def _content_end(whole: bytes) -> int:
    """The last 8 bytes of compressed files delimit, the last of deflated ones may be padding."""
    syntax = _syntax(whole)
    if syntax == UIDS["deflated"]:
        return len(whole) - 1
    return len(whole) - 8 * UID(syntax).is_compressed


def _syntax(whole: bytes) -> str:
    return str(pydicom.dcmread(BytesIO(whole)).file_meta.TransferSyntaxUID)


def _cut_near_the_end(whole: bytes, rng: np.random.Generator) -> bytes:
    return whole[: _content_end(whole) - int(rng.integers(1, 40))]


def _lie(whole: bytes, rng: np.random.Generator) -> bytes:
    lies: list[dict[str, Any]] = [
        {"Rows": int(rng.integers(0, 65536))},
        {"Columns": int(rng.integers(0, 65536))},
        {"BitsAllocated": int(rng.choice([1, 8, 12, 16, 32, 64]))},
        {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
        {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15},
        {"BitsStored": int(rng.integers(0, 40))},
        {"PixelRepresentation": int(rng.integers(0, 3))},
        {"SamplesPerPixel": int(rng.integers(0, 5))},
        {"NumberOfFrames": int(rng.integers(0, 5))},
        {"PhotometricInterpretation": str(rng.choice(["RGB", "PALETTE COLOR", "YBR_FULL", ""]))},
        {"Rows": None},
        {"PixelData": None},
        {"BitsStored": None},
        {"Modality": "CT"},
    ]
    return _with(whole, **lies[int(rng.integers(len(lies)))])


def _swap_size(whole: bytes, rng: np.random.Generator) -> bytes:
    dataset = pydicom.dcmread(BytesIO(whole))
    return _with(whole, Rows=dataset.Columns, Columns=dataset.Rows)


def _other_syntax(whole: bytes, rng: np.random.Generator) -> bytes:
    """Another transfer syntax than the pixels have, of the same length in the file."""
    own = _syntax(whole)
    other = str(rng.choice([uid for uid in UIDS.values() if uid != own]))
    dataset = pydicom.dcmread(BytesIO(whole))
    dataset.PixelData = dataset.PixelData  # parsed before the name changes
    dataset.file_meta.TransferSyntaxUID = UID(other)
    if UID(own).is_compressed != UID(other).is_compressed:
        dataset["PixelData"].is_undefined_length = UID(other).is_compressed
        if UID(other).is_compressed:
            dataset.PixelData = encapsulate([dataset.PixelData])
    buffer = BytesIO()
    dataset.save_as(buffer, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def _length_lie(whole: bytes, rng: np.random.Generator) -> bytes:
    """Another length of the pixel data element, or of the first item in it."""
    at = _pixel_start(whole)
    changed = bytearray(whole)
    value = int(rng.choice([0, 1, 7, 0x7FFFFFFF, 0xFFFFFFFE, len(whole)]))
    if UID(_syntax(whole)).is_compressed:
        # Element header 12 bytes, item of the offset table 8 bytes and its length, item header.
        offsets = struct.unpack_from("<I", whole, at + 16)[0]
        struct.pack_into("<I", changed, at + 12 + 8 + offsets + 4, value)
    else:
        position = at + (4 if _syntax(whole) == ImplicitVRLittleEndian else 8)
        struct.pack_into("<I", changed, position, value)
    return bytes(changed)


def _garbage(whole: bytes, rng: np.random.Generator) -> bytes:
    noise = rng.bytes(int(rng.integers(1, 4000)))
    options = [
        b"",
        noise,
        bytes(len(noise)),
        bytes(128) + b"DICM" + noise,
        b"image_id,cancer\n" * 20,
        whole[: _pixel_start(whole)] + noise,
        whole[:300] + noise,
        b"DICM" + whole,
    ]
    return options[int(rng.integers(len(options)))]


_KINDS: dict[str, Damage] = {
    "cut": _cut,
    "cut near the end": _cut_near_the_end,
    "bits of the header": lambda w, rng: _flip(w, rng, 128, _pixel_start(w) + 12),
    "bits of the file": lambda w, rng: _flip(w, rng, 0, len(w)),
    "bits of pixels": lambda w, rng: _flip(w, rng, _pixel_start(w) + 40, len(w) - 8),
    "lie": _lie,
    "size swapped": _swap_size,
    "other syntax": _other_syntax,
    "length": _length_lie,
    "bomb": lambda w, rng: _with(w, Rows=_BOMB, Columns=_BOMB),
    "garbage": _garbage,
}


def _shorter_pixels(whole: bytes, rng: np.random.Generator) -> bytes:
    content = pydicom.dcmread(BytesIO(whole)).PixelData
    return _with(whole, PixelData=content[: int(rng.integers(0, len(content) // 2)) * 2 or 2])


def _frame_cut(whole: bytes, rng: np.random.Generator) -> bytes:
    frame = _frame(whole)
    return _with_frame(whole, frame[: int(rng.integers(2, len(frame) - 3))])


def _padding(whole: bytes, rng: np.random.Generator) -> bytes:
    return _with_frame(whole, _frame(whole) + bytes(2 * int(rng.integers(1, 9))))


_COMPRESSED_KINDS: dict[str, Damage] = {
    "frame cut": _frame_cut,
    "padding": _padding,
    "noise as frame": lambda w, rng: _with_frame(w, rng.bytes(int(rng.integers(2, 4000)))),
}


def _cut_and_closed(whole: bytes, rng: np.random.Generator) -> bytes:
    """Cut the frame and put its end marker behind the cut."""
    frame = _frame(whole)
    return _with_frame(whole, frame[: int(rng.integers(60, len(frame) - 8))] + _END)


def _jpeg2000_tiles(whole: bytes, rng: np.random.Generator) -> bytes:
    """Tiles of one pixel: as many as pixels."""
    frame = _frame(whole)
    struct.pack_into(">II", frame, 24, 1, 1)
    return _with_frame(whole, frame)


def _jpeg2000_coding(whole: bytes, rng: np.random.Generator) -> bytes:
    """Absurd values in the coding style: layers, levels, code-blocks."""
    frame = _frame(whole)
    at = frame.index(b"\xff\x52")
    frame[at + int(rng.integers(4, 14))] = int(rng.choice([0, 31, 127, 255]))
    return _with_frame(whole, frame)


_JPEG_KINDS: dict[str, Damage] = _COMPRESSED_KINDS | {
    "frame cut and closed": _cut_and_closed,
    "bomb in both": lambda w, rng: _resized(w, _BOMB),
    "larger": lambda w, rng: _resized(w, int(rng.integers(1000, 8000))),
}
_SYNTAX_KINDS: dict[str, dict[str, Damage]] = {
    "raw": {"frame cut": _shorter_pixels},
    "deflated": {},
    "rle": _COMPRESSED_KINDS,
    "jpeg2000": _JPEG_KINDS | {"tiles": _jpeg2000_tiles, "coding": _jpeg2000_coding},
    **dict.fromkeys(("jpeg", "jpeg_ls", "jpeg_predicted", "jpeg_lossy"), _JPEG_KINDS),
}
_DEFLATED_KINDS = ("cut", "cut near the end", "bits of the file", "lie", "size swapped", "bomb")
