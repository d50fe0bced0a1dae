"""Read mammograms that were exported as PNG, JPEG, TIFF or other raster images."""

import hashlib
import io
import struct
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from rsna_bcd.files import read_bytes
from rsna_bcd.imaging.breast import has_bright_background
from rsna_bcd.imaging.codestream import FURTHER_BITS, read_jpeg
from rsna_bcd.imaging.mammogram import (
    EMPTY,
    MOST_PIXELS,
    ImageError,
    Mammogram,
    StoredPixels,
    in_memory,
)
from rsna_bcd.imaging.voi import DisplayTransform, Range, Rescale, fit_ramp, value_range

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP")  # a column `file` may name any of them
_GREY_16 = ("I;16", "I;16L", "I;16B")
_UNSUPPORTED_MODES = {"1": "1 bit", "I": "32 bits or with a sign", "F": "float32"}
# Tags of TIFF; the lowest bit of the first marks a smaller copy of another page.
_SUBFILE_TYPE, _BITS_PER_SAMPLE = 254, 258
# Exceptions of Pillow on damaged files; anything else is a bug and stays visible.
_REFUSALS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, struct.error)


def read_raster_image(path: Path) -> Mammogram:
    """Read a raster image; a bright background (MONOCHROME1, exported as stored) is inverted.

    It is oriented by its EXIF tag. Transparent pixels are black. Images of 8 bits are displayed
    over 0 to 255. Images of 16 bits hold 10 to 16 bits of content, and no header says how many: a
    ramp is fitted to their tissue.

    Raises:
        ImageError: no raster image, damaged, of several pages, not grey, or without content.
    """
    content = read_bytes(path)
    if not content:
        raise ImageError(EMPTY)
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # on metadata that is not used
            Image.open(io.BytesIO(content), formats=_FORMATS) as image,
        ):
            _check_size_and_pages(image)
            channels, has_opacity, decoder = _decode(image, content)
            # TIFF files were oriented by their decoder.
            exif = {} if image.format == "TIFF" else image.getexif()
            orientation = exif.get(ExifTags.Base.Orientation, 1)
            if image.format in ("JPEG", "MPO"):
                _check_jpeg_complete(content)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not a picture (PNG, JPEG or TIFF), or a damaged one") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"a picture of too many pixels; at most {MOST_PIXELS}") from error
    except _REFUSALS as error:
        raise ImageError(f"a damaged picture: {error}") from error
    pixels = _oriented(_to_grey(channels, has_opacity=has_opacity), orientation)
    mammogram = in_memory(pixels, decoder, _display_transform)
    facts: dict[str, str | int] = {
        "transfer_syntax": path.suffix.lower().lstrip("."),
        "photometric": "MONOCHROME1" if mammogram.display.inverted else "MONOCHROME2",
        "bits_stored": 8 * pixels.dtype.itemsize,
        "source_sha256": hashlib.sha256(content).hexdigest(),
    }
    return replace(mammogram, facts=facts)


def _check_size_and_pages(image: Image.Image) -> None:
    """Refuse an image that is too large, has several pages, or is not in grey levels."""
    width, height = image.size
    if not 0 < width * height <= MOST_PIXELS:
        raise ImageError(f"{height} x {width} pixels; at most {MOST_PIXELS}")
    if image.mode in _UNSUPPORTED_MODES:
        kind = _UNSUPPORTED_MODES[image.mode]
        raise ImageError(f"a picture of {kind}; 8 or 16 bits without sign are expected")
    pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: previews
    if image.format == "TIFF" and pages > 1:
        tags: list[Any] = []
        for page in range(pages):
            image.seek(page)
            tags.append(getattr(image, "tag_v2", {}).get(_SUBFILE_TYPE, 0))
        image.seek(0)
        pages = 1 + sum(not tag & 1 for tag in tags[1:])
    if pages != 1:
        raise ImageError(f"a picture of {pages} pages; one is expected: save each as a file")


def _decode(image: Image.Image, content: bytes) -> tuple[NDArray[Any], bool, str]:
    """Decode to (H, W) or (H, W, 2 to 4); whether the last channel is opacity; the decoder."""
    raw_modes = str([tile.args for tile in getattr(image, "tile", [])])
    bits: Any = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    deep = ";16" in raw_modes or max(bits) == 16
    if deep and image.mode in ("RGB", "RGBA"):  # of which Pillow would keep 8 bits
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        image.load()  # raises where OpenCV returns a part
        if pixels is None or pixels.shape[:2] != image.size[::-1]:
            raise ImageError("a damaged picture")
        return pixels, image.mode == "RGBA", "opencv"
    if image.mode not in (*_GREY_16, "L", "LA", "RGB", "RGBA") or (
        "transparency" in image.info and image.mode in ("L", "RGB")
    ):
        # Palettes, CMYK, a colour that stands for transparent
        has_opacity = "transparency" in image.info or image.mode in ("PA", "La", "RGBa")
        image = image.convert("RGBA" if has_opacity else "RGB")
    pixels = np.asarray(image)
    if image.mode in _GREY_16:
        pixels = pixels.astype(np.uint16)
    return pixels, image.mode in ("LA", "RGBA"), "pillow"


def _to_grey(channels: NDArray[Any], *, has_opacity: bool) -> NDArray[Any]:
    """Reduce equal channels to one, (H, W), black where it is transparent."""
    planes = [channels] if channels.ndim == 2 else list(cv2.split(channels))
    opacity = planes.pop() if has_opacity else None
    first, middle, third = (planes[:3] * 3)[:3]
    # JPEG stores grey as luminance, so the three channels agree to within rounding.
    if max(cv2.absdiff(first, middle).max(), cv2.absdiff(middle, third).max()) > 2:
        raise ImageError("a colour picture; mammograms are grey")
    if opacity is not None:
        opaque = np.float32(np.iinfo(opacity.dtype).max)
        middle = np.rint(middle * (opacity / opaque)).astype(middle.dtype)
    return middle


def _oriented(pixels: NDArray[Any], orientation: Any) -> StoredPixels:
    """Apply an EXIF orientation, 1 to 8; others are ignored."""
    if orientation in (5, 6, 7, 8):  # rows are columns
        pixels = pixels.T
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _check_jpeg_complete(content: bytes) -> None:
    """Check that a JPEG file with an end marker did not end early."""
    end = read_jpeg(content).end
    longer = content[: end - 2] + FURTHER_BITS + content[end - 2 : end]
    before, after = (
        np.asarray(Image.open(io.BytesIO(whole), formats=["JPEG"])) for whole in (content, longer)
    )
    if not np.array_equal(before, after):
        raise ImageError("the file was cut short: its last rows were never encoded")


def _display_transform(overview: StoredPixels) -> DisplayTransform:
    """Black to white, or a ramp fitted to the tissue; inverted if the background is bright."""
    values = overview.astype(np.float32)
    whole = Range(0, 255) if overview.dtype == np.uint8 else Range(*value_range(values))
    inverted = has_bright_background(whole(values))
    voi = whole if overview.dtype == np.uint8 else fit_ramp(values, inverted=inverted)
    return DisplayTransform(Rescale(), voi, inverted)
