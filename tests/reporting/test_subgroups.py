"""Groups against the scores of their rows, taken out by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from rsna_bcd.reporting.cohort import NOT_RECORDED
from rsna_bcd.reporting.judged import JudgedBreasts
from rsna_bcd.reporting.subgroups import Subgroup, subgroups
from rsna_bcd.scoring.intervals import wilson

N = 240


@pytest.fixture
def judged() -> JudgedBreasts:
    rng = np.random.default_rng(3)
    labels = np.tile([1, 0, 0], N // 3)
    p = rng.uniform(0, 0.7, N) + 0.3 * labels
    ids = np.repeat(np.arange(N // 2), 2).astype(str)
    return JudgedBreasts(labels, p, (p > 0.5).astype(int), ids, np.zeros(N, dtype=int))


def facts(**columns: object) -> pd.DataFrame:
    words = dict.fromkeys(("site", "machine", "density", "age", "implant", "views"), NOT_RECORDED)
    numbers = dict.fromkeys(("years", "invasive", "difficult"), np.nan)
    return pd.DataFrame({**words, **numbers, **columns}, index=range(N))


def by_title(found: list[Subgroup]) -> dict[str, Subgroup]:
    return {group.title: group for group in found}


def test_a_group_scores_as_its_rows_do(judged: JudgedBreasts) -> None:
    site = np.where(np.arange(N) % 4 < 2, "1", "2")
    found = by_title(subgroups(judged, facts(site=site), resamples=50))
    assert list(found) == ["all breasts", "site 1", "site 2"]
    for name, rows in (("all breasts", site != ""), ("site 1", site == "1")):
        group, labels, called = found[name], judged.labels[rows], judged.decisions[rows]
        assert (group.breasts, group.cancers) == (rows.sum(), labels.sum())
        assert group.auroc is not None
        assert group.sensitivity is not None
        assert group.specificity is not None
        assert group.auroc.value == pytest.approx(roc_auc_score(labels, judged.probabilities[rows]))
        assert group.sensitivity.value == pytest.approx(called[labels == 1].mean())
        assert group.specificity.value == pytest.approx(1 - called[labels == 0].mean())
        assert group.sensitivity.low < group.sensitivity.value < group.sensitivity.high


def test_small_groups_have_counts_and_no_scores(judged: JudgedBreasts) -> None:
    density = np.array(["B"] * N, dtype=object)
    density[:9] = "A"  # 3 with cancer, 6 without
    density[9:24] = "D"  # 5 with cancer, 10 without
    found = by_title(subgroups(judged, facts(density=density), resamples=20))
    few, some = found["breast density A"], found["breast density D"]
    assert (few.breasts, few.cancers, few.scored) == (9, 3, False)
    assert (some.auroc, some.sensitivity) == (None, None)
    assert some.specificity is not None


def test_what_was_not_recorded_is_no_factor_but_a_group_beside_others(
    judged: JudgedBreasts,
) -> None:
    assert len(subgroups(judged, facts(), resamples=5)) == 1
    implant = np.where(np.arange(N) < 120, "without", NOT_RECORDED)
    found = [g.title for g in subgroups(judged, facts(implant=implant), resamples=5)]
    assert found == ["all breasts", "implant without", "implant not recorded"]


def test_kinds_of_cancer_are_compared_with_all_healthy_breasts(judged: JudgedBreasts) -> None:
    cancer = judged.labels == 1
    invasive = np.where(cancer, np.arange(N) % 2, 0)
    found = by_title(subgroups(judged, facts(invasive=invasive), resamples=20))
    group = found["invasive cancers"]
    inside = cancer & (invasive == 1)
    assert group.breasts == group.cancers == inside.sum()
    assert group.specificity is None
    assert group.auroc is not None
    rows = inside | ~cancer
    expected = roc_auc_score(judged.labels[rows], judged.probabilities[rows])
    assert group.auroc.value == pytest.approx(expected)
    assert found["not invasive cancers"].cancers == (cancer & (invasive == 0)).sum()


def test_difficult_negatives_are_compared_with_all_cancers(judged: JudgedBreasts) -> None:
    difficult = (np.arange(N) % 5 == 1).astype(float)
    found = by_title(subgroups(judged, facts(difficult=difficult), resamples=20))
    group = found["difficult negative breasts"]
    inside = (judged.labels == 0) & (difficult == 1)
    assert (group.breasts, group.cancers, group.sensitivity) == (inside.sum(), 0, None)
    assert group.specificity is not None
    assert group.specificity.value == pytest.approx(1 - judged.decisions[inside].mean())
    assert "without" not in group.remark


def test_a_share_of_all_is_not_certain(judged: JudgedBreasts) -> None:
    everything = JudgedBreasts(
        judged.labels, judged.probabilities, np.ones(N, dtype=int), judged.patients, judged.folds
    )
    (total,) = subgroups(everything, facts(), resamples=20)
    patients = len(set(judged.patients[judged.labels == 1]))
    assert total.sensitivity == wilson(patients, patients)
    assert total.specificity is not None
    assert total.specificity.value == 0
    assert total.specificity.high > 0


def test_where_all_are_in_order_the_area_has_no_interval(judged: JudgedBreasts) -> None:
    p = np.where(judged.labels, 0.9, 0.1)
    perfect = JudgedBreasts(judged.labels, p, judged.labels, judged.patients, judged.folds)
    (total,) = subgroups(perfect, facts(), resamples=20)
    assert total.auroc is not None
    assert total.auroc.value == 1
    assert np.isnan([total.auroc.low, total.auroc.high]).all()
