"""Reading DICOM: every transfer syntax and decoder gives the stored values; bad files a reason."""

import base64
import io
import struct
from pathlib import Path
from typing import Any

import cv2
import gdcm
import numpy as np
import pydicom
import pytest
from dicom_files import (
    SYNTAXES,
    UIDS,
    change,
    encode_jpeg_lossless,
    read_frame,
    relabel,
    replace_pixel_data,
    write_dicom,
    write_frame,
    write_uncompressed,
)
from PIL import Image
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import HTJ2KLossless

from rsna_bcd.imaging import codecs
from rsna_bcd.imaging.codestream import holds_all_pixels, join_fragments
from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.imaging.headers import read_header
from rsna_bcd.imaging.mammogram import ImageError
from rsna_bcd.phantom.scanner import transcode

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 2**12, (33, 30)).astype(np.uint16)
SIGNED = RNG.integers(-(2**11), 2**11, (33, 30)).astype(np.int16)
SMOOTH = cv2.GaussianBlur(RNG.normal(0, 200, (133, 130)), (0, 0), 3)
BYTES = np.clip(SMOOTH + 128, 0, 255).astype(np.uint8)
KINDS: dict[str, tuple[np.ndarray, int]] = {
    "8": (RNG.integers(0, 2**8, (34, 31)).astype(np.uint8), 8),
    "9": (RNG.integers(0, 2**9, (33, 30)).astype(np.uint16), 9),
    "12": (NOISE, 12),
    "16": (RNG.integers(0, 2**16, (33, 30)).astype(np.uint16), 16),
    "8 signed": (RNG.integers(-(2**7), 2**7, (34, 31)).astype(np.int8), 8),
    "12 signed": (SIGNED, 12),
    "16 signed": (RNG.integers(-(2**15), 2**15, (33, 30)).astype(np.int16), 16),
}
CODESTREAMS = ["jpeg2000", "jpeg", "jpeg_ls"]
DELIMITER = bytes.fromhex("feffdde000000000")


def readers(syntax: str) -> list[str]:
    """Decoders of a syntax."""
    if syntax not in CODESTREAMS:
        return ["pydicom"]
    return ["dicomsdl", "gdcm", *(["openjpeg"] if syntax == "jpeg2000" else [])]


def assert_pixels(path: Path, pixels: np.ndarray, *decoders: str) -> None:
    found = read_dicom(path, decoders).pixels if decoders else read_dicom(path).pixels
    np.testing.assert_array_equal(found, pixels)


def refused(path: Path, reason: str | None = None, *decoders: str) -> None:
    with pytest.raises(ImageError, match=reason):
        read_dicom(path, decoders or tuple(codecs.DECODERS))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.dcm"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("syntax", ["raw", *SYNTAXES])
def test_read_dicom_returns_the_stored_values_by_every_decoder(
    path: Path, syntax: str, kind: str
) -> None:
    pixels, bits = KINDS[kind]
    write_dicom(path, pixels, bits=bits, syntax=syntax)
    for name in readers(syntax):
        mammogram = read_dicom(path, [name])
        np.testing.assert_array_equal(mammogram.pixels, pixels)
        assert mammogram.decode(0).decoder == name
        assert int(mammogram.facts["bits_stored"]) >= bits  # GDCM rounds that of JPEG up
    others = [name for name in codecs.DECODERS if name not in readers(syntax)]
    refused(path, "none of the decoders .* reads ", *others)


@pytest.mark.parametrize("syntax", ["implicit", "deflated", "big endian", "encapsulated raw"])
@pytest.mark.parametrize(
    ("pixels", "vr"), [(NOISE, "OW"), (SIGNED, "OW"), (BYTES[:31, :33], "OW"), (BYTES, "OB")]
)
def test_read_dicom_uncompressed_syntaxes(
    path: Path, syntax: str, pixels: np.ndarray, vr: str
) -> None:
    write_uncompressed(path, pixels, 8 * pixels.dtype.itemsize, syntax, vr=vr)
    assert_pixels(path, pixels)
    facts = read_dicom(path).facts
    assert facts["transfer_syntax"] == UIDS[syntax] == read_header(path)["transfer_syntax"]


