"""Evaluation of an ensemble or run: the results that the page and the model card show."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.reporting.formatting import count, percent
from rsna_bcd.reporting.gallery import Case, Picture
from rsna_bcd.reporting.subgroups import (
    Cohort,
    ScoredBreasts,
    Subgroup,
    SubgroupDifference,
    auroc_interval,
    breast_facts,
    describe_cohort,
    score_subgroups,
    subgroup_differences,
)
from rsna_bcd.scoring.calibration import (
    CalibrationScores,
    ReliabilityCurve,
    calibration_scores,
    reliability_curve,
)
from rsna_bcd.scoring.cross_fitting import cross_fitted_decisions
from rsna_bcd.scoring.ensemble import Ensemble
from rsna_bcd.scoring.intervals import (
    ConfidenceBand,
    Difference,
    Interval,
    bootstrap_metrics,
    delong_difference,
    nan_if_degenerate,
    paired_difference,
    precision_recall_band,
    roc_band,
    wilson_if_degenerate,
)
from rsna_bcd.scoring.metrics import OPERATING, RANKING, average_precision, decide, pf1
from rsna_bcd.scoring.thresholds import (
    BestPf1,
    RecallRate,
    ThresholdCurve,
    operating_points,
    threshold_curve,
)
from rsna_bcd.tables.images import breast_sites

CHALLENGE_PREVALENCE = 0.0206  # by breast, of the challenge's training set; screening's is lower
ENRICHED = 0.05  # prevalence by breast above that of any screening
_FEW_CANCERS = 50
_LOWEST_FPR = 0.003  # of the figure at high specificity
_RECALL_RATES = (0.015, 0.035, 0.10)
_SYNTAXES = {  # PS3.6
    "1.2.840.10008.1.2": "uncompressed, implicit VR",
    "1.2.840.10008.1.2.1": "uncompressed",
    "1.2.840.10008.1.2.2": "uncompressed, big endian",
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless (SV1)",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K lossless",
}
_MANIFEST = {"split", "status", "decoder", "resolution_level", "transfer_syntax", "window"}
_FITTED_WINDOWS = ("fitted", "min-max")  # to the pixels; the latter in older manifests
_MAX_REASONS = 8


@dataclass(frozen=True)
class Published:
    """An operating point of the challenge's paper, of breasts; medians are of each score.

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


@dataclass(frozen=True)
class Sample:
    """A crop in the section on the data."""

    picture: Picture
    caption: str  # laterality, view, machine
    cancer: bool  # label of the breast


@dataclass(frozen=True)
class DecodedFiles:
    """Files of one transfer syntax that one decoder read, in full or at `1/2^k` resolution."""

    syntax: str
    decoder: str
    resolution: str
    files: int


@dataclass(frozen=True)
class PreparationSummary:
    """The training files of one prepared folder."""

    crop: str  # name
    files: int  # in the manifest
    prepared: int  # crops
    failures: tuple[tuple[str, int], ...]  # reason and number of files, the most frequent first
    failures_left_out: int  # files of other reasons
    whole_frames: int  # crops without a visible breast
    without_window: int  # without a usable window in the header
    second_choice: int  # decoded in full by another decoder than most of their syntax
    decoded: tuple[DecodedFiles, ...]


@dataclass(frozen=True)
class ReportInputs:
    """Data and settings of a report; probabilities are (N,), in the order of `oof`."""

    ensemble: Ensemble  # a single run is an ensemble of one
    is_run: bool
    oof: pd.DataFrame  # `ENSEMBLE_OOF_COLUMNS`, and `calibrated` for a calibrated ensemble
    images: pd.DataFrame  # of the first member
    members: Mapping[str, NDArray[np.float64]]  # probabilities by run
    others: Mapping[str, NDArray[np.float64]]  # probabilities of baselines
    policy: BestPf1 | RecallRate  # of the threshold
    preparation: Sequence[PreparationSummary]
    samples: Sequence[Sample]
    cases: Sequence[Case] | None  # of the gallery; None leaves it out
    maps: bool  # whether the cases have saliency maps
    synthetic: bool
    resamples: int  # of the patients, for the intervals of the main scores
    band_resamples: int  # for bands and subgroups
    seed: int
    histories: Mapping[str, Mapping[str, pd.DataFrame]] = field(default_factory=dict)  # run, fold


