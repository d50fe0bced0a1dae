"""Mammograms that somebody has already turned into PNG, JPEG or TIFF pictures."""

import hashlib
import io
import struct
import warnings
from collections.abc import Callable
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
# Tags of TIFF; the lowest bit of the first marks a smaller copy of another page.
_SUBFILE_TYPE, _BITS_PER_SAMPLE = 254, 258
# What Pillow raises on damaged files; anything else is a bug and stays visible.
_REFUSALS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, struct.error)
_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # by the orientation of EXIF
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
}


def read_raster_image(path: Path) -> Mammogram:
    """Read a picture; a bright background (MONOCHROME1 taken as it was) is recognised.

    It is turned as its EXIF orientation says. Transparent pixels are black. Pictures of 8 bits
    are shown over 0 to 255. Pictures of 16 bits hold 10 to 16 bits of content, and no header says
    which: a ramp is fitted to their tissue.

    Raises:
        ImageError: no picture, damaged, of several pages, not grey, or without content.
    """
    content = read_bytes(path)
    if not content:
        raise ImageError(EMPTY)
    pixels, decoder = _decode(content)
    mammogram = in_memory(pixels, decoder, _display_transform, {})
    return replace(
        mammogram,
        facts={
            "transfer_syntax": path.suffix.lower().lstrip("."),
            "photometric": "MONOCHROME1" if mammogram.display.inverted else "MONOCHROME2",
            "bits_stored": 8 * pixels.dtype.itemsize,
            "source_sha256": hashlib.sha256(content).hexdigest(),
        },
    )


def _decode(content: bytes) -> tuple[StoredPixels, str]:
    """Grey values (H, W), black where they are transparent; and the decoder."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # on metadata that is not used
            Image.open(io.BytesIO(content), formats=_FORMATS) as picture,
        ):
            _check(picture)
            channels, transparent, decoder = _channels(picture, content)
            # TIFF files were turned by their decoder.
            exif = {} if picture.format == "TIFF" else picture.getexif()
            orientation = exif.get(ExifTags.Base.Orientation, 1)
            if picture.format in ("JPEG", "MPO"):
                _refuse_partial_jpeg(content)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not a picture (PNG, JPEG or TIFF), or a damaged one") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"a picture of too many pixels; at most {MOST_PIXELS}") from error
    except _REFUSALS as error:
        raise ImageError(f"a damaged picture: {error}") from error
    planes = [channels] if channels.ndim == 2 else list(cv2.split(channels))
    opacity = planes.pop() if transparent else None
    first, middle, third = (planes[:3] * 3)[:3]
    # JPEG stores grey as luminance, so the three channels agree to within rounding.
    if max(cv2.absdiff(first, middle).max(), cv2.absdiff(middle, third).max()) > 2:
        raise ImageError("a colour picture; mammograms are grey")
    if opacity is not None:
        opaque = np.float32(np.iinfo(opacity.dtype).max)
        middle = np.rint(middle * (opacity / opaque)).astype(middle.dtype)
    return np.ascontiguousarray(_TURNS.get(orientation, np.asarray)(middle)), decoder


def _check(picture: Image.Image) -> None:
    """Refuse what is no single picture with grey levels, before it is decoded."""
    width, height = picture.size
    if not 0 < width * height <= MOST_PIXELS:
        raise ImageError(f"{height} x {width} pixels; at most {MOST_PIXELS}")
    refused = {"1": "1 bit", "I": "32 bits or with a sign", "F": "float32"}.get(picture.mode)
    if refused:
        raise ImageError(f"a picture of {refused}; 8 or 16 bits without sign are expected")
    pages = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)  # MPO: previews
    if picture.format == "TIFF" and pages > 1:
        tags: list[Any] = []
        for page in range(pages):
            picture.seek(page)
            tags.append(getattr(picture, "tag_v2", {}).get(_SUBFILE_TYPE, 0))
        picture.seek(0)
        pages = 1 + sum(not tag & 1 for tag in tags[1:])
    if pages != 1:
        raise ImageError(f"a picture of {pages} pages; one is expected: save each as a file")


def _channels(picture: Image.Image, content: bytes) -> tuple[NDArray[Any], bool, str]:
    """Decode to (H, W) or (H, W, 2 to 4); whether the last channel is opacity; the decoder."""
    raw_modes = str([tile.args for tile in getattr(picture, "tile", [])])
    bits: Any = getattr(picture, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    deep = ";16" in raw_modes or max(bits) == 16
    if deep and picture.mode in ("RGB", "RGBA"):  # of which Pillow would keep 8 bits
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        picture.load()  # raises where OpenCV returns a part
        if pixels is None or pixels.shape[:2] != picture.size[::-1]:
            raise ImageError("a damaged picture")
        return pixels, picture.mode == "RGBA", "opencv"
    if picture.mode not in (*_GREY_16, "L", "LA", "RGB", "RGBA") or (
        "transparency" in picture.info and picture.mode in ("L", "RGB")
    ):
        # Palettes, CMYK, a colour that stands for transparent
        has_opacity = "transparency" in picture.info or picture.mode in ("PA", "La", "RGBa")
        picture = picture.convert("RGBA" if has_opacity else "RGB")
    pixels = np.asarray(picture)
    if picture.mode in _GREY_16:
        pixels = pixels.astype(np.uint16)
    return pixels, picture.mode in ("LA", "RGBA"), "pillow"


def _refuse_partial_jpeg(content: bytes) -> None:
    """Raise if a JPEG file ended early, though it has an end marker."""
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
