"""Fit a linear ramp to the tissue of an image whose header has no usable window.

A compressed breast is a plateau: skin and its taper are dark and few, fat and gland lie close
together far above the background, and an implant or metal lies above both. A ramp from minimum to
maximum spends its greys on the empty range between background and plateau. Statistics are taken of
the overview, inside the breast, and smoothed: the low band of JPEG 2000 overshoots at edges where
averages of the decoded image do not.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna_bcd.imaging.breast import breast_mask
from rsna_bcd.imaging.window import FittedRamp, Values

Mask = NDArray[np.bool_]

# The quartiles of the tissue are at least so far apart in 255 grey levels, where the background and
# the limits below allow it. Windows in the headers of real mammograms reach 38 to 48.
_SPREAD = 45
_WHITE = 99.5  # percentile of the tissue that becomes white
_WHITE_OF_FRAME = 99.9  # the same of a whole frame, a small part of which may be tissue
_MOST_WHITE = 0.02  # part of the tissue; images clipped by their maker hold more equal values
_MOST_BLACK = 5  # percentile of the tissue below which it may become black: the taper at the skin
_NARROWEST = 0.1  # of the range of all values, so that the noise of a flat phantom is not amplified
# Implants, metal and the frames of paddles: at least this part of the breast lies this close to its
# brightest value, as a part of the range. Of tissue, less than 1 % lies within 4 %.
_PLATEAU_PART, _PLATEAU_DEPTH = 0.01, 0.02
_EXTREMES = (0.05, 99.95)  # percentiles; the rest are defects and the ink of markers
_SMOOTHING = 1.0  # standard deviation in pixels of the overview


def widest_range(values: Values, valid: Mask | None = None) -> tuple[float, float]:
    """The range of all values but isolated ones.

    Args:
        values: (H, W), modality values of the overview.
        valid: (H, W), False where there is padding; None where there is none.
    """
    inside = _smoothed(values) if valid is None else _smoothed(values)[valid]
    low, high = np.percentile(inside, _EXTREMES)
    if low == high:
        inside = values if valid is None else values[valid]
        low, high = inside.min(), inside.max()
    return float(low), float(high)


def fit_ramp(
    values: Values, *, inverted: bool, valid: Mask | None = None, discarded: str = ""
) -> FittedRamp:
    """Fit a ramp to the tissue.

    The upper end is the tissue's 99.5th percentile; the lower end is as far below as the quartiles
    of the tissue stay 45 grey levels apart, but not below the background. An implant is within
    the ramp only if that leaves the tissue its contrast.

    Args:
        values: (H, W), modality values of the overview, not all equal.
        inverted: whether high values are shown dark.
        valid: (H, W), False where there is padding; None where there is none.
        discarded: the transforms of the header that are unusable, for the manifest.
    """
    widest = widest_range(values, valid)
    bright = _smoothed(-values if inverted else values)
    low, high = sorted((-widest[0], -widest[1]) if inverted else widest)
    picture = np.clip((bright - low) / (high - low), 0, 1)
    everywhere = np.ones(values.shape, bool) if valid is None else valid
    found = breast_mask(picture if valid is None else np.where(valid, picture, np.float32(0)))
    if found is None or not (found & everywhere).any():
        inside, background, white = everywhere, low, _WHITE_OF_FRAME
    else:
        inside, white = found & everywhere, _WHITE
        background = _background_edge(bright[everywhere & ~found], low)
    black, top = _limits(bright, inside, background, high, white)
    if inverted:
        return FittedRamp(-top, -black, widest, discarded)
    return FittedRamp(black, top, widest, discarded)


def _limits(
    bright: Values, inside: Mask, background: float, highest: float, white: float
) -> tuple[float, float]:
    """The values that become black and white."""
    all_of_it = bright[inside]
    tissue = bright[inside & ~_plateau(bright, inside, background)]
    darkest, lower, upper, top_of_tissue = np.percentile(tissue, (_MOST_BLACK, 25, 75, white))
    width = max(255 / _SPREAD * (upper - lower), _NARROWEST * (highest - background))
    shown, top = all_of_it, float(np.percentile(all_of_it, white))
    if top - width > darkest and top_of_tissue > darkest:
        shown, top = tissue, float(top_of_tissue)
    black = min(max(background, top - width), float(darkest))
    if top - black < _NARROWEST * (highest - background):  # hardly any contrast at all
        middle = (top + black) / 2
        half = _NARROWEST * (highest - background) / 2
        black, top = max(middle - half, background), middle + half
    if (shown >= top - (top - black) / 510).mean() > _MOST_WHITE:
        top += _MOST_WHITE * (top - black)
    return black, top


def _background_edge(outside: Values, lowest: float) -> float:
    """The upper end of the background's noise; markers and paddles are fewer than half of it."""
    if not outside.size:
        return lowest
    level = np.median(outside)
    deviation = 1.4826 * np.median(np.abs(outside - level))  # of normal noise
    return float(level + 3 * deviation)


def _plateau(bright: Values, inside: Mask, background: float) -> Mask:
    """Implants, metal and paddles inside the breast: connected, and as bright as it gets."""
    top = float(bright[inside].max())
    plateau = inside & (bright >= top - _PLATEAU_DEPTH * (top - background))
    rest = inside & ~plateau
    if plateau.sum() < _PLATEAU_PART * inside.sum() or not rest.any():
        return np.zeros_like(inside)
    halfway = (float(np.median(bright[rest])) + top) / 2
    count, labels = cv2.connectedComponents(
        (plateau | inside & (bright > halfway)).astype(np.uint8)
    )
    kept = np.zeros(count, bool)
    kept[labels[plateau]] = True
    found: Mask = kept[labels]
    return found if (inside & ~found).any() else np.zeros_like(inside)


def _smoothed(values: Values) -> Values:
    return cv2.GaussianBlur(values, (0, 0), _SMOOTHING)
