"""Tables of predictions: per image, per breast, of several runs, and submissions.

A breast is one `prediction_id`. Its probability is the mean or the maximum over its images.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.metrics import Aggregation, logit
from rsna_bcd.tables.delimited import read_own_csv
from rsna_bcd.tables.images import some

_BREAST_COLUMNS = ("prediction_id", "patient_id", "laterality", "fold", "label")
# `unread` is 1 where no image of the breast was readable: its probability is the prevalence.
OOF_COLUMNS = (*_BREAST_COLUMNS, "logit", "probability", "unread")
OOF_IMAGE_COLUMNS = ("image_id", *OOF_COLUMNS[:-1])
# Of an ensemble. `probability` is the blend's, to which the threshold applies; `held_out` and
# `decision` are cross-fitted: by models of the other groups. `ranking` is `held_out`, or the rank
# within the group where each group has a blend of its own. `calibrated`, also cross-fitted, follows
# where the ensemble calibrates.
ENSEMBLE_OOF_COLUMNS = (*OOF_COLUMNS, "held_out", "ranking", "group", "decision")
PREDICTION_COLUMNS = ("prediction_id", "probability")
SUBMISSION_COLUMNS = ("prediction_id", "cancer")

_IDENTIFIERS = ("prediction_id", "patient_id", "image_id")
_RUN_AGAIN = "Run the stage that writes it again."
_ROUNDING = 1e-6  # probabilities that differ by less are equal


def to_breasts(images: pd.DataFrame, aggregation: Aggregation) -> pd.DataFrame:
    """Aggregate predictions per image to predictions per breast.

    Args:
        images: one row per readable image: `prediction_id, patient_id, laterality, probability`,
            and `fold`, `label` where they are known.
        aggregation: of the probabilities of a breast's images.

    Returns:
        One row per breast in order of first appearance: `OOF_COLUMNS`, less `fold` and `label`
        where the images have none. `logit` is that of the aggregated probability, `unread` 0.

    Raises:
        InputError: a probability outside [0, 1], images of one breast that disagree about patient,
            laterality, fold or label.
    """
    _check_probabilities(images, "The predictions by image")
    own = [c for c in _BREAST_COLUMNS[1:] if c in images.columns]
    breasts = images.groupby("prediction_id", sort=False)
    for column in own:
        conflict = breasts[column].nunique() != 1
        if conflict.any():
            raise InputError(
                f"Images of one breast differ in {column}: {some(conflict.index[conflict])}. "
                "Correct the table of images."
            )
    frame = breasts[own].first()
    frame["probability"] = breasts["probability"].agg(aggregation)
    frame = frame.reset_index().assign(unread=0)
    frame["logit"] = logit(frame["probability"])
    return frame[[c for c in OOF_COLUMNS if c in frame.columns]]


def with_unreadable(
    breasts: pd.DataFrame, expected: pd.DataFrame, prevalence: float
) -> pd.DataFrame:
    """Add the expected breasts without a readable image, with the prevalence as probability.

    Args:
        breasts: from `to_breasts`.
        expected: one or more rows per breast: `prediction_id, patient_id, ...`.
        prevalence: in [0, 1].

    Returns:
        The columns of `breasts`, one row per expected breast, in their order.

    Raises:
        InputError: `breasts` holds one that is not expected.
    """
    unknown = ~breasts["prediction_id"].isin(expected["prediction_id"])
    if unknown.any():
        raise InputError(
            "There are predictions of breasts that the table lacks: "
            f"{some(breasts['prediction_id'][unknown])}. They were made from another table."
        )
    own = [c for c in _BREAST_COLUMNS if c in breasts.columns]
    frame = expected[own].drop_duplicates("prediction_id").reset_index(drop=True)
    rows = frame[["prediction_id"]].merge(breasts, on="prediction_id", how="left", validate="1:1")
    frame["probability"] = rows["probability"].fillna(prevalence)
    frame["logit"] = logit(frame["probability"])
    frame["unread"] = rows["probability"].isna().astype("int64")
    return frame[list(breasts.columns)]


def read_oof(csv: Path) -> pd.DataFrame:
    """Read an `oof.csv`: `OOF_COLUMNS`, one row per breast, identifiers as strings.

    Raises:
        InputError: the file is absent, lacks a column or rows, names a breast twice, or holds a
            label other than 0 and 1 or a probability outside [0, 1]; so for the readers below.
    """
    return _read_predictions(csv, OOF_COLUMNS)


def read_ensemble_oof(csv: Path) -> pd.DataFrame:
    """Read an ensemble's `oof.csv`: `ENSEMBLE_OOF_COLUMNS`, and `calibrated` if it is there."""
    return _read_predictions(csv, ENSEMBLE_OOF_COLUMNS, ("held_out", "ranking"), ("calibrated",))


def read_oof_images(csv: Path) -> pd.DataFrame:
    """Read an `oof_images.csv`: `OOF_IMAGE_COLUMNS`, one row per image."""
    return _read_predictions(csv, OOF_IMAGE_COLUMNS)


