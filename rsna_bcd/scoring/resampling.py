"""Resampled patients, a block of resamples at a time, and the scores of a whole block at once.

Sums over rows are sums over patients, so scores of decisions need one number a patient. Scores of a
ranking need the counts at every cut; but between two positives nothing changes except the number
of negatives, so the rows shrink to a segment for each positive and one for what lies between.
"""

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.scoring.arrays import Floats, checked
from rsna_bcd.scoring.decisions import (
    Confusion,
    accuracy,
    balanced_accuracy,
    decide,
    ppv,
    recall_rate,
    sensitivity,
    specificity,
)
from rsna_bcd.scoring.pf1 import pf1, pf1_of_sums
from rsna_bcd.scoring.ranking import (
    auroc,
    auroc_of_counts,
    average_precision,
    average_precision_of_counts,
)

_BLOCK = 1 << 20  # weights of rows held at once: 8 MB, some tens of resamples of the competition


class Metric(Protocol):
    """A score of weighted rows, such as `pf1` or `auroc`."""

    def __call__(  # noqa: D102  (the class says it)
        self, labels: ArrayLike, probabilities: ArrayLike, /, *, weights: ArrayLike | None
    ) -> float: ...


_OF_COUNTS: dict[Metric, Callable[[Floats, Floats], Floats]] = {
    auroc: auroc_of_counts,
    average_precision: average_precision_of_counts,
}
OF_DECISIONS: dict[Metric, Callable[[Confusion[Floats]], Floats]] = {
    pf1: lambda c: pf1_of_sums(
        c.true_positives,
        c.true_positives + c.false_positives,
        c.true_positives + c.false_negatives,
    ),
    **{
        metric: attrgetter(metric.__name__)
        for metric in (accuracy, balanced_accuracy, ppv, recall_rate, sensitivity, specificity)
    },
}


def patient_numbers(patients: ArrayLike) -> tuple[NDArray[np.intp], int]:
    """The number of each row's patient, 0 .. P - 1 in the order of the ids, and P."""
    ids, patient = np.unique(np.asarray(patients), return_inverse=True)
    return patient, len(ids)


def resamples(n_patients: int, n_rows: int, n: int, seed: int) -> Iterator[Floats]:
    """How often each patient was drawn in each of n resamples.

    Args:
        n_patients: P; as many are drawn, with replacement.
        n_rows: Of the table, which decide how many resamples fit into a block.
        n: Number of resamples.
        seed: Of the draws, which do not depend on the size of the blocks.

    Yields:
        (resamples of a block, P).
    """
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(n_rows, 1))
    for start in range(0, n, block):
        drawn = generator.integers(0, n_patients, (min(block, n - start), n_patients))
        counts = [np.bincount(row, minlength=n_patients) for row in drawn]
        yield np.array(counts, dtype=np.float64)


class RowSum:
    """The sum of a value over the rows of each resample."""

    def __init__(self, patient: NDArray[np.intp], values: Floats) -> None:
        """Sum the rows of each patient.

        Args:
            patient: (N,), the number of each row's patient.
            values: (N,).
        """
        sums = np.bincount(patient, values)
        some = np.flatnonzero(sums)
        self._some = some if len(some) < len(sums) / 2 else None  # few are positive or called
        self._sums = sums if self._some is None else sums[some]

    def __call__(self, counts: Floats) -> Floats:
        """(R, P) of `resamples` to (R,)."""
        some = counts if self._some is None else np.take(counts, self._some, axis=1)
        return np.einsum("rp,p->r", some, self._sums)


