"""DICOM files as they are: every transfer syntax, any fragments, bytes behind the end."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import gdcm
import numpy as np
import pydicom
import pytest
from dicom_files import SYNTAXES, dataset_of, write_dicom
from jpeg_lossless import encode_jpeg_lossless
from PIL import Image
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from rsna_bcd.imaging.codestream import holds_all_pixels, join_fragments
from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.imaging.headers import read_header
from rsna_bcd.imaging.mammogram import ImageError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 2**12, (33, 30)).astype(np.uint16)
SMOOTH = cv2.GaussianBlur(RNG.normal(0, 200, (133, 130)), (0, 0), 3)
BYTES = np.clip(SMOOTH + 128, 0, 255).astype(np.uint8)
COMPRESSED = list(SYNTAXES)
UIDS = {
    "baseline": "1.2.840.10008.1.2.4.50",
    "extended": "1.2.840.10008.1.2.4.51",
    "lossless": "1.2.840.10008.1.2.4.57",
    "lossless sv1": "1.2.840.10008.1.2.4.70",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big endian": "1.2.840.10008.1.2.2",
    "encapsulated raw": "1.2.840.10008.1.2.1.98",
}
DELIMITER = bytes.fromhex("feffdde000000000")


def write_frame(path: Path, frame: bytes, pixels: np.ndarray, bits: int, syntax: str) -> Path:
    """Write a file with a frame that is encoded already."""
    dataset = dataset_of(pixels, bits)
    dataset.file_meta.TransferSyntaxUID = UID(UIDS[syntax])
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, enforce_file_format=True)
    return path


def with_pixel_data(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Change the value of the pixel data, as bytes."""
    dataset = pydicom.dcmread(path)
    before = dataset.PixelData
    whole = path.read_bytes()
    assert whole.count(before) == 1
    path.write_bytes(whole.replace(before, change(before)))
    return path


def relabelled(path: Path, uid: str) -> Path:
    """Change the transfer syntax of a file, and nothing else."""
    whole = path.read_bytes()
    at = whole.index(b"\x02\0\x10\0UI") + 6
    (length,) = struct.unpack_from("<H", whole, at)
    value = uid.encode() + b"\0" * (len(uid) % 2)
    path.write_bytes(whole[:at] + struct.pack("<H", len(value)) + value + whole[at + 2 + length :])
    return path


def item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


