"""A compressed breast as a machine sees it: outline, fat, glands, pectoral muscle, skin, nipple.

Frame of all functions: the chest wall is the left edge of the image, the nipple points right, and
in oblique views the axilla is at the top. Lengths are millimetres at the detector.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from rsna_bcd.phantom.edges import soft_edge
from rsna_bcd.phantom.noise import SIZE, look_up, power_law

# Share of glandular tissue in the middle of the breast at each BI-RADS density.
_GLANDS = {"A": 0.08, "B": 0.3, "C": 0.55, "D": 0.8}
_SEEN_FROM_THE_SIDE = ("MLO", "LMO", "ML", "LM")  # the others look from above: CC, AT


@dataclass(frozen=True)
class Breast:
    """What all views of a breast share.

    Attributes:
        reach: distance from the chest wall to the nipple, mm.
        half_width: half the width in the view from above, mm.
        half_height: distance from the nipple to the inframammary fold in the oblique view, mm.
        roundness: exponent of the outline's superellipse; 2 is an ellipse.
        density: BI-RADS density, A to D.
        implant: whether there is an implant behind the tissue.
        seed: of the tissue's texture.
    """

    reach: float
    half_width: float
    half_height: float
    roundness: float
    density: str
    implant: bool
    seed: int


@dataclass
class Projection:
    """One view of a breast before anything is planted in it.

    Attributes:
        tissue: (H, W) float32, brightness in display units: 0 outside, fat about .3, glands .7.
        mask: (H, W) bool, where the breast is.
        thickness: (H, W) float32 in [0, 1], falls to 0 at the skin.
        nipple: x and y in pixels.
        pixel_mm: millimetres a pixel.
        seen_from_side: oblique view rather than from above.
    """

    tissue: np.ndarray
    mask: np.ndarray
    thickness: np.ndarray
    nipple: tuple[float, float]
    pixel_mm: float
    seen_from_side: bool


def sample_breast(size: float, density: str, implant: bool, rng: np.random.Generator) -> Breast:
    """Draw a breast; `size` is a standard score shared by both breasts of a patient."""
    size = size + 0.25 * rng.standard_normal()
    reach = float(np.clip(88 + 17 * size, 55, 135))
    return Breast(
        reach=reach,
        half_width=float(np.clip(reach * rng.uniform(0.85, 1.05), 50, 115)),
        half_height=float(np.clip(reach * rng.uniform(0.7, 0.9), 45, 100)),
        roundness=rng.uniform(1.9, 2.5),
        density=density,
        implant=implant,
        seed=int(rng.integers(2**32)),
    )


def project(
    breast: Breast, view: str, shape: tuple[int, int], pixel_mm: float, rng: np.random.Generator
) -> Projection:
    """Compress a breast and look through it.

    Args:
        breast: whose.
        view: one of the competition's views; MLO, LMO, ML and LM are from the side.
        shape: rows and columns of the image.
        pixel_mm: millimetres a pixel.
        rng: how the patient was positioned this time; the texture comes from the breast.

    Returns:
        The projection, tissue without lesions or noise.
    """
    texture = np.random.default_rng([breast.seed, *view.encode()])
    from_side = view in _SEEN_FROM_THE_SIDE
    nipple_y, extent = _outline(breast, from_side, shape, pixel_mm, texture, rng)
    nipple = (float(extent[round(nipple_y)]), nipple_y)
    columns = np.arange(shape[1], dtype=np.float32)
    mask = columns[None, :] < extent[:, None]
    depth = _distance_to_skin(mask, pixel_mm)
    thickness = np.sqrt(1 - (1 - np.minimum(depth / 25, 1)) ** 2)
    glands = _glands(breast, nipple, depth, pixel_mm, texture)
    tissue = (0.27 + glands) * thickness
    if view in ("MLO", "LMO"):
        tissue += _pectoral(breast, shape, nipple_y, pixel_mm, texture, rng) * thickness
    tissue *= mask
    return Projection(tissue, mask, thickness, nipple, pixel_mm, from_side)


def _outline(
    breast: Breast,
    from_side: bool,
    shape: tuple[int, int],
    pixel_mm: float,
    texture: np.random.Generator,
    rng: np.random.Generator,
) -> tuple[float, np.ndarray]:
    """Return the nipple's row and how far the breast reaches from the chest wall in each row.

    Returns:
        The row, and (H,) float32 pixels.
    """
    rows, columns = shape
    height = rows * pixel_mm
    reach = min(breast.reach, 0.85 * columns * pixel_mm)
    if from_side:
        middle = min(height * rng.uniform(0.56, 0.64), height - breast.half_height - 8)
        below, above = breast.half_height, middle * texture.uniform(0.75, 0.95)
        axilla, abdomen = reach * texture.uniform(0.45, 0.65), reach * texture.uniform(0.02, 0.1)
    else:
        middle = height * rng.uniform(0.46, 0.54)
        width = min(breast.half_width, 0.45 * height)
        below, above = width * texture.uniform(0.92, 1.03), width * texture.uniform(0.92, 1.03)
        axilla, abdomen = 0.0, 0.0
    y = np.arange(rows, dtype=np.float32) * pixel_mm - middle
    fraction = np.minimum(np.abs(y) / np.where(y < 0, above, below), 1)
    ellipse = (1 - fraction**breast.roundness) ** (1 / breast.roundness)
    # Towards the axilla the outline is hollow, towards the fold it is round.
    hollow = np.cos(np.pi / 2 * fraction) ** 1.3
    floor = np.where(y < 0, axilla, abdomen)
    shape_above = 0.35 * ellipse + 0.65 * hollow if from_side else ellipse
    profile = np.where(y < 0, shape_above, ellipse)
    extent = floor + (reach - floor) * profile
    return middle / pixel_mm, (extent / pixel_mm).astype(np.float32)


def _distance_to_skin(mask: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Distance from each pixel to the outside, mm; image borders are no skin."""
    margin = 2
    padded = cv2.copyMakeBorder(
        mask.astype(np.uint8), margin, margin, margin, margin, cv2.BORDER_REPLICATE
    )
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5)
    return distance[margin:-margin, margin:-margin] * np.float32(pixel_mm)


