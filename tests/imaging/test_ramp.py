"""The ramp of images without a window: the tissue's contrast, whatever else is in the image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from breast_shapes import breast_picture
from dicom_files import write_dicom
from numpy.typing import NDArray

from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.imaging.quality import QualityFlag
from rsna_bcd.imaging.voi import FittedRamp

HEIGHT, WIDTH = 601, 477  # sizes that codecs round up
BREAST = breast_picture(HEIGHT, WIDTH, reach=0.6, half_height=0.42) > 0
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
DISC = BREAST & ((ROWS - 300) ** 2 + (COLUMNS - 90) ** 2 < 100**2)
EDGE = (ROWS < 40) | (COLUMNS > 430)


def plateau(background: float = 300, low: float = 1500, high: float = 2500) -> NDArray[np.float32]:
    """A compressed breast: a plateau of structures of two sizes, far above the background."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (HEIGHT, WIDTH)).astype(np.float32)
    texture = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (2, 8))
    tissue = (low + high) / 2 + (high - low) / 8 * texture
    values = np.where(BREAST, np.clip(tissue, low, high), background)
    return (values + rng.normal(0, (high - low) / 400, values.shape)).astype(np.float32)


def stored(values: NDArray, dtype: Any = np.uint16, most: int = 4095) -> NDArray:
    """Whole numbers."""
    low = 0 if np.dtype(dtype).kind == "u" else -most - 1
    return np.clip(np.rint(values), low, most).astype(dtype)


def replaced(values: NDArray, where: NDArray, value: float) -> NDArray:
    return np.where(where, value, values)


MONOCHROME1 = {"PhotometricInterpretation": "MONOCHROME1"}
NOTHING = np.zeros_like(BREAST)
MARKER = (ROWS > 20) & (ROWS < 60) & (COLUMNS > 380) & (COLUMNS < 420)
BORDER = (ROWS < 12) | (ROWS >= HEIGHT - 12) | (COLUMNS >= WIDTH - 12)
DEVICE = (abs(ROWS - 150) < 25) & (abs(COLUMNS - 40) < 25)
# Name: stored values, bits, elements, pixels that are neither breast nor background.
KINDS: dict[str, Callable[[], tuple[NDArray, int, dict[str, Any], NDArray]]] = {
    "plain": lambda: (stored(plateau()), 12, {}, NOTHING),
    "marker": lambda: (stored(replaced(plateau(), MARKER, 4095)), 12, {}, MARKER),
    "8 bits": lambda: (stored(plateau(0, 90, 150), np.uint8, 255), 8, {}, NOTHING),
    "few levels": lambda: (stored(plateau(0, 60, 100)), 12, {}, NOTHING),
    "signed": lambda: (stored(plateau() - 1700, np.int16, 2047), 12, {}, NOTHING),
    "negative slope": lambda: (
        stored(4095 - plateau()), 12, {"RescaleSlope": -1, "RescaleIntercept": 4095}, NOTHING,
    ),
    "MONOCHROME1": lambda: (stored(4095 - plateau()), 12, MONOCHROME1, NOTHING),
    "INVERSE": lambda: (
        stored(4095 - plateau()), 12, {"PresentationLUTShape": "INVERSE"}, NOTHING,
    ),
    "background is not the minimum": lambda: (
        stored(replaced(plateau(), ROWS > 580, 0)), 12, {}, ROWS > 580,
    ),
    "film with a bright border": lambda: (
        stored(replaced(plateau(), BORDER, 4095)), 12, {}, BORDER,
    ),
    "implant": lambda: (stored(replaced(plateau(), DISC, 4095)), 12, {}, DISC),
    "implant in a breast without contrast": lambda: (
        stored(replaced(plateau(300, 1500, 1800), DISC, 4095)), 12, {}, DISC,
    ),
    "pacemaker": lambda: (stored(replaced(plateau(), DEVICE, 16000), most=16383), 14, {}, DEVICE),
    "padding below": lambda: (
        stored(replaced(plateau(), EDGE, 0)), 12, {"PixelPaddingValue": 0}, EDGE,
    ),
    "padding far below": lambda: (
        stored(replaced(plateau() - 1000, EDGE, -9000), np.int16, 32767), 16,
        {"PixelPaddingValue": -9000}, EDGE,
    ),
    "padding above": lambda: (
        stored(replaced(plateau(), EDGE, 4095)), 12, {"PixelPaddingValue": 4095}, EDGE,
    ),
    "a range of padding": lambda: (
        stored(replaced(plateau(), EDGE, 3900 + ROWS % 100)), 12,
        {"PixelPaddingValue": 3900, "PixelPaddingRangeLimit": 4095}, EDGE,
    ),
    "a range of padding, downwards": lambda: (
        stored(replaced(plateau(), EDGE, 3900 + ROWS % 100)), 12,
        {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 3900}, EDGE,
    ),
    "padding of MONOCHROME1": lambda: (
        stored(replaced(4095 - plateau(), EDGE, 0)), 12, {"PixelPaddingValue": 0, **MONOCHROME1},
        EDGE,
    ),
    "padding that occurs in the tissue": lambda: (
        stored(plateau()), 12, {"PixelPaddingValue": 2000}, NOTHING,
    ),
    "padding that would be everything": lambda: (
        stored(plateau()), 12, {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}, NOTHING,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_tissue_has_its_contrast_in_every_transfer_syntax(tmp_path: Path, kind: str) -> None:
    pixels, bits, elements, other = KINDS[kind]()
    ramps = []
    for syntax in ("raw", "jpeg2000"):
        path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, syntax=syntax, **elements)
        mammogram = read_dicom(path)
        assert QualityFlag.NO_WINDOW in mammogram.flags
        ramp = mammogram.display.voi
        assert isinstance(ramp, FittedRamp)
        ramps.append(ramp)
        shown = mammogram.display.apply(mammogram.pixels) * 255
        tissue = shown[BREAST & ~other]
        assert np.ptp(np.percentile(tissue, (25, 75))) >= 32
        assert (tissue > 254.5).mean() <= 0.02
        assert (tissue < 0.5).mean() <= 0.06
        assert np.median(shown[~BREAST & ~other]) < 5
        if "PixelPaddingValue" in elements:
            assert shown[other].max(initial=0) < 5
    raw, low_band = ramps
    tolerance = max(0.01 * (raw.high - raw.low), 0.5)  # values are whole numbers
    assert low_band.low == pytest.approx(raw.low, abs=tolerance)
    assert low_band.high == pytest.approx(raw.high, abs=tolerance)


@pytest.mark.parametrize("kind", ["implant", "pacemaker", "marker", "film with a bright border"])
def test_what_is_no_tissue_does_not_move_the_ramp(tmp_path: Path, kind: str) -> None:
    ramps = []
    for name in ("plain", kind):
        pixels, bits, elements, _ = KINDS[name]()
        path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits, **elements)
        voi = read_dicom(path).display.voi
        assert isinstance(voi, FittedRamp)
        ramps.append(voi)
    plain, other = ramps
    tolerance = 0.1 * (plain.high - plain.low)
    assert other.low == pytest.approx(plain.low, abs=tolerance)
    assert other.high == pytest.approx(plain.high, abs=tolerance)


