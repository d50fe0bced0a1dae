"""`python -m rsna_bcd.evaluate`: a submission against the true labels, and a plain baseline."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from rich.table import Table

from rsna_bcd.errors import InputError
from rsna_bcd.files import parts_sha256, write_file
from rsna_bcd.inference.baselines import fit_tree, intensity_features, predict
from rsna_bcd.inference.run import check_current
from rsna_bcd.reporting.console import make_console
from rsna_bcd.scoring.ensemble import FILE_NAME, read_ensemble
from rsna_bcd.scoring.intervals import Interval, bootstrap_metrics
from rsna_bcd.scoring.metrics import DECISION, RANKING, confusion_matrix
from rsna_bcd.tables.images import read_images
from rsna_bcd.tables.predictions import (
    check_submission,
    read_predictions,
    read_solution,
    read_submission,
)


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
    solution = read_solution(Path(cfg.solution))
    if solution["label"].nunique() < 2:
        raise InputError(f"{cfg.solution} has breasts of one class only: nothing can be scored.")
    predictions = read_predictions(folder / "predictions.csv").set_index("prediction_id")
    submission = read_submission(folder / "submission.csv")
    check_submission(submission, solution)
    check_submission(predictions["probability"].rename("cancer").reset_index(), solution)

    ids, labels = solution["prediction_id"], solution["label"].to_numpy()
    rest = {
        "patients": solution["patient_id"].to_numpy(dtype=str),
        "n": cfg.resamples,
        "seed": cfg.seed,
    }
    decisions = submission.set_index("prediction_id")["cancer"].loc[ids]
    evaluation: dict[str, Any] = {
        "name": cfg.name,
        "patients": int(solution["patient_id"].nunique()),
        "breasts": len(solution),
        "positives": int(labels.sum()),
        "decisions": asdict(confusion_matrix(labels, decisions)),
        "score": {
            **bootstrap_metrics(RANKING, labels, predictions["probability"].loc[ids], **rest),
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
        return
    asked = json.loads(summary.read_text(encoding="utf-8")).get("asked", {})
    if asked.get("ensemble") not in (None, parts_sha256(file.read_bytes())):
        raise InputError(
            f"{folder} was predicted before {file} was fitted. Predict again:\n"
            f"  python -m rsna_bcd.submit name={cfg.name} paths.output={cfg.paths.output}"
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
