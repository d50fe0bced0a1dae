"""What lies in the breast: glands and ligaments, vessels, muscle, implant.

Images are (H, w) float32 of brightness added to that of fat, in display units. `behind` and
`aside` are (H, w) float32 coordinates in mm: behind the nipple, and from its axis downwards.
"""

import cv2
import numpy as np

from rsna_bcd.phantom.breast import Breast
from rsna_bcd.phantom.edges import soft_edge
from rsna_bcd.phantom.noise import SIZE, fields, look_up
from rsna_bcd.phantom.outline import Pectoral

# How much of the middle of the breast is glandular at each BI-RADS density; 0 is half of it.
_GLANDS = {"A": -1.5, "B": -0.6, "C": 0.4, "D": 1.3}
_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


def glands(
    breast: Breast,
    behind: np.ndarray,
    aside: np.ndarray,
    depth: np.ndarray,
    own: np.random.Generator,
) -> np.ndarray:
    """Fibroglandular tissue: clouds of power-law noise, woven of fibres that run to the nipple."""
    # In these coordinates structures along a ray from the nipple are longer than they are wide.
    radius = np.hypot(behind, aside)
    along = 55 * np.log(radius + 40)
    across = 60 * np.arctan2(aside, behind + 15)
    cloud, coarse, fine = _look(fields("radial"), along, across, 2.2, own)
    patches, lumps = _look(fields("plain"), behind, aside, 3.0, own)

    # Glands fill a cone behind the nipple and leave a layer of fat under the skin.
    size = np.float32(1 / breast.reach)
    cone = 1 - 2.2 * np.hypot(behind * size - own.uniform(0.35, 0.5), aside * size)
    amount = _GLANDS[breast.density] + own.normal(0, 0.2)
    level = cloud + 1.3 * cone + np.float32(amount) + np.minimum(depth / 12 - 1, 0)
    dense = soft_edge(level, 0.4)

    # Two nets of fibres, each strong here and weak there.
    part = soft_edge(patches, 0.5)
    woven = _ridges(coarse, 0.35) * part + _ridges(fine, 0.4) * (1 - part)
    return dense * (0.26 + 0.12 * woven + 0.07 * lumps) + 0.07 * woven


def vessels(
    shape: tuple[int, int],
    nipple: tuple[float, float],
    pixel_mm: float,
    own: np.random.Generator,
) -> np.ndarray:
    """A few winding vessels and long ligaments between chest wall and nipple."""
    canvas = np.zeros(shape, np.uint8)
    for _ in range(own.integers(2, 6)):
        count = 40
        start = np.array([0.0, nipple[1] + own.uniform(-55, 55) / pixel_mm])
        end = np.array(nipple) - own.uniform(8, 30, 2) / pixel_mm * [1, own.choice([-1, 1])]
        fraction = np.linspace(0, 1, count)[:, None]
        path = start + (end - start) * fraction
        bow = own.normal(0, 10) * np.sin(np.pi * fraction[:, 0])
        winding = np.cumsum(own.normal(0, 1.0, count)) * np.sin(np.pi * fraction[:, 0])
        path[:, 1] += (bow + winding) / pixel_mm
        points = np.round(path * 2**_SHIFT).astype(np.int32)
        width = max(1, round(own.uniform(0.6, 1.8) / pixel_mm))
        level = int(own.integers(80, 255))
        cv2.polylines(canvas, [points], False, level, width, cv2.LINE_AA, _SHIFT)
    return cv2.GaussianBlur(canvas, (0, 0), 0.4 / pixel_mm).astype(np.float32) * (0.12 / 255)


def implant(breast: Breast, behind: np.ndarray, aside: np.ndarray) -> np.ndarray:
    """A bright smooth body before the chest wall."""
    x = (breast.reach - behind) / (0.58 * breast.reach)
    y = aside / (0.62 * breast.half_width)
    return 0.62 * soft_edge(1 - np.hypot(x, y), 0.02)


def over_muscle(
    added: np.ndarray,
    pectoral: Pectoral,
    x: np.ndarray,
    y: np.ndarray,
    pixel_mm: float,
    own: np.random.Generator,
) -> np.ndarray:
    """Lay the tissue over the pectoral muscle, a striped triangle at the top of the chest wall."""
    slope = pectoral.width / pectoral.length
    # A bulge of a few mm: the muscle is convex when the patient relaxes it, as she should.
    bulge = own.uniform(-0.02, 0.1) * pectoral.width
    edge = pectoral.width - slope * y + bulge * np.sin(np.pi * y / pectoral.length)
    inside = (edge - x) * np.float32(pixel_mm / np.hypot(1, slope))
    (stripes,) = _look(fields("stripes"), x + slope * y, 0.15 * y, 1.5 * pixel_mm, own)
    muscle = soft_edge(inside, 0.6)
    return added * (1 - 0.6 * muscle) + muscle * (own.uniform(0.26, 0.36) + 0.02 * stripes)


def _look(
    stack: np.ndarray, x: np.ndarray, y: np.ndarray, scale: float, own: np.random.Generator
) -> np.ndarray:
    """Look at n fields from a random place, `scale` of their pixels a unit of `x` and `y`.

    Returns:
        (n, H, w) float32.
    """
    shift = own.uniform(0, SIZE, 2).astype(np.float32)
    factor = np.float32(scale)
    seen = look_up(stack, x * factor + shift[0], y * factor + shift[1])
    return np.moveaxis(seen.reshape(*x.shape, -1), -1, 0)


def _ridges(noise: np.ndarray, width: float) -> np.ndarray:
    """Thin bright lines where the noise crosses zero, in [0, 1]: a net of fibres."""
    return np.exp(-np.square(noise / np.float32(width)))
