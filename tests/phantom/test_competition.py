"""Formats, shares and labels of the tables, compared with the real ones."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.phantom.competition import competition_tables, sample_images
from rsna_bcd.phantom.scanner import MACHINES
from rsna_bcd.tables.images import TEST_COLUMNS, TRAIN_COLUMNS

SIZE: dict[str, Any] = {"train_patients": 1500, "test_patients": 100, "prevalence": 0.2}


@pytest.fixture(scope="module")
def images() -> pd.DataFrame:
    return sample_images(**SIZE, seed=3)


@pytest.fixture(scope="module")
def breasts(images: pd.DataFrame) -> pd.DataFrame:
    return images.drop_duplicates("prediction_id")


def test_sample_images_prevalence_is_exact_in_both_splits(breasts: pd.DataFrame) -> None:
    count = breasts.groupby("split")["cancer"].agg(["sum", "count"])
    assert count.T.to_dict("list") == {"train": [600, 3000], "test": [40, 200]}


def test_sample_images_depends_on_the_seed() -> None:
    few = SIZE | {"train_patients": 20, "test_patients": 5}
    first, again, other = (sample_images(**few, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(again, first)
    assert not other["image_id"].isin(first["image_id"]).any()
    with pytest.raises(InputError, match="size"):
        sample_images(65000, 600, 0.1, seed=3)


def test_sample_images_identifiers_are_unique_and_patients_sorted(images: pd.DataFrame) -> None:
    assert images["image_id"].is_unique
    splits = images.groupby("patient_id")["split"].nunique()
    assert (splits == 1).all()
    assert len(splits) == 1600
    train = images.loc[images["split"] == "train", "patient_id"]
    assert train.is_monotonic_increasing


def test_sample_images_every_breast_has_both_standard_views(images: pd.DataFrame) -> None:
    groups = images.groupby("prediction_id")
    views = groups["view"].agg(set)
    assert (views.map(lambda names: {"CC", "MLO"} <= names)).all()
    assert set().union(*views) >= {"CC", "MLO", "AT"}
    assert len(images) / len(views) == pytest.approx(2.296, abs=0.06)  # 54,706 / 23,826
    assert (groups[["cancer", "biopsy", "invasive"]].nunique() == 1).all(axis=None)


def test_sample_images_labels_agree_with_each_other(breasts: pd.DataFrame) -> None:
    cancer = breasts["cancer"] == 1
    assert (breasts.loc[cancer, "biopsy"] == 1).all()
    assert not breasts.loc[cancer, "difficult_negative_case"].any()
    assert (breasts.loc[~cancer, "invasive"] == 0).all()
    difficult = (breasts["biopsy"] == 1) | (breasts["BIRADS"] == 0)
    assert (breasts.loc[~cancer, "difficult_negative_case"] == difficult[~cancer]).all()
    assert breasts.loc[cancer, "invasive"].mean() == pytest.approx(0.71, abs=0.06)


def test_sample_images_shares_of_sites_and_machines(breasts: pd.DataFrame) -> None:
    site = breasts.groupby("machine_id")["site_id"].unique()
    assert {machine: sites.tolist() for machine, sites in site.items()} == {
        machine.machine_id: [machine.site_id] for machine in MACHINES.values()
    }
    assert (breasts["site_id"] == 1).mean() == pytest.approx(5818 / 11913, abs=0.04)
    assert (breasts["machine_id"] == 49).mean() == pytest.approx(4589 / 11913, abs=0.04)
    second = breasts["site_id"] == 2
    assert breasts.loc[second, "density"].isna().all()
    assert breasts.loc[~second, "density"].isin(list("ABCD")).all()
    assert (breasts.loc[second, "implant"] == 0).all()
    assert 0.03 < breasts.loc[~second, "implant"].mean() < 0.09


def test_sample_images_women_with_cancer_are_older(breasts: pd.DataFrame) -> None:
    age = breasts.groupby("cancer")["age"].mean()
    assert age[0] == pytest.approx(58.9, abs=1.5)
    assert age[1] == pytest.approx(63.4, abs=1.5)
    assert breasts["age"].between(26, 89).sum() == breasts["age"].notna().sum()
    whole = breasts["age"].dropna()
    assert (whole == np.rint(whole)).all()


def test_competition_tables_have_the_columns_of_the_real_ones(images: pd.DataFrame) -> None:
    files = competition_tables(images)
    assert files["train.csv"].columns.tolist() == list(TRAIN_COLUMNS)
    assert files["test.csv"].columns.tolist() == list(TEST_COLUMNS)
    sample, solution = files["sample_submission.csv"], files["solution.csv"]
    assert sample.columns.tolist() == ["prediction_id", "cancer"]
    assert sample["cancer"].nunique() == 1
    in_order = files["test.csv"]["prediction_id"].drop_duplicates().tolist()
    assert sample["prediction_id"].tolist() == in_order
    assert solution["prediction_id"].tolist() == in_order
    assert solution["cancer"].sum() == 40
    expected = solution["patient_id"].astype(str) + "_" + solution["laterality"]
    assert (solution["prediction_id"] == expected).all()
