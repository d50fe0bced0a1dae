"""Intervals by resampling patients.

The breasts of a patient are not independent, so whole patients are drawn with replacement. A
resample is a weight per row (how often its patient was drawn), which is all that a score needs.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from rsna_bcd.scoring.arrays import Floats, checked

LEVELS = (0.025, 0.975)  # a 95 % interval


class Metric(Protocol):
    """A score of weighted rows, such as `pf1` or `auroc`."""

    def __call__(  # noqa: D102  (the class says it)
        self, labels: ArrayLike, probabilities: ArrayLike, /, *, weights: ArrayLike | None
    ) -> float: ...


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
    """Scores and their percentile intervals, over the same resamples.

    Resamples in which a score is undefined (NaN: an AUROC without positives) are left out of its
    interval.

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
    rows = _Rows(labels, probabilities, patients)
    draws = [
        [rows.score(metric, counts) for metric in metrics.values()]
        for counts in _resamples(rows.n_patients, n, seed)
    ]
    return {
        name: Interval(rows.score(metric, None), *_quantiles(values))
        for (name, metric), values in zip(metrics.items(), np.transpose(draws), strict=True)
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
    a, b = _Rows(labels, first, patients), _Rows(labels, second, patients)
    differences = np.array(
        [
            b.score(metric, counts) - a.score(metric, counts)
            for counts in _resamples(a.n_patients, n, seed)
        ]
    )
    defined = differences[np.isfinite(differences)]
    side = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    p_value = min(1.0, 2 * (side + 1) / (len(defined) + 1))
    value = b.score(metric, None) - a.score(metric, None)
    return Difference(value, *_quantiles(differences), p_value=p_value)


class _Rows:
    """Rows in descending order of probability: a metric's own sort then takes linear time."""

    def __init__(self, labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike) -> None:
        y, p, _ = checked(labels, probabilities, None)
        ids, patient = np.unique(np.asarray(patients), return_inverse=True)
        order = np.argsort(-p, kind="stable")
        self.labels, self.probabilities, self.patient = y[order], p[order], patient[order]
        self.n_patients = len(ids)

    def score(self, metric: Metric, counts: Floats | None) -> float:
        """The score when each patient counts as often as given: (patients,), None for once."""
        weights = None if counts is None else counts[self.patient]
        return metric(self.labels, self.probabilities, weights=weights)


def _resamples(n_patients: int, n: int, seed: int) -> Iterator[Floats]:
    """How often each patient was drawn in each of n resamples: (patients,), with sum patients."""
    generator = np.random.default_rng(seed)
    for _ in range(n):
        drawn = generator.integers(0, n_patients, n_patients)
        yield np.bincount(drawn, minlength=n_patients).astype(np.float64)


def _quantiles(values: Floats) -> tuple[float, float]:
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, LEVELS)
    return float(low), float(high)
