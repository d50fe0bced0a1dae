"""A compressed breast as it lies on the detector.

Frame of all functions: the chest wall is the left edge of the image, the nipple points right, and
in views from the side the axilla is at the top. Lengths are millimetres at the detector. Images are
(H, w) float32; w ends a little beyond the nipple.

Two generators of random numbers keep a repeated view plausible: `own` belongs to the breast in a
view and gives the same tissue each time, `rng` belongs to the positioning.
"""

import functools
from dataclasses import dataclass

import cv2
import numpy as np

DRAWING_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates
FIELD_SIZE = 512  # pixels of a random field: a power of two for the FFT, small enough for the cache

_FROM_THE_SIDE = ("MLO", "LMO", "ML", "LM")  # the others look from above: CC, AT
# Glandular share of the middle of the breast at each BI-RADS density, as a logit.
_GLANDS = {"A": -1.5, "B": -0.6, "C": 0.4, "D": 1.3}
# Stacks of fields: exponent beta of each spectrum and its lowest frequency, cycles per field.
# Fields of a stack are sampled at the same coordinates, which is cheaper.
_STACKS = {
    "radial": ((3.0, 2), (4.5, 9), (4.0, 22)),  # clouds of glands, a coarse and a fine net
    "plain": ((3.0, 2), (2.8, 6)),  # which net prevails; lumps
    "stripes": ((2.6, 12),),  # of muscle
}


@dataclass(frozen=True)
class Breast:
    """Anatomy that all views of a breast share.

    Attributes:
        reach: distance from the chest wall to the nipple, mm.
        half_width: half the width seen from above, mm.
        half_height: distance from the nipple to the inframammary fold seen from the side, mm.
        roundness: exponent of the outline's superellipse; 2 is an ellipse.
        density: BI-RADS density, A to D.
        implant: whether there is an implant behind the tissue.
        seed: of everything finer.
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
    """One view of a breast.

    Attributes:
        tissue: brightness added to that of fat; glands about 0.5, cancers on top. Lesions are
            planted here.
        depth: distance to the skin in mm, 0 outside the breast.
        nipple: x and y in pixels.
        pixel_mm: pixel spacing, mm.
        from_side: seen from the side rather than from above.
    """

    tissue: np.ndarray
    depth: np.ndarray
    nipple: tuple[float, float]
    pixel_mm: float
    from_side: bool


def sample_breast(size: float, density: str, implant: bool, rng: np.random.Generator) -> Breast:
    """Draw a breast; `size` is a standard score shared by both breasts of a patient."""
    size = size + 0.2 * rng.standard_normal()
    reach = float(np.clip(86 + 17 * size, 52, 135))
    return Breast(
        reach=reach,
        half_width=float(np.clip(reach * rng.uniform(0.9, 1.1), 50, 115)),
        half_height=float(np.clip(reach * rng.uniform(0.65, 0.85), 42, 95)),
        roundness=rng.uniform(1.8, 2.4),
        density=density,
        implant=implant,
        seed=int(rng.integers(2**32)),
    )


def project(
    breast: Breast, view: str, shape: tuple[int, int], pixel_mm: float, rng: np.random.Generator
) -> Projection:
    """Draw one of the competition's views; `shape`: rows and columns; `rng`: for the position."""
    own = np.random.default_rng([breast.seed, *view.encode()])
    from_side = view in _FROM_THE_SIDE
    pectoral = None
    if from_side:
        extent, nipple, pectoral = _oblique_outline(breast, shape, pixel_mm, own, rng)
    else:
        extent, nipple = _craniocaudal_outline(breast, shape, pixel_mm, own, rng)
    drawn = (shape[0], min(shape[1], int(extent.max()) + 3))
    y, x = np.indices(drawn, dtype=np.float32)
    depth = _distance_to_skin(x < extent[:, None], pixel_mm)
    behind = (nipple[0] - x) * np.float32(pixel_mm)
    aside = (y - nipple[1]) * np.float32(pixel_mm)
    tissue = _glands(breast, behind, aside, depth, own)
    tissue += _vessels(drawn, nipple, pixel_mm, own)
    if breast.implant:  # a bright smooth body in front of the chest wall
        across = (breast.reach - behind) / (0.58 * breast.reach)
        body = 0.62 * soft_edge(1 - np.hypot(across, aside / (0.62 * breast.half_width)), 0.02)
        tissue = np.maximum(tissue, body)
    if pectoral is not None:
        tissue = _over_muscle(tissue, pectoral, x, y, pixel_mm, own)
    return Projection(tissue, depth, nipple, pixel_mm, from_side)


