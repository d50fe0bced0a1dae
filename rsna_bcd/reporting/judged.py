"""Breasts with their labels, out-of-fold probabilities and honest decisions, in arrays."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class JudgedBreasts:
    """What every section of a report scores: (N,) arrays, one row a breast.

    Attributes:
        labels: 0 or 1.
        probabilities: out of fold; what thresholds apply to.
        decisions: 0 or 1, by thresholds that were fitted on other patients.
        patients: ids.
        folds: in which each breast was held out.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    decisions: NDArray[np.int64]
    patients: NDArray[np.str_]
    folds: NDArray[np.int64]

    @classmethod
    def of(cls, oof: pd.DataFrame, decisions: ArrayLike) -> Self:
        """From a table with `OOF_COLUMNS`, and a decision for each of its rows."""
        return cls(
            labels=oof["label"].to_numpy(np.int64),
            probabilities=oof["probability"].to_numpy(np.float64),
            decisions=np.asarray(decisions, dtype=np.int64),
            patients=oof["patient_id"].to_numpy(dtype=str),
            folds=oof["fold"].to_numpy(np.int64),
        )

    def of_rows(self, rows: NDArray[np.bool_]) -> "JudgedBreasts":
        """Some of the breasts."""
        return JudgedBreasts(
            self.labels[rows],
            self.probabilities[rows],
            self.decisions[rows],
            self.patients[rows],
            self.folds[rows],
        )
