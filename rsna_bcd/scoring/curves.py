"""Points of the ROC and the precision-recall curve, a row for every distinct score."""

import numpy as np
from numpy.typing import ArrayLike

from rsna_bcd.scoring.arrays import Floats
from rsna_bcd.scoring.ranking import cuts


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> Floats:
    """What is found, and at the price of how many false alarms.

    Args:
        labels: (N,), each 0 or 1; both occur.
        scores: (N,), finite.

    Returns:
        (K + 1, 2): 1 - specificity and sensitivity, from (0, 0) to (1, 1). NaN where a class is
        absent.
    """
    c = cuts(labels, scores)
    with np.errstate(invalid="ignore"):
        found = np.stack([c.false_positives / c.negatives, c.true_positives / c.positives], axis=1)
    return np.concatenate([[[0.0, 0.0]], found])


def precision_recall_curve(labels: ArrayLike, scores: ArrayLike) -> Floats:
    """What is found, and how much of what is called is right.

    Args:
        labels: (N,), each 0 or 1; there is a positive.
        scores: (N,), finite.

    Returns:
        (K, 2): recall (sensitivity), ascending, and precision. Recall is NaN without a positive.
    """
    c = cuts(labels, scores)
    with np.errstate(invalid="ignore"):
        recall = c.true_positives / c.positives
    return np.stack([recall, c.true_positives / (c.true_positives + c.false_positives)], axis=1)
