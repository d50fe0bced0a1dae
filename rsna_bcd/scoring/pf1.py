"""The competition's metric."""

import numpy as np
from numpy.typing import ArrayLike

from rsna_bcd.scoring.arrays import Floats, checked


def pf1(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Probabilistic F1.

    Probabilities are clipped to [0, 1]. With S the sum of the positives' probabilities, precision
    is S / (sum of all probabilities) and recall S / (number of positives); the score is their
    harmonic mean, 2 S / (sum of all probabilities + number of positives). On decisions of 0 and 1
    it is the ordinary F1.

    The organisers' code divides by zero when all probabilities are 0 or there is no positive;
    here both score 0. A constant 1 scores about .0405 at the competition's prevalence.

    Source: https://www.kaggle.com/competitions/rsna-breast-cancer-detection/overview/evaluation

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,).
        weights: (N,) counts of the rows; None counts each once.

    Returns:
        In [0, 1].
    """
    y, p, w = checked(labels, probabilities, weights)
    p = np.clip(p, 0.0, 1.0)
    return float(pf1_of_sums(np.sum(w * y * p), np.sum(w * p), np.sum(w * y)))


def pf1_of_sums(found: ArrayLike, called: ArrayLike, positives: ArrayLike) -> Floats:
    """pF1 from the three sums it depends on; arrays of them are taken element by element.

    Args:
        found: Sum of the positives' probabilities; of decisions, the true positives.
        called: Sum of all probabilities; of decisions, the rows that are called positive.
        positives: Number of the positives.
    """
    total = np.add(called, positives, dtype=np.float64)
    # A sum of 0 implies that nothing was found.
    return np.divide(np.multiply(found, 2.0), total, out=np.zeros_like(total), where=total > 0)
