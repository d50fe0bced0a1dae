"""A compressed breast as it lies on the detector.

Frame of all functions: the chest wall is the left edge of the image, the nipple points right, and
in views from the side the axilla is at the top. Lengths are millimetres at the detector.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from rsna_bcd.phantom import outline, tissue
from rsna_bcd.phantom.breast import Breast

_FROM_THE_SIDE = ("MLO", "LMO", "ML", "LM")  # the others look from above: CC, AT


@dataclass
class Projection:
    """One view of a breast. Images end a little beyond the nipple: width w, not the detector's W.

    Attributes:
        tissue: (H, w) float32, what is added to the brightness of fat; glands about .5, cancers on
            top. Lesions are planted here.
        depth: (H, w) float32, distance to the skin in mm, 0 outside the breast.
        nipple: x and y in pixels.
        pixel_mm: millimetres a pixel.
        from_side: seen from the side rather than from above.
    """

    tissue: np.ndarray
    depth: np.ndarray
    nipple: tuple[float, float]
    pixel_mm: float
    from_side: bool


def project(
    breast: Breast, view: str, shape: tuple[int, int], pixel_mm: float, rng: np.random.Generator
) -> Projection:
    """Compress a breast and look through it.

    Args:
        breast: whose.
        view: one of the competition's views.
        shape: rows and columns of the image.
        pixel_mm: millimetres a pixel.
        rng: how the patient was positioned this time. The tissue comes from the breast and the
            view, so a repeat shows it again.

    Returns:
        The projection, without lesions.
    """
    own = np.random.default_rng([breast.seed, *view.encode()])
    from_side = view in _FROM_THE_SIDE
    trace = (outline.from_the_side if from_side else outline.from_above)(
        breast, shape, pixel_mm, own, rng
    )
    seen = (shape[0], min(shape[1], int(trace.extent.max()) + 3))
    y, x = np.indices(seen, dtype=np.float32)
    depth = _distance_to_skin(x < trace.extent[:, None], pixel_mm)
    behind = (trace.nipple[0] - x) * np.float32(pixel_mm)
    aside = (y - trace.nipple[1]) * np.float32(pixel_mm)
    added = tissue.glands(breast, behind, aside, depth, own)
    added += tissue.vessels(seen, trace.nipple, pixel_mm, own)
    if breast.implant:
        added = np.maximum(added, tissue.implant(breast, behind, aside))
    if trace.pectoral is not None:
        added = tissue.over_muscle(added, trace.pectoral, x, y, pixel_mm, own)
    return Projection(added, depth, trace.nipple, pixel_mm, from_side)


def _distance_to_skin(inside: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Distance from each pixel to the outside, mm; borders of the image are no skin."""
    margin = 2
    padded = cv2.copyMakeBorder(
        inside.astype(np.uint8), margin, margin, margin, margin, cv2.BORDER_REPLICATE
    )
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5)
    return distance[margin:-margin, margin:-margin] * np.float32(pixel_mm)
