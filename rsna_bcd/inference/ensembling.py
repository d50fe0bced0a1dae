"""From the probabilities of each network to a blend and a decision for each breast.

In the order of the out-of-fold rows that the ensemble was fitted to: images to breasts by each
member's rule, fold by fold; the mean over the folds; the blend; the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.scoring.ensembles import Ensemble
from rsna_bcd.tables.predictions import to_breasts, with_unread
from rsna_bcd.tables.sites import sites_of

if TYPE_CHECKING:  # these need torch, which the processes that decode must not import
    from rsna_bcd.inference.runs import Run
    from rsna_bcd.inference.stream import BreastPrediction, Prediction


def predict_breasts(
    ensemble: Ensemble,
    runs: Sequence[Sequence[Run]],
    images: pd.DataFrame,
    by_image: Sequence[Prediction],
    by_breast: Sequence[BreastPrediction],
) -> pd.DataFrame:
    """Blend and decide the breasts of a table of images.

    Args:
        ensemble: A fitted one.
        runs: Of each of its members, the networks of its folds.
        images: All images of the breasts that are to be answered for, with `site_id` where it is
            known; a breast of an unknown site has the global threshold.
        by_image: From `predict_files`, probabilities in the order of all runs.
        by_breast: Likewise; none where all networks look at images.

    Returns:
        `prediction_id, patient_id, laterality, logit, probability, unread`, then `calibrated` where
        the ensemble calibrates, and `cancer`, 0 or 1. One row a breast of the table, in its order.
        A breast of which nothing could be read has of every member the prior, which a mean leaves
        as it is and `rank_mean` ranks; `calibrated` it is the prior itself, and `cancer` 0.
    """
    blended = _blend(ensemble, runs, images, by_image, by_breast)
    breasts = with_unread(blended, images, ensemble.unread)
    unread = breasts["unread"] == 1
    calibrated = ensemble.calibrate(breasts["probability"], unread)
    if calibrated is not None:
        breasts["calibrated"] = calibrated
    sites = breasts["prediction_id"].map(sites_of(images)).to_numpy(dtype=str)
    breasts["cancer"] = ensemble.decide(breasts["probability"], sites, unread)
    return breasts


def _blend(
    ensemble: Ensemble,
    runs: Sequence[Sequence[Run]],
    images: pd.DataFrame,
    by_image: Sequence[Prediction],
    by_breast: Sequence[BreastPrediction],
) -> pd.DataFrame:
    """The breasts of which something was read.

    Of networks that look at breasts, the probabilities are those of breasts already.
    """
    read = {p.image_id: p.probabilities for p in by_image if p.probabilities is not None}
    rows = images.loc[images["image_id"].isin(read.keys())]
    n_runs = sum(map(len, runs))
    of_image = np.array([read[i] for i in rows["image_id"]]).reshape(len(rows), n_runs)
    seen = {p.prediction_id: p.probabilities for p in by_breast}
    by_member: list[NDArray[np.float64]] = []
    column = 0
    for member, folds in zip(ensemble.members, runs, strict=True):
        by_fold = []
        for run in folds:
            if run.unit == "image":
                breasts = to_breasts(rows.assign(probability=of_image[:, column]), member.rule)
            else:  # its images all have that of their breast
                own = np.array([seen[breast][column] for breast in rows["prediction_id"]])
                breasts = to_breasts(rows.assign(probability=own), "max")
            by_fold.append(breasts["probability"].to_numpy())
            column += 1
        by_member.append(np.mean(by_fold, axis=0))
    return breasts.assign(probability=ensemble.combine(by_member))
