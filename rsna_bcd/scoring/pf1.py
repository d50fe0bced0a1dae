"""The competition's metric."""

import numpy as np
from numpy.typing import ArrayLike

from rsna_bcd.scoring.arrays import checked


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
    positives = float(np.sum(w * y))
    found = float(np.sum(w * y * p))
    # found > 0 implies both denominators of the definition are > 0.
    return 2.0 * found / (float(np.sum(w * p)) + positives) if found > 0 else 0.0
