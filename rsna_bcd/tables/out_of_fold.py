"""The out-of-fold predictions of whole runs, and of several runs about the same breasts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.tables.predictions import Rule, read_oof, read_oof_images, to_breasts

_SHOWN = 5  # breasts named in a message
_CONSTANT = 1e-6  # probabilities that differ by less differ by rounding
_EQUAL = 1e-6  # between a breast's probability and that of its images, each written in full


def trained_folds(run: Path) -> list[int]:
    """The folds of a run that have a folder, ascending; `fold=all` has no out-of-fold rows.

    One without `config.yaml` is among them: whether its training was refused or its record was
    lost, whoever pools the run must hear of it.
    """
    return sorted(
        int(number)
        for folder in run.glob("fold*")
        if folder.is_dir() and (number := folder.name.removeprefix("fold")).isdecimal()
    )


def read_run(run: Path, folds: Sequence[int] | None = None) -> pd.DataFrame:
    """Pool the out-of-fold predictions of a run.

    Args:
        run: `<output>/runs/<name>`.
        folds: Which of its folds; None takes all that were started.

    Returns:
        The rows of the folds' `oof.csv`, fold after fold: one a breast.

    Raises:
        InputError: the run or a fold is absent or unfinished, or a breast is in two folds.
    """
    wanted = trained_folds(run) if folds is None else list(folds)
    if not wanted:
        raise InputError(f"{run} holds no trained fold. {_train(run.name, 0)}")
    tables = []
    for fold in wanted:
        folder = run / f"fold{fold}"
        if folder.is_dir() and not (folder / "config.yaml").is_file():
            raise InputError(
                f"{folder} has no config.yaml: fold {fold} of {run.name} was never trained, or its "
                f"record was lost. {_train(run.name, fold)} Or delete the folder, to leave it out."
            )
        if not (folder / "metrics.json").is_file():  # what training writes last
            state = "is not finished" if folder.is_dir() else "was not trained"
            raise InputError(
                f"Fold {fold} of {run.name} {state}: there is no {folder / 'metrics.json'}. "
                f"{_train(run.name, fold)}"
            )
        tables.append(read_oof(folder / "oof.csv"))
    pooled = pd.concat(tables, ignore_index=True)
    twice = pooled["prediction_id"][pooled["prediction_id"].duplicated()]
    if len(twice):
        raise InputError(
            f"Run {run.name} predicts breasts in two folds: {_some(twice)}. Its folds come from "
            "different splits: train them again on one."
        )
    return pooled


def align(runs: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Put the predictions of several runs side by side.

    Args:
        runs: For each name a table from `read_run`.

    Returns:
        The first run's rows, and the probabilities of all runs for them: (runs, breasts).

    Raises:
        InputError: a run lacks breasts that another has, or has another label for one.
    """
    names = list(runs)
    first = runs[names[0]]
    everything = pd.concat([table[["prediction_id", "fold"]] for table in runs.values()])
    for name, table in runs.items():
        lacking = everything[~everything["prediction_id"].isin(table["prediction_id"])]
        lacking = lacking.drop_duplicates("prediction_id")
        if len(lacking):
            absent = sorted(set(lacking["fold"]) - set(table["fold"]))
            remedy = (
                _train(name, *absent)
                if absent
                else "Train all of them on one split and one table of images."
            )
            raise InputError(
                f"Run {name} lacks {len(lacking)} of the breasts that the others have: "
                f"{_some(lacking['prediction_id'])}. {remedy}"
            )
    columns = []
    for name, table in runs.items():
        rows = table.set_index("prediction_id").loc[first["prediction_id"]]
        differs = rows["label"].to_numpy() != first["label"].to_numpy()
        if differs.any():
            raise InputError(
                f"Runs {names[0]} and {name} have different labels for "
                f"{_some(first['prediction_id'][differs])}. They come from different tables."
            )
        columns.append(rows["probability"].to_numpy(dtype=np.float64))
    return first, np.stack(columns)


def check_informative(run: str, oof: pd.DataFrame) -> None:
    """Refuse a run that tells nothing in one of its folds: an ensemble could choose nothing by it.

    Args:
        run: Its name.
        oof: From `read_run`.

    Raises:
        InputError: of the breasts of a fold that were read there are none, or none with cancer, or
            all of their probabilities are equal. The prior of those that were not read is no
            answer of the network's.
    """
    for fold, rows in oof.groupby("fold"):
        read = rows[rows["unread"] == 0]
        if read.empty:
            raise InputError(
                f"None of the {len(rows)} breasts of fold {fold} of {run} could be read. Prepare "
                "its data again, and train this fold again."
            )
        if read["label"].sum() == 0:
            raise InputError(
                f"Fold {fold} of {run} has 0 positive ones among its {len(read)} breasts that were "
                "read: nothing can be chosen by it. Assign the folds anew (folds=stratified) and "
                "train on them."
            )
        if np.ptp(read["probability"].to_numpy()) < _CONSTANT:
            raise InputError(
                f"All {len(read)} probabilities of fold {fold} of {run} equal "
                f"{read['probability'].iloc[0]:g}: its network learnt nothing. Train it longer or "
                "anew."
            )


def under_each_rule(run: Path, oof: pd.DataFrame, own: Rule) -> dict[Rule, pd.Series]:
    """A run's probabilities by breast under each rule from images to a breast.

    Args:
        run: `<output>/runs/<name>`.
        oof: From `read_run`.
        own: The rule that made `oof`.

    Returns:
        Probabilities indexed by `prediction_id`: under `own` first, as they are in `oof`, then
        under the other rule. A network that looks at breasts has one probability a breast, and so
        its own rule alone. A breast that was not read keeps the prior.

    Raises:
        InputError: a fold's `oof_images.csv` is absent while another has it, lacks images, or is
            not what `oof` was made of.
    """
    breasts = oof.set_index("prediction_id")["probability"]
    files = [run / f"fold{fold}" / "oof_images.csv" for fold in oof["fold"].unique()]
    if not any(file.is_file() for file in files):
        return {own: breasts}
    images = pd.concat([read_oof_images(file) for file in files], ignore_index=True)
    other: Rule = "max" if own == "mean" else "mean"
    made, instead = (
        to_breasts(images, rule).set_index("prediction_id")["probability"].reindex(breasts.index)
        for rule in (own, other)
    )
    read = oof.set_index("prediction_id")["unread"] == 0
    odd = read & ~((made - breasts).abs() <= _EQUAL)  # NaN, without images, is odd too
    if odd.any():
        raise InputError(
            f"The images in oof_images.csv of {run.name} do not give the probabilities in its "
            f"oof.csv for {_some(breasts.index[odd])}. Train this run again."
        )
    return {own: breasts, other: instead.where(read, breasts)}


def _train(name: str, *folds: int) -> str:
    arguments = f"name={name} fold={','.join(map(str, folds))}"
    arguments += " -m" if len(folds) > 1 else ""
    return f"Run `python -m rsna_bcd.train experiment=... {arguments}`."


def _some(ids: pd.Series | pd.Index) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(map(str, ids[:_SHOWN])) + more
