"""DICOM files for tests: written with pydicom, compressed with GDCM or, JPEG lossless, here."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation as MammographyStorage

from rsna_bcd.imaging.codestream import join_fragments
from rsna_bcd.phantom.scanner import transcode

SYNTAXES = {
    "jpeg2000": JPEG2000Lossless,
    "jpeg": JPEGLosslessSV1,
    "jpeg_ls": JPEGLSLossless,
    "rle": RLELossless,
}
UIDS = {
    "baseline": "1.2.840.10008.1.2.4.50",
    "extended": "1.2.840.10008.1.2.4.51",
    "lossless": "1.2.840.10008.1.2.4.57",
    "lossless sv1": "1.2.840.10008.1.2.4.70",
    "implicit": "1.2.840.10008.1.2",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big endian": "1.2.840.10008.1.2.2",
    "encapsulated raw": "1.2.840.10008.1.2.1.98",
}


def make_dataset(pixels: np.ndarray, bits: int, **elements: Any) -> Dataset:
    """Make a mammogram of stored values; `elements` are set last, None removes one."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = MammographyStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["test"])
    dataset.Modality = "MG"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    content = pixels.tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def write_dicom(
    path: Path, pixels: np.ndarray, *, bits: int, syntax: str = "raw", **elements: Any
) -> Path:
    """Write a DICOM file; `syntax` is `raw` or a key of SYNTAXES."""
    if syntax != "raw":  # GDCM would add the time, and identifiers by chance
        chance = ("StudyInstanceUID", "SeriesInstanceUID")
        uids = {name: generate_uid(entropy_srcs=[name, pixels.tobytes().hex()]) for name in chance}
        elements = {"StudyDate": "20200101", "StudyTime": "120000", **uids, **elements}
    make_dataset(pixels, bits, **elements).save_as(path, enforce_file_format=True)
    if syntax != "raw":
        transcode(path, path, SYNTAXES[syntax])
    return path


def write_frame(path: Path, frame: bytes, pixels: np.ndarray, bits: int, syntax: str) -> Path:
    """Write a file with a frame that is encoded already; `syntax` is a key of UIDS."""
    dataset = make_dataset(pixels, bits, PixelData=encapsulate([frame]))
    dataset.file_meta.TransferSyntaxUID = UID(UIDS[syntax])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_uncompressed(
    path: Path, pixels: np.ndarray, bits: int, syntax: str, *, vr: str = "OW"
) -> Path:
    """Write raw pixels implicit, deflated, in big endian order or encapsulated."""
    dataset = make_dataset(pixels, bits)
    dataset.file_meta.TransferSyntaxUID = UID(UIDS[syntax])
    dataset["PixelData"].VR = vr
    little_endian = syntax != "big endian"
    if vr == "OW" and not little_endian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, np.uint16).byteswap().tobytes()
    if syntax == "encapsulated raw":
        dataset.PixelData = encapsulate([dataset.PixelData])
    options = {"implicit_vr": syntax == "implicit", "little_endian": little_endian}
    dataset.save_as(path, enforce_file_format=True, **options)
    return path


def change(path: Path, **elements: Any) -> Path:
    """Set elements of a file; numbers of the form `x60000102` are tags of 16-bit words."""
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        if keyword.startswith("x"):
            dataset.add_new(int(keyword[1:], 16), "US", value)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def relabel(path: Path, uid: str) -> Path:
    """Change the transfer syntax of a file, and nothing else."""
    whole = path.read_bytes()
    at = whole.index(b"\x02\0\x10\0UI") + 6
    (length,) = struct.unpack_from("<H", whole, at)
    value = uid.encode() + b"\0" * (len(uid) % 2)
    path.write_bytes(whole[:at] + struct.pack("<H", len(value)) + value + whole[at + 2 + length :])
    return path


def read_frame(path: Path) -> bytes:
    return join_fragments(pydicom.dcmread(path).PixelData)


def replace_pixel_data(path: Path, value: bytes) -> None:
    """Replace the bytes of the pixel data."""
    whole, before = path.read_bytes(), pydicom.dcmread(path).PixelData
    assert whole.count(before) == 1
    path.write_bytes(whole.replace(before, value))


_TABLE = bytes([0, 0, 0, 0, 17, *[0] * 11, *range(17)])  # 17 categories, a code of 5 bits each


def encode_jpeg_lossless(
    pixels: np.ndarray, bits: int, predictor: int = 1, *, restart_rows: int = 0, transform: int = 0
) -> bytes:
    """Encode JPEG lossless (ITU T.81 Annex H): GDCM writes predictor 1 only.

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
    coded = b""
    for number, top in enumerate(range(0, height, interval)):
        part = values[top : top + interval]
        differences = (part - _predict(part, predictor, bits - transform)) % 2**16
        coded += bytes([0xFF, 0xD0 + (number - 1) % 8]) if number else b""
        coded += _pack(np.where(differences > 2**15, differences - 2**16, differences))

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    return b"".join(
        (
            b"\xff\xd8",
            segment(0xC3, struct.pack(">BHHB3B", bits, height, width, 1, 1, 0x11, 0)),
            segment(0xC4, b"\0" + _TABLE),
            segment(0xDD, struct.pack(">H", restart_rows * width)) if restart_rows else b"",
            segment(0xDA, bytes([1, 1, 0, predictor, 0, transform])),
            coded,
            b"\xff\xd9",
        )
    )


def _predict(values: np.ndarray, predictor: int, bits: int) -> np.ndarray:
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


def _pack(differences: np.ndarray) -> bytes:
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
    return int(stream, 2).to_bytes(len(stream) // 8).replace(b"\xff", b"\xff\0")
