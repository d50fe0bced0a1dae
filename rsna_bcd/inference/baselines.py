"""Baselines that a network must beat: gradient-boosted trees without any shapes.

One has the metadata of a breast and its patient, the other the intensities of its crops.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from rsna_bcd.errors import InputError
from rsna_bcd.imaging.crops import FEATURES, in_8_bits, intensity_statistics, read_crop

# Known before the mammogram is read, as in test.csv.
_METADATA = ("site_id", "machine_id", "age", "implant")


def fit_tree(
    features: pd.DataFrame, labels: pd.Series, seed: int
) -> HistGradientBoostingClassifier:
    """Fit a gradient-boosted tree that is small enough for a few hundred breasts.

    Args:
        features: (breasts, F), NaN where unknown.
        labels: 0 or 1, of the same breasts.
        seed: of the tree.
    """
    tree = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=200,
        max_leaf_nodes=8,
        min_samples_leaf=10,
        early_stopping=False,
        class_weight="balanced",
        random_state=seed,
    )
    with threadpool_limits(1, "openmp"):  # on so few rows threads would only wait for each other
        return tree.fit(features, labels.loc[features.index])


def predict(tree: HistGradientBoostingClassifier, features: pd.DataFrame) -> pd.Series:
    """Probability of cancer by breast."""
    with threadpool_limits(1, "openmp"):
        return pd.Series(tree.predict_proba(features)[:, 1], index=features.index)


def metadata_features(images: pd.DataFrame) -> pd.DataFrame:
    """Metadata of breasts that a test set has too: (breasts, columns).

    Site, machine, age, implant, number of images, and of those beyond CC and MLO. Columns that the
    table lacks are left out; of values that differ within a breast the first counts.
    """
    breasts = images.groupby("prediction_id", sort=False)
    known = [column for column in _METADATA if column in images]
    features = breasts[known].first() if known else pd.DataFrame(index=breasts.size().index)
    numbers = features.apply(pd.to_numeric, errors="coerce").astype("float64")
    for column in numbers:
        if numbers[column].isna().all() and features[column].notna().any():  # names
            numbers[column] = pd.factorize(features[column], sort=True)[0].astype("float64")
    numbers["images"] = breasts.size()
    rare = ~images["view"].isin(["CC", "MLO"])
    numbers["rare"] = rare.groupby(images["prediction_id"]).sum()
    return numbers


def intensity_features(images: pd.DataFrame, prepared: Path) -> pd.DataFrame:
    """Mean and maximum of the statistics over a breast's crops: (breasts, 2 x features).

    A breast without a readable crop has a row of NaN, which the tree can take.

    Args:
        images: table of images with `path`.
        prepared: the folder that the paths are relative to.
    """
    missing = np.full(len(FEATURES), np.nan)
    values = [
        missing if pd.isna(path) else intensity_statistics(in_8_bits(read_crop(prepared / path)))
        for path in images["path"]
    ]
    by_image = pd.DataFrame(values, columns=list(FEATURES), index=images["prediction_id"])
    breasts = by_image.groupby(level=0, sort=False)
    return breasts.mean().add_suffix("_mean").join(breasts.max().add_suffix("_max"))


def out_of_fold(
    features: pd.DataFrame, images: pd.DataFrame, oof: pd.DataFrame, seed: int
) -> NDArray[np.float64]:
    """Predict the breasts of each fold by a tree that was fitted on all other patients.

    So a tree has the same training patients as the network of the fold.

    Args:
        features: of all breasts in the table, indexed by `prediction_id`.
        images: the table, with `prediction_id, patient_id, cancer`.
        oof: breasts to predict: `prediction_id, patient_id, fold`.
        seed: of the trees.

    Returns:
        (N,) probabilities, for the rows of `oof`.

    Raises:
        InputError: there is one class only outside of a fold.
    """
    breasts = images.drop_duplicates("prediction_id").set_index("prediction_id")
    found = pd.Series(np.nan, index=oof["prediction_id"].astype(str))
    for fold in oof["fold"].unique():
        own = oof[oof["fold"] == fold]
        outside = breasts[~breasts["patient_id"].isin(own["patient_id"])]
        if outside["cancer"].nunique() < 2:
            raise InputError(
                f"Outside of fold {fold} there are breasts of one class only: there is nothing to "
                "fit the tree to. Leave it out with baseline=[]."
            )
        tree = fit_tree(features.loc[outside.index], outside["cancer"], seed)
        own_ids = own["prediction_id"].astype(str)
        found.loc[own_ids] = predict(tree, features.loc[own_ids]).to_numpy()
    return np.asarray(found, dtype=np.float64)
