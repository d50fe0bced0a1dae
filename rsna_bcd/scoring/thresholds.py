"""Thresholds: curve and plateau, policies that choose one, and operating points."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.intervals import Interval, Score, bootstrap_scores, patient_indices
from rsna_bcd.scoring.metrics import (
    OPERATING,
    Floats,
    ThresholdCounts,
    check_inputs,
    decide,
    pf1_from_counts,
    threshold_counts,
)

PLATEAU_WIDTH = 0.5  # below the best pF1, in standard errors

_MISSING_SITES = ("", "nan", "None", "<NA>")  # missing values as strings
_RATE_TOLERANCE = 0.5  # relative; a point farther from its nominal rate is left out


@dataclass(frozen=True)
class ThresholdCurve:
    """Scores of the decisions at every threshold that differs, descending.

    Attributes:
        thresholds: (K,), descending. Each lies midway between the lowest score that it predicts
            positive and the next one below (0 below the lowest of all), so that decisions do not
            change with the last digits of the scores.
        precision: (K,).
        recall: (K,), the sensitivity; NaN without positives.
        pf1: (K,), of the decisions: the ordinary F1.
        recall_rate: (K,), share of the rows that is predicted positive.
    """

    thresholds: Floats
    precision: Floats
    recall: Floats
    pf1: Floats
    recall_rate: Floats


@dataclass(frozen=True)
class Plateau:
    """The thresholds that the data cannot distinguish from the best one.

    Attributes:
        low: The lowest of them.
        high: The highest of them.
        threshold: The one in their middle, `low <= threshold <= high`.
        pf1: Of the best threshold, on the rows that it was chosen on: optimistic.
        standard_error: Of that pF1, by patients.
    """

    low: float
    high: float
    threshold: float
    pf1: float
    standard_error: float


def threshold_curve(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> ThresholdCurve:
    """Precision, recall, pF1 and recall rate at every threshold; rows of weight 0 are absent."""
    y, p, w = check_inputs(labels, probabilities, weights)
    counts = threshold_counts(y[w > 0], p[w > 0], w[w > 0])
    predicted = counts.predicted_positive
    with np.errstate(invalid="ignore"):
        recall = counts.tp / counts.positives
    return ThresholdCurve(
        thresholds=midpoints(counts.scores),
        precision=counts.tp / predicted,
        recall=recall,
        pf1=pf1_from_counts(counts.tp, predicted, counts.positives),
        recall_rate=predicted / (counts.positives + counts.negatives),
    )


def midpoints(scores: Floats) -> Floats:
    """Thresholds between each of some distinct descending scores and the next one below."""
    below = np.append(scores[1:], np.minimum(scores[-1:], 0.0))
    middle = (scores + below) / 2
    # Between two neighbouring floats there is nothing: the mean rounds to one of them.
    return np.where(middle > below, middle, scores)


def plateau(
    labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike, width: float = PLATEAU_WIDTH
) -> Plateau:
    """All thresholds whose pF1 is within `width` standard errors of the best, and their middle.

    The best threshold of a sample is a peak of its noise: on other patients it lies elsewhere. The
    middle of all thresholds that are as good within that noise is more stable. Some thresholds
    between its ends may score lower; they are not chosen.

    The middle is the geometric mean of the number of rows predicted positive at both ends, so it
    does not depend on the scale of the scores. On new patients it loses a quarter less than the
    peak does, against the best possible (`tests/scoring/test_simulation.py`).

    A `width` of 0 leaves the best threshold and its equals.

    Raises:
        InputError: there is nothing to choose by: one class only, or all probabilities equal.
    """
    y, p, _ = check_inputs(labels, probabilities)
    patient, n_patients = patient_indices(patients)
    return weighted_plateau(y, p, patient, np.ones(n_patients), width)


def weighted_plateau(
    labels: Floats,
    probabilities: Floats,
    patient: NDArray[np.intp],
    draws: Floats,
    width: float = PLATEAU_WIDTH,
) -> Plateau:
    """`plateau` of a resample, fastest for probabilities in descending order.

    `patient` (N,) is the index of each row's patient, `draws` (P,) how often each was drawn.
    """
    counts = _drawn_counts(labels, probabilities, patient, draws)
    predicted = counts.predicted_positive
    scores = pf1_from_counts(counts.tp, predicted, counts.positives)
    best = int(np.argmax(scores))
    error = _standard_error(labels, probabilities >= counts.scores[best], patient, draws)
    inside = np.flatnonzero(scores >= float(scores[best]) - width * error)
    size = np.log(predicted[inside])
    middle = inside[_nearest(size, (size[0] + size[-1]) / 2)]
    thresholds = midpoints(counts.scores)
    return Plateau(
        low=float(thresholds[inside[-1]]),
        high=float(thresholds[inside[0]]),
        threshold=float(thresholds[middle]),
        pf1=float(scores[best]),
        standard_error=error,
    )


def _nearest(ascending: Floats, value: float) -> int:
    """Index of the nearest of some ascending numbers; the first of two that are as near."""
    after = int(np.searchsorted(ascending, value))
    if after in (0, len(ascending)):
        return max(after - 1, 0)
    return after - int(value - ascending[after - 1] <= ascending[after] - value)


def _drawn_counts(
    labels: Floats, probabilities: Floats, patient: NDArray[np.intp], draws: Floats
) -> ThresholdCounts:
    """Counts of a resample; rows with nothing to choose a threshold by are refused."""
    weights = draws[patient]
    drawn = np.flatnonzero(weights)
    counts = threshold_counts(labels[drawn], probabilities[drawn], weights[drawn])
    if counts.positives == 0 or counts.negatives == 0:
        raise InputError(
            f"A threshold needs breasts of both classes, but there are {counts.positives:.0f} "
            f"positive and {counts.negatives:.0f} negative ones. Use more folds."
        )
    if len(counts.scores) == 1:
        raise InputError(
            f"All {counts.positives + counts.negatives:.0f} probabilities equal "
            f"{counts.scores[0]:g}: no threshold separates anything. The network learnt nothing; "
            "train it longer or again."
        )
    return counts


def _standard_error(
    labels: Floats, predicted: NDArray[np.bool_], patient: NDArray[np.intp], draws: Floats
) -> float:
    """Standard error of a pF1 by patients.

    pF1 = 2 TP / (predicted positive + positives) is a ratio of sums over patients, whose variance
    to first order is that of the sum of 2 tp - pF1 (predicted positive + positives) of each, over
    the denominator squared. Source: Cochran, Sampling Techniques (1977), 6.4.
    """
    n = float(np.sum(draws[np.bincount(patient, minlength=len(draws)) > 0]))
    rows = np.flatnonzero(predicted | (labels == 1))  # the others add 0
    y, predicted, patient = labels[rows], predicted[rows], patient[rows]
    twice_tp = 2 * np.bincount(patient, y * predicted, len(draws))
    size = np.bincount(patient, y + predicted, len(draws))
    total = np.sum(draws * size)
    residual = twice_tp - np.sum(draws * twice_tp) / total * size
    return float(np.sqrt(np.sum(draws * residual**2) * n / max(n - 1, 1)) / total)


@dataclass(frozen=True)
class Threshold:
    """A fitted threshold: a row at or above it is predicted positive.

    Attributes:
        value: Where a site has none of its own.
        sites: By site, the thresholds of those that have.
        recall_rate: Share of the rows it was fitted on that it predicts positive.
    """

    value: float
    sites: Mapping[str, float] = field(default_factory=dict)
    recall_rate: float = float("nan")

    def decide(self, probabilities: ArrayLike, sites: ArrayLike | None = None) -> NDArray[np.int64]:
        """Decide each row by its site's own threshold where there is one: (N,), 0 or 1.

        Raises:
            InputError: a site is a float, not a string or an integer.
        """
        if sites is None or not self.sites:
            return decide(probabilities, self.value)
        names, site = np.unique(site_names(sites), return_inverse=True)
        own = np.array([self.sites.get(str(name), self.value) for name in names])
        return decide(probabilities, own[site])

    def at_same_recall_rate(self, probabilities: ArrayLike) -> "Threshold":
        """A threshold that predicts the same share of new rows positive.

        For probabilities that are distributed differently from those it was fitted on: the mean
        over folds is less extreme than the single fold behind an out-of-fold row. It assumes that
        the new rows are many and have the same prevalence. Sites have none of their own.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        value = _at_recall_rate(threshold_counts(np.zeros(len(p)), p), self.recall_rate)
        return Threshold(value, {}, self.recall_rate)


