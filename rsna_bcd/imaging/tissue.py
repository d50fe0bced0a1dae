"""Which pixels of a frame are tissue: grey levels, bright rims, background.

The background of a mammogram is the most frequent of its dark grey levels, and nearly flat. Where
it has a gradient or noise, a surface is fitted to it and subtracted. Tissue rises above it.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]
Levels = NDArray[np.uint8]
Mask = NDArray[np.uint8]  # 0 or 1

_LEVELS = 256
# A background lies at an end of the range of greys. A frame full of tissue peaks in between.
_BACKGROUND_END = 1 / 3
# Where the histogram has fallen to this part of its background peak, the background ends. It falls
# there within 1 to 6 levels in real images; the fat of a dark image reaches .03 of the peak.
_FOOT = 0.05
_MARGIN_LEVELS = 1
_CLIPPED = 2  # levels at which a background was clipped: compression leaves traces above it
_STEEP = 6  # levels within which a flat background ends
_SMALLEST_BACKGROUND = 0.01  # part of the frame
_FITS = 5  # of the surface; it no longer changes then
_ZERO = 64  # the level of the background, once it is flat

# A bright rim begins and ends within these parts of the frame. It is brighter than so much of the
# range, and what is behind it is darker by this factor.
_RIM_START, _WIDEST_RIM, _RIM_LEVEL, _RIM_DROP = 0.03, 0.12, 0.3, 0.8

# It shows in so many rows of the first and the last quarter, and is tilted by at most so much, in
# parts of height and width.
_RIM_ROWS, _RIM_TILT = 0.03, 0.06

_SMALLEST_HOLE = 0.005  # part of the frame
_FAT_LEVELS = 1.5  # by which fat without contact to the frame's edge is brighter than background
# Parts of the rectangle around it that the hull of a hole fills: an ellipse or half of one fills
# .785, the inside of a paddle more, a wedge between breast and abdomen less.
_TRIANGLE, _RECTANGLE = 0.6, 0.82


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels: columns `left` to `left + width`, rows `top` to `top + height`."""

    left: int
    top: int
    width: int
    height: int

    def of(self, image: NDArray[Any]) -> NDArray[Any]:
        """The view of an image within the box."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def shrunk(self, pixels: int) -> "Box":
        """The box without its outermost pixels."""
        across, down = self.width - 2 * pixels, self.height - 2 * pixels
        return Box(self.left + pixels, self.top + pixels, across, down)


def has_bright_background(picture: Picture) -> bool:
    """Whether the background is at the bright end, so that the picture must be inverted.

    Args:
        picture: (H, W) in [0, 1].
    """
    low, background, high = _landmarks(_histogram(grey_levels(picture)))
    return background > high - (high - low) * _BACKGROUND_END


def grey_levels(picture: Picture) -> Levels:
    """A picture in [0, 1] in 256 levels."""
    return cv2.convertScaleAbs(picture, alpha=_LEVELS - 1).astype(np.uint8, copy=False)


def within_rims(levels: Levels) -> Box:
    """The frame without bright rims along its edges.

    A rim is at least as bright as most tissue, evenly so, and ends at a straight line on which the
    picture darkens. The chest wall's edge does not: tissue darkens at another place in each row.
    """
    height, width = levels.shape
    darkest, brightest, *_ = cv2.minMaxLoc(levels)
    bright = darkest + _RIM_LEVEL * (brightest - darkest)
    left, right = _rim(levels, bright), _rim(levels[:, ::-1], bright)
    inner = levels[:, left : width - right].T
    top, bottom = _rim(inner, bright), _rim(inner[:, ::-1], bright)
    return Box(left, top, width - left - right, height - top - bottom)


def _rim(levels: Levels, bright: float) -> int:
    """Width of the bright rim along the left edge; 0 where there is none."""
    height, width = levels.shape
    start, widest = max(2, round(_RIM_START * width)), max(2, round(_WIDEST_RIM * width))
    near = levels[:, : 2 * widest]
    crests = near[:, :start].max(axis=1)
    if (crests < bright).mean() > 0.1 or (crests < 0.7 * np.median(crests)).mean() > 0.1:
        return 0
    # Behind the crest, the first column that is clearly darker.
    behind = np.arange(near.shape[1])[None] > near[:, :start].argmax(axis=1)[:, None]
    darker = behind & (near < _RIM_DROP * crests[:, None])
    at = np.where(darker.any(axis=1), darker.argmax(axis=1), near.shape[1])
    rows = np.flatnonzero(at <= widest)
    ends_at, half = at[rows], len(rows) // 2
    # A strip of abdomen is as straight, but at one end only, and shorter.
    ends = (rows < height / 4).sum(), (rows >= height * 3 / 4).sum()
    if half < 2 or (min(ends) < _RIM_ROWS * height and len(rows) < height / 2):
        return 0
    # The line may be slightly tilted. Medians, as in some rows there is tissue behind the rim.
    upper, lower = (np.median(rows[part]) for part in (slice(half), slice(half, None)))
    upper_end, lower_end = (np.median(ends_at[part]) for part in (slice(half), slice(half, None)))
    slope = (lower_end - upper_end) / (lower - upper)
    offset = upper_end - slope * upper
    off_line = np.abs(ends_at - slope * rows - offset) > max(1.5, 0.006 * width)
    if off_line.mean() > 0.3 or abs(slope) * height > _RIM_TILT * width:
        return 0
    return min(widest, int(np.ceil(max(offset, offset + slope * height))) + 1)


def tissue_mask(levels: Levels) -> Mask | None:
    """What rises above the background or is enclosed by it; None where there is no background."""
    histogram = _histogram(levels)
    background = _background_level(histogram)
    if background is None:
        return None
    foot = _foot(histogram, background)
    if foot > _STEEP:
        return _filled(_above_uneven_background(levels, background + foot), levels)
    margin = _MARGIN_LEVELS if background > _CLIPPED else 2 * _MARGIN_LEVELS
    return _filled((levels > background + foot + margin).astype(np.uint8), levels)


def _background_level(histogram: NDArray[np.float64]) -> int | None:
    """The most frequent dark level, if it is a peak; None for a frame full of tissue."""
    low, mode, high = _landmarks(histogram)
    end = low + int((high - low) * _BACKGROUND_END)
    if mode <= end:
        return mode
    # A large breast has more pixels of its own most frequent level than there are of background.
    peak = low + int(histogram[low : end + 1].argmax())
    is_peak = histogram[peak : mode + 1].min() < 0.5 * histogram[peak]
    share = histogram[max(0, peak - 3) : peak + 4].sum()
    return peak if is_peak and share > _SMALLEST_BACKGROUND else None


def _foot(histogram: NDArray[np.float64], peak: int, step: int = 1) -> int:
    """How many levels above (or below, with a step of -1) its peak the background ends."""
    beyond = histogram[peak:] if step > 0 else histogram[peak::-1]
    return int(np.argmax(np.append(beyond, 0) < _FOOT * beyond[0]))


def _above_uneven_background(levels: Levels, end: int) -> Mask:
    """What rises above a background with a gradient or noise, or one as bright as fat is.

    Args:
        levels: (h, w).
        end: the level that the brightest background has, or the darkest tissue.
    """
    smooth = cv2.GaussianBlur(levels.astype(np.float32), (5, 5), 0)
    height, width = smooth.shape
    y, x = np.mgrid[:height, :width].astype(np.float32) / max(height, width)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    sparse, values = terms[2::5, 2::5].reshape(-1, 6), smooth[2::5, 2::5].ravel()
    # From below: tissue, also such that is hardly brighter, must not pull the surface up.
    used = values <= end
    for _ in range(_FITS):
        surface = np.linalg.lstsq(sparse[used], values[used], rcond=None)[0]
        rest = values - sparse @ surface
        spread = 1.48 * float(np.median(np.abs(rest[used])))
        used = (rest < 1.5 * spread + 0.5) & (values <= end)
        if used.sum() < 50:
            break
    flat = smooth - terms @ surface.astype(np.float32)
    histogram = _histogram(np.clip(np.rint(flat + _ZERO), 0, _LEVELS - 1).astype(np.uint8))
    peak = _ZERO - 8 + int(histogram[_ZERO - 8 : _ZERO + 9].argmax())
    above, below = _foot(histogram, peak), _foot(histogram, peak, -1)
    # Noise spreads to both sides alike; what is only above the peak is fat.
    reach = above if above <= 1.5 * below + 3 else round(1.3 * below) + 1
    return (flat > peak - _ZERO + reach + _MARGIN_LEVELS).astype(np.uint8)


def _filled(tissue: Mask, levels: Levels) -> Mask:
    """Fill dark regions that a skin line encloses, alone or with the chest wall.

    A background touches several sides of the frame. The inside of a paddle is rather rectangular,
    and what lies between a breast and an abdomen is a wedge.
    """
    height, width = tissue.shape
    framed: Mask = np.pad(tissue, 1, constant_values=1)
    # Outlines of holes run on the tissue around them.
    outlines, hierarchy = cv2.findContours(framed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for outline, (*_, parent) in zip(outlines, hierarchy[0], strict=True):
        left, top, across, down = cv2.boundingRect(outline)
        sides = (left == 0) + (top == 0) + (left + across == width + 2) + (top + down == height + 2)
        if parent < 0 or sides > 1 or across * down < _SMALLEST_HOLE * tissue.size:
            continue
        hull = cv2.convexHull(outline)
        _, (length, breadth), _ = cv2.minAreaRect(hull)
        if not _TRIANGLE * length * breadth < cv2.contourArea(hull) < _RECTANGLE * length * breadth:
            continue
        hole: Mask = np.zeros(framed.shape, np.uint8)
        cv2.drawContours(hole, [outline], 0, 1, cv2.FILLED)
        within = hole[1:-1, 1:-1] & (1 - tissue)
        if not sides:
            brighter = cv2.mean(levels, within)[0] - cv2.mean(levels, 1 - tissue - within)[0]
            if brighter < _FAT_LEVELS:
                continue
        framed |= hole
    return np.ascontiguousarray(framed[1:-1, 1:-1])


def _histogram(levels: Levels) -> NDArray[np.float64]:
    """Parts of the picture at each of 256 grey levels, smoothed over three of them."""
    counts = cv2.calcHist([levels], [0], None, [_LEVELS], [0, _LEVELS])[:, 0].astype(np.float64)
    return np.convolve(counts / levels.size, [0.25, 0.5, 0.25], mode="same")


def _landmarks(histogram: NDArray[np.float64]) -> tuple[int, int, int]:
    """The darkest level that occurs, the most frequent one, and the brightest one.

    Darkest and brightest leave out half a percent each: dead pixels and the ink of markers.
    """
    cumulated = np.cumsum(histogram) / histogram.sum()
    low, high = np.searchsorted(cumulated, [0.005, 0.995])
    return int(low), int(histogram.argmax()), int(high)