def test_parse_dicom_limits_deflated_data(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_uncompressed(path, NOISE, 12, "deflated").read_bytes()
    path.write_bytes(whole[:-9])
    refused(path, "cut short")
    monkeypatch.setattr("rsna_bcd.imaging.parsing._MOST_INFLATED", 1000)
    path.write_bytes(whole)
    for read in (read_dicom, read_header):
        with pytest.raises(ImageError, match="hold more than"):
            read(path)


def low_band(values: np.ndarray) -> np.ndarray:
    """Of the reversible 5/3 wavelet along both axes (ISO 15444-1 F.4.8.1), by lifting."""
    for _ in range(2):
        n = len(values)
        if n > 1:
            mirrored = np.concatenate([values, values[-2:-3:-1]])  # one sample beyond the end
            even, odd, following = mirrored[: n + 1 : 2], mirrored[1:n:2], mirrored[2 : n + 1 : 2]
            details = odd - (even[: len(odd)] + following[: len(odd)]) // 2
            count = -(-n // 2)
            before = np.concatenate([details[:1], details])[:count]
            after = np.concatenate([details, details[-1:]])[:count]
            values = values[::2] + (before + after + 2) // 4
        values = values.T
    return values


@pytest.mark.parametrize("size", [(34, 31), (61, 77), (65, 128)])
@pytest.mark.parametrize("kind", KINDS)
def test_decode_reduced_is_the_low_band_of_the_wavelet(
    path: Path, kind: str, size: tuple[int, int]
) -> None:
    noise, bits = KINDS[kind]
    pixels = np.resize(noise, size)
    mammogram = read_dicom(write_dicom(path, pixels, bits=bits, syntax="jpeg2000"))
    assert mammogram.most_reduced >= 3
    band, stored = pixels.astype(np.int64), int(mammogram.facts["bits_stored"])
    low = -(2 ** (stored - 1)) if noise.dtype.kind == "i" else 0
    for reduced in range(1, mammogram.most_reduced + 1):
        band = low_band(band)
        level = mammogram.decode(reduced)
        assert (level.reduced, level.decoder) == (reduced, "openjpeg")
        np.testing.assert_array_equal(level.pixels, np.clip(band, low, low + 2**stored - 1))


def test_decode_in_full_without_openjpeg(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dicom(path, NOISE, bits=12, syntax="jpeg2000")
    assert read_dicom(path, ["gdcm"]).most_reduced == 0

    def refuse(frame: codecs.Frame, reduced: int) -> np.ndarray:
        raise RuntimeError("not today")

    reads = codecs.DECODERS["openjpeg"].reads
    monkeypatch.setitem(codecs.DECODERS, "openjpeg", codecs.Decoder(reads, refuse))
    level = read_dicom(path).decode(2)
    assert (level.reduced, level.decoder) == (0, "dicomsdl")
    np.testing.assert_array_equal(level.pixels, NOISE)


@pytest.mark.parametrize("tiles", [(32, 32), (40, 40)])
def test_decode_reduced_only_streams_of_one_tile(path: Path, tiles: tuple[int, int]) -> None:
    stream, pixels = io.BytesIO(), NOISE << 4  # Pillow writes 16 bits
    options = {"no_jp2": True, "irreversible": False, "tile_size": tiles}
    Image.fromarray(pixels).save(stream, "JPEG2000", **options)
    write_dicom(path, pixels, bits=16, syntax="jpeg2000")
    change(path, PixelData=encapsulate([stream.getvalue()]))
    assert bool(read_dicom(path).most_reduced) == (tiles == (40, 40))
    for name in readers("jpeg2000"):
        assert_pixels(path, pixels, name)


# 12 x 16 pixels of 16 bits, written with OpenJPH: nothing that comes with the project writes HTJ2K.
HTJ2K_STREAM = (
    "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB"
    "/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAKUAAf+TwAAmk/wFB3QA"
    "AMAAE0AAEwCi/gIHdAB4/gKHdADAABNAABMAUFABgnQA27cAYjQAwAAVMAAFpCQS6aBCMQJ2ANf1el3XdTnu2LHjDk9z"
    "5DG3AMAAKyAAF2QIgiAI8ueKenCCdwBVa1VVVVVVVVWtVVVVVVVVVcFcwVzBXMFcwVzBXMFcwfwAAAAggAADH9ev1l6M"
    "ajGxAf/Z"
)


def test_read_dicom_high_throughput_jpeg2000(path: Path) -> None:
    rows, columns = np.mgrid[:12, :16]
    pixels = ((columns * 37 + rows * rows * 11) % 4096).astype(np.uint16)
    write_dicom(path, pixels, bits=16, syntax="jpeg2000")
    relabel(change(path, PixelData=encapsulate([base64.b64decode(HTJ2K_STREAM)])), HTJ2KLossless)
    assert_pixels(path, pixels)
    reduced = read_dicom(path).decode(1).pixels
    np.testing.assert_array_equal(reduced, np.clip(low_band(pixels.astype(int)), 0, 65535))


@pytest.mark.parametrize("syntax", CODESTREAMS)
@pytest.mark.parametrize(
    ("kind", "claim"),
    [
        ("8", {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}),
        ("8 signed", {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15}),
        ("12", {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}),
        ("16", {"BitsStored": 12, "HighBit": 11}),
        ("16", {"PixelRepresentation": 1}),
    ],
)
def test_read_dicom_believes_the_codestream_on_precision(
    path: Path, syntax: str, kind: str, claim: dict
) -> None:
    pixels, bits = KINDS[kind]
    change(write_dicom(path, pixels, bits=bits, syntax=syntax), **claim)
    if "PixelRepresentation" in claim:
        pixels = pixels.view(np.int16)  # an unsigned stream, then, holds two's complement
    for decoder in readers(syntax):
        assert_pixels(path, pixels, decoder)


SHORT = SIGNED.view(np.uint16) & 0x0FFF  # the four bits above are not the sign


@pytest.mark.parametrize("words", [SHORT, SIGNED.view(np.uint16)])
def test_read_dicom_unsigned_stream_under_a_signed_header(path: Path, words: np.ndarray) -> None:
    write_dicom(path, words, bits=16, syntax="jpeg2000")
    change(path, BitsStored=12, HighBit=11, PixelRepresentation=1)
    for decoder in readers("jpeg2000"):
        assert_pixels(path, SIGNED, decoder)
    assert read_dicom(path).most_reduced == 0  # words of both signs cannot be averaged


@pytest.mark.parametrize("syntax", ["raw", "jpeg2000", "rle"])
@pytest.mark.parametrize("pixels", [NOISE, SIGNED])
@pytest.mark.parametrize("position", [12, 15])
def test_read_dicom_masks_overlays_in_unused_bits(
    path: Path, syntax: str, pixels: np.ndarray, position: int
) -> None:
    overlay = RNG.integers(0, 2, pixels.shape).astype(np.uint16) << position
    words = (pixels.view(np.uint16) & 0x0FFF) | overlay
    write_dicom(path, words, bits=16, syntax=syntax)
    signed = int(pixels.dtype.kind == "i")
    layout = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": signed}
    assert_pixels(change(path, x60020100=16, x60020102=position, **layout), pixels)


@pytest.mark.parametrize(
    ("words", "expected", "elements"),
    [
        (NOISE << 4, NOISE, {"HighBit": 15}),
        (NOISE, NOISE, {"HighBit": 15}),  # bits below are in use
        (NOISE, NOISE, {"HighBit": 65535}),
        ((NOISE << 4) | (NOISE & 1), NOISE, {"HighBit": 15, "x60000102": 0}),
        *((NOISE, NOISE, {"x60000102": position}) for position in (0, 11, 16, 200)),
        (NOISE, NOISE, {"BitsStored": 10, "HighBit": 9}),  # unsigned values beyond are kept
        (SHORT, SIGNED, {"PixelRepresentation": 1}),
    ],
)
def test_read_dicom_sample_layout(
    path: Path, words: np.ndarray, expected: np.ndarray, elements: dict[str, int]
) -> None:
    assert_pixels(change(write_dicom(path, words, bits=12), **elements), expected)


@pytest.mark.parametrize("kind", ["ramp", "int8", "int16"])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_read_dicom_ramps_and_backgrounds_of_the_smallest_value_are_complete(
    path: Path, syntax: str, kind: str
) -> None:
    pixels: np.ndarray = np.add.outer(np.arange(60), np.arange(40)).astype(np.uint16)
    if kind != "ramp":
        info = np.iinfo(kind)
        pixels = RNG.integers(info.min, info.max, (60, 40)).astype(kind)
        pixels[:, 25:] = pixels[50:] = info.min
    bits = 8 * pixels.dtype.itemsize
    assert_pixels(write_dicom(path, pixels, bits=bits, syntax=syntax), pixels)


@pytest.mark.parametrize("transform", [0, 2])
@pytest.mark.parametrize("restart_rows", [0, 4])
@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("kind", ["8", "16"])
def test_read_dicom_jpeg_lossless_complete_with_every_predictor(
    path: Path, kind: str, predictor: int, restart_rows: int, transform: int
) -> None:
    pixels, bits = KINDS[kind]
    options = {"restart_rows": restart_rows, "transform": transform}
    frame = encode_jpeg_lossless(pixels, bits, predictor, **options)
    write_frame(path, frame, pixels, bits, "lossless")
    expected = np.left_shift(np.right_shift(pixels, transform), transform)
    for decoder in ("dicomsdl", "gdcm"):
        assert_pixels(path, expected, decoder)
    assert holds_all_pixels(frame, expected, bits)
    for cut in (2, 60, len(frame) // 2):
        shorter = frame[: -2 - cut] + b"\xff\xd9"
        assert not holds_all_pixels(shorter, expected, bits)
        refused(write_frame(path, shorter, pixels, bits, "lossless"), "cut short")


@pytest.mark.parametrize("fill", [b"", b"\xff", b"\xff\xff"])  # before a marker, T.81 B.1.1.2
def test_check_jpeg_lossless_complete_does_not_count_pixels_after_fill_bytes(
    path: Path, fill: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = encode_jpeg_lossless(NOISE, 12)
    monkeypatch.setattr("rsna_bcd.imaging.codestream.holds_all_pixels", None)
    filled = frame[:2] + fill + frame[2:-2] + fill + frame[-2:]
    assert_pixels(write_frame(path, filled, NOISE, 12, "lossless"), NOISE)


def test_read_jpeg_counts_restart_intervals(path: Path) -> None:
    frame = encode_jpeg_lossless(NOISE, 12, restart_rows=4)
    shorter = frame[: frame.index(b"\xff\xd0")] + frame[frame.index(b"\xff\xd1") :]
    refused(write_frame(path, shorter, NOISE, 12, "lossless"), "cut short: it has 7 restart")


@pytest.mark.parametrize(
    ("decoder", "options"),
    [
        ("dicomsdl", {}), ("dicomsdl", {"restart_marker_blocks": 7}), ("pillow", {}),
        ("pillow", {"restart_marker_blocks": 7}), ("pillow", {"progressive": True}),
    ],
)  # fmt: skip
def test_read_dicom_lossy_jpeg_of_8_bits(path: Path, decoder: str, options: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(BYTES).save(buffer, "JPEG", quality=90, **options)
    frame = buffer.getvalue()
    write_frame(path, frame, BYTES, 8, "baseline")
    assert_pixels(path, np.asarray(Image.open(buffer)), decoder)
    for cut in (1, 9, len(frame) // 3):
        write_frame(path, frame[: -2 - cut] + b"\xff\xd9", BYTES, 8, "baseline")
        refused(path, "cut short", decoder)


def test_read_dicom_lossy_jpeg_of_12_and_16_bits(path: Path) -> None:
    low = np.clip(SMOOTH / 4 + 128, 1, 254).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(low).save(buffer, "JPEG", quality=90)
    frame = bytearray(buffer.getvalue())
    at = frame.index(b"\xff\xc0")
    frame[at + 1], frame[at + 4] = 0xC1, 12  # the same cosines around half of the range
    write_frame(path, bytes(frame), low.astype(np.uint16), 12, "extended")
    expected = np.asarray(Image.open(buffer)).astype(int) - 128 + 2048
    np.testing.assert_allclose(read_dicom(path).pixels, expected, atol=1)
    assert read_dicom(path).facts["bits_stored"] == 12
    frame[at + 1], frame[at + 4] = 0xC0, 16
    refused(write_frame(path, bytes(frame), low, 8, "baseline"), "lossy JPEG of 16 bits")


@pytest.mark.parametrize("kind", ["8", "16"])
def test_read_dicom_jpeg_ls_near_lossless(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, bits = KINDS[kind]
    write_dicom(path, pixels, bits=bits)
    codec, near_lossless = gdcm.JPEGLSCodec(), gdcm.ImageChangeTransferSyntax()
    codec.SetLossless(False)
    codec.SetLossyError(2)
    near_lossless.SetUserCodec(codec)
    monkeypatch.setattr(gdcm, "ImageChangeTransferSyntax", lambda: near_lossless)
    transcode(path, path, "1.2.840.10008.1.2.4.81")
    mammogram = read_dicom(path)
    assert mammogram.facts["transfer_syntax"] == "1.2.840.10008.1.2.4.81"
    assert np.abs(mammogram.pixels.astype(int) - pixels).max() == 2


@pytest.mark.parametrize("size", [2, 100, 10**6])
@pytest.mark.parametrize(
    "table", ["empty", "each fragment", "wrong", "odd", "absent", "without end", "extended"]
)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_join_fragments_ignores_the_offset_table(
    path: Path, syntax: str, table: str, size: int
) -> None:
    write_dicom(path, NOISE, bits=12, syntax=syntax)
    frame = read_frame(path)
    if table == "absent" and size < (64 if syntax == "rle" else 4):
        size = 10**6  # nothing distinguishes a part of a header or marker from a table
    parts = [frame[at : at + size] for at in range(0, len(frame), size)]
    offsets = np.cumsum([0, *(len(part) + 8 for part in parts[:-1])]).astype("<u4").tobytes()

    def item(content: bytes) -> bytes:
        return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content

    first = {
        "each fragment": item(offsets),
        "wrong": item(struct.pack("<I", 5_000_001)),
        "odd": item(b"abc"),
        "absent": b"",
        "without end": struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF),
    }.get(table, item(b""))
    replace_pixel_data(path, first + b"".join(map(item, parts)))
    if table == "extended":
        _, *extended = encapsulate_extended([frame[: len(frame) // 2]])
        change(path, ExtendedOffsetTable=extended[0], ExtendedOffsetTableLengths=extended[1])
    assert_pixels(path, NOISE)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_read_dicom_bytes_after_the_frame_are_padding(path: Path, syntax: str) -> None:
    frame = read_frame(write_dicom(path, NOISE, bits=12, syntax=syntax))
    for after in (b"\xff", b"\0" * 5, RNG.bytes(64), b"\xff\xd9"):
        replace_pixel_data(path, encapsulate([frame + after]))
        assert_pixels(path, NOISE)


@pytest.mark.parametrize("surplus", [b"\0\0", b"\xff" * 601, RNG.bytes(2), RNG.bytes(1000)])
def test_read_dicom_bytes_after_raw_pixels_are_padding(path: Path, surplus: bytes) -> None:
    content = NOISE.tobytes() + surplus
    assert_pixels(write_dicom(path, NOISE, bits=12, PixelData=content, Modality=None), NOISE)


@pytest.mark.parametrize("syntax", CODESTREAMS)
def test_read_dicom_refuses_incomplete_and_second_frames(path: Path, syntax: str) -> None:
    write_dicom(path, NOISE, bits=12, syntax=syntax)
    frame = read_frame(path)
    for value in (encapsulate([frame, frame]), encapsulate([frame + frame])):
        replace_pixel_data(path, value)
        refused(path, "a second image")
    change(path, PixelData=encapsulate([frame[: len(frame) // 2]]))
    refused(path, "cut short: its frame has no end marker")
    change(path, PixelData=encapsulate([frame]), Rows=6000)
    refused(path, "header says 6000 x 30 pixels, the .* frame 33 x 30")


def test_read_dicom_codestream_in_a_jp2_file(path: Path) -> None:
    write_dicom(path, NOISE, bits=12, syntax="jpeg2000")
    height, width = (n.to_bytes(4) for n in NOISE.shape)

    def box(content: bytes) -> bytes:
        return (len(content) + 4).to_bytes(4) + content

    header = box(b"ihdr" + height + width + b"\x00\x01\x0f\x07\x00\x00")
    colour = box(b"colr\x01\x00\x00\x00\x00\x00\x11")
    file = box(b"jP  \r\n\x87\n") + box(b"ftypjp2 \x00\x00\x00\x00jp2 ")
    file += box(b"jp2h" + header + colour) + box(b"jp2c" + read_frame(path))
    assert_pixels(change(path, PixelData=encapsulate([file + b"\0\0\0\0"])), NOISE)


@pytest.mark.parametrize("syntax", ["raw", *SYNTAXES])
def test_read_dicom_refuses_files_cut_short_anywhere(path: Path, syntax: str) -> None:
    whole = write_dicom(path, NOISE, bits=12, syntax=syntax).read_bytes()
    for length in range(0, len(whole) - 10, 31):  # the last 8 bytes delimit, and are not content
        path.write_bytes(whole[:length])
        refused(path)


@pytest.mark.parametrize("after", [b"", b"\0" * 7, b"\xff" * 100])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_parse_dicom_without_sequence_delimiter(path: Path, syntax: str, after: bytes) -> None:
    whole = write_dicom(path, NOISE, bits=12, syntax=syntax).read_bytes()
    assert whole.endswith(DELIMITER)
    path.write_bytes(whole[: -len(DELIMITER)] + after)
    assert_pixels(path, NOISE)
    path.write_bytes(whole[: -len(DELIMITER) - 1])
    refused(path, "cut short")


@pytest.mark.parametrize("cut", ["preamble", "prefix", "both", "meta", "everything"])
@pytest.mark.parametrize("syntax", ["raw", "implicit", "big endian", *SYNTAXES])
def test_parse_dicom_without_preamble_or_meta_information(
    path: Path, syntax: str, cut: str
) -> None:
    if syntax in UIDS:
        write_uncompressed(path, NOISE, 12, syntax)
    else:
        write_dicom(path, NOISE, bits=12, syntax=syntax)
    whole = path.read_bytes()
    first = 144 + int.from_bytes(whole[140:144], "little")  # after the meta information
    content = {
        "preamble": whole[128:], "prefix": whole[:128] + whole[132:], "both": whole[132:],
        "meta": whole[:132] + whole[first:], "everything": whole[first:],
    }  # fmt: skip
    path.write_bytes(content[cut])
    assert_pixels(path, NOISE)
    assert read_header(path)["rows"] == 33
    if cut not in ("meta", "everything"):
        named = read_dicom(path).facts["transfer_syntax"]
        assert named == read_header(path)["transfer_syntax"]


@pytest.mark.parametrize(
    "content",
    [
        b"image_id,cancer\n" * 50, b"DICM" + bytes(200), bytes(500),
        b"\x08\0\x05\0XX" + bytes(99), b"\x89PNG\r\n\x1a\n" + bytes(300), b"\x08",
    ],
)  # fmt: skip
def test_parse_dicom_refuses_other_files(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for read in (read_dicom, read_header):
        with pytest.raises(ImageError, match="not a DICOM file"):
            read(path)


def test_parse_dicom_refuses_endless_nesting(path: Path) -> None:
    whole = write_dicom(path, NOISE, bits=12).read_bytes()
    sequence = bytes.fromhex("180011515351 0000 ffffffff feff00e0 ffffffff")
    at = whole.index(b"\x28\x00\x02\x00US")
    path.write_bytes(whole[:at] + sequence * 3000 + whole[at:])
    for read in (read_dicom, read_header):
        with pytest.raises(ImageError, match="damaged header"):
            read(path)


@pytest.mark.parametrize(
    "code", [b"MONOCHROME1 ", b"monochrome1 ", b" Monochrome1", b"MONOCHROME1\0"]
)
def test_check_header_accepts_padded_and_lower_case_codes(path: Path, code: bytes) -> None:
    whole = write_dicom(path, NOISE, bits=12).read_bytes()
    path.write_bytes(whole.replace(b"MONOCHROME2 ", code))
    assert read_dicom(path).display.inverted


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels"),
        ({"Rows": 0}, "0 x 30 pixels"),
        ({"Rows": None}, "lacks Rows"),
        ({"BitsStored": 0}, "0 of 16 bits"),
        ({"BitsAllocated": 32}, "of 32 bits"),
        ({"SamplesPerPixel": 3}, "3 samples per pixel"),
        ({"NumberOfFrames": 5}, "5 frames"),
        ({"PhotometricInterpretation": "RGB"}, "photometric interpretation RGB"),
        ({"Modality": "CT"}, "CT image, no mammogram"),
        ({"Rows": 32}, "1980 bytes of pixels, where the size needs 1920"),
        ({"PixelData": None}, "no pixel data"),
        ({"PixelData": b"1234"}, "cut short: 4 of 1980 bytes"),
        ({"PixelData": NOISE.tobytes() + NOISE[:7].tobytes()}, "where the size needs 1980"),
        ({"PixelData": np.full(990, 7, np.uint16).tobytes()}, "all pixels have the value 7"),
    ],
)
def test_read_dicom_refuses_other_images(path: Path, elements: dict, reason: str) -> None:
    refused(write_dicom(path, NOISE, bits=12, **elements), reason)


@pytest.mark.parametrize(
    ("syntax", "name"), [("jpeg2000", "JPEG 2000"), ("jpeg", "JPEG"), ("rle", "encapsulated")]
)
def test_read_dicom_names_compressed_pixels_under_an_uncompressed_syntax(
    path: Path, syntax: str, name: str
) -> None:
    value = pydicom.dcmread(write_dicom(path, NOISE, bits=12, syntax=syntax)).PixelData
    for content in (value, join_fragments(value) if syntax != "rle" else value):
        write_dicom(path, NOISE, bits=12, PixelData=content + b"\0" * (len(content) % 2))
        refused(path, f"not compressed, but they are {name}: export")


@pytest.mark.parametrize("syntax", ["lossless sv1", "baseline"])
def test_read_dicom_names_raw_pixels_under_a_compressed_syntax(path: Path, syntax: str) -> None:
    encapsulated = write_frame(path, NOISE.tobytes(), NOISE, 12, syntax)
    refused(encapsulated, "says that the pixels are compressed, but they are not: export")
    refused(
        relabel(write_dicom(path, NOISE, bits=12), UIDS[syntax]), "compressed, but they are not"
    )


@pytest.mark.parametrize("syntax", CODESTREAMS)
@pytest.mark.parametrize("label", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.91"])
def test_read_dicom_believes_the_codestream_on_its_syntax(
    path: Path, syntax: str, label: str
) -> None:
    assert_pixels(relabel(write_dicom(path, NOISE, bits=12, syntax=syntax), label), NOISE)


@pytest.mark.parametrize(
    ("uid", "remedy"),
    [
        ("1.2.840.10008.1.2.4.100", "video"),
        ("1.2.840.10008.1.2.4.110", "JPEG XL; export"),
        ("1.2.840.10008.1.2.4.94", "on a server"),
        ("1.2.840.10008.1.2.4.53", "gdcmconv --raw"),
        ("1.2.3.4", "gdcmconv --raw"),
    ],
)
def test_check_header_has_a_remedy_for_other_syntaxes(path: Path, uid: str, remedy: str) -> None:
    relabel(write_dicom(path, NOISE, bits=12, syntax="jpeg"), uid)
    refused(path, f"is not supported: .*{remedy}")


@pytest.mark.parametrize(
    ("elements", "aspect"),
    [
        ({}, 1),
        ({"PixelAspectRatio": [2, 1]}, 2),
        ({"ImagerPixelSpacing": [0.05, 0.1]}, 0.5),
        ({"ImagerPixelSpacing": [0.1, 0.1], "PixelAspectRatio": [2, 1]}, 1),
        ({"ImagerPixelSpacing": [0.1, 0.1001]}, 1),
        ({"ImagerPixelSpacing": [0, 0.1], "PixelSpacing": [0.2, 0.1]}, 2),
        ({"PixelAspectRatio": [1000, 1]}, 1),
        ({"PixelAspectRatio": 2}, 1),
    ],
)
def test_read_dicom_pixel_aspect(path: Path, elements: dict[str, Any], aspect: float) -> None:
    write_dicom(path, NOISE, bits=12, **elements)
    assert read_dicom(path).pixel_aspect == pytest.approx(aspect)
