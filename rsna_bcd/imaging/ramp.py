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

# Distance of the tissue's quartiles in 255 grey levels: the one that is aimed at, and the least for
# which an implant is kept within the ramp. Windows in real headers reach 38 to 48.
_SPREAD, _LEAST_SPREAD = 39, 30
# The end of the ramp is above this percentile of the tissue by this part of the ramp: the overview
# has less noise, and less sharp detail, than the image.
_TOP, _ABOVE = 99.5, 0.08
_HEADROOM = 0.2  # of the narrowest ramp, above the upper quartile: for the noise of a phantom
_BOTTOM = 0.5  # percentile of the tissue: nothing below it needs greys
_TOP_OF_FRAME = 99.9  # the same of a whole frame, a small part of which may be tissue
_FENCE = 2  # distances of the quartiles below the lower one, from where values may become black
# The ramp is no narrower than this part of the distance between background and tissue, so that the
# noise of a flat phantom is not amplified.
_NARROWEST = 0.15
# Implants, metal and the frames of paddles: at least this part of the breast lies this close to its
# brightest value, as a part of the range. Of tissue, less than 1 % lies within 4 %.
_PLATEAU_PART, _PLATEAU_DEPTH = 0.01, 0.02
_LEAST_TISSUE = 0.15  # part of the breast; in real files, implants leave .42 and more
_EXTREMES = (0.05, 99.95)  # percentiles; the rest are defects and the ink of markers
_DOMINATED = 0.9  # part of the range of values that the breast reaches at least
_SMOOTHING = 1.0  # standard deviation in pixels of the overview
_ENOUGH = 256  # pixels of the longer side; above, every second row and column is looked at
# If less than this part of the frame is as dark as this part of the range of values, there is no
# background but padding.
_BACKGROUND_PART = 0.15
_FAR = 2  # times the range of the other values; in real files padding is at most 1.5 below them


def value_range(values: Values) -> tuple[float, float]:
    """The lowest and highest value without isolated ones; never equal unless all values are."""
    low, high = np.percentile(values, _EXTREMES)
    if low == high:
        low, high = values.min(), values.max()
    return float(low), float(high)


def fit_ramp(
    values: Values, *, inverted: bool, valid: Mask | None = None, discarded: str = ""
) -> FittedRamp:
    """Fit a ramp to the tissue.

    The upper end is above a high percentile of the tissue. The lower end is so far below that the
    quartiles of the tissue are 39 grey levels apart, but not below the darkest tissue, nor so high
    that much tissue becomes black. An implant is within the ramp if the tissue then keeps 30.

    Args:
        values: (H, W), modality values of the overview, not all equal.
        inverted: whether high values are shown dark.
        valid: (H, W), False where there is padding; None where there is none.
        discarded: the transforms of the header that are unusable, for the manifest.
    """
    bright = -values if inverted else values
    valid = np.ones(values.shape, bool) if valid is None else valid
    bright, inside = _without_padding(bright, valid)
    step = 2 if max(values.shape) > _ENOUGH else 1
    widest = value_range(bright[::step, ::step])  # of noise, smoothing would leave the middle
    bright = cv2.GaussianBlur(bright, (0, 0), _SMOOTHING)[::step, ::step].astype(np.float32)
    inside = inside[::step, ::step]
    low, high = value_range(bright)
    found = breast_mask(np.clip((bright - low) / (high - low), 0, 1))
    if found is not None and found.any():
        brightest = float(bright[found].max())
        if brightest < low + _DOMINATED * (high - low):  # a marker takes the greys of the skin
            found = breast_mask(np.clip((bright - low) / (brightest - low), 0, 1))
    if found is None or not (found & inside).any():
        black, white = _limits(bright, inside, low, _TOP_OF_FRAME)
    else:
        black, white = _limits(bright, found & inside, low, _TOP)
    if inverted:
        black, white, widest = -white, -black, (-widest[1], -widest[0])
    return FittedRamp(black, white, widest, discarded)


def _limits(
    bright: Values, inside: Mask, background: float, percentile: float
) -> tuple[float, float]:
    """The values that become black and white.

    Args:
        bright: (H, W), tissue brighter than background.
        inside: (H, W), the breast.
        background: the lowest of all values.
        percentile: of the values inside, which becomes almost white.
    """
    breast, tissue = bright[inside], bright[inside & ~_plateau(bright, inside, background)]
    levels = (_BOTTOM, 25, 75, percentile)
    darkest, lower, upper, top_of_tissue = np.percentile(tissue, levels).tolist()
    spread, highest = upper - lower, float(breast.max())
    narrowest = _NARROWEST * max(upper - background, 0) or _NARROWEST * (highest - background)
    width = max(255 / _SPREAD * spread, narrowest)

    def ends(top: float) -> tuple[float, float]:
        top = max(top, upper + _HEADROOM * narrowest)
        black = min(top - (1 - _ABOVE) * width, lower - _FENCE * spread)
        black = max(black, darkest)
        return black, max(top + _ABOVE / (1 - _ABOVE) * (top - black), black + narrowest)

    black, white = ends(float(np.percentile(breast, percentile)))
    if 255 * spread < _LEAST_SPREAD * (white - black):
        black, white = ends(top_of_tissue)
    return black, white


def _plateau(bright: Values, inside: Mask, background: float) -> Mask:
    """Implants, metal and paddles inside the breast: connected, and as bright as it gets."""
    top = float(bright[inside].max())
    plateau = inside & (bright >= top - _PLATEAU_DEPTH * (top - background))
    rest, area = inside & ~plateau, inside.sum()
    nothing = np.zeros_like(inside)
    if plateau.sum() < _PLATEAU_PART * area or not rest.any():
        return nothing
    halfway = (float(np.median(bright[rest])) + top) / 2
    candidates = plateau | inside & (bright > halfway)
    count, labels = cv2.connectedComponents(candidates.astype(np.uint8))
    kept = np.zeros(count, bool)
    kept[labels[plateau]] = True
    # With its blurred rim.
    found = cv2.dilate(kept[labels].astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return found if (inside & ~found).sum() >= _LEAST_TISSUE * area else nothing


def _without_padding(bright: Values, valid: Mask) -> tuple[Values, Mask]:
    """Padding as a background, and where the tissue may be.

    Bright padding is replaced, and pixels close to it are no tissue. Dark padding is brought up to
    the other values, unless it is the background itself: not far below, and the only dark area.
    """
    if valid.all():
        return bright, valid
    low, high = value_range(bright[valid])
    padding = float(np.median(bright[~valid]))
    if padding > np.median(bright[valid]):
        return np.where(valid, bright, np.float32(low)), valid
    dark = valid & (bright < low + _BACKGROUND_PART * (high - low))
    is_background = dark.sum() < _BACKGROUND_PART * dark.size
    if not is_background or padding < low - _FAR * (high - low):
        bright = np.maximum(bright, np.float32(low))
    return bright, np.ones_like(valid)
