"""One image file to one PNG on disk, which is either whole or absent."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import cv2

from rsna_bcd.errors import InputError
from rsna_bcd.files import version_stamp, write_file
from rsna_bcd.imaging.crops import Crop
from rsna_bcd.preparation.crop import CropSettings, Record, Source, prepare_image

Strategy = Literal["default", "filtered", "huffman", "rle", "fixed"]  # in OpenCV's order, from 0
Filter = Literal["none", "sub", "up", "avg", "paeth"]
_FILTERS: dict[Filter, int] = {
    "none": cv2.IMWRITE_PNG_FILTER_NONE,
    "sub": cv2.IMWRITE_PNG_FILTER_SUB,
    "up": cv2.IMWRITE_PNG_FILTER_UP,
    "avg": cv2.IMWRITE_PNG_FILTER_AVG,
    "paeth": cv2.IMWRITE_PNG_FILTER_PAETH,
}


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

    def __post_init__(self) -> None:
        """Refuse values that PNG does not know."""
        known = self.strategy in get_args(Strategy) and self.filter in _FILTERS
        if not 0 <= self.level <= 9 or not known:
            raise InputError(
                f"png.level={self.level}, png.strategy={self.strategy}, png.filter={self.filter}: "
                f"the level is 0 to 9, the strategy one of {', '.join(get_args(Strategy))}, the "
                f"filter one of {', '.join(_FILTERS)}."
            )

    def encode(self, pixels: Crop) -> bytes:
        """Compress a crop."""
        strategy = get_args(Strategy).index(self.strategy)
        options = [
            *(cv2.IMWRITE_PNG_COMPRESSION, self.level),  # which resets the others
            *(cv2.IMWRITE_PNG_STRATEGY, strategy),
            *(cv2.IMWRITE_PNG_FILTER, _FILTERS[self.filter]),
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
        decoders: which may be used, in order of preference.
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
