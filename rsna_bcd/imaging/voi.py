"""From stored values to [0, 1]: modality transform, VOI transform, inversion, in that order.

DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT) and C.7.6.3.1.2 (photometric interpretation):
MONOCHROME1 inverts the displayed values, so inversion comes after the window. All arithmetic is
in float32.
"""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna_bcd.imaging.breast import breast_mask
from rsna_bcd.imaging.quality import QualityFlag

Values = NDArray[np.float32]
BoolMask = NDArray[np.bool_]


class VOITransform(Protocol):
    """A map from modality values to [0, 1]."""

    def __call__(self, values: Values) -> Values:
        """Map values of any shape."""

    def __str__(self) -> str:
        """The entry in the manifest."""


@dataclass(frozen=True)
class Window:
    """A window (PS3.3 C.11.2.1.2 and C.11.2.1.3); `width` is at least 1 for LINEAR, else above 0.

    LINEAR rises from `center - width / 2` to `center + width / 2 - 1`, LINEAR_EXACT from
    `center - width / 2` to `center + width / 2`. SIGMOID has the slope `1 / width` at `center`.
    """

    function: str  # LINEAR, LINEAR_EXACT or SIGMOID
    center: float
    width: float

    def __call__(self, values: Values) -> Values:
        """Apply the window."""
        if self.function == "SIGMOID":
            exponent = np.float32(-4 / self.width) * (values - np.float32(self.center))
            # exp overflows float32 beyond 88; 1 / (1 + exp(80)) is practically 0.
            return 1 / (1 + np.exp(np.minimum(exponent, np.float32(80))))
        if self.function == "LINEAR_EXACT":
            return _clip((values - np.float32(self.center)) / np.float32(self.width) + 0.5)
        if self.width == 1:  # a step; the general formula divides by zero
            return (values > self.center - 0.5).astype(np.float32)
        return _clip((values - np.float32(self.center - 0.5)) / np.float32(self.width - 1) + 0.5)

    def __str__(self) -> str:
        return f"{self.function} {self.center:g} {self.width:g}"


@dataclass(frozen=True)
class Range:
    """A linear ramp from `low` (black) to `high` (white)."""

    low: float
    high: float

    def __call__(self, values: Values) -> Values:
        """Apply the ramp."""
        return _clip((values - np.float32(self.low)) / np.float32(self.high - self.low))

    def __str__(self) -> str:
        return f"range {self.low:g} {self.high:g}"


@dataclass(frozen=True)
class FittedRamp(Range):
    """A ramp fitted to the tissue of an image without a usable window; see `fit_ramp`.

    Attributes:
        widest: the range of all values. The breast is segmented in this range, because the ramp
            may cut off the skin.
        discarded: the unusable transforms of the header; empty if it has none.
    """

    widest: tuple[float, float] = (0.0, 1.0)
    discarded: str = ""

    def __str__(self) -> str:
        reason = f" (discarded: {self.discarded})" if self.discarded else ""
        return f"fitted{reason} {self.low:g} {self.high:g}"


@dataclass(frozen=True)
class LookupTable:
    """A modality or VOI lookup table (PS3.3 C.11.1.1, C.11.2.1.1).

    Attributes:
        first: the input value of the first entry. Inputs below it take the first entry, inputs
            beyond the last entry take the last.
        entries: (N,), the output values; of a VOI table divided by full scale.
    """

    first: int
    entries: Values

    def __call__(self, values: Values) -> Values:
        """Look values up, rounded to the nearest entry."""
        index = np.clip(np.rint(values - self.first), 0, len(self.entries) - 1)
        return self.entries[index.astype(np.intp)]

    def __str__(self) -> str:
        return f"LUT {self.first} {len(self.entries)}"


