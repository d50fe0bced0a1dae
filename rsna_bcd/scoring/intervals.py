"""Confidence intervals: patient bootstrap, DeLong, Wilson, and bands around curves.

The breasts of a patient are not independent, so whole patients are drawn with replacement. A
resample is a weight per row (how often its patient was drawn), which is all that a metric needs.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.stats import binomtest, norm, rankdata

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.metrics import (
    Floats,
    Metric,
    ThresholdCounts,
    check_inputs,
    threshold_counts,
)

_QUANTILES = (0.025, 0.975)  # of a 95 % interval
_Z = float(norm.ppf(_QUANTILES[1]))


@dataclass(frozen=True)
class Interval:
    """A score on all rows and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Difference(Interval):
    """The difference of two scores, with the two-sided p-value of "there is none"."""

    p_value: float


@dataclass(frozen=True)
class Score:
    """A metric of some probabilities.

    Attributes:
        metric: `(labels, probabilities, weights=None) -> float`.
        probabilities: (N,), or decisions of 0 and 1.
        rows: (N,), True for the rows that count; None for all.
    """

    metric: Metric
    probabilities: ArrayLike
    rows: NDArray[np.bool_] | None = None


def patient_indices(patients: ArrayLike) -> tuple[NDArray[np.intp], int]:
    """The index of each row's patient, 0 .. P - 1 in the order of the ids, and P."""
    ids, patient = np.unique(np.asarray(patients), return_inverse=True)
    return patient, len(ids)


def patient_resamples(n_patients: int, n: int, seed: int) -> Iterator[Floats]:
    """How often each of P patients is drawn in each of n resamples of P patients: (P,) each."""
    generator = np.random.default_rng(seed)
    for _ in range(n):
        drawn = generator.integers(0, n_patients, n_patients)
        yield np.bincount(drawn, minlength=n_patients).astype(np.float64)


def bootstrap_distributions(
    scores: Mapping[str, Score], labels: ArrayLike, patients: ArrayLike, n: int, seed: int = 0
) -> dict[str, Floats]:
    """Every score in each of n resamples of the patients, the same ones for all scores.

    Returns:
        (n,) for each of `scores`; NaN where a score is undefined (an AUROC without positives).
    """
    patient, n_patients = patient_indices(patients)
    tables: dict[tuple[int, int], tuple[Floats, Floats, csr_array]] = {}
    for score in scores.values():
        key = id(score.probabilities), id(score.rows)
        if key not in tables:
            y, p, _ = check_inputs(labels, score.probabilities)
            which = slice(None) if score.rows is None else score.rows
            tables[key] = _merge_equal_rows(y[which], p[which], patient[which], n_patients)
    values = {name: np.empty(n) for name in scores}
    for resample, draws in enumerate(patient_resamples(n_patients, n, seed)):
        weights = {key: rows @ draws for key, (_, _, rows) in tables.items()}
        for name, score in scores.items():
            key = id(score.probabilities), id(score.rows)
            y, p, _ = tables[key]
            values[name][resample] = score.metric(y, p, weights=weights[key])
    return values


def _merge_equal_rows(
    labels: Floats, probabilities: Floats, patient: NDArray[np.intp], n_patients: int
) -> tuple[Floats, Floats, csr_array]:
    """The K distinct pairs of label and probability, by descending probability.

    Returns:
        Labels and probabilities, (K,) each, and how many such rows each patient has, (K, P).
        Decisions have four pairs at most, so that their metrics cost next to nothing.
    """
    pairs, pair = np.unique(np.stack([-probabilities, labels]), axis=1, return_inverse=True)
    rows = csr_array((np.ones(len(pair)), (pair, patient)), shape=(pairs.shape[1], n_patients))
    return pairs[1], -pairs[0], rows


