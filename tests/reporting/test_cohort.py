"""What is recorded of breasts, counted by hand."""

import numpy as np
import pandas as pd
import pytest

from rsna_bcd.reporting.cohort import (
    NOT_RECORDED,
    describe,
    facts_of,
    merged_levels,
    order_of,
    sample_images,
)

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


def test_facts_of_a_breast() -> None:
    facts = facts_of(IMAGES, BREASTS)
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


def test_views_and_ages_of_any_breast() -> None:
    sets: list[list[str | None]] = [
        ["MLO"], ["CC", "CC"], [None, "MLO", "CC"], [None], ["CC", "MLO", "CC"], ["ML", "CC"],
    ]  # fmt: skip
    rows = [(f"{i}_L", view) for i, views in enumerate(sets) for view in views]
    ages = pd.Series([50, 59.9, 70, 121, -3, 1.0], index=[f"{i}_L" for i in range(6)])
    images = pd.DataFrame(rows, columns=["prediction_id", "view"])
    images["age"] = images["prediction_id"].map(ages)
    facts = facts_of(images, list(ages.index))
    assert facts["views"].tolist() == [
        "MLO only", "CC only", "CC and MLO", NOT_RECORDED, "CC and MLO, repeated",
        "with rare views",
    ]  # fmt: skip
    assert facts["age"].tolist() == [
        "50 to 59", "50 to 59", "70 and over", NOT_RECORDED, NOT_RECORDED, "under 50",
    ]  # fmt: skip
    unknown = images.assign(view=None)
    assert (facts_of(unknown, list(ages.index))["views"] == NOT_RECORDED).all()


def test_a_table_of_ones_own_may_have_hardly_anything() -> None:
    bare = IMAGES[["patient_id", "image_id", "laterality", "view", "cancer", "prediction_id"]]
    facts = facts_of(bare, BREASTS)
    assert (facts[["site", "machine", "density", "age", "implant"]] == NOT_RECORDED).all(axis=None)
    assert facts[["years", "invasive", "difficult"]].isna().all(axis=None)
    cohort = describe(bare, OOF, facts)
    assert [factor.name for factor in cohort.factors] == ["Views"]
    assert cohort.missing == {}
    assert {"density", "age", "site_id"} <= set(cohort.absent)
    emptied = IMAGES.assign(density=None)
    cohort = describe(emptied, OOF, facts_of(emptied, BREASTS))
    assert cohort.missing["density"] == 1.0  # a column that is there and empty is not absent
    assert "density" not in cohort.absent
    cohort = describe(bare, OOF, facts)
    assert len(cohort.ages_with) == len(cohort.ages_without) == 0


def test_counts_are_of_the_predicted_breasts_alone() -> None:
    three = OOF.iloc[:3]
    cohort = describe(IMAGES, three, facts_of(IMAGES, BREASTS[:3]))
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
    assert describe(IMAGES, both, facts_of(IMAGES, BREASTS)).bilateral == 1


def test_levels_are_in_their_natural_order_and_the_rarest_are_merged() -> None:
    names = ["others", "49", NOT_RECORDED, "9", "Hologic"]
    assert sorted(names, key=order_of) == ["9", "49", "Hologic", "others", NOT_RECORDED]
    ages = ["70 and over", "under 50", "60 to 69", "50 to 59"]
    assert sorted(ages, key=order_of) == ["under 50", "50 to 59", "60 to 69", "70 and over"]
    column = pd.Series([str(machine) for machine in range(30) for _ in range(30 - machine)])
    merged = merged_levels(column).value_counts()
    assert len(merged) == 12
    assert merged["others"] == sum(30 - machine for machine in range(11, 30))
    assert merged_levels(column[column.astype(int) < 12]).nunique() == 12


def test_samples_show_every_machine_and_do_not_hang_on_the_order_of_rows() -> None:
    rows = pd.DataFrame({"image_id": [str(i) for i in range(40)], "cancer": [0, 1] * 20})
    rows = rows.assign(path="x.png", machine_id=[1] * 30 + [2] * 8 + [3] * 2)
    rows.loc[rows["machine_id"] == 3, "path"] = None
    chosen = sample_images(rows, 4)
    assert chosen["machine_id"].tolist() == [1, 1, 2, 2]
    assert chosen["cancer"].tolist() == [1, 0, 1, 0]
    shuffled = sample_images(rows.sample(frac=1, random_state=0), 4)
    assert shuffled["image_id"].tolist() == chosen["image_id"].tolist()
    assert len(sample_images(rows.drop(columns="machine_id"), 100)) == 38
