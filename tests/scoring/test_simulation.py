"""Bias and coverage of scores, on simulated patients whose true distribution is known.

A run is a cross-validation: patients with two breasts each, a few per cent with cancer, scored out
of fold by five networks. The logit of a breast's probability is

    b_k (m z - m^2 / 2 + log odds of the prevalence) + a_k,    z = m label + patient + breast + own

with normal terms that a patient's breasts share, that all networks see in a breast, and that
network k adds on its own; a_k and b_k are the fold's scale. So every distribution is a mixture of
normal ones, and the expected pF1 of any threshold on new patients is a formula. The truth of a run
is that of what is deployed: the threshold that was fitted on all of its rows, on new patients whom
its own networks score, one network per patient as out of fold.

    pytest -m slow tests/scoring/test_simulation.py
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from rsna_bcd.scoring.cross_fitting import EnsembleFitter, cross_fitted_decisions, patient_groups
from rsna_bcd.scoring.intervals import Interval, bootstrap_interval
from rsna_bcd.scoring.metrics import pf1, pf1_from_counts
from rsna_bcd.scoring.thresholds import BestPf1, Policy, RecallRate

pytestmark = pytest.mark.slow
RUNS, PROCESSES, RESAMPLES = 500, 2, 400
PATIENTS = 3000  # of one run: about 120 breasts with cancer, a quarter of the competition's
FEW_PATIENTS, FEW_RUNS = 300, 200  # about 12 breasts with cancer
FOLDS = 5
SICK, BILATERAL = 0.04, 0.02
PREVALENCE = SICK * (1 + BILATERAL) / 2
MEANS = 2.2  # m: the distance of the classes, an AUROC of .94
PATIENT, BREAST, NETWORK = 0.3, 0.4, 0.3  # parts of the variance of z
POLICIES: dict[str, Policy] = {
    "plateau": BestPf1(),
    "peak": BestPf1(width=0),
    "fixed rate": RecallRate(0.02),  # near the best one, not fitted
}
GRID = np.linspace(-12, 8, 2001)  # logits, on which a recall rate is turned into a threshold


@dataclass(frozen=True)
class Networks:
    """The networks of a run: each its own scale, (FOLDS,) each."""

    shifts: np.ndarray
    scales: np.ndarray

    def logits(self, z: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """From z to logits, each row by the network of its fold."""
        exact = MEANS * z - MEANS**2 / 2 + logit(PREVALENCE)
        return self.scales[fold] * exact + self.shifts[fold]

    def positive_rates(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Shares of new breasts of a class above each logit of the grid.

        By a random network, and by the mean of all networks' logits, which has less noise.
        """
        middle = self.logits(np.full(FOLDS, MEANS * label), np.arange(FOLDS))
        one = norm.sf((GRID[:, None] - middle) / (self.scales * MEANS)).mean(axis=1)
        variance = self.scales.mean() ** 2 * (PATIENT + BREAST)
        variance += (self.scales**2).sum() / FOLDS**2 * NETWORK
        return one, norm.sf((GRID - middle.mean()) / (MEANS * np.sqrt(variance)))


