"""How well each kind of breast is judged: site, machine, density, age, and what the cancer was.

A group that is too small to be scored is shown with its counts and without a score.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.reporting.cohort import FACTORS, NOT_RECORDED, merged_levels, order_of
from rsna_bcd.reporting.judged import JudgedBreasts
from rsna_bcd.reporting.performance import area
from rsna_bcd.scoring.intervals import (
    Interval,
    bootstrap_interval,
    nan_if_degenerate,
    wilson_if_degenerate,
)
from rsna_bcd.scoring.metrics import DECISION

CANCER, _HEALTHY = "Cancer", "Without cancer"
SITE = FACTORS["site"]
LEAST = 10  # breasts of a class, below which a share or an area says next to nothing


@dataclass(frozen=True)
class Subgroup:
    """Some of the breasts, and how they are judged.

    Attributes:
        factor: what divides: `Site`.
        name: which part: `1`.
        breasts: in it.
        cancers: of these.
        auroc: of its cancers against its other breasts; None where there are too few of either.
        sensitivity: at the decisions; None where it has too few cancers.
        specificity: likewise, of breasts without cancer.
        remark: which breasts were taken in from outside, so that there is something to compare.
    """

    factor: str
    name: str
    breasts: int
    cancers: int
    auroc: Interval | None
    sensitivity: Interval | None
    specificity: Interval | None
    remark: str = ""

    @property
    def title(self) -> str:
        """What it is called within a sentence."""
        return _title(self.factor, self.name)

    @property
    def scored(self) -> bool:
        """Whether anything is known of it."""
        return any((self.auroc, self.sensitivity, self.specificity))


def subgroups(
    judged: JudgedBreasts, facts: pd.DataFrame, resamples: int = 500, seed: int = 0
) -> list[Subgroup]:
    """Score all breasts, then each part of them by what is recorded.

    Sensitivity and specificity are those of the decisions that are given, AUROC has the interval of
    a formula. What is recorded of cancers alone (invasive or not) divides the cancers and compares
    each part with all breasts without cancer; what is recorded of breasts without cancer alone
    (difficult negatives) the other way round.

    Args:
        judged: the breasts.
        facts: from `cohort.facts_of`, in their order.
        resamples: of the patients, for the intervals of the shares.
        seed: of the resamples.
    """
    scorer = _Scorer(judged, resamples, seed)
    everything = np.ones(len(judged.labels), dtype=bool)
    found = [scorer.group("All breasts", "", everything)]
    for part in parts(facts, judged.labels):
        if part.of_cancer is None:
            found.append(scorer.group(part.factor, part.name, part.inside))
        else:
            found.append(scorer.part(part.factor, part.name, part.inside, of_cancer=part.of_cancer))
    return found


@dataclass(frozen=True)
class Part:
    """Which breasts a group is of.

    Attributes:
        factor: what divides: `Site`.
        name: which part: `1`.
        inside: (N,), of the breasts.
        of_cancer: whether all of them have cancer, or none has; None where both classes occur.
    """

    factor: str
    name: str
    inside: NDArray[np.bool_]
    of_cancer: bool | None = None

    @property
    def title(self) -> str:
        """What it is called within a sentence."""
        return _title(self.factor, self.name)


def parts(facts: pd.DataFrame, labels: NDArray[np.int64]) -> list[Part]:
    """Divide (N,) breasts by each thing that is recorded of them."""
    found = []
    for column, factor in FACTORS.items():
        values = merged_levels(facts[column]).to_numpy()
        levels = sorted(set(values), key=order_of)
        if len([level for level in levels if level != NOT_RECORDED]) == 0:
            continue
        found += [Part(factor, level, values == level) for level in levels]
    for column, factor, names, of_cancer in (
        ("invasive", CANCER, ("not invasive", "invasive"), True),
        ("difficult", _HEALTHY, ("not difficult", "difficult negative"), False),
    ):
        value, relevant = facts[column].to_numpy(np.float64), (labels == 1) == of_cancer
        if not (relevant & (value == 1)).any():
            continue  # not recorded, or of none
        for number in (1, 0):
            inside = relevant & (value == number)
            if inside.any():
                found.append(Part(factor, names[number], inside, of_cancer))
    return found


def _title(factor: str, name: str) -> str:
    if factor in (CANCER, _HEALTHY):
        return f"{name} cancers" if factor == CANCER else f"{name} breasts"
    return f"{factor.lower()} {name}".strip()


@dataclass(frozen=True)
class _Scorer:
    """Scores parts of the breasts."""

    judged: JudgedBreasts
    resamples: int
    seed: int

    def group(self, factor: str, name: str, inside: NDArray[np.bool_]) -> Subgroup:
        """A part with breasts of both classes."""
        cancer = self.judged.labels == 1
        return Subgroup(
            factor,
            name,
            breasts=int(inside.sum()),
            cancers=int((inside & cancer).sum()),
            auroc=self._auroc(inside),
            sensitivity=self._share(inside & cancer, "sensitivity"),
            specificity=self._share(inside & ~cancer, "specificity"),
        )

    def part(
        self, factor: str, name: str, inside: NDArray[np.bool_], *, of_cancer: bool
    ) -> Subgroup:
        """A part of one class, against all of the other."""
        others = (self.judged.labels == 1) != of_cancer
        return Subgroup(
            factor,
            name,
            breasts=int(inside.sum()),
            cancers=int(inside.sum()) if of_cancer else 0,
            auroc=self._auroc(inside | others),
            sensitivity=self._share(inside, "sensitivity") if of_cancer else None,
            specificity=None if of_cancer else self._share(inside, "specificity"),
            remark="AUROC against all breasts with" + ("out" if of_cancer else "") + " cancer",
        )

    def _auroc(self, rows: NDArray[np.bool_]) -> Interval | None:
        labels = self.judged.labels[rows]
        if min(int(labels.sum()), int((labels == 0).sum())) < LEAST:
            return None
        return area(self.judged.of_rows(rows))

    def _share(self, rows: NDArray[np.bool_], metric: str) -> Interval | None:
        if int(rows.sum()) < LEAST:
            return None
        judged = self.judged
        found = bootstrap_interval(
            DECISION[metric], judged.labels[rows], judged.decisions[rows], judged.patients[rows],
            self.resamples, self.seed,
        )  # fmt: skip
        return nan_if_degenerate(wilson_if_degenerate(found, len(np.unique(judged.patients[rows]))))
