"""Differences of groups against scores of their rows, taken out by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from rsna_bcd.reporting.cohort import NOT_RECORDED
from rsna_bcd.reporting.contrasts import Contrast, contrasts
from rsna_bcd.reporting.judged import JudgedBreasts

N = 240
LABELS = np.tile([1, 0, 0], N // 3)
PATIENTS = np.repeat(np.arange(N // 2), 2).astype(str)


def judged(probabilities: np.ndarray) -> JudgedBreasts:
    decisions = (probabilities > 0.5).astype(int)
    return JudgedBreasts(LABELS, probabilities, decisions, PATIENTS, np.zeros(N, dtype=int))


@pytest.fixture
def some() -> JudgedBreasts:
    return judged(np.random.default_rng(3).uniform(0, 0.7, N) + 0.3 * LABELS)


def facts(**columns: object) -> pd.DataFrame:
    words = dict.fromkeys(("site", "machine", "density", "age", "implant", "views"), NOT_RECORDED)
    numbers = dict.fromkeys(("years", "invasive", "difficult"), np.nan)
    return pd.DataFrame({**words, **numbers, **columns}, index=range(N))


def by_score(found: list[Contrast], title: str) -> dict[str, Contrast]:
    return {contrast.score: contrast for contrast in found if contrast.title == title}


def test_a_difference_is_that_of_the_rows_and_of_their_resamples(some: JudgedBreasts) -> None:
    machine = np.array(["a", "b", "c"])[np.arange(N) // 6 % 3]
    found = contrasts(some, facts(machine=machine), resamples=40, seed=5)
    assert len(found) == 9
    own = by_score(found, "machine a")
    inside = machine == "a"
    y, called, p = some.labels, some.decisions, some.probabilities
    scored = {
        "sensitivity": lambda rows, w: np.average(
            called[rows & (y == 1)], weights=w[rows & (y == 1)]
        ),
        "specificity": lambda rows, w: np.average(
            1 - called[rows & (y == 0)], weights=w[rows & (y == 0)]
        ),
        "AUROC": lambda rows, w: roc_auc_score(y[rows], p[rows], sample_weight=w[rows]),
    }
    ids, number = np.unique(PATIENTS, return_inverse=True)
    generator = np.random.default_rng(5)
    drawn = generator.integers(0, len(ids), (40, len(ids)))
    weights = [np.bincount(row, minlength=len(ids))[number].astype(float) for row in drawn]
    for name, score in scored.items():
        contrast, once = own[name], np.ones(N)
        assert contrast.inside == pytest.approx(score(inside, once))
        assert contrast.outside == pytest.approx(score(~inside, once))
        values = [score(inside, w) - score(~inside, w) for w in weights]
        ends = [contrast.difference.low, contrast.difference.high]
        assert ends == pytest.approx(np.quantile(values, [0.025, 0.975]))


def test_two_groups_are_compared_once_and_what_differs_stands_out() -> None:
    cancers = np.flatnonzero(LABELS == 1)
    invasive, p = np.full(N, np.nan), np.where(np.arange(N) % 2, 0.3, 0.4)
    invasive[cancers[:40]], invasive[cancers[40:]] = 1, 0
    p[cancers] = 0.9
    p[cancers[:12]] = 0.2  # missed, all of them invasive
    found = contrasts(judged(p), facts(invasive=invasive), resamples=100)
    own = by_score(found, "invasive cancers")
    assert sorted(own) == ["AUROC", "sensitivity"]
    assert len(found) == 2
    assert own["sensitivity"].rest == "not invasive cancers"
    assert own["sensitivity"].always
    assert own["sensitivity"].inside == pytest.approx(28 / 40)
    assert own["sensitivity"].difference.value == pytest.approx(-0.3)
    assert own["sensitivity"].is_apart
    healthy = LABELS == 0
    rows = (invasive == 1) | healthy
    assert own["AUROC"].inside == pytest.approx(roc_auc_score(LABELS[rows], p[rows]))
    assert own["AUROC"].outside == 1


def test_nothing_is_compared_where_it_is_too_little_or_does_not_vary(some: JudgedBreasts) -> None:
    site = np.where(np.arange(N) < 28, "1", "2")  # 10 cancers, 18 others
    assert len(contrasts(some, facts(site=site), resamples=5)) == 3
    site = np.where(np.arange(N) < 27, "1", "2")  # 9 cancers
    assert [c.score for c in contrasts(some, facts(site=site), resamples=5)] == ["specificity"]
    assert contrasts(some, facts(), resamples=5) == []
    perfect = judged(0.1 + 0.8 * LABELS)
    site = np.where(np.arange(N) < 120, "1", "2")
    for contrast in contrasts(perfect, facts(site=site), resamples=20):
        assert contrast.difference.value == 0
        assert np.isnan(contrast.difference.low)
        assert not contrast.is_apart
