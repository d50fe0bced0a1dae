"""Properties of breasts, subgroups and their differences, against values computed by hand."""

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
    assert facts["views"].tolist() == [
        "CC and MLO", "CC and MLO, repeated", "with rare views", "CC only",
    ]  # fmt: skip
    assert facts["invasive"].tolist() == [1, 0, 0, 0]
    assert facts["difficult"].tolist() == [0, 1, 0, 0]


def test_breast_facts_views_and_ages() -> None:
    sets: list[list[str | None]] = [
        ["MLO"], ["CC", "CC"], [None, "MLO", "CC"], [None], ["CC", "MLO", "CC"], ["ML", "CC"],
    ]  # fmt: skip
    rows = [(f"{i}_L", view) for i, views in enumerate(sets) for view in views]
    ages = pd.Series([50, 59.9, 70, 121, -3, 1.0], index=[f"{i}_L" for i in range(6)])
    images = pd.DataFrame(rows, columns=["prediction_id", "view"])
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
    assert [(level.name, level.breasts, level.cancers) for level in density.levels] == [
        ("B", 1, 1), ("C", 1, 0), (NOT_RECORDED, 1, 0),
    ]  # fmt: skip
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
    words = dict.fromkeys(("site", "machine", "density", "age", "implant", "views"), NOT_RECORDED)
    numbers = dict.fromkeys(("years", "invasive", "difficult"), np.nan)
    return pd.DataFrame({**words, **numbers, **columns}, index=range(N))


def by_score(found: list[SubgroupDifference], title: str) -> dict[str, SubgroupDifference]:
    return {contrast.score: contrast for contrast in found if contrast.title == title}


