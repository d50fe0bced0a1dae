"""Tables of predictions: by image, by breast, and what may be submitted.

A breast is one `prediction_id`. Its probability is the mean or the maximum of those of its images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.tables.delimited import read_own_csv

Rule = Literal["mean", "max"]

# `unread` is 1 where no image of the breast could be read, so that its probability is the prior.
OOF_COLUMNS = (
    "prediction_id", "patient_id", "laterality", "fold", "label", "logit", "probability", "unread",
)  # fmt: skip
OOF_IMAGE_COLUMNS = ("image_id", *OOF_COLUMNS[:-1])
# Of an ensemble. `probability` is that of the blend, to which the threshold applies; `held_out` and
# `decision` are by what was fitted on the patients of other groups: honest. `ranking` is
# `held_out`, or, where every group has a blend and so a scale of its own, the rank by it: scores of
# the order of all rows are those of `ranking`. `calibrated`, also by other groups, follows where
# the ensemble calibrates.
ENSEMBLE_OOF_COLUMNS = (*OOF_COLUMNS, "held_out", "ranking", "group", "decision")
PREDICTION_COLUMNS = ("prediction_id", "probability")
SUBMISSION_COLUMNS = ("prediction_id", "cancer")

# float32 probabilities reach exactly 0 and 1; their logits must stay finite (16.1 at this margin).
LOGIT_MARGIN = 1e-7

_IDENTIFIERS = ("prediction_id", "patient_id", "image_id")
_OF_BREAST = ("patient_id", "laterality", "fold", "label")
_RUN_AGAIN = "Run the stage that writes it again."
_CONSTANT = 1e-6  # probabilities that differ by less differ by rounding
_EQUAL = 1e-6  # between a breast's probability and that of its images, each written in full
_SHOWN = 5  # offending rows named in a message


def logit(probability: pd.Series) -> pd.Series:
    """log(p / (1 - p)), with p kept 1e-7 away from 0 and 1."""
    p = probability.astype("float64").clip(LOGIT_MARGIN, 1 - LOGIT_MARGIN)
    return pd.Series(np.log(p / (1 - p)), index=probability.index)


def to_breasts(images: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """Reduce predictions by image to predictions by breast.

    Args:
        images: One row an image that was read: `prediction_id, patient_id, laterality,
            probability`, and `fold`, `label` where they are known.
        rule: What becomes of the probabilities of a breast's images.

    Returns:
        One row a breast in order of first appearance, the columns of `OOF_COLUMNS` (less `fold` and
        `label` where the images have none), with `logit` computed anew and `unread` 0.

    Raises:
        InputError: a probability that is not finite or not in [0, 1], images of one breast that
            disagree about patient, laterality, fold or label, or an unknown rule.
    """
    if rule not in get_args(Rule):
        raise InputError(
            f"The rule from images to a breast is {' or '.join(get_args(Rule))}, not {rule!r}."
        )
    _check_probabilities(images, "The predictions by image")
    own = [c for c in _OF_BREAST if c in images.columns]
    breasts = images.groupby("prediction_id", sort=False)
    for column in own:
        conflict = breasts[column].nunique() != 1
        if conflict.any():
            raise InputError(
                f"Images of one breast differ in {column}: {_some(conflict.index[conflict])}. "
                "Make the table of images agree with itself."
            )
    frame = breasts[own].first()
    frame["probability"] = breasts["probability"].agg(rule)
    frame = frame.reset_index().assign(unread=0)
    frame["logit"] = logit(frame["probability"])
    return frame[[c for c in OOF_COLUMNS if c in frame.columns]]


def with_unreadable(breasts: pd.DataFrame, expected: pd.DataFrame, prior: float) -> pd.DataFrame:
    """Give breasts of which no image could be read the prior, and mark them.

    Args:
        breasts: From `to_breasts`.
        expected: One or more rows for each breast that must be answered for, with the columns of
            `breasts` that belong to a breast (`prediction_id, patient_id, ...`).
        prior: Probability of a breast about which nothing is known: the prevalence.

    Returns:
        One row for each expected breast, in their order, with the columns of `breasts`.

    Raises:
        InputError: `breasts` holds one that is not expected.
    """
    unknown = ~breasts["prediction_id"].isin(expected["prediction_id"])
    if unknown.any():
        raise InputError(
            "There are predictions of breasts that the table lacks: "
            f"{_some(breasts['prediction_id'][unknown])}. They were made from another table."
        )
    own = ["prediction_id", *(c for c in _OF_BREAST if c in breasts.columns)]
    frame = expected[own].drop_duplicates("prediction_id").reset_index(drop=True)
    rows = frame[["prediction_id"]].merge(breasts, on="prediction_id", how="left", validate="1:1")
    unread = rows["probability"].isna()
    frame["probability"] = rows["probability"].fillna(prior)
    frame["logit"] = logit(frame["probability"])
    frame["unread"] = unread.astype("int64")
    return frame[list(breasts.columns)]


def read_oof(csv: Path) -> pd.DataFrame:
    """Read an `oof.csv`: `OOF_COLUMNS`, one row a breast, identifiers as strings.

    Raises:
        InputError: the file is absent, lacks a column or rows, names a breast twice, or holds a
            label other than 0 and 1 or a probability that is not in [0, 1].
    """
    frame = _read(csv, OOF_COLUMNS, _RUN_AGAIN)[list(OOF_COLUMNS)]
    _check_once(frame, csv, _RUN_AGAIN)
    _check_labels(frame, csv, _RUN_AGAIN)
    _check_probabilities(frame, str(csv))
    return frame


def read_ensemble_oof(csv: Path) -> pd.DataFrame:
    """Read an ensemble's `oof.csv`: `ENSEMBLE_OOF_COLUMNS` and, where it is, `calibrated`.

    Raises:
        InputError: as `read_oof`.
    """
    frame = _read(csv, ENSEMBLE_OOF_COLUMNS, _RUN_AGAIN)
    optional = [c for c in ("calibrated",) if c in frame.columns]
    frame = frame[[*ENSEMBLE_OOF_COLUMNS, *optional]]
    _check_once(frame, csv, _RUN_AGAIN)
    _check_labels(frame, csv, _RUN_AGAIN)
    for column in ("probability", "held_out", "ranking", *optional):
        _check_probabilities(frame, str(csv), column)
    return frame


def read_oof_images(csv: Path) -> pd.DataFrame:
    """Read an `oof_images.csv`: `OOF_IMAGE_COLUMNS`, one row an image, identifiers as strings.

    Raises:
        InputError: the file is absent, lacks a column or rows, names an image twice, or holds a
            label other than 0 and 1 or a probability that is not in [0, 1].
    """
    frame = _read(csv, OOF_IMAGE_COLUMNS, _RUN_AGAIN)[list(OOF_IMAGE_COLUMNS)]
    _check_once(frame, csv, _RUN_AGAIN, "image_id")
    _check_labels(frame, csv, _RUN_AGAIN)
    _check_probabilities(frame, str(csv))
    return frame


def read_predictions(csv: Path) -> pd.DataFrame:
    """Read a `predictions.csv`: `prediction_id, probability`, one row a breast.

    Raises:
        InputError: as `read_oof`.
    """
    frame = _read(csv, PREDICTION_COLUMNS, _RUN_AGAIN)[list(PREDICTION_COLUMNS)]
    _check_once(frame, csv, _RUN_AGAIN)
    _check_probabilities(frame, str(csv))
    return frame


def read_submission(csv: Path) -> pd.DataFrame:
    """Read a `submission.csv`, `prediction_id, cancer`; `check_submission` says if it is valid.

    Raises:
        InputError: the file is absent, or lacks a column or rows.
    """
    return _read(csv, SUBMISSION_COLUMNS, _RUN_AGAIN)


def read_solution(csv: Path) -> pd.DataFrame:
    """Read the true labels of a test set, such as the `solution.csv` of a synthetic competition.

    Args:
        csv: `prediction_id, cancer`, and `patient_id` if it is known; one or more rows a breast.

    Returns:
        `prediction_id, patient_id, label`, one row a breast in order of first appearance. Without a
        `patient_id` it is taken from the competition's `<patient_id>_<laterality>`.

    Raises:
        InputError: the file is absent, lacks a column or rows, holds a label other than 0 and 1, or
            labels that contradict each other within a breast.
    """
    frame = _read(csv, SUBMISSION_COLUMNS, "Point solution= at a table with the true labels.")
    if "patient_id" not in frame:
        frame["patient_id"] = frame["prediction_id"].str.rsplit("_", n=1).str[0]
    frame = frame.rename(columns={"cancer": "label"})[["prediction_id", "patient_id", "label"]]
    _check_labels(frame, csv, "Correct the labels.")
    frame = frame.drop_duplicates(ignore_index=True)
    _check_once(frame, csv, "Give each breast one label and one patient.")
    return frame


def check_submission(submission: pd.DataFrame, sample: pd.DataFrame) -> None:
    """Assert what the competition asks of `submission.csv`.

    Args:
        submission: `prediction_id, cancer`, in any order of rows.
        sample: The competition's `sample_submission.csv`, or any table with its `prediction_id`.

    Raises:
        InputError: other columns, a prediction_id that is missing, unknown or there twice, or a
            value that is not a finite number in [0, 1].
    """
    if tuple(submission.columns) != SUBMISSION_COLUMNS:
        raise InputError(
            f"The submission has the columns {', '.join(submission.columns)} instead of "
            f"{', '.join(SUBMISSION_COLUMNS)}."
        )
    ids, wanted = submission["prediction_id"].astype("string"), sample["prediction_id"]
    wanted = wanted.astype("string").drop_duplicates()
    for what, bad in (
        ("names breasts twice", ids[ids.duplicated()]),
        ("lacks breasts", wanted[~wanted.isin(ids)]),
        ("names breasts that nobody asked for", ids[~ids.isin(wanted)]),
    ):
        if len(bad):
            raise InputError(f"The submission {what}: {_some(bad)}. Submit again from test.csv.")
    _check_probabilities(submission, "The submission", "cancer")


def _read(csv: Path, columns: tuple[str, ...], remedy: str) -> pd.DataFrame:
    """Read a CSV that has `columns`, and maybe more, and at least one row."""
    if not csv.is_file():
        raise InputError(f"{csv} does not exist. {remedy}")
    try:
        frame = read_own_csv(csv, _IDENTIFIERS)
    except pd.errors.EmptyDataError:
        raise InputError(f"{csv} is empty. {remedy}") from None
    missing = [c for c in columns if c not in frame.columns]
    if missing or frame.empty:
        lacks = f"the column(s) {', '.join(missing)}" if missing else "rows"
        raise InputError(f"{csv} lacks {lacks}. {remedy}")
    return frame


def _check_once(
    frame: pd.DataFrame, csv: Path, remedy: str, identifier: str = "prediction_id"
) -> None:
    twice = frame[identifier].duplicated()
    if twice.any():
        what = "images" if identifier == "image_id" else "breasts"
        raise InputError(f"{csv} names {what} twice: {_some(frame[identifier][twice])}. {remedy}")


def _check_labels(frame: pd.DataFrame, csv: Path, remedy: str) -> None:
    bad = ~frame["label"].isin([0, 1])
    if bad.any():
        raise InputError(
            f"{csv}: a label is neither 0 nor 1 for {_some(frame.prediction_id[bad])}. {remedy}"
        )


def _check_probabilities(frame: pd.DataFrame, name: str, column: str = "probability") -> None:
    value = pd.to_numeric(frame[column], errors="coerce")
    bad = ~value.between(0, 1)  # NaN and infinities are not
    if bad.any():
        raise InputError(
            f"{name}: {column} is not a number in [0, 1] for {_some(frame['prediction_id'][bad])} "
            f"(the first is {frame[column][bad].iloc[0]}). A network that diverged gives such "
            "values: train it again with a smaller learning rate."
        )


def _some(ids: pd.Series | pd.Index) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(map(str, ids[:_SHOWN])) + more


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


def by_aggregation(run: Path, oof: pd.DataFrame, own: Rule) -> dict[Rule, pd.Series]:
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
