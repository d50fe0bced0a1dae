"""Metrics against scikit-learn, by hand and on degenerate input."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics

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
@pytest.mark.parametrize("seed", range(5))
def test_metrics_of_probabilities_equal_scikit_learn(
    seed: int, dtype: type[np.floating], decimals: int
) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 200))
    labels, weights = rng.integers(0, 2, n), rng.integers(0, 4, n).astype(float)
    labels[:2], weights[:2] = (0, 1), 1
    p = rng.random(n).round(decimals).astype(dtype)
    pairs = (
        (auroc, metrics.roc_auc_score),
        (average_precision, metrics.average_precision_score),
        (brier, metrics.brier_score_loss),
    )
    for ours, theirs in pairs:
        exact = p.astype(np.float64)
        assert ours(labels, p) == pytest.approx(theirs(labels, exact), abs=1e-12)
        assert ours(labels, p, weights) == pytest.approx(
            theirs(labels, exact, sample_weight=weights), abs=1e-12
        )


def test_decision_metrics_equal_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    labels, decisions = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    (tn, fp), (fn, tp) = metrics.confusion_matrix(labels, decisions)
    counts = confusion_matrix(labels, decisions)
    assert (counts.true_positives, counts.false_positives) == (tp, fp)
    assert (counts.false_negatives, counts.true_negatives) == (fn, tn)
    expected = {
        pf1: metrics.f1_score(labels, decisions),
        sensitivity: metrics.recall_score(labels, decisions),
        specificity: metrics.recall_score(1 - labels, 1 - decisions),
        accuracy: metrics.accuracy_score(labels, decisions),
        balanced_accuracy: metrics.balanced_accuracy_score(labels, decisions),
        ppv: metrics.precision_score(labels, decisions),
        recall_rate: decisions.mean(),
    }
    assert set(expected) == set(OPERATING.values())
    for metric, value in expected.items():
        assert metric(labels, decisions) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("metric", [auroc, average_precision, brier, *OPERATING.values()])
def test_a_row_of_weight_two_equals_two_rows(metric: Callable[..., float]) -> None:
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
def test_undefined_metrics_are_nan(
    metric: Callable[..., float], labels: list[int], p: list[float]
) -> None:
    assert np.isnan(metric(labels, p))


def test_constant_scores_have_the_metrics_of_chance() -> None:
    assert auroc([1, 0, 0, 0], np.full(4, 0.3)) == 0.5
    assert average_precision([1, 0, 0, 0], np.full(4, 0.3)) == 0.25


@pytest.mark.parametrize(
    ("labels", "p", "expected"),
    [
        ([1, 0], [0.5, 0.5], 0.5),  # precision and recall .5 / 1
        ([1, 1, 0, 0], [0.8, 0.4, 0.3, 0.5], 0.6),  # both 1.2 / 2
        ([1, 1, 0], [1, 0, 0], 2 / 3),
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
    for _ in range(200):
        labels, p = rng.integers(0, 2, 30), rng.uniform(-0.2, 1.2, 30)
        labels[0], clipped = 1, p.clip(0, 1)
        clipped[0] = p[0] = 0.5
        precision = clipped[labels == 1].sum() / clipped.sum()
        recall = clipped[labels == 1].sum() / labels.sum()
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
    assert np.isfinite(logit(p)).all()
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
def test_invalid_input_is_refused(
    metric: Callable[..., float], labels: list[int], p: list[float], error: type, match: str
) -> None:
    with pytest.raises(error, match=match):
        metric(labels, p)
