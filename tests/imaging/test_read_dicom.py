"""Reading DICOM: every transfer syntax and decoder gives the same values; bad files a reason."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import SYNTAXES, write_dicom
from pydicom.encaps import encapsulate, get_frame

from rsna_bcd.imaging import decoders
from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.imaging.mammogram import ImageError

RNG = np.random.default_rng(0)
KINDS: dict[str, tuple[np.ndarray, int]] = {
    "8": (RNG.integers(0, 2**8, (34, 31)).astype(np.uint8), 8),
    "10": (RNG.integers(0, 2**10, (33, 30)).astype(np.uint16), 10),
    "12": (RNG.integers(0, 2**12, (33, 30)).astype(np.uint16), 12),
    "16": (RNG.integers(0, 2**16, (33, 30)).astype(np.uint16), 16),
    "12 signed": (RNG.integers(-(2**11), 2**11, (33, 30)).astype(np.int16), 12),
    "16 signed": (RNG.integers(-(2**15), 2**15, (33, 30)).astype(np.int16), 16),
}


def change(path: Path, **elements: Any) -> Path:
    """Set elements of a file as they are, whatever the pixels say."""
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("syntax", ["raw", *SYNTAXES])
@pytest.mark.parametrize("kind", KINDS)
def test_decoders_return_what_was_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str, kind: str
) -> None:
    pixels, bits = KINDS[kind]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax=syntax)
    first = read_dicom(path)
    np.testing.assert_array_equal(first.pixels, pixels)
    assert int(first.facts["bits_stored"]) >= bits  # GDCM rounds the precision of JPEG frames up
    monkeypatch.setattr(decoders, "_dicomsdl", refuse)
    second = read_dicom(path)
    np.testing.assert_array_equal(second.pixels, pixels)
    assert second.facts["decoder"] == "pydicom"


def refuse(path: Path) -> None:
    raise RuntimeError("not today")


@pytest.mark.parametrize("dicomsdl_works", [True, False])
@pytest.mark.parametrize("kind", ["16", "16 signed"])
@pytest.mark.parametrize("claim", [{"BitsStored": 12, "HighBit": 11}, {"PixelRepresentation": -1}])
def test_the_frame_knows_better_than_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dicomsdl_works: bool, kind: str, claim: dict
) -> None:
    pixels, bits = KINDS[kind]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax="jpeg2000")
    if "PixelRepresentation" in claim:
        claim = {"PixelRepresentation": int(pixels.dtype.kind != "i")}
    change(path, **claim)
    if not dicomsdl_works:
        monkeypatch.setattr(decoders, "_dicomsdl", refuse)
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)


def test_jpeg_frames_know_their_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, bits = KINDS["16"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax="jpeg")
    change(path, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)
    monkeypatch.setattr(decoders, "_dicomsdl", refuse)
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)


def test_the_sign_bit_is_the_highest_bit_stored(tmp_path: Path) -> None:
    signed, bits = KINDS["12 signed"]
    cut = signed.view(np.uint16) & 0x0FFF  # the four bits above those stored are not the sign
    path = write_dicom(tmp_path / "a.dcm", cut, bits=bits, PixelRepresentation=1)
    np.testing.assert_array_equal(read_dicom(path).pixels, signed)


def test_unsigned_values_beyond_the_bits_stored_are_kept(tmp_path: Path) -> None:
    pixels, _ = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=10)
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)


def test_a_codestream_in_a_jp2_file_and_padding_after_the_end(tmp_path: Path) -> None:
    pixels, bits = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax="jpeg2000")
    stream = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
    height, width = (n.to_bytes(4) for n in pixels.shape)
    header = b"ihdr" + height + width + b"\x00\x01\x0f\x07\x00\x00"
    colour = b"colr\x01\x00\x00\x00\x00\x00\x11"
    boxes = [
        b"jP  \r\n\x87\n",
        b"ftypjp2 \x00\x00\x00\x00jp2 ",
        b"jp2h" + b"".join((len(b) + 4).to_bytes(4) + b for b in (header, colour)),
        b"jp2c" + stream,
    ]
    file = b"".join((len(box) + 4).to_bytes(4) + box for box in boxes)
    change(path, PixelData=encapsulate([file + b"\0\0\0\0"]))
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)


@pytest.mark.parametrize("syntax", ["raw", *SYNTAXES])
def test_files_cut_short_anywhere_are_refused(tmp_path: Path, syntax: str) -> None:
    pixels, bits = KINDS["12"]
    whole = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax=syntax).read_bytes()
    cut = tmp_path / "cut.dcm"
    for length in range(0, len(whole) - 10, 31):  # the last 8 bytes delimit, and are not content
        cut.write_bytes(whole[:length])
        with pytest.raises(ImageError):
            read_dicom(cut)


@pytest.mark.parametrize("syntax", ["jpeg2000", "jpeg", "jpeg_ls"])
def test_a_frame_without_its_end_is_refused(tmp_path: Path, syntax: str) -> None:
    pixels, bits = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax=syntax)
    frame = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
    change(path, PixelData=encapsulate([frame[: len(frame) // 2]]))
    with pytest.raises(ImageError, match="cut short: its frame has no end marker"):
        read_dicom(path)


@pytest.mark.parametrize("syntax", ["jpeg2000", "jpeg", "jpeg_ls"])
def test_a_header_that_lies_about_the_size_is_refused(tmp_path: Path, syntax: str) -> None:
    pixels, bits = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax=syntax)
    change(path, Rows=6000)
    with pytest.raises(ImageError, match="header says 6000 x 30 pixels, the .* frame 33 x 30"):
        read_dicom(path)


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
        ({"Modality": "CT"}, "modality CT is not mammography"),
        ({"PixelData": None}, "no pixel data"),
        ({"PixelData": b"1234"}, "cut short: 4 of 1980 bytes"),
    ],
)
def test_headers_of_other_things_are_refused(tmp_path: Path, elements: dict, reason: str) -> None:
    pixels, bits = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, **elements)
    with pytest.raises(ImageError, match=reason):
        read_dicom(path)


def test_modality_may_be_absent(tmp_path: Path) -> None:
    pixels, bits = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, Modality=None)
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)


def test_a_text_file_and_an_unknown_syntax_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.dcm"
    text.write_text("image_id,cancer\n" * 50)
    with pytest.raises(ImageError, match="not a DICOM file"):
        read_dicom(text)
    pixels, bits = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax="jpeg")
    lossy, lossless = b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.70"
    path.write_bytes(path.read_bytes().replace(lossless, lossy, 1))
    with pytest.raises(ImageError, match=r"JPEG Baseline .* is not supported"):
        read_dicom(path)


def test_an_image_without_content_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.full((20, 20), 7, np.uint16), bits=12)
    with pytest.raises(ImageError, match="all pixels have the value 7"):
        read_dicom(path)


def test_the_overview_averages_areas(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 4096, (64, 32)).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=12, WindowCenter=2048, WindowWidth=4096)
    mammogram = read_dicom(path)
    expected = pixels.reshape(16, 4, 8, 4).mean(axis=(1, 3)) / 4095
    np.testing.assert_allclose(mammogram.overview(16), expected, atol=0.5 / 4095)
    assert mammogram.overview(1000).shape == (64, 32)