def _glands(
    breast: Breast,
    nipple: tuple[float, float],
    depth: np.ndarray,
    pixel_mm: float,
    texture: np.random.Generator,
) -> np.ndarray:
    """Brightness that fibroglandular tissue adds, (H, W) float32."""
    y, x = np.indices(depth.shape, dtype=np.float32)
    shift = texture.uniform(0, SIZE, 4).astype(np.float32)
    cloud = look_up(power_law(3.0, 4, 0), x * pixel_mm + shift[0], y * pixel_mm + shift[1])
    behind = (nipple[0] - x) * pixel_mm / breast.reach
    aside = (y - nipple[1]) * pixel_mm / breast.reach
    cone = 1.1 - 2.2 * np.hypot(behind - 0.42, aside)
    amount = _GLANDS[breast.density]
    return 0.45 * soft_edge(cloud + 1.5 * cone + 3 * amount - 2.0, 0.33)


def _pectoral(
    breast: Breast,
    shape: tuple[int, int],
    nipple_y: float,
    pixel_mm: float,
    texture: np.random.Generator,
    rng: np.random.Generator,
) -> np.ndarray:
    """Brightness that the pectoral muscle adds, (H, W) float32: a triangle at the top left."""
    width = breast.reach * texture.uniform(0.35, 0.55) / pixel_mm
    length = nipple_y * rng.uniform(0.8, 1.1)
    y, x = np.indices(shape, dtype=np.float32)
    inside = (width * (1 - y / length) - x) * pixel_mm  # mm from the edge, positive inside
    return 0.28 * soft_edge(inside, 0.8)