def read_predictions(csv: Path) -> pd.DataFrame:
    """Read a `predictions.csv`: `prediction_id, probability`, one row per breast."""
    return _read_predictions(csv, PREDICTION_COLUMNS)


def read_submission(csv: Path) -> pd.DataFrame:
    """Read a `submission.csv`, `prediction_id, cancer`; `check_submission` validates it."""
    return _read(csv, SUBMISSION_COLUMNS)


def check_submission(submission: pd.DataFrame, sample: pd.DataFrame) -> None:
    """Assert that a `submission.csv` has the breasts of `sample`, in any order, and is valid.

    Raises:
        InputError: other columns, a prediction_id that is missing, unknown or repeated, or a value
            that is not a finite number in [0, 1].
    """
    if tuple(submission.columns) != SUBMISSION_COLUMNS:
        raise InputError(
            f"The submission has the columns {', '.join(submission.columns)} instead of "
            f"{', '.join(SUBMISSION_COLUMNS)}."
        )
    ids, wanted = submission["prediction_id"].astype("string"), sample["prediction_id"]
    wanted = wanted.astype("string").drop_duplicates()
    for fault, bad in (
        ("names breasts twice", ids[ids.duplicated()]),
        ("lacks breasts", wanted[~wanted.isin(ids)]),
        ("names unexpected breasts", ids[~ids.isin(wanted)]),
    ):
        if len(bad):
            raise InputError(f"The submission {fault}: {some(bad)}. Submit again from test.csv.")
    _check_probabilities(submission, "The submission", "cancer")


def trained_folds(run: Path) -> list[int]:
    """The folds of a run that have a folder, ascending, without `fold=all`.

    One that has lost its `config.yaml` is among them, so that `read_run` reports it; one with none
    of the files of a training, such as Hydra leaves of a refused command, is not.
    """
    files = "config.yaml", "checkpoints", "oof.csv", "metrics.json"
    folders = {path.parent for name in files for path in run.glob(f"fold*/{name}")}
    names = [folder.name.removeprefix("fold") for folder in folders]
    return sorted(int(name) for name in names if name.isdecimal())


def read_run(run: Path, folds: Sequence[int] | None = None) -> pd.DataFrame:
    """Pool the rows of the folds' `oof.csv` of a run, `<output>/runs/<name>`: one per breast.

    `folds` of None takes all that were started.

    Raises:
        InputError: the run or a fold is absent or unfinished, or a breast is in two folds.
    """
    wanted = trained_folds(run) if folds is None else list(folds)
    if not wanted:
        raise InputError(f"{run} holds no trained fold. {_train_command(run.name, 0)}")
    tables = []
    for fold in wanted:
        folder = run / f"fold{fold}"
        train = _train_command(run.name, fold)
        if folder.is_dir() and not (folder / "config.yaml").is_file():
            raise InputError(
                f"{folder} has no config.yaml: fold {fold} of {run.name} was never trained, or its "
                f"record was lost. {train} Or delete the folder, to leave it out."
            )
        if not (folder / "metrics.json").is_file():  # training writes it last
            state = "is not finished" if folder.is_dir() else "was not trained"
            raise InputError(
                f"Fold {fold} of {run.name} {state}: there is no {folder / 'metrics.json'}. {train}"
            )
        tables.append(read_oof(folder / "oof.csv"))
    pooled = pd.concat(tables, ignore_index=True)
    repeated = pooled["prediction_id"].duplicated()
    if repeated.any():
        raise InputError(
            f"Run {run.name} predicts breasts in two folds: "
            f"{some(pooled['prediction_id'][repeated])}. Its folds come from different splits: "
            "train them again on one."
        )
    return pooled


def align(runs: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Put the predictions of several runs (tables from `read_run`) side by side.

    Returns:
        The first run's rows, and the probabilities of all runs for them: (runs, breasts).

    Raises:
        InputError: a run lacks breasts that another has, or has another label for one.
    """
    names = list(runs)
    first = runs[names[0]]
    all_rows = pd.concat([table[["prediction_id", "fold"]] for table in runs.values()])
    probabilities = []
    for name, table in runs.items():
        lacking = all_rows[~all_rows["prediction_id"].isin(table["prediction_id"])]
        lacking = lacking.drop_duplicates("prediction_id")
        if len(lacking):
            absent = sorted(set(lacking["fold"]) - set(table["fold"]))
            remedy = "Train all of them on one split and one table of images."
            raise InputError(
                f"Run {name} lacks {len(lacking)} of the breasts that the others have: "
                f"{some(lacking['prediction_id'])}. "
                f"{_train_command(name, *absent) if absent else remedy}"
            )
        rows = table.set_index("prediction_id").loc[first["prediction_id"]]
        differs = rows["label"].to_numpy() != first["label"].to_numpy()
        if differs.any():
            raise InputError(
                f"Runs {names[0]} and {name} have different labels for "
                f"{some(first['prediction_id'][differs])}. They come from different tables."
            )
        probabilities.append(rows["probability"].to_numpy(dtype=np.float64))
    return first, np.stack(probabilities)


def check_informative(run: str, oof: pd.DataFrame) -> None:
    """Refuse a run with a fold that an ensemble cannot be fitted on.

    Raises:
        InputError: a fold has no readable breast, none of these has cancer, or all of their
            probabilities are equal.
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
                "read: no threshold can be fitted. Assign the folds again (folds=stratified) and "
                "train on them."
            )
        if np.ptp(read["probability"].to_numpy()) < _ROUNDING:
            raise InputError(
                f"All {len(read)} probabilities of fold {fold} of {run} equal "
                f"{read['probability'].iloc[0]:g}: the network did not learn. Train it longer or "
                "again."
            )


