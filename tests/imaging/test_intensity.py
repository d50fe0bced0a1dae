"""Intensity statistics against scipy-free formulas on the pixels themselves."""

import numpy as np
import pytest

from rsna_bcd.imaging.crops import FEATURES, intensity_statistics


def statistics(pixels: np.ndarray) -> dict[str, float]:
    values = intensity_statistics(pixels)
    assert values.shape == (len(FEATURES),)
    return dict(zip(FEATURES, values, strict=True))


def test_moments_percentiles_and_bins_are_those_of_the_breast() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (60, 40)).astype(np.uint8)
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


def test_gradient_of_a_slope() -> None:
    rows, columns = np.mgrid[:20, :20]
    found = statistics((200 - 4 * rows - 3 * columns).astype(np.uint8))  # descending: no wrapping
    assert found["gradient_mean"] == pytest.approx(5)
    assert found["gradient_energy"] == pytest.approx(25)
    assert found["gradient_99"] == pytest.approx(5)


def test_the_edge_of_the_breast_is_no_gradient_and_background_does_not_count() -> None:
    pixels = np.zeros((40, 40), np.uint8)
    pixels[5:25, :15] = 90
    found = statistics(pixels)
    assert found["gradient_energy"] == 0
    assert (found["mean"], found["sd"], found["skewness"]) == (90, 0, 0)
    shifted = np.roll(pixels, 10, axis=0)
    np.testing.assert_array_equal(intensity_statistics(shifted), intensity_statistics(pixels))


def test_nothing_to_see() -> None:
    found = statistics(np.zeros((8, 8), np.uint8))
    assert found.pop("area") == 0
    assert np.isnan(list(found.values())).all()
