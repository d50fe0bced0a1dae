"""Everything that a report says, computed once for the page and for the model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.reporting import captions
from rsna_bcd.reporting.cohort import Cohort, describe, facts_of
from rsna_bcd.reporting.contrasts import Contrast, contrasts
from rsna_bcd.reporting.formatting import count, percent
from rsna_bcd.reporting.gallery import Case
from rsna_bcd.reporting.judged import JudgedBreasts
from rsna_bcd.reporting.performance import (
    CHALLENGE,
    Comparison,
    FoldScore,
    Honestly,
    MemberScore,
    OperatingRow,
    area,
    compare,
    decision_scores,
    fold_scores,
    headline,
    member_scores,
    operating_rows,
    rank_correlation,
)
from rsna_bcd.reporting.preparation_summary import PreparationSummary
from rsna_bcd.reporting.subgroups import Subgroup, subgroups
from rsna_bcd.scoring.calibration import (
    CalibrationScores,
    ReliabilityCurve,
    calibration_scores,
    reliability_curve,
)
from rsna_bcd.scoring.ensemble import Ensemble
from rsna_bcd.scoring.intervals import ConfidenceBand, Interval, precision_recall_band, roc_band
from rsna_bcd.scoring.thresholds import BestPf1, RecallRate, ThresholdCurve, threshold_curve
from rsna_bcd.tables.images import breast_sites

_LOWEST = 0.003  # 1 - specificity, of the figure where it is high
_FEW = 50  # cancers


@dataclass(frozen=True)
class Sample:
    """A crop to look at.

    Attributes:
        picture: WebP.
        width: in pixels.
        height: in pixels.
        caption: laterality, view, machine.
        cancer: whether the breast has it.
    """

    picture: bytes
    width: int
    height: int
    caption: str
    cancer: bool


@dataclass(frozen=True)
class Sources:
    """What a report is made of.

    Attributes:
        ensemble: what it is about; a run by itself is an ensemble of one.
        is_run: whether it is a run by itself.
        oof: `ENSEMBLE_OOF_COLUMNS`, and `calibrated` where it calibrates.
        images: table of the images of the first member.
        members: by name, the members' probabilities for the rows of `oof`.
        others: by name, what it is compared with, likewise.
        policy: by which its threshold was chosen.
        preparation: of the members' prepared folders that have a manifest.
        samples: crops to look at.
        cases: breasts to look at; None where they were not asked for.
        histories: of each member, by fold, its scores by epoch (`metrics.csv`).
        synthetic: whether the images were made by a computer.
        resamples: of the patients, for the intervals of the main scores.
        band_resamples: for bands and groups, of which there are many.
        seed: of the resamples.
    """

    ensemble: Ensemble
    is_run: bool
    oof: pd.DataFrame
    images: pd.DataFrame
    members: Mapping[str, NDArray[np.float64]]
    others: Mapping[str, NDArray[np.float64]]
    policy: BestPf1 | RecallRate
    preparation: Sequence[PreparationSummary]
    samples: Sequence[Sample]
    cases: Sequence[Case] | None
    synthetic: bool
    resamples: int
    band_resamples: int
    seed: int
    histories: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """What a report says, by section.

    Attributes:
        sources: what it was made of.
        blended: the breasts, with the probabilities that the threshold applies to.
        cohort: who they are.
        scores: of the ranking and of the honest decisions, `performance.headline`.
        in_sample: of decisions by the threshold that was fitted on these same breasts.
        optimism: by how much the pF1 in sample is higher.
        delong: AUROC with the interval of a formula; None where it is undefined.
        roc: sensitivity over 1 - specificity.
        precision: PPV over sensitivity.
        screening: as `roc`, on points that are close where specificity is high.
        curve: of all thresholds, in sample.
        operating: ways to use the model.
        calibration: `brier` and `ece`, by what gave the probabilities.
        reliability: likewise, its name and the bins.
        groups: all breasts first, with the intervals of `scores`.
        contrasts: of each group with the rest of its factor.
        folds: each by itself.
        members: each by itself, and what it adds.
        correlation: (M, M) of the members' ranks.
        comparisons: with other models.
        notices: what a reader must know before anything else.
    """

    sources: Sources
    blended: JudgedBreasts
    cohort: Cohort
    scores: Mapping[str, Interval]
    in_sample: Mapping[str, Interval]
    optimism: float
    delong: Interval | None
    roc: ConfidenceBand
    precision: ConfidenceBand
    screening: ConfidenceBand
    curve: ThresholdCurve
    operating: Sequence[OperatingRow]
    calibration: Mapping[str, CalibrationScores]
    reliability: Sequence[tuple[str, ReliabilityCurve]]
    groups: Sequence[Subgroup]
    contrasts: Sequence[Contrast]
    folds: Sequence[FoldScore]
    members: Sequence[MemberScore]
    correlation: NDArray[np.float64]
    comparisons: Sequence[Comparison]
    notices: Sequence[str] = field(default_factory=tuple)

    @property
    def name(self) -> str:
        """Of the ensemble or run."""
        return self.sources.ensemble.name


def assemble(sources: Sources) -> Contents:
    """Compute a report.

    Raises:
        InputError: the table of images lacks breasts of the predictions.
    """
    oof, ensemble = sources.oof, sources.ensemble
    _check_covered(oof, sources.images)
    judged = JudgedBreasts.of(oof.assign(probability=oof["ranking"]), oof["decision"])
    blended = oof["probability"].to_numpy(np.float64)
    labels, patients = judged.labels, judged.patients
    facts = facts_of(sources.images, list(oof["prediction_id"]))
    cohort = describe(sources.images, oof, facts)
    n, seed = sources.band_resamples, sources.seed
    sites = oof["prediction_id"].map(breast_sites(sources.images)).fillna("").to_numpy(dtype=str)
    honestly = Honestly(sources.policy, oof["group"].to_numpy(np.int64), sites)
    unread = oof["unread"] == 1
    in_sample = JudgedBreasts.of(
        oof, np.where(unread, 0, ensemble.thresholds.decide(blended, sites))
    )
    scores = headline(ensemble, judged)
    total, *rest = subgroups(judged, facts, n, seed)
    probabilities = {"as predicted" if sources.is_run else "as blended": blended}
    if ensemble.blend == "rank_mean":
        probabilities.clear()  # ranks are no probabilities before they are calibrated
    if "calibrated" in oof:
        probabilities["calibrated"] = oof["calibrated"].to_numpy(np.float64)
    flattering = decision_scores(in_sample, sources.resamples, sources.seed)
    return Contents(
        sources=sources,
        blended=in_sample,
        cohort=cohort,
        scores=scores,
        in_sample=flattering,
        optimism=flattering["pf1"].value - scores["pf1"].value,
        delong=area(judged),
        roc=roc_band(labels, judged.probabilities, patients, n, seed),
        precision=precision_recall_band(labels, judged.probabilities, patients, n, seed),
        screening=roc_band(labels, judged.probabilities, patients, n, seed, _false_alarms(labels)),
        curve=threshold_curve(labels, blended),
        operating=operating_rows(judged, scores, n, seed),
        calibration={
            name: calibration_scores(labels, p, patients, sources.resamples, seed)
            for name, p in probabilities.items()
        },
        reliability=[(name, reliability_curve(labels, p)) for name, p in probabilities.items()],
        groups=[_as_in(scores, total), *rest],
        contrasts=contrasts(judged, facts, n, seed),
        folds=fold_scores(judged),
        members=member_scores(judged, sources.members, lambda names: _blend(sources, names)),
        correlation=rank_correlation(sources.members),
        comparisons=compare(judged, sources.others, honestly, sources.resamples, seed),
        notices=_notices(sources, cohort),
    )


def _as_in(scores: Mapping[str, Interval], total: Subgroup) -> Subgroup:
    """All breasts with the shares of the summary, so that each has one interval in a report."""
    return replace(
        total,
        sensitivity=total.sensitivity and scores["sensitivity"],
        specificity=total.specificity and scores["specificity"],
    )


def _false_alarms(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 - specificity, close where it is low; not below one false alarm, where nothing is known."""
    return np.geomspace(min(max(_LOWEST, 1 / int((labels == 0).sum())), 0.5), 1, 60)


