"""How well probabilities are calibrated, and what of it may be chance."""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from rsna_bcd.scoring.arrays import checked
from rsna_bcd.scoring.bootstrap import Interval, percentiles
from rsna_bcd.scoring.calibration import bins_of, brier, ece
from rsna_bcd.scoring.resampling import RowSum, patient_numbers, resamples

_DRAWS = 500  # of labels, for the chance level; its standard error is 1 / 80 of the level


@dataclass(frozen=True)
class CalibrationError:
    """An expected calibration error, and that of perfect probabilities.

    It has no interval: a distance is never below 0, so that resampling, which adds noise to noise,
    gives larger ones throughout, and perfectly calibrated probabilities an interval above 0.

    Attributes:
        value: `ece`, in [0, 1].
        chance: Its mean if the same probabilities were true of as many rows. A value near to it
            shows no miscalibration.
    """

    value: float
    chance: float

    def __str__(self) -> str:
        return f"{self.value:.4f} (by chance {self.chance:.4f})"


class CalibrationScores(TypedDict):
    """`brier` with its interval, `ece` with its chance level."""

    brier: Interval
    ece: CalibrationError


def calibration_bootstraps(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    n: int = 2000,
    seed: int = 0,
) -> CalibrationScores:
    """Brier score with its interval by patient, and expected calibration error.

    The Brier score's is the same as `patient_bootstrap` of `brier`, but in a tenth of the time: it
    is a sum over rows, which is a sum over patients.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,), in [0, 1].
        patients: (N,), an id per row.
        n: Number of resamples.
        seed: Of the resampling and of the chance level.
    """
    y, p, _ = checked(labels, probabilities, None)
    patient, n_patients = patient_numbers(patients)
    errors, rows = RowSum(patient, (p - y) ** 2), RowSum(patient, np.ones_like(p))
    drawn = resamples(n_patients, len(y), n, seed)
    scores = np.concatenate([errors(counts) / rows(counts) for counts in drawn])
    return {
        "brier": Interval(brier(y, p), *percentiles(scores)),
        "ece": calibration_error(y, p, seed),
    }


def calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, seed: int = 0, bins: int = 10
) -> CalibrationError:
    """Expected calibration error beside its chance level.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (N,), in [0, 1].
        seed: Of the labels that are drawn by the probabilities, row by row. Breasts of a patient
            are alike in truth, so the chance level is a little higher than this.
        bins: Of `ece`.
    """
    y, p, _ = checked(labels, probabilities, None)
    which = bins_of(p, bins)
    said = np.bincount(which, p, bins)
    generator = np.random.default_rng(seed)
    gaps = [
        np.abs(said - np.bincount(which[generator.random(len(p)) < p], minlength=bins)).sum()
        for _ in range(_DRAWS)
    ]
    return CalibrationError(ece(y, p, bins=bins), float(np.mean(gaps) / len(p)))