def soft_edge(distance: np.ndarray, width: float) -> np.ndarray:
    """The logistic function of `distance / width`, the dtype of `distance`.

    Nothing in a projection through a soft body has a sharp edge. tanh saturates where exp
    overflows.
    """
    return 0.5 + 0.5 * np.tanh(distance * (0.5 / width))


def power_law_field(beta: float, lowest: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a periodic field whose power spectrum falls as 1/f^beta, the texture of breast tissue.

    The spectrum of mammograms has beta about 3 (Burgess, Jacobson and Judy, "Human observer
    detection experiments with mammograms and power-law noise", Medical Physics 28, 2001). It is 0
    below the frequency `lowest`, in cycles per field.

    Returns:
        (FIELD_SIZE, FIELD_SIZE) float32, mean 0, standard deviation 1.
    """
    white = np.fft.rfft2(rng.standard_normal((FIELD_SIZE, FIELD_SIZE), dtype=np.float32))
    y = np.fft.fftfreq(FIELD_SIZE, 1 / FIELD_SIZE).astype(np.float32)[:, None]
    x = np.fft.rfftfreq(FIELD_SIZE, 1 / FIELD_SIZE).astype(np.float32)[None, :]
    frequency = np.hypot(x, y)
    amplitude = np.maximum(frequency, 1) ** np.float32(-beta / 2) * (frequency >= lowest)
    field = np.fft.irfft2(white * amplitude, s=(FIELD_SIZE, FIELD_SIZE)).astype(np.float32)
    return (field - field.mean()) / field.std()


@functools.cache
def _fields(name: str) -> np.ndarray:
    """(FIELD_SIZE, FIELD_SIZE, n) float32, read-only: one stack is enough for all images.

    An FFT costs more than the rest of an image; images differ by where they sample the fields.
    """
    rng = np.random.default_rng(list(name.encode()))
    fields = [power_law_field(beta, lowest, rng) for beta, lowest in _STACKS[name]]
    stack = np.stack(fields, axis=-1)
    stack.flags.writeable = False
    return stack


def _sample_fields(
    name: str, x: np.ndarray, y: np.ndarray, scale: float, own: np.random.Generator
) -> np.ndarray:
    """Sample a stack from a random origin, `scale` field pixels per unit; (n, H, w) float32."""
    stack = _fields(name)
    shift = own.uniform(0, FIELD_SIZE, 2).astype(np.float32)
    factor = np.float32(scale)
    at = (x * factor + shift[0], y * factor + shift[1])
    sampled = cv2.remap(stack, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.moveaxis(sampled.reshape(*x.shape, -1), -1, 0)


def _craniocaudal_outline(
    breast: Breast,
    shape: tuple[int, int],
    pixel_mm: float,
    own: np.random.Generator,
    rng: np.random.Generator,
) -> tuple[np.ndarray, tuple[float, float]]:
    """Half an ellipse.

    Returns:
        The extent of the breast from the chest wall in each row, (H,) float32 pixels, and x and y
        of the nipple.
    """
    rows, columns = shape
    reach = min(breast.reach, 0.85 * columns * pixel_mm)
    height = rows * pixel_mm
    middle = height * rng.uniform(0.46, 0.54)
    half = min(breast.half_width, 0.44 * height) * own.uniform(0.92, 1.03, 2)
    y = np.arange(rows) * pixel_mm - middle
    extent = reach * _superellipse(y, half, breast.roundness)
    return _finish_outline(extent, y, middle, pixel_mm, own)


def _oblique_outline(
    breast: Breast,
    shape: tuple[int, int],
    pixel_mm: float,
    own: np.random.Generator,
    rng: np.random.Generator,
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float]]:
    """A drop; returns also the pectoral muscle: its edge goes from (width, 0) to (0, length)."""
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
    pectoral = (width / pixel_mm, length / pixel_mm)
    return (*_finish_outline(extent, y, middle, pixel_mm, own), pectoral)


def _superellipse(y: np.ndarray, half: np.ndarray, exponent: float) -> np.ndarray:
    """Height of a superellipse of height 1; `half` is its half-width above and below y = 0."""
    fraction = np.minimum(np.abs(y) / np.where(y < 0, half[0], half[1]), 1)
    return (1 - fraction**exponent) ** (1 / exponent)


def _finish_outline(
    extent: np.ndarray, y: np.ndarray, middle: float, pixel_mm: float, own: np.random.Generator
) -> tuple[np.ndarray, tuple[float, float]]:
    """Make the outline uneven, add the nipple, and change from mm to pixels."""
    # Undulations of a few waves over the image; none where the breast ends.
    phase, waves = own.uniform(0, 2 * np.pi, 3), own.uniform(0.003, 0.015, 3)
    uneven = sum(np.sin(2 * np.pi * w * y + p) for w, p in zip(waves, phase, strict=True))
    extent = extent + 0.8 * uneven * np.minimum(extent / 20, 1)
    nipple_x = float(np.interp(0.0, y, extent))
    length, radius = own.uniform(1.0, 7.0), own.uniform(4.0, 6.0)
    extent = extent + length * np.sqrt(np.maximum(1 - (y / radius) ** 2, 0))
    pixels = (np.maximum(extent, 0) / pixel_mm).astype(np.float32)
    return pixels, (nipple_x / pixel_mm, middle / pixel_mm)


def _distance_to_skin(inside: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Distance from each pixel to the outside, mm; borders of the image are no skin."""
    padded = np.pad(inside.astype(np.uint8), 2, mode="edge")
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5)
    return distance[2:-2, 2:-2] * np.float32(pixel_mm)


def _glands(
    breast: Breast,
    behind: np.ndarray,
    aside: np.ndarray,
    depth: np.ndarray,
    own: np.random.Generator,
) -> np.ndarray:
    """Fibroglandular tissue: clouds of power-law noise, woven of fibres that run to the nipple.

    Args:
        breast: its density and reach.
        behind: distance behind the nipple, mm.
        aside: offset from the nipple's axis, positive downwards, mm.
        depth: distance to the skin, mm.
        own: for the breast in this view.
    """
    # In these coordinates structures along a ray from the nipple are longer than they are wide.
    radius = np.hypot(behind, aside)
    along = 55 * np.log(radius + 40)
    across = 60 * np.arctan2(aside, behind + 15)
    cloud, coarse, fine = _sample_fields("radial", along, across, 2.2, own)
    patches, lumps = _sample_fields("plain", behind, aside, 3.0, own)

    # Glands fill a cone behind the nipple and leave a layer of fat under the skin.
    size = np.float32(1 / breast.reach)
    cone = 1 - 2.2 * np.hypot(behind * size - own.uniform(0.35, 0.5), aside * size)
    amount = _GLANDS[breast.density] + own.normal(0, 0.2)
    level = cloud + 1.3 * cone + np.float32(amount) + np.minimum(depth / 12 - 1, 0)
    dense = soft_edge(level, 0.4)

    # Two nets of fibres (bright where the noise crosses zero), each strong here and weak there.
    part = soft_edge(patches, 0.5)
    coarse_net = np.exp(-np.square(coarse / np.float32(0.35)))
    fine_net = np.exp(-np.square(fine / np.float32(0.4)))
    woven = coarse_net * part + fine_net * (1 - part)
    return dense * (0.26 + 0.12 * woven + 0.07 * lumps) + 0.07 * woven


def _vessels(
    shape: tuple[int, int], nipple: tuple[float, float], pixel_mm: float, own: np.random.Generator
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
        points = np.round(path * 2**DRAWING_SHIFT).astype(np.int32)
        width = max(1, round(own.uniform(0.6, 1.8) / pixel_mm))
        level = int(own.integers(80, 255))
        cv2.polylines(canvas, [points], False, level, width, cv2.LINE_AA, DRAWING_SHIFT)
    return cv2.GaussianBlur(canvas, (0, 0), 0.4 / pixel_mm).astype(np.float32) * (0.12 / 255)


def _over_muscle(
    tissue: np.ndarray,
    pectoral: tuple[float, float],
    x: np.ndarray,
    y: np.ndarray,
    pixel_mm: float,
    own: np.random.Generator,
) -> np.ndarray:
    """Superimpose the pectoral muscle, a striped triangle at the top of the chest wall."""
    width, length = pectoral
    slope = width / length
    # A bulge of a few mm: the muscle is convex when the patient relaxes it, as she should.
    bulge = own.uniform(-0.02, 0.1) * width
    edge = width - slope * y + bulge * np.sin(np.pi * y / length)
    inside = (edge - x) * np.float32(pixel_mm / np.hypot(1, slope))
    (stripes,) = _sample_fields("stripes", x + slope * y, 0.15 * y, 1.5 * pixel_mm, own)
    muscle = soft_edge(inside, 0.6)
    return tissue * (1 - 0.6 * muscle) + muscle * (own.uniform(0.26, 0.36) + 0.02 * stripes)
