"""Reading DICOM: every transfer syntax and decoder gives the same values; bad files a reason."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import SYNTAXES, write_dicom
from PIL import Image
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import HTJ2KLossless, ImplicitVRLittleEndian

from rsna_bcd.imaging import codecs
from rsna_bcd.imaging.codecs import DECODERS, Decoder, Encoded
from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.imaging.mammogram import ImageError

RNG = np.random.default_rng(0)
KINDS: dict[str, tuple[np.ndarray, int]] = {
    "8": (RNG.integers(0, 2**8, (34, 31)).astype(np.uint8), 8),
    **{
        str(bits): (RNG.integers(0, 2**bits, (33, 30)).astype(np.uint16), bits)
        for bits in range(9, 17)
    },
    "8 signed": (RNG.integers(-(2**7), 2**7, (34, 31)).astype(np.int8), 8),
    "10 signed": (RNG.integers(-(2**9), 2**9, (33, 30)).astype(np.int16), 10),
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


def readers(syntax: str) -> list[str]:
    """Decoders of a syntax."""
    if syntax in ("raw", "rle"):
        return ["pydicom"]
    return ["dicomsdl", "gdcm", *(["openjpeg"] if syntax == "jpeg2000" else [])]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("syntax", ["implicit", "raw", *SYNTAXES])
def test_every_decoder_returns_what_was_stored(
    tmp_path: Path, syntax: str, kind: str, photometric: str
) -> None:
    pixels, bits = KINDS[kind]
    path = write_dicom(
        tmp_path / "a.dcm",
        pixels,
        bits=bits,
        syntax=syntax.replace("implicit", "raw"),
        PhotometricInterpretation=photometric,
    )
    if syntax == "implicit":
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        dataset.save_as(path, implicit_vr=True)
        assert pydicom.dcmread(path).original_encoding == (True, True)
    names = readers(syntax.replace("implicit", "raw"))
    for name in names:
        mammogram = read_dicom(path, [name])
        np.testing.assert_array_equal(mammogram.pixels, pixels)
        assert mammogram.decode(0).decoder == name
        assert int(mammogram.facts["bits_stored"]) >= bits  # GDCM rounds that of JPEG up
        assert mammogram.display.inverted == (photometric == "MONOCHROME1")
    others = [name for name in DECODERS if name not in names]
    with pytest.raises(ImageError, match="none of the decoders .* reads "):
        read_dicom(path, others)


@pytest.mark.parametrize("size", [(34, 31), (33, 30), (61, 77), (65, 128), (57, 64)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reduced_image_is_the_low_band_of_the_wavelet(
    tmp_path: Path, kind: str, size: tuple[int, int]
) -> None:
    noise, bits = KINDS[kind]
    pixels = np.resize(noise, size)
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax="jpeg2000")
    mammogram = read_dicom(path)
    assert mammogram.most_reduced >= 3
    band = pixels.astype(np.int64)
    stored = int(mammogram.facts["bits_stored"])
    low = -(2 ** (stored - 1)) if noise.dtype.kind == "i" else 0
    high = low + 2**stored - 1
    for reduced in range(1, mammogram.most_reduced + 1):
        band = low_band(low_band(band).T).T
        level = mammogram.decode(reduced)
        assert (level.reduced, level.decoder) == (reduced, "openjpeg")
        np.testing.assert_array_equal(level.pixels, np.clip(band, low, high))


def low_band(values: np.ndarray) -> np.ndarray:
    """Of the reversible 5/3 wavelet along the first axis (ISO 15444-1 F.4.8.1), by lifting."""
    n = len(values)
    if n == 1:
        return values
    mirrored = np.concatenate([values, values[-2:-3:-1]])  # one sample beyond the end
    even, odd = mirrored[: n + 1 : 2], mirrored[1:n:2]
    following = mirrored[2 : n + 1 : 2]
    details = odd - (even[: len(odd)] + following[: len(odd)]) // 2
    count = -(-n // 2)
    before = np.concatenate([details[:1], details])[:count]
    after = np.concatenate([details, details[-1:]])[:count]
    return values[::2] + (before + after + 2) // 4


def test_without_the_decoder_that_reduces_the_whole_image_comes(tmp_path: Path) -> None:
    pixels, bits = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax="jpeg2000")
    mammogram = read_dicom(path, ["gdcm"])
    assert mammogram.most_reduced == 0
    np.testing.assert_array_equal(mammogram.pixels, pixels)


def test_a_refusal_to_reduce_costs_time_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, bits = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax="jpeg2000")
    monkeypatch.setitem(codecs.DECODERS, "openjpeg", Decoder(codecs.JPEG2000, refuse))
    level = read_dicom(path).decode(2)
    assert (level.reduced, level.decoder) == (0, "dicomsdl")
    np.testing.assert_array_equal(level.pixels, pixels)


@pytest.mark.parametrize("tiles", [(32, 32), (40, 40)])
def test_streams_of_several_tiles_are_not_reduced(tmp_path: Path, tiles: tuple[int, int]) -> None:
    pixels, bits = KINDS["12"]
    stream = io.BytesIO()
    picture = Image.fromarray(pixels << 4)  # Pillow writes 16 bits
    picture.save(stream, "JPEG2000", no_jp2=True, irreversible=False, tile_size=tiles)
    path = write_dicom(tmp_path / "a.dcm", pixels << 4, bits=16, syntax="jpeg2000")
    change(path, PixelData=encapsulate([stream.getvalue()]))
    mammogram = read_dicom(path)
    assert bool(mammogram.most_reduced) == (tiles == (40, 40))
    for name in readers("jpeg2000"):
        np.testing.assert_array_equal(read_dicom(path, [name]).pixels, pixels << 4)


# 12 x 16 pixels of 16 bits, written with OpenJPH: nothing that comes with the project writes HTJ2K.
HTJ2K_STREAM = (
    "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB"
    "/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAKUAAf+TwAAmk/wFB3QA"
    "AMAAE0AAEwCi/gIHdAB4/gKHdADAABNAABMAUFABgnQA27cAYjQAwAAVMAAFpCQS6aBCMQJ2ANf1el3XdTnu2LHjDk9z"
    "5DG3AMAAKyAAF2QIgiAI8ueKenCCdwBVa1VVVVVVVVWtVVVVVVVVVcFcwVzBXMFcwVzBXMFcwfwAAAAggAADH9ev1l6M"
    "ajGxAf/Z"
)


def test_high_throughput_jpeg2000_is_read(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:12, :16]
    pixels = ((columns * 37 + rows * rows * 11) % 4096).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=16, syntax="jpeg2000")
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([base64.b64decode(HTJ2K_STREAM)])
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.save_as(path)
    mammogram = read_dicom(path)
    np.testing.assert_array_equal(mammogram.pixels, pixels)
    reduced = mammogram.decode(1).pixels
    band = low_band(low_band(pixels.astype(int)).T).T
    np.testing.assert_array_equal(reduced, np.clip(band, 0, 65535))


def refuse(encoded: Encoded, reduced: int) -> np.ndarray:
    raise RuntimeError("not today")


@pytest.mark.parametrize("decoder", ["dicomsdl", "gdcm", "openjpeg"])
@pytest.mark.parametrize("kind", ["16", "16 signed"])
@pytest.mark.parametrize("claim", [{"BitsStored": 12, "HighBit": 11}, {"PixelRepresentation": -1}])
def test_the_frame_knows_better_than_the_header(
    tmp_path: Path, decoder: str, kind: str, claim: dict
) -> None:
    pixels, bits = KINDS[kind]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax="jpeg2000")
    if "PixelRepresentation" in claim:
        claim = {"PixelRepresentation": int(pixels.dtype.kind != "i")}
        pixels = pixels.view(np.int16)  # an unsigned stream, then, holds two's complement
    change(path, **claim)
    np.testing.assert_array_equal(read_dicom(path, [decoder]).pixels, pixels)


@pytest.mark.parametrize("decoder", ["dicomsdl", "gdcm", "openjpeg"])
@pytest.mark.parametrize("extended", [False, True])
def test_an_unsigned_stream_under_a_signed_header_holds_twos_complement(
    tmp_path: Path, decoder: str, extended: bool
) -> None:
    pixels, bits = KINDS["12 signed"]
    words = pixels.view(np.uint16) if extended else pixels.view(np.uint16) & 0x0FFF
    path = write_dicom(tmp_path / "a.dcm", words, bits=16, syntax="jpeg2000")
    change(path, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=1)
    mammogram = read_dicom(path, [decoder])
    np.testing.assert_array_equal(mammogram.pixels, pixels)
    assert mammogram.most_reduced == 0  # words of both signs cannot be averaged


@pytest.mark.parametrize("syntax", ["raw", "jpeg2000", "rle"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("position", [12, 14, 15])
def test_overlays_in_unused_bits_are_masked(
    tmp_path: Path, syntax: str, signed: bool, position: int
) -> None:
    pixels, bits = KINDS["12 signed" if signed else "12"]
    overlay = RNG.integers(0, 2, pixels.shape).astype(np.uint16) << position
    words = (pixels.view(np.uint16) & 0x0FFF) | overlay
    path = write_dicom(tmp_path / "a.dcm", words, bits=16, syntax=syntax)
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x60020100, "US", 16)
    dataset.add_new(0x60020102, "US", position)
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, int(signed)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)


def test_overlays_below_pixels_at_the_top_are_masked(tmp_path: Path) -> None:
    pixels, bits = KINDS["12"]
    overlay = RNG.integers(0, 2, pixels.shape).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", (pixels << 4) | overlay, bits=bits, HighBit=15)
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x60000102, "US", 0)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)


@pytest.mark.parametrize("position", [0, 11, 16, 200])
def test_an_overlay_within_the_pixel_or_beyond_the_word_is_not_believed(
    tmp_path: Path, position: int
) -> None:
    pixels, bits = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits)
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x60000102, "US", position)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)


@pytest.mark.parametrize("syntax", ["jpeg", "jpeg_ls"])
def test_jpeg_frames_know_their_precision(tmp_path: Path, syntax: str) -> None:
    pixels, bits = KINDS["16"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax=syntax)
    change(path, BitsStored=12, HighBit=11)
    for decoder in readers(syntax):
        np.testing.assert_array_equal(read_dicom(path, [decoder]).pixels, pixels)


@pytest.mark.parametrize("syntax", ["jpeg2000", "jpeg", "jpeg_ls"])
@pytest.mark.parametrize(
    ("kind", "claim"),
    [
        ("8", {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}),
        ("8 signed", {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15}),
        ("12", {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}),
        ("16", {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}),
    ],
)
def test_the_frame_knows_how_many_bytes_a_pixel_needs(
    tmp_path: Path, syntax: str, kind: str, claim: dict
) -> None:
    pixels, bits = KINDS[kind]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax=syntax)
    change(path, **claim)
    for decoder in readers(syntax):
        np.testing.assert_array_equal(read_dicom(path, [decoder]).pixels, pixels)


@pytest.mark.parametrize("syntax", ["jpeg2000", "jpeg", "jpeg_ls"])
@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_frames_may_come_in_fragments(tmp_path: Path, syntax: str, table: bool, parts: int) -> None:
    pixels, bits = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax=syntax)
    frame = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
    change(path, PixelData=encapsulate([frame], fragments_per_frame=parts, has_bot=table))
    for decoder in readers(syntax):
        np.testing.assert_array_equal(read_dicom(path, [decoder]).pixels, pixels)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_background_of_the_smallest_signed_value_is_no_damage(
    tmp_path: Path, syntax: str, dtype: type
) -> None:
    info = np.iinfo(dtype)
    pixels: np.ndarray = RNG.integers(info.min, info.max, (60, 40)).astype(dtype)
    pixels[:, 25:] = pixels[50:] = info.min
    bits = 8 * pixels.dtype.itemsize
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax=syntax)
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)


def test_a_ramp_is_no_damage(tmp_path: Path) -> None:
    pixels = np.add.outer(np.arange(60), np.arange(40)).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=12, syntax="jpeg")
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)


@pytest.mark.parametrize("kind", ["12", "16", "16 signed"])
def test_a_jpeg_frame_that_ends_early_is_refused_though_its_end_is_marked(
    tmp_path: Path, kind: str
) -> None:
    pixels, bits = KINDS[kind]
    pixels = np.resize(pixels, (80, 60))
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax="jpeg")
    frame = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)
    for share in (0.3, 0.6, 0.9, 0.97):
        change(path, PixelData=encapsulate([frame[: int(len(frame) * share)] + b"\xff\xd9"]))
        with pytest.raises(ImageError, match="cut short: its last row"):
            read_dicom(path)


def test_bytes_that_fill_up_before_a_marker_are_allowed(tmp_path: Path) -> None:
    pixels, bits = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax="jpeg")
    frame = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
    change(path, PixelData=encapsulate([frame[:2] + b"\xff\xff" + frame[2:]]))
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)


def test_pixels_at_the_top_of_their_words_are_moved_down(tmp_path: Path) -> None:
    pixels, bits = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels << 4, bits=bits, HighBit=15)
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)
    wrong = write_dicom(tmp_path / "b.dcm", pixels, bits=bits, HighBit=15)  # bits below are in use
    np.testing.assert_array_equal(read_dicom(wrong).pixels, pixels)


def test_a_high_bit_beyond_the_word_is_not_believed(tmp_path: Path) -> None:
    pixels, bits = KINDS["12"]
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, HighBit=65535)
    np.testing.assert_array_equal(read_dicom(path).pixels, pixels)


def test_a_header_nested_without_end_is_refused(tmp_path: Path) -> None:
    pixels, bits = KINDS["12"]
    whole = write_dicom(tmp_path / "a.dcm", pixels, bits=bits).read_bytes()
    sequence = (
        bytes.fromhex("18001151") + b"SQ\0\0\xff\xff\xff\xff" + bytes.fromhex("feff00e0ffffffff")
    )
    at = whole.index(b"\x28\x00\x02\x00US")
    (tmp_path / "b.dcm").write_bytes(whole[:at] + sequence * 3000 + whole[at:])
    with pytest.raises(ImageError):
        read_dicom(tmp_path / "b.dcm")


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
        ({"Modality": "CT"}, "CT image, no mammogram"),
        ({"Rows": 32}, "1980 bytes of pixels, where the size needs 1920"),
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
    other, lossless = b"1.2.840.10008.1.2.4.53", b"1.2.840.10008.1.2.4.70"
    path.write_bytes(path.read_bytes().replace(lossless, other, 1))
    with pytest.raises(ImageError, match=r"JPEG Spectral .* is not supported: .*gdcmconv --raw"):
        read_dicom(path)


def test_an_image_without_content_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.full((20, 20), 7, np.uint16), bits=12)
    with pytest.raises(ImageError, match="all pixels have the value 7"):
        read_dicom(path)


def test_the_overview_averages_areas(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 4096, (2049, 1024)).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=12, WindowCenter=2048, WindowWidth=4096)
    mammogram = read_dicom(path)
    expected = pixels[:2048].reshape(512, 4, 256, 4).mean(axis=(1, 3)) / 4095
    # Each halving rounds to whole values.
    np.testing.assert_allclose(mammogram.preview(), expected, atol=1 / 4095)
    assert mammogram.overview.reduced == 2


def test_overviews_have_one_size_whatever_the_codec(tmp_path: Path) -> None:
    pixels = np.resize(KINDS["12"][0], (1100, 519))
    raw, packed = (
        read_dicom(write_dicom(tmp_path / f"{syntax}.dcm", pixels, bits=12, syntax=syntax))
        for syntax in ("raw", "jpeg2000")
    )
    assert raw.overview.pixels.shape == (275, 129)
    assert packed.overview.pixels.shape == (275, 130)  # the codec rounds up
    assert raw.overview.reduced == packed.overview.reduced == 2
    assert packed.overview.decoder == "openjpeg"
