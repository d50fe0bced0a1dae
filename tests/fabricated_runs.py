"""Runs that were never trained, for the stages that read the files of training."""

from pathlib import Path

import numpy as np
import pandas as pd

from rsna_bcd._records import write_record
from rsna_bcd.files import write_csv
from rsna_bcd.scoring.ensemble import Ensemble, Member
from rsna_bcd.scoring.intervals import Interval
from rsna_bcd.scoring.metrics import logit
from rsna_bcd.scoring.thresholds import Plateau, Threshold
from rsna_bcd.tables.predictions import OOF_COLUMNS, OOF_IMAGE_COLUMNS, to_breasts

SETTINGS = {
    "dataset": {"name": "rsna"}, "crop": {"name": "h512"}, "breast_rule": "mean", "select": "last",
}  # fmt: skip


def oof(patients: range, fold: int | str, seed: int = 0, skill: float = 0.3) -> pd.DataFrame:
    """Left breasts of patients numbered `patients`; every fifth has cancer and scores higher."""
    rng = np.random.default_rng([seed, patients.start])
    ids = [str(patient) for patient in patients]
    frame = pd.DataFrame({"patient_id": ids, "laterality": "L", "fold": fold, "unread": 0})
    frame["prediction_id"] = frame["patient_id"] + "_L"
    frame["label"] = [int(patient % 5 == 0) for patient in patients]
    frame["probability"] = (rng.uniform(0, 0.7, len(ids)) + skill * frame["label"]).clip(0, 1)
    frame["logit"] = logit(frame["probability"])
    return frame[list(OOF_COLUMNS)]


def save_run(run: Path, *tables: pd.DataFrame, **changes: object) -> Path:
    """Write the folds of a run: the tables' `oof.csv`, and the record with `changes`."""
    for table in tables:
        folder = run / f"fold{table['fold'].iloc[0]}"
        write_csv(table, folder / "oof.csv")
        write_record(folder / "config.yaml", {**SETTINGS, **changes})
        (folder / "metrics.json").write_text("{}")
    return run


def oof_images(patients: range, fold: int, seed: int = 0, skill: float = 0.5) -> pd.DataFrame:
    """Four images of each left breast, as `oof_images.csv`; cancer shows in one of them."""
    rng = np.random.default_rng([seed, patients.start])
    breasts = oof(patients, fold, seed).drop(columns=["unread"])
    frame = breasts.loc[breasts.index.repeat(4)].reset_index(drop=True)
    frame["image_id"] = [f"{b}_{i % 4}" for i, b in enumerate(frame["prediction_id"])]
    shown = (np.arange(len(frame)) % 4 == 0) * frame["label"]
    frame["probability"] = (rng.uniform(0, 0.6, len(frame)) + skill * shown).clip(0, 1)
    frame["logit"] = logit(frame["probability"])
    return frame[list(OOF_IMAGE_COLUMNS)]


def save_image_run(run: Path, *tables: pd.DataFrame, **changes: object) -> Path:
    """Write the folds of a run that looks at images, from `oof_images`; its rule is `mean`."""
    save_run(run, *(to_breasts(table, "mean") for table in tables), **changes)
    for table in tables:
        write_csv(table, run / f"fold{table['fold'].iloc[0]}" / "oof_images.csv")
    return run


def fabricated_ensemble(members: tuple[Member, ...], threshold: float, prior: float) -> Ensemble:
    """The ensemble that a fit would have left, with these members, as a mean."""
    score = {"pf1": Interval(0.5, 0.4, 0.6)}
    return Ensemble(
        name="both",
        blend="mean",
        members=members,
        policy="pf1",
        threshold=threshold,
        thresholds=Threshold(threshold, {}, recall_rate=0.1),
        plateau=Plateau(threshold, threshold, threshold, pf1=0.5, standard_error=0.1),
        cross_fitted_thresholds=(threshold, threshold),
        calibration=None,
        prior=prior,
        breasts=7,
        positives=3,
        score={"cross_fitted": score, "in_sample": score, "optimism": 0.0},
    )
