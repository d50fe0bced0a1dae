"""The promises of a split: patients whole, prevalence and sites in balance, seeded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rsna_bcd.errors import InputError
from rsna_bcd.tables.folds import (
    check_folds,
    fold_summary,
    holdout,
    leave_out,
    read_folds,
    save_folds,
    share_of_patients,
    stratified,
    unseen_folds,
)


@pytest.fixture(scope="module")
def images() -> pd.DataFrame:
    """400 patients of two sites (3 : 1), two breasts each of 1 to 3 images, 10 % cancer."""
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(400):
        site = 1 if patient % 4 else 2
        for laterality in "LR":
            cancer = int(rng.random() < 0.1)
            for _ in range(rng.integers(1, 4)):
                rows.append((str(patient), laterality, cancer, site, site * 10 + patient % 3))
    columns = ["patient_id", "laterality", "cancer", "site_id", "machine_id"]
    return pd.DataFrame(rows, columns=columns).astype({"patient_id": "string"})


def test_stratified_balances_size_prevalence_and_sites(images: pd.DataFrame) -> None:
    folds = stratified(images, n_folds=4, seed=0)
    check_folds(images, folds)
    assert folds.equals(stratified(images, n_folds=4, seed=0))
    summary = fold_summary(images, folds)
    assert summary["patients"].tolist() == [100] * 4
    assert summary["images"].sum() == len(images)
    assert np.ptp(summary["positive_breasts"]) <= 2
    site_2 = images.merge(folds, on="patient_id").query("site_id == 2").groupby("fold")
    assert np.ptp(site_2["patient_id"].nunique()) <= 2
    assert (summary["sites"].str.contains("2: ")).all()
    summary = fold_summary(images, holdout(images, fraction=0.2, seed=0))
    assert summary["patients"].tolist() == [80, 320]
    assert summary["prevalence"][0] == pytest.approx(summary["prevalence"][1], abs=0.01)
    bare = images.drop(columns="site_id")
    summary = fold_summary(bare, stratified(bare, n_folds=5, seed=0))
    assert np.ptp(summary["positive_breasts"]) <= 1
    assert "sites" not in summary


def test_shares_of_patients_are_nested_and_stratified(images: pd.DataFrame) -> None:
    has_cancer = images.groupby("patient_id")["cancer"].max() == 1
    larger = set(images["patient_id"])
    for share in (1.0, 0.5, 0.25, 0.125):
        rows = share_of_patients(images, share, (3, 1))
        chosen = set(images["patient_id"][rows])
        assert not chosen & set(images["patient_id"][~rows])  # whole patients
        assert chosen <= larger
        for stratum in (has_cancer, ~has_cancer):
            assert len(chosen & set(has_cancer.index[stratum])) == round(share * stratum.sum())
        larger = chosen
    shuffled = images.sample(frac=1, random_state=0)
    assert share_of_patients(shuffled, 0.125, (3, 1)).sort_index().equals(rows)
    assert not share_of_patients(images, 0.125, (3, 2)).equals(rows)


@pytest.mark.parametrize(
    ("record", "unseen"),
    [({"fold": 1}, {1}), ({"fold": "all"}, set()), ({"fold": 1, "left_out_folds": [0]}, {0, 1})],
    ids=str,
)
def test_a_run_has_not_seen_what_it_held_out_and_left_out(
    record: dict[str, Any], unseen: set[int]
) -> None:
    assert unseen_folds(record) == unseen


def test_leave_out_keeps_each_value_and_each_patient_whole(images: pd.DataFrame) -> None:
    two_machines = images.copy()  # for the left breast of patient 1
    odd = (images["patient_id"] == "1") & (images["laterality"] == "L")
    two_machines.loc[odd, "machine_id"] = 20
    folds = leave_out(two_machines, column="machine_id")
    check_folds(two_machines, folds)
    merged = images[images["patient_id"] != "1"].merge(folds, on="patient_id")
    assert (merged.groupby("fold")["machine_id"].nunique() == 1).all()
    machines = sorted(images["machine_id"].unique())
    assert merged.groupby("fold")["machine_id"].first().tolist() == machines
    assert fold_summary(two_machines, folds)["machine"].tolist() == machines


def test_fold_summary_names_sites_and_machines(images: pd.DataFrame) -> None:
    sites = fold_summary(images, leave_out(images, column="site_id"))["sites"]
    assert sites.tolist() == ["1: 600", "2: 200"]
    patients = images.drop_duplicates("patient_id")[["patient_id", "machine_id"]]
    mixed = patients.assign(fold=patients["machine_id"].isin([10, 20]).astype(int))
    assert "machine" not in fold_summary(images, mixed[["patient_id", "fold"]])


@pytest.mark.parametrize(
    ("assign", "changes", "settings", "key"),
    [
        (stratified, {}, {"n_folds": 1, "seed": 0}, "n_folds between 2 and 400"),
        (stratified, {}, {"n_folds": 401, "seed": 0}, "n_folds between 2 and 400"),
        (stratified, {"site_id": range(1638)}, {"n_folds": 2, "seed": 0}, "more than 1 breast"),
        (leave_out, {"site_id": 1}, {"column": "site_id"}, "one value only"),
        (leave_out, {}, {"column": "vendor"}, "no column 'vendor'"),
        (leave_out, {"site_id": None}, {"column": "site_id"}, "missing for 400"),
    ],
)
def test_assignment_refuses(
    assign: Callable[..., pd.DataFrame],
    changes: dict[str, Any],
    settings: dict[str, Any],
    key: str,
    images: pd.DataFrame,
) -> None:
    with pytest.raises(InputError, match=key):
        assign(images.assign(**changes), **settings)


def test_check_folds(images: pd.DataFrame) -> None:
    folds = stratified(images, n_folds=4, seed=0)
    with pytest.raises(InputError, match="in two folds"):
        check_folds(images, pd.concat([folds, folds.iloc[:1]]))
    with pytest.raises(InputError, match="have no fold"):
        check_folds(images, folds.iloc[1:])


def test_save_folds_keeps_other_folds(images: pd.DataFrame, tmp_path: Path) -> None:
    csv = tmp_path / "folds" / "rsna-stratified.csv"
    folds = stratified(images, n_folds=4, seed=0)
    save_folds(csv, folds, overwrite=False)
    assert read_folds(csv).equals(folds)
    save_folds(csv, folds, overwrite=False)
    other = stratified(images, n_folds=4, seed=1)
    with pytest.raises(InputError, match="holds other folds"):
        save_folds(csv, other, overwrite=False)
    assert read_folds(csv).equals(folds)
    save_folds(csv, other, overwrite=True)
    assert read_folds(csv).equals(other)
