"""Thresholds of resamples, against repeating the rows and fitting anew."""

import numpy as np
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.cross_fitting import cross_fit, cross_fitted_bootstraps, patient_groups
from rsna_bcd.scoring.metrics import OPERATING
from rsna_bcd.scoring.threshold import BestPf1, RecallRate

N = 20


def by_hand(
    policy: BestPf1 | RecallRate,
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    groups: np.ndarray,
    sites: np.ndarray,
) -> dict[str, np.ndarray]:
    """Scores of resamples whose rows are repeated, each copy of a patient under a new id."""
    rng = np.random.default_rng(7)
    ids = np.unique(patients)
    draws: dict[str, list[float]] = {name: [] for name in OPERATING}
    for _ in range(N):
        drawn = ids[rng.integers(0, len(ids), len(ids))]
        copies = [np.flatnonzero(patients == patient) for patient in drawn]
        rows = np.concatenate(copies)
        new = np.repeat(np.arange(len(copies)), [len(copy) for copy in copies])
        try:
            honest = cross_fit(
                labels[rows], probabilities[rows], new, policy, groups[rows], sites[rows]
            )
        except InputError:
            continue
        for name, metric in OPERATING.items():
            draws[name].append(metric(labels[rows], honest.decisions, weights=None))
    return {name: np.array(values) for name, values in draws.items()}


@pytest.mark.parametrize("decimals", [2, 8], ids=["ties", "distinct"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "policy",
    [
        BestPf1(),
        BestPf1(width=0),
        BestPf1(width=3),
        BestPf1(by_site=6),
        RecallRate(),
        RecallRate(0.003),
        RecallRate(0.07),
        RecallRate(0.9),
    ],
    ids=str,
)
def test_equals_repeating_rows_by_hand(
    policy: BestPf1 | RecallRate, seed: int, decimals: int
) -> None:
    rng = np.random.default_rng(seed)
    n_patients = int(rng.choice([12, 40, 150]))
    patients = np.sort(rng.integers(0, n_patients, 2 * n_patients))
    labels = (rng.random(len(patients)) < rng.choice([0.1, 0.3])).astype(int)
    labels[patients == patients[0]] = labels[patients == patients[-1]] = 1
    probabilities = np.clip(rng.normal(0.3 + 0.2 * labels, 0.15), 0, 1).round(decimals)
    sites = np.where(patients % 3, "a", "")
    sites[patients % 5 == 0] = "b"
    shuffled = rng.permutation(len(patients))
    case = labels[shuffled], probabilities[shuffled], patients[shuffled]
    groups = patient_groups(case[0], case[2], 4, seed)
    sites = sites[shuffled]
    expected = by_hand(policy, *case, groups, sites)
    found = cross_fitted_bootstraps(
        OPERATING, *case, policy=policy, groups=groups, sites=sites, n=N, seed=7
    )
    honest = cross_fit(*case, policy=policy, groups=groups, sites=sites).decisions
    for name, metric in OPERATING.items():
        assert len(expected[name]) > N / 2
        draws = expected[name][np.isfinite(expected[name])]
        assert found[name].value == metric(case[0], honest, weights=None)
        assert (found[name].low, found[name].high) == pytest.approx(
            tuple(np.quantile(draws, [0.025, 0.975])), abs=1e-12
        )


def test_positives_of_unknown_sites_leave_the_global_threshold() -> None:
    rng = np.random.default_rng(0)
    labels, patients = (rng.random(200) < 0.2).astype(int), np.arange(200)
    probabilities, groups = np.clip(rng.random(200) + 0.2 * labels, 0, 1), np.arange(200) % 4
    sites = np.where(labels == 1, "", "a")
    case = {"labels": labels, "probabilities": probabilities, "patients": patients}
    by_site, plain = (
        cross_fitted_bootstraps(
            OPERATING, **case, policy=policy, groups=groups, sites=sites, n=N, seed=0
        )
        for policy in (BestPf1(by_site=1), BestPf1())
    )
    assert by_site == plain
    with pytest.raises(InputError, match="0 positive"):
        cross_fitted_bootstraps(
            OPERATING, np.zeros(200), probabilities, patients, BestPf1(), groups, n=N
        )
