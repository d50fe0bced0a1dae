"""AUROC and average precision against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.ranking import auroc, average_precision, cuts


@pytest.mark.parametrize("decimals", [1, 8])  # with and without ties
@pytest.mark.parametrize("seed", range(20))
def test_equal_to_scikit_learn(seed: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 200))
    labels = rng.integers(0, 2, n)
    labels[:2] = 0, 1
    scores = rng.random(n).round(decimals)
    weights = rng.integers(0, 4, n).astype(float)
    weights[:2] = 1
    assert auroc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(labels, scores) == pytest.approx(
        metrics.average_precision_score(labels, scores), abs=1e-12
    )
    assert auroc(labels, scores, weights) == pytest.approx(
        metrics.roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12
    )
    assert average_precision(labels, scores, weights) == pytest.approx(
        metrics.average_precision_score(labels, scores, sample_weight=weights), abs=1e-12
    )


def test_constant_scores_tell_nothing() -> None:
    labels = np.array([1, 0, 0, 0])
    assert auroc(labels, np.full(4, 0.3)) == 0.5
    assert average_precision(labels, np.full(4, 0.3)) == 0.25


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_auroc_of_one_class_is_undefined(labels: list[int]) -> None:
    assert np.isnan(auroc(labels, np.linspace(0, 1, len(labels))))


def test_average_precision_without_positives_is_undefined() -> None:
    assert np.isnan(average_precision([0, 0], [0.1, 0.2]))


def test_cuts_by_hand() -> None:
    counts = cuts([1, 0, 1, 0, 0], [0.9, 0.9, 0.4, 0.2, 0.4])
    assert counts.scores.tolist() == [0.9, 0.4, 0.2]
    assert counts.true_positives.tolist() == [1, 2, 2]
    assert counts.false_positives.tolist() == [1, 2, 3]


def test_infinite_scores_are_refused() -> None:
    with pytest.raises(InputError, match="finite"):
        auroc([0, 1], [0.1, np.inf])
