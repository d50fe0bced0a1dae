"""From the probabilities of each run to a blend and a decision for each breast.

In the same order as for the out-of-fold rows that the ensemble was fitted to: images to breasts by
each member's aggregation, fold by fold; the mean over the folds; the blend; the threshold.
"""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.inference.run import Run
from rsna_bcd.inference.stream import BreastPrediction, Prediction
from rsna_bcd.scoring.ensemble import Ensemble
from rsna_bcd.tables.images import breast_sites
from rsna_bcd.tables.predictions import to_breasts, with_unreadable
from rsna_bcd.tables.views import excluded_images


def predict_breasts(
    ensemble: Ensemble,
    runs: Sequence[Sequence[Run]],
    images: pd.DataFrame,
    by_image: Sequence[Prediction],
    by_breast: Sequence[BreastPrediction],
    dropped: Collection[int] = (),
    expected: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Blend and decide the breasts of a table of images.

    Args:
        ensemble: a fitted one.
        runs: of each of its members, the runs of its folds.
        images: all images of the breasts, with `site_id` if it is known; a breast of an unknown
            site gets the global threshold. `excluded_images` do not count.
        by_image: from `stream.predict`.
        by_breast: likewise; empty if all runs are of image level.
        dropped: positions of runs that are ignored.
        expected: the breasts, `prediction_id, patient_id, laterality`, if some may have no image;
            None for those of the table.

    Returns:
        `prediction_id, patient_id, laterality, logit, probability, unread`, then `calibrated` if
        the ensemble calibrates, and `cancer`, 0 or 1. One row per breast, in the order of
        `expected` or of the table. A run without a finite value for a breast is left out of it. In
        a breast without a readable image every member has the prevalence of training, which a mean
        leaves as it is and `rank_mean` ranks; its `calibrated` is the prevalence, its `cancer` 0.
    """
    blended = _blend(ensemble, runs, images, by_image, by_breast, dropped)
    breasts = with_unreadable(
        blended, images if expected is None else expected, ensemble.unreadable_probability
    )
    unread = breasts["unread"] == 1
    calibrated = ensemble.calibrate(breasts["probability"], unread)
    if calibrated is not None:
        breasts["calibrated"] = calibrated
    sites = breasts["prediction_id"].map(breast_sites(images)).to_numpy(dtype=str)
    breasts["cancer"] = ensemble.decide(breasts["probability"], sites, unread)
    return breasts


def _blend(
    ensemble: Ensemble,
    runs: Sequence[Sequence[Run]],
    images: pd.DataFrame,
    by_image: Sequence[Prediction],
    by_breast: Sequence[BreastPrediction],
    dropped: Collection[int],
) -> pd.DataFrame:
    """The breasts with a finite value of at least one run."""
    n_runs = sum(map(len, runs))
    readable = {p.image_id: p.probabilities for p in by_image if p.probabilities is not None}
    rows = images.loc[images["image_id"].isin(readable.keys())]
    rows = rows.loc[~rows["image_id"].isin(excluded_images(rows))]
    image_level = np.array([readable[i] for i in rows["image_id"]]).reshape(len(rows), n_runs)
    predicted = {p.prediction_id: p.probabilities for p in by_breast}
    missing = np.full(n_runs, np.nan)
    # All images of a breast have the value of the breast.
    breast_level = np.array([predicted.get(breast, missing) for breast in rows["prediction_id"]])
    breast_level = breast_level.reshape(len(rows), n_runs)
    breasts = to_breasts(rows.assign(probability=0.0), "max")  # those with a readable image
    by_member: list[NDArray[np.float64]] = []
    column = 0
    for member, folds in zip(ensemble.members, runs, strict=True):
        by_fold = []
        for run in folds:
            values = (image_level if run.level == "image" else breast_level)[:, column]
            is_used = np.isfinite(values) & (column not in dropped)
            table = rows[is_used].assign(probability=values[is_used])
            own = to_breasts(table, member.rule if run.level == "image" else "max")
            by_id = own.set_index("prediction_id")["probability"]
            by_fold.append(by_id.reindex(breasts["prediction_id"]).to_numpy())
            column += 1
        n_finite = np.isfinite(by_fold).sum(axis=0)
        mean = np.nansum(by_fold, axis=0) / np.maximum(n_finite, 1)
        by_member.append(np.where(n_finite > 0, mean, np.nan))
    # Breasts with the same members at a time.
    members = np.array(by_member)
    is_finite = np.isfinite(members)
    probability = np.full(len(breasts), np.nan)
    for pattern in np.unique(is_finite, axis=1).T:
        if pattern.any():
            same = (is_finite == pattern[:, None]).all(axis=0)
            probability[same] = ensemble.combine(members[:, same][pattern], pattern)
    return breasts.assign(probability=probability).loc[np.isfinite(probability)]
