"""Folds: the assignment of patients, and its checks.

A fold table has one row per patient: `patient_id` (string), `fold` (0-based). A run with `fold=k`
validates on the patients of fold k and trains on all others.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from sklearn.model_selection import StratifiedGroupKFold

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_csv
from rsna_bcd.tables.delimited import read_own_csv

# How far folds may differ in positive breasts: a patient has up to two, and stays whole.
_SLACK, _SLACK_SHARE = 3, 0.1
_PREDOMINANT = 0.9  # of the breasts of a fold


def stratified(images: pd.DataFrame, *, n_folds: int, seed: int) -> pd.DataFrame:
    """Split patients so that folds agree in prevalence and in the share of each site.

    Breasts are stratified by label and site (`site_id`, where the table has it) and never separated
    from their patient's other breast.

    Args:
        images: a table from `read_images`.
        n_folds: at least 2.
        seed: of the shuffle.

    Raises:
        InputError: fewer patients than folds, fewer breasts of any label (and site) than folds, or
            folds that came out with different prevalences.
    """
    breasts = images.drop_duplicates(["patient_id", "laterality"])
    n_patients = breasts["patient_id"].nunique()
    if not 2 <= n_folds <= n_patients:
        raise InputError(
            f"{n_patients} patient(s) cannot be split into {n_folds} folds. "
            f"Set folds.assign.n_folds between 2 and {n_patients}."
        )
    site = breasts["site_id"].astype("string").fillna("") if "site_id" in breasts else ""
    strata = breasts["cancer"].astype("string") + "|" + site
    most = strata.value_counts().max()
    if most < n_folds:
        each = "label and site" if "site_id" in breasts else "label"
        raise InputError(
            f"No {each} has more than {most} breast(s): too few for {n_folds} folds. Set "
            "folds.assign.n_folds lower, or add patients."
        )
    splitter = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    fold = np.full(len(breasts), -1)
    with warnings.catch_warnings():  # strata rarer than folds: the summary shows the result
        warnings.filterwarnings("ignore", message="The least populated class")
        for k, (_, held_out) in enumerate(
            splitter.split(breasts, strata, groups=breasts["patient_id"])
        ):
            fold[held_out] = k
    positives = breasts["cancer"].groupby(fold).sum()
    if positives.max() - positives.min() > max(_SLACK, _SLACK_SHARE * positives.mean()):
        raise InputError(
            f"The folds have {positives.tolist()} positive breasts: not the same prevalence. "
            "Choose another folds.assign.seed, or fewer folds."
        )
    patients = breasts.assign(fold=fold)[["patient_id", "fold"]].drop_duplicates()
    return patients.reset_index(drop=True)


def holdout(
    images: pd.DataFrame, *, fraction: Annotated[float, Field(gt=0, le=0.5)], seed: int
) -> pd.DataFrame:
    """Hold out about `fraction` of the patients, stratified, as fold 0; the rest is fold 1.

    Raises:
        InputError: there are too few patients.
    """
    folds = stratified(images, n_folds=round(1 / fraction), seed=seed)
    return folds.assign(fold=(folds["fold"] > 0).astype(int))


def leave_out(images: pd.DataFrame, *, column: str) -> pd.DataFrame:
    """One fold per value of `column` (`site_id`, `machine_id`), numbered in ascending order.

    A patient with several values (one of the competition's has two machines) goes to the most
    frequent one, whole: no patient is in two folds.

    Raises:
        InputError: the table lacks the column, a value is missing, or there is only one value.
    """
    if column not in images:
        raise InputError(f"The table of images has no column {column!r}: choose other folds=.")
    unknown = images.loc[images[column].isna(), "patient_id"]
    if len(unknown):
        raise InputError(
            f"{column} is missing for {unknown.nunique()} patient(s), {unknown.iloc[0]} among "
            "them. Fill it in, or choose folds=stratified."
        )
    home = images.groupby("patient_id", sort=False)[column].agg(lambda own: own.mode().iloc[0])
    values = np.sort(home.unique())
    if len(values) < 2:
        raise InputError(f"{column} has one value only, {values[0]}: choose other folds=.")
    return pd.DataFrame(
        {"patient_id": home.index.astype("string"), "fold": np.searchsorted(values, home)}
    )


def share_of_patients(images: pd.DataFrame, share: float, key: Sequence[int]) -> pd.Series:
    """Choose a share of the patients with cancer, and the same of those without.

    A smaller share of the same patients and key is part of a larger one.

    Args:
        images: `patient_id, cancer`.
        share: in (0, 1], of each of both, rounded to whole patients.
        key: non-negative integers that the choice depends on.

    Returns:
        Of each row, whether its patient is chosen.
    """
    has_cancer = images.groupby("patient_id")["cancer"].max()
    chosen: list[str] = []
    for cancer in (0, 1):
        patients = has_cancer.index[has_cancer == cancer].to_numpy()
        order = np.random.default_rng([*key, cancer + 1]).permutation(patients)
        chosen += order[: round(share * len(order))].tolist()
    return images["patient_id"].isin(chosen)


def unseen_folds(record: Mapping[str, Any]) -> set[int]:
    """The folds that a run of this record has not learnt from; none for `fold=all`."""
    own = set() if record["fold"] == "all" else {record["fold"]}
    return own | set(record.get("left_out_folds", ()))


def settings_without_fold(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record that the folds of a run have in common.

    A start from the same fold of another run, or from all patients, counts as the same; the
    teachers of each fold are its own, and count by their settings.
    """
    settings = copy.deepcopy(dict(record))
    settings.pop("rsna_bcd", None)  # the version
    fold = settings.pop("fold", None)
    for key in ("teachers", "sha256"):
        settings.get("distillation", {}).pop(key, None)
    for run in settings.get("starts_from", []):
        if run["fold"] in (fold, "all"):
            run["fold"] = "the same"
    for section in (settings, settings.get("network", {})):
        file = section.get("checkpoint_path")
        if file is not None:
            for one in (fold, "all"):
                file = file.replace(f"/fold{one}/", "/fold*/")
            section["checkpoint_path"] = file
    return settings


def check_folds(images: pd.DataFrame, folds: pd.DataFrame) -> None:
    """Assert that every patient of the table is in exactly one fold.

    Raises:
        InputError: a patient twice, or a patient of `images` without a fold.
    """
    twice = folds["patient_id"][folds["patient_id"].duplicated()]
    if len(twice):
        raise InputError(f"Patient {twice.iloc[0]} is in two folds. Make the folds again.")
    absent = images.loc[~images["patient_id"].isin(folds["patient_id"]), "patient_id"]
    if len(absent):
        raise InputError(
            f"{absent.nunique()} patient(s) have no fold, {absent.iloc[0]} among them: the folds "
            "were made from another table. Run prepare again with overwrite_folds=true."
        )


def fold_summary(images: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """Summarise each fold.

    Returns:
        One row per fold, ascending: `fold, patients, breasts, images, positive_breasts,
        prevalence` (positive breasts / breasts), `sites` (`site: breasts`) where known, and
        `machine` where the folds are of one machine each.
    """
    merged = images.merge(folds, on="patient_id", validate="many_to_one")
    breasts = merged.drop_duplicates(["patient_id", "laterality"]).groupby("fold")
    summary = pd.DataFrame(
        {
            "patients": merged.groupby("fold")["patient_id"].nunique(),
            "breasts": breasts.size(),
            "images": merged.groupby("fold").size(),
            "positive_breasts": breasts["cancer"].sum(),
            "prevalence": breasts["cancer"].mean(),
        }
    )
    if "site_id" in merged:
        summary["sites"] = breasts["site_id"].agg(
            lambda site: ", ".join(f"{s}: {n}" for s, n in site.value_counts().sort_index().items())
        )
    if "machine_id" in merged:
        machine = breasts["machine_id"].agg(_predominant)
        if machine.notna().all() and machine.is_unique and len(machine) > 1:
            summary["machine"] = machine
    return summary.reset_index()


def save_folds(csv: Path, folds: pd.DataFrame, *, overwrite: bool) -> None:
    """Write the fold table, unless another one is there: trained runs depend on it.

    Raises:
        InputError: the file holds other folds and not `overwrite`.
    """
    if csv.exists() and not overwrite:
        existing = read_folds(csv)
        if not existing.equals(folds.reset_index(drop=True)):
            raise InputError(
                f"{csv} holds other folds, and runs may have been trained on them. Give yours a "
                "name of their own (folds.strategy=...), or replace them with overwrite_folds=true."
            )
        return
    write_csv(folds, csv)  # runs of several crops may write it at once


def read_folds(csv: Path) -> pd.DataFrame:
    """Read a fold table: `patient_id` (string), `fold` (int64).

    Raises:
        InputError: the file is absent or lacks a column.
    """
    if not csv.is_file():
        raise InputError(f"{csv} does not exist. `python -m rsna_bcd.prepare` makes it.")
    folds = read_own_csv(csv, ["patient_id"])
    if list(folds.columns) != ["patient_id", "fold"]:
        raise InputError(
            f"{csv} has the columns {', '.join(folds.columns)} instead of patient_id, fold. "
            "Run prepare again with overwrite_folds=true."
        )
    return folds


def _predominant(values: pd.Series) -> object:
    """The value of nearly all, or None: the odd patient has been at two machines."""
    shares = values.value_counts(normalize=True, dropna=False)
    return shares.index[0] if shares.iloc[0] > _PREDOMINANT else None
