"""From probabilities to decisions, and what is right and wrong about them."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.scoring.arrays import Floats, checked

Count = TypeVar("Count", float, Floats)


@dataclass(frozen=True)
class Confusion(Generic[Count]):
    """Counts of decisions, or an array of such counts (one a resample).

    A rate whose denominator is 0 is NaN: undefined, not 0.
    """

    true_positives: Count
    false_positives: Count
    false_negatives: Count
    true_negatives: Count

    @property
    def sensitivity(self) -> Count:
        """Share of the positives that are called positive (recall)."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> Count:
        """Share of the negatives that are called negative."""
        return _ratio(self.true_negatives, self.true_negatives + self.false_positives)

    @property
    def accuracy(self) -> Count:
        """Share of the decisions that are right."""
        return _ratio(self.true_positives + self.true_negatives, self._rows)

    @property
    def balanced_accuracy(self) -> Count:
        """Mean of sensitivity and specificity: chance scores 0.5 at any prevalence."""
        return (self.sensitivity + self.specificity) / 2

    @property
    def ppv(self) -> Count:
        """Share of the positive calls that are right (positive predictive value, precision)."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall_rate(self) -> Count:
        """Share of all rows that are called positive: radiology's recall rate, not the recall."""
        return _ratio(self.true_positives + self.false_positives, self._rows)

    @property
    def _rows(self) -> Count:
        wrong = self.false_positives + self.false_negatives
        return self.true_positives + self.true_negatives + wrong


def _ratio(numerator: Count, denominator: Count) -> Count:
    if isinstance(denominator, np.ndarray):
        undefined = np.full_like(denominator, np.nan)
        return np.divide(numerator, denominator, out=undefined, where=denominator != 0)
    return numerator / denominator if denominator else float("nan")


def decide(probabilities: ArrayLike, threshold: ArrayLike) -> NDArray[np.int64]:
    """1 where a probability is at or above the threshold, else 0.

    Args:
        probabilities: (N,).
        threshold: One for all rows, or (N,).
    """
    p = np.asarray(probabilities, dtype=np.float64)
    return (p >= np.asarray(threshold, dtype=np.float64)).astype(np.int64)


def confusion(
    labels: ArrayLike,
    probabilities: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> Confusion[float]:
    """Counts of the decisions `probability >= threshold`.

    Decisions of 0 and 1 may be given as probabilities, with the default threshold.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,).
        threshold: In the probabilities' own unit.
        weights: (N,) counts of the rows; None counts each once.
    """
    y, p, w = checked(labels, probabilities, weights)
    called = decide(p, threshold)
    found, positives = float(np.sum(w * y * called)), float(np.sum(w * y))
    false_alarms = float(np.sum(w * called)) - found
    return Confusion(
        true_positives=found,
        false_positives=false_alarms,
        false_negatives=positives - found,
        true_negatives=float(w.sum()) - positives - false_alarms,
    )


def sensitivity(
    labels: ArrayLike,
    probabilities: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> float:
    """Share of the positives at or above the threshold; NaN without positives."""
    return confusion(labels, probabilities, threshold, weights).sensitivity


def specificity(
    labels: ArrayLike,
    probabilities: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> float:
    """Share of the negatives below the threshold; NaN without negatives."""
    return confusion(labels, probabilities, threshold, weights).specificity


def accuracy(
    labels: ArrayLike,
    probabilities: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> float:
    """Share of the decisions that are right; NaN without rows."""
    return confusion(labels, probabilities, threshold, weights).accuracy


def balanced_accuracy(
    labels: ArrayLike,
    probabilities: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> float:
    """Mean of sensitivity and specificity; NaN where a class is absent."""
    return confusion(labels, probabilities, threshold, weights).balanced_accuracy


def ppv(
    labels: ArrayLike,
    probabilities: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> float:
    """Share of the rows at or above the threshold that are positive; NaN where there are none."""
    return confusion(labels, probabilities, threshold, weights).ppv


def recall_rate(
    labels: ArrayLike,
    probabilities: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> float:
    """Share of all rows at or above the threshold; NaN without rows."""
    return confusion(labels, probabilities, threshold, weights).recall_rate
