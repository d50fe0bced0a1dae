"""`python -m rsna_bcd.evaluate`: a submission against the true labels, and a plain baseline."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from rich.table import Table

from rsna_bcd._records import format_override
from rsna_bcd.errors import InputError
from rsna_bcd.files import is_file, parts_sha256, write_file
from rsna_bcd.inference.baselines import fit_tree, intensity_features, predict
from rsna_bcd.inference.run import check_current
from rsna_bcd.reporting.console import make_console
from rsna_bcd.scoring.ensemble import FILE_NAME, read_ensemble
from rsna_bcd.scoring.intervals import Interval, bootstrap_metrics
from rsna_bcd.scoring.metrics import DECISION, RANKING, confusion_matrix
from rsna_bcd.tables.images import read_images, read_table, some, typed, with_our_names
from rsna_bcd.tables.predictions import (
    SUBMISSION_COLUMNS,
    check_submission,
    read_predictions,
    read_submission,
)

_LABELS = "Point solution= at a table with the true labels: prediction_id, cancer."


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score a submission by breast, print the table and write `evaluation.json`.

    Returns:
        The contents of the file: counts, and scores with their intervals.

    Raises:
        InputError: submission, labels or the crops of the baseline are absent or do not match, or
            the labels are all equal.
    """
    folder = Path(cfg.paths.output) / "submissions" / str(cfg.name)
    ensemble_file = Path(cfg.paths.models) / "ensembles" / str(cfg.name) / FILE_NAME
    _check_current(cfg, folder, ensemble_file)
    files = folder / "predictions.csv", folder / "submission.csv"
    for file in files:
        if not file.is_file():
            made = sorted(f.parent.name for f in folder.parent.glob("*/submission.csv"))
            names = f" There are submissions named {', '.join(made)}." if made else ""
            raise InputError(f"{file} does not exist.{names} Make it:\n  {_submit_command(cfg)}")
    solution = _read_solution(Path(cfg.solution))
    if solution["label"].nunique() < 2:
        raise InputError(f"{cfg.solution} has breasts of one class only: nothing can be scored.")
    predictions, submission = read_predictions(files[0]), read_submission(files[1])
    for file, table in zip(files, (predictions, submission), strict=True):
        _check_same_breasts(cfg, solution["prediction_id"], table["prediction_id"], file)
    check_submission(submission, solution)

    ids, labels = solution["prediction_id"], solution["label"].to_numpy()
    rest = {
        "patients": solution["patient_id"].to_numpy(dtype=str),
        "n": cfg.resamples,
        "seed": cfg.seed,
    }
    decisions = submission.set_index("prediction_id")["cancer"].loc[ids]
    probabilities = predictions.set_index("prediction_id")["probability"].loc[ids]
    evaluation: dict[str, Any] = {
        "name": cfg.name,
        "patients": int(solution["patient_id"].nunique()),
        "breasts": len(solution),
        "positives": int(labels.sum()),
        "decisions": asdict(confusion_matrix(labels, decisions)),
        "score": {
            **bootstrap_metrics(RANKING, labels, probabilities, **rest),
            **bootstrap_metrics(DECISION, labels, decisions, **rest),
        },
    }
    if cfg.baseline:
        tree = _baseline(cfg, ensemble_file).reindex(ids)
        evaluation["baseline"] = bootstrap_metrics(RANKING, labels, tree, **rest)
    _show(evaluation)
    text = json.dumps(evaluation, indent=2, default=asdict) + "\n"  # an Interval becomes a dict
    write_file(folder / "evaluation.json", text)
    return evaluation


def _check_current(cfg: DictConfig, folder: Path, file: Path) -> None:
    """Refuse a submission of older networks, or of an older threshold than that in `file`."""
    if not file.is_file():
        return
    check_current(read_ensemble(file), Path(cfg.paths.models))
    summary = folder / "summary.json"
    if not summary.is_file():
        if (folder / "journal.jsonl").is_file():  # outputs of two submissions may be mixed
            raise InputError(
                f"The submission in {folder} is not finished. Finish it:\n  {_submit_command(cfg)}"
            )
        return
    asked = json.loads(summary.read_text(encoding="utf-8")).get("asked", {})
    if asked.get("ensemble") not in (None, parts_sha256(file.read_bytes())):
        raise InputError(
            f"{folder} was predicted before {file} was fitted. Predict again:\n"
            f"  {_submit_command(cfg, 'overwrite=true')}"
        )


def _submit_command(cfg: DictConfig, *overrides: str) -> str:
    """The command that predicts the test set."""
    paths = [f"paths.{k}={format_override(cfg.paths[k])}" for k in ("data", "output", "models")]
    return shlex.join(["python", "-m", "rsna_bcd.submit", f"name={cfg.name}", *paths, *overrides])