@dataclass(frozen=True)
class FoldScore:
    """Scores of one fold; None where a score is undefined."""

    fold: int
    breasts: int
    cancers: int
    auroc: Interval | None
    average_precision: float | None
    pf1: float | None


@dataclass(frozen=True)
class MemberScore:
    """Scores of a single member of the ensemble."""

    name: str
    auroc: Interval | None
    average_precision: float
    # AUROC of the blend less that of the blend without it, both in sample; None for a member alone.
    gain: Difference | None


@dataclass(frozen=True)
class Comparison:
    """Another model on the same breasts; gains are of the ensemble over it."""

    name: str
    auroc: Interval | None
    average_precision: float
    gain: Difference | None
    pf1: float | None  # of its cross-fitted decisions; None where they are undefined
    pf1_gain: Difference | None


@dataclass(frozen=True)
class OperatingRow:
    """One operating point, named by how its threshold was chosen.

    Without cross-fitting, the threshold is set to a recall rate or specificity on these same
    breasts, not to their best score: the optimism is small.
    """

    name: str
    scores: Mapping[str, Interval]  # of `OPERATING`
    cross_fitted: bool
    max_sensitivity: float | None = None  # of a perfect model at this recall rate, if below 1


@dataclass(frozen=True)
class Evaluation:
    """The results of a report."""

    inputs: ReportInputs
    in_sample_breasts: ScoredBreasts  # blended probabilities, decisions by the stored threshold
    cohort: Cohort
    scores: Mapping[str, Interval]  # of `RANKING`, and of `OPERATING` for cross-fitted decisions
    in_sample: Mapping[str, Interval]  # of the decisions by the stored threshold
    optimism: float  # pF1 in sample less the cross-fitted pF1
    delong: Interval | None  # AUROC with DeLong's interval; None where it is undefined
    roc: ConfidenceBand  # sensitivity over 1 - specificity
    precision: ConfidenceBand  # PPV over sensitivity
    screening: ConfidenceBand  # as `roc`, dense where specificity is high
    curve: ThresholdCurve  # pF1 at all thresholds, in sample
    operating: Sequence[OperatingRow]
    calibration: Mapping[str, CalibrationScores]  # by name of the probabilities
    reliability: Mapping[str, ReliabilityCurve]  # likewise
    groups: Sequence[Subgroup]  # all breasts first
    differences: Sequence[SubgroupDifference]
    folds: Sequence[FoldScore]
    members: Sequence[MemberScore]
    correlation: NDArray[np.float64]  # (M, M) Spearman's, of the members
    comparisons: Sequence[Comparison]
    notices: Sequence[str]  # to read before anything else

    @property
    def name(self) -> str:
        """Of the ensemble or run."""
        return self.inputs.ensemble.name


