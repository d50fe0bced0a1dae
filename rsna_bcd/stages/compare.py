"""`python -m rsna_bcd.compare`: rank all runs by score, or compare some on the same breasts."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_csv, write_file
from rsna_bcd.reporting.console import make_console
from rsna_bcd.reporting.leaderboard import (
    Scoring,
    finished_runs,
    leaderboard_frame,
    leaderboard_table,
    rank,
)
from rsna_bcd.scoring.cross_fitting import cross_fitted_decisions, patient_groups
from rsna_bcd.scoring.intervals import Score, bootstrap_scores, paired_difference
from rsna_bcd.scoring.metrics import RANKING, pf1
from rsna_bcd.scoring.thresholds import BestPf1
from rsna_bcd.tables.predictions import align, read_run, trained_folds

_BASELINE = "baseline"  # the default reference of differences


def compare(cfg: DictConfig) -> dict[str, Any]:
    """Score runs: a list of them on the folds that all have, or all that match, each on its own.

    pF1 is that of decisions whose threshold was fitted on other patients, the same groups of them
    for every run. Its intervals and differences take these decisions as given: no threshold is
    fitted again in a resample, so they leave out the uncertainty of the thresholds.

    Raises:
        InputError: a run of a list is absent or unfinished, or the runs hold different breasts; or
            no run matches; or `reference` is given with a list, or `fold` without one.
    """
    if OmegaConf.is_list(cfg.runs):
        if cfg.reference is not None:
            raise InputError(
                f"reference={cfg.reference} is for all runs or a pattern. The first run of a list "
                "is its reference: put it first."
            )
        return _side_by_side(cfg)
    if cfg.fold is not None:
        raise InputError(
            f"fold={cfg.fold} is for a list of runs, such as runs=[a,b]. Of all runs or a pattern, "
            "each is scored on the folds that it has finished."
        )
    return _overview(cfg)


def _overview(cfg: DictConfig) -> dict[str, Any]:
    """Rank all runs that match the pattern; unfinished ones are listed.

    Returns:
        `metric`, `reference`, and `runs`, the rows of `reporting.leaderboard.leaderboard_frame`.
    """
    runs = Path(cfg.paths.output) / "runs"
    pattern = "*" if cfg.runs is None else str(cfg.runs)
    scoring = Scoring(cfg.metric, cfg.groups, cfg.resamples, cfg.seed)
    tables, remarks = finished_runs(runs, pattern)
    if cfg.reference is not None:  # it need not match the pattern
        tables |= finished_runs(runs, cfg.reference)[0]
    if not tables or cfg.reference not in (None, *tables):
        wanted = f"reference={cfg.reference}" if tables else f"runs={pattern}"
        found = "".join(f"\n  {name}: {why}" for name, why in remarks.items())
        raise InputError(f"{runs} has no run with a finished fold for {wanted}.{found}")
    ranking = rank(tables, scoring, cfg.reference or _BASELINE, _optimistic(runs, tables))
    for name, why in ranking.remarks.items():
        remarks[name] = f"{remarks[name]}; {why}" if name in remarks else why
    console = make_console()
    console.print(leaderboard_table(ranking, cfg.most), soft_wrap=False)
    if any(result.optimistic for result in ranking.results):
        console.print("* optimistic: kept the best epoch on the fold it is scored on (select=best)")
    for name, why in remarks.items():
        console.print(f"{name}: {why}")
    frame = leaderboard_frame(ranking)
    listed = json.loads(frame.to_json(orient="records", double_precision=15))  # NaN is no JSON
    result = {
        "metric": cfg.metric,
        "reference": ranking.reference,
        "runs": listed,
        "not_counted": remarks,
    }
    _write(result, frame, cfg)
    return result


def _optimistic(runs: Path, tables: Mapping[str, Any]) -> list[str]:
    """Runs that chose their epochs on the folds they are scored on."""
    return [
        name
        for name, rows in tables.items()
        if any(
            json.loads((runs / name / f"fold{fold}" / "metrics.json").read_text()).get("optimistic")
            for fold in rows["fold"].unique()
        )
    ]


def _side_by_side(cfg: DictConfig) -> dict[str, Any]:
    """Score runs on the folds that all of them have, and the others against the first.

    Returns:
        `folds`, `breasts`, `positives`, and for each run its `score` and, but for the first, its
        `difference` from the first.
    """
    names = [str(name) for name in cfg.runs]
    if not names or len(set(names)) < len(names):
        raise InputError(f"runs={cfg.runs} must be a list of different runs, such as runs=[a,b].")
    runs = Path(cfg.paths.output) / "runs"
    folds = _folds(cfg, {name: runs / name for name in names})
    rows, aligned = align({name: read_run(runs / name, folds) for name in names})
    probabilities = list(aligned)
    labels = rows["label"].to_numpy()
    patients = rows["patient_id"].to_numpy(dtype=str)
    rest = {"patients": patients, "n": cfg.resamples, "seed": cfg.seed}
    groups = patient_groups(labels, patients, cfg.groups, cfg.seed)
    decisions = [
        cross_fitted_decisions(labels, p, patients, BestPf1(), groups) for p in probabilities
    ]
    metrics = {key: (metric, probabilities) for key, metric in RANKING.items()}
    metrics["pf1"] = pf1, decisions
    compared: dict[str, Any] = {}
    for i, name in enumerate(names):
        scores = {key: Score(metric, values[i]) for key, (metric, values) in metrics.items()}
        compared[name] = {"score": bootstrap_scores(scores, labels, **rest)}
        if i > 0:
            compared[name]["difference"] = {
                key: paired_difference(metric, labels, values[0], values[i], **rest)
                for key, (metric, values) in metrics.items()
            }
    comparison = {
        "folds": folds,
        "breasts": len(rows),
        "positives": int(labels.sum()),
        "runs": compared,
    }
    _show(comparison)
    _write(comparison, _frame(compared), cfg)
    return comparison


def _frame(compared: Mapping[str, Any]) -> pd.DataFrame:
    """One row per run and score, for a file."""
    return pd.DataFrame(
        {
            "run": name,
            "metric": metric,
            **asdict(interval),
            "difference": getattr(difference, "value", None),
            "difference_low": getattr(difference, "low", None),
            "difference_high": getattr(difference, "high", None),
            "p_value": getattr(difference, "p_value", None),
        }
        for name, run in compared.items()
        for metric, interval in run["score"].items()
        for difference in [run.get("difference", {}).get(metric)]
    )


def _write(result: dict[str, Any], frame: pd.DataFrame, cfg: DictConfig) -> None:
    if cfg.csv is not None:
        write_csv(frame, Path(cfg.csv))
    if cfg.json is not None:
        text = json.dumps(result, indent=2, default=asdict) + "\n"  # intervals become dicts
        write_file(Path(cfg.json), text)


def _folds(cfg: DictConfig, runs: Mapping[str, Path]) -> list[int]:
    """The folds of the settings, or those that every run has."""
    if cfg.fold is not None:
        return list(cfg.fold) if OmegaConf.is_list(cfg.fold) else [cfg.fold]
    trained = {name: set(trained_folds(run)) for name, run in runs.items()}
    shared = sorted(set.intersection(*trained.values()))
    if not shared:
        have = "; ".join(f"{name} has {sorted(folds)}" for name, folds in trained.items())
        raise InputError(f"No fold was trained in all runs: {have}. Train one in all of them.")
    return shared


def _show(comparison: dict[str, Any]) -> None:
    """Print one row per run and score."""
    title = (
        f"{comparison['breasts']} breasts of fold {', '.join(map(str, comparison['folds']))}, "
        f"{comparison['positives']} with cancer"
    )
    first = next(iter(comparison["runs"]))
    headings = ("", "value (95 % interval)", f"difference from {first}", "p")
    caption = "pf1: decisions as given, thresholds not fitted again in the resamples"
    # Fits into 80 columns.
    table = Table(*headings, title=title, caption=caption, box=SIMPLE, pad_edge=False)
    for name, run in comparison["runs"].items():
        table.add_row(Text(name, style="bold"))
        for metric, interval in run["score"].items():
            row = ["pf1, cross-fitted" if metric == "pf1" else metric, str(interval)]
            if "difference" in run:
                difference = run["difference"][metric]
                row += [str(difference), f"{difference.p_value:.3f}"]
            table.add_row(*row)
        table.add_section()
    make_console().print(table, soft_wrap=False)
