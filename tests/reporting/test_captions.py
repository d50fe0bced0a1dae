"""Captions against the numbers that they are made from."""

import numpy as np
import pytest

from rsna_bcd.reporting import captions
from rsna_bcd.reporting.evaluation import CHALLENGE_PREVALENCE, MemberScore
from rsna_bcd.reporting.formatting import decimal, p_value, percent_estimate, signed
from rsna_bcd.reporting.subgroups import Cohort, ScoredBreasts, SubgroupDifference
from rsna_bcd.scoring.intervals import Difference, Interval

CERTAIN, UNCERTAIN = Interval(0.9, 0.8, 0.95), Interval(1.0, np.nan, np.nan)
EMPTY = np.empty(0)
COHORT = Cohort(100, 200, 40, 0, 400, {}, (), {}, (), EMPTY, EMPTY)


def test_formatting() -> None:
    shown = " ".join(decimal(x) for x in (0.9657, -0.25, -0.0001, None, np.nan))
    assert shown == "0.966 \u22120.250 0.000 – –"
    assert percent_estimate(Interval(0.778, 0.687, 0.872)) == "77.8\u202f% (68.7 to 87.2)"
    assert percent_estimate(UNCERTAIN) == "100.0\u202f% (no interval)"
    assert percent_estimate(None) == "–"
    assert signed(Interval(0.021, -0.004, 0.046)) == "+0.021 (\u22120.004 to 0.046)"
    assert signed(Interval(-0.235, -0.38, -0.09), 1, " points", 100).startswith("\u221223.5 points")
    p_values = [p_value(Difference(0, 0, 0, p)) for p in (0.0004, 0.012, np.nan)]
    assert p_values == ["< 0.001", "0.012", "–"]


def test_ppv_at_challenge_is_that_of_bayes_theorem() -> None:
    scores = {"sensitivity": Interval(0.8, 0.7, 0.9), "specificity": Interval(0.9, 0.8, 0.95)}
    ppv = 0.8 * 206 / (0.8 * 206 + 0.1 * 9794)  # of 10,000 breasts, 206 have cancer
    caption = captions.ppv_at_challenge(scores, 0.3)
    assert f"a PPV of {100 * ppv:.0f}\u202f%" in caption
    assert captions.ppv_at_challenge(scores, 0.01) == caption
    assert captions.ppv_at_challenge(scores, CHALLENGE_PREVALENCE) == ""


def test_summary_roc_and_sample_size_with_and_without_an_interval() -> None:
    unknown = dict.fromkeys(("sensitivity", "specificity", "auroc"), UNCERTAIN)
    assert captions.summary("Run a", unknown).count("(no interval)") == 2
    assert captions.roc(unknown, UNCERTAIN) == "AUROC 1.000, no interval over resampled patients."
    assert "interval 0.800 to 0.950 over" in captions.roc({"auroc": CERTAIN}, CERTAIN)
    assert captions.sample_size(COHORT, unknown).endswith("is not known.")
    caption = captions.sample_size(COHORT, {"sensitivity": Interval(0.8, 0.6, 0.886)})
    assert "anywhere from 60 to 89 %." in caption


def test_distributions_counts_errors_by_the_decisions() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0])
    p = np.array([0.9, 0.6, 0.2, 0.1, 0.3, 0.7])
    decisions = np.array([1, 0, 0, 0, 0, 1])
    breasts = ScoredBreasts(labels, p, decisions, np.arange(6).astype(str), np.zeros(6, dtype=int))
    caption = captions.distributions(breasts)
    assert "2 breasts with cancer stay below" in caption
    assert "1 breast without reach it" in caption


def make_difference(low: float, high: float, *, always: bool) -> SubgroupDifference:
    difference = Interval((low + high) / 2, low, high)
    titles = "invasive cancers", "not invasive cancers"
    return SubgroupDifference(*titles, "sensitivity", 0.7, 0.933, difference, always)


def test_groups_and_differences_name_the_significant_ones() -> None:
    compared = [make_difference(-0.38, -0.09, always=True)]
    compared += 19 * [make_difference(-0.1, 0.1, always=False)]
    caption = captions.groups([], compared)
    assert caption.startswith("Of 20 differences")
    assert "1 has a 95 % interval that excludes 0; by chance alone, about 1.0 would." in caption
    (line,) = captions.differences(compared)
    assert "70.0\u202f% for invasive cancers and 93.3\u202f% for not invasive cancers" in line
    assert "\u221223.5 percentage points (\u221238.0 to \u22129.0)" in line
    (line,) = captions.differences([make_difference(-0.1, 0.2, always=True)])
    assert line.startswith("Within chance: sensitivity")
    assert "No group is large enough" in captions.groups([], [])


@pytest.mark.parametrize(
    ("low", "part"), [(0.01, "gain from a lies above 0"), (-0.01, "no gain has")]
)
def test_members_names_only_significant_gains(low: float, part: str) -> None:
    gains = Difference(0.02, low, 0.03, 0.01), Difference(0.0, -0.01, 0.01, 1.0)
    scores = [MemberScore(name, CERTAIN, 0.5, g) for name, g in zip("ab", gains, strict=True)]
    caption = captions.members(scores, CERTAIN)
    assert part in caption
    assert "not corrected" in caption
