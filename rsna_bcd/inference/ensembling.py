"""From the probabilities of each network to a blend and a decision for each breast.

In the order of the out-of-fold rows that the ensemble was fitted to: images to breasts by each
member's rule, fold by fold; the mean over the folds; the blend; the threshold.
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
        ensemble: A fitted one.
        runs: Of each of its members, the networks of its folds.
        images: All images of the breasts that are to be answered for, with `site_id` where it is
            known; a breast of an unknown site has the global threshold.
            Those that `excluded_images` names have no part in their breast.
        by_image: From `predict_files`, probabilities in the order of all runs.
        by_breast: Likewise; none where all networks look at images.
        dropped: Positions of runs that have no say, whatever they said: all breasts are on the
            scale of the same networks.
        expected: The breasts to be answered for, `prediction_id, patient_id, laterality`, if there
            are some without an image; None for those of the table.

    Returns:
        `prediction_id, patient_id, laterality, logit, probability, unread`, then `calibrated` where
        the ensemble calibrates, and `cancer`, 0 or 1. One row a breast, in the order of `expected`
        or of the table. A network that gave a breast no finite value has no part in it. A breast of
        which nothing could be read has of every member the prior, which a mean leaves as it is and
        `rank_mean` ranks; `calibrated` it is the prior itself, and `cancer` 0.
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
    """The breasts of which a network said something."""
    n_runs = sum(map(len, runs))
    read = {p.image_id: p.probabilities for p in by_image if p.probabilities is not None}
    rows = images.loc[images["image_id"].isin(read.keys())]
    rows = rows.loc[~rows["image_id"].isin(excluded_images(rows))]
    of_image = np.array([read[i] for i in rows["image_id"]]).reshape(len(rows), n_runs)
    seen = {p.prediction_id: p.probabilities for p in by_breast}
    nothing = np.full(n_runs, np.nan)
    own = np.array([seen.get(b, nothing) for b in rows["prediction_id"]]).reshape(-1, n_runs)
    breasts = to_breasts(rows.assign(probability=0.0), "max")  # those of whose images one was read
    by_member: list[NDArray[np.float64]] = []
    column = 0
    for member, folds in zip(ensemble.members, runs, strict=True):
        by_fold = []
        for run in folds:
            # The images of a breast all have that of their breast, if the network looks at breasts.
            said = (of_image if run.unit == "image" else own)[:, column]
            finite = np.isfinite(said) & (column not in dropped)
            table = rows[finite].assign(probability=said[finite])
            values = to_breasts(table, member.rule if run.unit == "image" else "max")
            by_id = values.set_index("prediction_id")["probability"]
            by_fold.append(by_id.reindex(breasts["prediction_id"]).to_numpy())
            column += 1
        by_member.append(_mean(np.array(by_fold)))
    probability = _combine(ensemble, np.array(by_member))
    return breasts.assign(probability=probability).loc[np.isfinite(probability)]


def _mean(by_fold: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the folds (F, N) that said something; NaN where none did."""
    said = np.isfinite(by_fold).sum(axis=0)
    return np.where(said > 0, np.nansum(by_fold, axis=0) / np.maximum(said, 1), np.nan)


def _combine(ensemble: Ensemble, by_member: NDArray[np.float64]) -> NDArray[np.float64]:
    """The blend (N,) of the members (M, N) that said something; NaN where none did."""
    said = np.isfinite(by_member)
    blended = np.full(by_member.shape[1], np.nan)
    for pattern in np.unique(said, axis=1).T:
        if pattern.any():
            alike = (said == pattern[:, None]).all(axis=0)
            blended[alike] = ensemble.combine(by_member[:, alike][pattern], pattern)
    return blended
