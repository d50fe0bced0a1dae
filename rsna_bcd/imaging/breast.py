"""Where the breast is, and on which side its chest wall: by image analysis, nothing learned.

The order of operations:

1. Bright rims along the frame's edges (film, collimators) are left out.
2. The background is the most frequent of the dark grey levels. Where it is not flat, a surface is
   fitted to it and subtracted. Tissue rises above it.
3. Regions that a skin line encloses are tissue, thin structures (markers, edges) are not.
4. The breast is the largest connected piece; of two breasts beside each other both are taken.
   Paddles that are connected with it are separated by a wider opening. A piece that is a full
   rectangle is an exposed field, and is searched again.
5. The side of the chest wall is the one along which the piece is longest.
6. Below the breast, along the chest wall, a strip of abdomen is cut off.

The box is a tissue box: faint skin, the axilla and the inframammary fold belong to it.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna_bcd.imaging.tissue import Box as Box
from rsna_bcd.imaging.tissue import (
    Levels,
    Mask,
    Picture,
    grey_levels,
    tissue_mask,
    within_rims,
)
from rsna_bcd.imaging.tissue import has_bright_background as has_bright_background

Side = Literal["left", "right", "top", "bottom"]

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
_SMALLEST_PICTURE = 16  # pixels of the shorter side; in fewer there is no outline to find
_SMALLEST_IN_FIELD = 0.1  # part of the field
_SOLID = 0.3  # part of its box that a breast fills at least: .46 in real images; a frame fills less
_SECOND_BREAST = 0.4  # part of the larger breast's area

_BAR = 0.06  # width of a paddle's bars at most, part of the longer side
_SEPARATED = 0.85  # part of the box that is left if a paddle was separated
_EDGE = 0.03  # depth of the edges that are compared, part of the box
_LONGER = 0.12  # of a chest wall above or below than each side; at most .02 in real images
_CLEAR = 0.25  # difference between edges, in parts of their length


@dataclass(frozen=True)
class Breast:
    """Where the breast is.

    Attributes:
        box: around the tissue; the whole frame where no breast stood out.
        chest_wall: the side of the frame where the chest wall is ("left" where no breast stood
            out).
        side_is_clear: whether the sides differ so clearly that the pixels decide about it.
        found: whether a breast stood out from a background.
    """

    box: Box
    chest_wall: Side
    side_is_clear: bool
    found: bool

    @property
    def chest_wall_right(self) -> bool:
        """Whether the chest wall is on the right."""
        return self.chest_wall == "right"


@dataclass(frozen=True)
class _Piece:
    """A breast in the frame: its box, and its mask within the box."""

    box: Box
    mask: Mask


class _Connected(NamedTuple):
    """A connected piece of a mask: its outline, (n, 1, 2) of x and y, and its area in pixels."""

    outline: NDArray[Any]
    area: float

    @property
    def fill(self) -> float:
        """The part of its box that it fills."""
        *_, width, height = cv2.boundingRect(self.outline)
        return self.area / (width * height)


def find_breast(picture: Picture) -> Breast:
    """Find the breast.

    Args:
        picture: (H, W) in [0, 1], tissue bright; about 512 pixels on its longer side are plenty.
    """
    piece = _find_piece(picture)
    if piece is None:
        frame = Box(0, 0, picture.shape[1], picture.shape[0])
        return Breast(frame, "left", side_is_clear=False, found=False)
    side, is_clear = _chest_wall(piece.mask)
    return Breast(_without_abdomen(piece, side).box, side, is_clear, found=True)


def breast_mask(picture: Picture) -> NDArray[np.bool_] | None:
    """Find the pixels of the breast.

    Args:
        picture: (H, W) in [0, 1], tissue bright; also a crop with its padding.

    Returns:
        (H, W), True within the breast; None where none stands out from a background.
    """
    piece = _find_piece(picture)
    if piece is None:
        return None
    piece = _without_abdomen(piece, _chest_wall(piece.mask)[0])
    mask = np.zeros(picture.shape, np.bool_)
    piece.box.of(mask)[:] = piece.mask
    return mask


def _find_piece(picture: Picture) -> _Piece | None:
    """The breast with what is connected with it below."""
    if min(picture.shape) < _SMALLEST_PICTURE:
        return None
    levels: Levels = cv2.medianBlur(grey_levels(picture), 3)  # type: ignore[assignment]
    inner = within_rims(levels)
    piece = _largest_piece(inner.of(levels), inner)
    if piece is not None and piece.mask.mean() > _FIELD and min(piece.mask.shape) > _SMALLEST_FIELD:
        field = piece.box.shrunk(2)  # its edge is neither field nor breast
        inside = _largest_piece(field.of(levels), field)
        part = 1.0 if inside is None else inside.mask.sum() / piece.mask.sum()
        if _SMALLEST_IN_FIELD < part < _FIELD:
            piece = inside
    if piece is None or piece.mask.sum() < _SMALLEST * picture.size:
        return None
    return piece


def _largest_piece(levels: Levels, frame: Box) -> _Piece | None:
    """The largest piece of tissue in a part of the picture.

    Args:
        levels: (h, w), of the part.
        frame: where the part is in the picture; so is the piece that comes back.
    """
    tissue = tissue_mask(levels)
    if tissue is None:
        return None
    tissue = _without_thin_structures(tissue)
    pieces = _pieces(tissue)
    if not pieces:
        return None
    solid = [piece for piece in pieces if piece.fill > _SOLID] or pieces
    largest, *others = solid
    mask = _drawn(largest.outline, tissue)
    if others and _are_two_breasts(largest, others[0]):
        mask |= _drawn(others[0].outline, tissue)
    else:
        mask = _without_paddle(mask)
    left, top, width, height = cv2.boundingRect(mask)
    box = Box(frame.left + left, frame.top + top, width, height)
    return _Piece(box, mask[top : top + height, left : left + width])


def _pieces(mask: Mask) -> list[_Connected]:
    """The connected pieces of a mask, the largest first."""
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    areas = [cv2.contourArea(contour) for contour in contours]
    for area, (*_, parent) in zip(list(areas), hierarchy[0], strict=True):
        if parent >= 0:  # a hole
            areas[parent] -= area
    pieces = [
        _Connected(contour, area)
        for contour, area, (*_, parent) in zip(contours, areas, hierarchy[0], strict=True)
        if parent < 0
    ]
    return sorted(pieces, key=lambda piece: -piece.area)


def _drawn(outline: NDArray[Any], mask: Mask) -> Mask:
    """The part of the mask within an outline."""
    drawn = np.zeros_like(mask)
    cv2.drawContours(drawn, [outline], 0, 1, cv2.FILLED)
    return drawn & mask


def _are_two_breasts(first: _Connected, second: _Connected) -> bool:
    """Whether two pieces are breasts beside each other: alike in size, and in the same rows.

    An abdomen lies below the breast, and an edge is much smaller.
    """
    (_, top, _, height), (_, other_top, _, other_height) = (
        cv2.boundingRect(piece.outline) for piece in (first, second)
    )
    shared = min(top + height, other_top + other_height) - max(top, other_top)
    return shared > 0.5 * min(height, other_height) and second.area > _SECOND_BREAST * first.area


def _without_thin_structures(mask: Mask) -> Mask:
    """Open the mask with a disc; tissue at the frame's edge counts as going on beyond it."""
    return _opened(mask, max(1, round(max(mask.shape) * _OPENING / 2)))


