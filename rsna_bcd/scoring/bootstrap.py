"""Intervals by resampling patients.

The breasts of a patient are not independent, so whole patients are drawn with replacement. A
resample is a weight per row (how often its patient was drawn), which is all that a score needs.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.scoring.arrays import Floats
from rsna_bcd.scoring.resampling import Judged, Metric, patient_numbers, resamples

LEVELS = (0.025, 0.975)  # a 95 % interval


@dataclass(frozen=True)
class Interval:
    """A score on all rows and its 95 % interval over resampled patients."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Difference(Interval):
    """A score's difference, with the two-sided p-value of "there is none"."""

    p_value: float


@dataclass(frozen=True)
class Score:
    """What is to be scored, and how.

    Attributes:
        metric: `(labels, probabilities, weights=...) -> float`.
        probabilities: (N,), or decisions of 0 and 1.
    """

    metric: Metric
    probabilities: ArrayLike


def patient_bootstrap(
    metric: Metric,
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    n: int = 2000,
    seed: int = 0,
) -> Interval:
    """The score and its percentile interval; `patient_bootstraps` takes several scores at once."""
    return patient_bootstraps({"it": metric}, labels, probabilities, patients, n, seed)["it"]


def patient_bootstraps(
    metrics: Mapping[str, Metric],
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    n: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Scores of the same probabilities and their percentile intervals, over the same resamples.

    Args:
        metrics: Each `(labels, probabilities, weights=...) -> float`.
        labels: (N,), each 0 or 1.
        probabilities: (N,), or decisions of 0 and 1.
        patients: (N,), an id per row.
        n: Number of resamples.
        seed: Of the resampling.

    Returns:
        An interval for each of `metrics`, under its name.
    """
    p = np.asarray(probabilities)
    scores = {name: Score(metric, p) for name, metric in metrics.items()}
    return score_bootstraps(scores, labels, patients, n, seed)


def score_bootstraps(
    scores: Mapping[str, Score],
    labels: ArrayLike,
    patients: ArrayLike,
    n: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Scores of several probabilities of the same rows, all over the same resamples.

    Every array of probabilities is sorted once, whatever scores it has. Resamples in which a score
    is undefined (NaN: an AUROC without positives) are left out of its interval.

    Args:
        scores: By name.
        labels: (N,), each 0 or 1.
        patients: (N,), an id per row.
        n: Number of resamples.
        seed: Of the resampling.

    Returns:
        An interval for each of `scores`, under its name.
    """
    patient, n_patients = patient_numbers(patients)
    values = _resampled(scores, labels, patient, n_patients, n, seed)
    return {
        name: Interval(_plain(score, labels), *percentiles(values[name]))
        for name, score in scores.items()
    }


def paired_difference(
    metric: Metric,
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    patients: ArrayLike,
    n: int = 2000,
    seed: int = 0,
) -> Difference:
    """How much higher `second` scores than `first` on the same rows.

    Both are scored on the same resamples, so what is hard for both cancels. The p-value is twice
    the smaller share of resamples on either side of 0, counting the observed one among them.

    Args:
        metric: `(labels, probabilities, weights=...) -> float`.
        labels: (N,), each 0 or 1.
        first: (N,), probabilities of one model.
        second: (N,), probabilities of the other.
        patients: (N,), an id per row.
        n: Number of resamples.
        seed: Of the resampling.
    """
    patient, n_patients = patient_numbers(patients)
    scores = {"first": Score(metric, first), "second": Score(metric, second)}
    values = _resampled(scores, labels, patient, n_patients, n, seed)
    differences = values["second"] - values["first"]
    value = _plain(scores["second"], labels) - _plain(scores["first"], labels)
    return Difference(value, *percentiles(differences), p_value=two_sided_p(differences))


def two_sided_p(differences: Floats) -> float:
    """The p-value of "there is no difference", from resampled ones (n,); NaN are left out."""
    defined = differences[np.isfinite(differences)]
    side = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(defined) + 1))


def percentiles(values: Floats) -> tuple[float, float]:
    """The ends of a 95 % interval, of resampled scores: NaN are left out, all NaN give NaN."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, LEVELS)
    return float(low), float(high)


def _plain(score: Score, labels: ArrayLike) -> float:
    return score.metric(labels, score.probabilities, weights=None)


def _resampled(
    scores: Mapping[str, Score],
    labels: ArrayLike,
    patient: NDArray[np.intp],
    n_patients: int,
    n: int,
    seed: int,
) -> dict[str, Floats]:
    """Each score in each of n resamples: (n,)."""
    judged: dict[int, Judged] = {}  # by the identity of its probabilities: those are sorted once
    for score in scores.values():
        key = id(score.probabilities)
        if key not in judged:
            judged[key] = Judged(labels, score.probabilities, patient)
        judged[key].metrics.append(score.metric)
    found: dict[int, list[list[Floats]]] = {key: [] for key in judged}
    for counts in resamples(n_patients, len(patient), n, seed):
        for key, one in judged.items():
            found[key].append(one.scores(counts))
    columns = {key: iter(np.concatenate(blocks, axis=1)) for key, blocks in found.items()}
    return {name: next(columns[id(score.probabilities)]) for name, score in scores.items()}