def expected_pf1(tpr: np.ndarray, fpr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """pF1 and recall rate on very many patients."""
    rate = PREVALENCE * tpr + (1 - PREVALENCE) * fpr
    return pf1_from_counts(PREVALENCE * tpr, rate, PREVALENCE), rate


def make_run(
    seed: int, n_patients: int = PATIENTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Networks]:
    """Labels, probabilities out of fold, patients, and the networks that made them."""
    rng = np.random.default_rng(seed)
    networks = Networks(rng.normal(0, 0.2, FOLDS), np.exp(rng.normal(0, 0.1, FOLDS)))
    sick, left = rng.random(n_patients) < SICK, rng.random(n_patients) < 0.5
    both = rng.random(n_patients) < BILATERAL
    labels = np.stack([sick & (left | both), sick & (~left | both)], axis=1).astype(int)
    z = MEANS * labels + np.sqrt(PATIENT) * rng.normal(size=(n_patients, 1))
    z += np.sqrt(BREAST + NETWORK) * rng.normal(size=labels.shape)
    fold = np.repeat(rng.integers(0, FOLDS, n_patients), 2)
    probabilities = expit(networks.logits(z.ravel(), fold))
    return labels.ravel(), probabilities, np.repeat(np.arange(n_patients), 2), networks


def refitted_interval(
    labels: np.ndarray, p: np.ndarray, patients: np.ndarray, groups: np.ndarray, seed: int
) -> Interval:
    """Of the pF1 of cross-fitted decisions, with thresholds fitted again in each resample."""
    fitter = EnsembleFitter("mean", (1.0,), BestPf1())
    scored = fitter.cross_fit(labels, [{"mean": p}], patients, groups)
    return fitter.intervals({"": pf1}, labels, scored, patients, n=RESAMPLES, seed=seed)[""]


def simulate(seed: int) -> dict[str, float]:
    """The figures of one run."""
    labels, probabilities, patients, networks = make_run(seed)
    case = labels, probabilities, patients
    groups = patient_groups(labels, patients, FOLDS, seed)
    one, mean = map(expected_pf1, networks.positive_rates(1), networks.positive_rates(0))
    best = int(np.argmax(one[0]))
    # Luck: of a threshold that was not fitted to the sample.
    luck = pf1(labels, probabilities >= expit(GRID[best])) - one[0][best]
    figures = {"best possible": one[0][best], "luck": luck}
    for name, policy in POLICIES.items():
        fitted = policy.fit(*case)
        figures[f"{name}, truth"] = np.interp(logit(fitted.value), GRID, one[0])
        figures[f"{name}, in sample"] = pf1(labels, fitted.decide(probabilities))
        decisions = cross_fitted_decisions(*case, policy, groups)
        figures[f"{name}, cross-fitted"] = pf1(labels, decisions)
        figures[f"{name}, mean by value"] = np.interp(logit(fitted.value), GRID, mean[0])
        limit = np.interp(-fitted.recall_rate, -mean[1], GRID)
        figures[f"{name}, mean by rate"] = np.interp(limit, GRID, mean[0])
    decisions = cross_fitted_decisions(*case, BestPf1(), groups)
    for name, interval in {
        "cross-fitted": bootstrap_interval(pf1, labels, decisions, patients, RESAMPLES, seed),
        "refitted": refitted_interval(*case, groups, seed),
    }.items():
        figures[f"{name} covers"] = interval.low <= figures["plateau, truth"] <= interval.high
    return figures


Figures = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def figures() -> Figures:
    """By name, a figure of every run: (RUNS,)."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=fresh) as pool:
        runs = list(pool.map(simulate, range(RUNS), chunksize=5))
    return {name: np.array([run[name] for run in runs], dtype=float) for name in runs[0]}


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


@pytest.mark.parametrize("policy", ["plateau", "peak"])
def test_cross_fitted_score_is_not_optimistic_and_that_in_sample_is(
    figures: Figures, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, luck = figures[f"{policy}, truth"], figures["luck"]
    optimism, error = mean_and_error(figures[f"{policy}, in sample"] - truth - luck)
    bias = figures[f"{policy}, cross-fitted"] - truth
    less_luck = mean_and_error(bias - luck)  # so one can look four times closer
    with capsys.disabled():
        print(f"\n{policy}: in sample {optimism:+.4f} ({error:.4f}), cross-fitted {less_luck}")
    assert optimism > max(10 * error, 0.01)
    for value, its_error in (mean_and_error(bias), less_luck):
        assert abs(value) < 2.5 * its_error


@pytest.mark.parametrize("interval", ["cross-fitted", "refitted"])
def test_intervals_cover_the_truth(figures: Figures, interval: str) -> None:
    assert 0.90 < figures[f"{interval} covers"].mean() < 0.98


def test_refitted_intervals_of_few_cancers_are_wide_and_low() -> None:
    covers, offsets = [], []
    for seed in range(FEW_RUNS):
        labels, p, patients, networks = make_run(seed, FEW_PATIENTS)
        one, _ = expected_pf1(networks.positive_rates(1)[0], networks.positive_rates(0)[0])
        groups = patient_groups(labels, patients, FOLDS, seed)
        interval = refitted_interval(labels, p, patients, groups, seed)
        truth = np.interp(logit(BestPf1().fit(labels, p, patients).value), GRID, one)
        covers.append(interval.low <= truth <= interval.high)
        offsets.append((interval.low + interval.high) / 2 - interval.value)
    offset, error = mean_and_error(np.array(offsets))
    assert np.mean(covers) > 0.95
    assert offset < -2 * error


def test_middle_of_the_plateau_beats_its_peak(figures: Figures) -> None:
    best = figures["best possible"]
    plateau, peak = (best - figures[f"{name}, truth"] for name in ("plateau", "peak"))
    gain, error = mean_and_error(peak - plateau)
    assert gain > 5 * error
    assert plateau.mean() < 0.75 * peak.mean()


@pytest.mark.parametrize("policy", POLICIES)
def test_recall_rate_suits_the_mean_of_the_networks_better(figures: Figures, policy: str) -> None:
    by_rate, by_value = (figures[f"{policy}, mean by {kind}"] for kind in ("rate", "value"))
    gain, error = mean_and_error(by_rate - by_value)
    assert gain > max(10 * error, 0.01)
