"""Counts of decisions, against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from rsna_bcd.scoring.decisions import (
    Confusion,
    accuracy,
    balanced_accuracy,
    confusion,
    decide,
    ppv,
    recall_rate,
    sensitivity,
    specificity,
)


def a_case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = (rng.random(200) < 0.2).astype(int)
    return labels, np.clip(rng.random(200) + 0.2 * labels, 0, 1).round(2)


def test_counts_equal_scikit_learn() -> None:
    labels, probabilities = a_case()
    called = probabilities >= 0.6
    counts = confusion(labels, probabilities, 0.6)
    (tn, fp), (fn, tp) = metrics.confusion_matrix(labels, called)
    assert (
        counts.true_positives, counts.false_positives,
        counts.false_negatives, counts.true_negatives,
    ) == (tp, fp, fn, tn)  # fmt: skip
    assert sensitivity(labels, probabilities, 0.6) == metrics.recall_score(labels, called)
    assert specificity(labels, probabilities, 0.6) == metrics.recall_score(1 - labels, ~called)
    assert accuracy(labels, probabilities, 0.6) == metrics.accuracy_score(labels, called)
    assert balanced_accuracy(labels, probabilities, 0.6) == pytest.approx(
        metrics.balanced_accuracy_score(labels, called), abs=1e-12
    )
    assert ppv(labels, probabilities, 0.6) == metrics.precision_score(labels, called)
    assert recall_rate(labels, probabilities, 0.6) == called.mean()


def test_a_row_of_weight_two_is_two_rows() -> None:
    labels, probabilities = a_case()
    weights = np.arange(200) % 3
    rows = np.repeat(np.arange(200), weights)
    assert confusion(labels, probabilities, 0.6, weights) == confusion(
        labels[rows], probabilities[rows], 0.6
    )


def test_undefined_rates_are_nan() -> None:
    assert np.isnan(sensitivity([0, 0], [0.1, 0.9]))
    assert np.isnan(specificity([1, 1], [0.1, 0.9]))
    assert np.isnan(balanced_accuracy([1, 1], [0.1, 0.9]))
    assert np.isnan(ppv([1, 0], [0.1, 0.2]))
    assert np.isnan(recall_rate([], []))


def test_arrays_of_counts_have_the_rates_of_each() -> None:
    tables = np.random.default_rng(0).integers(0, 3, (20, 4)).astype(np.float64)
    together = Confusion(*tables.T)
    for rate in ("sensitivity", "specificity", "accuracy", "balanced_accuracy", "ppv"):
        each = [getattr(Confusion(*map(float, table)), rate) for table in tables]
        np.testing.assert_array_equal(getattr(together, rate), each)


def test_a_threshold_for_each_row() -> None:
    assert decide([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]).tolist() == [1, 1, 0]
