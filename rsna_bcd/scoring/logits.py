"""Probabilities to logits and back."""

import numpy as np
from numpy.typing import ArrayLike

from rsna_bcd.scoring.arrays import Floats

MARGIN = 1e-7  # keeps the logits of 0 and 1 finite


def logit(probabilities: ArrayLike) -> Floats:
    """log(p / (1 - p)), of p that are kept `MARGIN` away from 0 and 1."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), MARGIN, 1 - MARGIN)
    return np.log(p / (1 - p))


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-logit))."""
    return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float64)
