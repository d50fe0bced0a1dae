"""All that an ensemble chooses from data, fitted together, and cross-fitted together.

A score is honest if nothing that made it was chosen on the rows that it counts. So the rules from
images to a breast, the weights, the stored ranks, the threshold and the calibration are fitted on
the other patients, all at once, and applied to those held out.

One thing remains: the networks behind the other patients' rows were trained with the labels of the
patients held out, as those of another fold. So what is fitted on such rows has heard of the labels
held out, if only through the networks; leaving them out of training too would take nested folds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.scoring.arrays import Floats
from rsna_bcd.scoring.blend import Blend, Ranks, blend, fit_ranks
from rsna_bcd.scoring.bootstrap import Interval
from rsna_bcd.scoring.calibration import Calibration, Method, fit_calibration
from rsna_bcd.scoring.cross_fitting import refitted_bootstraps
from rsna_bcd.scoring.ranking import average_precision
from rsna_bcd.scoring.resampling import Metric
from rsna_bcd.scoring.threshold import BestPf1, RecallRate, Threshold
from rsna_bcd.scoring.weighting import fit_weights

Rule = Literal["mean", "max"]  # from the images of a breast to the breast
# By member: its probabilities (N,) under each rule that may be chosen, the run's own rule first.
Members = Sequence[Mapping[Rule, Floats]]


@dataclass(frozen=True)
class Fitted:
    """What a recipe chose.

    Attributes:
        blend: How members' probabilities become one.
        rules: A member's, from images to a breast.
        weights: A member's, in the blend.
        ranks: A member's, under `rank_mean`; else empty.
        threshold: Of the blend.
        calibration: Of the blend, after the threshold; None leaves it as it is.
    """

    blend: Blend
    rules: tuple[Rule, ...]
    weights: tuple[float, ...]
    ranks: tuple[Ranks, ...]
    threshold: Threshold
    calibration: Calibration | None

    def combine(self, members: Members) -> Floats:
        """Blend members by their chosen rules: (N,) in [0, 1]."""
        chosen = _columns(members, self.rules)
        return blend(chosen, self.blend, self.weights, self.ranks)


@dataclass(frozen=True)
class HeldOut:
    """What each row gets from a recipe that was fitted on other patients.

    Attributes:
        probabilities: (N,), of the blend. Where the groups' blends differ so do their scales: a
            threshold or an order belongs to one group.
        ranking: (N,), the same on one scale, for scores of the order of all rows (AUROC): where the
            blends differ, the rank of each row among those that its blend was chosen on.
        decisions: (N,), 0 or 1; 0 where nothing could be read.
        calibrated: (N,), or None where the recipe does not calibrate; the prevalence of the other
            patients' rows where nothing could be read.
        groups: (N,), in which each row was held out, 0 .. G - 1.
        fitted: G, what was chosen on the rows outside of each group.
        columns: All rows by the blend that is common to all groups, (1, N), or by each group's,
            (G, N).
    """

    probabilities: Floats
    ranking: Floats
    decisions: NDArray[np.int64]
    calibrated: Floats | None
    groups: NDArray[np.int64]
    fitted: tuple[Fitted, ...]
    columns: Floats


@dataclass(frozen=True)
class Recipe:
    """What is to be chosen, and how.

    Attributes:
        blend: How members' probabilities become one.
        weights: One a member; None fits them.
        policy: By which the threshold is chosen.
        calibration: Method of it, or None.
        names: The members', for errors; without them they are numbered.
    """

    blend: Blend
    weights: tuple[float, ...] | None
    policy: BestPf1 | RecallRate
    calibration: Method | None = None
    names: tuple[str, ...] = ()

    def fit(
        self,
        labels: ArrayLike,
        members: Members,
        patients: ArrayLike,
        sites: ArrayLike | None = None,
        unread: ArrayLike | None = None,
    ) -> Fitted:
        """Choose everything on these rows, but those that could not be read.

        A member's rule is the one with the higher average precision, its own where they are equal.

        Args:
            labels: (N,), each 0 or 1.
            members: Their probabilities, (N,) each.
            patients: (N,), an id per row.
            sites: (N,), an id per row, for thresholds by site.
            unread: (N,), True where no member could read anything and all say the prior, which is
                nothing to choose by; None takes all for read.

        Raises:
            InputError: there is nothing to choose by: one class only, or equal probabilities.
        """
        y, patients = np.asarray(labels), np.asarray(patients)
        read = _read(unread, len(y))
        if not read.all():
            own = None if sites is None else np.asarray(sites)[read]
            return self.fit(y[read], _rows(members, read), patients[read], own)
        rules = tuple(_rule(y, member) for member in members)
        p = _columns(members, rules)
        names = self.names or tuple(f"member {number + 1}" for number in range(len(p)))
        ranks = tuple(map(fit_ranks, p, names)) if self.blend == "rank_mean" else ()
        weights = self.weights
        if weights is None:
            weights = tuple(fit_weights(y, p, self.blend, ranks, names=names).tolist())
        blended = blend(p, self.blend, weights, ranks)
        threshold = self.policy.fit(y, blended, patients, sites)
        method = self.calibration
        calibration = None if method is None else fit_calibration(y, blended, method)
        return Fitted(self.blend, rules, weights, ranks, threshold, calibration)

    def cross_fit(
        self,
        labels: ArrayLike,
        members: Members,
        patients: ArrayLike,
        groups: ArrayLike,
        sites: ArrayLike | None = None,
        unread: ArrayLike | None = None,
    ) -> HeldOut:
        """Choose everything on the rows outside of each group, and apply it within.

        Args:
            labels: (N,), each 0 or 1.
            members: Their probabilities, (N,) each, made out of fold themselves.
            patients: (N,), an id per row.
            groups: (N,), integers 0 .. G - 1; a patient's rows must share one.
            sites: (N,), an id per row, for thresholds by site.
            unread: (N,), True where no member could read anything: such rows have no part in any
                choice and are decided 0. None takes all for read.

        Raises:
            InputError: see `fit`.
        """
        y, patient = np.asarray(labels), np.asarray(patients)
        group, read = np.asarray(groups, dtype=np.int64), _read(unread, len(y))
        site = None if sites is None else np.asarray(sites)
        fitted = []
        for held_out in range(int(group.max()) + 1):
            outside = (group != held_out) & read
            others = None if site is None else site[outside]
            fitted.append(self.fit(y[outside], _rows(members, outside), patient[outside], others))
        columns = np.stack([chosen.combine(members) for chosen in fitted])
        probabilities = columns[group, np.arange(len(y))]
        if (columns == columns[0]).all():
            columns, ranking = columns[:1], probabilities
        else:
            ranking = _on_one_scale(columns, group, read)
        decisions = np.zeros(len(y), dtype=np.int64)
        calibrated = None if self.calibration is None else np.empty(len(y))
        for held_out, chosen in enumerate(fitted):
            inside = group == held_out
            seen = inside & read
            own = None if site is None else site[seen]
            decisions[seen] = chosen.threshold.decide(probabilities[seen], own)
            if calibrated is not None and chosen.calibration is not None:
                calibrated[inside] = y[~inside].mean()
                calibrated[seen] = chosen.calibration.apply(probabilities[seen])
        return HeldOut(probabilities, ranking, decisions, calibrated, group, tuple(fitted), columns)

    def intervals(
        self,
        metrics: Mapping[str, Metric],
        labels: ArrayLike,
        held_out: HeldOut,
        patients: ArrayLike,
        sites: ArrayLike | None = None,
        n: int = 2000,
        seed: int = 0,
        unread: ArrayLike | None = None,
    ) -> dict[str, Interval]:
        """Scores of the held-out decisions, with intervals by patient.

        In every resample the threshold of each group is fitted anew, to the group's blend of the
        rows outside of it. Rules, weights and ranks are not: they move a score by far less than a
        threshold does, and take as much longer.

        Args:
            metrics: Of decisions.
            labels: (N,), each 0 or 1.
            held_out: From `cross_fit` with the same rows.
            patients: (N,), an id per row.
            sites: As of `cross_fit`.
            n: Number of resamples.
            seed: Of the resampling.
            unread: As of `cross_fit`.
        """
        return refitted_bootstraps(
            metrics, labels, held_out.decisions, held_out.columns, patients, self.policy,
            held_out.groups, sites, unread, n, seed,
        )  # fmt: skip


def _rule(labels: NDArray, member: Mapping[Rule, Floats]) -> Rule:
    """The rule whose order of the breasts is best at the top; the first among equals."""
    if len(member) == 1:
        return next(iter(member))
    return max(member, key=lambda rule: average_precision(labels, member[rule]))


def _columns(members: Members, rules: Sequence[Rule]) -> Floats:
    """Each member's probabilities under its rule: (M, N)."""
    return np.stack([member[rule] for member, rule in zip(members, rules, strict=True)])


def _rows(members: Members, which: NDArray[np.bool_]) -> Members:
    return [{rule: p[which] for rule, p in member.items()} for member in members]


def _read(unread: ArrayLike | None, rows: int) -> NDArray[np.bool_]:
    return np.ones(rows, dtype=bool) if unread is None else ~np.asarray(unread, dtype=bool)


def _on_one_scale(columns: Floats, group: NDArray[np.int64], read: NDArray[np.bool_]) -> Floats:
    """Each row's rank among the rows outside of its group, all by its group's blend: (N,)."""
    ranking = np.empty(len(group))
    for held_out, p in enumerate(columns):
        inside = group == held_out
        ranking[inside] = fit_ranks(p[~inside & read]).apply(p[inside])
    return ranking
