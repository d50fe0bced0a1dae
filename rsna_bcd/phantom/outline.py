"""The outline of a compressed breast: a half ellipse from above, a drop from the side."""

from dataclasses import dataclass

import numpy as np

from rsna_bcd.phantom.breast import Breast


@dataclass(frozen=True)
class Pectoral:
    """The edge of the pectoral muscle, pixels: from (width, 0) at the top to (0, length)."""

    width: float
    length: float


@dataclass(frozen=True)
class Trace:
    """An outline.

    Attributes:
        nipple: x and y, pixels.
        extent: (H,) float32, how far the breast reaches from the chest wall in each row, pixels.
        pectoral: the muscle, where it is in view.
    """

    nipple: tuple[float, float]
    extent: np.ndarray
    pectoral: Pectoral | None


def from_above(
    breast: Breast,
    shape: tuple[int, int],
    pixel_mm: float,
    own: np.random.Generator,
    rng: np.random.Generator,
) -> Trace:
    """Outline of a craniocaudal view.

    Args:
        breast: whose.
        shape: rows and columns of the image.
        pixel_mm: millimetres a pixel.
        own: random numbers that belong to the breast in this view.
        rng: random numbers of this positioning.
    """
    rows, columns = shape
    reach = min(breast.reach, 0.85 * columns * pixel_mm)
    height = rows * pixel_mm
    middle = height * rng.uniform(0.46, 0.54)
    half = min(breast.half_width, 0.44 * height) * own.uniform(0.92, 1.03, 2)
    y = np.arange(rows) * pixel_mm - middle
    extent = reach * _superellipse(y, half, breast.roundness)
    return _finish(extent, y, reach, middle, None, pixel_mm, own)


def from_the_side(
    breast: Breast,
    shape: tuple[int, int],
    pixel_mm: float,
    own: np.random.Generator,
    rng: np.random.Generator,
) -> Trace:
    """Outline of a mediolateral oblique view; arguments as for `from_above`."""
    rows, columns = shape
    reach = min(breast.reach, 0.8 * columns * pixel_mm) * own.uniform(0.95, 1.0)
    height = rows * pixel_mm
    middle = min(height * rng.uniform(0.54, 0.64), height - breast.half_height - 12)
    y = np.arange(rows) * pixel_mm - middle
    axilla = reach * own.uniform(0.4, 0.62)
    # An exponent above 1 runs out flat: the hollow between breast and arm.
    above = np.minimum(-y.clip(max=0) / (middle * own.uniform(0.85, 1.1)), 1)
    upper = axilla + (reach - axilla) * (1 - above ** own.uniform(1.7, 2.1)) ** 1.25
    lower = reach * _superellipse(y, np.full(2, breast.half_height), breast.roundness)
    # Below the fold the abdomen comes in again.
    belly = reach * own.uniform(0.0, 0.12) + 0.25 * (y - breast.half_height)
    lower = np.maximum(lower, np.where(y > 0.9 * breast.half_height, belly, 0))
    extent = np.where(y < 0, upper, lower)
    width = min(axilla * own.uniform(0.7, 1.0), 0.6 * reach)
    length = middle * rng.uniform(0.75, 1.15)
    pectoral = Pectoral(width / pixel_mm, length / pixel_mm)
    return _finish(extent, y, reach, middle, pectoral, pixel_mm, own)


def _superellipse(y: np.ndarray, half: np.ndarray, exponent: float) -> np.ndarray:
    """Height of a superellipse of height 1; `half` is its half-width above and below y = 0."""
    fraction = np.minimum(np.abs(y) / np.where(y < 0, half[0], half[1]), 1)
    return (1 - fraction**exponent) ** (1 / exponent)


def _finish(
    extent: np.ndarray,
    y: np.ndarray,
    reach: float,
    middle: float,
    pectoral: Pectoral | None,
    pixel_mm: float,
    own: np.random.Generator,
) -> Trace:
    """Make the outline uneven, add the nipple, and change from mm to pixels."""
    # Undulations of a few waves over the image; none where the breast ends.
    phase, waves = own.uniform(0, 2 * np.pi, 3), own.uniform(0.003, 0.015, 3)
    uneven = sum(np.sin(2 * np.pi * w * y + p) for w, p in zip(waves, phase, strict=True))
    extent = extent + 0.8 * uneven * np.minimum(extent / 20, 1)
    nipple_x = float(np.interp(0.0, y, extent))
    length, radius = own.uniform(1.0, 7.0), own.uniform(4.0, 6.0)
    extent = extent + length * np.sqrt(np.maximum(1 - (y / radius) ** 2, 0))
    return Trace(
        nipple=(nipple_x / pixel_mm, middle / pixel_mm),
        extent=(np.maximum(extent, 0) / pixel_mm).astype(np.float32),
        pectoral=pectoral,
    )