def evaluate(inputs: ReportInputs) -> Evaluation:
    """Compute a report.

    Raises:
        InputError: the table of images lacks breasts of the predictions.
    """
    _check_inputs(inputs)
    oof, ensemble = inputs.oof, inputs.ensemble
    breasts = ScoredBreasts.from_table(oof.assign(probability=oof["ranking"]), oof["decision"])
    blended = oof["probability"].to_numpy(np.float64)
    labels, patients = breasts.labels, breasts.patients
    facts = breast_facts(inputs.images, list(oof["prediction_id"]))
    cohort = describe_cohort(inputs.images, oof, facts)
    n, seed = inputs.band_resamples, inputs.seed
    sites = oof["prediction_id"].map(breast_sites(inputs.images)).fillna("").to_numpy(dtype=str)
    decisions = np.where(oof["unread"] == 1, 0, ensemble.thresholds.decide(blended, sites))
    in_sample_breasts = ScoredBreasts.from_table(oof, decisions)
    scores = {name: nan_if_degenerate(ensemble.score[name]) for name in RANKING}
    scores |= _intervals(ensemble.score["cross_fitted"], breasts)
    in_sample = bootstrap_metrics(OPERATING, labels, decisions, patients, inputs.resamples, seed)
    in_sample = _intervals(in_sample, in_sample_breasts)
    total, *groups = score_subgroups(breasts, facts, n, seed)
    # All breasts have the intervals of the summary: one interval per score in a report.
    rates: Any = {k: getattr(total, k) and scores[k] for k in ("sensitivity", "specificity")}
    probabilities = _calibrated_and_not(inputs)
    ranked = labels, breasts.probabilities, patients, n, seed
    return Evaluation(
        inputs=inputs,
        in_sample_breasts=in_sample_breasts,
        cohort=cohort,
        scores=scores,
        in_sample=in_sample,
        optimism=in_sample["pf1"].value - scores["pf1"].value,
        delong=auroc_interval(breasts),
        roc=roc_band(*ranked),
        precision=precision_recall_band(*ranked),
        screening=roc_band(*ranked, _low_fpr(labels)),
        curve=threshold_curve(labels, blended),
        operating=_operating_rows(breasts, scores, n, seed),
        calibration={
            name: calibration_scores(labels, p, patients, inputs.resamples, seed)
            for name, p in probabilities.items()
        },
        reliability={name: reliability_curve(labels, p) for name, p in probabilities.items()},
        groups=[replace(total, **rates), *groups],
        differences=subgroup_differences(breasts, facts, n, seed),
        folds=_score_folds(breasts),
        members=_score_members(inputs, breasts),
        correlation=pd.DataFrame(dict(inputs.members)).corr("spearman").to_numpy(np.float64),
        comparisons=_compare(inputs, breasts, sites),
        notices=_notices(inputs, cohort),
    )


def _check_inputs(inputs: ReportInputs) -> None:
    """Refuse predictions without images, and an ensemble without scores of this version."""
    oof, ensemble = inputs.oof, inputs.ensemble
    missing = oof["prediction_id"][~oof["prediction_id"].isin(inputs.images["prediction_id"])]
    if len(missing):
        raise InputError(
            f"The table of prepared images lacks {len(missing)} of the predicted breasts, such as "
            f"{missing.iloc[0]}. Prepare from the table that the members were trained on."
        )
    absent = [name for name in RANKING if name not in ensemble.score]
    absent += [name for name in OPERATING if name not in ensemble.score["cross_fitted"]]
    if absent:
        raise InputError(
            f"Ensemble {ensemble.name} was fitted without {', '.join(absent)}. Fit it again:\n"
            f"  {ensemble.command}"
        )


def _calibrated_and_not(inputs: ReportInputs) -> dict[str, NDArray[np.float64]]:
    """The probabilities by name; a blend of ranks has none before calibration."""
    probabilities = {}
    if inputs.ensemble.blend != "rank_mean":
        name = "as predicted" if inputs.is_run else "as blended"
        probabilities[name] = inputs.oof["probability"].to_numpy(np.float64)
    if "calibrated" in inputs.oof:
        probabilities["calibrated"] = inputs.oof["calibrated"].to_numpy(np.float64)
    return probabilities