def by_aggregation(run: Path, oof: pd.DataFrame, own: Aggregation) -> dict[Aggregation, pd.Series]:
    """A run's probabilities per breast under each aggregation of its images.

    Args:
        run: `<output>/runs/<name>`.
        oof: from `read_run`.
        own: the aggregation that made `oof`.

    Returns:
        Probabilities indexed by `prediction_id`: under `own` first, as they are in `oof`, then
        under the other one. A breast-level network has one probability per breast, and so its own
        alone. An unreadable breast keeps the prevalence.

    Raises:
        InputError: a fold's `oof_images.csv` is absent while another has it, lacks images, or does
            not belong to `oof`.
    """
    breasts = oof.set_index("prediction_id")["probability"]
    files = [run / f"fold{fold}" / "oof_images.csv" for fold in oof["fold"].unique()]
    if not any(file.is_file() for file in files):
        return {own: breasts}
    images = pd.concat([read_oof_images(file) for file in files], ignore_index=True)
    other: Aggregation = "max" if own == "mean" else "mean"
    same, instead = (
        to_breasts(images, how).set_index("prediction_id")["probability"].reindex(breasts.index)
        for how in (own, other)
    )
    read = oof.set_index("prediction_id")["unread"] == 0
    differs = read & ~((same - breasts).abs() <= _ROUNDING)  # so does NaN, without images
    if differs.any():
        raise InputError(
            f"The images in oof_images.csv of {run.name} do not give the probabilities in its "
            f"oof.csv for {some(breasts.index[differs])}. Train this run again."
        )
    return {own: breasts, other: instead.where(read, breasts)}


def _read_predictions(
    csv: Path,
    columns: tuple[str, ...],
    scores: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Read a table of this package and check its rows, labels and probabilities."""
    frame = _read(csv, columns)
    present = [c for c in optional if c in frame.columns]
    frame = frame[[*columns, *present]]
    _check_unique(frame, csv)
    if "label" in columns:
        _check_labels(frame, csv)
    for column in ("probability", *scores, *present):
        _check_probabilities(frame, str(csv), column)
    return frame


def _read(csv: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV that has `columns`, and maybe more, and at least one row."""
    if not csv.is_file():
        raise InputError(f"{csv} does not exist. {_RUN_AGAIN}")
    try:
        frame = read_own_csv(csv, _IDENTIFIERS)
    except pd.errors.EmptyDataError:
        raise InputError(f"{csv} is empty. {_RUN_AGAIN}") from None
    missing = [c for c in columns if c not in frame.columns]
    if missing or frame.empty:
        lacks = f"the column(s) {', '.join(missing)}" if missing else "rows"
        raise InputError(f"{csv} lacks {lacks}. {_RUN_AGAIN}")
    return frame


def _check_unique(frame: pd.DataFrame, csv: Path) -> None:
    key, rows = ("image_id", "images") if "image_id" in frame else ("prediction_id", "breasts")
    twice = frame[key].duplicated()
    if twice.any():
        raise InputError(f"{csv} names {rows} twice: {some(frame[key][twice])}. {_RUN_AGAIN}")


def _check_labels(frame: pd.DataFrame, csv: Path) -> None:
    bad = ~frame["label"].isin([0, 1])
    if bad.any():
        raise InputError(
            f"{csv}: a label is neither 0 nor 1 for {some(frame.prediction_id[bad])}. {_RUN_AGAIN}"
        )


def _check_probabilities(frame: pd.DataFrame, name: str, column: str = "probability") -> None:
    value = pd.to_numeric(frame[column], errors="coerce")
    bad = ~value.between(0, 1)  # NaN and infinities are not
    if bad.any():
        raise InputError(
            f"{name}: {column} is not a number in [0, 1] for {some(frame['prediction_id'][bad])} "
            f"(the first is {frame[column][bad].iloc[0]}). A network that diverged gives such "
            "values: train it again with a smaller learning rate."
        )


def _train_command(name: str, *folds: int) -> str:
    multirun = " -m" if len(folds) > 1 else ""
    arguments = f"name={name} fold={','.join(map(str, folds))}{multirun}"
    return f"Run `python -m rsna_bcd.train experiment=... {arguments}`."
