"""Operating points against brute force and scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.bootstrap import patient_bootstrap
from rsna_bcd.scoring.decisions import decide, sensitivity
from rsna_bcd.scoring.operating import operating_points

RATES = ("pf1", "sensitivity", "specificity", "accuracy", "balanced_accuracy", "ppv", "recall_rate")


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.05).astype(int)
    probabilities = np.clip(rng.normal(0.3 + 0.2 * labels, 0.15), 0, 1).round(3)
    return labels, probabilities, np.arange(2000) // 2


def test_points_are_where_they_should_be(case: tuple[np.ndarray, ...]) -> None:
    labels, probabilities, _ = case
    points = operating_points(*case, thresholds={"chosen": 0.6}, n=20)
    assert list(points) == [
        "chosen", "recall rate 1.5 %", "recall rate 3.5 %", "recall rate 10 %",
        "specificity 90 %", "specificity 95 %",
    ]  # fmt: skip
    assert points["chosen"].threshold == 0.6
    cuts = np.unique(probabilities)
    for rate in (0.015, 0.035, 0.1):
        nearest = min(abs((probabilities >= t).mean() - rate) for t in cuts)
        called = points[f"recall rate {100 * rate:g} %"].recall_rate.value
        assert abs(called - rate) == pytest.approx(nearest, abs=1e-12)
    negative = probabilities[labels == 0]
    for least in (0.9, 0.95):
        lowest = min(t for t in cuts if (negative < t).mean() >= least)
        threshold = points[f"specificity {100 * least:g} %"].threshold
        np.testing.assert_array_equal(probabilities >= threshold, probabilities >= lowest)


def test_rates_equal_scikit_learn_and_have_the_bootstraps_intervals(
    case: tuple[np.ndarray, ...],
) -> None:
    labels, probabilities, patients = case
    point = operating_points(*case, thresholds={"chosen": 0.6}, n=50, seed=3)["chosen"]
    called = decide(probabilities, 0.6)
    expected = {
        "pf1": metrics.f1_score(labels, called),
        "sensitivity": metrics.recall_score(labels, called),
        "specificity": metrics.recall_score(1 - labels, 1 - called),
        "accuracy": metrics.accuracy_score(labels, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, called),
        "ppv": metrics.precision_score(labels, called),
        "recall_rate": called.mean(),
    }
    assert {name: getattr(point, name).value for name in RATES} == pytest.approx(expected)
    assert point.sensitivity == patient_bootstrap(sensitivity, labels, called, patients, 50, 3)
    assert point.counts.true_positives == (labels * called).sum()


def test_given_decisions_are_taken_as_they_are(case: tuple[np.ndarray, ...]) -> None:
    labels, probabilities, _ = case
    by_turns = decide(probabilities, np.where(np.arange(2000) < 1000, 0.5, 0.6))
    rest = operating_points(
        *case, recall_rates=(), specificities=(), decisions={"honest": by_turns}, n=10
    )
    assert list(rest) == ["honest"]
    assert np.isnan(rest["honest"].threshold)
    assert rest["honest"].ppv.value == labels[by_turns == 1].mean()


def test_points_that_few_rows_cannot_have_are_left_out() -> None:
    case = [0, 1, 0], [0.9, 0.5, 0.1], [0, 1, 2]
    assert operating_points(*case, n=10) == {}
    points = operating_points(*case, thresholds={"none": 2.0}, recall_rates=(0.34,), n=10)
    assert list(points) == ["none", "recall rate 34 %"]
    assert np.isnan(points["none"].ppv.value)
    assert points["recall rate 34 %"].recall_rate.value == pytest.approx(1 / 3)
    tied = np.repeat([0.9, 0.1], [30, 70])  # 30 rows or none
    rates = operating_points(
        np.arange(100) % 2, tied, np.arange(100), recall_rates=(0.1, 0.25), n=10
    )
    assert list(rates) == ["recall rate 25 %"]
    assert rates["recall rate 25 %"].recall_rate.value == 0.3


def test_a_name_is_used_once(case: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(InputError, match="'chosen' names both a threshold and decisions"):
        operating_points(*case, thresholds={"chosen": 0.5}, decisions={"chosen": case[0]})


def test_refuses_one_class_and_rates_beyond_reach(case: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(InputError, match="0 positive and 2 negative"):
        operating_points([0, 0], [0.1, 0.2], [0, 1])
    with pytest.raises(InputError, match="A recall rate of 35 is not between 0 and 1"):
        operating_points(*case, recall_rates=(35,))
    with pytest.raises(InputError, match="A specificity of 1.0"):
        operating_points(*case, specificities=(1.0,))
