"""Bias and coverage of scores, on simulated patients whose true distribution is known.

A run is a cross-validation: patients with two breasts each, a few per cent with cancer, scored out
of fold by five networks. The logit of a breast's probability is

    b_k (m z - m^2 / 2 + log odds of the prevalence) + a_k,    z = m label + patient + breast + own

with normal terms that a patient's breasts share, that all networks see in a breast, and that
network k adds on its own; a_k and b_k are the fold's scale. So every distribution is a mixture of
normal ones, and the expected pF1 of any threshold on new patients is a formula. The truth of a run
is that of what is deployed: the threshold that was fitted on all of its rows, on new patients whom
its own networks score, one network a patient as out of fold.

    pytest -m slow tests/scoring/test_simulation.py
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table
from scipy.special import expit, logit
from scipy.stats import norm

from rsna_bcd.scoring.cross_fitting import EnsembleFitter, cross_fitted_decisions, patient_groups
from rsna_bcd.scoring.intervals import Interval, bootstrap_interval
from rsna_bcd.scoring.metrics import pf1, pf1_from_counts
from rsna_bcd.scoring.thresholds import BestPf1, Policy, RecallRate, plateau, threshold_curve

RUNS = 500
PROCESSES = 2
PATIENTS = 3000  # of one run: about 120 breasts with cancer, a quarter of the competition's
RESAMPLES = 400
FEW_PATIENTS, FEW_RUNS = 300, 200  # about 12 breasts with cancer
FOLDS = 5
SICK, BILATERAL = 0.04, 0.02
PREVALENCE = SICK * (1 + BILATERAL) / 2
MEANS = 2.2  # m: the distance of the classes, an AUROC of .94
OF_PATIENT, OF_BREAST, OF_NETWORK = 0.3, 0.4, 0.3  # parts of the variance of z

POLICIES: dict[str, Policy] = {
    "plateau": BestPf1(),
    "peak": BestPf1(width=0),
    "wide plateau": BestPf1(width=1),
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

    def positive_rate(self, limit: np.ndarray, label: int) -> np.ndarray:
        """Share of new breasts of a class above thresholds (K,), by a random network."""
        folds = np.arange(FOLDS)
        middle = self.logits(np.full(FOLDS, MEANS * label), folds)
        return norm.sf((limit[:, None] - middle) / (self.scales * MEANS)).mean(axis=1)

    def positive_rate_of_mean(self, limit: np.ndarray, label: int) -> np.ndarray:
        """As `positive_rate`, of the mean of the logits of all networks, which has less noise."""
        middle = self.logits(np.full(FOLDS, MEANS * label), np.arange(FOLDS)).mean()
        shared = self.scales.mean() ** 2 * (OF_PATIENT + OF_BREAST)
        own = (self.scales**2).sum() / FOLDS**2 * OF_NETWORK
        return norm.sf((limit - middle) / (MEANS * np.sqrt(shared + own)))


def expected_pf1(tpr: np.ndarray, fpr: np.ndarray) -> np.ndarray:
    """pF1 on very many patients."""
    predicted_positive = PREVALENCE * tpr + (1 - PREVALENCE) * fpr
    return pf1_from_counts(PREVALENCE * tpr, predicted_positive, PREVALENCE)


def refitted_interval(
    labels: np.ndarray, p: np.ndarray, patients: np.ndarray, groups: np.ndarray, seed: int
) -> Interval:
    """Of the pF1 of cross-fitted decisions, with thresholds fitted again in each resample."""
    fitter = EnsembleFitter("mean", (1.0,), BestPf1())
    scored = fitter.cross_fit(labels, [{"mean": p}], patients, groups)
    return fitter.intervals({"": pf1}, labels, scored, patients, n=RESAMPLES, seed=seed)[""]


def make_run(
    seed: int, n_patients: int = PATIENTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Networks]:
    """Labels, probabilities out of fold, patients, and the networks that made them."""
    rng = np.random.default_rng(seed)
    networks = Networks(rng.normal(0, 0.2, FOLDS), np.exp(rng.normal(0, 0.1, FOLDS)))
    sick, left = rng.random(n_patients) < SICK, rng.random(n_patients) < 0.5
    both = rng.random(n_patients) < BILATERAL
    labels = np.stack([sick & (left | both), sick & (~left | both)], axis=1).astype(int)
    z = MEANS * labels + np.sqrt(OF_PATIENT) * rng.normal(size=(n_patients, 1))
    z += np.sqrt(OF_BREAST + OF_NETWORK) * rng.normal(size=labels.shape)
    fold = np.repeat(rng.integers(0, FOLDS, n_patients), 2)
    probabilities = expit(networks.logits(z.ravel(), fold))
    return labels.ravel(), probabilities, np.repeat(np.arange(n_patients), 2), networks


def simulated(seed: int) -> dict[str, float]:
    """The figures of one run."""
    labels, probabilities, patients, networks = make_run(seed)
    case = labels, probabilities, patients
    groups = patient_groups(labels, patients, FOLDS, seed)
    one, mean = (
        expected_pf1(shares(GRID, 1), shares(GRID, 0))
        for shares in (networks.positive_rate, networks.positive_rate_of_mean)
    )
    rates = PREVALENCE * networks.positive_rate_of_mean(GRID, 1)
    rates += (1 - PREVALENCE) * networks.positive_rate_of_mean(GRID, 0)
    best = int(np.argmax(one))
    figures = {
        "best possible": one[best],
        "mean, best possible": mean.max(),
        # Of a threshold that was not fitted to the sample.
        "luck": pf1(labels, probabilities >= expit(GRID[best])) - one[best],
    }

    def truth(threshold: float) -> float:
        return float(np.interp(logit(threshold), GRID, one))

    for name, policy in POLICIES.items():
        fitted = policy.fit(*case)
        figures[f"{name}, truth"] = truth(fitted.value)
        figures[f"{name}, in sample"] = pf1(labels, fitted.decide(probabilities))
        scored = cross_fitted_decisions(*case, policy, groups)
        figures[f"{name}, cross-fitted"] = pf1(labels, scored)
        figures[f"{name}, mean by value"] = np.interp(logit(fitted.value), GRID, mean)
        limit = np.interp(-fitted.recall_rate, -rates, GRID)
        figures[f"{name}, mean by rate"] = np.interp(limit, GRID, mean)
    curve = threshold_curve(labels, probabilities)
    for name, width in {"plateau": 0.5, "wide plateau": 1.0}.items():
        found = plateau(*case, width)
        ends = np.array([found.low, found.high])
        figures[f"{name}, its middle probability, truth"] = truth(ends.mean())
        figures[f"{name}, its middle logit, truth"] = truth(float(expit(logit(ends).mean())))
        first, last = np.searchsorted(-curve.thresholds, -ends[::-1])
        figures[f"{name}, its middle cut, truth"] = truth(curve.thresholds[(first + last) // 2])

    scored = cross_fitted_decisions(*case, BestPf1(), groups)
    in_sample = BestPf1().fit(*case).decide(probabilities)
    intervals = {
        "in sample": bootstrap_interval(pf1, labels, in_sample, patients, RESAMPLES, seed),
        "cross-fitted": bootstrap_interval(pf1, labels, scored, patients, RESAMPLES, seed),
        "refitted": refitted_interval(*case, groups, seed),
    }
    for name, interval in intervals.items():
        figures[f"{name} covers"] = interval.low <= figures["plateau, truth"] <= interval.high
        figures[f"{name} width"] = interval.high - interval.low
    return figures


Figures = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def figures() -> Figures:
    """By name, a figure of every run: (RUNS,)."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=fresh) as pool:
        runs = list(pool.map(simulated, range(RUNS), chunksize=5))
    return {name: np.array([run[name] for run in runs], dtype=float) for name in runs[0]}


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


