"""Segment the breast and find the side of its chest wall, by classical image analysis.

The order of operations:

1. Bright rims along the frame's edges (film, collimators) are removed.
2. The background is the most frequent of the dark grey levels, and nearly flat. Where it has a
   gradient or noise, a surface is fitted to it and subtracted. Tissue rises above it.
3. Regions that a skin line encloses are tissue, thin structures (markers, edges) are not.
4. The breast is the largest connected piece; of two breasts beside each other both are taken.
   Paddles that are connected with it are separated by a wider opening. A piece that is a full
   rectangle is an exposed field, and is searched again.
5. The chest wall is on the side along which the piece is longest.
6. Below the breast, along the chest wall, a strip of abdomen is cut off.

The box is a tissue box: faint skin, the axilla and the inframammary fold belong to it.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

GreyImage = NDArray[np.float32]  # (H, W) in [0, 1]
_Levels = NDArray[np.uint8]  # grey levels
_Mask = NDArray[np.uint8]  # 0 or 1
Side = Literal["left", "right", "top", "bottom"]

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

# A bright rim begins and ends within these parts of the frame. It is brighter than this part of the
# range, and the pixels behind it are darker by this factor.
_RIM_START, _WIDEST_RIM, _RIM_LEVEL, _RIM_DROP = 0.03, 0.12, 0.3, 0.8
# It shows in this part of the rows of the first and the last quarter, and is tilted by at most this
# part of the width.
_RIM_ROWS, _RIM_TILT = 0.03, 0.06

_SMALLEST_HOLE = 0.005  # part of the frame
_FAT_LEVELS = 1.5  # by which fat without contact to the frame's edge is brighter than background
# Parts of the rectangle around it that the hull of a hole fills: an ellipse or half of one fills
# .785, the inside of a paddle more, a wedge between breast and abdomen less.
_TRIANGLE, _RECTANGLE = 0.6, 0.82

# Thinner structures than this part of the longer side are not the breast: collimator edges and the
# strokes of burned-in letters are up to .01 of it.
_OPENING = 0.012
_SMALLEST = 0.02  # part of the frame; the smallest breast of 2,221 real images fills .049

# The strip below the breast is narrower than this part of the widest row ...
_STRIP = 0.12
# ... or lies behind a notch that is narrower than this, from which it widens by that factor.
_NOTCH, _WIDENING = 0.35, 1.25
# At most this part of the piece is cut off: more of it lies below a shoulder.
_ABDOMEN = 1 / 3
_KEPT_BELOW = 0.02  # rows that stay below the cut, part of the breast's height

_FIELD = 0.93  # part of its box that a piece fills, if it is an exposed field
_SMALLEST_FIELD = 16  # pixels
_SMALLEST_IMAGE = 16  # pixels of the shorter side; in fewer there is no outline to find
_SMALLEST_IN_FIELD = 0.1  # part of the field
_SOLID = 0.3  # part of its box that a breast fills at least: .46 in real images; a frame fills less
_SECOND_BREAST = 0.4  # part of the larger breast's area

_BAR = 0.06  # width of a paddle's bars at most, part of the longer side
_SEPARATED = 0.85  # part of the box that is left if a paddle was separated
_EDGE = 0.03  # depth of the edges that are compared, part of the box
_LONGER = 0.12  # of a chest wall above or below than each side; at most .02 in real images
_CLEAR = 0.25  # difference between edges, in parts of their length


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels: columns `left` to `left + width`, rows `top` to `top + height`."""

    left: int
    top: int
    width: int
    height: int

    def crop(self, image: NDArray[Any]) -> NDArray[Any]:
        """The view of an image within the box."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Breast:
    """The position of the breast in the frame.

    Attributes:
        box: around the tissue; the whole frame where no breast was found.
        chest_wall: the side of the frame where the chest wall is; "left" where no breast was found.
        side_is_clear: whether the sides differ clearly, so that the pixels decide about the side.
        found: whether a breast stands out from a background.
    """

    box: Box
    chest_wall: Side
    side_is_clear: bool
    found: bool


class _Piece(NamedTuple):
    """A breast in the frame: its box, and its mask within the box."""

    box: Box
    mask: _Mask


class _Component(NamedTuple):
    """A connected component of a mask: its outline, (n, 1, 2) of x and y, its area, its box."""

    outline: NDArray[Any]
    area: float
    box: Box


def find_breast(image: GreyImage) -> Breast:
    """Find the breast.

    Args:
        image: (H, W) in [0, 1], tissue bright; about 512 pixels on its longer side are enough.
    """
    piece = _find_piece(image)
    if piece is None:
        frame = Box(0, 0, image.shape[1], image.shape[0])
        return Breast(frame, "left", side_is_clear=False, found=False)
    side, is_clear = _chest_wall(piece.mask)
    return Breast(_cut_off_abdomen(piece, side).box, side, is_clear, found=True)


def breast_mask(image: GreyImage) -> NDArray[np.bool_] | None:
    """Segment the breast.

    Args:
        image: (H, W) in [0, 1], tissue bright; also a crop with its padding.

    Returns:
        (H, W), True within the breast; None where none stands out from a background.
    """
    piece = _find_piece(image)
    if piece is None:
        return None
    piece = _cut_off_abdomen(piece, _chest_wall(piece.mask)[0])
    mask = np.zeros(image.shape, np.bool_)
    piece.box.crop(mask)[:] = piece.mask
    return mask


def has_bright_background(image: GreyImage) -> bool:
    """Whether the background is at the bright end, so that the image, (H, W), must be inverted."""
    low, background, high = _landmarks(_histogram(_grey_levels(image)))
    return background > high - (high - low) * _BACKGROUND_END


def _find_piece(image: GreyImage) -> _Piece | None:
    """The breast together with the abdomen below."""
    if min(image.shape) < _SMALLEST_IMAGE:
        return None
    levels = cv2.medianBlur(_grey_levels(image), 3).astype(np.uint8, copy=False)
    inner = _without_rims(levels)
    piece = _largest_piece(inner.crop(levels), inner)
    if piece is not None and piece.mask.mean() > _FIELD and min(piece.mask.shape) > _SMALLEST_FIELD:
        box = piece.box  # its edge is neither field nor breast
        field = Box(box.left + 2, box.top + 2, box.width - 4, box.height - 4)
        inside = _largest_piece(field.crop(levels), field)
        part = 1.0 if inside is None else inside.mask.sum() / piece.mask.sum()
        if _SMALLEST_IN_FIELD < part < _FIELD:
            piece = inside
    if piece is None or piece.mask.sum() < _SMALLEST * image.size:
        return None
    return piece


def _largest_piece(levels: _Levels, frame: Box) -> _Piece | None:
    """The largest piece of tissue in a part of the image.

    Args:
        levels: (h, w), of the part.
        frame: the part's box in the image; the returned box is in the image, too.
    """
    tissue = _tissue_mask(levels)
    if tissue is None:
        return None
    # Markers, edges; tissue at the frame's edge counts as continuing beyond it.
    tissue = _open(tissue, max(1, round(max(tissue.shape) * _OPENING / 2)))
    components = _components(tissue)
    if not components:
        return None
    solid = [c for c in components if c.area / (c.box.width * c.box.height) > _SOLID]
    largest, *others = solid or components
    mask = _draw(largest, tissue)
    if others and _are_two_breasts(largest, others[0]):
        mask |= _draw(others[0], tissue)
    else:
        mask = _separate_paddle(mask)
    box = Box(*cv2.boundingRect(mask))
    in_image = Box(frame.left + box.left, frame.top + box.top, box.width, box.height)
    return _Piece(in_image, box.crop(mask))


def _components(mask: _Mask) -> list[_Component]:
    """The connected components of a mask, the largest first."""
    outlines, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not outlines:
        return []
    areas = [cv2.contourArea(outline) for outline in outlines]
    parents = hierarchy[0, :, 3].tolist()
    for area, parent in zip(list(areas), parents, strict=True):
        if parent >= 0:  # a hole
            areas[parent] -= area
    components = [
        _Component(outline, area, Box(*cv2.boundingRect(outline)))
        for outline, area, parent in zip(outlines, areas, parents, strict=True)
        if parent < 0
    ]
    return sorted(components, key=lambda component: -component.area)


def _draw(component: _Component, mask: _Mask) -> _Mask:
    """The part of the mask within the outline of a component."""
    drawn = np.zeros_like(mask)
    cv2.drawContours(drawn, [component.outline], 0, 1, cv2.FILLED)
    return drawn & mask


def _are_two_breasts(first: _Component, second: _Component) -> bool:
    """Whether two pieces are breasts beside each other: similar in size, and in the same rows.

    An abdomen lies below the breast, and an edge is much smaller.
    """
    a, b = first.box, second.box
    shared = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
    return shared > 0.5 * min(a.height, b.height) and second.area > _SECOND_BREAST * first.area


def _open(mask: _Mask, radius: int) -> _Mask:
    """Open a mask with a disc, continued beyond the frame's edge."""
    padded = np.pad(mask, radius, mode="edge")
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, _disc(radius))
    return np.ascontiguousarray(opened[radius:-radius, radius:-radius])


