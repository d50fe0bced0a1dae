"""The tables of a synthetic competition: patients, breasts, images, with the real ones' statistics.

All shares were counted in the competition's `train.csv`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.phantom.machines import MACHINES, Machine
from rsna_bcd.tables.images import TEST_COLUMNS, TRAIN_COLUMNS

# Views of a breast and how many breasts have them; what is rarer is left out but for AT, LM, ML and
# LMO, of which each is once.
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


@dataclass(frozen=True)
class Size:
    """How large a competition, and how many cancers.

    Attributes:
        train_patients: patients with labels.
        test_patients: patients without.
        prevalence: share of breasts with cancer, in both parts. It is 0.021 in reality.
    """

    train_patients: int
    test_patients: int
    prevalence: float

    def __post_init__(self) -> None:
        """Refuse what is no competition."""
        total = self.train_patients + self.test_patients
        enough = min(self.train_patients, self.test_patients) >= 1
        if not (enough and total <= len(_PATIENT_IDS) and 0 <= self.prevalence <= 1):
            raise InputError(
                f"size: {self.train_patients} training and {self.test_patients} test patients, "
                f"prevalence {self.prevalence}. Ask for at least one patient in each part, "
                f"{len(_PATIENT_IDS)} in all at most, and a prevalence in [0, 1]."
            )


def plan(size: Size, seed: int) -> pd.DataFrame:
    """Draw the tables.

    Args:
        size: of the competition.
        seed: of everything.

    Returns:
        One row an image, patients in ascending order within each split. Columns: `split`, those of
        `train.csv`, `prediction_id`, and `parenchyma`, the density also where the tables hide it.
    """
    rng = np.random.default_rng([seed, 0])
    total = size.train_patients + size.test_patients
    patient_ids = rng.choice(_PATIENT_IDS, total, replace=False)
    rows: list[dict[str, Any]] = []
    for split, ids in (
        ("train", np.sort(patient_ids[: size.train_patients])),
        ("test", np.sort(patient_ids[size.train_patients :])),
    ):
        cancers = _cancers(len(ids), size.prevalence, rng)
        machines = _machines(len(ids), rng)
        for patient_id, machine, cancer in zip(ids, machines, cancers, strict=True):
            rows += _patient(split, int(patient_id), machine, cancer, rng)
    frame = pd.DataFrame(rows)
    image_ids = rng.choice(2**31 - 1 - 68491, len(frame), replace=False) + 68491
    frame["image_id"] = image_ids.astype(int)
    return frame[["split", *TRAIN_COLUMNS, "prediction_id", "parenchyma"]]


def tables(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Split a plan into the files of a competition folder, file name to table.

    `solution.csv` has what the competition keeps to itself: one row a test breast.
    """
    train = frame[frame["split"] == "train"]
    test = frame[frame["split"] == "test"]
    breasts = test.drop_duplicates("prediction_id")
    hidden = ["patient_id", "laterality", "biopsy", "invasive", "BIRADS", "difficult_negative_case"]
    sample = breasts[["prediction_id"]].assign(cancer=round(float(train["cancer"].mean()), 3))
    return {
        "train.csv": train[list(TRAIN_COLUMNS)],
        "test.csv": test[list(TEST_COLUMNS)],
        "sample_submission.csv": sample,
        "solution.csv": breasts[["prediction_id", "cancer", *hidden, "parenchyma"]].rename(
            columns={"parenchyma": "density"}
        ),
    }


def _cancers(n_patients: int, prevalence: float, rng: np.random.Generator) -> np.ndarray:
    """Say which breasts have cancer, (n_patients, 2) of 0 or 1, the exact share of them."""
    cancers = np.zeros(2 * n_patients, int)
    count = round(prevalence * 2 * n_patients)
    cancers[rng.choice(2 * n_patients, count, replace=False)] = 1
    return cancers.reshape(n_patients, 2)


def _machines(n_patients: int, rng: np.random.Generator) -> list[Machine]:
    """Give each patient a machine: the real shares, but each machine once if there is room."""
    machines = list(MACHINES.values())
    share = np.array([machine.patients for machine in machines], float)
    once = machines if n_patients >= len(machines) else []
    drawn = rng.choice(len(machines), n_patients - len(once), p=share / share.sum())
    given = [*once, *(machines[i] for i in drawn)]
    return [given[i] for i in rng.permutation(n_patients)]


def _patient(
    split: str, patient_id: int, machine: Machine, cancer: np.ndarray, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Rows of one patient."""
    site = machine.site_id
    # Ages of women without and with cancer: 58.5 and 63.4 years, standard deviation 9.9.
    age = float(np.clip(np.rint(rng.normal(63.4 if cancer.any() else 58.5, 9.9)), 26, 89))
    density = str(rng.choice(list(_DENSITIES), p=list(_DENSITIES.values())))
    implant = int(site == 1 and rng.random() < _IMPLANT)
    age = np.nan if rng.random() < _MISSING_AGE else age
    rows = []
    for laterality, positive in zip(("L", "R"), cancer, strict=True):
        labels = _labels(site, int(positive), rng)
        for view in _views(rng):
            rows.append(
                {
                    "split": split,
                    "site_id": site,
                    "patient_id": patient_id,
                    "laterality": laterality,
                    "view": view,
                    "age": age,
                    **labels,
                    "implant": implant,
                    "density": density if site == 1 else np.nan,
                    "machine_id": machine.machine_id,
                    "prediction_id": f"{patient_id}_{laterality}",
                    "parenchyma": density,
                }
            )
    return rows


def _views(rng: np.random.Generator) -> list[str]:
    """Views of one breast in the order in which they were taken."""
    counts = np.array(list(_VIEWS.values()), float)
    views = list(_VIEWS)[rng.choice(len(counts), p=counts / counts.sum())]
    return [str(view) for view in rng.permutation(views)]


def _labels(site: int, cancer: int, rng: np.random.Generator) -> dict[str, Any]:
    """What is known of a breast in hindsight; every cancer was biopsied."""
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
