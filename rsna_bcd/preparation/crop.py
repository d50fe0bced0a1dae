"""One image file to one crop: find the breast, decode, resize, window, orient, pad.

A crop has the chest wall on the left and the breast at its own aspect; the rest is padded with the
background's 0: on the right, and in equal parts above and below. An image with the chest wall on
the right is flipped, one with the chest wall above or below is rotated.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.files import version_stamp, write_file
from rsna_bcd.imaging.breast import Box, Breast, Side, find_breast
from rsna_bcd.imaging.crops import Crop
from rsna_bcd.imaging.mammogram import ImageError, Mammogram, centred
from rsna_bcd.imaging.quality import QualityFlag, join_flags
from rsna_bcd.imaging.raster import read_raster_image

Source = Literal["dicom", "image"]
Record = dict[str, str | int | float | None]

# Version of how the breast is found and oriented. A change of boxes or directions takes the next
# number: networks must not see other crops than those they were trained on.
# 1: the largest piece of tissue. 2: without the abdomen, rims and paddles; rotated if need be.
ALGORITHM = 2

_SMALLEST_SIDE = 64  # pixels; in fewer, neither a breast nor a lesion can be recognised
_CLAHE_TILES = (8, 8)  # of the resized breast, as is usual


@dataclass(frozen=True)
class CropSettings:
    """Geometry and display of a crop; `conf/crop/*.yaml` has the values.

    Attributes:
        name: of the folder of crops.
        height: in pixels.
        width: in pixels.
        box: `breast`, or `full` for the whole frame.
        margin: added around the breast on each side, as a part of the box's longer side.
        orient: flip or rotate where the chest wall is not on the left.
        fit: `pad` keeps the aspect and pads, `stretch` fills height and width.
        reduce: how often the codec may halve the resolution, as long as it stays above the
            crop's; 0 always decodes in full.
        clahe: clip limit of contrast-limited adaptive histogram equalisation; 0 leaves it out.
        bits: of a crop's pixel, 8 or 16.
        algorithm: version of how the breast is found and oriented; only `ALGORITHM` can be made.
            Records from before the key existed mean 1.
    """

    name: str
    height: int
    width: int
    box: Literal["breast", "full"]
    margin: float
    orient: bool
    fit: Literal["pad", "stretch"]
    # With defaults: runs made before these existed have crops that they describe.
    reduce: int = 0
    clahe: float = 0
    bits: Literal[8, 16] = 8
    algorithm: int = 1

    def __post_init__(self) -> None:
        """Refuse values that make no crop."""
        checks = {
            f"height={self.height}, width={self.width}": min(self.height, self.width) >= 16,
            f"margin={self.margin}": 0 <= self.margin <= 1,
            f"reduce={self.reduce}": self.reduce >= 0,
            f"clahe={self.clahe}": self.clahe >= 0,
        }
        wrong = [setting for setting, holds in checks.items() if not holds]
        if wrong:
            raise InputError(
                f"crop {self.name}: {'; '.join(wrong)}. Sizes are at least 16 pixels, margin "
                "lies in [0, 1], reduce and clahe are at least 0."
            )

    def check_algorithm(self) -> None:
        """Raise an `InputError` if this version of the package does not make such crops."""
        if self.algorithm != ALGORITHM:
            raise InputError(
                f"crop {self.name}: crop.algorithm={self.algorithm}, but this version of rsna_bcd "
                f"makes crops by algorithm {ALGORITHM} only. Set crop.algorithm={ALGORITHM}, or "
                "install the older version."
            )


@dataclass(frozen=True)
class PreparedImage:
    """A crop and how it came about.

    Attributes:
        pixels: uint8 or uint16, (height, width), tissue bright, background 0.
        record: for the manifest: `decoder`, `resolution_level` (how often the codec halved the
            image), `transfer_syntax`, `photometric`, `bits_stored`, `window`, `quality_flags`,
            `source_height`, `source_width`, `breast_found`, the box in source pixels (`box_left,
            box_top, box_width, box_height`), `flipped` (0 or 1), `rotated` (degrees
            counterclockwise, 0, 90 or 270), `scale` (crop pixels per source column; None where
            stretched), `source_sha256`. The crop is the box, flipped or rotated.
    """

    pixels: Crop
    record: Record


@dataclass(frozen=True)
class CropsTask:
    """One file to make several crops of, each with its settings."""

    path: Path
    settings: tuple[CropSettings, ...]
    source: Source


def prepare_image(
    path: Path,
    settings: CropSettings,
    source: Source,
    decoders: Sequence[str] | None = None,
) -> PreparedImage:
    """Make the crop of one file; raises as `read_mammogram`."""
    return crop_mammogram(read_mammogram(path, source, decoders), settings)


def prepare_images(task: CropsTask) -> list[PreparedImage]:
    """Read one file once and make all its crops, each with its record."""
    mammogram = read_mammogram(task.path, task.source)
    return [crop_mammogram(mammogram, settings) for settings in task.settings]


def read_mammogram(path: Path, source: Source, decoders: Sequence[str] | None = None) -> Mammogram:
    """Read one file.

    Args:
        path: of the file.
        source: how to read it.
        decoders: for DICOM, see `read_dicom`; None for all of them.

    Raises:
        ImageError: the file is no image that can be used; the message says why.
    """
    if source == "image":
        mammogram = read_raster_image(path)
    else:
        # Deferred: a machine that reads no DICOM, such as one for training, needs no decoders.
        from rsna_bcd.imaging.dicom import read_dicom

        mammogram = read_dicom(path) if decoders is None else read_dicom(path, decoders)
    height, width = mammogram.height, mammogram.width
    if min(height, width) < _SMALLEST_SIDE:
        raise ImageError(
            f"{height} x {width} pixels: the shorter side has fewer than {_SMALLEST_SIDE}"
        )
    return mammogram


def crop_mammogram(mammogram: Mammogram, settings: CropSettings) -> PreparedImage:
    """Make a crop of an image: several crops of one image share the decoded pixels.

    Raises:
        ImageError: the pixels cannot be decoded; the message says why.
    """
    box, orientation, found = _locate(mammogram, settings)
    rotated = orientation.rotated != 0
    size, scale = _size(box, mammogram.pixel_aspect, settings, is_rotated=rotated)
    # The lowest resolution at which the box has at least the pixels of the crop.
    reduced, most = 0, min(settings.reduce, mammogram.most_reduced)
    while reduced < most and (
        box.width >> reduced + 1 >= size[0] and box.height >> reduced + 1 >= size[1]
    ):
        reduced += 1
    level = mammogram.decode(reduced)
    unit = 2**level.reduced
    region = level.pixels[
        box.top // unit : -(-(box.top + box.height) // unit),
        box.left // unit : -(-(box.left + box.width) // unit),
    ]
    factors = unit * size[0] / box.width, unit * size[1] / box.height
    resized = _resize(centred(region, level.reduced), size, factors, exact=settings.bits == 16)
    shown = np.rint(mammogram.display.apply(resized) * np.float32(2**settings.bits - 1))
    pixels = shown.astype(np.uint8 if settings.bits == 8 else np.uint16)
    if settings.clahe:
        pixels = cv2.createCLAHE(settings.clahe, _CLAHE_TILES).apply(pixels)
    pixels = orientation.apply(pixels)
    crop = np.zeros((settings.height, settings.width), pixels.dtype)
    top = (settings.height - pixels.shape[0]) // 2  # the background in equal parts above and below
    crop[top : top + pixels.shape[0], : pixels.shape[1]] = pixels
    return PreparedImage(
        crop,
        {
            **mammogram.facts,
            "decoder": level.decoder,
            "resolution_level": level.reduced,
            "window": str(mammogram.display),
            "quality_flags": join_flags((*mammogram.flags, *orientation.flags)),
            "source_height": mammogram.height,
            "source_width": mammogram.width,
            "breast_found": int(found),
            "box_left": box.left,
            "box_top": box.top,
            "box_width": box.width,
            "box_height": box.height,
            "flipped": int(orientation.flipped),
            "rotated": orientation.rotated,
            "scale": scale,
        },
    )


@dataclass(frozen=True)
class Orientation:
    """A flip or a rotation.

    Attributes:
        flipped: columns are mirrored.
        rotated: degrees counterclockwise: 0, 90 or 270. Only one of both is in use.
        flags: quality flags; pixels and header may contradict each other.
    """

    flipped: bool
    rotated: int
    flags: tuple[QualityFlag, ...] = ()

    def apply(self, pixels: Crop) -> Crop:
        """Flip or rotate pixels, (H, W)."""
        return np.rot90(pixels[:, ::-1] if self.flipped else pixels, self.rotated // 90)


_ROTATIONS: dict[Side, int] = {"left": 0, "right": 0, "top": 90, "bottom": 270}


def _choose_orientation(breast: Breast, patient_orientation: str) -> Orientation:
    """Choose the orientation with the chest wall on the left: by clear pixels, else by the header.

    Args:
        breast: found in the pixels.
        patient_orientation: of the header: directions of rows (to the right) and of columns
            (downwards), separated by a backslash. The first letter is the main one: A anterior, P
            posterior (PS3.3 C.7.6.1.1.1); the chest wall is opposite the anterior side.
    """
    in_header: Side | None = None
    sides: tuple[dict[str, Side], ...] = ({"A": "left", "P": "right"}, {"A": "top", "P": "bottom"})
    for direction, walls in zip(patient_orientation.split("\\"), sides, strict=False):
        in_header = in_header or walls.get(direction.strip().upper()[:1])
    side = breast.chest_wall
    contradicts = breast.side_is_clear and in_header not in (None, side)
    if in_header is not None and not breast.side_is_clear:
        side = in_header
    flags = (QualityFlag.ORIENTATION_CONTRADICTORY,) if contradicts else ()
    return Orientation(side == "right", _ROTATIONS[side], flags)


def _locate(mammogram: Mammogram, settings: CropSettings) -> tuple[Box, Orientation, bool]:
    """Find the breast in the overview, which is the same whatever is decoded afterwards.

    Returns:
        The box in source pixels; the orientation with the chest wall on the left; whether a breast
        stood out.
    """
    breast = find_breast(mammogram.preview())
    orientation = Orientation(flipped=False, rotated=0)
    if settings.orient:
        in_header = str(mammogram.facts.get("patient_orientation", ""))
        orientation = _choose_orientation(breast, in_header)
    if settings.box == "full" or not breast.found:
        return Box(0, 0, mammogram.width, mammogram.height), orientation, breast.found
    small, unit = breast.box, 2**mammogram.overview.reduced
    bottom, right = small.top + small.height, small.left + small.width
    # Outwards, so that rounding cuts nothing off; and onto whole pixels of every level that might
    # be decoded, so that the box is the same in all of them.
    grid = min(unit, 2**mammogram.most_reduced)
    margin = settings.margin * max(small.width, small.height)
    height, width = mammogram.overview.pixels.shape
    box_left, box_top = (
        max(0, math.floor((start - margin) * unit / grid) * grid)
        for start in (small.left, small.top)
    )
    # An odd last row or column may be missing in the overview: it belongs to the one before.
    box_right, box_bottom = (
        whole if end == most else min(whole, math.ceil((end + margin) * unit / grid) * grid)
        for end, most, whole in (
            (right, width, mammogram.width),
            (bottom, height, mammogram.height),
        )
    )
    box = Box(box_left, box_top, box_right - box_left, box_bottom - box_top)
    return box, orientation, True


def _size(
    box: Box, aspect: float, settings: CropSettings, *, is_rotated: bool
) -> tuple[tuple[int, int], float | None]:
    """Width and height of the content before it is oriented, and crop pixels per source column.

    Args:
        box: in source pixels.
        aspect: height of a source pixel divided by its width; the crop's pixels are square.
        settings: of the crop.
        is_rotated: whether the content is turned by 90 degrees afterwards.
    """
    width, height = settings.width, settings.height
    if is_rotated:
        width, height = height, width
    if settings.fit == "stretch":
        return (width, height), None
    box_height = box.height * aspect
    scale = min(height / box_height, width / box.width)
    return (max(1, round(box.width * scale)), max(1, round(box_height * scale))), scale


def _resize(
    region: NDArray, size: tuple[int, int], factors: tuple[float, float], *, exact: bool
) -> NDArray:
    """Resize stored values.

    Args:
        region: (h, w). A reduced one may reach beyond the box by a part of its last row or column.
        size: (width, height).
        factors: of columns and rows. Of the box, not of the region: else the part beyond it would
            be squeezed in, and the whole crop displaced.
        exact: means are not rounded to whole stored values.
    """
    enlarges = max(factors) > 1
    if region.dtype == np.uint8 or enlarges or exact:
        region = region.astype(np.float32)  # 256 levels are too few for rounded means
    # Averaging over areas keeps small bright spots in proportion and makes no aliases.
    across, down = factors
    if enlarges and min(factors) < 1:  # non-square pixels: one axis at a time
        shrink = min(across, 1.0), min(down, 1.0)
        region = cv2.resize(region, None, fx=shrink[0], fy=shrink[1], interpolation=cv2.INTER_AREA)
        across, down = max(across, 1.0), max(down, 1.0)
    interpolation = cv2.INTER_LINEAR if enlarges else cv2.INTER_AREA
    resized = cv2.resize(region, None, fx=across, fy=down, interpolation=interpolation)
    return resized[: size[1], : size[0]]


Strategy = Literal["default", "filtered", "huffman", "rle", "fixed"]  # in OpenCV's order, from 0
Filter = Literal["none", "sub", "up", "avg", "paeth"]


@dataclass(frozen=True)
class Png:
    """How PNG files are compressed; their pixels do not depend on it.

    Attributes:
        level: 0 (none) to 9.
        strategy: of zlib.
        filter: of rows, before zlib sees them.
    """

    level: int
    strategy: Strategy
    filter: Filter

    def encode(self, pixels: Crop) -> bytes:
        """Compress a crop."""
        row_filter = getattr(cv2, f"IMWRITE_PNG_FILTER_{self.filter.upper()}")
        options = [
            *(cv2.IMWRITE_PNG_COMPRESSION, self.level),  # which resets the others
            *(cv2.IMWRITE_PNG_STRATEGY, get_args(Strategy).index(self.strategy)),
            *(cv2.IMWRITE_PNG_FILTER, row_filter),
        ]
        return cv2.imencode(".png", pixels, options)[1].tobytes()


@dataclass(frozen=True)
class CropTask:
    """One file to make a crop of.

    Attributes:
        source_file: the DICOM file or picture.
        crop_file: the PNG to write.
        settings: of the crop.
        source: how to read `source_file`.
        decoders: in order of preference.
        png: how to compress.
        source_name: path of `source_file` in the folder of images, wherever that is; for its stamp.
    """

    source_file: Path
    crop_file: Path
    settings: CropSettings
    source: Source
    decoders: Sequence[str]
    png: Png
    source_name: str = ""


def make_crop(task: CropTask) -> Record:
    """Prepare one image and write its PNG.

    Returns:
        The record of `prepare_image` with `crop_sha256` and `crop_bytes`, hash and size of the PNG,
        and `source_stamp`, by which a file that was replaced is recognised.

    Raises:
        ImageError: the file is no image that can be used.
        StorageError: the crop cannot be written.
    """
    stamp = version_stamp(task.source_file, task.source_name)
    prepared = prepare_image(task.source_file, task.settings, task.source, task.decoders)
    encoded = task.png.encode(prepared.pixels)
    write_file(task.crop_file, encoded)
    return {
        **prepared.record,
        "crop_sha256": hashlib.sha256(encoded).hexdigest(),
        "crop_bytes": len(encoded),
        "source_stamp": stamp,
    }