class Policy(ABC):
    """How a threshold is chosen."""

    by_site: int | None = None  # positives that a site needs to get a threshold of its own

    @abstractmethod
    def choose(
        self, labels: Floats, probabilities: Floats, patient: NDArray[np.intp], draws: Floats
    ) -> float:
        """The threshold of a resample; arguments and errors as of `weighted_plateau`."""

    def fit(
        self,
        labels: ArrayLike,
        probabilities: ArrayLike,
        patients: ArrayLike,
        sites: ArrayLike | None = None,
    ) -> Threshold:
        """One threshold for all rows, and one for each site with enough positives.

        Raises:
            InputError: one class only, all probabilities equal, or `by_site` without sites.
        """
        y, p, _ = check_inputs(labels, probabilities)
        patient, n_patients = patient_indices(patients)
        draws = np.ones(n_patients)
        value = self.choose(y, p, patient, draws)
        own: dict[str, float] = {}
        if self.by_site is not None:
            if sites is None:
                raise InputError("Thresholds by site need the site of every row. Set by_site=null.")
            for name, rows in known_sites(sites, y).items():
                if y[rows].sum() >= self.by_site:
                    with suppress(InputError):  # one class, or equal probabilities
                        own[name] = self.choose(y[rows], p[rows], patient[rows], draws)
        decisions = Threshold(value, own).decide(p, sites)
        return Threshold(value, own, recall_rate=float(decisions.mean()))


