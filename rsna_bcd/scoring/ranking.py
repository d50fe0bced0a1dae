"""Scores that depend on the order of the probabilities alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rsna_bcd.scoring.arrays import Floats, checked


@dataclass(frozen=True)
class Cuts:
    """What is found when every row with `score >= scores[i]` is called positive.

    Attributes:
        scores: (K,) the distinct scores, descending.
        true_positives: (K,) weight of the positives at or above each.
        false_positives: (K,) weight of the negatives at or above each.
    """

    scores: Floats
    true_positives: Floats
    false_positives: Floats

    @property
    def positives(self) -> float:
        """Weight of all positives."""
        return float(self.true_positives[-1]) if len(self.scores) else 0.0

    @property
    def negatives(self) -> float:
        """Weight of all negatives."""
        return float(self.false_positives[-1]) if len(self.scores) else 0.0


def cuts(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Cuts:
    """Counts at every distinct score, by one sort.

    Args:
        labels: (N,), each 0 or 1.
        scores: (N,), finite.
        weights: (N,) counts of the rows; None counts each once.
    """
    y, s, w = checked(labels, scores, weights)
    order = np.argsort(-s, kind="stable")  # linear in N when the rows are sorted already
    s, positive = s[order], (w * y)[order]
    # Equal scores cannot be told apart: only the last row of each run of them is a cut.
    ends = np.flatnonzero(np.append(s[1:] != s[:-1], True)) if len(s) else np.array([], dtype=int)
    true_positives = np.cumsum(positive)[ends]
    return Cuts(s[ends], true_positives, np.cumsum(w[order])[ends] - true_positives)


def auroc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties counting half.

    Args:
        labels: (N,), each 0 or 1.
        scores: (N,), finite; only their order matters.
        weights: (N,) counts of the rows; None counts each once.

    Returns:
        In [0, 1]; NaN where there is no positive or no negative, because it is undefined there.
    """
    c = cuts(labels, scores, weights)
    return float(auroc_of_counts(c.true_positives, c.false_positives))


def auroc_of_counts(true_positives: Floats, false_positives: Floats) -> Floats:
    """AUROC from the counts at the cuts: (..., K) each, the cuts descending, to (...).

    Cuts between which there are no positives may be left out but for the last of all.
    """
    above, below = _from_nothing(true_positives), _from_nothing(false_positives)
    # Each negative is outranked by the positives above it and by half of those beside it.
    ranked = np.sum(np.diff(below) * (above[..., 1:] + above[..., :-1]), axis=-1) / 2
    return _divided(ranked, above[..., -1] * below[..., -1])


def average_precision(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Mean of the precisions at each positive, in the order of the scores, ties taken together.

    It is scikit-learn's `average_precision_score`: a step function, not interpolated.

    Args:
        labels: (N,), each 0 or 1.
        scores: (N,), finite; only their order matters.
        weights: (N,) counts of the rows; None counts each once.

    Returns:
        In [0, 1]; NaN where there is no positive. A random order reaches the prevalence.
    """
    c = cuts(labels, scores, weights)
    return float(average_precision_of_counts(c.true_positives, c.false_positives))


def average_precision_of_counts(true_positives: Floats, false_positives: Floats) -> Floats:
    """Average precision from the counts at the cuts: (..., K) each, the cuts descending, to (...).

    Cuts without a positive of their own may be left out.
    """
    called = true_positives + false_positives
    precision = np.divide(true_positives, called, out=np.zeros_like(called), where=called > 0)
    found = _from_nothing(true_positives)
    return _divided(np.sum(np.diff(found) * precision, axis=-1), found[..., -1])


def _from_nothing(counts: Floats) -> Floats:
    return np.concatenate([np.zeros((*counts.shape[:-1], 1)), counts], axis=-1)


def _divided(numerator: Floats, denominator: Floats) -> Floats:
    undefined = np.full_like(denominator, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)
