"""From brightness to what a machine stores: orientation, markers, noise, bits, window, header."""

from dataclasses import dataclass, field
from typing import Literal

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
    if machine.collimator and rng.random() < 0.5:
        _shade_edge(display, mirrored, rng)
    display = np.clip(display, 0.0, 1.0)
    window = _choose_window(machine, rng)
    inverted = machine.photometric == "MONOCHROME1"
    pixels = _stored(1 - display if inverted else display, window)
    highest = 2**machine.bits - 1
    background = 0
    if inverted:
        # 16-bit machines call for less than the white that they could store.
        background = 3044 + 32 * int(rng.integers(16)) if machine.bits == 16 else highest
    pixels[display <= 0] = background
    header: dict[str, object] = {
        "PhotometricInterpretation": machine.photometric,
        "BitsStored": machine.bits,
        "HighBit": machine.bits - 1,
        "ImageLaterality": laterality,
    }
    if window is not None:
        header["WindowCenter"], header["WindowWidth"] = window.centres, window.widths
        if window.function is not None:
            header["VOILUTFunction"] = window.function
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


@dataclass(frozen=True)
class _Window:
    """What the header says about display; the first centre and width are in force."""

    centres: list[float]
    widths: list[float]
    function: Literal["LINEAR", "SIGMOID"] | None = None  # None: not stated, which means LINEAR


def _choose_window(machine: Machine, rng: np.random.Generator) -> _Window | None:
    """Draw a window as the machine writes them; None where it writes none."""
    if machine.window == "absent":
        return None
    if machine.window == "full":
        return _Window([511.0], [1023.0]) if machine.bits == 10 else _Window([2047.0], [4096.0])
    if machine.window == "narrow":
        if rng.random() < 0.5:
            return _Window([2048.0], [4096.0])
        return _Window([float(rng.integers(1650, 1750))], [1500.0])
    if machine.window == "sigmoid":
        centre, step = float(rng.integers(2200, 3000)), 6.0 * float(rng.integers(4, 9))
        centres = [centre, centre + step, centre - 1.5 * step]
        return _Window(centres, [900.0, 750.0, 1050.0], "SIGMOID")
    if rng.random() < 0.05:
        centres = [2304.0, 2304.0, 2816.0, 2048.0, 1894.4]
        return _Window(centres, [2048.0, 2048.0, 2048.0, 2560.0, 2867.2], "LINEAR")
    return _Window([1802.31, 1802.31, 2020.704, 1583.916], [1091.97] * 4, "SIGMOID")


def _stored(display: np.ndarray, window: _Window | None) -> np.ndarray:
    """Stored values, rounded, that `window` shows as `display` in [0, 1]; (H, W) float32."""
    if window is None:
        return np.rint(500 + 3000 * display)
    centre, width = window.centres[0], window.widths[0]
    if window.function == "SIGMOID":  # PS3.3 C.11.2.1.3.1, solved for x
        bounded = np.clip(display, 0.01, 0.99)
        return np.rint(centre + width / 4 * np.log(bounded / (1 - bounded)))
    # PS3.3 C.11.2.1.2.1, solved for x
    return np.rint(centre - 0.5 + (display - 0.5) * (width - 1))


def _shade_edge(display: np.ndarray, mirrored: bool, rng: np.random.Generator) -> None:
    """Let the collimator's edge show as a faint bar in the air, parallel to the chest wall."""
    columns = display.shape[1]
    start = round(columns * rng.uniform(0.6, 0.7))
    bar = slice(start, start + max(1, columns // 80))
    if mirrored:
        bar = slice(columns - bar.stop, columns - bar.start)
    display[:, bar] = np.maximum(display[:, bar], 0.04)


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
