"""Thresholds against brute force, and what cross-fitting promises."""

import numpy as np
import pytest
from sklearn import metrics

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.pf1 import pf1
from rsna_bcd.scoring.ranking import cuts
from rsna_bcd.scoring.threshold import (
    accuracy,
    best_threshold,
    confusion,
    cross_fit,
    decide,
    patient_groups,
    pf1_of_cuts,
    sensitivity,
    specificity,
)


def a_case(seed: int, n: int = 60, decimals: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.2).astype(int)
    labels[:2] = 0, 1
    return labels, np.clip(rng.random(n) + 0.2 * labels, 0, 1).round(decimals)


@pytest.mark.parametrize("seed", range(20))
def test_best_threshold_equals_brute_force(seed: int) -> None:
    labels, probabilities = a_case(seed)
    brute = max(pf1(labels, probabilities >= t) for t in np.unique(probabilities))
    found = pf1(labels, decide(probabilities, best_threshold(labels, probabilities)))
    assert found == pytest.approx(brute, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_pf1_of_every_cut_is_that_of_its_decisions(seed: int) -> None:
    labels, probabilities = a_case(seed)
    counts = cuts(labels, probabilities)
    direct = [pf1(labels, decide(probabilities, t)) for t in counts.scores]
    np.testing.assert_allclose(pf1_of_cuts(counts), direct, atol=1e-12)


def test_threshold_lies_midway() -> None:
    assert best_threshold([1, 1, 0, 0], [0.9, 0.8, 0.4, 0.1]) == pytest.approx(0.6)
    assert best_threshold([1, 1, 0], [0.9, 0.8, 0.9]) == pytest.approx(0.4)  # call all: 0 is below


def test_middle_of_tied_cuts_is_taken() -> None:
    # Three positives, found after 1, 5 and 9 calls: F1 is 2/4 = 4/8 = 6/12, and lower between.
    labels = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert best_threshold(labels, np.arange(9, 0, -1) / 10) == pytest.approx(0.45)


def test_threshold_separates_neighbouring_floats() -> None:
    low, high = np.nextafter(0.5, 0), 0.5
    assert decide([high, low], best_threshold([1, 0], [high, low])).tolist() == [1, 0]


def test_counts_equal_scikit_learn() -> None:
    labels, probabilities = a_case(3, n=200)
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
    assert counts.precision == metrics.precision_score(labels, called)


def test_undefined_rates_are_nan() -> None:
    assert np.isnan(sensitivity([0, 0], [0.1, 0.9]))
    assert np.isnan(specificity([1, 1], [0.1, 0.9]))
    assert np.isnan(confusion([1, 0], [0.1, 0.2]).precision)


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1, 0], [0.5, 0.5, 0.5], "All 3 probabilities equal 0.5"),
        ([0, 0, 0], [0.1, 0.5, 0.7], "0 positive and 3 negative"),
        ([1, 1], [0.1, 0.5], "2 positive and 0 negative"),
        ([0, 1], [0.1, np.nan], "finite"),
    ],
)
def test_refuses_where_there_is_nothing_to_choose_by(
    labels: list[int], probabilities: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        best_threshold(labels, probabilities)


def test_held_out_rows_do_not_move_their_threshold() -> None:
    labels, probabilities = a_case(5, n=300, decimals=6)
    groups = np.arange(300) % 5
    fitted = cross_fit(labels, probabilities, groups)
    rng = np.random.default_rng(0)
    for group in range(5):
        inside = groups == group
        moved, shuffled = probabilities.copy(), labels.copy()
        moved[inside] = rng.random(inside.sum())
        shuffled[inside] = rng.permutation(labels[inside])
        assert cross_fit(shuffled, moved, groups).thresholds[group] == fitted.thresholds[group]


def test_every_row_is_decided_by_its_own_groups_threshold() -> None:
    labels, probabilities = a_case(6, n=300, decimals=6)
    fitted = cross_fit(labels, probabilities, np.arange(300) % 4)
    assert len(fitted.thresholds) == 4
    np.testing.assert_array_equal(
        fitted.decisions, probabilities >= fitted.thresholds[fitted.groups]
    )


def test_cross_fitted_score_of_noise_is_below_the_in_sample_one() -> None:
    rng = np.random.default_rng(0)
    optimism = []
    for _ in range(50):
        labels, noise = (rng.random(400) < 0.05).astype(int), rng.random(400)
        fitted = cross_fit(labels, noise, patient_groups(labels, np.arange(400), 5, 0))
        in_sample = pf1(labels, decide(noise, best_threshold(labels, noise)))
        optimism.append(in_sample - pf1(labels, fitted.decisions))
    assert np.mean(optimism) > 0.03


def test_patients_stay_together_and_positives_are_dealt_evenly() -> None:
    patients = np.repeat([f"p{i}" for i in range(100)], 2)
    labels = np.zeros(200, dtype=int)
    labels[:24] = 1  # 12 patients with cancer on both sides
    groups = patient_groups(labels, patients, n=5, seed=0)
    assert (groups[::2] == groups[1::2]).all()
    assert sorted(np.bincount(groups[labels == 1])) == [4, 4, 4, 6, 6]
    assert np.bincount(groups).tolist() == [40] * 5
    assert (groups != patient_groups(labels, patients, n=5, seed=1)).any()


def test_never_more_groups_than_patients_with_cancer() -> None:
    labels = np.array([1, 0, 0, 1, 0, 0, 0, 1])
    assert set(patient_groups(labels, np.arange(8), n=5, seed=0)) == {0, 1, 2}
    with pytest.raises(InputError, match="at least two patients with cancer, but there are 1"):
        patient_groups(np.array([1, 1, 0, 0]), np.array([7, 7, 8, 9]), n=5, seed=0)
