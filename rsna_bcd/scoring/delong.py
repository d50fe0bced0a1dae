"""AUROC's interval and comparison from a formula, without resampling.

Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), by the midranks of Sun and Xu, IEEE
Signal Processing Letters 21 (2014): one sort instead of all pairs. The breasts of a patient are not
independent, which DeLong's variance takes them to be; with `patients` it is that of Obuchowski,
Biometrics 53 (1997), which equals DeLong's where each patient has one row.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.arrays import Floats, checked
from rsna_bcd.scoring.bootstrap import Difference, Interval

_Z = 1.959963984540054  # half the width of a 95 % interval, in standard errors


@dataclass(frozen=True)
class Areas:
    """AUROCs of several models on the same rows, and how they vary together.

    Attributes:
        auroc: (M,), in [0, 1].
        covariance: (M, M), of the estimates.
    """

    auroc: Floats
    covariance: Floats


def areas(labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike | None = None) -> Areas:
    """AUROCs and their covariance.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (M, N), M models; only the order within each matters.
        patients: (N,), an id per row; None takes all rows for independent.

    Raises:
        InputError: a class has fewer than two rows, or with `patients` fewer than two patients: a
            variance cannot be estimated from one. Or all scores of a model are equal: it orders
            nothing, of which a formula would be certain.
    """
    scores = np.atleast_2d(np.asarray(probabilities, dtype=np.float64))
    y = checked(labels, scores[0], None)[0] == 1
    for row in scores:
        checked(labels, row, None)
        if row.min() == row.max():
            raise InputError(
                f"All {len(row)} probabilities equal {row[0]:g}: they order nothing, so AUROC has "
                "no interval. Train the model longer or anew, or leave it out."
            )
    patient = np.arange(len(y)) if patients is None else np.asarray(patients)
    patient = np.unique(patient, return_inverse=True)[1]
    n, counts = int(patient.max()) + 1, (int(y.sum()), int((~y).sum()))
    # Patients with at least one row of the class; I10 and I01 in the paper.
    holders = [len(np.unique(patient[of_class])) for of_class in (y, ~y)]
    if min(holders) < 2:
        raise InputError(
            f"AUROC's variance needs two {'rows' if patients is None else 'patients'} of each "
            f"class, but {holders[0]} with cancer and {holders[1]} without are here. Use more "
            "folds."
        )
    placed = np.stack([_placements(row, y) for row in scores])
    auroc = placed[:, y].mean(axis=1)
    # What each patient's rows of a class add to the deviation from the mean: (M, patients).
    off = placed - auroc[:, None]
    deviations = [
        np.array([np.bincount(patient[of_class], d[of_class], n) for d in off], dtype=np.float64)
        for of_class in (y, ~y)
    ]
    covariance = np.zeros((len(scores), len(scores)))
    for deviation, count, holding in zip(deviations, counts, holders, strict=True):
        covariance += holding / (holding - 1) * _products(deviation, deviation) / count**2
    if patients is not None:  # a patient may have rows of both classes
        both = _products(deviations[0], deviations[1]) * n / (n - 1) / (counts[0] * counts[1])
        covariance += both + both.T
    return Areas(auroc, covariance)


def delong(
    labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike | None = None
) -> Interval:
    """AUROC with its 95 % interval.

    The interval is symmetric in log(A / (1 - A)), so that it stays within [0, 1] and covers better
    near 1 than the symmetric one. At an AUROC of exactly 0 or 1 the formula knows no variance, and
    the ends are NaN.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,); only their order matters.
        patients: (N,), an id per row; None takes all rows for independent.

    Raises:
        InputError: see `areas`.
    """
    found = areas(labels, probabilities, patients)
    value, error = float(found.auroc[0]), math.sqrt(max(float(found.covariance[0, 0]), 0.0))
    if value in (0.0, 1.0):
        return Interval(value, math.nan, math.nan)
    odds, slope = math.log(value / (1 - value)), error / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-(odds + sign * _Z * slope))) for sign in (-1, 1))
    return Interval(value, low, high)


def delong_difference(
    labels: ArrayLike, first: ArrayLike, second: ArrayLike, patients: ArrayLike | None = None
) -> Difference:
    """How much higher the AUROC of `second` is than that of `first` on the same rows.

    The interval is the symmetric one, the p-value two-sided; it is 1 where both order all rows
    alike. Where they differ and the formula knows no variance, ends and p-value are NaN.

    Args:
        labels: (N,), each 0 or 1.
        first: (N,), probabilities of one model.
        second: (N,), probabilities of the other.
        patients: (N,), an id per row; None takes all rows for independent.

    Raises:
        InputError: see `areas`.
    """
    found = areas(labels, np.stack([np.asarray(first), np.asarray(second)]), patients)
    value = float(found.auroc[1] - found.auroc[0])
    contrast = np.array([-1.0, 1.0])
    variance = float(np.sum(contrast * np.sum(found.covariance * contrast, axis=1)))
    # What is left of terms that cancel: the models order all rows alike, or by equal amounts.
    if variance <= 1e-15 * max(float(np.trace(found.covariance)), 1e-300):
        if value == 0:
            return Difference(0.0, 0.0, 0.0, p_value=1.0)
        return Difference(value, math.nan, math.nan, p_value=math.nan)
    error = math.sqrt(variance)
    p_value = math.erfc(abs(value) / error / math.sqrt(2))
    return Difference(value, value - _Z * error, value + _Z * error, p_value=p_value)


def _placements(scores: Floats, positive: np.ndarray) -> Floats:
    """For each row the share of the other class that it is ordered rightly against, ties half."""
    inside, overall = np.empty(len(scores)), _midranks(scores)
    for of_class in (positive, ~positive):
        inside[of_class] = _midranks(scores[of_class])
    others = np.where(positive, (~positive).sum(), positive.sum())
    below = (overall - inside) / others
    return np.where(positive, below, 1 - below)


def _midranks(scores: Floats) -> Floats:
    """Ranks 1 .. N, equal scores sharing the mean of theirs."""
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]


def _products(a: Floats, b: Floats) -> Floats:
    """Sums over patients of the products of two deviations: (M, M)."""
    return np.sum(a[:, None, :] * b[None, :, :], axis=2)