class Segments:
    """Rows in descending order, cut only where a score of the ranking can depend on it.

    Attributes:
        order: (N,), from positions in the descending order to rows.
        ends: (S,), the position after the last row of each segment. A segment is all rows that
            share a score with a positive, or all rows between two such scores.
        positives: positions of the positive rows.
        found: (S,), number of the positive rows up to each end.
    """

    def __init__(self, labels: Floats, scores: Floats) -> None:
        self.order = np.argsort(-scores, kind="stable")
        y, s = labels[self.order], scores[self.order]
        ends = np.flatnonzero(np.append(s[1:] != s[:-1], True)) + 1
        self.positives = np.flatnonzero(y)
        found = np.searchsorted(self.positives, ends)
        positive = np.diff(found, prepend=0) > 0
        kept = positive | np.append(positive[1:], True)
        self.ends, self.found = ends[kept], found[kept]

    @property
    def starts(self) -> NDArray[np.intp]:
        """(S,), the position of the first row of each segment."""
        return np.concatenate([[0], self.ends[:-1]])


class Judged:
    """Probabilities of rows, sorted and summed once, and the scores that they shall have."""

    def __init__(
        self, labels: ArrayLike, probabilities: ArrayLike, patient: NDArray[np.intp]
    ) -> None:
        self.metrics: list[Metric] = []
        self._labels, self._probabilities, _ = checked(labels, probabilities, None)
        self._patient = patient
        self._sums: dict[str, RowSum] = {}
        self._segments: Segments | None = None

    def scores(self, counts: Floats) -> list[Floats]:
        """Each of the metrics, in their order, in every resample: (R, P) to (R,)."""
        ranked = decided = None
        scores = []
        for metric in self.metrics:
            if metric in _OF_COUNTS:
                ranked = ranked or self._ranked(counts)
                scores.append(_OF_COUNTS[metric](*ranked))
            elif metric is pf1:  # probabilities may be given, not only decisions
                scores.append(self._pf1(counts))
            elif metric in OF_DECISIONS:
                decided = decided or self._decided(counts)
                scores.append(OF_DECISIONS[metric](decided))
            else:
                scores.append(self._one_by_one(metric, counts))
        return scores

    def _ranked(self, counts: Floats) -> tuple[Floats, Floats]:
        """True and false positives at the end of every segment: (R, S)."""
        if self._segments is None:
            self._segments = Segments(self._labels, self._probabilities)
        rows = self._segments
        patient = self._patient[rows.order]
        weights = np.take(counts, patient, axis=1)
        called = np.cumsum(np.add.reduceat(weights, rows.starts, axis=1), axis=1)
        found = np.zeros((len(counts), len(rows.positives) + 1))
        np.cumsum(weights[:, rows.positives], axis=1, out=found[:, 1:])
        true_positives = found[:, rows.found]
        return true_positives, called - true_positives

    def _decided(self, counts: Floats) -> Confusion[Floats]:
        called = decide(self._probabilities, 0.5).astype(np.float64)
        found = self._sum("found", counts, self._labels * called)
        false_alarms = self._sum("false alarms", counts, (1 - self._labels) * called)
        positives = self._sum("positives", counts, self._labels)
        rows = self._sum("rows", counts, np.ones_like(called))
        return Confusion(found, false_alarms, positives - found, rows - positives - false_alarms)

    def _pf1(self, counts: Floats) -> Floats:
        p = np.clip(self._probabilities, 0.0, 1.0)
        return pf1_of_sums(
            self._sum("found, in parts", counts, self._labels * p),
            self._sum("called, in parts", counts, p),
            self._sum("positives", counts, self._labels),
        )

    def _sum(self, name: str, counts: Floats, values: Floats) -> Floats:
        if name not in self._sums:
            self._sums[name] = RowSum(self._patient, values)
        return self._sums[name](counts)

    def _one_by_one(self, metric: Metric, counts: Floats) -> Floats:
        """Any metric, row by row of the resamples, on rows that are sorted already."""
        order = np.argsort(-self._probabilities, kind="stable")
        y, p, patient = self._labels[order], self._probabilities[order], self._patient[order]
        return np.array([metric(y, p, weights=drawn[patient]) for drawn in counts])
