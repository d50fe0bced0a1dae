"""Soft edges: nothing in a projection through a soft body ends abruptly."""

import numpy as np


def soft_edge(distance: np.ndarray, width: float) -> np.ndarray:
    """Return the logistic function of `distance / width` in [0, 1], the dtype of `distance`.

    Written with tanh, which saturates where exp overflows.
    """
    return 0.5 + 0.5 * np.tanh(distance * (0.5 / width))
