"""Rules by which a threshold is chosen, and what they leave behind: a fitted threshold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.arrays import Floats, checked
from rsna_bcd.scoring.decisions import decide
from rsna_bcd.scoring.plateau import (
    WIDTH,
    above_all,
    check_choosable,
    cut_at_rate,
    midway,
    plateau,
)
from rsna_bcd.scoring.ranking import cuts

_UNKNOWN = ("", "nan", "None", "<NA>")  # what missing sites turn into as strings


@dataclass(frozen=True)
class Threshold:
    """A fitted threshold: a row at or above it is called positive.

    Attributes:
        value: Where a site has none of its own.
        sites: By site, the thresholds of those that have.
        recall_rate: Share of the rows it was fitted on that it calls positive.
    """

    value: float
    sites: Mapping[str, float] = field(default_factory=dict)
    recall_rate: float = float("nan")

    def decide(self, probabilities: ArrayLike, sites: ArrayLike | None = None) -> NDArray[np.int64]:
        """Decide each row by its site's own threshold where there is one.

        Args:
            probabilities: (N,).
            sites: (N,), an id per row, in the strings of `sites` or integers; None knows none.

        Returns:
            (N,), 0 or 1.

        Raises:
            InputError: a site is a float.
        """
        if sites is None or not self.sites:
            return decide(probabilities, self.value)
        names, site = np.unique(_strings(sites), return_inverse=True)
        own = np.array([self.sites.get(str(name), self.value) for name in names])
        return decide(probabilities, own[site])

    def at_rate(self, probabilities: ArrayLike) -> "Threshold":
        """A threshold that calls the same share of new rows positive.

        It serves where the new probabilities are distributed otherwise than those it was fitted
        on: the mean over folds is less extreme than the single fold behind an out-of-fold row. It
        supposes that the new rows are many and as often positive. Sites' own are left out.

        Args:
            probabilities: (N,), of the new rows.
        """
        p = np.asarray(probabilities, dtype=np.float64)
        return Threshold(_at_rate(p, self.recall_rate), {}, self.recall_rate)


class Policy(Protocol):
    """A rule by which a threshold is chosen."""

    def fit(
        self,
        labels: ArrayLike,
        probabilities: ArrayLike,
        patients: ArrayLike,
        sites: ArrayLike | None = None,
    ) -> Threshold:
        """Choose a threshold by labelled rows: (N,) each."""


@dataclass(frozen=True)
class BestPf1:
    """The middle of the thresholds whose pF1 is as good as the best (`scoring.plateau`).

    Attributes:
        by_site: Number of positives that a site needs to get a threshold of its own; None gives
            none.
        width: Of the plateau in standard errors; 0 takes the best threshold itself.
    """

    by_site: int | None = None
    width: float = WIDTH

    def fit(
        self,
        labels: ArrayLike,
        probabilities: ArrayLike,
        patients: ArrayLike,
        sites: ArrayLike | None = None,
    ) -> Threshold:
        """Choose a threshold.

        Args:
            labels: (N,), each 0 or 1.
            probabilities: (N,).
            patients: (N,), an id per row.
            sites: (N,), an id per row; needed for `by_site` alone.

        Raises:
            InputError: one class only, all probabilities equal, or `by_site` without sites.
        """
        return _fit(self._value, labels, probabilities, patients, sites, self.by_site)

    def _value(self, labels: Floats, probabilities: Floats, patients: NDArray) -> float:
        return plateau(labels, probabilities, patients, self.width).threshold


@dataclass(frozen=True)
class RecallRate:
    """The threshold that calls a given share of the rows positive.

    Sites have none of their own: what is kept is the share of all rows.

    What is fitted, cross-fitted and scored is the value that calls this share of the fitted rows;
    what may be deployed is the share itself (`Threshold.at_rate`). The scores are those of the
    value. Out of fold both are nearly the same, for the rows are distributed alike; a mean over
    folds is not (`tests/scoring/test_simulation.py` has the share ahead there).

    Attributes:
        rate: The share; None takes that which `BestPf1` has on the same rows.
    """

    rate: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate < 1:
            raise InputError(f"A recall rate of {self.rate} is not between 0 and 1.")

    def fit(
        self,
        labels: ArrayLike,
        probabilities: ArrayLike,
        patients: ArrayLike,
        sites: ArrayLike | None = None,
    ) -> Threshold:
        """Choose a threshold; arguments and errors as of `BestPf1.fit`. Sites are not looked at."""
        return _fit(self._value, labels, probabilities, patients, sites, None)

    def _value(self, labels: Floats, probabilities: Floats, patients: NDArray) -> float:
        if self.rate is None:
            return plateau(labels, probabilities, patients).threshold
        check_choosable(cuts(labels, probabilities))
        return _at_rate(probabilities, self.rate)


def _fit(
    choose: Callable[[Floats, Floats, NDArray], float],
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    sites: ArrayLike | None,
    by_site: int | None,
) -> Threshold:
    """One threshold for all rows, and one for each site with enough positives."""
    y, p, _ = checked(labels, probabilities, None)
    patient = np.asarray(patients)
    value = choose(y, p, patient)
    own: dict[str, float] = {}
    if by_site is not None:
        if sites is None:
            raise InputError("Thresholds by site need the site of every row. Set by_site=null.")
        for name, rows in known_sites(sites, y).items():
            if y[rows].sum() >= by_site and _choosable(y[rows], p[rows]):
                own[name] = choose(y[rows], p[rows], patient[rows])
    fitted = Threshold(value, own)
    return Threshold(value, own, float(fitted.decide(p, sites).mean()))


def known_sites(sites: ArrayLike, labels: ArrayLike) -> dict[str, NDArray[np.bool_]]:
    """The rows of each site that has a positive one: (N,) each. A missing site is none."""
    site = _strings(sites)
    names = np.unique(site[np.asarray(labels) == 1])
    return {str(name): site == name for name in names if name not in _UNKNOWN}


def _choosable(labels: Floats, probabilities: Floats) -> bool:
    return bool(labels.min() < labels.max() and probabilities.min() < probabilities.max())


def _at_rate(probabilities: Floats, rate: float) -> float:
    """The threshold whose share of rows at or above it is nearest to the rate."""
    counts = cuts(np.zeros(len(probabilities)), probabilities)
    cut = cut_at_rate(counts.false_positives, len(probabilities), rate)
    return float(midway(counts.scores)[cut]) if cut >= 0 else above_all(counts.scores)


def _strings(sites: ArrayLike) -> NDArray[np.str_]:
    """Names of sites; floats are refused, for site 1.0 would not be found as site 1."""
    site = np.asarray(sites)
    if site.dtype.kind in "fO":
        floats = [one for one in site.tolist() if isinstance(one, float) and not np.isnan(one)]
        if floats:
            raise InputError(
                f"Site {floats[0]} is a float, so that it is not known by its name. Give the sites "
                "as text or as integers."
            )
    return site.astype(str)
