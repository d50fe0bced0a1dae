"""What every score asks of its arguments."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.errors import InputError

Floats = NDArray[np.float64]


def checked(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    """Labels, probabilities and weights as float64 arrays of one length.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,), finite. Any real scores will do where only their order matters.
        weights: (N,), not negative; None counts every row once.

    Raises:
        InputError: a label is neither 0 nor 1, or a probability is not finite: a network that
            diverged must not be scored as if it had said "no cancer".
        ValueError: the lengths differ (a mistake of the caller, not of the data).
    """
    y = np.asarray(labels, dtype=np.float64)
    p = np.asarray(probabilities, dtype=np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    if y.ndim != 1 or y.shape != p.shape or y.shape != w.shape:
        raise ValueError(
            f"labels, probabilities and weights must be (N,), not {y.shape}, {p.shape}, {w.shape}"
        )
    if not np.all((y == 0) | (y == 1)):
        raise InputError(f"Labels must be 0 or 1, but {_first(y, (y != 0) & (y != 1))}")
    if not np.isfinite(p).all():
        raise InputError(
            f"Probabilities must be finite, but {_first(p, ~np.isfinite(p))}. "
            "The network that made them diverged: train it again with a smaller learning rate."
        )
    return y, p, w


def _first(values: Floats, bad: NDArray[np.bool_]) -> str:
    row = int(np.argmax(bad))
    return f"row {row} holds {values[row]} ({int(bad.sum())} of {len(values)} rows are like it)"
