"""DeLong's variance against all pairs, published figures and repeated sampling."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.delong import areas, delong, delong_difference

# 43 patients of DeLong et al. (1988), with the figures of the SAS/STAT User's Guide, PROC LOGISTIC,
# "Comparing Receiver Operating Characteristic Curves": albumin, total protein, K-G score, outcome.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3  5 1  3.9 6.8  3 1  2.8 4.8  6 0  3.2 5.8  3 1  0.9 4.0  5 0  2.5 5.7  8 0
1.6 5.6  5 1  3.8 5.7  5 1  3.7 6.7  6 1  3.2 5.4  4 1  3.8 6.6  6 1  4.1 6.6  5 1  3.6 5.7  5 1
4.3 7.0  4 1  3.6 6.7  4 0  2.3 4.4  6 1  4.2 7.6  4 0  4.0 6.6  6 0  3.5 5.8  6 1  3.8 6.8  7 1
3.0 4.7  8 0  4.5 7.4  5 1  3.7 7.4  5 1  3.1 6.6  6 1  4.1 8.2  6 1  4.3 7.0  5 1  4.3 6.5  4 1
3.2 5.1  5 1  2.6 4.7  6 1  3.3 6.8  6 0  1.7 4.0  7 0  3.7 6.1  5 1  3.3 6.3  7 1  4.2 7.7  6 1
3.5 6.2  5 1  2.9 5.7  9 0  2.1 4.8  7 1  2.8 6.2  8 0  4.0 7.0  7 1  3.3 5.7  6 1  3.7 6.9  5 1
3.6 6.6  5 1
"""


def a_case(seed: int, n: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, two correlated models with ties, and patients of one to three rows."""
    rng = np.random.default_rng(seed)
    patients = np.sort(rng.integers(0, n // 2, n))
    labels = (rng.random(n) < 0.3).astype(int)
    shared = rng.normal(size=n // 2)[patients] + labels
    return labels, (shared + rng.normal(size=(2, n))).round(1), patients


def by_all_pairs(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Obuchowski's covariance from every pair of a positive and a negative, cluster by cluster."""
    x, y = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    wins = [(s[x][:, None] > s[y]) + 0.5 * (s[x][:, None] == s[y]) for s in scores]
    ids = np.unique(patients)
    covariance = np.zeros((len(scores), len(scores)))
    for a, first in enumerate(wins):
        for b, second in enumerate(wins):
            s10 = s01 = s11 = 0.0
            for patient in ids:
                of_x, of_y = patients[x] == patient, patients[y] == patient
                xa, xb = ((w.mean(axis=1) - w.mean())[of_x].sum() for w in (first, second))
                ya, yb = ((w.mean(axis=0) - w.mean())[of_y].sum() for w in (first, second))
                s10, s01, s11 = s10 + xa * xb, s01 + ya * yb, s11 + xa * yb + ya * xb
            i10, i01, i = len(set(patients[x])), len(set(patients[y])), len(ids)
            m, n = len(x), len(y)
            covariance[a, b] = (
                i10 / (i10 - 1) * s10 / m**2
                + i01 / (i01 - 1) * s01 / n**2
                + i / (i - 1) * s11 / (m * n)
            )
    return covariance


@pytest.mark.parametrize("seed", range(10))
def test_clustered_covariance_equals_that_of_all_pairs(seed: int) -> None:
    labels, scores, patients = a_case(seed)
    found = areas(labels, scores, patients)
    np.testing.assert_allclose(found.covariance, by_all_pairs(labels, scores, patients), rtol=1e-10)
    np.testing.assert_allclose(found.auroc, [roc_auc_score(labels, s) for s in scores])


@pytest.mark.parametrize("seed", range(10))
def test_independent_covariance_is_that_of_the_placements(seed: int) -> None:
    labels, scores, _ = a_case(seed)
    x, y = labels == 1, labels == 0
    wins = [(s[x][:, None] > s[y]) + 0.5 * (s[x][:, None] == s[y]) for s in scores]
    by_row, by_column = (np.cov([w.mean(axis=axis) for w in wins]) for axis in (1, 0))
    expected = by_row / x.sum() + by_column / y.sum()
    np.testing.assert_allclose(areas(labels, scores).covariance, expected, rtol=1e-10)


def test_published_figures() -> None:
    albumin, protein, score, outcome = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4).T
    found = areas(outcome, [albumin, -score, protein])
    np.testing.assert_allclose(found.auroc, [0.7366, 0.7258, 0.6478], atol=5e-5)
    errors = np.sqrt(np.diag(found.covariance))
    np.testing.assert_allclose(errors, [0.0927, 0.1028, 0.1000], atol=5e-5)
    with_albumin = delong_difference(outcome, -score, albumin)
    assert with_albumin.value == pytest.approx(0.0108, abs=5e-5)
    assert (with_albumin.low, with_albumin.high) == pytest.approx((-0.1761, 0.1976), abs=5e-5)
    assert with_albumin.p_value == pytest.approx(0.9102, abs=5e-5)
    assert delong_difference(outcome, -score, protein).p_value == pytest.approx(0.4561, abs=5e-5)


