"""Bands around curves: how far the ROC and the precision-recall curve move with the patients."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rsna_bcd.scoring.arrays import Floats, checked
from rsna_bcd.scoring.bootstrap import LEVELS
from rsna_bcd.scoring.ranking import Cuts, cuts
from rsna_bcd.scoring.resampling import patient_numbers, resamples

_STEPS = 101


@dataclass(frozen=True)
class Band:
    """A curve with its pointwise 95 % band over resampled patients.

    Attributes:
        x: (K,) ascending, from 0 to 1.
        value: (K,) of all rows.
        low: (K,)
        high: (K,)
    """

    x: Floats
    value: Floats
    low: Floats
    high: Floats


def roc_band(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    n: int = 200,
    seed: int = 0,
    x: Floats | None = None,
) -> Band:
    """Sensitivity over 1 - specificity, linear between the cuts.

    Args:
        labels: (N,), each 0 or 1; both occur.
        probabilities: (N,).
        patients: (N,), an id per row.
        n: Number of resamples.
        seed: Of the resamples.
        x: (K,) where; None takes steps of .01.
    """
    return _band(labels, probabilities, patients, n, seed, x, _sensitivity)


def precision_band(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    n: int = 200,
    seed: int = 0,
) -> Band:
    """Precision over recall: that of the highest threshold that reaches the recall."""
    return _band(labels, probabilities, patients, n, seed, None, _precision)


def _band(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    n: int,
    seed: int,
    x: Floats | None,
    curve: Callable[[Cuts, Floats], Floats],
) -> Band:
    y, p, _ = checked(labels, probabilities, None)
    patient, n_patients = patient_numbers(patients)
    order = np.argsort(-p, kind="stable")
    y, p, patient = y[order], p[order], patient[order]
    at = np.linspace(0, 1, _STEPS) if x is None else np.asarray(x, dtype=np.float64)
    drawn = []
    for block in resamples(n_patients, len(y), n, seed):
        for counts in block:
            found = cuts(y, p, counts[patient])
            if found.positives > 0 and found.negatives > 0:
                drawn.append(curve(found, at))
    value = curve(cuts(y, p), at)
    if not drawn:
        return Band(at, value, np.full_like(at, np.nan), np.full_like(at, np.nan))
    low, high = np.quantile(np.stack(drawn), LEVELS, axis=0)
    return Band(at, value, low, high)


def _sensitivity(found: Cuts, at: Floats) -> Floats:
    false = np.concatenate([[0.0], found.false_positives / found.negatives])
    true = np.concatenate([[0.0], found.true_positives / found.positives])
    # Of cuts without a further false alarm the last counts: what is found at no extra price.
    last = np.append(np.diff(false) > 0, True)
    return np.interp(at, false[last], true[last])


def _precision(found: Cuts, at: Floats) -> Floats:
    recall = found.true_positives / found.positives
    called = found.true_positives + found.false_positives
    precision = np.divide(found.true_positives, called, out=np.ones_like(called), where=called > 0)
    first = np.minimum(np.searchsorted(recall, at - 1e-12), len(recall) - 1)
    return precision[first]