@pytest.mark.slow
def test_figures_are_shown(figures: Figures, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("pF1 (and its standard error)", "over 500 runs", title="Simulated CV")
    for name, values in figures.items():
        mean, error = mean_and_error(values)
        shown = f"{mean:.1%}" if name.endswith("covers") else f"{mean:.4f} ({error:.4f})"
        table.add_row(name, shown)
    for policy in POLICIES:
        for kind in ("in sample", "cross-fitted"):
            bias = figures[f"{policy}, {kind}"] - figures[f"{policy}, truth"]
            for luck, rest in (("", bias), (" less luck", bias - figures["luck"])):
                mean, error = mean_and_error(rest)
                table.add_row(f"{policy}, {kind} less truth{luck}", f"{mean:+.4f} ({error:.4f})")
    with capsys.disabled():
        Console(width=100).print(table)
    assert all(len(values) == RUNS for values in figures.values())
    assert all(np.isfinite(values).all() for values in figures.values())


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["plateau", "peak"])
def test_in_sample_score_is_optimistic_and_cross_fitted_one_is_not(
    figures: Figures, policy: str
) -> None:
    truth = figures[f"{policy}, truth"]
    optimism, error = mean_and_error(figures[f"{policy}, in sample"] - truth - figures["luck"])
    assert optimism > 10 * error
    assert optimism > 0.01
    for luck in (0, figures["luck"]):  # less the luck of the samples one can look four times closer
        bias, error = mean_and_error(figures[f"{policy}, cross-fitted"] - truth - luck)
        assert abs(bias) < 2.5 * error


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["cross-fitted", "refitted"])
def test_intervals_cover_the_truth(figures: Figures, interval: str) -> None:
    assert 0.90 < figures[f"{interval} covers"].mean() < 0.98


