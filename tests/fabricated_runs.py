"""Runs that were never trained, for the stages that read what training leaves."""

from pathlib import Path

import numpy as np
import pandas as pd

from rsna_bcd._stage import write_record
from rsna_bcd.tables.predictions import OOF_COLUMNS, logit, write_csv

SETTINGS = {
    "dataset": {"name": "rsna"},
    "crop": {"name": "h512"},
    "breast_rule": "mean",
    "select": "last",
}


def oof(patients: range, fold: int, seed: int = 0, skill: float = 0.3) -> pd.DataFrame:
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
