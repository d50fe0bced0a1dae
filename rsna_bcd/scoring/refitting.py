"""Thresholds that are fitted anew in every resample, for every held-out group.

A threshold chosen by pF1 is among the cuts near the best one, and the best one is where a positive
is found. So all resamples and groups of a block are searched together at the ends of the segments
(`scoring.resampling.Segments`); only the few hundred rows above the plateau's lower end are then
looked at one resample and group at a time.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsna_bcd.scoring.arrays import Floats
from rsna_bcd.scoring.pf1 import pf1_of_sums
from rsna_bcd.scoring.plateau import above_all, cut_at_rate, midway, stretch
from rsna_bcd.scoring.resampling import Segments

Numbers = NDArray[np.intp]


@dataclass(frozen=True)
class _Others:
    """Sorted rows of all patients outside a group, and whether no two of them score the same."""

    positions: Numbers
    labels: Floats
    scores: Floats
    patient: Numbers
    distinct: bool


class Refitting:
    """Fits thresholds to resamples of the same rows."""

    def __init__(
        self, labels: Floats, probabilities: Floats, patient: Numbers, group: Numbers, groups: int
    ) -> None:
        """Sort the rows.

        Args:
            labels: (N,), each 0 or 1.
            probabilities: (N,).
            patient: (N,), the number of each row's patient.
            group: (N,), the group of each row; a patient's rows share one.
            groups: G, also where some group has none of these rows.
        """
        self._segments = Segments(labels, probabilities)
        order, ends = self._segments.order, self._segments.ends
        y, s, i, g = labels[order], probabilities[order], patient[order], group[order]
        outside = [np.flatnonzero(g != held_out) for held_out in range(groups)]
        self._others = [
            _Others(rows, y[rows], s[rows], i[rows], bool(np.diff(s[rows]).all()))
            for rows in outside
        ]
        segment = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        self._shape = groups, len(ends)
        cell = g * len(ends) + segment
        found, both, square = _steps(y, i)
        ones = np.ones(len(y))
        self._called, self._found, self._both, self._square, self._positives_found = (
            _CellSums(i, values, cell, groups * len(ends))
            for values in (ones, y, both, square - ones, found)
        )
        ids, first = np.unique(i, return_index=True)
        size = np.bincount(i, y)[ids].astype(np.float64)
        self._patients = _CellSums(ids, np.ones(len(ids)), g[first], groups)
        self._base = _CellSums(ids, size**2, g[first], groups)

    def thresholds(
        self, counts: Floats, width: float, rate: float | None, positives: float = 1
    ) -> Floats:
        """The threshold of each resample and held-out group, fitted to the rows outside the group.

        Args:
            counts: (R, P), how often each patient was drawn.
            width: Of the plateau (`BestPf1`).
            rate: Share of the rows to call (`RecallRate`); None takes the plateau's middle.
            positives: The least that there must be.

        Returns:
            (R, G); NaN where there is nothing to choose by.
        """
        called = self._outside(self._called, counts)
        found = self._outside(self._found, counts)
        all_rows, all_found = called[..., -1], found[..., -1]
        fit = (all_found >= max(positives, 1)) & (all_rows > all_found)
        if rate is None:
            scores = pf1_of_sums(found, called, all_found[..., None])
            bound = scores.max(axis=-1) - width * self._errors(counts, called, found, scores)
            last = called.shape[-1] - 1 - np.argmax(scores[..., ::-1] >= bound[..., None], axis=-1)
        else:
            bound = np.full(all_rows.shape, np.nan)
            last = np.argmax(called >= rate * all_rows[..., None], axis=-1)
        # What else belongs to the plateau lies within the next segment.
        ends = self._segments.ends[np.minimum(last + 1, len(self._segments.ends) - 1)]
        thresholds = np.full(fit.shape, np.nan)
        for r, g in zip(*np.nonzero(fit), strict=True):
            thresholds[r, g] = self._among(
                self._others[g],
                int(ends[r, g]),
                counts[r],
                float(all_found[r, g]),
                float(all_rows[r, g]),
                float(bound[r, g]),
                rate,
            )
        return thresholds

    def _outside(self, sums: "_CellSums", counts: Floats) -> Floats:
        """Counts up to the end of each segment, of the rows outside each group: (R, G, S)."""
        inside = sums(counts).reshape(len(counts), *self._shape)
        return np.cumsum(inside.sum(axis=1, keepdims=True) - inside, axis=-1)

    def _errors(self, counts: Floats, called: Floats, found: Floats, scores: Floats) -> Floats:
        """Standard error of each best pF1 (`scoring.plateau`): (R, G).

        The square of 2 tp - pF1 (called + positives), summed over patients, is made of three sums
        that do not depend on pF1: of tp^2, of tp (called + positives), of (called + positives)^2.
        """
        best = np.argmax(scores, axis=-1)[..., None]

        def at_best(values: Floats) -> Floats:
            return np.take_along_axis(values, best, axis=-1)[..., 0]

        base = self._base(counts)
        base = base.sum(axis=1, keepdims=True) - base
        squares = at_best(self._outside(self._square, counts) + called) + base
        score = at_best(scores)
        residuals = (
            4 * at_best(self._outside(self._positives_found, counts))
            - 4 * score * at_best(self._outside(self._both, counts))
            + score**2 * squares
        )
        patients = self._patients(counts)
        n = patients.sum(axis=1, keepdims=True) - patients
        size = np.maximum(at_best(called) + found[..., -1], 1)
        return np.sqrt(np.maximum(residuals, 0) * n / np.maximum(n - 1, 1)) / size

    @staticmethod
    def _among(
        others: _Others,
        end: int,
        counts: Floats,
        positives: float,
        rows: float,
        bound: float,
        rate: float | None,
    ) -> float:
        """The threshold, from as many of the highest rows as decide it."""
        n = int(np.searchsorted(others.positions, end))
        while True:
            weights = counts[others.patient[:n]]
            (present,) = weights.nonzero()
            scores, weights = others.scores[present], weights[present]
            called = weights.cumsum()
            found = (weights * others.labels[present]).cumsum()
            if not others.distinct:
                cut = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
                scores, called, found = scores[cut], called[cut], found[cut]
            whole = n == len(others.scores)
            if whole and len(scores) < 2:
                return float("nan")
            if rate is None:
                chosen = stretch(called, pf1_of_sums(found, called, positives), bound)[1]
            else:
                chosen = cut_at_rate(called, rows, rate)
            if chosen < 0:
                return above_all(scores)
            # A threshold lies halfway to the next row, which must be among those looked at.
            if whole or chosen < len(scores) - 1:
                return float(midway(scores[chosen : chosen + 2])[0])
            n = min(2 * n, len(others.scores))


class _CellSums:
    """Sums of the rows in each cell, of every resample: (R, P) to (R, cells)."""

    def __init__(self, patient: Numbers, values: Floats, cell: Numbers, cells: int) -> None:
        some = np.flatnonzero(values)
        some = some[np.argsort(cell[some], kind="stable")]
        self._patient, self._values, self._cells = patient[some], values[some], cells
        self._filled, self._starts = np.unique(cell[some], return_index=True)

    def __call__(self, counts: Floats) -> Floats:
        sums = np.zeros((len(counts), self._cells))
        if len(self._values):
            weights = np.take(counts, self._patient, axis=1)
            if (self._values != 1).any():
                weights *= self._values
            sums[:, self._filled] = np.add.reduceat(weights, self._starts, axis=1)
        return sums


def _steps(labels: Floats, patient: Numbers) -> tuple[Floats, Floats, Floats]:
    """What each row adds, once it is called, to three sums over patients.

    Args:
        labels: (N,), in the order in which rows are called.
        patient: (N,).

    Returns:
        The steps of tp^2, of tp (called + positives) and of (called + positives)^2: (N,) each.
    """
    order = np.argsort(patient, kind="stable")
    y, i = labels[order], patient[order]
    _, first, size = np.unique(i, return_index=True, return_counts=True)
    before = np.cumsum(y) - y
    tp = before - np.repeat(before[first], size)
    called = np.arange(len(y)) - np.repeat(first, size)
    whole = called + np.bincount(i, y)[i]
    steps = np.empty((3, len(y)))
    steps[0, order] = (tp + y) ** 2 - tp**2
    steps[1, order] = (tp + y) * (whole + 1) - tp * whole
    steps[2, order] = (whole + 1) ** 2 - whole**2
    return steps[0], steps[1], steps[2]