def _low_fpr(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """False positive rates up to 1, from that of one false positive at least."""
    lowest = min(max(_LOWEST_FPR, 1 / int((labels == 0).sum())), 0.5)
    return np.geomspace(lowest, 1, 60)


def _intervals(scores: Mapping[str, Interval], breasts: ScoredBreasts) -> dict[str, Interval]:
    """Wilson's interval, by number of patients, for proportions that are equal in all resamples."""
    rows = {
        "sensitivity": breasts.labels == 1,
        "specificity": breasts.labels == 0,
        "ppv": breasts.decisions == 1,
        "recall_rate": breasts.labels >= 0,
        "accuracy": breasts.labels >= 0,
    }
    n = {key: len(np.unique(breasts.patients[chosen])) for key, chosen in rows.items()}
    return {
        key: nan_if_degenerate(wilson_if_degenerate(interval, n.get(key, 0)))
        for key, interval in scores.items()
    }


def _operating_rows(
    breasts: ScoredBreasts, scores: Mapping[str, Interval], n: int, seed: int
) -> list[OperatingRow]:
    """The cross-fitted decisions, and the published recall rates and specificities."""
    points = operating_points(
        breasts.labels,
        breasts.probabilities,
        breasts.patients,
        recall_rates=_RECALL_RATES,
        specificities=sorted(p.specificity for p in PUBLISHED),
        n=n,
        seed=seed,
    )
    prevalence = float(breasts.labels.mean())
    rows = [OperatingRow("chosen, cross-fitted", scores, cross_fitted=True)]
    for name, point in points.items():
        own = replace(breasts, decisions=decide(breasts.probabilities, point.threshold))
        reach = point.scores["recall_rate"].value / prevalence
        limit = reach if name.startswith("recall rate") and reach < 1 else None
        rows.append(OperatingRow(name, _intervals(point.scores, own), False, limit))
    return rows


def _score_folds(breasts: ScoredBreasts) -> list[FoldScore]:
    scores = []
    for fold in np.unique(breasts.folds):
        own = breasts.select(breasts.folds == fold)
        precision = average_precision(own.labels, own.probabilities)
        scores.append(
            FoldScore(
                int(fold),
                breasts=len(own.labels),
                cancers=int(own.labels.sum()),
                auroc=auroc_interval(own),
                average_precision=precision if np.isfinite(precision) else None,
                pf1=pf1(own.labels, own.decisions) if own.labels.any() else None,
            )
        )
    return scores


def _score_members(inputs: ReportInputs, breasts: ScoredBreasts) -> list[MemberScore]:
    def blend(names: Sequence[str]) -> NDArray[np.float64]:
        kept = tuple(member for member in inputs.ensemble.members if member.name in names)
        if not sum(member.weight for member in kept):
            kept = tuple(replace(member, weight=1.0) for member in kept)
        part = replace(inputs.ensemble, members=kept)
        return part.combine(np.stack([inputs.members[member.name] for member in kept]))

    # Both in sample: the weights of either were fitted on these breasts.
    together = replace(breasts, probabilities=blend(list(inputs.members)))
    scores = []
    for name, p in inputs.members.items():
        rest = [other for other in inputs.members if other != name]
        gain = _auroc_gain(together, blend(rest)) if rest else None
        precision = average_precision(breasts.labels, p)
        scores.append(MemberScore(name, auroc_interval(breasts, p), precision, gain))
    return scores


def _compare(
    inputs: ReportInputs, breasts: ScoredBreasts, sites: NDArray[np.str_]
) -> list[Comparison]:
    """The other models, their decisions cross-fitted by the same policy and groups."""
    labels, patients = breasts.labels, breasts.patients
    groups = inputs.oof["group"].to_numpy(np.int64)
    comparisons = []
    for name, p in inputs.others.items():
        ranking = auroc_interval(breasts, p), average_precision(labels, p), _auroc_gain(breasts, p)
        score, gain = None, None
        with suppress(InputError):  # all probabilities are equal
            theirs = cross_fitted_decisions(labels, p, patients, inputs.policy, groups, sites)
            score = pf1(labels, theirs)
            gain = paired_difference(
                pf1, labels, theirs, breasts.decisions, patients, inputs.resamples, inputs.seed
            )
        comparisons.append(Comparison(name, *ranking, score, gain))
    return comparisons


def _auroc_gain(breasts: ScoredBreasts, others: NDArray[np.float64]) -> Difference | None:
    """How much higher the AUROC of `breasts` is; None where that is undefined."""
    with suppress(InputError):
        return delong_difference(breasts.labels, others, breasts.probabilities, breasts.patients)
    return None


def ppv_at(sensitivity: float, specificity: float, prevalence: float) -> float:
    """PPV of these at another prevalence, by Bayes' theorem; NaN where nothing is positive."""
    positive = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    return sensitivity * prevalence / positive if positive > 0 else float("nan")


def _notices(inputs: ReportInputs, cohort: Cohort) -> list[str]:
    notices = []
    if inputs.synthetic:
        notices.append(
            "The mammograms are synthetic: made by a computer to try the pipeline out. Nothing "
            "here says anything about patients."
        )
    chosen = [m.name for m in inputs.ensemble.members if m.select != "last"]
    if chosen:
        notices.append(
            f"All scores are optimistic: {', '.join(chosen)} kept the epoch that was best on the "
            "fold it is scored on (select=best)."
        )
    if inputs.ensemble.networks == "all":
        notices.append(
            "All scores are of the folds' networks. A test set is predicted by those that were "
            "trained on all patients, which have no scores, with the same share of positives."
        )
    if cohort.prevalence > ENRICHED:
        notices.append(
            f"Cancer is enriched: {percent(cohort.prevalence, 0)} of these breasts have it. "
            f"Of the challenge's, {percent(CHALLENGE_PREVALENCE)} have it, also more than in "
            "screening, which finds cancer in about 0.5 % of women. AUROC, sensitivity and "
            "specificity carry over as far as the breasts are alike; PPV, recall rate, accuracy "
            "and pF1 do not."
        )
    if cohort.cancers < _FEW_CANCERS:
        notices.append(
            f"Only {count(cohort.cancers, 'breast')} with cancer: read the intervals, not "
            "the values."
        )
    unreadable = int(inputs.oof["unread"].sum())
    if unreadable:
        notices.append(
            f"{count(unreadable, 'breast')} could not be read and got the prevalence as "
            "probability; they count in every score."
        )
    return notices


def read_manifests(folders: Sequence[Path]) -> list[PreparationSummary]:
    """Summaries of the prepared folders that have a manifest, in their order."""
    summaries = []
    for file in (folder / "manifest.csv" for folder in folders):
        if file.is_file():
            manifest = pd.read_csv(file, dtype="string")
            if set(manifest.columns) >= _MANIFEST and len(manifest):
                summaries.append(summarise_preparation(manifest, file.parent.name))
    return summaries


def summarise_preparation(manifest: pd.DataFrame, crop: str) -> PreparationSummary:
    """Count the training files of a manifest, which was read as strings."""
    rows = manifest[manifest["split"] == "train"]
    ok = rows[rows["status"] == "ok"]
    reasons = rows.loc[rows["status"] != "ok", "status"].fillna("no reason given").value_counts()
    syntax = ok["transfer_syntax"].map(lambda uid: _SYNTAXES.get(uid, uid), "ignore")
    level = pd.to_numeric(ok["resolution_level"], errors="coerce").fillna(0).astype(int)
    kinds = pd.DataFrame(
        {
            "syntax": syntax.fillna("unknown"),
            "decoder": ok["decoder"].fillna("unknown"),
            "resolution": [f"1/{2**k}" if k else "full" for k in level],
        }
    )
    in_full = kinds[kinds["resolution"] == "full"].value_counts(["syntax", "decoder"])
    found = ok["breast_found"] if "breast_found" in ok else pd.Series(dtype="string")
    return PreparationSummary(
        crop=crop,
        files=len(rows),
        prepared=len(ok),
        failures=tuple((str(reason), int(n)) for reason, n in reasons.head(_MAX_REASONS).items()),
        failures_left_out=int(reasons.iloc[_MAX_REASONS:].sum()),
        whole_frames=int(found.isin(["0", "False"]).sum()),
        without_window=int(ok["window"].str.startswith(_FITTED_WINDOWS, na=False).sum()),
        second_choice=int(in_full.sum() - in_full.groupby(level="syntax").max().sum()),
        decoded=tuple(
            DecodedFiles(*row) for row in kinds.value_counts().reset_index().to_numpy().tolist()
        ),
    )