def bootstrap_scores(
    scores: Mapping[str, Score],
    labels: ArrayLike,
    patients: ArrayLike,
    n: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Scores with percentile intervals; arguments as of `bootstrap_distributions`."""
    values = bootstrap_distributions(scores, labels, patients, n, seed)
    intervals = {}
    for name, score in scores.items():
        which = slice(None) if score.rows is None else score.rows
        y, p = np.asarray(labels)[which], np.asarray(score.probabilities)[which]
        intervals[name] = Interval(score.metric(y, p), *percentile_interval(values[name]))
    return intervals


def bootstrap_metrics(
    metrics: Mapping[str, Metric],
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    n: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """`bootstrap_scores` of several metrics of the same probabilities."""
    p = np.asarray(probabilities)
    scores = {name: Score(metric, p) for name, metric in metrics.items()}
    return bootstrap_scores(scores, labels, patients, n, seed)


def bootstrap_interval(
    metric: Metric,
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    n: int = 2000,
    seed: int = 0,
) -> Interval:
    """`bootstrap_metrics` of one metric."""
    return bootstrap_metrics({"": metric}, labels, probabilities, patients, n, seed)[""]


def paired_difference(
    metric: Metric,
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    patients: ArrayLike,
    n: int = 2000,
    seed: int = 0,
) -> Difference:
    """How much higher the probabilities `second` score than `first`, on the same resamples."""
    scores = {"first": Score(metric, first), "second": Score(metric, second)}
    values = bootstrap_distributions(scores, labels, patients, n, seed)
    differences = values["second"] - values["first"]
    value = metric(labels, second) - metric(labels, first)
    p_value = two_sided_p_value(differences)
    return Difference(value, *percentile_interval(differences), p_value=p_value)


def two_sided_p_value(differences: Floats) -> float:
    """The p-value of "there is no difference", from resampled differences (n,); NaN are left out.

    Twice the smaller share of resamples on either side of 0, the observed value among them.
    """
    defined = differences[np.isfinite(differences)]
    side = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(defined) + 1))


def percentile_interval(values: Floats) -> tuple[float, float]:
    """The ends of a 95 % interval, of resampled scores; NaN are left out, all NaN give NaN."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, _QUANTILES)
    return float(low), float(high)


def wilson(positives: float, n: int) -> Interval:
    """A proportion with Wilson's 95 % score interval, for independent rows.

    It has a width at 0 and 1 as well, where all resamples are equal.

    Source: Wilson, Journal of the American Statistical Association 22 (1927).

    Raises:
        InputError: no rows, or more positives than rows.
    """
    if not 0 <= positives <= n or n == 0:
        raise InputError(
            f"{positives:g} of {n} is no proportion. Give 0 <= positives <= n, and n of 1 or more."
        )
    ends = binomtest(round(positives), n).proportion_ci(0.95, "wilson")
    return Interval(positives / n, float(ends.low), float(ends.high))


def wilson_if_degenerate(resampled: Interval, n: int) -> Interval:
    """Wilson's interval where a resampled proportion is 0 or 1 and has no width, else as it is.

    `n` is the number of independent rows: of patients.
    """
    if resampled.value not in (0.0, 1.0) or resampled.low < resampled.high or n == 0:
        return resampled
    return wilson(resampled.value * n, n)


def nan_if_degenerate(interval: Interval) -> Interval:
    """The interval, with NaN ends where it has no width, which shows no certainty.

    Resamples of rows that are all classified correctly are so too, of 12 rows as of 1,200.
    """
    if interval.low < interval.high:
        return interval
    return Interval(interval.value, math.nan, math.nan)


@dataclass(frozen=True)
class AurocCovariance:
    """AUROCs of M models on the same rows: (M,), and the covariance of the estimates, (M, M)."""

    auroc: Floats
    covariance: Floats


def auroc_covariance(
    labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike | None = None
) -> AurocCovariance:
    """AUROCs and their covariance without resampling.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), by the midranks of Sun and Xu,
    IEEE Signal Processing Letters 21 (2014). With `patients` the variance is that of Obuchowski,
    Biometrics 53 (1997), for rows that are clustered; it equals DeLong's where each patient has
    one row.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (M, N), M models; only the order within each matters.
        patients: (N,), an id per row; None for independent rows.

    Raises:
        InputError: a class has fewer than two rows, or with `patients` fewer than two patients; or
            all probabilities of a model are equal, of which the formula would be certain.
    """
    scores = np.atleast_2d(np.asarray(probabilities, dtype=np.float64))
    positive = check_inputs(labels, scores[0])[0] == 1
    for row in scores:
        check_inputs(labels, row)
        if row.min() == row.max():
            raise InputError(
                f"All {len(row)} probabilities equal {row[0]:g}: they have no order, so AUROC has "
                "no interval. Train the model longer or again, or leave it out."
            )
    patient, n = patient_indices(np.arange(len(positive)) if patients is None else patients)
    classes = positive, ~positive
    counts = [int(rows.sum()) for rows in classes]
    # Patients with at least one row of the class; I10 and I01 in Obuchowski's paper.
    holders = [len(np.unique(patient[rows])) for rows in classes]
    if min(holders) < 2:
        raise InputError(
            f"AUROC's variance needs two {'rows' if patients is None else 'patients'} of each "
            f"class, but {holders[0]} with cancer and {holders[1]} without are here. Use more "
            "folds."
        )
    # For each row the share of the other class that it is ordered correctly against, ties half.
    placements = np.empty_like(scores)
    for rows, sign, n_others in ((positive, 1, counts[1]), (~positive, -1, counts[0])):
        own = rankdata(sign * scores[:, rows], axis=1)
        placements[:, rows] = (rankdata(sign * scores, axis=1)[:, rows] - own) / n_others
    auroc = placements[:, positive].mean(axis=1)
    # Sum over each patient's rows of a class of the deviation from the mean: (M, P).
    deviation = placements - auroc[:, None]
    sums: list[Floats] = [
        np.array([np.bincount(patient[rows], d[rows], n) for d in deviation], dtype=np.float64)
        for rows in classes
    ]
    covariance = np.zeros((len(scores), len(scores)))
    for own, count, holding in zip(sums, counts, holders, strict=True):
        covariance += holding / (holding - 1) * np.sum(own[:, None] * own, axis=2) / count**2
    if patients is not None:  # a patient may have rows of both classes
        cross = np.sum(sums[0][:, None] * sums[1], axis=2) * n / (n - 1) / (counts[0] * counts[1])
        covariance += cross + cross.T
    return AurocCovariance(auroc, covariance)


def delong(
    labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike | None = None
) -> Interval:
    """AUROC with its 95 % interval by DeLong's formula; arguments as of `auroc_covariance`.

    The interval is symmetric in log(A / (1 - A)), so that it stays within [0, 1] and covers better
    near 1 than the symmetric one. At an AUROC of exactly 0 or 1 the variance is unknown, and the
    ends are NaN.

    Raises:
        InputError: see `auroc_covariance`.
    """
    estimate = auroc_covariance(labels, probabilities, patients)
    value = float(estimate.auroc[0])
    error = math.sqrt(max(float(estimate.covariance[0, 0]), 0.0))
    if value in (0.0, 1.0):
        return Interval(value, math.nan, math.nan)
    odds, slope = math.log(value / (1 - value)), error / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-(odds + sign * _Z * slope))) for sign in (-1, 1))
    return Interval(value, low, high)


