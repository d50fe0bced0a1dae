"""Raster images of every kind that mammograms are exported to."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from breast_shapes import breast_image
from PIL import Image, ImageOps

from rsna_bcd.imaging.mammogram import ImageError
from rsna_bcd.imaging.raster import read_raster_image

BREAST = np.rint(breast_image(200, 160) * 255).astype(np.uint8)
DEEP = BREAST.astype(np.uint16) * 9 + 100


def write(path: Path, pixels: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), pixels)
    return path


def refused(path: Path, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        read_raster_image(path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".pgm", ".webp"])
def test_read_raster_image_of_8_bits(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(BREAST).save(path, **options)  # type: ignore[arg-type]
    mammogram = read_raster_image(path)
    np.testing.assert_array_equal(mammogram.pixels, BREAST)
    shown = mammogram.display.apply(mammogram.pixels)
    np.testing.assert_allclose(shown, BREAST / 255, atol=1e-6)


def test_read_raster_image_of_16_bits_fits_a_ramp(tmp_path: Path) -> None:
    deep = DEEP.copy()
    deep[:20, -20:] = 60000  # a marker
    mammogram = read_raster_image(write(tmp_path / "a.png", deep))
    shown, breast = mammogram.display.apply(deep), BREAST > 0
    inside = breast & (shown > 0.01) & (shown < 0.99)
    assert inside.sum() > 0.9 * breast.sum()
    slope, offset = np.polyfit(deep[inside], shown[inside], 1)
    np.testing.assert_allclose(shown[inside], slope * deep[inside] + offset, atol=1e-3)
    assert shown[breast].max() > 0.85
    assert shown[~breast & (deep < 1000)].max() < 0.02


def test_read_raster_image_inverts_a_bright_background(tmp_path: Path) -> None:
    mammogram = read_raster_image(write(tmp_path / "a.png", 255 - BREAST))
    assert mammogram.facts["photometric"] == "MONOCHROME1"
    shown = mammogram.display.apply(mammogram.pixels)
    np.testing.assert_allclose(shown, BREAST / 255, atol=1e-6)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_read_raster_image_with_three_equal_channels(tmp_path: Path, suffix: str) -> None:
    mammogram = read_raster_image(write(tmp_path / f"a{suffix}", np.dstack([DEEP] * 3)))
    np.testing.assert_array_equal(mammogram.pixels, DEEP)
    assert mammogram.facts["bits_stored"] == 16
    jpeg = write(tmp_path / "a.jpg", cv2.cvtColor(BREAST, cv2.COLOR_GRAY2BGR))
    assert np.abs(read_raster_image(jpeg).pixels.astype(int) - BREAST).mean() < 1


def test_read_raster_image_shows_transparency_as_background(tmp_path: Path) -> None:
    opaque = BREAST > 20
    noise = np.random.default_rng(0).integers(0, 255, BREAST.shape).astype(np.uint8)
    grey = np.where(opaque, BREAST, noise)
    four = np.dstack([grey, grey, grey, opaque.astype(np.uint8) * 255])
    Image.fromarray(four).save(tmp_path / "rgba.png")
    Image.fromarray(four[..., 2:]).save(tmp_path / "la.png")
    write(tmp_path / "deep.png", four.astype(np.uint16) * 257)
    for name, unit in (("rgba", 1), ("la", 1), ("deep", 257)):
        pixels = read_raster_image(tmp_path / f"{name}.png").pixels
        np.testing.assert_array_equal(pixels, np.where(opaque, BREAST, 0).astype(int) * unit)


def test_read_raster_image_with_palettes_and_inks(tmp_path: Path) -> None:
    grey, rng = Image.fromarray(BREAST), np.random.default_rng(0)
    shuffled = rng.permutation(256).astype(np.uint8)
    palette = Image.fromarray(np.argsort(shuffled).astype(np.uint8)[BREAST])
    palette.putpalette(np.repeat(shuffled, 3).tobytes())
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_raster_image(tmp_path / "palette.png").pixels, BREAST)
    inks = Image.merge("CMYK", [*[Image.new("L", grey.size)] * 3, ImageOps.invert(grey)])
    inks.save(tmp_path / "cmyk.jpg", quality=100)
    pixels = read_raster_image(tmp_path / "cmyk.jpg").pixels
    assert np.abs(pixels.astype(int) - BREAST).max() <= 2
    palette.putpalette(rng.integers(0, 256, 768).astype(np.uint8).tobytes())
    palette.save(tmp_path / "colours.png")
    refused(tmp_path / "colours.png", "colour")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "deep png", "deep rgb png", "tiff", "deep tiff"])
def test_read_raster_image_applies_the_exif_orientation(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    upright = Image.fromarray(BREAST)
    upright.getexif()[274] = orientation
    path = tmp_path / f"a.{kind.split()[-1]}"
    if kind == "deep rgb png":
        content = cv2.imencode(".png", np.dstack([DEEP] * 3))[1].tobytes()
        data = exif.tobytes()[6:]
        chunk = struct.pack(">I", len(data)) + b"eXIf" + data
        chunk += struct.pack(">I", zlib.crc32(b"eXIf" + data))
        at = content.index(b"IDAT") - 4
        path.write_bytes(content[:at] + chunk + content[at:])
    else:
        pixels = DEEP if "deep" in kind else BREAST
        Image.fromarray(pixels).save(path, exif=exif, quality=100)  # only JPEG has a quality
    found = read_raster_image(path).pixels
    expected = np.asarray(ImageOps.exif_transpose(upright))
    assert found.shape == expected.shape
    found = (found - 100) // 9 if "deep" in kind else found
    assert np.abs(found.astype(int) - expected).max() <= 2 * (kind == "jpeg")


def test_read_raster_image_refuses_several_pages(tmp_path: Path) -> None:
    pages = [Image.fromarray(BREAST), Image.fromarray(BREAST[::-1])]
    for name in ("a.tif", "a.png"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        refused(tmp_path / name, "of 2 pages; one is expected")
    small: Any = pages[0].reduce(4)
    small.encoderinfo = {"tiffinfo": {254: 1}}  # a smaller copy
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=[small])
    np.testing.assert_array_equal(read_raster_image(tmp_path / "b.tif").pixels, BREAST)


def test_read_raster_image_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("not a picture")
    refused(path, "not a picture")
    colour = np.zeros((20, 20, 3), np.uint8)
    colour[5:, :, 2] = 200
    refused(write(path, colour), "colour")
    refused(write(path, np.full((20, 20), 9, np.uint8)), "all pixels have the value 9")
    refused(write(tmp_path / "a.tif", np.eye(20, dtype=np.float32)), "float32")
    for name in ("a.png", "a.tif"):
        Image.fromarray(BREAST > 99).save(tmp_path / name)
        refused(tmp_path / name, "a picture of 1 bit")


@pytest.mark.parametrize("kind", ["a.png", "a.jpg", "progressive.jpg", "a.tif", "deflate.tif"])
@pytest.mark.parametrize("pixels", [BREAST, DEEP, np.dstack([DEEP] * 3)])
def test_read_raster_image_refuses_files_cut_short(
    tmp_path: Path, kind: str, pixels: np.ndarray
) -> None:
    path = tmp_path / kind
    if kind.endswith("jpg"):
        Image.fromarray(BREAST).save(path, progressive="progressive" in kind)
    elif pixels.ndim == 3:
        compression = [cv2.IMWRITE_TIFF_COMPRESSION, 32946 if "deflate" in kind else 1]
        cv2.imwrite(str(path), pixels, compression if kind.endswith("tif") else [])
    else:
        options = {"compression": "tiff_adobe_deflate"} if "deflate" in kind else {}
        Image.fromarray(pixels).save(path, **options)
    whole = path.read_bytes()
    assert read_raster_image(path).height == 200
    for share in np.linspace(0, 0.97, 23):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError):
            read_raster_image(path)
    for cut in (1, 3, 500) if kind.endswith("jpg") else ():
        path.write_bytes(whole[: -2 - cut] + b"\xff\xd9")
        refused(path, "cut short")


@pytest.mark.parametrize(
    ("size", "reason"), [(9000, "9000 x 9000 pixels"), (60000, "too many pixels")]
)
def test_read_raster_image_refuses_a_large_size_before_decoding(
    tmp_path: Path, size: int, reason: str
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(BREAST).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", size, size)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", reason)
