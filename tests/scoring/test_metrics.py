"""Metrics against scikit-learn, by hand and on degenerate input."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics as sklearn

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.metrics import (
    OPERATING,
    accuracy,
    auroc,
    average_precision,
    balanced_accuracy,
    brier,
    confusion_matrix,
    decide,
    logit,
    pf1,
    ppv,
    recall_rate,
    sensitivity,
    sigmoid,
    specificity,
    threshold_counts,
)


@pytest.mark.parametrize("decimals", [1, 8], ids=["ties", "distinct"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_metrics_of_probabilities_equal_scikit_learn(
    dtype: type[np.floating], decimals: int
) -> None:
    for n in (5, 30, 200):
        rng = np.random.default_rng(n)
        labels, weights = rng.integers(0, 2, n), rng.integers(0, 4, n).astype(float)
        labels[:2], weights[:2] = (0, 1), 1
        p = rng.random(n).round(decimals).astype(dtype)
        for ours, theirs in (
            (auroc, sklearn.roc_auc_score),
            (average_precision, sklearn.average_precision_score),
            (brier, sklearn.brier_score_loss),
        ):
            for w in (None, weights):
                expected = theirs(labels, p.astype(np.float64), sample_weight=w)
                assert ours(labels, p, w) == pytest.approx(expected, abs=1e-12)


def test_metrics_of_decisions_equal_scikit_learn() -> None:
    labels, decisions = np.random.default_rng(3).integers(0, 2, (2, 200))
    counts = confusion_matrix(labels, decisions)
    assert sklearn.confusion_matrix(labels, decisions).tolist() == [
        [counts.true_negatives, counts.false_positives],
        [counts.false_negatives, counts.true_positives],
    ]
    expected = {
        pf1: sklearn.f1_score(labels, decisions),
        sensitivity: sklearn.recall_score(labels, decisions),
        specificity: sklearn.recall_score(1 - labels, 1 - decisions),
        accuracy: sklearn.accuracy_score(labels, decisions),
        balanced_accuracy: sklearn.balanced_accuracy_score(labels, decisions),
        ppv: sklearn.precision_score(labels, decisions),
        recall_rate: decisions.mean(),
    }
    assert {metric: metric(labels, decisions) for metric in OPERATING.values()} == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("metric", [auroc, average_precision, brier, *OPERATING.values()])
def test_metric_of_weighted_rows_is_that_of_repeated_rows(metric: Callable[..., float]) -> None:
    rng = np.random.default_rng(1)
    labels, p, weights = rng.integers(0, 2, 60), rng.random(60).round(1), rng.integers(0, 3, 60)
    repeated = metric(np.repeat(labels, weights), np.repeat(p, weights))
    assert metric(labels, p, weights=weights) == pytest.approx(repeated, abs=1e-12)


@pytest.mark.parametrize(
    ("metric", "labels", "p"),
    [
        (auroc, [0, 0], [0.1, 0.9]),
        (auroc, [1, 1], [0.1, 0.9]),
        (auroc, [], []),
        (average_precision, [0, 0], [0.1, 0.9]),
        (sensitivity, [0, 0], [0, 1]),
        (specificity, [1, 1], [0, 1]),
        (balanced_accuracy, [1, 1], [0, 1]),
        (ppv, [1, 0], [0, 0]),
        (accuracy, [], []),
        (recall_rate, [], []),
    ],
)
def test_metric_that_is_undefined_is_nan(
    metric: Callable[..., float], labels: list[int], p: list[float]
) -> None:
    assert np.isnan(metric(labels, p))


@pytest.mark.parametrize(
    ("labels", "p", "expected"),
    [
        ([1, 0], [0.5, 0.5], 0.5),  # precision and recall .5 / 1
        ([1, 1, 0, 0], [0.8, 0.4, 0.3, 0.5], 0.6),  # both 1.2 / 2
        ([1, 0], [3.0, -2.0], 1.0),  # clipped to 1 and 0
        ([1, 0, 1], [0, 0, 0], 0.0),  # the organisers divide by zero here
        ([0, 0, 0], [0.1, 0.9, 1.0], 0.0),  # ... and here
        ([], [], 0.0),
        (np.arange(23826) < 492, np.ones(23826), 0.04046),  # the competition's prevalence
    ],
)
def test_pf1_by_hand(labels: list[int], p: list[float], expected: float) -> None:
    assert pf1(labels, p) == pytest.approx(expected, abs=1e-5)


def test_pf1_equals_the_organisers_formula() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels, p = rng.integers(0, 2, 30), rng.uniform(-0.2, 1.2, 30)
        labels[0], p[0] = 1, 0.5
        tp = p.clip(0, 1)[labels == 1].sum()
        precision, recall = tp / p.clip(0, 1).sum(), tp / labels.sum()
        expected = 2 * precision * recall / (precision + recall)
        assert pf1(labels, p) == pytest.approx(expected, abs=1e-12)


def test_threshold_counts_by_hand() -> None:
    counts = threshold_counts([1, 0, 1, 0, 0], [0.9, 0.9, 0.4, 0.2, 0.4])
    assert counts.scores.tolist() == [0.9, 0.4, 0.2]
    assert counts.tp.tolist() == [1, 2, 2]
    assert counts.fp.tolist() == [1, 2, 3]
    assert (counts.positives, counts.negatives) == (2, 3)


def test_decide_takes_a_threshold_per_row() -> None:
    assert decide([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]).tolist() == [1, 1, 0]


def test_logit_is_finite_and_sigmoid_its_inverse() -> None:
    p = np.array([0, 1e-4, 0.5, 0.9, 1])
    np.testing.assert_allclose(sigmoid(logit(p)), p.clip(1e-7, 1 - 1e-7), rtol=1e-12)


@pytest.mark.parametrize(
    ("labels", "p", "error", "match"),
    [
        ([0, 1], [0.5, np.nan], InputError, r"row 1 is nan \(1 of 2"),
        ([0, 1], [0.1, np.inf], InputError, "finite"),
        ([0, 2], [0.5, 0.5], InputError, "Labels must be 0 or 1"),
        ([0, 1], [0.5], ValueError, "must be"),
    ],
)
@pytest.mark.parametrize("metric", [pf1, auroc, accuracy])
def test_metric_refuses_invalid_input(
    metric: Callable[..., float], labels: list[int], p: list[float], error: type, match: str
) -> None:
    with pytest.raises(error, match=match):
        metric(labels, p)
