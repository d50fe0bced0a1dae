"""Captions: what each figure says, in a sentence from its own numbers."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rsna_bcd.reporting.cohort import Cohort
from rsna_bcd.reporting.contrasts import Contrast
from rsna_bcd.reporting.formatting import (
    count,
    decimal,
    decimal_range,
    decimals,
    listed,
    percent,
    share_range,
    shares,
    signed,
)
from rsna_bcd.reporting.judged import JudgedBreasts
from rsna_bcd.reporting.performance import (
    CHALLENGE,
    Comparison,
    FoldScore,
    MemberScore,
    at_prevalence,
)
from rsna_bcd.reporting.preparation_summary import PreparationSummary
from rsna_bcd.reporting.subgroups import Subgroup
from rsna_bcd.scoring.calibration import CalibrationScores
from rsna_bcd.scoring.intervals import ConfidenceBand, Interval
from rsna_bcd.scoring.thresholds import Plateau

ENRICHED = 0.05  # a prevalence by breast that no screening has


def summary(name: str, scores: Mapping[str, Interval]) -> str:
    """The whole report in one sentence."""
    found, false = scores["sensitivity"], 1 - scores["specificity"].value
    return (
        f"{name} finds {percent(found.value, 0)} of the breasts with cancer ("
        f"{_interval(found, share_range(found, 0))}) and flags {percent(false)} of those without "
        f"it; of a breast with cancer and one without, it gives the former the higher score "
        f"{percent(scores['auroc'].value)} of the time ({share_range(scores['auroc'])})."
    )


def certainty(cohort: Cohort, scores: Mapping[str, Interval]) -> str:
    """How sure one can be of it."""
    found = scores["sensitivity"]
    sure = (
        "another sample of such patients could have given a sensitivity anywhere from "
        f"{share_range(found, 0)} %"
        if math.isfinite(found.low)
        else "how much sensitivity would differ with other patients is not known"
    )
    return (
        f"It rests on {count(cohort.cancers, 'breast')} with cancer among "
        f"{count(cohort.breasts, 'breast')} of {count(cohort.patients, 'patient')}, each judged by "
        f"networks that never saw the patient; {sure}."
    )


def data(cohort: Cohort) -> str:
    """Who is in it."""
    missing = [*(c for c, share in cohort.missing.items() if share >= 0.2), *cohort.absent]
    tail = f" Largely missing: {listed(missing)}." if missing else ""
    both = f" ({count(cohort.bilateral, 'patient')} in both breasts)" if cohort.bilateral else ""
    return (
        f"{percent(cohort.prevalence)} of the breasts have cancer{both}; a breast has "
        f"{cohort.images / cohort.breasts:.1f} images on average.{tail}"
    )


def ages(cohort: Cohort) -> str:
    """Whether age alone tells something."""
    if not len(cohort.ages_with) or not len(cohort.ages_without):
        return "Ages of one class only are known."
    return (
        f"The median age is {np.median(cohort.ages_with):.0f} years with cancer and "
        f"{np.median(cohort.ages_without):.0f} without."
    )


def roc(scores: Mapping[str, Interval], delong: Interval | None) -> str:
    """The area."""
    known = delong is not None and math.isfinite(delong.low)
    formula = f"; by DeLong's formula {decimal_range(delong)}" if delong and known else ""
    found = scores["auroc"]
    return (
        f"AUROC {decimal(found.value)}, {_interval(found, decimal_range(found))} over resampled "
        f"patients{formula}."
    )


def _interval(of: Interval, ends: str) -> str:
    """Its ends with what they are, or that there are none."""
    return f"95 % interval {ends}" if math.isfinite(of.low) else ends


def precision(scores: Mapping[str, Interval], prevalence: float) -> str:
    """What a call is worth."""
    return (
        f"Average precision {decimals(scores['average_precision'])}, where chance has "
        f"{decimal(prevalence)}; at the threshold {shares(scores['ppv'], 0)} of the breasts that "
        "are flagged have cancer."
    )


def screening(band: ConfidenceBand, prevalence: float) -> str:
    """Where a screening programme would work."""
    at = 0.02
    value, low, high = (
        float(np.interp(at, band.x, curve)) for curve in (band.value, band.low, band.high)
    )
    caveat = (
        f" These are other breasts than the paper's, and {percent(prevalence, 0)} of them have "
        f"cancer: the points show the scale, not a ranking."
        if prevalence > ENRICHED
        else " These are other breasts than the paper's: the points show the scale."
    )
    return (
        f"At a specificity of 98 % it finds {percent(value, 0)} of the cancers "
        f"({100 * low:.0f} to {100 * high:.0f})." + caveat
    )


def threshold(plateau: Plateau, chosen: float, fitted: Sequence[float], optimism: float) -> str:
    """Where the threshold is, and how much the score in sample flatters."""
    inside = sum(plateau.low <= value <= plateau.high for value in fitted)
    direction = "higher" if optimism >= 0 else "lower"
    return (
        f"Any threshold from {decimal(plateau.low)} to {decimal(plateau.high)} is as good as the "
        f"best within half a standard error ({decimal(plateau.standard_error)}); "
        f"{decimal(chosen)} is taken. {inside} of the {len(fitted)} thresholds chosen on other "
        f"patients lie there too, and the score in sample is {decimal(abs(optimism))} {direction} "
        "than the honest one."
    )


def distributions(judged: JudgedBreasts) -> str:
    """How far apart the classes are, and what the decisions in sample get wrong."""
    with_, without = (judged.probabilities[judged.labels == k] for k in (1, 0))
    missed, called = (
        int(((judged.labels == label) & (judged.decisions != label)).sum()) for label in (1, 0)
    )
    return (
        f"The median probability is {decimal(float(np.median(with_)), 2)} with cancer and "
        f"{decimal(float(np.median(without)), 2)} without; {count(missed, 'breast')} with cancer "
        f"stay below the threshold and {count(called, 'breast')} without reach it (in sample)."
    )


def calibration(of: Mapping[str, CalibrationScores], prevalence: float) -> str:
    """Whether probabilities can be taken at their word."""
    if not of:
        return "A blend of ranks gives no probabilities, and none were calibrated."
    parts = [
        f"ECE {decimal(scores['ece'].value)} (perfect probabilities would have "
        f"{decimal(scores['ece'].chance)} by chance) and Brier score {decimals(scores['brier'])} "
        f"{name}"
        for name, scores in of.items()
    ]
    return (
        f"{'; '.join(parts)}. Saying the prevalence of every breast would score "
        f"{decimal(prevalence * (1 - prevalence))} (Brier; lower is better)."
    )


def groups(found: Sequence[Subgroup], compared: Sequence[Contrast]) -> str:
    """Which groups differ from the rest of their factor, of how many that were compared."""
    small = sum(not group.scored for group in found)
    tail = f" {count(small, 'group')} too small to be scored." if small else ""
    if not compared:
        return f"No group is large enough to be compared with others.{tail}"
    apart = [contrast for contrast in compared if contrast.is_apart]
    number = f"Of {count(len(compared), 'difference')} between a group and the rest of its factor"
    return (
        f"{number}, {len(apart)} {'has' if len(apart) == 1 else 'have'} a 95 % interval that "
        f"excludes 0; by chance alone, about {0.05 * len(compared):.1f} would.{tail}"
    )


def differences(compared: Sequence[Contrast]) -> list[str]:
    """A line for each group that differs, and for those that are always asked about."""
    told = [contrast for contrast in compared if contrast.is_apart]
    asked = [contrast for contrast in compared if contrast.always and not contrast.is_apart]
    return [f"{_difference(contrast)}." for contrast in told] + [
        f"Within chance: {_difference(contrast)}." for contrast in asked
    ]


def _difference(contrast: Contrast) -> str:
    """`sensitivity 70.0 % for invasive cancers and 93.3 % for not invasive cancers, a …`."""
    inside, outside = (
        decimal(value) if contrast.score == "AUROC" else percent(value)
        for value in (contrast.inside, contrast.outside)
    )
    scale, digits = (1, 3) if contrast.score == "AUROC" else (100, 1)
    by = contrast.difference
    scaled = Interval(scale * by.value, scale * by.low, scale * by.high)
    unit = "" if contrast.score == "AUROC" else " percentage points"
    return (
        f"{contrast.score} {inside} for {contrast.title} and {outside} for {contrast.rest}, a "
        f"difference of {signed(scaled, digits, unit)}"
    )


def folds(found: Sequence[FoldScore]) -> str:
    """How much folds differ."""
    values = [fold.auroc.value for fold in found if fold.auroc is not None]
    if len(found) == 1:
        return "There is one fold: how much training on other patients would change is not known."
    if len(values) < 2:
        return "Too few folds have breasts of both classes to compare them."
    return (
        f"AUROC by fold ranges from {decimal(min(values))} to {decimal(max(values))}: other "
        "patients, and another training."
    )


def members(found: Sequence[MemberScore], blend: Interval | None) -> str:
    """What each adds."""
    if len(found) == 1:
        return "One member: there is nothing to leave out."
    best = max(found, key=lambda m: m.auroc.value if m.auroc else 0.0)
    helping = [m.name for m in found if m.adds is not None and m.adds.low > 0]
    helped = (
        f"of {len(found)} members left out in turn, the 95 % interval of what {listed(helping)} "
        f"{'adds' if len(helping) == 1 else 'add'} lies above 0"
        if helping
        else f"of {len(found)} members left out in turn, none adds so much that the 95 % interval "
        "lies above 0"
    )
    return (
        f"The best member alone is {best.name} with an AUROC of {decimals(best.auroc)}, the blend "
        f"has {decimals(blend)}; {helped} (in sample, and not corrected for their number)."
    )


def correlation(names: Sequence[str], matrix: NDArray[np.float64]) -> str:
    """How alike the members are."""
    if len(names) < 2:
        return ""
    pairs = [(float(matrix[i, j]), names[i], names[j]) for i in range(len(names)) for j in range(i)]
    most, least = max(pairs), min(pairs)
    if len(pairs) == 1:
        return (
            f"Spearman's correlation of {most[2]} and {most[1]} is {decimal(most[0], 2)}; the less "
            "alike, the more a blend can gain."
        )
    return (
        f"Spearman's correlation is highest between {most[2]} and {most[1]} "
        f"({decimal(most[0], 2)}) and lowest between {least[2]} and {least[1]} "
        f"({decimal(least[0], 2)}); the less alike, the more a blend can gain."
    )


def baseline(found: Sequence[Comparison]) -> str:
    """Whether it beats something plain."""
    if not found:
        return "Nothing to compare with was asked for."
    parts = []
    for other in found:
        gain = other.gain
        if gain is None:
            continue
        verdict = (
            "ahead of" if gain.low > 0 else "behind" if gain.high < 0 else "not to be told from"
        )
        parts.append(f"{verdict} {other.name}, {signed(gain)}")
    return f"In AUROC it is {'; '.join(parts)}." if parts else "The difference is undefined."


def preparation(found: Sequence[PreparationSummary]) -> str:
    """What was lost on the way."""
    if not found:
        return "No manifest was found beside the crops: what the preparation met is not known."
    parts = []
    for one in found:
        failed = one.files - one.prepared
        lost = "every file became a crop" if not failed else f"{count(failed, 'file')} did not"
        met = (
            (one.whole_frames, f"no breast was found in {count(one.whole_frames, 'image')}"),
            (one.without_window, f"{one.without_window:,} had no usable window"),
            (one.second_choice, f"{one.second_choice:,} needed another decoder than the first"),
        )
        told = "".join(f"; {words}" for n, words in met if n)
        parts.append(f"{one.crop}: {count(one.files, 'file')}, {lost}{told}")
    return f"{'. '.join(parts)}."


def worth(scores: Mapping[str, Interval], prevalence: float) -> str:
    """PPV at the challenge's prevalence, where that of the data is another; else empty."""
    if abs(prevalence - CHALLENGE) < CHALLENGE / 20:  # the PPV in the table is that one
        return ""
    ppv = at_prevalence(scores["sensitivity"].value, scores["specificity"].value, CHALLENGE)
    return (
        f"By arithmetic, the same sensitivity and specificity at the challenge's prevalence of "
        f"{percent(CHALLENGE)} would give a PPV of {percent(ppv, 0)}; where fewer breasts have "
        "cancer, as in screening, it is lower."
    )