@pytest.mark.parametrize("transform", [0, 2])
@pytest.mark.parametrize("restart_rows", [0, 4])
@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpeg_lossless_with_every_predictor(
    tmp_path: Path, bits: int, predictor: int, restart_rows: int, transform: int
) -> None:
    pixels: np.ndarray = RNG.integers(0, 2**bits, (33, 30))
    pixels = pixels.astype(np.uint8 if bits == 8 else np.uint16)
    frame = encode_jpeg_lossless(
        pixels, bits, predictor, restart_rows=restart_rows, transform=transform
    )
    path = write_frame(tmp_path / "a.dcm", frame, pixels, bits, "lossless")
    expected = np.left_shift(np.right_shift(pixels, transform), transform)
    for decoder in ("dicomsdl", "gdcm"):
        np.testing.assert_array_equal(read_dicom(path, [decoder]).pixels, expected)
    assert holds_all_pixels(frame, expected, bits)
    for cut in (2, 5, 60, len(frame) // 2):
        shorter = frame[: -2 - cut] + b"\xff\xd9"
        assert not holds_all_pixels(shorter, expected, bits)
        write_frame(path, shorter, pixels, bits, "lossless")
        with pytest.raises(ImageError, match="cut short"):
            read_dicom(path)


def test_jpeg_lossless_with_fill_bytes_before_its_end_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T.81 B.1.1.2: any number of bytes FF may come before a marker; real files have two."""
    frame = encode_jpeg_lossless(NOISE, 12)
    monkeypatch.setattr("rsna_bcd.imaging.codestream.holds_all_pixels", None)
    for fill in (b"", b"\xff", b"\xff\xff"):
        filled = frame[:-2] + fill + frame[-2:]
        path = write_frame(tmp_path / "a.dcm", filled, NOISE, 12, "lossless")
        np.testing.assert_array_equal(read_dicom(path).pixels, NOISE)


def test_jpeg_lossless_without_one_of_its_restart_intervals_is_refused(tmp_path: Path) -> None:
    frame = encode_jpeg_lossless(NOISE, 12, restart_rows=4)
    first, second = frame.index(b"\xff\xd0"), frame.index(b"\xff\xd1")
    shorter = frame[:first] + frame[second:]
    path = write_frame(tmp_path / "a.dcm", shorter, NOISE, 12, "lossless")
    with pytest.raises(ImageError, match="cut short: it has 7 restart markers"):
        read_dicom(path)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 7}])
@pytest.mark.parametrize("decoder", ["dicomsdl", "pillow"])
def test_lossy_jpeg_of_8_bits(tmp_path: Path, decoder: str, options: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(BYTES).save(buffer, "JPEG", quality=90, **options)
    frame = buffer.getvalue()
    path = write_frame(tmp_path / "a.dcm", frame, BYTES, 8, "baseline")
    if "progressive" in options:
        decoder = "pillow"
    pixels = read_dicom(path, [decoder]).pixels
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(buffer)))
    for cut in (1, 2, 9, len(frame) // 3):
        write_frame(path, frame[: -2 - cut] + b"\xff\xd9", BYTES, 8, "baseline")
        with pytest.raises(ImageError, match="cut short"):
            read_dicom(path, [decoder])


def test_lossy_jpeg_of_12_bits(tmp_path: Path) -> None:
    low = np.clip(SMOOTH / 4 + 128, 1, 254).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(low).save(buffer, "JPEG", quality=90)
    frame = bytearray(buffer.getvalue())
    at = frame.index(b"\xff\xc0")
    frame[at + 1], frame[at + 4] = 0xC1, 12  # the same cosines around half of the range
    shape = np.zeros(low.shape, np.uint16)
    path = write_frame(tmp_path / "a.dcm", bytes(frame), shape, 12, "extended")
    expected = np.asarray(Image.open(buffer)).astype(int) - 128 + 2048
    mammogram = read_dicom(path)
    np.testing.assert_allclose(mammogram.pixels, expected, atol=1)
    assert mammogram.facts["bits_stored"] == 12


def test_lossy_jpeg_of_16_bits_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(BYTES).save(buffer, "JPEG")
    frame = bytearray(buffer.getvalue())
    frame[frame.index(b"\xff\xc0") + 4] = 16
    path = write_frame(tmp_path / "a.dcm", bytes(frame), BYTES, 8, "baseline")
    with pytest.raises(ImageError, match="lossy JPEG of 16 bits"):
        read_dicom(path)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpeg_ls_near_lossless(tmp_path: Path, bits: int) -> None:
    pixels = RNG.integers(0, 2**bits, (33, 30)).astype(np.uint8 if bits == 8 else np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits)
    reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(path))
    assert reader.Read()
    codec = gdcm.JPEGLSCodec()
    codec.SetLossless(False)
    codec.SetLossyError(2)
    change.SetUserCodec(codec)
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLSNearLossless))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    mammogram = read_dicom(path)
    assert mammogram.facts["transfer_syntax"] == "1.2.840.10008.1.2.4.81"
    assert np.abs(mammogram.pixels.astype(int) - pixels).max() == 2


def written_as(path: Path, pixels: np.ndarray, bits: int, syntax: str, **elements: Any) -> Path:
    """Write raw pixels deflated, in big endian order or encapsulated."""
    dataset = dataset_of(pixels, bits, **elements)
    dataset.file_meta.TransferSyntaxUID = UID(UIDS[syntax])
    if syntax == "big endian":
        words = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        if dataset["PixelData"].VR == "OW":
            dataset.PixelData = np.frombuffer(words, np.uint16).byteswap().tobytes()
        dataset.save_as(path, implicit_vr=False, little_endian=False, enforce_file_format=True)
        return path
    if syntax == "encapsulated raw":
        dataset.PixelData = encapsulate([dataset.PixelData])
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("syntax", ["deflated", "big endian", "encapsulated raw"])
@pytest.mark.parametrize("pixels", [NOISE, BYTES[:31, :33], NOISE.astype(np.int16) - 2048])
def test_raw_pixels_in_rare_syntaxes(tmp_path: Path, syntax: str, pixels: np.ndarray) -> None:
    path = written_as(tmp_path / "a.dcm", pixels, 8 * pixels.dtype.itemsize, syntax)
    mammogram = read_dicom(path)
    np.testing.assert_array_equal(mammogram.pixels, pixels)
    assert (
        mammogram.facts["transfer_syntax"] == UIDS[syntax] == read_header(path)["transfer_syntax"]
    )


def test_big_endian_bytes_that_are_not_words_are_not_swapped(tmp_path: Path) -> None:
    dataset = dataset_of(BYTES, 8)
    dataset.file_meta.TransferSyntaxUID = UID(UIDS["big endian"])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(
        tmp_path / "a.dcm", implicit_vr=False, little_endian=False, enforce_file_format=True
    )
    np.testing.assert_array_equal(read_dicom(tmp_path / "a.dcm").pixels, BYTES)


def test_deflated_data_are_limited_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written_as(tmp_path / "a.dcm", NOISE, 12, "deflated")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ImageError, match="cut short"):
        read_dicom(path)
    monkeypatch.setattr("rsna_bcd.imaging.parsing._MOST_INFLATED", 1000)
    path.write_bytes(whole)
    for read in (read_dicom, read_header):
        with pytest.raises(ImageError, match="hold more than"):
            read(path)


@pytest.mark.parametrize("behind", [b"\xff", b"\xff" * 9, b"\0" * 5, RNG.bytes(64), b"\xff\xd9"])
@pytest.mark.parametrize("syntax", COMPRESSED)
def test_bytes_behind_the_end_are_padding(tmp_path: Path, syntax: str, behind: bytes) -> None:
    path = write_dicom(tmp_path / "a.dcm", NOISE, bits=12, syntax=syntax)
    frame = join_fragments(pydicom.dcmread(path).PixelData)
    with_pixel_data(path, lambda _: encapsulate([frame + behind]))
    np.testing.assert_array_equal(read_dicom(path).pixels, NOISE)


@pytest.mark.parametrize("syntax", ["jpeg2000", "jpeg", "jpeg_ls"])
def test_a_second_image_is_no_padding(tmp_path: Path, syntax: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", NOISE, bits=12, syntax=syntax)
    frame = join_fragments(pydicom.dcmread(path).PixelData)
    for value in (encapsulate([frame, frame]), encapsulate([frame + frame])):
        with_pixel_data(path, lambda _, value=value: value)  # type: ignore[misc]
        with pytest.raises(ImageError, match="a second image"):
            read_dicom(path)


@pytest.mark.parametrize("size", [2, 100, 333, 10**6])
@pytest.mark.parametrize(
    "table",
    ["empty", "each fragment", "wrong", "odd", "absent", "without end", "extended"],
)
@pytest.mark.parametrize("syntax", COMPRESSED)
def test_any_fragments_and_any_offset_table(
    tmp_path: Path, syntax: str, table: str, size: int
) -> None:
    path = write_dicom(tmp_path / "a.dcm", NOISE, bits=12, syntax=syntax)
    frame = join_fragments(pydicom.dcmread(path).PixelData)
    if table == "absent" and size < (64 if syntax == "rle" else 4):
        size = 10**6  # nothing tells a part of a header, or of a start marker, from a table
    parts = [frame[at : at + size] for at in range(0, len(frame), size)]
    offsets = np.cumsum([0, *(len(part) + 8 for part in parts[:-1])]).astype("<u4").tobytes()
    first = {
        "empty": item(b""),
        "each fragment": item(offsets),
        "wrong": item(struct.pack("<I", 5_000_001)),
        "odd": item(b"abc"),
        "absent": b"",
        "without end": struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF),
        "extended": item(b""),
    }[table]
    with_pixel_data(path, lambda _: first + b"".join(map(item, parts)))
    if table == "extended":
        dataset = pydicom.dcmread(path)
        _, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(
            [frame[: len(frame) // 2]]
        )
        dataset.save_as(path)
    np.testing.assert_array_equal(read_dicom(path).pixels, NOISE)


@pytest.mark.parametrize("behind", [b"", b"\0" * 7, b"\xff" * 100])
@pytest.mark.parametrize("syntax", COMPRESSED)
def test_the_sequence_delimiter_may_be_absent(tmp_path: Path, syntax: str, behind: bytes) -> None:
    path = write_dicom(tmp_path / "a.dcm", NOISE, bits=12, syntax=syntax)
    whole = path.read_bytes()
    assert whole.endswith(DELIMITER)
    path.write_bytes(whole[: -len(DELIMITER)] + behind)
    np.testing.assert_array_equal(read_dicom(path).pixels, NOISE)
    path.write_bytes(whole[: -len(DELIMITER) - 1])
    with pytest.raises(ImageError, match="cut short"):
        read_dicom(path)


@pytest.mark.parametrize("cut", ["preamble", "prefix", "both", "meta", "everything"])
@pytest.mark.parametrize("syntax", ["raw", "implicit", "big endian", *COMPRESSED])
def test_preamble_and_meta_information_may_be_absent(tmp_path: Path, syntax: str, cut: str) -> None:
    path = tmp_path / "a.dcm"
    if syntax == "big endian":
        written_as(path, NOISE, 12, syntax)
    else:
        write_dicom(path, NOISE, bits=12, syntax=syntax.replace("implicit", "raw"))
    if syntax == "implicit":
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        dataset.save_as(path, implicit_vr=True)
    whole = path.read_bytes()
    first = 144 + int.from_bytes(whole[140:144], "little")  # behind the meta information
    path.write_bytes(
        {
            "preamble": whole[128:],
            "prefix": whole[:128] + whole[132:],
            "both": whole[132:],
            "meta": whole[:132] + whole[first:],
            "everything": whole[first:],
        }[cut]
    )
    mammogram = read_dicom(path)
    np.testing.assert_array_equal(mammogram.pixels, NOISE)
    assert read_header(path)["rows"] == 33
    if cut not in ("meta", "everything"):
        assert mammogram.facts["transfer_syntax"] == read_header(path)["transfer_syntax"]


@pytest.mark.parametrize(
    "content",
    [
        b"DICM" + bytes(200),
        bytes(500),
        b"\x08\0\x05\0XX" + bytes(99),
        b"GIF89a" + bytes(300),
        b"\x89PNG\r\n\x1a\n" + bytes(300),
        b"\x08",
    ],
)
def test_other_files_are_no_dicom_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.dcm").write_bytes(content)
    for read in (read_dicom, read_header):
        with pytest.raises(ImageError, match="not a DICOM file"):
            read(tmp_path / "a.dcm")


@pytest.mark.parametrize("code", ["MONOCHROME1 ", "monochrome1", " Monochrome1", "MONOCHROME1\0"])
def test_codes_may_be_padded_or_in_lower_case(tmp_path: Path, code: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", NOISE, bits=12)
    whole = path.read_bytes()
    value = code.encode() + b" " * (len(code) % 2)
    at = whole.index(b"MONOCHROME2") - 8
    path.write_bytes(whole[: at + 6] + struct.pack("<H", len(value)) + value + whole[at + 8 + 12 :])
    assert read_dicom(path).display.inverted


@pytest.mark.parametrize("surplus", [b"\0\0", b"\xff" * 601, RNG.bytes(2), RNG.bytes(1000)])
def test_bytes_behind_raw_pixels_are_padding(tmp_path: Path, surplus: bytes) -> None:
    path = write_dicom(tmp_path / "a.dcm", NOISE, bits=12, PixelData=NOISE.tobytes() + surplus)
    np.testing.assert_array_equal(read_dicom(path).pixels, NOISE)


@pytest.mark.parametrize("rows", [1, 7, 33])
def test_rows_behind_raw_pixels_are_none(tmp_path: Path, rows: int) -> None:
    more = NOISE[:rows].tobytes()
    path = write_dicom(tmp_path / "a.dcm", NOISE, bits=12, PixelData=NOISE.tobytes() + more)
    with pytest.raises(ImageError, match="bytes of pixels, where the size needs 1980"):
        read_dicom(path)


@pytest.mark.parametrize(
    ("syntax", "name"), [("jpeg2000", "JPEG 2000"), ("jpeg", "JPEG"), ("rle", "encapsulated")]
)
def test_compressed_pixels_under_an_uncompressed_syntax_are_named(
    tmp_path: Path, syntax: str, name: str
) -> None:
    path = write_dicom(tmp_path / "a.dcm", NOISE, bits=12, syntax=syntax)
    value = pydicom.dcmread(path).PixelData
    for content in (value, join_fragments(value) if syntax != "rle" else value):
        write_dicom(path, NOISE, bits=12, PixelData=content + b"\0" * (len(content) % 2))
        with pytest.raises(ImageError, match=f"not compressed, but they are {name}: export"):
            read_dicom(path)


@pytest.mark.parametrize("encapsulated", [False, True])
@pytest.mark.parametrize("syntax", ["lossless sv1", "baseline"])
def test_raw_pixels_under_a_compressed_syntax_are_named(
    tmp_path: Path, syntax: str, encapsulated: bool
) -> None:
    path = write_frame(tmp_path / "a.dcm", NOISE.tobytes(), NOISE, 12, syntax)
    if not encapsulated:
        relabelled(write_dicom(path, NOISE, bits=12), UIDS[syntax])
    with pytest.raises(ImageError, match="says that the pixels are compressed, but they are not"):
        read_dicom(path)


@pytest.mark.parametrize("syntax", ["jpeg2000", "jpeg", "jpeg_ls"])
@pytest.mark.parametrize("label", ["baseline", "lossless sv1", "1.2.840.10008.1.2.4.91"])
def test_the_frame_knows_its_syntax(tmp_path: Path, syntax: str, label: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", NOISE, bits=12, syntax=syntax)
    relabelled(path, UIDS.get(label, label))
    np.testing.assert_array_equal(read_dicom(path).pixels, NOISE)


@pytest.mark.parametrize(
    ("uid", "remedy"),
    [
        ("1.2.840.10008.1.2.4.100", "video"),
        ("1.2.840.10008.1.2.4.102", "video"),
        ("1.2.840.10008.1.2.4.107", "video"),
        ("1.2.840.10008.1.2.4.110", "JPEG XL; export"),
        ("1.2.840.10008.1.2.4.94", "on a server"),
        ("1.2.840.10008.1.2.4.55", "gdcmconv --raw"),
        ("1.2.3.4", "gdcmconv --raw"),
    ],
)
def test_a_refused_syntax_has_a_remedy(tmp_path: Path, uid: str, remedy: str) -> None:
    path = relabelled(write_dicom(tmp_path / "a.dcm", NOISE, bits=12, syntax="jpeg"), uid)
    with pytest.raises(ImageError, match=f"is not supported: .*{remedy}"):
        read_dicom(path)


@pytest.mark.parametrize(
    ("elements", "aspect"),
    [
        ({}, 1),
        ({"PixelAspectRatio": [2, 1]}, 2),
        ({"ImagerPixelSpacing": [0.05, 0.1]}, 0.5),
        ({"PixelSpacing": [0.2, 0.1]}, 2),
        ({"ImagerPixelSpacing": [0.1, 0.1], "PixelAspectRatio": [2, 1]}, 1),
        ({"ImagerPixelSpacing": [0.1, 0.1001]}, 1),
        ({"ImagerPixelSpacing": [0, 0.1], "PixelSpacing": [0.2, 0.1]}, 2),
        ({"PixelAspectRatio": [1000, 1]}, 1),
        ({"PixelAspectRatio": 2}, 1),
    ],
)
def test_the_aspect_of_pixels(tmp_path: Path, elements: dict[str, Any], aspect: float) -> None:
    path = write_dicom(tmp_path / "a.dcm", NOISE, bits=12, **elements)
    assert read_dicom(path).pixel_aspect == pytest.approx(aspect)
    assert ExplicitVRLittleEndian == read_dicom(path).facts["transfer_syntax"]
