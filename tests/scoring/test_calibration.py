"""Calibrations and calibration errors against scikit-learn, formulas and brute force."""

import json

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.calibration import (
    CalibrationMethod,
    Isotonic,
    Temperature,
    calibration_error,
    calibration_from_json,
    calibration_scores,
    calibration_to_json,
    ece,
    fit_calibration,
    reliability_curve,
)
from rsna_bcd.scoring.intervals import bootstrap_interval
from rsna_bcd.scoring.metrics import brier, logit, sigmoid

methods = pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])


def make_case(seed: int = 0, n: int = 600, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn by probabilities whose logits are then doubled."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.5, 1.5, n)
    labels = (rng.random(n) < sigmoid(logits)).astype(int)
    return labels, sigmoid(2 * logits).round(decimals)


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_fit_calibration_minimises_the_log_loss(method: CalibrationMethod) -> None:
    """At the minimum the gradient, with Platt's targets, is 0."""
    labels, p = make_case()
    found = fit_calibration(labels, p, method)
    assert isinstance(found, Temperature)
    positives = labels.sum()
    target = np.where(labels, (positives + 1) / (positives + 2), 1 / (600 - positives + 2))
    residual = found.apply(p) - target
    assert residual @ logit(p) == pytest.approx(0, abs=1e-6)
    assert (found.bias if method == "temperature" else residual.sum()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_fit_calibration_isotonic_equals_scikit_learn(seed: int) -> None:
    labels, p = make_case(seed, n=200 + 50 * seed)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(p, labels)
    ours = fit_calibration(labels, p, "isotonic")
    assert isinstance(ours, Isotonic)
    assert len(ours.x) == len(theirs.X_thresholds_)
    x = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(ours.apply(x), theirs.predict(x), atol=1e-12)


@methods
def test_calibration_is_monotone_improves_brier_and_survives_json(
    method: CalibrationMethod,
) -> None:
    labels, p = make_case()
    found = fit_calibration(labels, p, method)
    calibrated = found.apply(np.linspace(0, 1, 1001))
    assert (np.diff(calibrated) >= 0).all()
    assert 0 <= calibrated[0] < calibrated[-1] <= 1
    assert brier(labels, found.apply(p)) < brier(labels, p)
    text = json.dumps(calibration_to_json(found), allow_nan=False)
    assert calibration_from_json(json.loads(text)) == found  # to the last digit
    assert calibration_from_json(calibration_to_json(None)) is None
    separable = [0.1, 0.2, 0.8, 0.9]
    low, high = fit_calibration([0, 0, 1, 1], separable, method).apply(separable[1:3])
    assert 0 <= low < 0.5 < high <= 1


@pytest.mark.parametrize(
    ("labels", "p", "method", "match"),
    [
        ([0, 0], [0.1, 0.2], "isotonic", "All 2 labels equal 0"),
        ([0, 1], [0.2, 0.2], "platt", "All 2 probabilities equal 0.2"),
        ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9], "platt", "reverse them"),
        ([0, 1], [0.1, np.nan], "isotonic", "finite"),
        # Four of five cancers rank above all others; the fifth lowers their mean logit.
        ([1] * 5 + [0] * 20, [0.6] * 4 + [1e-7] + [0.5] * 20, "platt", "calibration=isotonic"),
    ],
)
def test_fit_calibration_refuses_what_it_cannot_fit(
    labels: list[int], p: list[float], method: CalibrationMethod, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        fit_calibration(labels, p, method)


def test_temperature_cannot_correct_the_prevalence_and_platt_can() -> None:
    """Trained on as many with cancer as without: all too high, in the right order."""
    labels = (np.arange(5000) < 100).astype(int)  # 2 %
    p = sigmoid(np.random.default_rng(0).normal(np.where(labels, 2.0, 0.7), 0.5))
    with pytest.raises(InputError, match=r"0.66\d on average, but 0.020 .*calibration=platt"):
        fit_calibration(labels, p, "temperature")
    calibrated = fit_calibration(labels, p, "platt").apply(p)
    assert calibrated.mean() == pytest.approx(0.02, abs=1e-3)
    assert brier(labels, calibrated) < 0.02 * 0.98  # that of the prevalence


@pytest.mark.parametrize(
    "record",
    [
        {"method": "temperature", "temperature": 0.0, "bias": 0.0},
        {"method": "temperature", "temperature": float("nan"), "bias": 0.0},
        {"method": "isotonic", "x": [0.1, 0.2], "y": [0.5, 0.4]},
        {"method": "isotonic", "x": [0.2, 0.1], "y": [0.4, 0.5]},
        {"method": "isotonic", "x": [], "y": []},
        {"method": "spline"},
    ],
)
def test_calibration_from_json_refuses_damaged_values(record: dict) -> None:
    with pytest.raises(InputError):
        calibration_from_json(record)


@pytest.mark.parametrize(("by", "strategy"), [("count", "quantile"), ("width", "uniform")])
def test_reliability_curve_equals_scikit_learn(by: str, strategy: str) -> None:
    labels, p = make_case(decimals=12)
    found = reliability_curve(labels, p, 10, by)  # type: ignore[arg-type]
    expected = calibration_curve(labels, p, n_bins=10, strategy=strategy)
    np.testing.assert_allclose((found.observed, found.predicted), expected)
    assert found.counts.sum() == len(labels)


def test_ece_by_hand() -> None:
    # Two bins of two: predicted .15, observed .5; predicted .85, observed 1. Mean of .35 and .15.
    assert ece([0, 1, 1, 1], [0.1, 0.2, 0.8, 0.9], bins=2) == pytest.approx(0.25)


def test_calibration_scores_are_brier_by_patient_and_ece() -> None:
    labels, p = make_case()
    patients = np.arange(len(p)) // 2
    assert calibration_scores(labels, p, patients, n=50, seed=3) == {
        "brier": bootstrap_interval(brier, labels, p, patients, n=50, seed=3),
        "ece": calibration_error(labels, p, seed=3),
    }


def test_calibration_error_by_chance_is_that_of_true_probabilities() -> None:
    """With one bin sqrt(2 / pi) times the deviation of the positives; with ten by brute force."""
    rng = np.random.default_rng(0)
    p = rng.beta(1, 20, 4000)
    draws = [(rng.random(len(p)) < p).astype(int) for _ in range(400)]
    expected = np.sqrt(2 / np.pi * np.sum(p * (1 - p))) / len(p)
    assert calibration_error(draws[0], p, bins=1).chance == pytest.approx(expected, rel=0.1)
    errors = [ece(labels, p) for labels in draws]
    found = calibration_error(draws[0], p)
    assert found.value == errors[0]
    assert found.chance == pytest.approx(np.mean(errors), rel=0.05)
    halved = calibration_error(draws[0], p / 2)
    assert halved.value > 3 * halved.chance
