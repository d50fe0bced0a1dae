"""Cancers, and look-alikes of the same size and brightness, planted in a breast.

A cancer and its look-alike differ in shape alone. Of a spiculated mass the look-alike is a smooth
node, with lines like the spicules as ligaments elsewhere in the breast; of a cluster of
microcalcifications it is as many specks scattered over the breast. Neither brightness nor area
tells them apart.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from rsna_bcd.phantom.anatomy import DRAWING_SHIFT, Breast, Projection, soft_edge

Kind = Literal["mass", "calcifications"]

# Appearance of invasive cancers, mostly a mass, and of carcinoma in situ, mostly calcifications.
_INVASIVE: list[tuple[Kind, ...]] = [("mass",), ("mass", "calcifications")]
_IN_SITU: list[tuple[Kind, ...]] = [("calcifications",), ("mass", "calcifications")]
_SHARES = (0.75, 0.25)
_CHAIN = 4  # spicules' worth of line in a ligament
_LONGEST = 2.0  # spicule, as a multiple of the mass's radius
_FROM_SKIN = 10.0  # mm between the skin and scattered parts of look-alikes


@dataclass(frozen=True)
class Finding:
    """A cancer or its look-alike, placed in the breast.

    Attributes:
        kind: mass or calcifications.
        malignant: a cancer; otherwise its look-alike.
        behind: distance behind the nipple, mm, the same in all views.
        aside: offset from the nipple's axis, seen from above and from the side, as a part of the
            room there; positive is downwards in the image.
        radius: of the mass or of the cluster, mm.
        contrast: brightness added at the centre of a mass, display units; specks are brighter.
        count: of spicules or specks.
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


@dataclass(frozen=True)
class Circle:
    """A drawn lesion, pixels."""

    x: float
    y: float
    radius: float


def sample_findings(
    breast: Breast,
    malignant: bool,
    invasive: bool,
    radius: float,
    contrast: float,
    rng: np.random.Generator,
) -> list[Finding]:
    """Draw the cancers of a breast, or look-alikes from the very same distribution.

    Args:
        breast: the breast.
        malignant: cancers rather than look-alikes.
        invasive: of the cancer, or of the cancer that look-alikes resemble.
        radius: mean of masses and clusters, mm.
        contrast: mean brightness of a mass, display units.
        rng: used in the same way for both.
    """
    kinds = (_INVASIVE if invasive else _IN_SITU)[rng.choice(2, p=_SHARES)]
    # Behind an implant nothing is seen: findings lie before it.
    near, far = (0.15, 0.3) if breast.implant else (0.3, 0.65)
    behind = breast.reach * rng.uniform(near, far)
    # Seen from the side there is more room above than below, and muscle further up.
    aside = (rng.uniform(-0.6, 0.6), rng.uniform(-0.45, 0.6))
    return [
        Finding(
            kind=kind,
            malignant=malignant,
            behind=behind,
            aside=aside,
            radius=radius * rng.uniform(0.8, 1.2),
            contrast=contrast * rng.uniform(0.75, 1.25),
            count=int(rng.integers(14, 22)),
            seed=int(rng.integers(2**32)),
        )
        for kind in kinds
    ]


def plant(projection: Projection, finding: Finding) -> Circle:
    """Add a finding to the projection's tissue.

    Returns:
        The circle around a cancer with its spicules; of a look-alike, around its node.
    """
    rng = np.random.default_rng([finding.seed, projection.from_side])
    centre = _centre(projection, finding)
    draw = _mass if finding.kind == "mass" else _calcifications
    added, reach = draw(projection, finding, centre, rng)
    projection.tissue += added
    return Circle(float(centre[0]), float(centre[1]), reach)


def _centre(projection: Projection, finding: Finding) -> np.ndarray:
    """Where the finding lies in this view, (x, y) in pixels."""
    nipple_x, nipple_y = projection.nipple
    x = nipple_x - finding.behind / projection.pixel_mm
    inside = np.flatnonzero(projection.depth[:, round(x)] > 0)
    below = inside[inside > nipple_y][-1] - nipple_y
    above = nipple_y - inside[inside <= nipple_y][0]
    aside = finding.aside[int(projection.from_side)]
    return np.array([x, nipple_y + aside * (below if aside > 0 else min(above, 1.3 * below))])