def test_the_noise_of_a_flat_phantom_is_not_amplified(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 12, BREAST.shape)
    pixels = stored(np.where(BREAST, 2000 + noise, 0))
    shown = read_and_show(write_dicom(tmp_path / "a.dcm", pixels, bits=12))
    assert shown[BREAST].std() < 0.06
    assert (shown[BREAST] > 0.998).mean() <= 0.02


def test_two_levels_stay_two_levels(tmp_path: Path) -> None:
    shown = read_and_show(write_dicom(tmp_path / "a.dcm", stored(BREAST * 100.0), bits=12))
    assert shown[~BREAST].max() < 0.02
    assert 0.5 < shown[BREAST].min() <= shown[BREAST].max() < 0.998


def test_a_breast_that_fills_the_frame_is_shown(tmp_path: Path) -> None:
    values = plateau()[180:420, 20:200]
    shown = read_and_show(write_dicom(tmp_path / "a.dcm", stored(values), bits=12))
    assert np.ptp(np.percentile(shown, (25, 75))) * 255 > 35
    assert (shown > 0.998).mean() <= 0.02


def read_and_show(path: Path) -> NDArray:
    mammogram = read_dicom(path)
    return mammogram.display.apply(mammogram.pixels)


@pytest.mark.parametrize("syntax", ["raw", "jpeg2000"])
@pytest.mark.parametrize("value", [0, 4095])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
def test_padding_is_black_under_a_window(
    tmp_path: Path, syntax: str, value: int, photometric: str, function: str
) -> None:
    upright = plateau()
    values = 4095 - upright if photometric == "MONOCHROME1" else upright
    elements: dict[str, Any] = {
        "PixelPaddingValue": value, "PhotometricInterpretation": photometric,
        "WindowCenter": 2048, "WindowWidth": 1500, "VOILUTFunction": function,
    }  # fmt: skip
    padded = stored(replaced(values, EDGE, value))
    path = write_dicom(tmp_path / "a.dcm", padded, bits=12, syntax=syntax, **elements)
    mammogram = read_dicom(path)
    assert mammogram.flags == ()
    shown = mammogram.display.apply(mammogram.pixels)
    assert shown[EDGE].max() < 0.02
    inside = ~EDGE
    del elements["PixelPaddingValue"]
    plain = read_and_show(write_dicom(tmp_path / "b.dcm", padded, bits=12, **elements))
    np.testing.assert_array_equal(shown[inside], plain[inside])
    overview = mammogram.preview()
    edge = cv2.resize(EDGE.astype(np.uint8), overview.shape[::-1], interpolation=cv2.INTER_AREA)
    assert overview[edge == 1].max() < 0.02