@dataclass(frozen=True)
class Rescale:
    """The linear modality transform: `slope * value + intercept` (PS3.3 C.11.1.1.2)."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, values: Values) -> Values:
        """Rescale values."""
        if self.slope == 1 and self.intercept == 0:
            return values
        return values * np.float32(self.slope) + np.float32(self.intercept)


@dataclass(frozen=True)
class DisplayTransform:
    """How stored values are displayed.

    Attributes:
        modality: stored values to modality values.
        voi: modality values to [0, 1].
        inverted: whether dark and bright are exchanged at the end (MONOCHROME1).
        windows: number of windows or lookup tables in the header.
        position: which of them `voi` is, counted from 1.
        flags: quality flags of the transforms.
    """

    modality: Rescale | LookupTable
    voi: VOITransform
    inverted: bool
    windows: int = 1
    position: int = 1
    flags: tuple[QualityFlag, ...] = ()

    def apply(self, stored: NDArray[np.generic]) -> Values:
        """Map stored values of any shape and type to float32 in [0, 1], tissue bright."""
        displayed = self.voi(self.modality(stored.astype(np.float32)))
        return 1 - displayed if self.inverted else displayed

    def __str__(self) -> str:
        several = f" ({self.position} of {self.windows})" if self.windows > 1 else ""
        return f"{self.voi}{several}"


def _clip(values: Values) -> Values:
    return np.clip(values, np.float32(0), np.float32(1))


# Distance of the tissue's quartiles in 255 grey levels: the target, and the least for which an
# implant is kept within the ramp. Windows in real headers reach 38 to 48.
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
_SUBSAMPLED = 256  # pixels of the longer side; above, every second row and column is used
# If less than this part of the frame is as dark as this part of the range of values, there is no
# background but padding.
_BACKGROUND_PART = 0.15
_FAR = 2  # times the range of the other values; in real files padding is at most 1.5 below them


def value_range(values: Values) -> tuple[float, float]:
    """The lowest and highest value without outliers; equal only if all values are."""
    low, high = np.percentile(values, _EXTREMES)
    if low == high:
        low, high = values.min(), values.max()
    return float(low), float(high)


def fit_ramp(
    values: Values, *, inverted: bool, valid: BoolMask | None = None, discarded: str = ""
) -> FittedRamp:
    """Fit a linear ramp to the tissue of an image whose header has no usable window.

    A compressed breast is a plateau: skin is dark and thin, fat and gland lie close together far
    above the background, an implant or metal lies above both. A ramp from minimum to maximum would
    waste its greys on the empty range in between. So the upper end is above a high percentile of
    the tissue. The lower end is so far below that the quartiles of the tissue are 39 grey levels
    apart, but not below the darkest tissue, nor so high that much tissue becomes black. An implant
    is within the ramp if the tissue then keeps 30 levels. Statistics are computed on the smoothed
    overview, since the low band of JPEG 2000 overshoots at edges.

    Args:
        values: (H, W), modality values of the overview, not all equal.
        inverted: whether high values are displayed dark.
        valid: (H, W), False in padding; None without padding.
        discarded: the unusable transforms of the header, for the manifest.
    """
    bright = -values if inverted else values
    valid = np.ones(values.shape, bool) if valid is None else valid
    bright, inside = _replace_padding(bright, valid)
    step = 2 if max(values.shape) > _SUBSAMPLED else 1
    widest = value_range(bright[::step, ::step])  # of noise, smoothing would leave the middle
    bright = cv2.GaussianBlur(bright, (0, 0), _SMOOTHING)[::step, ::step].astype(np.float32)
    inside = inside[::step, ::step]
    low, high = value_range(bright)
    mask = breast_mask(np.clip((bright - low) / (high - low), 0, 1))
    if mask is not None and mask.any():
        brightest = float(bright[mask].max())
        if brightest < low + _DOMINATED * (high - low):  # a marker takes the greys of the skin
            mask = breast_mask(np.clip((bright - low) / (brightest - low), 0, 1))
    if mask is None or not (mask & inside).any():
        black, white = _ramp_ends(bright, inside, low, _TOP_OF_FRAME)
    else:
        black, white = _ramp_ends(bright, mask & inside, low, _TOP)
    if inverted:
        black, white, widest = -white, -black, (-widest[1], -widest[0])
    return FittedRamp(black, white, widest, discarded)


def _ramp_ends(
    bright: Values, inside: BoolMask, background: float, percentile: float
) -> tuple[float, float]:
    """The values that become black and white.

    Args:
        bright: (H, W), tissue brighter than background.
        inside: (H, W), the breast.
        background: the lowest of all values.
        percentile: of the values inside, which becomes almost white.
    """
    breast, tissue = bright[inside], bright[inside & ~_implants(bright, inside, background)]
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


def _implants(bright: Values, inside: BoolMask, background: float) -> BoolMask:
    """Implants, metal and paddles inside the breast: connected, and as bright as it gets."""
    top = float(bright[inside].max())
    plateau = inside & (bright >= top - _PLATEAU_DEPTH * (top - background))
    rest, area = inside & ~plateau, inside.sum()
    if plateau.sum() < _PLATEAU_PART * area or not rest.any():
        return np.zeros_like(inside)
    halfway = (float(np.median(bright[rest])) + top) / 2
    candidates = plateau | inside & (bright > halfway)
    count, labels = cv2.connectedComponents(candidates.astype(np.uint8))
    kept = np.zeros(count, bool)
    kept[labels[plateau]] = True
    with_rim = cv2.dilate(kept[labels].astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    enough = (inside & ~with_rim).sum() >= _LEAST_TISSUE * area
    return with_rim if enough else np.zeros_like(inside)


def _replace_padding(bright: Values, valid: BoolMask) -> tuple[Values, BoolMask]:
    """Turn padding into background; also return where tissue may be.

    Bright padding is replaced, and pixels close to it are no tissue. Dark padding is raised to
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