def delong_difference(
    labels: ArrayLike, first: ArrayLike, second: ArrayLike, patients: ArrayLike | None = None
) -> Difference:
    """How much higher the AUROC of `second` is than that of `first`, by DeLong's formula.

    The interval is the symmetric one, the p-value two-sided; it is 1 where both order all rows
    alike. Where they differ and the estimated variance is 0, ends and p-value are NaN.

    Raises:
        InputError: see `auroc_covariance`.
    """
    estimate = auroc_covariance(labels, np.stack([np.asarray(first), np.asarray(second)]), patients)
    value = float(estimate.auroc[1] - estimate.auroc[0])
    c = estimate.covariance
    variance = float(c[0, 0] + c[1, 1] - 2 * c[0, 1])
    # The rest of terms that cancel: the models order all rows alike, or by equal amounts.
    if variance <= 1e-15 * max(float(np.trace(c)), 1e-300):
        if value == 0:
            return Difference(0.0, 0.0, 0.0, p_value=1.0)
        return Difference(value, math.nan, math.nan, p_value=math.nan)
    error = math.sqrt(variance)
    p_value = float(2 * norm.sf(abs(value) / error))
    return Difference(value, value - _Z * error, value + _Z * error, p_value=p_value)


@dataclass(frozen=True)
class ConfidenceBand:
    """A curve with its pointwise 95 % band over resampled patients.

    Attributes:
        x: (K,) ascending, from 0 to 1.
        value: (K,) of all rows.
        low: (K,)
        high: (K,)
    """

    x: Floats
    value: Floats
    low: Floats
    high: Floats


def roc_band(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    n: int = 200,
    seed: int = 0,
    x: Floats | None = None,
) -> ConfidenceBand:
    """Sensitivity over 1 - specificity, linear between thresholds; steps of .01 without `x`."""

    def sensitivity(counts: ThresholdCounts, x: Floats) -> Floats:
        fpr = np.append(0.0, counts.fp / counts.negatives)
        tpr = np.append(0.0, counts.tp / counts.positives)
        last = np.append(np.diff(fpr) > 0, True)  # the highest sensitivity at each specificity
        return np.asarray(np.interp(x, fpr[last], tpr[last]))

    return _band(sensitivity, labels, probabilities, patients, n, seed, x)


def precision_recall_band(
    labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike, n: int = 200, seed: int = 0
) -> ConfidenceBand:
    """Precision over recall: that of the highest threshold that reaches the recall."""

    def precision(counts: ThresholdCounts, x: Floats) -> Floats:
        recall, predicted = counts.tp / counts.positives, counts.predicted_positive
        values = np.divide(counts.tp, predicted, out=np.ones_like(predicted), where=predicted > 0)
        return values[np.minimum(np.searchsorted(recall, x - 1e-12), len(recall) - 1)]

    return _band(precision, labels, probabilities, patients, n, seed, None)


def _band(
    curve: Callable[[ThresholdCounts, Floats], Floats],
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    n: int,
    seed: int,
    x: Floats | None,
) -> ConfidenceBand:
    y, p, _ = check_inputs(labels, probabilities)
    patient, n_patients = patient_indices(patients)
    order = np.argsort(-p, kind="stable")
    y, p, patient = y[order], p[order], patient[order]
    x = np.linspace(0, 1, 101) if x is None else np.asarray(x, dtype=np.float64)
    curves = []
    for draws in patient_resamples(n_patients, n, seed):
        counts = threshold_counts(y, p, draws[patient])
        if counts.positives > 0 and counts.negatives > 0:
            curves.append(curve(counts, x))
    value = curve(threshold_counts(y, p), x)
    if not curves:
        return ConfidenceBand(x, value, np.full_like(x, np.nan), np.full_like(x, np.nan))
    low, high = np.quantile(np.stack(curves), _QUANTILES, axis=0)
    return ConfidenceBand(x, value, low, high)
