"""The scores of a report: in total, by fold, by member, and beside something plain."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.reporting.judged import JudgedBreasts
from rsna_bcd.scoring.cross_fitting import cross_fitted_decisions
from rsna_bcd.scoring.ensemble import Ensemble
from rsna_bcd.scoring.intervals import (
    Difference,
    Interval,
    bootstrap_metrics,
    delong,
    delong_difference,
    nan_if_degenerate,
    paired_difference,
    wilson_if_degenerate,
)
from rsna_bcd.scoring.metrics import OPERATING, RANKING, auroc, average_precision, decide, pf1
from rsna_bcd.scoring.thresholds import BestPf1, RecallRate, operating_points

CHALLENGE = 0.0206  # prevalence by breast of the challenge's training set; screening's is lower


@dataclass(frozen=True)
class Published:
    """An operating point of the challenge's paper, shares of breasts; medians are of each share.

    Source: Radiology 2025, "Performance of Algorithms Submitted in the 2023 RSNA Screening
    Mammography Breast Cancer Detection AI Challenge": 1,537 algorithms, 10,830 single-breast exams.
    """

    name: str
    recall_rate: float
    sensitivity: float
    specificity: float
    ppv: float | None


PUBLISHED = (
    Published("Median of 1,537 algorithms", 0.017, 0.276, 0.987, 0.369),
    Published("Best single algorithm", 0.015, 0.486, 0.995, 0.646),
    Published("Any of the top ten recalls", 0.035, 0.678, 0.978, None),
)
_RECALL_RATES = (0.015, 0.035, 0.10)


@dataclass(frozen=True)
class FoldScore:
    """One fold by itself.

    Attributes:
        fold: its number.
        breasts: held out.
        cancers: of these.
        auroc: None where it is undefined.
        average_precision: None where it is undefined.
        pf1: of the decisions; None where there is no cancer to find.
    """

    fold: int
    breasts: int
    cancers: int
    auroc: Interval | None
    average_precision: float | None
    pf1: float | None


@dataclass(frozen=True)
class MemberScore:
    """One run within a blend.

    Attributes:
        name: of the run.
        auroc: of its own probabilities.
        average_precision: likewise.
        adds: by how much the AUROC of the blend, fitted on these breasts, is higher than that of
            the same blend without it; None for a member alone.
    """

    name: str
    auroc: Interval | None
    average_precision: float
    adds: Difference | None


@dataclass(frozen=True)
class Comparison:
    """The model beside another one, on the same breasts.

    Attributes:
        name: of the other.
        auroc: of the other.
        average_precision: of the other.
        gain: how much higher the AUROC of the model is.
        pf1: of the other's decisions, cross-fitted like the model's; None where it has none.
        pf1_gain: how much higher the pF1 of the model is; None likewise.
    """

    name: str
    auroc: Interval | None
    average_precision: float
    gain: Difference | None
    pf1: float | None
    pf1_gain: Difference | None


@dataclass(frozen=True)
class Honestly:
    """How honest decisions are made.

    Attributes:
        policy: chooses a threshold.
        groups: (N,), of patients; each is decided by the threshold of the others.
        sites: (N,), for thresholds by site.
    """

    policy: BestPf1 | RecallRate
    groups: NDArray[np.int64]
    sites: NDArray[np.str_]

    def decide(
        self, labels: ArrayLike, probabilities: ArrayLike, patients: ArrayLike
    ) -> NDArray[np.int64]:
        """Decide (N,) breasts.

        Raises:
            InputError: there is nothing to choose a threshold by.
        """
        return cross_fitted_decisions(
            labels, probabilities, patients, self.policy, self.groups, self.sites
        )


def headline(ensemble: Ensemble, judged: JudgedBreasts) -> dict[str, Interval]:
    """Scores of the ranking and of the honest decisions, as they were fitted.

    Returns:
        By name, those of `metrics.RANKING` and `metrics.OPERATING`.
    """
    ranked = {name: nan_if_degenerate(ensemble.score[name]) for name in RANKING}
    return ranked | _widened(ensemble.score["cross_fitted"], judged)


def decision_scores(judged: JudgedBreasts, resamples: int, seed: int) -> dict[str, Interval]:
    """Scores of decisions that are taken as they are."""
    found = bootstrap_metrics(
        OPERATING, judged.labels, judged.decisions, judged.patients, resamples, seed
    )
    return _widened(found, judged)


def _widened(scores: Mapping[str, Interval], judged: JudgedBreasts) -> dict[str, Interval]:
    """Shares of which resamples are all alike get an interval from their number of patients."""
    rows = {
        "sensitivity": judged.labels == 1,
        "specificity": judged.labels == 0,
        "ppv": judged.decisions == 1,
        "recall_rate": judged.labels >= 0,
        "accuracy": judged.labels >= 0,
    }
    numbers = {key: len(np.unique(judged.patients[of_key])) for key, of_key in rows.items()}
    widened = {key: wilson_if_degenerate(one, numbers.get(key, 0)) for key, one in scores.items()}
    return {key: nan_if_degenerate(one) for key, one in widened.items()}


def fold_scores(judged: JudgedBreasts) -> list[FoldScore]:
    """Each fold by itself, ascending."""
    found = []
    for fold in np.unique(judged.folds):
        own = judged.of_rows(judged.folds == fold)
        precision = average_precision(own.labels, own.probabilities)
        found.append(
            FoldScore(
                int(fold),
                breasts=len(own.labels),
                cancers=int(own.labels.sum()),
                auroc=area(own),
                average_precision=precision if np.isfinite(precision) else None,
                pf1=pf1(own.labels, own.decisions) if own.labels.any() else None,
            )
        )
    return found


def member_scores(
    judged: JudgedBreasts,
    members: Mapping[str, NDArray[np.float64]],
    blend_of: Callable[[Sequence[str]], NDArray[np.float64]],
) -> list[MemberScore]:
    """Each member alone, and what it adds to the blend.

    Args:
        judged: the breasts.
        members: by name, its probabilities for the same rows.
        blend_of: the blend of some of the members.
    """
    found = []
    # Both in sample: the weights of either had these breasts to go by.
    together = replace(judged, probabilities=blend_of(list(members)))
    for name, probabilities in members.items():
        rest = [other for other in members if other != name]
        adds = _gain(together, blend_of(rest)) if rest else None
        found.append(
            MemberScore(
                name,
                area(judged, probabilities),
                average_precision(judged.labels, probabilities),
                adds,
            )
        )
    return found


def rank_correlation(members: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Spearman's correlation of the members' probabilities: (M, M)."""
    table = pd.DataFrame(dict(members))
    return table.rank().corr().to_numpy(dtype=np.float64)