def _mass(
    projection: Projection, finding: Finding, centre: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Draw an oval with lines that leave it (cancer), or that lie elsewhere (look-alike)."""
    shape = projection.tissue.shape
    radius = finding.radius / projection.pixel_mm
    y, x = np.indices(shape, dtype=np.float32)
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.25)
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / stretch
    v = (np.cos(turn) * dy - np.sin(turn) * dx) * stretch
    oval = soft_edge(radius - np.hypot(u, v), 0.12 * radius)

    lines = np.zeros(shape, np.uint8)
    thick = max(1, round(1.4 / projection.pixel_mm))
    lengths = radius * rng.uniform(0.6, _LONGEST, finding.count)
    if finding.malignant:
        starts, ends = _spicules(centre, radius, lengths, rng)
    else:
        starts, ends = _ligaments(projection, lengths, rng)
    for start, end in zip(starts, ends, strict=True):
        middle = (start + end) / 2
        _line(lines, middle, end, thick, 150)  # they fade away
        _line(lines, start, middle, thick, 255)
    blurred = cv2.GaussianBlur(lines, (0, 0), 0.35 / projection.pixel_mm).astype(np.float32)
    added = finding.contrast * np.maximum(oval, blurred * (0.8 / 255))
    return added, radius * (0.9 + _LONGEST)


def _spicules(
    centre: np.ndarray, radius: float, lengths: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw lines that leave a mass in all directions: starts and ends, (n, 2) each, as (x, y)."""
    n = len(lengths)
    angle = 2 * np.pi * (np.arange(n) + rng.uniform(-0.7, 0.7, n)) / n
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    starts = centre + 0.9 * radius * direction
    return starts, starts + lengths[:, None] * direction


def _ligaments(
    projection: Projection, lengths: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw lines of the same lengths in chains anywhere in the breast; as for `_spicules`."""
    n = len(lengths)
    starts, ends = _scattered(projection, n, rng), np.empty((n, 2))
    angles = rng.normal(0, 0.35, n)  # of bends
    angles[::_CHAIN] = rng.uniform(0, 2 * np.pi, len(angles[::_CHAIN]))
    for i in range(n):
        if i % _CHAIN:
            angles[i] += angles[i - 1]
            starts[i] = ends[i - 1]
        ends[i] = starts[i] + lengths[i] * np.array([np.cos(angles[i]), np.sin(angles[i])])
    return starts, ends


def _calcifications(
    projection: Projection, finding: Finding, centre: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Draw specks close together (cancer), or all over the breast (look-alike)."""
    radius = finding.radius / projection.pixel_mm
    specks = np.zeros(projection.tissue.shape, np.uint8)
    around = rng.uniform(0, 2 * np.pi, finding.count)
    out = radius * np.sqrt(rng.uniform(0, 1, finding.count))
    cluster = centre + np.stack([out * np.cos(around), out * np.sin(around)], axis=1)
    scattered = _scattered(projection, finding.count, rng)
    # Larger than life (0.05 to 0.5 mm), as are the pixels.
    sizes = rng.uniform(0.6, 1.0, finding.count) / projection.pixel_mm
    for place, size in zip(cluster if finding.malignant else scattered, sizes, strict=True):
        at = np.round(place * 2**DRAWING_SHIFT).astype(int).tolist()
        cv2.circle(specks, at, round(size * 2**DRAWING_SHIFT), 255, -1, cv2.LINE_AA, DRAWING_SHIFT)
    blurred = cv2.GaussianBlur(specks, (0, 0), 0.3 / projection.pixel_mm).astype(np.float32)
    return blurred * (1.6 * finding.contrast / 255), radius + float(sizes.max())


def _scattered(projection: Projection, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw (count, 2) places (x, y) in the breast, away from the skin and the muscle's top."""
    nipple_y = projection.nipple[1]
    inside = projection.depth > _FROM_SKIN
    inside[: int(0.4 * nipple_y)] = False
    places = np.flatnonzero(inside)
    row, column = np.unravel_index(places[rng.integers(len(places), size=count)], inside.shape)
    return np.stack([column, row], axis=1).astype(float)


def _line(
    canvas: np.ndarray, start: np.ndarray, end: np.ndarray, thickness: int, level: int
) -> None:
    """Draw an anti-aliased line between two (x, y) points."""
    a, b = (np.round(p * 2**DRAWING_SHIFT).astype(int).tolist() for p in (start, end))
    cv2.line(canvas, a, b, level, thickness, cv2.LINE_AA, DRAWING_SHIFT)
