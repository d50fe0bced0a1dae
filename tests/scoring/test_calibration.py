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

METHODS: tuple[CalibrationMethod, ...] = ("temperature", "platt", "isotonic")


def make_case(
    seed: int = 0, n: int = 600, slope: float = 2.0, decimals: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn by probabilities whose logits are then too large by `slope`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.5, 1.5, n)
    labels = (rng.random(n) < sigmoid(logits)).astype(int)
    return labels, sigmoid(slope * logits).round(decimals)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_temperature_and_platt_minimise_the_loss(seed: int, method: CalibrationMethod) -> None:
    """At the minimum the gradient of the log-loss with Platt's targets is 0."""
    labels, p = make_case(seed)
    found = fit_calibration(labels, p, method)
    assert isinstance(found, Temperature)
    positives = labels.sum()
    negative = 1 / (len(labels) - positives + 2)
    target = np.where(labels == 1, (positives + 1) / (positives + 2), negative)
    residual = found.apply(p) - target
    assert residual @ logit(p) == pytest.approx(0, abs=1e-6)
    if method == "platt":
        assert residual.sum() == pytest.approx(0, abs=1e-6)
    else:
        assert found.bias == 0


def test_temperature_recovers_a_known_one() -> None:
    found = fit_calibration(*make_case(n=20000, slope=2.0, decimals=12), "temperature")
    assert isinstance(found, Temperature)
    assert found.temperature == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_isotonic_equals_scikit_learn(seed: int) -> None:
    labels, p = make_case(seed, n=200 + 50 * seed)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(p, labels)
    x = np.linspace(0, 1, 1001)
    ours = fit_calibration(labels, p, "isotonic")
    np.testing.assert_allclose(ours.apply(x), theirs.predict(x), atol=1e-12)
    assert isinstance(ours, Isotonic)
    assert len(ours.x) == len(theirs.X_thresholds_)


@pytest.mark.parametrize("method", METHODS)
def test_calibration_is_monotone_improves_brier_and_survives_json(
    method: CalibrationMethod,
) -> None:
    labels, p = make_case()
    found = fit_calibration(labels, p, method)
    calibrated = found.apply(np.linspace(0, 1, 1001))
    assert (np.diff(calibrated) >= 0).all()
    assert calibrated.min() >= 0
    assert calibrated.max() <= 1
    assert brier(labels, found.apply(p)) < brier(labels, p)
    text = json.dumps(calibration_to_json(found), allow_nan=False)
    assert calibration_from_json(json.loads(text)) == found  # to the last digit
    assert calibration_from_json(calibration_to_json(None)) is None


@pytest.mark.parametrize("method", METHODS)
def test_calibration_of_separable_rows_is_finite(method: CalibrationMethod) -> None:
    p = [0.1, 0.2, 0.8, 0.9]
    calibrated = fit_calibration([0, 0, 1, 1], p, method).apply(p)
    assert np.isfinite(calibrated).all()
    assert calibrated[1] < 0.5 < calibrated[2]


@pytest.mark.parametrize(
    ("labels", "p", "method", "match"),
    [
        ([0, 0], [0.1, 0.2], "isotonic", "All 2 labels equal 0"),
        ([0, 1], [0.2, 0.2], "platt", "All 2 probabilities equal 0.2"),
        ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9], "platt", "reverse them"),
        ([0, 1], [0.1, np.nan], "isotonic", "finite"),
        ([0, 1], [0.1, 0.2], "spline", "not 'spline'"),
        # Four of five cancers rank above all others; the fifth lowers their mean logit.
        ([1] * 5 + [0] * 20, [0.6] * 4 + [1e-7] + [0.5] * 20, "platt", "calibration=isotonic"),
    ],
)
def test_calibration_refuses_what_it_cannot_fit(
    labels: list[int], p: list[float], method: CalibrationMethod, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        fit_calibration(labels, p, method)


def test_temperature_cannot_correct_the_prevalence_and_platt_can() -> None:
    """Trained on as many with cancer as without: all too high, in the right order."""
    rng = np.random.default_rng(0)
    labels = (np.arange(5000) < 100).astype(int)  # 2 %
    p = sigmoid(rng.normal(np.where(labels == 1, 2.0, 0.7), 0.5))
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


def test_isotonic_is_constant_outside_of_its_knots() -> None:
    np.testing.assert_allclose(Isotonic((0.2, 0.4), (0.1, 0.3)).apply([0, 0.3, 1]), [0.1, 0.2, 0.3])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("by", "strategy"), [("count", "quantile"), ("width", "uniform")])
def test_reliability_curve_equals_scikit_learn(seed: int, by: str, strategy: str) -> None:
    labels, p = make_case(seed)
    p = (p + np.random.default_rng(seed).uniform(0, 1e-6, len(p))).clip(0, 1)  # not on an edge
    found = reliability_curve(labels, p, 10, by)  # type: ignore[arg-type]
    observed, predicted = calibration_curve(labels, p, n_bins=10, strategy=strategy)
    np.testing.assert_allclose(found.observed, observed)
    np.testing.assert_allclose(found.predicted, predicted)
    assert found.counts.sum() == len(labels)


def test_ece_by_hand() -> None:
    # Two bins of two: predicted .15, observed .5; predicted .85, observed 1. Mean of .35 and .15.
    assert ece([0, 1, 1, 1], [0.1, 0.2, 0.8, 0.9], bins=2) == pytest.approx(0.25)


def test_calibration_reduces_the_error() -> None:
    labels, p = make_case(1, n=4000, slope=3.0, decimals=12)
    fitted = fit_calibration(labels[::2], p[::2], "temperature")
    assert ece(labels[1::2], fitted.apply(p[1::2])) < 0.03 < 0.08 < ece(labels[1::2], p[1::2])


def test_calibration_scores_are_brier_by_patient_and_ece() -> None:
    labels, p = make_case()
    patients = np.arange(len(p)) // 2
    scores = calibration_scores(labels, p, patients, n=50, seed=3)
    assert scores["brier"] == bootstrap_interval(brier, labels, p, patients, n=50, seed=3)
    assert scores["ece"] == calibration_error(labels, p, seed=3)


def test_chance_level_is_the_error_of_true_probabilities() -> None:
    """With one bin sqrt(2 / pi) times the deviation of the positives; with ten by brute force."""
    rng = np.random.default_rng(0)
    p = rng.beta(1, 20, 4000)
    draws = [(rng.random(len(p)) < p).astype(int) for _ in range(400)]
    expected = np.sqrt(2 / np.pi * np.sum(p * (1 - p))) / len(p)
    assert calibration_error(draws[0], p, bins=1).chance == pytest.approx(expected, rel=0.1)
    errors = np.array([ece(labels, p) for labels in draws])
    found = calibration_error(draws[0], p)
    assert found.value == errors[0]
    assert found.chance == pytest.approx(errors.mean(), rel=0.05)
    assert abs(found.value - found.chance) < 4 * errors.std()
    assert found == calibration_error(draws[0], p)  # seeded
    halved = calibration_error(draws[0], p / 2)
    assert halved.value > 3 * halved.chance
