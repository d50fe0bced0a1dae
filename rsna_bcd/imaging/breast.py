"""Where the breast is, and which way it faces: by image analysis, nothing learned.

The background of a mammogram is its most frequent grey level, and nearly flat. Tissue is what rises
above it; the breast is the largest connected piece of that. Markers, the edge of the collimator and
noise are smaller or thinner. The box is a tissue box: faint skin and the axilla belong to it.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]

_LEVELS = 256
# A background lies at an end of the range of greys. A frame full of tissue peaks in between.
_BACKGROUND_END = 1 / 3
# Where the histogram has fallen to this part of its background peak, the background ends. It falls
# there within 1 to 6 levels in real images; the fat of a dark image reaches .03 of the peak.
_FOOT = 0.05
_MARGIN_LEVELS = 2
# Thinner structures than this part of the longer side are not the breast: collimator edges and the
# strokes of burned-in letters are up to .01 of it.
_OPENING = 0.012
_SMALLEST = 0.02  # part of the frame; the smallest breast of 2,221 real images fills .049


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels: columns `left` to `left + width`, rows `top` to `top + height`."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Breast:
    """Where the breast is.

    Attributes:
        box: around the tissue; the whole frame where no breast stood out.
        chest_wall_right: the chest wall is on the right (False where no breast stood out).
        found: whether a breast stood out from a background.
    """

    box: Box
    chest_wall_right: bool
    found: bool


def has_bright_background(picture: Picture) -> bool:
    """Whether the background is at the bright end, so that the picture must be inverted.

    Args:
        picture: (H, W) in [0, 1].
    """
    low, background, high = _landmarks(_histogram(picture))
    return background > high - (high - low) * _BACKGROUND_END


def find_breast(picture: Picture) -> Breast:
    """Find the breast.

    Args:
        picture: (H, W) in [0, 1], tissue bright; about 512 pixels on its longer side are plenty.
    """
    frame = Breast(Box(0, 0, picture.shape[1], picture.shape[0]), False, found=False)
    piece = _largest_piece(picture)
    if piece is None:
        return frame
    (left, top, width, height, area), mask = piece
    # A breast tapers away from the chest wall, so its centre of mass leans towards the wall. This
    # looks at the shape alone: it also holds where a collimated strip lies behind the wall.
    columns = mask[top : top + height, left : left + width].sum(axis=0)
    centre = float(columns @ (np.arange(width) + 0.5)) / area
    return Breast(Box(left, top, width, height), centre > width / 2, found=True)


def breast_mask(picture: Picture) -> NDArray[np.bool_] | None:
    """Find the pixels of the breast.

    Args:
        picture: (H, W) in [0, 1], tissue bright; also a crop with its padding.

    Returns:
        (H, W), True within the breast; None where none stands out from a background.
    """
    piece = _largest_piece(picture)
    return None if piece is None else piece[1]


def _largest_piece(
    picture: Picture,
) -> tuple[tuple[int, int, int, int, int], NDArray[np.bool_]] | None:
    """Left, top, width, height and area of the largest piece of tissue, and its mask."""
    threshold = _tissue_threshold(picture)
    if threshold is None:
        return None
    tissue = _without_thin_structures(picture > threshold)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(tissue, connectivity=4)
    if count < 2:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    left, top, width, height, area = map(int, stats[largest])
    if area < _SMALLEST * picture.size:
        return None
    return (left, top, width, height, area), labels == largest


def _tissue_threshold(picture: Picture) -> float | None:
    """The level above which there is tissue, in [0, 1]; None where there is no background."""
    histogram = _histogram(picture)
    low, background, high = _landmarks(histogram)
    if background > low + (high - low) * _BACKGROUND_END:
        return None
    above = histogram[background:]
    foot = int(np.argmax(np.append(above, 0) < _FOOT * above[0]))  # the first that is below
    return (background + foot + _MARGIN_LEVELS) / (_LEVELS - 1)


def _histogram(picture: Picture) -> NDArray[np.float64]:
    """Parts of the picture at each of 256 grey levels, smoothed over three of them."""
    levels = np.rint(np.clip(picture, 0, 1) * (_LEVELS - 1)).astype(np.uint8)
    counts = np.bincount(levels.ravel(), minlength=_LEVELS)
    return np.convolve(counts / picture.size, [0.25, 0.5, 0.25], mode="same")


def _landmarks(histogram: NDArray[np.float64]) -> tuple[int, int, int]:
    """The darkest level that occurs, the most frequent one, and the brightest one.

    Darkest and brightest leave out half a percent each: dead pixels and the ink of markers.
    """
    cumulated = np.cumsum(histogram) / histogram.sum()
    low, high = np.searchsorted(cumulated, [0.005, 0.995])
    return int(low), int(histogram.argmax()), int(high)


def _without_thin_structures(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Open the mask with a disc; tissue at the frame's edge counts as going on beyond it."""
    radius = max(1, round(max(mask.shape) * _OPENING / 2))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    padded = np.pad(mask.astype(np.uint8), radius, mode="edge")
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, disc)
    return np.ascontiguousarray(opened[radius:-radius, radius:-radius])
