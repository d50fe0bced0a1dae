"""What a figure says, in one sentence from its own numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rsna_bcd.reporting.cohort import Cohort
from rsna_bcd.reporting.judged import JudgedBreasts
from rsna_bcd.reporting.performance import (
    SCREENING,
    Comparison,
    FoldScore,
    MemberScore,
    at_prevalence,
)
from rsna_bcd.reporting.preparation_summary import PreparationSummary
from rsna_bcd.reporting.subgroups import Subgroup
from rsna_bcd.reporting.words import (
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
from rsna_bcd.scoring.bands import Band
from rsna_bcd.scoring.bootstrap import Interval
from rsna_bcd.scoring.calibration_intervals import CalibrationScores
from rsna_bcd.scoring.plateau import Plateau

ENRICHED = 0.05  # a prevalence by breast that no screening has


def summary(name: str, scores: Mapping[str, Interval]) -> str:
    """The whole report in one sentence."""
    found, false = scores["sensitivity"], 1 - scores["specificity"].value
    return (
        f"{name} finds {percent(found.value, 0)} of the breasts with cancer (95 % interval "
        f"{share_range(found, 0)}) and calls {percent(false)} of those without it; of a breast "
        f"with cancer and one without, it gives the one with cancer the higher score "
        f"{percent(scores['auroc'].value)} of the time ({share_range(scores['auroc'])})."
    )


def certainty(cohort: Cohort, scores: Mapping[str, Interval]) -> str:
    """How sure one can be of it."""
    found = scores["sensitivity"]
    width = f"{50 * (found.high - found.low):.0f}"
    return (
        f"It rests on {count(cohort.cancers, 'breast')} with cancer among "
        f"{count(cohort.breasts, 'breast')} of {count(cohort.patients, 'patient')}, each judged by "
        f"networks that never saw the patient, so sensitivity is known to within {width} "
        "percentage points either way."
    )


def data(cohort: Cohort) -> str:
    """Who is in it."""
    missing = [c for c, share in cohort.missing.items() if share >= 0.2]
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
    formula = f"; by DeLong's formula {decimal_range(delong)}" if delong is not None else ""
    return (
        f"AUROC {decimal(scores['auroc'].value)}, 95 % interval "
        f"{decimal_range(scores['auroc'])} over resampled patients{formula}."
    )


def precision(scores: Mapping[str, Interval], prevalence: float) -> str:
    """What a call is worth."""
    return (
        f"Average precision {decimals(scores['average_precision'])}, where chance has "
        f"{decimal(prevalence)}; at the threshold {shares(scores['ppv'], 0)} of the breasts that "
        "are called have cancer."
    )


def screening(band: Band, prevalence: float) -> str:
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


def distributions(judged: JudgedBreasts, chosen: float) -> str:
    """How far apart the classes are."""
    with_, without = (judged.probabilities[judged.labels == k] for k in (1, 0))
    missed, called = int((with_ < chosen).sum()), int((without >= chosen).sum())
    return (
        f"The median probability is {decimal(float(np.median(with_)), 2)} with cancer and "
        f"{decimal(float(np.median(without)), 2)} without; {count(missed, 'breast')} with cancer "
        f"fall below the threshold and {count(called, 'breast')} without reach it (in sample)."
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


def groups(found: Sequence[Subgroup]) -> str:
    """Which group stands out, and whether by more than chance."""
    total, rest = found[0], [g for g in found[1:] if g.auroc is not None]
    small = sum(not group.scored for group in found)
    tail = f" {count(small, 'group')} too small to be scored." if small else ""
    if total.auroc is None or not rest:
        return f"No group has enough breasts to be scored by itself.{tail}"
    reach = total.auroc
    apart = [g for g in rest if g.auroc and (g.auroc.high < reach.low or g.auroc.low > reach.high)]
    lowest = min(rest, key=lambda g: g.auroc.value if g.auroc else 1.0)
    assert lowest.auroc is not None
    said = (
        f"The lowest AUROC is that of {lowest.title}, {decimals(lowest.auroc)} with "
        f"{count(lowest.cancers, 'cancer')}. "
    )
    if not apart:
        return f"{said}No group's interval lies wholly outside that of all breasts.{tail}"
    names = listed([group.title for group in apart])
    return (
        f"{said}Wholly outside the interval of all breasts: {names} (among "
        f"{count(len(rest), 'group')}, one or two may do so by chance).{tail}"
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
    helping = [m.name for m in found if m.without is not None and m.without.low > 0]
    helped = (
        f"leaving out {listed(helping)} lowers the AUROC by more than chance"
        if helping
        else "no member's leaving lowers the AUROC by more than chance"
    )
    return (
        f"The best member alone is {best.name} with an AUROC of {decimals(best.auroc)}, the blend "
        f"has {decimals(blend)}; {helped}."
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
        parts.append(
            f"{one.crop}: {count(one.files, 'file')}, {lost}; no breast was found in "
            f"{count(one.whole_frames, 'image')}, {one.without_window:,} had no usable window, "
            f"{one.second_choice:,} needed another decoder than the first"
        )
    return f"{'. '.join(parts)}."


def worth(scores: Mapping[str, Interval], prevalence: float) -> str:
    """PPV at screening's prevalence, where that of the data is another; empty where it is not."""
    if prevalence <= ENRICHED:
        return ""
    ppv = at_prevalence(scores["sensitivity"].value, scores["specificity"].value, SCREENING)
    return (
        f"By arithmetic, the same sensitivity and specificity at a prevalence of "
        f"{percent(SCREENING)} would give a PPV of {percent(ppv, 0)}."
    )
