"""The out-of-fold predictions of whole runs, and of several runs about the same breasts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.tables.predictions import read_oof

_SHOWN = 5  # breasts named in a message


def trained_folds(run: Path) -> list[int]:
    """The folds of a run that were started, ascending; `fold=all` has no out-of-fold rows.

    A folder without `config.yaml` is none: training was refused there.
    """
    return sorted(
        int(number)
        for record in run.glob("fold*/config.yaml")
        if (number := record.parent.name.removeprefix("fold")).isdecimal()
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
        if not (folder / "metrics.json").is_file():  # what training writes last
            started = folder.is_dir()
            state = "is not finished" if started else "was not trained"
            raise InputError(
                f"Fold {fold} of {run.name} {state}: there is no {folder / 'metrics.json'}. "
                f"{_train(run.name, fold, resume=started)}"
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


def _train(name: str, *folds: int, resume: bool = False) -> str:
    arguments = f"name={name} fold={','.join(map(str, folds))}"
    arguments += " -m" if len(folds) > 1 else ""
    arguments += " resume=true" if resume else ""
    return f"Run `python -m rsna_bcd.train experiment=... {arguments}`."


def _some(ids: pd.Series) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(map(str, ids[:_SHOWN])) + more
