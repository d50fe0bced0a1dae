"""What is planted in a breast: cancers, and look-alikes of the same size and brightness.

A cancer and its look-alike differ in shape alone. A spiculated mass becomes a smooth node and its
spicules become ligaments elsewhere in the breast; a cluster of microcalcifications becomes as many
specks scattered over the breast.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from rsna_bcd.phantom.anatomy import Projection
from rsna_bcd.phantom.breast import Breast
from rsna_bcd.phantom.edges import soft_edge

Kind = Literal["mass", "calcifications"]
_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


@dataclass(frozen=True)
class Finding:
    """A cancer or its look-alike, placed in the breast.

    Attributes:
        kind: mass or calcifications.
        malignant: a cancer; otherwise its look-alike.
        behind: distance behind the nipple, mm, the same in all views.
        aside: offset from the nipple's axis in views from above and from the side, as a fraction of
            the room there.
        radius: of the mass or of the cluster, mm.
        contrast: brightness added at the centre, display units.
        count: spicules or specks.
        seed: of its shape.
    """

    kind: Kind
    malignant: bool
    behind: float
    aside: tuple[float, float]
    radius: float
    contrast: float
    count: int
    seed: int


def sample_finding(
    kind: Kind, malignant: bool, breast: Breast, contrast: float, rng: np.random.Generator
) -> Finding:
    """Draw a finding; all but `malignant` comes from one and the same distribution."""
    mass = kind == "mass"
    return Finding(
        kind=kind,
        malignant=malignant,
        behind=breast.reach
        * (rng.uniform(0.15, 0.3) if breast.implant else rng.uniform(0.3, 0.65)),
        aside=(rng.uniform(-0.55, 0.55), rng.uniform(-0.3, 0.55)),
        radius=rng.uniform(6.0, 9.0) if mass else rng.uniform(6.0, 9.0),
        contrast=contrast * rng.uniform(0.8, 1.2),
        count=int(rng.integers(12, 20)) if mass else int(rng.integers(12, 22)),
        seed=int(rng.integers(2**32)),
    )


def plant(projection: Projection, finding: Finding) -> tuple[float, float, float]:
    """Add a finding to the projection's tissue.

    Returns:
        Centre x, centre y and radius of what was drawn, in pixels of the projection.
    """
    rng = np.random.default_rng([finding.seed, projection.from_side])
    centre = _centre(projection, finding)
    draw = _draw_mass if finding.kind == "mass" else _draw_calcifications
    added = np.zeros_like(projection.tissue)
    radius = draw(added, projection, finding, centre, rng)
    projection.tissue += added
    return (*centre, radius)


def _centre(projection: Projection, finding: Finding) -> tuple[float, float]:
    """Where the finding lies in this view, pixels."""
    nipple_x, nipple_y = projection.nipple
    x = nipple_x - finding.behind / projection.pixel_mm
    column = np.flatnonzero(projection.depth[:, round(x)])
    aside = finding.aside[int(projection.from_side)]
    room = column[-1] - nipple_y if aside > 0 else nipple_y - column[0]
    return x, nipple_y + aside * min(room, 1.2 * (projection.depth.shape[0] - nipple_y))


def _draw_mass(
    added: np.ndarray,
    projection: Projection,
    finding: Finding,
    centre: tuple[float, float],
    rng: np.random.Generator,
) -> float:
    """Draw a disc with lines that leave it (cancer), or that lie elsewhere (look-alike)."""
    radius = finding.radius / projection.pixel_mm
    y, x = np.indices(added.shape, dtype=np.float32)
    distance = np.hypot(x - centre[0], y - centre[1])
    added += finding.contrast * soft_edge(radius - distance, 0.12 * radius)
    lines = np.zeros(added.shape, np.uint8)
    spots = np.argwhere(projection.depth > 12)
    for _ in range(finding.count):
        angle, length = rng.uniform(0, 2 * np.pi), radius * rng.uniform(1.0, 2.0)
        direction = np.array([np.cos(angle), np.sin(angle)])
        start = np.array(centre) + 0.8 * radius * direction
        if not finding.malignant:
            start = spots[rng.integers(len(spots))][::-1].astype(float)
        _line(lines, start, start + length * direction)
    added += (0.8 * finding.contrast / 255) * cv2.GaussianBlur(lines, (0, 0), 0.7)
    return 2 * radius


def _draw_calcifications(
    added: np.ndarray,
    projection: Projection,
    finding: Finding,
    centre: tuple[float, float],
    rng: np.random.Generator,
) -> float:
    """Draw specks close together (cancer) or all over the breast (look-alike)."""
    radius = finding.radius / projection.pixel_mm
    specks = np.zeros(added.shape, np.uint8)
    spots = np.argwhere(projection.depth > 12)
    for _ in range(finding.count):
        place = np.array(centre) + radius * rng.uniform(-0.7, 0.7, 2)
        if not finding.malignant:
            place = spots[rng.integers(len(spots))][::-1].astype(float)
        size = rng.uniform(0.5, 0.9) / projection.pixel_mm
        at, r = np.round(place * 2**_SHIFT).astype(int), round(size * 2**_SHIFT)
        cv2.circle(specks, (int(at[0]), int(at[1])), r, 255, -1, cv2.LINE_AA, _SHIFT)
    added += (1.3 * finding.contrast / 255) * cv2.GaussianBlur(specks, (0, 0), 0.6)
    return radius


def _line(canvas: np.ndarray, start: np.ndarray, end: np.ndarray) -> None:
    """Draw an anti-aliased line between two (x, y) points."""
    a, b = (np.round(p * 2**_SHIFT).astype(int).tolist() for p in (start, end))
    cv2.line(canvas, a, b, 255, 1, cv2.LINE_AA, _SHIFT)
