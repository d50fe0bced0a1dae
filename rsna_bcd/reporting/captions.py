"""Captions of figures and tables: one sentence each, from their own numbers."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.reporting.evaluation import (
    CHALLENGE_PREVALENCE,
    ENRICHED,
    Comparison,
    FoldScore,
    MemberScore,
    PreparationSummary,
    ppv_at,
)
from rsna_bcd.reporting.formatting import (
    count,
    decimal,
    decimal_estimate,
    enumeration,
    interval_ends,
    percent,
    percent_estimate,
    signed,
)
from rsna_bcd.reporting.subgroups import (
    MIN_BREASTS,
    Cohort,
    ScoredBreasts,
    Subgroup,
    SubgroupDifference,
)
from rsna_bcd.scoring.calibration import CalibrationScores
from rsna_bcd.scoring.intervals import ConfidenceBand, Interval
from rsna_bcd.scoring.thresholds import Plateau


def summary(name: str, scores: Mapping[str, Interval]) -> str:
    """The report in one sentence."""
    sensitivity, auroc = scores["sensitivity"], scores["auroc"]
    return (
        f"{name} finds {percent(sensitivity.value, 0)} of the breasts with cancer "
        f"({_confidence_interval(sensitivity, 0, 100)}) and flags "
        f"{percent(1 - scores['specificity'].value)} of those without it; of a breast with cancer "
        f"and one without, it gives the former the higher score {percent(auroc.value)} of the time "
        f"({interval_ends(auroc, 1, 100)})."
    )


def sample_size(cohort: Cohort, scores: Mapping[str, Interval]) -> str:
    """The sample size, and the uncertainty of the sensitivity."""
    sensitivity = scores["sensitivity"]
    uncertainty = (
        "another sample of such patients could have given a sensitivity anywhere from "
        f"{interval_ends(sensitivity, 0, 100)} %"
        if math.isfinite(sensitivity.low)
        else "how much sensitivity would differ with other patients is not known"
    )
    return (
        f"This rests on {count(cohort.cancers, 'breast')} with cancer among "
        f"{count(cohort.breasts, 'breast')} of {count(cohort.patients, 'patient')}, each scored by "
        f"networks that were not trained on the patient; {uncertainty}."
    )


def data(cohort: Cohort) -> str:
    """Prevalence, images per breast, and missing columns."""
    missing = [*(c for c, share in cohort.missing.items() if share >= 0.2), *cohort.absent]
    tail = f" Largely missing: {enumeration(missing)}." if missing else ""
    both = f" ({count(cohort.bilateral, 'patient')} in both breasts)" if cohort.bilateral else ""
    return (
        f"{percent(cohort.prevalence)} of the breasts have cancer{both}; a breast has "
        f"{cohort.images / cohort.breasts:.1f} images on average.{tail}"
    )


def ages(cohort: Cohort) -> str:
    """Median ages of both classes."""
    if not len(cohort.ages_with) or not len(cohort.ages_without):
        return "Ages of one class only are known."
    return (
        f"The median age is {np.median(cohort.ages_with):.0f} years with cancer and "
        f"{np.median(cohort.ages_without):.0f} without."
    )


def roc(scores: Mapping[str, Interval], delong: Interval | None) -> str:
    """AUROC with both intervals."""
    known = delong is not None and math.isfinite(delong.low)
    formula = f"; by DeLong's formula {interval_ends(delong)}" if delong and known else ""
    auroc = scores["auroc"]
    return (
        f"AUROC {decimal(auroc.value)}, {_confidence_interval(auroc)} over resampled "
        f"patients{formula}."
    )


def _confidence_interval(interval: Interval, digits: int = 3, scale: float = 1) -> str:
    ends = interval_ends(interval, digits, scale)
    return f"95 % interval {ends}" if math.isfinite(interval.low) else ends


def precision(scores: Mapping[str, Interval], prevalence: float) -> str:
    """Average precision, and the PPV at the threshold."""
    return (
        f"Average precision {decimal_estimate(scores['average_precision'])}, where chance has "
        f"{decimal(prevalence)}; at the threshold {percent_estimate(scores['ppv'], 0)} of the "
        "breasts that are flagged have cancer."
    )


def screening(band: ConfidenceBand, prevalence: float, beyond: list[str]) -> str:
    """Sensitivity at a specificity of 98 %; `beyond` are points that the axis does not reach."""
    value, low, high = (
        float(np.interp(0.02, band.x, curve)) for curve in (band.value, band.low, band.high)
    )
    enriched = (
        f", and {percent(prevalence, 0)} of them have cancer: the points show the scale, not a "
        "ranking."
        if prevalence > ENRICHED
        else ": the points show the scale."
    )
    edge = (
        " Drawn at the left edge, as the specificity is above "
        f"{percent(1 - float(band.x[0]))}: {enumeration(beyond)}."
        if beyond
        else ""
    )
    return (
        f"At a specificity of 98 % it finds {percent(value, 0)} of the cancers "
        f"({100 * low:.0f} to {100 * high:.0f}). These are other breasts than the paper's"
        f"{enriched}{edge}"
    )


def threshold(plateau: Plateau, chosen: float, fitted: Sequence[float], optimism: float) -> str:
    """The plateau, and the optimism of the score in sample."""
    inside = sum(plateau.low <= value <= plateau.high for value in fitted)
    direction = "higher" if optimism >= 0 else "lower"
    return (
        f"Any threshold from {decimal(plateau.low)} to {decimal(plateau.high)} is as good as the "
        f"best within half a standard error ({decimal(plateau.standard_error)}); "
        f"{decimal(chosen)} is used. {inside} of the {len(fitted)} thresholds chosen on other "
        f"patients lie there too, and the score in sample is {decimal(abs(optimism))} {direction} "
        "than the cross-fitted one."
    )


def distributions(breasts: ScoredBreasts) -> str:
    """Medians of both classes, and the errors of the decisions."""
    with_, without = (
        decimal(float(np.median(breasts.probabilities[breasts.labels == label])), 2)
        for label in (1, 0)
    )
    missed, false = (
        int(((breasts.labels == label) & (breasts.decisions != label)).sum()) for label in (1, 0)
    )
    return (
        f"The median probability is {with_} with cancer and {without} without; "
        f"{count(missed, 'breast')} with cancer stay below the threshold and "
        f"{count(false, 'breast')} without reach it (in sample)."
    )


def calibration(scores: Mapping[str, CalibrationScores], prevalence: float) -> str:
    """ECE and Brier score of each kind of probability."""
    if not scores:
        return "A blend of ranks gives no probabilities, and none were calibrated."
    parts = [
        f"ECE {decimal(own['ece'].value)} (perfect probabilities would have "
        f"{decimal(own['ece'].chance)} by chance) and Brier score "
        f"{decimal_estimate(own['brier'])} {name}"
        for name, own in scores.items()
    ]
    return (
        f"{'; '.join(parts)}. The prevalence as probability of every breast would score "
        f"{decimal(prevalence * (1 - prevalence))} (Brier; lower is better)."
    )


def groups(subgroups: Sequence[Subgroup], compared: Sequence[SubgroupDifference]) -> str:
    """How many subgroups differ from the rest of their factor, and how many would by chance."""
    small = sum(not group.scored for group in subgroups)
    verb = "is" if small == 1 else "are"
    tail = f" {count(small, 'group')} {verb} too small to be scored." if small else ""
    if not compared:
        return f"No group is large enough to be compared with others.{tail}"
    n = sum(difference.is_significant for difference in compared)
    return (
        f"Of {count(len(compared), 'difference')} between a group and the rest of its factor, {n} "
        f"{'has' if n == 1 else 'have'} a 95 % interval that excludes 0; by chance alone, about "
        f"{0.05 * len(compared):.1f} would.{tail}"
    )


def differences(compared: Sequence[SubgroupDifference]) -> list[str]:
    """A line for each significant difference, then for those that are always reported."""
    significant = [_difference(one) for one in compared if one.is_significant]
    always = [_difference(one) for one in compared if one.always and not one.is_significant]
    return [f"{line}." for line in significant] + [f"Within chance: {line}." for line in always]


def _difference(one: SubgroupDifference) -> str:
    """`sensitivity 70.0 % for invasive cancers and 93.3 % for not invasive cancers, a …`."""
    is_auroc = one.score == "AUROC"
    inside, outside = map(decimal if is_auroc else percent, (one.inside, one.outside))
    digits, unit, scale = (3, "", 1) if is_auroc else (1, " percentage points", 100)
    return (
        f"{one.score} {inside} for {one.title} and {outside} for {one.rest}, a "
        f"difference of {signed(one.difference, digits, unit, scale)}"
    )


def forest(resamples: int) -> str:
    """The intervals that the forest plot shows."""
    return (
        "Beside each group its cancers and breasts; dashed: all breasts. AUROC with DeLong's "
        "interval by patient; sensitivity and specificity of the cross-fitted decisions as they "
        "are, so that their intervals leave the uncertainty of the thresholds out, except for all "
        f"breasts, which have those of the summary. Groups are compared over {resamples} resamples "
        f"of the patients. A score needs {MIN_BREASTS} breasts of each class that it is about."
    )


def folds(scores: Sequence[FoldScore]) -> str:
    """The range of the AUROC over folds."""
    values = [fold.auroc.value for fold in scores if fold.auroc is not None]
    if len(scores) == 1:
        return "There is one fold: how much training on other patients would change is not known."
    if len(values) < 2:
        return "Too few folds have breasts of both classes to compare them."
    return (
        f"AUROC by fold ranges from {decimal(min(values))} to {decimal(max(values))}: other "
        "patients, and another training."
    )


def members(scores: Sequence[MemberScore], blend: Interval | None) -> str:
    """The best member beside the blend, and the members that add to it."""
    if len(scores) == 1:
        return "One member: there is nothing to leave out."
    best = max(scores, key=lambda m: m.auroc.value if m.auroc else 0.0)
    helping = [m.name for m in scores if m.gain is not None and m.gain.low > 0]
    gains = (
        f"the 95 % interval of the gain from {enumeration(helping)} lies above 0"
        if helping
        else "no gain has a 95 % interval above 0"
    )
    return (
        f"The best member alone is {best.name} with an AUROC of {decimal_estimate(best.auroc)}, "
        f"the blend has {decimal_estimate(blend)}; of {len(scores)} members left out in turn, "
        f"{gains} (in sample, and not corrected for their number)."
    )


def correlation(names: Sequence[str], matrix: NDArray[np.float64]) -> str:
    """The most and the least similar pair of members."""
    pairs = [(float(matrix[i, j]), names[i], names[j]) for i in range(len(names)) for j in range(i)]
    most, least = max(pairs), min(pairs)
    text = f"of {most[2]} and {most[1]} is {decimal(most[0], 2)}"
    if len(pairs) > 1:
        text = (
            f"is highest between {most[2]} and {most[1]} ({decimal(most[0], 2)}) and lowest "
            f"between {least[2]} and {least[1]} ({decimal(least[0], 2)})"
        )
    return f"Spearman's correlation {text}; the less alike, the more a blend can gain."


def learning(history: Mapping[str, pd.DataFrame], name: str) -> str:
    """The best epochs of each fold, by loss and by AUROC."""
    parts = []
    for fold, table in history.items():
        best = []
        for column, text, arg_best in (
            ("valid_loss", "the held-out loss is lowest", np.nanargmin),
            ("auroc", "the AUROC is highest", np.nanargmax),
        ):
            if column in table and table[column].notna().any():
                epoch = int(table["epoch"].iloc[int(arg_best(table[column]))]) + 1
                best.append(f"{text} in epoch {epoch}")
        parts.append(f"{fold}, {len(table)} epochs: {', '.join(best) or 'nothing was held out'}")
    return f"Learning curves of {name}. {'; '.join(parts)}."


def baseline(comparisons: Sequence[Comparison]) -> str:
    """The other models that the AUROC differs from."""
    if not comparisons:
        return "No baseline was compared (baseline=[])."
    parts = []
    for other in comparisons:
        if other.gain is not None:
            verdict = "not significantly different from"
            if other.gain.low > 0 or other.gain.high < 0:
                verdict = "better than" if other.gain.low > 0 else "worse than"
            parts.append(f"{verdict} {other.name}, {signed(other.gain)}")
    return f"In AUROC it is {'; '.join(parts)}." if parts else "The difference is undefined."


def preparation(summaries: Sequence[PreparationSummary]) -> str:
    """Files that failed, and those that needed a fallback."""
    if not summaries:
        return "No manifest was found beside the crops: failures of the preparation are not known."
    parts = []
    for one in summaries:
        failed = one.files - one.prepared
        lost = "every file became a crop" if not failed else f"{count(failed, 'file')} did not"
        fallbacks = (
            (one.whole_frames, f"no breast was found in {count(one.whole_frames, 'image')}"),
            (one.without_window, f"{one.without_window:,} had no usable window"),
            (one.second_choice, f"{one.second_choice:,} needed another decoder than the first"),
        )
        tail = "".join(f"; {text}" for n, text in fallbacks if n)
        parts.append(f"{one.crop}: {count(one.files, 'file')}, {lost}{tail}")
    return f"{'. '.join(parts)}."


def ppv_at_challenge(scores: Mapping[str, Interval], prevalence: float) -> str:
    """PPV at the challenge's prevalence; empty where the data have that prevalence."""
    if abs(prevalence - CHALLENGE_PREVALENCE) < CHALLENGE_PREVALENCE / 20:
        return ""
    sensitivity, specificity = scores["sensitivity"].value, scores["specificity"].value
    ppv = ppv_at(sensitivity, specificity, CHALLENGE_PREVALENCE)
    return (
        f"By Bayes' theorem, the same sensitivity and specificity at the challenge's prevalence of "
        f"{percent(CHALLENGE_PREVALENCE)} would give a PPV of {percent(ppv, 0)}; where fewer "
        "breasts have cancer, as in screening, it is lower."
    )
