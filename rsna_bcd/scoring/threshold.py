"""From probabilities to decisions: the counts at a threshold, the best one, and an honest score."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.arrays import Floats, checked
from rsna_bcd.scoring.ranking import Cuts, cuts


@dataclass(frozen=True)
class Confusion:
    """Counts of decisions. A rate whose denominator is 0 is NaN: undefined, not 0."""

    true_positives: float
    false_positives: float
    false_negatives: float
    true_negatives: float

    @property
    def sensitivity(self) -> float:
        """Share of the positives that are called positive (recall)."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> float:
        """Share of the negatives that are called negative."""
        return _ratio(self.true_negatives, self.true_negatives + self.false_positives)

    @property
    def accuracy(self) -> float:
        """Share of the decisions that are right."""
        wrong = self.false_positives + self.false_negatives
        right = self.true_positives + self.true_negatives
        return _ratio(right, right + wrong)

    @property
    def precision(self) -> float:
        """Share of the positive calls that are right (positive predictive value)."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def decide(probabilities: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """1 where a probability is at or above the threshold, else 0: (N,) to (N,)."""
    return (np.asarray(probabilities, dtype=np.float64) >= threshold).astype(np.int64)


def confusion(
    labels: ArrayLike,
    probabilities: ArrayLike,
    threshold: float = 0.5,
    weights: ArrayLike | None = None,
) -> Confusion:
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


def pf1_of_cuts(counts: Cuts) -> Floats:
    """pF1 of the decisions at every cut: (K,), the F1 2 TP / (called + positives)."""
    called = counts.true_positives + counts.false_positives
    return 2.0 * counts.true_positives / (called + counts.positives)


def best_threshold(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The threshold whose decisions have the highest pF1 on these rows.

    It lies midway between the lowest probability that is called positive and the next one below
    (0 below the lowest of all), so that the decisions hold when probabilities move in their last
    digits. Where several cuts share the highest pF1, the middle one of them is taken.

    The pF1 of these same rows at this threshold is optimistic: `cross_fit` gives an honest one.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,).

    Raises:
        InputError: there is nothing to choose by: one class only, or all probabilities equal.
    """
    counts = cuts(labels, probabilities)
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
    scores = pf1_of_cuts(counts)
    ties = np.flatnonzero(scores == scores.max())
    cut = int(ties[len(ties) // 2])
    called = float(counts.scores[cut])
    below = float(counts.scores[cut + 1]) if cut + 1 < len(counts.scores) else min(called, 0.0)
    middle = (called + below) / 2
    # Between two neighbouring floats there is nothing: the mean rounds to one of them.
    return middle if middle > below else called


@dataclass(frozen=True)
class CrossFit:
    """Decisions that no threshold was fitted on.

    Attributes:
        decisions: (N,), 0 or 1.
        groups: (N,), the group in which a row was held out, 0 .. G - 1.
        thresholds: (G,), the threshold that decided each group, fitted on all others.
    """

    decisions: NDArray[np.int64]
    groups: NDArray[np.int64]
    thresholds: Floats


def cross_fit(labels: ArrayLike, probabilities: ArrayLike, groups: ArrayLike) -> CrossFit:
    """Decide every group by the threshold that is best on the other groups.

    The score of the pooled decisions is honest about the threshold: no row had a part in choosing
    the threshold that decided it.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,), made out of fold themselves.
        groups: (N,), integers 0 .. G - 1; a patient's rows must share one (`patient_groups`).

    Raises:
        InputError: the rows outside a group have one class only, or one probability only.
    """
    y, p, _ = checked(labels, probabilities, None)
    group = np.asarray(groups, dtype=np.int64)
    decisions = np.zeros(len(y), dtype=np.int64)
    thresholds = np.zeros(int(group.max()) + 1)
    for held_out in range(len(thresholds)):
        inside = group == held_out
        thresholds[held_out] = best_threshold(y[~inside], p[~inside])
        decisions[inside] = decide(p[inside], thresholds[held_out])
    return CrossFit(decisions, group, thresholds)


def patient_groups(labels: ArrayLike, patients: ArrayLike, n: int, seed: int) -> NDArray[np.int64]:
    """Deal the patients into groups at random, those with a positive row evenly.

    Args:
        labels: (N,), each 0 or 1.
        patients: (N,), an id per row.
        n: Number of groups wanted; never more than there are patients with a positive row, so that
            a small table still has positives in every group.
        seed: Of the shuffle.

    Returns:
        (N,), the group of each row, 0 .. G - 1.

    Raises:
        InputError: fewer than two patients have a positive row.
    """
    ids, row_patient = np.unique(np.asarray(patients), return_inverse=True)
    positive = np.bincount(row_patient, weights=np.asarray(labels, dtype=np.float64)) > 0
    if positive.sum() < 2:
        raise InputError(
            "A threshold that is fitted on other patients needs at least two patients with "
            f"cancer, but there are {int(positive.sum())}. Use more folds."
        )
    count = min(n, int(positive.sum()))
    order = np.random.default_rng(seed).permutation(len(ids))
    order = order[np.argsort(~positive[order], kind="stable")]  # those with cancer are dealt first
    group = np.empty(len(ids), dtype=np.int64)
    group[order] = np.arange(len(ids)) % count
    return group[row_patient]
