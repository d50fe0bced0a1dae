"""Properties of breasts, subgroups and their differences, against values computed by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from rsna_bcd.reporting.subgroups import (
    NOT_RECORDED,
    ScoredBreasts,
    Subgroup,
    SubgroupDifference,
    breast_facts,
    describe_cohort,
    level_order,
    merge_rare_levels,
    sample_images,
    score_subgroups,
    subgroup_differences,
)
from rsna_bcd.scoring.intervals import wilson

IMAGES = pd.DataFrame(
    [
        ["1", "a", "L", "CC", 1, 2.0, 61.0, "B", 1, 1, 0, False],
        ["1", "b", "L", "MLO", 1, 2.0, 61.0, "B", 1, 1, 0, False],
        ["1", "c", "R", "CC", 0, 2.0, 61.0, None, 0, 0, 0, True],
        ["1", "d", "R", "MLO", 0, 2.0, 61.0, "C", 0, 0, 0, True],
        ["1", "e", "R", "MLO", 0, 2.0, 61.0, "C", 0, 0, 0, True],
        ["2", "f", "L", "CC", 0, np.nan, np.nan, None, 0, 0, 1, False],
        ["2", "g", "L", "LM", 0, np.nan, np.nan, None, 0, 0, 1, False],
        ["2", "h", "L", "MLO", 0, np.nan, np.nan, None, 0, 0, 1, False],
        ["3", "i", "L", "CC", 1, 1.0, 49.9, "A", 1, 0, 0, False],
    ],
    columns=[
        "patient_id", "image_id", "laterality", "view", "cancer", "site_id", "age", "density",
        "biopsy", "invasive", "implant", "difficult_negative_case",
    ],
).assign(prediction_id=lambda t: t["patient_id"] + "_" + t["laterality"])  # fmt: skip
BREASTS = ["1_L", "1_R", "2_L", "3_L"]
OOF = pd.DataFrame(
    {"prediction_id": BREASTS, "patient_id": ["1", "1", "2", "3"], "label": [1, 0, 0, 1]}
)


def test_breast_facts_of_the_first_known_value() -> None:
    facts = breast_facts(IMAGES, BREASTS)
    assert facts["site"].tolist() == ["2", "2", NOT_RECORDED, "1"]
    assert facts["machine"].tolist() == [NOT_RECORDED] * 4  # the table lacks the column
    assert facts["density"].tolist() == ["B", "C", NOT_RECORDED, "A"]
    assert facts["age"].tolist() == ["60 to 69", "60 to 69", NOT_RECORDED, "under 50"]
    assert facts["implant"].tolist() == ["without", "without", "with", "without"]
    views = ["CC and MLO", "CC and MLO, repeated", "with rare views", "CC only"]
    assert facts["views"].tolist() == views
    assert facts["invasive"].tolist() == [1, 0, 0, 0]
    assert facts["difficult"].tolist() == [0, 1, 0, 0]


def test_breast_facts_views_and_ages() -> None:
    sets = "MLO", "CC CC", "? MLO CC", "?", "CC MLO CC", "ML CC"
    rows = [(f"{i}_L", view) for i, views in enumerate(sets) for view in views.split()]
    ages = pd.Series([50, 59.9, 70, 121, -3, 1.0], index=[f"{i}_L" for i in range(6)])
    images = pd.DataFrame(rows, columns=["prediction_id", "view"]).replace("?", None)
    images["age"] = images["prediction_id"].map(ages)
    facts = breast_facts(images, list(ages.index))
    assert facts["views"].tolist() == [
        "MLO only", "CC only", "CC and MLO", NOT_RECORDED, "CC and MLO, repeated",
        "with rare views",
    ]  # fmt: skip
    assert facts["age"].tolist() == [
        "50 to 59", "50 to 59", "70 and over", NOT_RECORDED, NOT_RECORDED, "under 50",
    ]  # fmt: skip
    unknown = images.assign(view=None)
    assert (breast_facts(unknown, list(ages.index))["views"] == NOT_RECORDED).all()


def test_breast_facts_of_a_table_without_optional_columns() -> None:
    bare = IMAGES[["patient_id", "image_id", "laterality", "view", "cancer", "prediction_id"]]
    facts = breast_facts(bare, BREASTS)
    assert (facts[["site", "machine", "density", "age", "implant"]] == NOT_RECORDED).all(axis=None)
    assert facts[["years", "invasive", "difficult"]].isna().all(axis=None)
    cohort = describe_cohort(bare, OOF, facts)
    assert [factor.name for factor in cohort.factors] == ["Views"]
    assert cohort.missing == {}
    assert {"density", "age", "site_id"} <= set(cohort.absent)
    emptied = IMAGES.assign(density=None)
    cohort = describe_cohort(emptied, OOF, breast_facts(emptied, BREASTS))
    assert cohort.missing["density"] == 1.0  # a column that is there and empty is not absent
    assert "density" not in cohort.absent
    cohort = describe_cohort(bare, OOF, facts)
    assert len(cohort.ages_with) == len(cohort.ages_without) == 0


def test_describe_cohort_counts_the_predicted_breasts() -> None:
    three = OOF.iloc[:3]
    cohort = describe_cohort(IMAGES, three, breast_facts(IMAGES, BREASTS[:3]))
    assert (cohort.patients, cohort.breasts, cohort.cancers, cohort.images) == (2, 3, 1, 8)
    assert cohort.prevalence == pytest.approx(1 / 3)
    assert cohort.bilateral == 0
    assert cohort.by_view == {"MLO": 4, "CC": 3, "LM": 1}
    assert cohort.missing["age"] == pytest.approx(3 / 8)
    assert cohort.ages_with.tolist() == [61]
    density = next(f for f in cohort.factors if f.name == "Breast density")
    assert density.levels == (("B", 1, 1), ("C", 1, 0), (NOT_RECORDED, 1, 0))
    both = OOF.assign(label=1)
    assert describe_cohort(IMAGES, both, breast_facts(IMAGES, BREASTS)).bilateral == 1


def test_levels_are_sorted_and_the_rarest_merged() -> None:
    names = ["others", "49", NOT_RECORDED, "9", "Hologic"]
    assert sorted(names, key=level_order) == ["9", "49", "Hologic", "others", NOT_RECORDED]
    ages = ["70 and over", "under 50", "60 to 69", "50 to 59"]
    assert sorted(ages, key=level_order) == ["under 50", "50 to 59", "60 to 69", "70 and over"]
    column = pd.Series([str(machine) for machine in range(30) for _ in range(30 - machine)])
    merged = merge_rare_levels(column).value_counts()
    assert len(merged) == 12
    assert merged["others"] == sum(30 - machine for machine in range(11, 30))
    assert merge_rare_levels(column[column.astype(int) < 12]).nunique() == 12


def test_sample_images_alternates_machines_whatever_the_order_of_rows() -> None:
    rows = pd.DataFrame({"image_id": [str(i) for i in range(40)], "cancer": [0, 1] * 20})
    rows = rows.assign(path="x.png", machine_id=[1] * 30 + [2] * 8 + [3] * 2)
    rows.loc[rows["machine_id"] == 3, "path"] = None
    chosen = sample_images(rows, 4)
    assert chosen["machine_id"].tolist() == [1, 1, 2, 2]
    assert chosen["cancer"].tolist() == [1, 0, 1, 0]
    shuffled = sample_images(rows.sample(frac=1, random_state=0), 4)
    assert shuffled["image_id"].tolist() == chosen["image_id"].tolist()
    assert len(sample_images(rows.drop(columns="machine_id"), 100)) == 38


N = 240
LABELS = np.tile([1, 0, 0], N // 3)
PATIENTS = np.repeat(np.arange(N // 2), 2).astype(str)


def make_scored(probabilities: np.ndarray) -> ScoredBreasts:
    decisions = (probabilities > 0.5).astype(int)
    return ScoredBreasts(LABELS, probabilities, decisions, PATIENTS, np.zeros(N, dtype=int))


@pytest.fixture
def scored() -> ScoredBreasts:
    return make_scored(np.random.default_rng(3).uniform(0, 0.7, N) + 0.3 * LABELS)


def facts(**columns: object) -> pd.DataFrame:
    texts = dict.fromkeys(("site", "machine", "density", "age", "implant", "views"), NOT_RECORDED)
    numbers = dict.fromkeys(("years", "invasive", "difficult"), np.nan)
    return pd.DataFrame({**texts, **numbers, **columns}, index=range(N))


def by_score(found: list[SubgroupDifference], title: str) -> dict[str, SubgroupDifference]:
    return {one.score: one for one in found if one.title == title}


def test_subgroup_differences_equal_those_of_the_rows_and_resamples(scored: ScoredBreasts) -> None:
    machine = np.array(["a", "b", "c"])[np.arange(N) // 6 % 3]
    found = subgroup_differences(scored, facts(machine=machine), resamples=40, seed=5)
    assert len(found) == 9
    own, inside = by_score(found, "machine a"), machine == "a"
    y, decided, p = scored.labels, scored.decisions, scored.probabilities

    def mean(values: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> float:
        return float(np.average(values[rows], weights=weights[rows]))

    metrics = {
        "sensitivity": lambda rows, w: mean(decided, rows & (y == 1), w),
        "specificity": lambda rows, w: mean(1 - decided, rows & (y == 0), w),
        "AUROC": lambda rows, w: roc_auc_score(y[rows], p[rows], sample_weight=w[rows]),
    }
    ids, number = np.unique(PATIENTS, return_inverse=True)
    drawn = np.random.default_rng(5).integers(0, len(ids), (40, len(ids)))
    weights = [np.bincount(row, minlength=len(ids))[number].astype(float) for row in drawn]
    for name, score in metrics.items():
        one, once = own[name], np.ones(N)
        assert one.inside == pytest.approx(score(inside, once))
        assert one.outside == pytest.approx(score(~inside, once))
        values = [score(inside, w) - score(~inside, w) for w in weights]
        ends = [one.difference.low, one.difference.high]
        assert ends == pytest.approx(np.quantile(values, [0.025, 0.975]))


def test_subgroup_differences_compare_two_subgroups_once() -> None:
    cancers = np.flatnonzero(LABELS == 1)
    invasive, p = np.full(N, np.nan), np.where(np.arange(N) % 2, 0.3, 0.4)
    invasive[cancers[:40]], invasive[cancers[40:]] = 1, 0
    p[cancers] = 0.9
    p[cancers[:12]] = 0.2  # missed, all of them invasive
    found = subgroup_differences(make_scored(p), facts(invasive=invasive), resamples=100)
    own = by_score(found, "invasive cancers")
    assert sorted(own) == ["AUROC", "sensitivity"]
    assert len(found) == 2
    assert own["sensitivity"].rest == "not invasive cancers"
    assert own["sensitivity"].always
    assert own["sensitivity"].inside == pytest.approx(28 / 40)
    assert own["sensitivity"].difference.value == pytest.approx(-0.3)
    assert own["sensitivity"].is_significant
    rows = (invasive == 1) | (LABELS == 0)
    assert own["AUROC"].inside == pytest.approx(roc_auc_score(LABELS[rows], p[rows]))
    assert own["AUROC"].outside == 1


def test_subgroup_differences_need_enough_breasts_and_variance(scored: ScoredBreasts) -> None:
    for n, expected in ((28, 3), (27, 1)):  # 10 cancers of 28, 9 of 27
        site = np.where(np.arange(N) < n, "1", "2")
        assert len(subgroup_differences(scored, facts(site=site), resamples=5)) == expected
    assert subgroup_differences(scored, facts(), resamples=5) == []
    site = np.where(np.arange(N) < 120, "1", "2")
    perfect = make_scored(0.1 + 0.8 * LABELS)
    for one in subgroup_differences(perfect, facts(site=site), resamples=20):
        assert one.difference.value == 0
        assert np.isnan(one.difference.low)
        assert not one.is_significant


def score(scored: ScoredBreasts, **columns: object) -> dict[str, Subgroup]:
    groups = score_subgroups(scored, facts(**columns), resamples=20)
    return {group.title: group for group in groups}


def test_score_subgroups_equals_the_scores_of_their_rows(scored: ScoredBreasts) -> None:
    site = np.where(np.arange(N) % 4 < 2, "1", "2")
    groups = score(scored, site=site)
    assert list(groups) == ["all breasts", "site 1", "site 2"]
    for name, rows in (("all breasts", site != ""), ("site 1", site == "1")):
        group, labels, decided = groups[name], scored.labels[rows], scored.decisions[rows]
        assert (group.breasts, group.cancers) == (rows.sum(), labels.sum())
        ranked = roc_auc_score(labels, scored.probabilities[rows])
        expected = ranked, decided[labels == 1].mean(), 1 - decided[labels == 0].mean()
        intervals = group.auroc, group.sensitivity, group.specificity
        for interval, value in zip(intervals, expected, strict=True):
            assert interval is not None
            assert interval.value == pytest.approx(value)
            assert interval.low < value < interval.high


def test_score_subgroups_small_and_unrecorded_levels(scored: ScoredBreasts) -> None:
    density = np.array(["B"] * N, dtype=object)
    density[:9] = "A"  # 3 with cancer, 6 without
    density[9:24] = "D"  # 5 with cancer, 10 without
    groups = score(scored, density=density)
    few, some = groups["breast density A"], groups["breast density D"]
    assert (few.breasts, few.cancers, few.scored) == (9, 3, False)
    assert (some.auroc, some.sensitivity) == (None, None)
    assert some.specificity is not None
    assert list(score(scored)) == ["all breasts"]
    implant = np.where(np.arange(N) < 120, "without", NOT_RECORDED)
    titles = ["all breasts", "implant without", "implant not recorded"]
    assert list(score(scored, implant=implant)) == titles


def test_score_subgroups_of_one_class_against_all_of_the_other(scored: ScoredBreasts) -> None:
    cancer = scored.labels == 1
    invasive = np.where(cancer, np.arange(N) % 2, 0)
    groups = score(scored, invasive=invasive)
    group, inside = groups["invasive cancers"], cancer & (invasive == 1)
    assert (group.breasts, group.cancers, group.specificity) == (inside.sum(), inside.sum(), None)
    assert group.auroc is not None
    rows = inside | ~cancer
    expected = roc_auc_score(scored.labels[rows], scored.probabilities[rows])
    assert group.auroc.value == pytest.approx(expected)
    assert groups["not invasive cancers"].cancers == (cancer & (invasive == 0)).sum()
    difficult = (np.arange(N) % 5 == 1).astype(float)
    group = score(scored, difficult=difficult)["difficult negative breasts"]
    inside = ~cancer & (difficult == 1)
    assert (group.breasts, group.cancers, group.sensitivity) == (inside.sum(), 0, None)
    assert group.specificity is not None
    assert group.specificity.value == pytest.approx(1 - scored.decisions[inside].mean())
    assert "without" not in group.remark


def test_score_subgroups_degenerate_scores(scored: ScoredBreasts) -> None:
    (total,) = score(replace(scored, decisions=np.ones(N, dtype=int))).values()
    patients = len(set(scored.patients[scored.labels == 1]))
    assert total.sensitivity == wilson(patients, patients)
    assert total.specificity is not None
    assert total.specificity.value == 0 < total.specificity.high
    (total,) = score(make_scored(0.1 + 0.8 * LABELS)).values()
    assert total.auroc is not None
    assert total.auroc.value == 1
    assert np.isnan([total.auroc.low, total.auroc.high]).all()