def test_subgroup_differences_equal_those_of_the_rows_and_resamples(scored: ScoredBreasts) -> None:
    machine = np.array(["a", "b", "c"])[np.arange(N) // 6 % 3]
    found = subgroup_differences(scored, facts(machine=machine), resamples=40, seed=5)
    assert len(found) == 9
    own = by_score(found, "machine a")
    inside = machine == "a"
    y, called, p = scored.labels, scored.decisions, scored.probabilities
    metrics = {
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
    for name, score in metrics.items():
        contrast, once = own[name], np.ones(N)
        assert contrast.inside == pytest.approx(score(inside, once))
        assert contrast.outside == pytest.approx(score(~inside, once))
        values = [score(inside, w) - score(~inside, w) for w in weights]
        ends = [contrast.difference.low, contrast.difference.high]
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
    healthy = LABELS == 0
    rows = (invasive == 1) | healthy
    assert own["AUROC"].inside == pytest.approx(roc_auc_score(LABELS[rows], p[rows]))
    assert own["AUROC"].outside == 1


def test_subgroup_differences_need_enough_breasts_and_variance(scored: ScoredBreasts) -> None:
    site = np.where(np.arange(N) < 28, "1", "2")  # 10 cancers, 18 others
    assert len(subgroup_differences(scored, facts(site=site), resamples=5)) == 3
    site = np.where(np.arange(N) < 27, "1", "2")  # 9 cancers
    assert [c.score for c in subgroup_differences(scored, facts(site=site), resamples=5)] == [
        "specificity"
    ]
    assert subgroup_differences(scored, facts(), resamples=5) == []
    perfect = make_scored(0.1 + 0.8 * LABELS)
    site = np.where(np.arange(N) < 120, "1", "2")
    for contrast in subgroup_differences(perfect, facts(site=site), resamples=20):
        assert contrast.difference.value == 0
        assert np.isnan(contrast.difference.low)
        assert not contrast.is_significant


def by_title(found: list[Subgroup]) -> dict[str, Subgroup]:
    return {group.title: group for group in found}


def test_score_subgroups_equals_the_scores_of_their_rows(scored: ScoredBreasts) -> None:
    site = np.where(np.arange(N) % 4 < 2, "1", "2")
    found = by_title(score_subgroups(scored, facts(site=site), resamples=50))
    assert list(found) == ["all breasts", "site 1", "site 2"]
    for name, rows in (("all breasts", site != ""), ("site 1", site == "1")):
        group, labels, called = found[name], scored.labels[rows], scored.decisions[rows]
        assert (group.breasts, group.cancers) == (rows.sum(), labels.sum())
        assert group.auroc is not None
        assert group.sensitivity is not None
        assert group.specificity is not None
        assert group.auroc.value == pytest.approx(roc_auc_score(labels, scored.probabilities[rows]))
        assert group.sensitivity.value == pytest.approx(called[labels == 1].mean())
        assert group.specificity.value == pytest.approx(1 - called[labels == 0].mean())
        assert group.sensitivity.low < group.sensitivity.value < group.sensitivity.high


def test_score_subgroups_small_ones_have_counts_only(scored: ScoredBreasts) -> None:
    density = np.array(["B"] * N, dtype=object)
    density[:9] = "A"  # 3 with cancer, 6 without
    density[9:24] = "D"  # 5 with cancer, 10 without
    found = by_title(score_subgroups(scored, facts(density=density), resamples=20))
    few, some = found["breast density A"], found["breast density D"]
    assert (few.breasts, few.cancers, few.scored) == (9, 3, False)
    assert (some.auroc, some.sensitivity) == (None, None)
    assert some.specificity is not None


def test_score_subgroups_not_recorded_is_a_level_beside_others(
    scored: ScoredBreasts,
) -> None:
    assert len(score_subgroups(scored, facts(), resamples=5)) == 1
    implant = np.where(np.arange(N) < 120, "without", NOT_RECORDED)
    found = [g.title for g in score_subgroups(scored, facts(implant=implant), resamples=5)]
    assert found == ["all breasts", "implant without", "implant not recorded"]


def test_score_subgroups_of_cancers_against_all_other_breasts(scored: ScoredBreasts) -> None:
    cancer = scored.labels == 1
    invasive = np.where(cancer, np.arange(N) % 2, 0)
    found = by_title(score_subgroups(scored, facts(invasive=invasive), resamples=20))
    group = found["invasive cancers"]
    inside = cancer & (invasive == 1)
    assert group.breasts == group.cancers == inside.sum()
    assert group.specificity is None
    assert group.auroc is not None
    rows = inside | ~cancer
    expected = roc_auc_score(scored.labels[rows], scored.probabilities[rows])
    assert group.auroc.value == pytest.approx(expected)
    assert found["not invasive cancers"].cancers == (cancer & (invasive == 0)).sum()


def test_score_subgroups_of_difficult_negatives_against_all_cancers(scored: ScoredBreasts) -> None:
    difficult = (np.arange(N) % 5 == 1).astype(float)
    found = by_title(score_subgroups(scored, facts(difficult=difficult), resamples=20))
    group = found["difficult negative breasts"]
    inside = (scored.labels == 0) & (difficult == 1)
    assert (group.breasts, group.cancers, group.sensitivity) == (inside.sum(), 0, None)
    assert group.specificity is not None
    assert group.specificity.value == pytest.approx(1 - scored.decisions[inside].mean())
    assert "without" not in group.remark


def test_score_subgroups_proportion_of_1_has_wilsons_interval(scored: ScoredBreasts) -> None:
    everything = ScoredBreasts(
        scored.labels, scored.probabilities, np.ones(N, dtype=int), scored.patients, scored.folds
    )
    (total,) = score_subgroups(everything, facts(), resamples=20)
    patients = len(set(scored.patients[scored.labels == 1]))
    assert total.sensitivity == wilson(patients, patients)
    assert total.specificity is not None
    assert total.specificity.value == 0
    assert total.specificity.high > 0


def test_score_subgroups_perfect_auroc_has_no_interval(scored: ScoredBreasts) -> None:
    p = np.where(scored.labels, 0.9, 0.1)
    perfect = ScoredBreasts(scored.labels, p, scored.labels, scored.patients, scored.folds)
    (total,) = score_subgroups(perfect, facts(), resamples=20)
    assert total.auroc is not None
    assert total.auroc.value == 1
    assert np.isnan([total.auroc.low, total.auroc.high]).all()
