"""From brightness to what a machine stores: orientation, markers, noise, bits, window, header."""

from dataclasses import dataclass, field

import cv2
import numpy as np

from rsna_bcd.phantom.anatomy import Projection
from rsna_bcd.phantom.machines import Detector, Machine


@dataclass(frozen=True)
class Exposure:
    """One stored image.

    Attributes:
        pixels: (H, W) uint16, stored values.
        header: DICOM keyword to value, for what differs between images.
        mirrored: whether the chest wall is on the right.
    """

    pixels: np.ndarray
    header: dict[str, object] = field(repr=False)
    mirrored: bool


def choose_detector(machine: Machine, size: float) -> Detector:
    """Take the matrix for a breast of standard score `size`: large breasts, large detectors."""
    # The logistic function stands in for the normal distribution: close enough for a share.
    quantile = 1 / (1 + np.exp(-1.7 * size))
    cumulated = 0.0
    for detector in machine.detectors:
        cumulated += detector.share
        if quantile <= cumulated:
            break
    return detector


def matrix(detector: Detector, pixel_mm: float) -> tuple[int, int]:
    """Rows and columns of the stored image at a pitch of `pixel_mm`, the detector's aspect."""
    rows = round(detector.height_mm / pixel_mm)
    return rows, round(rows * detector.columns / detector.rows)


def expose(
    projection: Projection,
    columns: int,
    machine: Machine,
    laterality: str,
    view: str,
    rng: np.random.Generator,
) -> Exposure:
    """Make the stored image of a projection.

    Args:
        projection: what is on the detector, chest wall on the left.
        columns: of the detector.
        machine: which machine.
        laterality: L or R; left breasts face right unless the machine turns them.
        view: for the marker.
        rng: noise, window and orientation of this image.

    Returns:
        Stored values and the header fields that go with them.
    """
    seen = _brightness(projection, machine, rng)
    display = np.zeros((seen.shape[0], columns), np.float32)
    display[:, : seen.shape[1]] = seen
    mirrored = (laterality == "R") != (rng.random() < machine.turned)
    if mirrored:
        display = np.ascontiguousarray(display[:, ::-1])
    if machine.marker != "none":
        _burn_in(display, f"{laterality} {view}", machine, mirrored)
    display = np.clip(display, 0.0, 1.0)
    outside = display <= 0
    if machine.photometric == "MONOCHROME1":
        display = 1 - display
    pixels, header = _digitise(display, machine, rng)
    highest = 2**machine.bits - 1
    background = 0
    if machine.photometric == "MONOCHROME1":
        background = 3044 + 32 * int(rng.integers(16)) if machine.bits == 16 else highest
    pixels[outside] = background
    header |= {
        "PhotometricInterpretation": machine.photometric,
        "BitsStored": machine.bits,
        "HighBit": machine.bits - 1,
        "ImageLaterality": laterality,
    }
    if machine.padding:
        header["PixelPaddingValue"] = background
    if machine.spacing:
        header["PixelSpacing"] = [round(projection.pixel_mm, 6)] * 2
    return Exposure(np.clip(pixels, 0, highest).astype(np.uint16), header, mirrored)


def _brightness(projection: Projection, machine: Machine, rng: np.random.Generator) -> np.ndarray:
    """Brightness in display units, (H, w) float32: 0 outside the breast, above 0 inside."""
    depth = projection.depth
    # The edge of the compressed breast is round; machines even it out more or less.
    rim = 1 - np.minimum(depth / np.float32(machine.periphery_mm), 1)
    thickness = np.sqrt(1 - rim * rim)
    fat = machine.fat + rng.normal(0, 0.03)
    tissue = (fat + rng.uniform(0.9, 1.1) * projection.tissue) * (0.25 + 0.75 * thickness)
    skin = machine.skin * np.exp(-np.square((depth - 1.2) / 0.9))
    noise = rng.standard_normal(depth.shape, dtype=np.float32)
    noisy = tissue + skin + machine.noise * noise
    bounded = np.maximum(noisy, 0.01)
    bounded = bounded / np.sqrt(np.sqrt(1 + bounded**4))  # the shoulder of the film's curve
    return bounded * (depth > 0)


def _digitise(
    display: np.ndarray, machine: Machine, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, object]]:
    """Invert the machine's window: the stored values that it shows as `display` in [0, 1].

    Returns:
        (H, W) float32 stored values, rounded, and the window's header fields.
    """
    highest = 2**machine.bits - 1
    if machine.window == "full":
        centre, width = float(highest // 2), float(highest + 1)
        return np.rint(display * highest), {"WindowCenter": centre, "WindowWidth": width}
    if machine.window == "narrow":
        if rng.random() < 0.5:
            return np.rint(display * highest), {"WindowCenter": 2048.0, "WindowWidth": 4096.0}
        centre, width = float(rng.integers(1650, 1750)), 1500.0
        stored = centre - 0.5 + (display - 0.5) * (width - 1)  # PS3.3 C.11.2.1.2.1, solved for x
        return np.rint(stored), {"WindowCenter": centre, "WindowWidth": width}
    if machine.window == "absent":
        return np.rint(500 + display * 3000), {}
    if machine.window == "sigmoid":
        centre = float(rng.integers(2200, 3000))
        step = float(rng.choice([24, 30, 36, 42, 48]))
        centres = [centre, centre + step, centre - 1.5 * step]
        widths = [900.0, 750.0, 1050.0]
    else:
        centres = [1802.31, 1802.31, 2020.704, 1583.916]
        widths = [1091.97] * 4
    bounded = np.clip(display, 0.01, 0.99)
    logit = np.log(bounded / (1 - bounded))  # PS3.3 C.11.2.1.3.1, solved for x
    stored = np.rint(centres[0] + widths[0] / 4 * logit)
    return stored, {
        "WindowCenter": centres,
        "WindowWidth": widths,
        "VOILUTFunction": "SIGMOID",
    }


def _burn_in(display: np.ndarray, text: str, machine: Machine, mirrored: bool) -> None:
    """Write the view in the corner away from the chest wall."""
    rows, columns = display.shape
    scale = rows / 1200
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x = round(0.06 * columns) if mirrored else round(0.94 * columns) - width
    y = round(0.06 * rows)
    value = 0.75 if machine.marker == "plain" else 1.0
    cv2.putText(display, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, value, 1, cv2.LINE_AA)
    if machine.marker == "boxed":
        cv2.rectangle(display, (x - 3, y - height - 3), (x + width + 2, y + 3), value, 1)
