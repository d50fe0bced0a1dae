"""Calibrations and their scores against scikit-learn, and what they must never do."""

import json

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.bootstrap import patient_bootstrap
from rsna_bcd.scoring.calibration import (
    Isotonic,
    Method,
    Temperature,
    brier,
    calibration_from_json,
    calibration_to_json,
    ece,
    fit_calibration,
    reliability,
)
from rsna_bcd.scoring.calibration_intervals import calibration_bootstraps, calibration_error

METHODS: tuple[Method, ...] = ("temperature", "platt", "isotonic")


def a_case(
    seed: int = 0, n: int = 600, slope: float = 2.0, decimals: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn by probabilities whose logits are then too large by `slope`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.5, 1.5, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(int)
    return labels, (1 / (1 + np.exp(-slope * logits))).round(decimals)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_temperature_and_platt_equal_a_logistic_regression(seed: int, method: Method) -> None:
    labels, p = a_case(seed)
    found = fit_calibration(labels, p, method)
    positives = labels.sum()
    target = np.where(
        labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2)
    )
    p = p.clip(1e-7, 1 - 1e-7)
    logits = np.log(p / (1 - p))[:, None]
    theirs = LogisticRegression(C=np.inf, fit_intercept=method == "platt", tol=1e-10)
    theirs.fit(  # a target of .9 is .9 of a positive row and .1 of a negative one
        np.concatenate([logits, logits]),
        np.repeat([1, 0], len(p)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    assert isinstance(found, Temperature)
    ours = 1 / found.temperature, found.bias
    np.testing.assert_allclose(
        ours, [theirs.coef_.item(), np.sum(theirs.intercept_)], rtol=1e-5, atol=1e-6
    )


def test_a_known_temperature_is_found() -> None:
    labels, p = a_case(n=20000, slope=2.0, decimals=12)
    found = fit_calibration(labels, p, "temperature")
    assert isinstance(found, Temperature)
    assert found.temperature == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("seed", range(10))
def test_isotonic_equals_scikit_learn(seed: int) -> None:
    labels, p = a_case(seed, n=200 + 50 * seed)
    ours = fit_calibration(labels, p, "isotonic")
    theirs = IsotonicRegression(out_of_bounds="clip").fit(p, labels)
    anywhere = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(ours.apply(anywhere), theirs.predict(anywhere), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_is_kept_and_the_score_does_not_get_worse(method: Method) -> None:
    labels, p = a_case()
    found = fit_calibration(labels, p, method)
    anywhere = np.linspace(0, 1, 1001)
    assert (np.diff(found.apply(anywhere)) >= 0).all()
    assert found.apply(anywhere).min() >= 0
    assert found.apply(anywhere).max() <= 1
    assert brier(labels, found.apply(p)) < brier(labels, p)


@pytest.mark.parametrize("method", METHODS)
def test_there_and_back_as_json(method: Method) -> None:
    labels, p = a_case()
    found = fit_calibration(labels, p, method)
    text = json.dumps(calibration_to_json(found), allow_nan=False)
    back = calibration_from_json(json.loads(text))
    assert back == found
    np.testing.assert_array_equal(back.apply(p), found.apply(p))  # to the last digit
    assert calibration_from_json(calibration_to_json(None)) is None


@pytest.mark.parametrize("method", METHODS)
def test_separable_rows_have_a_finite_fit(method: Method) -> None:
    found = fit_calibration([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], method)
    calibrated = found.apply([0.1, 0.2, 0.8, 0.9])
    assert np.isfinite(calibrated).all()
    assert calibrated[1] < 0.5 < calibrated[2]


@pytest.mark.parametrize(
    ("labels", "probabilities", "method", "message"),
    [
        ([0, 0], [0.1, 0.2], "isotonic", "All 2 labels equal 0"),
        ([0, 1], [0.2, 0.2], "platt", "All 2 probabilities equal 0.2"),
        ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9], "platt", "turn them round"),
        ([0, 1], [0.1, np.nan], "isotonic", "finite"),
        ([0, 1], [0.1, 0.2], "spline", "not 'spline'"),
    ],
)
def test_nothing_to_calibrate_by(
    labels: list[int], probabilities: list[float], method: Method, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit_calibration(labels, probabilities, method)


def test_a_temperature_does_not_mend_the_prevalence_and_platt_does() -> None:
    """Trained on as many with cancer as without: all too high, though in the right order."""
    rng = np.random.default_rng(0)
    labels = (np.arange(5000) < 100).astype(int)  # 2 %
    p = 1 / (1 + np.exp(-rng.normal(np.where(labels == 1, 2.0, 0.7), 0.5)))
    with pytest.raises(InputError, match=r"0.66\d on average, but 0.020 .*calibration=platt"):
        fit_calibration(labels, p, "temperature")
    calibrated = fit_calibration(labels, p, "platt").apply(p)
    assert calibrated.mean() == pytest.approx(0.02, abs=1e-3)
    assert brier(labels, calibrated) < 0.02 * 0.98  # better than to say the prevalence


def test_an_order_that_no_straight_line_follows_is_said_to_be_that() -> None:
    # Four of five with cancer rank above all others; the fifth is so low that the mean is, too.
    labels = np.array([1, 1, 1, 1, 1] + [0] * 20)
    p = np.array([0.6, 0.6, 0.6, 0.6, 1e-7] + [0.5] * 20)
    with pytest.raises(InputError, match="rank higher than the others.*calibration=isotonic"):
        fit_calibration(labels, p, "platt")
    assert fit_calibration(labels, p, "isotonic").apply([0.6]).tolist() == [1.0]


def test_damaged_values_are_refused() -> None:
    for record in (
        {"method": "temperature", "temperature": 0.0, "bias": 0.0},
        {"method": "temperature", "temperature": float("nan"), "bias": 0.0},
        {"method": "isotonic", "x": [0.1, 0.2], "y": [0.5, 0.4]},
        {"method": "isotonic", "x": [0.2, 0.1], "y": [0.4, 0.5]},
        {"method": "isotonic", "x": [], "y": []},
        {"method": "spline"},
    ):
        with pytest.raises(InputError):
            calibration_from_json(record)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("by", "strategy"), [("count", "quantile"), ("width", "uniform")])
def test_reliability_equals_scikit_learn(seed: int, by: str, strategy: str) -> None:
    labels, p = a_case(seed)
    p = p + np.random.default_rng(seed).uniform(0, 1e-6, len(p))  # apart from scikit-learn's edges
    found = reliability(labels, p.clip(0, 1), 10, by)  # type: ignore[arg-type]
    observed, predicted = calibration_curve(labels, p.clip(0, 1), n_bins=10, strategy=strategy)
    np.testing.assert_allclose(found.observed, observed)
    np.testing.assert_allclose(found.predicted, predicted)
    assert found.counts.sum() == len(labels)


def test_ece_by_hand() -> None:
    # Two bins of two: said .15, found .5; said .85, found 1. Mean of .35 and .15.
    assert ece([0, 1, 1, 1], [0.1, 0.2, 0.8, 0.9], bins=2) == pytest.approx(0.25)


def test_brier_equals_scikit_learn_and_weights_count_rows() -> None:
    labels, p = a_case()
    weights = np.random.default_rng(0).integers(0, 4, len(p))
    rows = np.repeat(np.arange(len(p)), weights)
    assert brier(labels, p, weights) == pytest.approx(brier_score_loss(labels[rows], p[rows]))
    assert ece(labels, p, np.full(len(p), 3)) == pytest.approx(ece(labels, p))


def test_calibration_removes_the_error_that_was_put_in() -> None:
    labels, p = a_case(1, n=4000, slope=3.0, decimals=12)
    fitted = fit_calibration(labels[::2], p[::2], "temperature")
    before, after = (ece(labels[1::2], q[1::2]) for q in (p, fitted.apply(p)))
    assert after < 0.03 < 0.08 < before


def test_isotonic_is_level_outside_of_its_knots() -> None:
    line = Isotonic((0.2, 0.4), (0.1, 0.3))
    np.testing.assert_allclose(line.apply([0, 0.3, 1]), [0.1, 0.2, 0.3])


def test_the_interval_of_brier_at_once_equals_that_one_by_one() -> None:
    labels, p = a_case()
    patients = np.arange(len(p)) // 2
    slow = patient_bootstrap(brier, labels, p, patients, n=50, seed=3)
    fast = calibration_bootstraps(labels, p, patients, n=50, seed=3)["brier"]
    ends = fast.value, fast.low, fast.high
    assert ends == pytest.approx((slow.value, slow.low, slow.high), rel=1e-9)
    assert fast.low < fast.value < fast.high


def test_chance_is_the_error_of_true_probabilities() -> None:
    """With one bin by formula, the mean of the absolute value of a normal; with ten by brute force.

    The square root of (2 / pi) times the standard deviation of the number of positives.
    """
    rng = np.random.default_rng(0)
    p = rng.beta(1, 20, 4000)
    draws = [(rng.random(len(p)) < p).astype(int) for _ in range(400)]
    one = calibration_error(draws[0], p, bins=1)
    expected = np.sqrt(2 / np.pi * np.sum(p * (1 - p))) / len(p)
    assert one.chance == pytest.approx(expected, rel=0.1)
    errors = np.array([ece(labels, p) for labels in draws])
    found = calibration_error(draws[0], p)
    assert found.value == errors[0]
    assert found.chance == pytest.approx(errors.mean(), rel=0.05)
    assert abs(found.value - found.chance) < 4 * errors.std()
    assert found == calibration_error(draws[0], p)  # seeded
    off = calibration_error(draws[0], p / 2)
    assert off.value > 3 * off.chance
