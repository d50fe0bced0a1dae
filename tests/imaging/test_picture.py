"""Pictures of every kind that people keep mammograms in."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from breast_shapes import breast_picture

from rsna_bcd.imaging.mammogram import ImageError
from rsna_bcd.imaging.picture import read_picture

BREAST = np.rint(breast_picture(200, 160) * 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_pictures_are_shown_as_they_are(tmp_path: Path, suffix: str) -> None:
    mammogram = read_picture(write(tmp_path / f"a{suffix}", BREAST))
    np.testing.assert_array_equal(mammogram.pixels, BREAST)
    shown = mammogram.presentation.apply(mammogram.pixels)
    np.testing.assert_allclose(shown, BREAST / 255, atol=1e-6)


def test_a_jpeg_with_three_equal_channels_is_grey(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", cv2.cvtColor(BREAST, cv2.COLOR_GRAY2BGR))
    pixels = read_picture(path).pixels
    assert pixels.shape == BREAST.shape
    assert np.abs(pixels.astype(int) - BREAST).mean() < 1


def test_pictures_of_16_bits_are_shown_by_a_ramp_over_their_tissue(tmp_path: Path) -> None:
    deep = BREAST.astype(np.uint16) * 9 + 100
    deep[:20, -20:] = 60000  # a marker
    mammogram = read_picture(write(tmp_path / "a.png", deep))
    shown = mammogram.presentation.apply(deep)
    breast = BREAST > 0
    inside = breast & (shown > 0.01) & (shown < 0.99)
    assert inside.sum() > 0.9 * breast.sum()
    slope, offset = np.polyfit(deep[inside], shown[inside], 1)
    np.testing.assert_allclose(shown[inside], slope * deep[inside] + offset, atol=1e-3)
    assert shown[breast].max() > 0.85
    assert shown[~breast & (deep < 1000)].max() < 0.02


def test_a_bright_background_is_inverted_and_recorded(tmp_path: Path) -> None:
    mammogram = read_picture(write(tmp_path / "a.png", 255 - BREAST))
    assert mammogram.facts["photometric"] == "MONOCHROME1"
    shown = mammogram.presentation.apply(mammogram.pixels)
    np.testing.assert_allclose(shown, BREAST / 255, atol=1e-6)


def test_what_is_no_mammogram_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ImageError, match="not a picture"):
        read_picture(tmp_path / "text.png")
    colour = np.zeros((20, 20, 3), np.uint8)
    colour[5:, :, 2] = 200
    with pytest.raises(ImageError, match="colour"):
        read_picture(write(tmp_path / "colour.png", colour))
    with pytest.raises(ImageError, match="all pixels have the value 9"):
        read_picture(write(tmp_path / "flat.png", np.full((20, 20), 9, np.uint8)))
    with pytest.raises(ImageError, match="float32"):
        read_picture(write(tmp_path / "float.tif", np.eye(20, dtype=np.float32)))