@dataclass(frozen=True)
class BestPf1(Policy):
    """The middle of the thresholds whose pF1 is as good as the best (`plateau`).

    Attributes:
        by_site: Number of positives that a site needs to get a threshold of its own; None gives
            none.
        width: Of the plateau in standard errors; 0 takes the best threshold itself.
    """

    by_site: int | None = None
    width: float = PLATEAU_WIDTH

    def choose(
        self, labels: Floats, probabilities: Floats, patient: NDArray[np.intp], draws: Floats
    ) -> float:
        """The middle of the plateau."""
        return weighted_plateau(labels, probabilities, patient, draws, self.width).threshold


@dataclass(frozen=True)
class RecallRate(Policy):
    """The threshold that predicts a given share of the rows positive; none by site.

    Fitted, cross-fitted and scored is the value that predicts this share of the fitted rows
    positive; deployed may be the share itself (`Threshold.at_same_recall_rate`). Out of
    fold both are nearly the same, for the rows are distributed alike; a mean over folds is not
    (`tests/scoring/test_simulation.py` has the share ahead there).

    Attributes:
        rate: The share; None takes that of `BestPf1` on the same rows.
    """

    rate: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate < 1:
            raise InputError(f"A recall rate of {self.rate} is not between 0 and 1.")

    def choose(
        self, labels: Floats, probabilities: Floats, patient: NDArray[np.intp], draws: Floats
    ) -> float:
        """The threshold whose recall rate is nearest."""
        if self.rate is None:
            return weighted_plateau(labels, probabilities, patient, draws).threshold
        return _at_recall_rate(_drawn_counts(labels, probabilities, patient, draws), self.rate)


def known_sites(sites: ArrayLike, labels: ArrayLike) -> dict[str, NDArray[np.bool_]]:
    """The rows of each site that has a positive one: (N,) each; missing sites are left out."""
    site = site_names(sites)
    names = np.unique(site[np.asarray(labels) == 1])
    return {str(name): site == name for name in names if name not in _MISSING_SITES}


