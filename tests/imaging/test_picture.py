"""Pictures of every kind that people keep mammograms in."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from breast_shapes import breast_picture
from PIL import Image, ImageOps

from rsna_bcd.imaging.mammogram import ImageError
from rsna_bcd.imaging.raster import read_raster_image

BREAST = np.rint(breast_picture(200, 160) * 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_pictures_are_shown_as_they_are(tmp_path: Path, suffix: str) -> None:
    mammogram = read_raster_image(write(tmp_path / f"a{suffix}", BREAST))
    np.testing.assert_array_equal(mammogram.pixels, BREAST)
    shown = mammogram.display.apply(mammogram.pixels)
    np.testing.assert_allclose(shown, BREAST / 255, atol=1e-6)


def test_a_jpeg_with_three_equal_channels_is_grey(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", cv2.cvtColor(BREAST, cv2.COLOR_GRAY2BGR))
    pixels = read_raster_image(path).pixels
    assert pixels.shape == BREAST.shape
    assert np.abs(pixels.astype(int) - BREAST).mean() < 1


def test_pictures_of_16_bits_are_shown_by_a_ramp_over_their_tissue(tmp_path: Path) -> None:
    deep = BREAST.astype(np.uint16) * 9 + 100
    deep[:20, -20:] = 60000  # a marker
    mammogram = read_raster_image(write(tmp_path / "a.png", deep))
    shown = mammogram.display.apply(deep)
    breast = BREAST > 0
    inside = breast & (shown > 0.01) & (shown < 0.99)
    assert inside.sum() > 0.9 * breast.sum()
    slope, offset = np.polyfit(deep[inside], shown[inside], 1)
    np.testing.assert_allclose(shown[inside], slope * deep[inside] + offset, atol=1e-3)
    assert shown[breast].max() > 0.85
    assert shown[~breast & (deep < 1000)].max() < 0.02


def test_a_bright_background_is_inverted_and_recorded(tmp_path: Path) -> None:
    mammogram = read_raster_image(write(tmp_path / "a.png", 255 - BREAST))
    assert mammogram.facts["photometric"] == "MONOCHROME1"
    shown = mammogram.display.apply(mammogram.pixels)
    np.testing.assert_allclose(shown, BREAST / 255, atol=1e-6)


def test_what_is_no_mammogram_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ImageError, match="not a picture"):
        read_raster_image(tmp_path / "text.png")
    colour = np.zeros((20, 20, 3), np.uint8)
    colour[5:, :, 2] = 200
    with pytest.raises(ImageError, match="colour"):
        read_raster_image(write(tmp_path / "colour.png", colour))
    with pytest.raises(ImageError, match="all pixels have the value 9"):
        read_raster_image(write(tmp_path / "flat.png", np.full((20, 20), 9, np.uint8)))
    with pytest.raises(ImageError, match="float32"):
        read_raster_image(write(tmp_path / "float.tif", np.eye(20, dtype=np.float32)))


DEEP = BREAST.astype(np.uint16) * 9 + 100


def test_what_is_transparent_is_background(tmp_path: Path) -> None:
    opaque = BREAST > 20
    noise = np.random.default_rng(0).integers(0, 255, BREAST.shape).astype(np.uint8)
    grey = np.where(opaque, BREAST, noise)
    four = np.dstack([grey, grey, grey, opaque.astype(np.uint8) * 255])
    Image.fromarray(four).save(tmp_path / "rgba.png")
    Image.fromarray(four[..., 2:]).save(tmp_path / "la.png")
    write(tmp_path / "deep.png", four.astype(np.uint16) * 257)
    expected = np.where(opaque, BREAST, 0)
    for name, unit in (("rgba", 1), ("la", 1), ("deep", 257)):
        pixels = read_raster_image(tmp_path / f"{name}.png").pixels
        np.testing.assert_array_equal(pixels, expected.astype(int) * unit)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "deep png", "deep rgb png", "tiff", "deep tiff"])
def test_pictures_are_turned_as_exif_says(tmp_path: Path, kind: str, orientation: int) -> None:
    pixels = DEEP if "deep" in kind else BREAST
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
        Image.fromarray(pixels).save(path, exif=exif, quality=100)  # only JPEG has a quality
    found = read_raster_image(path).pixels
    expected = np.asarray(ImageOps.exif_transpose(upright))
    assert found.shape == expected.shape
    found = (found - 100) // 9 if "deep" in kind else found
    assert np.abs(found.astype(int) - expected).max() <= 2 * (kind == "jpeg")


def test_palettes_and_inks_are_grey_where_their_colours_are(tmp_path: Path) -> None:
    grey = Image.fromarray(BREAST)
    shuffled = np.random.default_rng(0).permutation(256).astype(np.uint8)
    palette = Image.fromarray(np.argsort(shuffled).astype(np.uint8)[BREAST])
    palette.putpalette(np.repeat(shuffled, 3).tobytes())
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_raster_image(tmp_path / "palette.png").pixels, BREAST)
    Image.merge("CMYK", [*[Image.new("L", grey.size)] * 3, ImageOps.invert(grey)]).save(
        tmp_path / "cmyk.jpg", quality=100
    )
    assert np.abs(read_raster_image(tmp_path / "cmyk.jpg").pixels.astype(int) - BREAST).max() <= 2
    colours = np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8)
    palette.putpalette(colours.tobytes())
    palette.save(tmp_path / "colours.png")
    with pytest.raises(ImageError, match="colour"):
        read_raster_image(tmp_path / "colours.png")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_colour_pictures_of_16_bits_keep_them(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", np.dstack([DEEP] * 3))
    mammogram = read_raster_image(path)
    np.testing.assert_array_equal(mammogram.pixels, DEEP)
    assert mammogram.facts["bits_stored"] == 16


def test_pages_of_a_picture(tmp_path: Path) -> None:
    pages = [Image.fromarray(BREAST), Image.fromarray(BREAST[::-1])]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="of 2 pages; one is expected"):
        read_raster_image(tmp_path / "a.tif")
    small = pages[0].reduce(4)
    small.encoderinfo = {"tiffinfo": {254: 1}}
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=[small])
    with Image.open(tmp_path / "b.tif") as picture:
        picture.seek(1)
        assert picture.tag_v2[254] == 1  # type: ignore[attr-defined]
    np.testing.assert_array_equal(read_raster_image(tmp_path / "b.tif").pixels, BREAST)
    pages[0].save(tmp_path / "c.png", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="of 2 pages; one is expected"):
        read_raster_image(tmp_path / "c.png")


def test_a_picture_of_two_values_is_refused(tmp_path: Path) -> None:
    for suffix in ("png", "tif"):
        Image.fromarray(BREAST > 99).save(tmp_path / f"a.{suffix}")
        with pytest.raises(ImageError, match="a picture of 1 bit"):
            read_raster_image(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("kind", ["a.png", "a.jpg", "progressive.jpg", "a.tif", "deflate.tif"])
@pytest.mark.parametrize("pixels", [BREAST, DEEP, np.dstack([DEEP] * 3)])
def test_pictures_cut_short_are_refused(tmp_path: Path, kind: str, pixels: np.ndarray) -> None:
    if kind.endswith("jpg"):
        pixels = BREAST
        Image.fromarray(pixels).save(tmp_path / kind, progressive="progressive" in kind)
    elif pixels.ndim == 3:
        compression = [cv2.IMWRITE_TIFF_COMPRESSION, 32946 if "deflate" in kind else 1]
        cv2.imwrite(str(tmp_path / kind), pixels, compression if kind.endswith("tif") else [])
    else:
        options = {"compression": "tiff_adobe_deflate"} if "deflate" in kind else {}
        Image.fromarray(pixels).save(tmp_path / kind, **options)
    whole = (tmp_path / kind).read_bytes()
    assert read_raster_image(tmp_path / kind).height == 200
    for share in np.linspace(0, 0.97, 23):
        (tmp_path / kind).write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError):
            read_raster_image(tmp_path / kind)
    if kind.endswith("jpg"):
        for cut in (1, 3, 500):
            (tmp_path / kind).write_bytes(whole[: -2 - cut] + b"\xff\xd9")
            with pytest.raises(ImageError, match="cut short"):
                read_raster_image(tmp_path / kind)


@pytest.mark.parametrize(
    ("size", "reason"), [(9000, "9000 x 9000 pixels"), (60000, "too many pixels")]
)
def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(
    tmp_path: Path, size: int, reason: str
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(BREAST).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", size, size)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        read_raster_image(tmp_path / "a.png")
