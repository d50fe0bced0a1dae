"""What cross-fitting promises."""

import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.cross_fitting import cross_fit, optimism, patient_groups
from rsna_bcd.scoring.pf1 import pf1
from rsna_bcd.scoring.threshold import BestPf1, Policy, RecallRate

POLICIES = [BestPf1(), RecallRate(), RecallRate(0.1)]


def a_case(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.2).astype(int)
    return labels, np.clip(rng.random(n) + 0.2 * labels, 0, 1)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_held_out_rows_do_not_move_their_threshold(policy: Policy) -> None:
    labels, probabilities = a_case(5)
    patients, groups = np.arange(300), np.arange(300) % 5
    fitted = cross_fit(labels, probabilities, patients, policy, groups)
    rng = np.random.default_rng(0)
    for group in range(5):
        inside = groups == group
        moved, shuffled = probabilities.copy(), labels.copy()
        moved[inside] = rng.random(inside.sum())
        shuffled[inside] = rng.permutation(labels[inside])
        again = cross_fit(shuffled, moved, patients, policy, groups)
        assert again.thresholds[group] == fitted.thresholds[group]


@pytest.mark.parametrize("by_site", [None, 5])
def test_every_row_is_decided_by_its_own_groups_threshold(by_site: int | None) -> None:
    labels, probabilities = a_case(6)
    groups, sites = np.arange(300) % 4, np.arange(300) // 150
    fitted = cross_fit(labels, probabilities, np.arange(300), BestPf1(by_site), groups, sites)
    assert len(fitted.thresholds) == 4
    for row in range(300):
        threshold = fitted.thresholds[groups[row]]
        value = threshold.sites.get(str(sites[row]), threshold.value)
        assert fitted.decisions[row] == (probabilities[row] >= value)
    assert bool(fitted.thresholds[0].sites) == (by_site is not None)


def test_optimism_of_noise_is_seen() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(50):
        labels, noise, patients = (rng.random(400) < 0.05).astype(int), rng.random(400), range(400)
        groups = patient_groups(labels, patients, 5, 0)
        honest = cross_fit(labels, noise, patients, BestPf1(), groups).decisions
        in_sample = BestPf1().fit(labels, noise, patients).decide(noise)
        found.append(optimism(labels, in_sample, honest))
        assert found[-1] == pf1(labels, in_sample) - pf1(labels, honest)
    assert np.mean(found) > 0.02


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
