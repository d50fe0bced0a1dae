"""Bands against curves of scikit-learn, and against resamples one by one."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from rsna_bcd.scoring.bands import precision_band, roc_band
from rsna_bcd.scoring.bootstrap import patient_bootstrap
from rsna_bcd.scoring.decisions import sensitivity


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (rng.uniform(size=300) < 0.3).astype(int)
    scores = np.round(rng.normal(labels, 1.0), 1)  # with ties
    return labels, 1 / (1 + np.exp(-scores)), np.arange(300) // 2


def test_the_curves_are_those_of_scikit_learn(rows: tuple[np.ndarray, ...]) -> None:
    labels, p, patients = rows
    false, true, _ = roc_curve(labels, p, drop_intermediate=False)
    corners = np.unique(false)
    highest = np.array([true[false == x].max() for x in corners])
    band = roc_band(labels, p, patients, n=5, x=corners)
    np.testing.assert_allclose(band.value, highest, atol=1e-12)
    precision, recall, _ = precision_recall_curve(labels, p)
    reached = precision_band(labels, p, patients, n=5)
    for x, value in zip(reached.x[1:], reached.value[1:], strict=True):
        # In scikit-learn's order thresholds ascend: the last that reaches the recall is highest.
        assert value == pytest.approx(precision[np.flatnonzero(recall >= x - 1e-12)[-1]])


def test_the_band_is_of_resampled_patients(rows: tuple[np.ndarray, ...]) -> None:
    labels, p, patients = rows
    threshold = float(np.quantile(p[labels == 0], 0.8))
    called = (p > threshold).astype(int)
    at = float((called[labels == 0] == 1).mean())
    interval = patient_bootstrap(sensitivity, labels, called, patients, n=400)
    band = roc_band(labels, p, patients, n=400, x=np.array([at]))
    assert band.value[0] == pytest.approx(interval.value)
    assert band.low[0] <= interval.value <= band.high[0]
    # At a fixed share of false alarms the threshold moves as well: about as wide, not the same.
    width = band.high[0] - band.low[0]
    assert 0.5 < width / (interval.high - interval.low) < 2


def test_the_same_seed_gives_the_same_band(rows: tuple[np.ndarray, ...]) -> None:
    labels, p, patients = rows
    first, again, other = (roc_band(labels, p, patients, 20, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.low, again.low)
    assert (first.low != other.low).any()


def test_a_perfect_order_has_a_band_without_width() -> None:
    labels = np.repeat([0, 1], 20)
    band = roc_band(labels, labels * 0.5, np.arange(40), n=20)
    assert (band.value == 1).all()
    assert (band.low == 1).all()
    assert (precision_band(labels, labels * 0.5, np.arange(40), n=20).low == 1).all()


def test_one_class_has_no_band() -> None:
    zeros = np.zeros(10)
    with np.errstate(invalid="ignore", divide="ignore"):
        assert np.isnan(roc_band(zeros, np.linspace(0, 1, 10), np.arange(10), n=3).low).all()