def _disc(radius: int) -> _Mask:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2).astype(np.uint8)


def _separate_paddle(mask: _Mask) -> _Mask:
    """Separate bars of a paddle, a holder or a rim from the breast that they cross."""
    half = np.ascontiguousarray(mask[::2, ::2])
    radius = max(1, round(max(half.shape) * _BAR / 2))
    opened = _open(half, radius)
    components = _components(opened)
    if not components:
        return mask
    grown: Any = cv2.dilate(_draw(components[0], opened), _disc(radius + 1))
    size = mask.shape[1], mask.shape[0]
    grown = cv2.resize(grown, size, interpolation=cv2.INTER_NEAREST) & mask
    (*_, across, down), (*_, wide, high) = cv2.boundingRect(mask), cv2.boundingRect(grown)
    smaller = wide * high < _SEPARATED * across * down
    return grown if smaller and grown.sum() > 0.5 * mask.sum() else mask


def _chest_wall(mask: _Mask) -> tuple[Side, bool]:
    """The side along which the piece is longest, and whether the difference is clear.

    Args:
        mask: (h, w), in the piece's box. So a collimated strip behind the chest wall does no harm.
    """
    height, width = mask.shape
    across, down = max(1, round(_EDGE * width)), max(1, round(_EDGE * height))
    left, right = float(mask[:, :across].mean()), float(mask[:, -across:].mean())
    top, bottom = float(mask[:down].mean()), float(mask[-down:].mean())
    # An axilla may fill the upper edge of an upright mammogram, but not without the chest wall.
    if max(top, bottom) > max(left, right) + _LONGER and abs(top - bottom) >= _CLEAR:
        return ("top" if top > bottom else "bottom"), True
    if abs(left - right) >= _CLEAR:
        return ("left" if left > right else "right"), True
    # A breast tapers away from the chest wall, so its centre of mass leans towards it.
    centre = float(mask.sum(axis=0) @ (np.arange(width) + 0.5)) / float(mask.sum())
    return ("right" if centre > width / 2 else "left"), False


