"""From stored values to [0, 1]: modality transform, values of interest, inversion, in that order.

PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT) and C.7.6.3.1.2 (photometric interpretation): what is
inverted is the presentation, so inversion comes last, after the window.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rsna_bcd.imaging.quality import QualityFlag

Values = NDArray[np.float32]


class ValuesOfInterest(Protocol):
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
    """A ramp fitted to the tissue of an image without a usable window; see `imaging.ramp`.

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
class Presentation:
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
    voi: ValuesOfInterest
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
