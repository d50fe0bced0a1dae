"""Every threshold's scores by one sort, and the plateau of those that are as good as the best."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.arrays import Floats, checked
from rsna_bcd.scoring.pf1 import pf1_of_sums
from rsna_bcd.scoring.ranking import Cuts, cuts

WIDTH = 0.5  # of a plateau below its best, in standard errors


@dataclass(frozen=True)
class ThresholdCurve:
    """What every threshold that decides differently scores, from the highest to the lowest.

    Attributes:
        thresholds: (K,), descending. Each lies midway between the lowest score that it calls
            positive and the next one below (0 below the lowest of all), so that the decisions
            hold when scores move in their last digits.
        precision: (K,).
        recall: (K,), the sensitivity; NaN without positives.
        pf1: (K,), of the decisions, which is the ordinary F1.
        recall_rate: (K,), share of the rows that is called positive.
    """

    thresholds: Floats
    precision: Floats
    recall: Floats
    pf1: Floats
    recall_rate: Floats


@dataclass(frozen=True)
class Plateau:
    """The thresholds that these rows cannot tell from the best one.

    Attributes:
        low: The lowest of them.
        high: The highest of them.
        threshold: The one in their middle, `low <= threshold <= high`.
        pf1: Of the best threshold, on the rows it was chosen by: optimistic.
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
    """Precision, recall, pF1 and recall rate at every threshold, by one sort.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,), finite.
        weights: (N,) counts of the rows; None counts each once. Rows of weight 0 are absent.
    """
    y, p, w = checked(labels, probabilities, weights)
    present = w > 0
    return _curve(cuts(y[present], p[present], w[present]))


def _curve(counts: Cuts) -> ThresholdCurve:
    called = counts.true_positives + counts.false_positives
    with np.errstate(invalid="ignore"):
        recall = counts.true_positives / counts.positives
    return ThresholdCurve(
        thresholds=midway(counts.scores),
        precision=counts.true_positives / called,
        recall=recall,
        pf1=pf1_of_sums(counts.true_positives, called, counts.positives),
        recall_rate=called / (counts.positives + counts.negatives),
    )


def midway(scores: Floats) -> Floats:
    """From distinct descending scores to thresholds that keep apart each and the one below."""
    below = np.append(scores[1:], np.minimum(scores[-1:], 0.0))
    middle = (scores + below) / 2
    # Between two neighbouring floats there is nothing: the mean rounds to one of them.
    return np.where(middle > below, middle, scores)


def above_all(scores: Floats) -> float:
    """A threshold that calls none, from distinct descending scores."""
    return float(np.nextafter(scores[0], np.inf))


def plateau(
    labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike, width: float = WIDTH
) -> Plateau:
    """All thresholds whose pF1 is within `width` standard errors of the best, and their middle.

    The best threshold of a sample is a peak of its noise: other patients would have it elsewhere.
    What they would hardly move is the middle of all that is as good within that noise. A few
    thresholds between its ends may fall short; they are not chosen.

    The middle is taken by the number of rows that are called: the nearest to the geometric mean of
    the ends'. So it does not depend on the scale of the scores. By simulation (`tests/scoring/
    test_simulation.py`) the middle by probability, by logit and by the plain number do as well on
    new patients at half a standard error; at a whole one only that by logit does, and the other
    two fall short of the best possible by a third and a half more.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,).
        patients: (N,), an id per row.
        width: In standard errors of the best pF1; 0 leaves the best threshold and its equals.

    Raises:
        InputError: there is nothing to choose by: one class only, or all probabilities equal.
    """
    counts = cuts(labels, probabilities)
    check_choosable(counts)
    curve = _curve(counts)
    best = int(np.argmax(curve.pf1))
    error = _standard_error(
        np.asarray(labels, dtype=np.float64),
        np.asarray(probabilities, dtype=np.float64) >= counts.scores[best],
        np.asarray(patients),
    )
    called = counts.true_positives + counts.false_positives
    bound = float(curve.pf1[best]) - width * error
    first, middle, last = stretch(called, curve.pf1, bound)
    return Plateau(
        low=float(curve.thresholds[last]),
        high=float(curve.thresholds[first]),
        threshold=float(curve.thresholds[middle]),
        pf1=float(curve.pf1[best]),
        standard_error=error,
    )


def stretch(called: Floats, scores: Floats, bound: float) -> tuple[int, int, int]:
    """First, middle and last of the cuts of a plateau.

    Args:
        called: (K,), rows called at each cut, ascending from above 0.
        scores: (K,), pF1 at each cut.
        bound: The least pF1 of the plateau; some cut reaches it.
    """
    inside = np.flatnonzero(scores >= bound)
    size = np.log(called[inside])
    middle = int(inside[_nearest(size, (size[0] + size[-1]) / 2)])
    return int(inside[0]), middle, int(inside[-1])


def _nearest(ascending: Floats, value: float) -> int:
    """Index of the nearest of some ascending numbers; the first of two that are as near."""
    after = int(np.searchsorted(ascending, value))
    if after == 0:
        return 0
    if after == len(ascending):
        return after - 1
    return after - int(value - ascending[after - 1] <= ascending[after] - value)


def cut_at_rate(called: Floats, rows: float, rate: float) -> int:
    """The cut whose share of rows called is nearest to a rate; -1 where that is to call none.

    Args:
        called: (K,), rows called at each cut, ascending.
        rows: Number of all rows.
        rate: In [0, 1].
    """
    return _nearest(np.concatenate([[0.0], called]), rate * rows) - 1


def _standard_error(labels: Floats, called: NDArray[np.bool_], patients: NDArray) -> float:
    """Standard error of a pF1 by patients.

    pF1 = 2 TP / (called + positives) is a ratio of sums over patients, whose variance to first
    order is that of the sum of 2 tp - pF1 (called + positives) of each, over the denominator
    squared. Source: Cochran, Sampling Techniques (1977), 6.4.
    """
    ids, patient = np.unique(patients, return_inverse=True)
    found = 2 * np.bincount(patient, labels * called)
    size = np.bincount(patient, labels + called)
    residual = found - found.sum() / size.sum() * size
    return float(np.sqrt(np.sum(residual**2) * len(ids) / max(len(ids) - 1, 1)) / size.sum())


def check_choosable(counts: Cuts) -> None:
    """Refuse rows of one class, and rows that all score the same."""
    if counts.positives == 0 or counts.negatives == 0:
        raise InputError(
            f"A threshold needs breasts of both classes, but there are {counts.positives:.0f} "
            f"positive and {counts.negatives:.0f} negative ones. Use more folds."
        )
    if len(counts.scores) == 1:
        raise InputError(
            f"All {counts.positives + counts.negatives:.0f} probabilities equal "
            f"{counts.scores[0]:g}: no threshold separates anything. The network learnt nothing; "
            "train it longer or anew."
        )