def compare(
    judged: JudgedBreasts,
    others: Mapping[str, NDArray[np.float64]],
    honestly: Honestly,
    resamples: int,
    seed: int,
) -> list[Comparison]:
    """The model beside others on the same breasts.

    Args:
        judged: the model.
        others: by name, out-of-fold probabilities for the same rows.
        honestly: how decisions are made, of the others too.
        resamples: of the patients, for the difference of pF1.
        seed: of the resamples.
    """
    found = []
    for name, probabilities in others.items():
        score, gain = None, None
        with suppress(InputError):  # raised where it tells no breast from another
            decisions = honestly.decide(judged.labels, probabilities, judged.patients)
            score = pf1(judged.labels, decisions)
            gain = paired_difference(
                pf1, judged.labels, decisions, judged.decisions, judged.patients, resamples, seed
            )
        found.append(
            Comparison(
                name,
                area(judged, probabilities),
                average_precision(judged.labels, probabilities),
                _gain(judged, probabilities),
                score,
                gain,
            )
        )
    return found


def area(judged: JudgedBreasts, probabilities: ArrayLike | None = None) -> Interval | None:
    """AUROC with DeLong's interval by patient; None where it is undefined.

    The ends are NaN where the formula knows no variance, as where all breasts are in order.
    """
    scores = judged.probabilities if probabilities is None else np.asarray(probabilities)
    try:
        return nan_if_degenerate(delong(judged.labels, scores, judged.patients))
    except InputError:  # fewer than two patients of a class
        value = auroc(judged.labels, scores)
        return Interval(value, float("nan"), float("nan")) if np.isfinite(value) else None


def at_prevalence(sensitivity: float, specificity: float, prevalence: float) -> float:
    """PPV that these two would give at another prevalence; NaN where nothing is called.

    It supposes that only the numbers of cancers and healthy breasts differ, not how they look.
    """
    called = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    return sensitivity * prevalence / called if called > 0 else float("nan")


def _gain(judged: JudgedBreasts, others: NDArray[np.float64]) -> Difference | None:
    """How much higher the AUROC of the model is; None where that is undefined."""
    try:
        return delong_difference(judged.labels, others, judged.probabilities, judged.patients)
    except InputError:
        return None


@dataclass(frozen=True)
class OperatingRow:
    """One way to use the model.

    Attributes:
        name: how its threshold was chosen.
        scores: recall rate, sensitivity, specificity, ppv, accuracy, balanced accuracy.
        honest: whether no breast had a part in the threshold that decided it. Otherwise it was set
            to a share of these same breasts, not to their best score, which flatters little.
        ceiling: sensitivity that a perfect model would have if it called as many; None where it is
            1, and where calls are not what was fixed.
    """

    name: str
    scores: Mapping[str, Interval]
    honest: bool
    ceiling: float | None = None


def operating_rows(
    judged: JudgedBreasts, scores: Mapping[str, Interval], n: int, seed: int
) -> list[OperatingRow]:
    """The chosen threshold, and those at the recall rates and specificities that are published.

    Args:
        judged: the breasts.
        scores: of the honest decisions, from `headline`.
        n: resamples of the patients.
        seed: of the resamples.
    """
    points = operating_points(
        judged.labels, judged.probabilities, judged.patients, recall_rates=_RECALL_RATES,
        specificities=sorted(p.specificity for p in PUBLISHED), n=n, seed=seed,
    )  # fmt: skip
    prevalence = float(judged.labels.mean())
    found = [OperatingRow("chosen, cross-fitted", scores, honest=True)]
    for name, point in points.items():
        made = replace(judged, decisions=decide(judged.probabilities, point.threshold))
        own = _widened(point.scores, made)
        reach = point.scores["recall_rate"].value / prevalence
        limited = name.startswith("recall rate") and reach < 1
        found.append(OperatingRow(name, own, honest=False, ceiling=reach if limited else None))
    return found