def _opened(mask: Mask, radius: int) -> Mask:
    disc = _disc(radius)
    padded = np.pad(mask, radius, mode="edge")
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, disc)
    return np.ascontiguousarray(opened[radius:-radius, radius:-radius])


def _disc(radius: int) -> Mask:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2).astype(np.uint8)


def _without_paddle(mask: Mask) -> Mask:
    """Separate bars of a paddle, a holder or a rim from the breast that they cross."""
    half = np.ascontiguousarray(mask[::2, ::2])
    radius = max(1, round(max(half.shape) * _BAR / 2))
    opened = _opened(half, radius)
    pieces = _pieces(opened)
    if not pieces:
        return mask
    grown: Any = cv2.dilate(_drawn(pieces[0].outline, opened), _disc(radius + 1))
    size = mask.shape[1], mask.shape[0]
    grown = cv2.resize(grown, size, interpolation=cv2.INTER_NEAREST) & mask
    (*_, across, down), (*_, wide, high) = cv2.boundingRect(mask), cv2.boundingRect(grown)
    smaller = wide * high < _SEPARATED * across * down
    return grown if smaller and grown.sum() > 0.5 * mask.sum() else mask


def _chest_wall(mask: Mask) -> tuple[Side, bool]:
    """The side along which the piece is longest, and whether the difference is clear.

    Args:
        mask: (h, w), in the piece's box. It also holds where a collimated strip lies behind the
            chest wall.
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


def _without_abdomen(piece: _Piece, side: Side) -> _Piece:
    """Cut off the strip along the chest wall below the breast.

    Which end of a breast is the lower one is only known of upright images.
    """
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