def _blend(sources: Sources, names: Sequence[str]) -> NDArray[np.float64]:
    """The blend of some members, as the ensemble blends all."""
    kept = tuple(member for member in sources.ensemble.members if member.name in names)
    if not sum(member.weight for member in kept):
        kept = tuple(replace(member, weight=1.0) for member in kept)
    part = replace(sources.ensemble, members=kept)
    return part.combine(np.stack([sources.members[member.name] for member in kept]))


def _check_covered(oof: pd.DataFrame, images: pd.DataFrame) -> None:
    lacking = oof["prediction_id"][~oof["prediction_id"].isin(images["prediction_id"])]
    if len(lacking):
        raise InputError(
            f"The table of prepared images lacks {len(lacking)} of the predicted breasts, such as "
            f"{lacking.iloc[0]}. Prepare from the table that the members were trained on."
        )


def _notices(sources: Sources, cohort: Cohort) -> list[str]:
    """What a reader must know before anything else."""
    found = []
    if sources.synthetic:
        found.append(
            "The mammograms are synthetic: made by a computer to try the pipeline out. Nothing "
            "here says anything about patients."
        )
    chosen = [m.name for m in sources.ensemble.members if m.select != "last"]
    if chosen:
        found.append(
            f"All scores are optimistic: {', '.join(chosen)} kept the epoch that was best on the "
            "fold it is scored on (select=best)."
        )
    if cohort.prevalence > captions.ENRICHED:
        found.append(
            f"Cancer is enriched: {percent(cohort.prevalence, 0)} of these breasts have "
            f"it, {percent(CHALLENGE)} of the challenge's do, and those are richer in cancer than "
            "screening (there about 0.5 % of women). AUROC, sensitivity and specificity carry over "
            "to that extent that the breasts are alike; PPV, recall rate, accuracy and pF1 do not."
        )
    if cohort.cancers < _FEW:
        found.append(
            f"Only {count(cohort.cancers, 'breast')} with cancer: read the intervals, not "
            "the values."
        )
    unread = int(sources.oof["unread"].sum())
    if unread:
        found.append(
            f"{count(unread, 'breast')} could not be read and got the prevalence as "
            "probability; they count in every score."
        )
    return found