@pytest.mark.slow
def test_refitted_intervals_of_few_cancers_are_wide_and_low(
    capsys: pytest.CaptureFixture[str],
) -> None:
    covers, offsets = [], []
    for seed in range(FEW_RUNS):
        labels, probabilities, patients, networks = make_run(seed, FEW_PATIENTS)
        one = expected_pf1(networks.positive_rate(GRID, 1), networks.positive_rate(GRID, 0))
        groups = patient_groups(labels, patients, FOLDS, seed)
        interval = refitted_interval(labels, probabilities, patients, groups, seed)
        threshold = BestPf1().fit(labels, probabilities, patients).value
        truth = np.interp(logit(threshold), GRID, one)
        covers.append(interval.low <= truth <= interval.high)
        offsets.append((interval.low + interval.high) / 2 - interval.value)
    offset, error = mean_and_error(np.array(offsets))
    with capsys.disabled():
        print(f"\nfew cancers: covered {np.mean(covers):.1%}, middle {offset:+.4f} ({error:.4f})")
    assert np.mean(covers) > 0.95
    assert offset < -2 * error


@pytest.mark.slow
def test_middle_of_the_plateau_beats_its_peak(figures: Figures) -> None:
    loss = {name: figures["best possible"] - figures[f"{name}, truth"] for name in POLICIES}
    gain, error = mean_and_error(loss["peak"] - loss["plateau"])
    assert gain > 5 * error
    assert loss["plateau"].mean() < 0.75 * loss["peak"].mean()
    for scale in ("middle probability", "middle logit", "middle cut"):
        for plateau_ in ("plateau", "wide plateau"):
            other = figures["best possible"] - figures[f"{plateau_}, its {scale}, truth"]
            assert mean_and_error(loss[plateau_] - other)[0] < 0.0005


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_recall_rate_suits_the_mean_of_the_networks_better(figures: Figures, policy: str) -> None:
    gain, error = mean_and_error(
        figures[f"{policy}, mean by rate"] - figures[f"{policy}, mean by value"]
    )
    assert gain > 10 * error
    assert gain > 0.01