def test_interval_is_symmetric_in_the_log_odds() -> None:
    labels, scores, _ = a_case(0)
    found = delong(labels, scores[0])
    odds = [np.log(a / (1 - a)) for a in (found.low, found.value, found.high)]
    assert odds[2] - odds[1] == pytest.approx(odds[1] - odds[0])
    error = float(np.sqrt(areas(labels, scores[0]).covariance[0, 0]))
    expected = 2 * 1.959964 * error / (found.value * (1 - found.value))
    assert odds[2] - odds[0] == pytest.approx(expected, rel=1e-6)


def test_clustered_error_is_that_of_repeated_sampling() -> None:
    """Two breasts of a patient that share most of their noise and their label."""
    rng = np.random.default_rng(0)
    values, clustered, independent = [], [], []
    for _ in range(400):
        labels = np.repeat(rng.random(150) < 0.2, 2).astype(int)
        scores = labels + np.repeat(rng.normal(size=150), 2) + 0.3 * rng.normal(size=300)
        patients = np.repeat(np.arange(150), 2)
        found = areas(labels, scores, patients)
        values.append(found.auroc[0])
        clustered.append(found.covariance[0, 0])
        independent.append(areas(labels, scores).covariance[0, 0])
    truth = np.std(values)
    assert np.sqrt(np.mean(clustered)) == pytest.approx(truth, rel=0.1)
    assert np.sqrt(np.mean(independent)) < 0.8 * truth


@pytest.mark.parametrize(("scores", "value"), [([1, 2, 3, 4], 1), ([4, 3, 2, 1], 0)])
def test_a_perfect_order_has_no_interval(scores: list[int], value: int) -> None:
    found = delong([0, 0, 1, 1], scores)
    assert found.value == value
    assert np.isnan([found.low, found.high]).all()
    reversed_ = delong_difference([0, 0, 1, 1], scores, [-score for score in scores])
    assert reversed_.value == 1 - 2 * value
    assert np.isnan([reversed_.low, reversed_.high, reversed_.p_value]).all()


def test_equal_models_have_no_difference() -> None:
    labels, scores, patients = a_case(1)
    same = delong_difference(labels, scores[0], np.exp(scores[0]), patients)
    assert (same.value, same.p_value) == (0, 1)


def test_constant_scores_are_refused() -> None:
    with pytest.raises(InputError, match="All 4 probabilities equal 0.5: they order nothing"):
        delong([0, 0, 1, 1], [0.5] * 4)


def test_one_of_a_class_is_refused() -> None:
    with pytest.raises(InputError, match="two rows of each class, but 1 with cancer and 2 without"):
        delong([1, 0, 0], [0.5, 0.2, 0.9])
    with pytest.raises(InputError, match="two patients of each class, but 1 with cancer"):
        delong([1, 1, 0, 0], [0.5, 0.6, 0.2, 0.9], ["a", "a", "b", "c"])
