"""Sentences against the numbers they are made of."""

import numpy as np

from rsna_bcd.reporting import captions
from rsna_bcd.reporting.evaluation import CHALLENGE_PREVALENCE, MemberScore
from rsna_bcd.reporting.subgroups import Cohort, ScoredBreasts, SubgroupDifference
from rsna_bcd.scoring.intervals import Difference, Interval


def cohort(breasts: int = 200, cancers: int = 40) -> Cohort:
    nothing = np.empty(0)
    return Cohort(100, breasts, cancers, 0, 2 * breasts, {}, (), {}, (), nothing, nothing)


def test_how_sure_is_said_by_the_ends_of_the_interval() -> None:
    said = captions.certainty(cohort(), {"sensitivity": Interval(0.8, 0.6, 0.886)})
    assert "could have given a sensitivity anywhere from 60 to 89 %." in said
    unsure = captions.certainty(cohort(), {"sensitivity": Interval(1.0, np.nan, np.nan)})
    assert unsure.endswith("is not known.")
    assert "nan" not in unsure


def test_what_a_call_is_worth_at_the_challenges_prevalence() -> None:
    scores = {"sensitivity": Interval(0.8, 0.7, 0.9), "specificity": Interval(0.9, 0.8, 0.95)}
    # By hand, of 10,000 breasts: 206 have cancer.
    ppv = 0.8 * 206 / (0.8 * 206 + 0.1 * 9794)
    said = captions.ppv_at_challenge(scores, 0.3)
    assert f"a PPV of {100 * ppv:.0f}\u202f%" in said
    assert "2.1\u202f%" in said
    assert captions.ppv_at_challenge(scores, 0.01) == said
    assert captions.ppv_at_challenge(scores, CHALLENGE_PREVALENCE) == ""


def test_a_score_without_an_interval_is_not_certain() -> None:
    sure, unsure = Interval(0.9, 0.8, 0.95), Interval(1.0, np.nan, np.nan)
    said = captions.summary("Run a", dict.fromkeys(("sensitivity", "specificity", "auroc"), unsure))
    assert said.count("(no interval)") == 2
    assert captions.roc({"auroc": unsure}, unsure) == (
        "AUROC 1.000, no interval over resampled patients."
    )
    assert "95 % interval 0.800 to 0.950 over" in captions.roc({"auroc": sure}, sure)


def test_what_is_wrong_in_sample_is_counted_by_the_decisions() -> None:
    labels = np.array([1, 1, 1, 0, 0, 0])
    p = np.array([0.9, 0.6, 0.2, 0.1, 0.3, 0.7])
    decisions = np.array([1, 0, 0, 0, 0, 1])  # at 0.65 here and at more or less elsewhere
    judged = ScoredBreasts(labels, p, decisions, np.arange(6).astype(str), np.zeros(6, dtype=int))
    said = captions.distributions(judged)
    assert "2 breasts with cancer stay below" in said
    assert "1 breast without reach it" in said


def contrast(low: float, high: float, *, always: bool) -> SubgroupDifference:
    by = Interval((low + high) / 2, low, high)
    return SubgroupDifference(
        "invasive cancers", "not invasive cancers", "sensitivity", 0.7, 0.933, by, always
    )


def test_groups_that_differ_are_named_with_how_many_were_compared() -> None:
    compared = [contrast(-0.38, -0.09, always=True)] + 19 * [contrast(-0.1, 0.1, always=False)]
    said = captions.groups([], compared)
    assert said.startswith("Of 20 differences")
    assert "1 has a 95 % interval that excludes 0; by chance alone, about 1.0 would." in said
    (line,) = captions.differences(compared)
    assert "70.0\u202f% for invasive cancers and 93.3\u202f% for not invasive cancers" in line
    assert "−23.5 percentage points (−38.0 to −9.0)" in line
    (line,) = captions.differences([contrast(-0.1, 0.2, always=True)])
    assert line.startswith("Within chance: sensitivity")
    assert "No group is large enough" in captions.groups([], [])


def test_a_member_is_not_said_to_help_by_more_than_chance() -> None:
    area, none = Interval(0.9, 0.8, 0.95), Difference(0.0, -0.01, 0.01, p_value=1.0)
    helps = Difference(0.02, 0.01, 0.03, p_value=0.01)
    said = captions.members(
        [MemberScore("a", area, 0.5, helps), MemberScore("b", area, 0.5, none)], area
    )
    assert "what a adds lies above 0" in said
    assert "not corrected" in said
