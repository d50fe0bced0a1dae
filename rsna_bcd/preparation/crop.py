"""One image file to one crop: decode, find the breast, turn it, resize, pad, 8 bits.

A crop has the chest wall on the left and the breast at its own aspect; what is left over is padded
with the background's 0: on the right, and in equal parts above and below.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.breast import Box, find_breast
from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.imaging.mammogram import Mammogram
from rsna_bcd.imaging.picture import read_picture

Source = Literal["dicom", "image"]

_OVERVIEW = 512  # pixels on the longer side, where the breast is searched


@dataclass(frozen=True)
class CropSettings:
    """What a crop looks like; `conf/crop/*.yaml` has the values.

    Attributes:
        name: of the folder of crops.
        height: in pixels.
        width: in pixels.
        box: `breast`, or `full` for the whole frame.
        margin: added around the breast on each side, as a part of the box's longer side.
        orient: flip where the chest wall is on the right.
        fit: `pad` keeps the aspect and pads, `stretch` fills height and width.
    """

    name: str
    height: int
    width: int
    box: Literal["breast", "full"]
    margin: float
    orient: bool
    fit: Literal["pad", "stretch"]

    def __post_init__(self) -> None:
        """Refuse values that make no crop."""
        checks = {
            f"height={self.height}, width={self.width}": min(self.height, self.width) >= 16,
            f"box={self.box}": self.box in ("breast", "full"),
            f"margin={self.margin}": 0 <= self.margin <= 1,
            f"fit={self.fit}": self.fit in ("pad", "stretch"),
        }
        wrong = [setting for setting, holds in checks.items() if not holds]
        if wrong:
            raise InputError(
                f"crop {self.name}: {'; '.join(wrong)}. Sizes are at least 16 pixels, box is "
                "breast or full, margin lies in [0, 1], fit is pad or stretch."
            )


@dataclass(frozen=True)
class PreparedImage:
    """A crop and how it came about.

    Attributes:
        pixels: uint8, (height, width), tissue bright, background 0.
        record: for the manifest: `decoder`, `transfer_syntax`, `photometric`, `bits_stored`,
            `window`, `source_height`, `source_width`, `breast_found`, the box in source pixels
            (`box_left, box_top, box_width, box_height`), `flipped` (0 or 1), `scale` (crop pixels
            per source pixel; None where stretched); and, where a file was read,
            `source_sha256`.
    """

    pixels: NDArray[np.uint8]
    record: dict[str, str | int | float | None]


def prepare_image(path: Path, settings: CropSettings, source: Source) -> PreparedImage:
    """Make the crop of one file.

    Raises:
        ImageError: the file is no image that can be used; the message says why.
    """
    prepared = crop_mammogram(read_mammogram(path, source), settings)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return PreparedImage(prepared.pixels, {**prepared.record, "source_sha256": digest})


@dataclass(frozen=True)
class CropsTask:
    """One file to make several crops of.

    Attributes:
        path: the file.
        settings: of each crop.
        source: how to read the file.
    """

    path: Path
    settings: tuple[CropSettings, ...]
    source: Source


def prepare_crops(task: CropsTask) -> list[NDArray[np.uint8]]:
    """Decode one file once and make all its crops, (height, width) each.

    Raises:
        ImageError: the file is no image that can be used; the message says why.
    """
    mammogram = read_mammogram(task.path, task.source)
    return [crop_mammogram(mammogram, settings).pixels for settings in task.settings]


def read_mammogram(path: Path, source: Source) -> Mammogram:
    """Read one file.

    Raises:
        ImageError: the file is no image that can be used; the message says why.
    """
    return read_dicom(path) if source == "dicom" else read_picture(path)


def crop_mammogram(mammogram: Mammogram, settings: CropSettings) -> PreparedImage:
    """Make a crop of an image in memory: several crops of one image share one decoding."""
    box, flipped, found = _locate(mammogram, settings)
    pixels, scale = _resample(mammogram, box, flipped, settings)
    height, width = mammogram.pixels.shape
    return PreparedImage(
        pixels,
        {
            **mammogram.facts,
            "window": str(mammogram.presentation.voi),
            "source_height": height,
            "source_width": width,
            "breast_found": int(found),
            "box_left": box.left,
            "box_top": box.top,
            "box_width": box.width,
            "box_height": box.height,
            "flipped": int(flipped),
            "scale": scale,
        },
    )


def _locate(mammogram: Mammogram, settings: CropSettings) -> tuple[Box, bool, bool]:
    """The box in source pixels, whether to flip, and whether a breast stood out."""
    overview = mammogram.overview(_OVERVIEW)
    breast = find_breast(overview)
    height, width = mammogram.pixels.shape
    flipped = settings.orient and breast.chest_wall_right
    if settings.box == "full" or not breast.found:
        return Box(0, 0, width, height), flipped, breast.found
    small = breast.box
    # Overview to source pixels; outwards, so that rounding cuts nothing off.
    across, down = width / overview.shape[1], height / overview.shape[0]
    margin = settings.margin * max(small.width * across, small.height * down)
    left = max(0, int(np.floor(small.left * across - margin)))
    top = max(0, int(np.floor(small.top * down - margin)))
    right = min(width, int(np.ceil((small.left + small.width) * across + margin)))
    bottom = min(height, int(np.ceil((small.top + small.height) * down + margin)))
    return Box(left, top, right - left, bottom - top), flipped, True


def _resample(
    mammogram: Mammogram, box: Box, flipped: bool, settings: CropSettings
) -> tuple[NDArray[np.uint8], float | None]:
    """Cut the box out and bring it to the size of the crop."""
    region = mammogram.pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    if settings.fit == "stretch":
        scale, size = None, (settings.width, settings.height)
    else:
        scale = min(settings.height / box.height, settings.width / box.width)
        size = (max(1, round(box.width * scale)), max(1, round(box.height * scale)))
    enlarges = size[0] > box.width or size[1] > box.height
    # Averaging over areas keeps small bright spots in proportion and makes no aliases.
    resized = cv2.resize(
        region.astype(np.float32),
        size,
        interpolation=cv2.INTER_LINEAR if enlarges else cv2.INTER_AREA,
    )
    shown = np.rint(mammogram.presentation.apply(resized) * 255).astype(np.uint8)
    if flipped:
        shown = shown[:, ::-1]
    crop = np.zeros((settings.height, settings.width), np.uint8)
    top = (settings.height - size[1]) // 2
    crop[top : top + size[1], : size[0]] = shown
    return crop, scale
