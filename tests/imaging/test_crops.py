"""Prepared crops: reading, and statistics against formulas on the pixels themselves."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import FEATURES, intensity_statistics, read_crop, read_crops

PIXELS = np.arange(48, dtype=np.uint8).reshape(6, 8)


@pytest.mark.parametrize(
    ("name", "pixels"),
    [("crop.png", PIXELS), ("deep.png", PIXELS.astype(np.uint16) * 1000), ("crop.webp", PIXELS)],
)
def test_read_crop_returns_the_pixels(tmp_path: Path, name: str, pixels: np.ndarray) -> None:
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101] if name.endswith("webp") else []
    cv2.imwrite(str(tmp_path / name), pixels, lossless)
    np.testing.assert_array_equal(read_crop(tmp_path / name), pixels)


def test_read_crop_refuses_absent_damaged_and_colour_files(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(cv2.imencode(".png", PIXELS)[1].tobytes()[:20])
    for name in ("absent.png", "cut.png"):
        with pytest.raises(InputError, match=f"{name} is absent or damaged. .* prepare again"):
            read_crop(tmp_path / name)
    cv2.imwrite(str(tmp_path / "colour.png"), np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"shape \(6, 8, 3\)"):
        read_crop(tmp_path / "colour.png")


def test_read_crops_reads_once_until_a_file_changes(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        cv2.imwrite(str(file), np.full((6, 8), i, np.uint8))
    first = read_crops(files)
    for file in files:
        np.testing.assert_array_equal(first[file], read_crop(file))
    assert read_crops(reversed(files)) is first
    with pytest.raises(ValueError, match="read-only"):
        first[files[0]][0, 0] = 1
    cv2.imwrite(str(files[1]), np.full((7, 8), 9, np.uint8))
    assert read_crops(files)[files[1]].max() == 9


def statistics(pixels: np.ndarray) -> dict[str, float]:
    return dict(zip(FEATURES, intensity_statistics(pixels), strict=True))


def test_intensity_statistics_of_the_breast() -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (60, 40)).astype(np.uint8)
    pixels[:, 20:] = 0
    breast = pixels[pixels > 0].astype(float)
    found = statistics(pixels)
    assert found["area"] == 0.5
    assert found["mean"] == pytest.approx(breast.mean())
    assert found["sd"] == pytest.approx(breast.std())
    standard = (breast - breast.mean()) / breast.std()
    assert found["skewness"] == pytest.approx(np.mean(standard**3))
    assert found["kurtosis"] == pytest.approx(np.mean(standard**4))
    for p in (1, 5, 25, 50, 75, 95, 99, 99.9):
        assert found[f"percentile_{p:g}"] == np.percentile(breast, p, method="inverted_cdf")
    bins = [found[f"bin_{i}"] for i in range(16)]
    np.testing.assert_allclose(bins, np.histogram(breast, 16, (0, 256))[0] / len(breast))


def test_intensity_statistics_gradient() -> None:
    rows, columns = np.mgrid[:20, :20]
    found = statistics((200 - 4 * rows - 3 * columns).astype(np.uint8))  # descending: no wrapping
    for name, value in [("mean", 5), ("energy", 25), ("99", 5)]:
        assert found[f"gradient_{name}"] == pytest.approx(value)


def test_intensity_statistics_ignore_background() -> None:
    pixels = np.zeros((40, 40), np.uint8)
    pixels[5:25, :15] = 90
    found = statistics(pixels)
    expected = {"gradient_energy": 0, "mean": 90, "sd": 0, "skewness": 0}
    assert {name: found[name] for name in expected} == expected
    shifted = np.roll(pixels, 10, axis=0)
    np.testing.assert_array_equal(intensity_statistics(shifted), intensity_statistics(pixels))
    empty = statistics(np.zeros((8, 8), np.uint8))
    assert empty.pop("area") == 0
    assert np.isnan(list(empty.values())).all()
