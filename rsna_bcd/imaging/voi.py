"""From stored values to [0, 1]: modality transform, values of interest, inversion, in that order.

PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT) and C.7.6.3.1.2 (photometric interpretation): what is
inverted is the presentation, so inversion comes last, after the window.
"""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from rsna_bcd.imaging.breast import breast_mask
from rsna_bcd.imaging.quality import QualityFlag

Values = NDArray[np.float32]


class VOITransform(Protocol):
    """A map from modality values to [0, 1]."""

    def __call__(self, values: Values) -> Values:
        """Map `values`, of any shape."""

    def __str__(self) -> str:
        """How the manifest records it."""


@dataclass(frozen=True)
class Linear:
    """The function LINEAR (PS3.3 C.11.2.1.2.1), defined for widths of 1 and more."""

    center: float
    width: float

    def __call__(self, values: Values) -> Values:
        """Ramp from `center - width / 2` to `center + width / 2 - 1`."""
        if self.width == 1:  # a step; the general formula divides by zero
            return (values > self.center - 0.5).astype(np.float32)
        return _unit((values - np.float32(self.center - 0.5)) / np.float32(self.width - 1) + 0.5)

    def __str__(self) -> str:
        return f"LINEAR {self.center:g} {self.width:g}"


@dataclass(frozen=True)
class LinearExact:
    """The function LINEAR_EXACT (PS3.3 C.11.2.1.3.2), defined for widths above 0."""

    center: float
    width: float

    def __call__(self, values: Values) -> Values:
        """Ramp from `center - width / 2` to `center + width / 2`."""
        return _unit((values - np.float32(self.center)) / np.float32(self.width) + 0.5)

    def __str__(self) -> str:
        return f"LINEAR_EXACT {self.center:g} {self.width:g}"


@dataclass(frozen=True)
class Sigmoid:
    """The function SIGMOID (PS3.3 C.11.2.1.3.1), defined for widths above 0."""

    center: float
    width: float

    def __call__(self, values: Values) -> Values:
        """Logistic curve with the slope `1 / width` at `center`."""
        exponent = np.float32(-4 / self.width) * (values - np.float32(self.center))
        # exp overflows float32 beyond 88; 1 / (1 + exp(80)) is 0 to all purposes already.
        return 1 / (1 + np.exp(np.minimum(exponent, np.float32(80))))

    def __str__(self) -> str:
        return f"SIGMOID {self.center:g} {self.width:g}"


@dataclass(frozen=True)
class Range:
    """A ramp over a fixed range, for pictures: black to white."""

    low: float
    high: float

    def __call__(self, values: Values) -> Values:
        """Ramp from `low` to `high`."""
        return _unit((values - np.float32(self.low)) / np.float32(self.high - self.low))

    def __str__(self) -> str:
        return f"range {self.low:g} {self.high:g}"


@dataclass(frozen=True)
class FittedRamp(Range):
    """A ramp fitted to the tissue of an image without a usable window; see `fit_ramp`.

    Attributes:
        widest: the range of all values. The breast is searched for in this range, because the
            ramp itself may cut off the skin.
        discarded: the transforms of the header that are unusable; empty where it has none.
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
        first: the input value of the first entry; inputs below it take the first entry, inputs
            beyond the last entry take the last.
        entries: (N,), the output values; as VOI they are already divided by their full scale.
    """

    first: int
    entries: Values

    def __call__(self, values: Values) -> Values:
        """Look `values` up, rounded to the nearest entry."""
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
        """Rescale `values`."""
        if self.slope == 1 and self.intercept == 0:
            return values
        return values * np.float32(self.slope) + np.float32(self.intercept)


@dataclass(frozen=True)
class DisplayTransform:
    """How stored values are shown.

    Attributes:
        modality: stored values to modality values.
        voi: modality values to [0, 1].
        inverted: dark and bright change places at the end (MONOCHROME1).
        windows: how many windows or lookup tables the header has.
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
        shown = self.voi(self.modality(stored.astype(np.float32)))
        return 1 - shown if self.inverted else shown

    def __str__(self) -> str:
        several = f" ({self.position} of {self.windows})" if self.windows > 1 else ""
        return f"{self.voi}{several}"


def _unit(values: Values) -> Values:
    """Clip to [0, 1]."""
    return np.clip(values, np.float32(0), np.float32(1))


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