def _cut_off_abdomen(piece: _Piece, side: Side) -> _Piece:
    """Cut off the strip along the chest wall below the breast, in upright images."""
    if side in ("top", "bottom"):
        return piece
    box, rows = piece.box, _breast_rows(piece.mask.sum(axis=1).astype(np.float64))
    if rows == box.height:
        return piece
    mask = piece.mask[:rows]
    left, _, width, _ = cv2.boundingRect(mask)
    return _Piece(Box(box.left + left, box.top, width, rows), mask[:, left : left + width])


def _breast_rows(widths: NDArray[np.float64]) -> int:
    """How many of the piece's rows belong to the breast.

    The breast ends where it is narrower than _STRIP of its widest row, or at a notch, the
    inframammary fold, from which the outline widens again towards the abdomen.

    Args:
        widths: of the rows, from the top.
    """
    height, first = len(widths), 0
    while first < height - 1:
        widest = first + int(widths[first:].argmax())
        below, largest = widths[widest:], widths[widest]
        widens = np.maximum.accumulate(below[::-1])[::-1] > _WIDENING * np.maximum(
            below, 0.05 * largest
        )
        is_lowest = below == np.minimum.accumulate(below)
        notches = np.flatnonzero((below < _NOTCH * largest) & widens & is_lowest)
        ends = [*np.flatnonzero(below < _STRIP * largest)[:1]]
        if len(notches):
            ends.append(notches[below[notches].argmin()])
        if not ends:
            break
        end = widest + int(min(ends))
        if widths[end:].sum() <= _ABDOMEN * widths.sum():
            return min(height, end + max(1, round(_KEPT_BELOW * end)))
        first = max(end, first + 1)  # that was a shoulder: the breast is below
    return height