def _read_solution(file: Path) -> pd.DataFrame:
    """Read the true labels, such as the `solution.csv` of a synthetic competition.

    Args:
        file: `prediction_id, cancer`, and `patient_id` if known; one or more rows per breast; in
            any form that `read_table` reads.

    Returns:
        `prediction_id, patient_id, label`, one row per breast in order of first appearance. An
        unknown patient is taken from the competition's `<patient_id>_<laterality>`.
    """
    if not is_file(file):
        fault = "is a folder" if file.is_dir() else "does not exist"
        raise InputError(f"{file} {fault}. {_LABELS}")
    table = typed(with_our_names(read_table(file)))
    lacking = [c for c in SUBMISSION_COLUMNS if c not in table]
    if lacking or table.empty:
        lacks = f"the column(s) {', '.join(lacking)}" if lacking else "rows"
        raise InputError(f"{file} lacks {lacks}; it has {', '.join(table.columns)}. {_LABELS}")
    for column in ("prediction_id", "patient_id"):
        absent = table[column].isna() if column in table else pd.Series([])
        if absent.any() and not (column == "patient_id" and absent.all()):
            row = int(absent.to_numpy().argmax()) + 1
            raise InputError(f"{file}: {column} is empty in row {row}. Correct the table.")
    breast, label = table["prediction_id"], pd.to_numeric(table["cancer"], errors="coerce")
    bad = ~label.isin([0, 1])
    if bad.any():
        raise InputError(
            f"{file}: cancer is neither 0 nor 1 for {some(breast[bad])}. Correct the labels."
        )
    patient = breast.str.rsplit("_", n=1).str[0]
    if "patient_id" in table:
        patient = table["patient_id"].fillna(patient)  # where all are empty
    frame = pd.DataFrame(
        {"prediction_id": breast, "patient_id": patient, "label": label.astype("int64")}
    ).drop_duplicates(ignore_index=True)
    twice = frame["prediction_id"].duplicated()
    if twice.any():
        raise InputError(
            f"{file} contradicts itself about {some(frame['prediction_id'][twice])}. Give each "
            "breast one label and one patient."
        )
    return frame


def _check_same_breasts(cfg: DictConfig, labelled: pd.Series, own: pd.Series, file: Path) -> None:
    """Refuse a solution that does not name the breasts of a file of the submission."""
    only = {cfg.solution: labelled[~labelled.isin(own)], file: own[~own.isin(labelled)]}
    parts = [f"only {name} has {some(ids)}" for name, ids in only.items() if len(ids)]
    if parts:
        raise InputError(
            f"{cfg.solution} and {file} name different breasts: {'; '.join(parts)}. Point "
            "solution= at the labels of all breasts of the test set that was predicted, or predict "
            "the test set of these labels with `python -m rsna_bcd.submit "
            f"name={cfg.name} paths.data=... overwrite=true`."
        )


def _baseline(cfg: DictConfig, ensemble_file: Path) -> pd.Series:
    """Probability of each test breast, by a tree on the intensity statistics of its crops."""
    member = read_ensemble(ensemble_file).members[0]
    prepared = Path(cfg.paths.output) / "prepared" / member.dataset / member.crop
    train = read_images(prepared / "train.csv", "train")
    test = read_images(prepared / "test.csv", "test")
    labels = train.drop_duplicates("prediction_id").set_index("prediction_id")["cancer"]
    if labels.nunique() < 2:
        raise InputError(
            f"{prepared / 'train.csv'} has breasts of one class only: there is nothing to fit the "
            "tree to. Leave it out with baseline=false."
        )
    tree = fit_tree(intensity_features(train, prepared), labels, cfg.seed)
    return predict(tree, intensity_features(test, prepared))


def _show(evaluation: dict[str, Any]) -> None:
    """Print the scores of the submission beside the baseline's."""
    title = (
        f"{evaluation['breasts']} breasts of {evaluation['patients']} patients, "
        f"{evaluation['positives']} with cancer"
    )
    score: dict[str, Interval] = evaluation["score"]
    baseline: dict[str, Interval] = evaluation.get("baseline", {})
    table = Table("", f"submission {evaluation['name']}", title=title)
    if baseline:
        table.add_column("tree on intensity statistics")
    for name, interval in score.items():
        others = [str(baseline.get(name, ""))] if baseline else []
        table.add_row(name, str(interval), *others)
    counts = {name.replace("_", " "): n for name, n in evaluation["decisions"].items()}
    table.caption = "value (95 % interval over resampled patients); decisions: " + ", ".join(
        f"{n:.0f} {name}" for name, n in counts.items()
    )
    make_console().print(table, soft_wrap=False)
