"""The tables of a synthetic competition, with the statistics of the real `train.csv`."""

from typing import Any

import numpy as np
import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.phantom.scanner import MACHINES, Machine
from rsna_bcd.tables.images import TEST_COLUMNS, TRAIN_COLUMNS

# Views of a breast -> number of breasts. Rarer combinations are left out, but AT, LM, ML and LMO
# each occur once.
_VIEWS = {
    ("CC", "MLO"): 18384,
    ("CC", "MLO", "MLO"): 2659,
    ("CC", "CC", "MLO"): 1606,
    ("CC", "CC", "MLO", "MLO"): 795,
    ("CC", "CC", "MLO", "MLO", "MLO"): 161,
    ("CC", "CC", "CC", "MLO", "MLO"): 71,
    ("CC", "CC", "CC", "MLO", "MLO", "MLO"): 46,
    ("CC", "CC", "CC", "MLO"): 44,
    ("AT", "CC", "MLO"): 19,
    ("CC", "LM", "MLO"): 10,
    ("CC", "ML", "MLO"): 8,
    ("CC", "LMO", "MLO"): 1,
}
_DENSITIES = {"A": 0.105, "B": 0.430, "C": 0.413, "D": 0.052}
_PATIENT_IDS = range(5, 65536)
_MISSING_AGE = 8 / 11913
_IMPLANT = 0.058  # patients of site 1
_INVASIVE = {1: 171 / 254, 2: 178 / 238}  # share of the cancers, by site
INVASIVE_SHARE = 349 / 492  # at both sites together
# Negative breasts by site: (biopsy, BIRADS or none, count)
_NEGATIVES: dict[int, tuple[tuple[int, float, int], ...]] = {
    1: ((1, 0.0, 662), (0, 0.0, 1302), (0, 1.0, 6280), (0, 2.0, 850), (0, np.nan, 2288)),
    2: ((1, np.nan, 60), (0, 0.0, 1257), (0, np.nan, 10635)),
}


def sample_images(
    train_patients: int, test_patients: int, prevalence: float, seed: int
) -> pd.DataFrame:
    """Draw patients, breasts and images.

    Args:
        train_patients: number of patients with labels.
        test_patients: number of patients without.
        prevalence: share of breasts with cancer, in both parts; 0.021 in the real competition.
        seed: of everything.

    Returns:
        One row per image, patients in ascending order within each split. Columns: `split`, those of
        `train.csv`, `prediction_id`, and `parenchyma`, the density also where the tables lack it.

    Raises:
        InputError: more patients than there are identifiers.
    """
    rng = np.random.default_rng([seed, 0])
    total = train_patients + test_patients
    if total > len(_PATIENT_IDS):
        raise InputError(f"size: {total} patients. Choose at most {len(_PATIENT_IDS)} in all.")
    patient_ids = rng.choice(_PATIENT_IDS, total, replace=False)
    rows: list[dict[str, Any]] = []
    for split, ids in (
        ("train", np.sort(patient_ids[:train_patients])),
        ("test", np.sort(patient_ids[train_patients:])),
    ):
        cancers = np.zeros(2 * len(ids), int)
        count = round(prevalence * len(cancers))  # the exact prevalence
        cancers[rng.choice(len(cancers), count, replace=False)] = 1
        machines = _machines(len(ids), rng)
        for patient_id, machine, cancer in zip(ids, machines, cancers.reshape(-1, 2), strict=True):
            rows += _patient_rows(split, int(patient_id), machine, cancer, rng)
    frame = pd.DataFrame(rows)
    image_ids = rng.choice(2**31 - 1 - 68491, len(frame), replace=False) + 68491
    frame["image_id"] = image_ids.astype(int)
    return frame[["split", *TRAIN_COLUMNS, "prediction_id", "parenchyma"]]


def competition_tables(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Make the tables of a competition folder, by file name.

    `solution.csv` has the labels of the test set: one row per test breast.
    """
    train = frame[frame["split"] == "train"]
    test = frame[frame["split"] == "test"]
    breasts = test.drop_duplicates("prediction_id")
    labels = ["patient_id", "laterality", "biopsy", "invasive", "BIRADS", "difficult_negative_case"]
    sample = breasts[["prediction_id"]].assign(cancer=round(float(train["cancer"].mean()), 3))
    return {
        "train.csv": train[list(TRAIN_COLUMNS)],
        "test.csv": test[list(TEST_COLUMNS)],
        "sample_submission.csv": sample,
        "solution.csv": breasts[["prediction_id", "cancer", *labels, "parenchyma"]].rename(
            columns={"parenchyma": "density"}
        ),
    }


def _machines(n_patients: int, rng: np.random.Generator) -> list[Machine]:
    """Give each patient a machine: the real shares, but each machine once if there is room."""
    machines = list(MACHINES.values())
    share = np.array([machine.patients for machine in machines], float)
    once = machines if n_patients >= len(machines) else []
    drawn = rng.choice(len(machines), n_patients - len(once), p=share / share.sum())
    given = [*once, *(machines[i] for i in drawn)]
    return [given[i] for i in rng.permutation(n_patients)]


def _patient_rows(
    split: str, patient_id: int, machine: Machine, cancer: np.ndarray, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The rows of one patient's images."""
    site = machine.site_id
    # Ages of women without and with cancer: 58.5 and 63.4 years, standard deviation 9.9.
    age = float(np.clip(np.rint(rng.normal(63.4 if cancer.any() else 58.5, 9.9)), 26, 89))
    density = str(rng.choice(list(_DENSITIES), p=list(_DENSITIES.values())))
    implant = int(site == 1 and rng.random() < _IMPLANT)
    age = np.nan if rng.random() < _MISSING_AGE else age
    patient = {
        "split": split, "site_id": site, "patient_id": patient_id, "age": age, "implant": implant,
        "density": density if site == 1 else np.nan, "machine_id": machine.machine_id,
        "parenchyma": density,
    }  # fmt: skip
    rows = []
    counts = np.array(list(_VIEWS.values()), float)
    for laterality, positive in zip(("L", "R"), cancer, strict=True):
        breast = {"laterality": laterality, "prediction_id": f"{patient_id}_{laterality}"}
        breast |= _labels(site, int(positive), rng)
        views = list(_VIEWS)[rng.choice(len(counts), p=counts / counts.sum())]
        for view in rng.permutation(views):  # the order in which they were taken
            rows.append(patient | breast | {"view": str(view)})
    return rows


def _labels(site: int, cancer: int, rng: np.random.Generator) -> dict[str, Any]:
    """Draw the labels of a breast; every cancer was biopsied."""
    if cancer:
        invasive = int(rng.random() < _INVASIVE[site])
        birads = 0.0 if site == 1 else np.nan
        return {"cancer": 1, "biopsy": 1, "invasive": invasive, "BIRADS": birads,
                "difficult_negative_case": False}  # fmt: skip
    kinds = _NEGATIVES[site]
    counts = np.array([count for *_, count in kinds], float)
    biopsy, birads, _ = kinds[rng.choice(len(kinds), p=counts / counts.sum())]
    return {"cancer": 0, "biopsy": biopsy, "invasive": 0, "BIRADS": birads,
            "difficult_negative_case": biopsy == 1 or birads == 0}  # fmt: skip