def _grey_levels(image: GreyImage) -> _Levels:
    return cv2.convertScaleAbs(image, alpha=_LEVELS - 1).astype(np.uint8, copy=False)


def _without_rims(levels: _Levels) -> Box:
    """The frame without bright rims along its edges.

    A rim is at least as bright as most tissue, evenly so, and ends at a straight line on which the
    image darkens. The chest wall's edge does not: tissue darkens at another place in each row.
    """
    height, width = levels.shape
    darkest, brightest, *_ = cv2.minMaxLoc(levels)
    bright = darkest + _RIM_LEVEL * (brightest - darkest)
    left, right = _rim_width(levels, bright), _rim_width(levels[:, ::-1], bright)
    inner = levels[:, left : width - right].T
    top, bottom = _rim_width(inner, bright), _rim_width(inner[:, ::-1], bright)
    return Box(left, top, width - left - right, height - top - bottom)


def _rim_width(levels: _Levels, bright: float) -> int:
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


def _tissue_mask(levels: _Levels) -> _Mask | None:
    """Pixels above the background or enclosed by such; None where there is no background."""
    histogram = _histogram(levels)
    background = _background_level(histogram)
    if background is None:
        return None
    foot = _foot(histogram, background)
    if foot > _STEEP:
        return _fill_holes(_above_uneven_background(levels, background + foot), levels)
    margin = _MARGIN_LEVELS if background > _CLIPPED else 2 * _MARGIN_LEVELS
    return _fill_holes((levels > background + foot + margin).astype(np.uint8), levels)


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


def _above_uneven_background(levels: _Levels, end: int) -> _Mask:
    """Pixels above a background with a gradient or noise, or one as bright as fat is.

    Args:
        levels: (h, w).
        end: the level that the brightest background has, or the darkest tissue.
    """
    smooth = cv2.GaussianBlur(levels.astype(np.float32), (5, 5), 0)
    height, width = smooth.shape
    y, x = np.mgrid[:height, :width].astype(np.float32) / max(height, width)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    sparse, values = terms[2::5, 2::5].reshape(-1, 6), smooth[2::5, 2::5].ravel()
    # From below: tissue, even if hardly brighter, must not pull the surface up.
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
    # Noise is symmetric around the peak; a surplus above it is fat.
    reach = above if above <= 1.5 * below + 3 else round(1.3 * below) + 1
    return (flat > peak - _ZERO + reach + _MARGIN_LEVELS).astype(np.uint8)


def _fill_holes(tissue: _Mask, levels: _Levels) -> _Mask:
    """Fill dark regions that a skin line encloses, alone or with the chest wall.

    A background touches several sides of the frame. The inside of a paddle is rather rectangular,
    and the gap between a breast and an abdomen is a wedge.
    """
    height, width = tissue.shape
    framed: _Mask = np.pad(tissue, 1, constant_values=1)
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
        hole: _Mask = np.zeros(framed.shape, np.uint8)
        cv2.drawContours(hole, [outline], 0, 1, cv2.FILLED)
        within = hole[1:-1, 1:-1] & (1 - tissue)
        if not sides:
            brighter = cv2.mean(levels, within)[0] - cv2.mean(levels, 1 - tissue - within)[0]
            if brighter < _FAT_LEVELS:
                continue
        framed |= hole
    return np.ascontiguousarray(framed[1:-1, 1:-1])


def _histogram(levels: _Levels) -> NDArray[np.float64]:
    """Parts of the image at each of 256 grey levels, smoothed over three of them."""
    counts = cv2.calcHist([levels], [0], None, [_LEVELS], [0, _LEVELS])[:, 0].astype(np.float64)
    return np.convolve(counts / levels.size, [0.25, 0.5, 0.25], mode="same")


def _landmarks(histogram: NDArray[np.float64]) -> tuple[int, int, int]:
    """The darkest level that occurs, the most frequent one, and the brightest one.

    Darkest and brightest leave out half a percent each: dead pixels and the ink of markers.
    """
    cumulated = np.cumsum(histogram) / histogram.sum()
    low, high = np.searchsorted(cumulated, [0.005, 0.995])
    return int(low), int(histogram.argmax()), int(high)
