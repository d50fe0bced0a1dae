"""Plain trees, out of fold."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fabricated_crops import blank_path, save_crops

from rsna_bcd.errors import InputError
from rsna_bcd.inference.baselines import (
    fit_tree,
    intensity_features,
    metadata_features,
    out_of_fold,
    predict,
)
from rsna_bcd.tables.images import LABEL_ONLY_COLUMNS, read_images

N = 120


def images(**columns: Any) -> pd.DataFrame:
    ids = [str(i) for i in range(N)]
    table = pd.DataFrame({"patient_id": ids, "image_id": ids, "laterality": "L", "view": "MLO"})
    cancer = np.arange(N) % 3 == 0
    return table.assign(prediction_id=table["patient_id"] + "_L", cancer=cancer * 1, **columns)


def oof(table: pd.DataFrame) -> pd.DataFrame:
    fold = [int(patient) % 2 for patient in table["patient_id"]]
    return table[["prediction_id", "patient_id"]].assign(fold=fold)


def test_metadata_features_are_those_of_a_test_set() -> None:
    hindsight = dict.fromkeys(set(LABEL_ONLY_COLUMNS) - {"cancer"}, 1)
    features = metadata_features(images(age=50.0, machine_id=["a", "b"] * 60, **hindsight))
    assert set(features) == {"age", "machine_id", "images", "rare"}
    assert features["machine_id"].tolist() == [0, 1] * 60
    assert metadata_features(images(site_id=np.nan))["site_id"].isna().all()


def test_metadata_features_count_views() -> None:
    table = images().assign(prediction_id=np.repeat([f"{i}_L" for i in range(N // 3)], 3))
    table["view"] = ["CC", "MLO", "LM"] * (N // 3)
    features = metadata_features(table)
    assert (features["images"] == 3).all()
    assert (features["rare"] == 1).all()


def test_out_of_fold_predicts_a_fold_by_the_tree_of_the_others() -> None:
    rng = np.random.default_rng(0)
    table = images(age=60 + 10 * rng.standard_normal(N))
    table["age"] += 8 * table["cancer"]
    features, rows = metadata_features(table), oof(table)
    found = pd.Series(out_of_fold(features, table, rows, seed=0), index=rows["prediction_id"])
    labels = table.set_index("prediction_id")["cancer"]
    for fold in (0, 1):
        inside, outside = (rows["prediction_id"][rows["fold"] == k] for k in (fold, 1 - fold))
        tree = fit_tree(features.loc[outside], labels.loc[outside], seed=0)
        expected = predict(tree, features.loc[inside])
        pd.testing.assert_series_equal(found.loc[inside], expected, check_names=False)


def test_out_of_fold_keeps_both_breasts_of_a_patient_outside() -> None:
    """A patient whose other breast is in the table but not in the fold teaches nothing."""
    table = images(age=np.linspace(30, 80, N))
    other = table.assign(prediction_id=table["patient_id"] + "_R", cancer=1 - table["cancer"])
    both = pd.concat([table, other], ignore_index=True)
    rows = oof(table)
    alone = out_of_fold(metadata_features(table), table, rows, seed=0)
    # With them, each tree would learn the opposite of every label it is asked for.
    held = both[both["patient_id"].isin(rows["patient_id"][rows["fold"] == 0])]
    rest = both[~both.index.isin(held.index)]
    features = metadata_features(both)
    first = rows["prediction_id"][rows["fold"] == 0]
    labels = rest.set_index("prediction_id")["cancer"]
    expected = predict(fit_tree(features.loc[labels.index], labels, 0), features.loc[first])
    found = out_of_fold(features, both, rows, seed=0)
    np.testing.assert_allclose(found[(rows["fold"] == 0).to_numpy()], expected)
    assert not np.allclose(found, alone)


def test_out_of_fold_refuses_one_class() -> None:
    table = images()
    table["cancer"] = [int(int(patient) % 2 == 0) for patient in table["patient_id"]]
    with pytest.raises(InputError, match=r"Outside of fold 0 .* one class .*baseline=\[\]"):
        out_of_fold(metadata_features(table), table, oof(table), seed=0)


def test_intensity_features_of_crops(tmp_path: Path) -> None:
    folder = save_crops(tmp_path)
    blank_path(folder, 0, 1)
    table = read_images(folder / "train.csv", "train")
    features = intensity_features(table, folder)
    assert len(features) == table["prediction_id"].nunique()
    assert features.loc["0_L"].isna().all()  # no crop could be made of this breast
    bright = features["mean_mean"].groupby(table.groupby("prediction_id")["cancer"].first()).mean()
    assert bright[1] > bright[0]