def site_names(sites: ArrayLike) -> NDArray[np.str_]:
    """Names of sites; floats are refused, because site 1.0 would not be found as site 1."""
    site = np.asarray(sites)
    if site.dtype.kind in "fO":
        floats = [one for one in site.tolist() if isinstance(one, float) and not np.isnan(one)]
        if floats:
            raise InputError(
                f"Site {floats[0]} is a float, which matches no name of a site. Give the sites as "
                "text or as integers."
            )
    return site.astype(str)


def _at_recall_rate(counts: ThresholdCounts, rate: float) -> float:
    """The threshold whose recall rate is nearest; above all scores where that is none."""
    index = _index_at_recall_rate(counts, rate)
    if index < 0:
        return float(np.nextafter(counts.scores[0], np.inf))
    return float(midpoints(counts.scores[index : index + 2])[0])


def _index_at_recall_rate(counts: ThresholdCounts, rate: float) -> int:
    """Index of the threshold whose recall rate is nearest; -1 where that is to predict none."""
    predicted = np.append(0.0, counts.predicted_positive)
    return _nearest(predicted, rate * predicted[-1]) - 1


@dataclass(frozen=True)
class OperatingPoint:
    """Decisions at a threshold, and their scores.

    Attributes:
        threshold: Of the decisions.
        scores: With intervals, by the names of `metrics.OPERATING`.
    """

    threshold: float
    scores: Mapping[str, Interval]


def operating_points(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    *,
    recall_rates: Sequence[float] = (0.015, 0.035, 0.10),
    specificities: Sequence[float] = (0.90, 0.95),
    n: int = 2000,
    seed: int = 0,
) -> dict[str, OperatingPoint]:
    """Scores at fixed recall rates and at fixed specificities.

    Each threshold is chosen on these rows and then the same in all resamples, so that the
    fixed rate has an interval as well: another screening round would not meet it exactly.

    Of recall rates the nearest possible one is taken, of specificities the lowest threshold that
    reaches it. One of less than one row or one false positive, or that no threshold comes near, has
    no point.

    Returns:
        By name: `recall rate 1.5 %` and so on, then `specificity 90 %` and so on.

    Raises:
        InputError: one class only, or a rate that is not between 0 and 1.
    """
    y, p, _ = check_inputs(labels, probabilities)
    thresholds = _thresholds_at_rates(threshold_counts(y, p), recall_rates, specificities)
    scores = {
        f"{metric} at {name}": Score(function, decisions)
        for name, decisions in ((name, decide(p, value)) for name, value in thresholds.items())
        for metric, function in OPERATING.items()
    }
    intervals = bootstrap_scores(scores, y, patients, n, seed)
    return {
        name: OperatingPoint(value, {one: intervals[f"{one} at {name}"] for one in OPERATING})
        for name, value in thresholds.items()
    }


def _thresholds_at_rates(
    counts: ThresholdCounts, recall_rates: Sequence[float], specificities: Sequence[float]
) -> dict[str, float]:
    """The thresholds of `operating_points`, by name."""
    if counts.positives == 0 or counts.negatives == 0:
        raise InputError(
            f"Operating points need breasts of both classes, but there are {counts.positives:.0f} "
            f"positive and {counts.negatives:.0f} negative ones. Use more folds."
        )
    specificity = 1 - counts.fp / counts.negatives
    nominal = [("recall rate", rate, rate, counts.predicted_positive) for rate in recall_rates]
    nominal += [("specificity", rate, 1 - rate, counts.fp) for rate in specificities]
    thresholds = {}
    for kind, rate, share, rows in nominal:
        if not 0 < rate < 1:
            raise InputError(f"A {kind} of {rate} is not between 0 and 1.")
        if kind == "recall rate":
            index = _index_at_recall_rate(counts, rate)
        else:
            index = int(np.sum(specificity >= rate - 1e-12)) - 1  # 1 - 0.1 is not quite 0.9
        target = share * float(rows[-1])
        near = abs(float(rows[index]) - target) <= _RATE_TOLERANCE * target
        if index >= 0 and target >= 1 - 1e-9 and near:
            thresholds[f"{kind} {100 * rate:g} %"] = float(midpoints(counts.scores)[index])
    return thresholds
