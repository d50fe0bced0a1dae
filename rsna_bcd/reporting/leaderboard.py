"""Compare runs: their scores, with intervals of the differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.cross_fitting import cross_fitted_decisions, patient_groups
from rsna_bcd.scoring.intervals import Difference, Interval, bootstrap_interval, paired_difference
from rsna_bcd.scoring.metrics import RANKING, pf1
from rsna_bcd.scoring.thresholds import BestPf1
from rsna_bcd.tables.predictions import read_run, trained_folds

METRICS = (*RANKING, "pf1")  # pF1 of cross-fitted decisions


@dataclass(frozen=True)
class Result:
    """Score of a run on its finished folds."""

    name: str
    folds: tuple[int, ...]
    breasts: int
    positives: int
    optimistic: bool  # whether the epochs were chosen on the folds they are scored on
    score: Interval
    shared: int  # breasts that the reference has as well
    difference: Difference | None  # from the reference, on those; None where it is undefined


@dataclass(frozen=True)
class Ranking:
    """Runs by score."""

    metric: str
    reference: str  # the run that the differences are from
    results: tuple[Result, ...]  # the best first
    remarks: Mapping[str, str]  # by run, why it cannot be scored or compared


@dataclass(frozen=True)
class Scoring:
    """How runs are scored.

    Intervals and differences of pF1 take the cross-fitted decisions as given: no threshold is
    fitted again in a resample, so they leave out the uncertainty of the thresholds.

    Attributes:
        metric: of `METRICS`.
        groups: of patients; for pF1, each is decided by the threshold of the others.
        resamples: of the patients, for intervals.
        seed: of the groups and the resamples.
    """

    metric: str
    groups: int
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InputError(f"metric={self.metric}: choose {', '.join(METRICS)}.")

    def score(self, rows: pd.DataFrame) -> Interval:
        """The score of out-of-fold predictions."""
        metric, y, p = RANKING.get(self.metric, pf1), rows["label"], self._scored(rows)
        return bootstrap_interval(metric, y, p, _patients(rows), self.resamples, self.seed)

    def difference(self, first: pd.DataFrame, second: pd.DataFrame) -> Difference | None:
        """How much higher the second scores on the same rows; None where that is undefined."""
        try:
            p, other = self._scored(second), self._scored(first)
        except InputError:  # too few rows for a threshold
            return None
        metric, y = RANKING.get(self.metric, pf1), first["label"]
        return paired_difference(metric, y, other, p, _patients(first), self.resamples, self.seed)

    def _scored(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """Probabilities, or cross-fitted decisions for pF1."""
        probabilities = rows["probability"].to_numpy(np.float64)
        if self.metric in RANKING:
            return probabilities
        labels, patients = rows["label"].to_numpy(), _patients(rows)
        groups = patient_groups(labels, patients, self.groups, self.seed)
        decisions = cross_fitted_decisions(labels, probabilities, patients, BestPf1(), groups)
        return decisions.astype(np.float64)


def finished_runs(runs: Path, pattern: str = "*") -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Pool the finished folds of every run below a folder.

    Args:
        runs: `<output>/runs`.
        pattern: of the names, `*` and `?` as in a shell.

    Returns:
        The rows of the finished folds by run, and by run the reason why folds are left out.
    """
    tables: dict[str, pd.DataFrame] = {}
    remarks: dict[str, str] = {}
    for run in sorted(runs.glob(pattern)):
        if run.name.startswith(".") or not any(run.glob("fold*/config.yaml")):
            continue  # files of launchers beside the runs
        started = trained_folds(run)
        folds = [k for k in started if (run / f"fold{k}" / "metrics.json").is_file()]
        if left := [str(k) for k in started if k not in folds]:
            remarks[run.name] = f"fold {', '.join(left)} not finished"
        if not started:
            remarks[run.name] = "holds out nothing (fold=all)"
        if folds:
            try:
                tables[run.name] = read_run(run, folds)
            except InputError as error:
                remarks[run.name] = str(error)
    return tables, remarks


def rank(
    tables: Mapping[str, pd.DataFrame], scoring: Scoring, reference: str, optimistic: Sequence[str]
) -> Ranking:
    """Score runs, and compare each with the reference on the breasts that both have.

    Args:
        tables: out-of-fold predictions by run.
        scoring: metric and resampling.
        reference: one of the runs; the best where it is absent or cannot be scored.
        optimistic: runs that chose their epochs on the folds they are scored on.
    """
    scores: dict[str, Interval] = {}
    remarks: dict[str, str] = {}
    for name, rows in tables.items():
        try:
            scores[name] = scoring.score(rows)
        except InputError as error:
            remarks[name] = str(error)
    # Undefined scores (no positives) come last.
    order = sorted(scores, key=lambda name: -np.nan_to_num(scores[name].value, nan=-1.0))
    if reference not in scores:
        reference = order[0] if order else ""
    results = []
    for name in order:
        rows = tables[name]
        theirs, ours = _shared(tables[reference], rows)
        differing = int((theirs["label"] != ours["label"]).sum())
        if differing:
            remarks[name] = f"labels differ from {reference}'s for {differing} breasts"
        comparable = name != reference and not differing and ours["label"].nunique() == 2
        results.append(
            Result(
                name=name,
                folds=tuple(sorted(int(fold) for fold in rows["fold"].unique())),
                breasts=len(rows),
                positives=int(rows["label"].sum()),
                optimistic=name in optimistic,
                score=scores[name],
                shared=len(ours),
                difference=scoring.difference(theirs, ours) if comparable else None,
            )
        )
    return Ranking(scoring.metric, reference, tuple(results), remarks)


def _shared(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of both about the same breasts, in the same order."""
    both = first[["prediction_id"]].merge(second["prediction_id"])["prediction_id"]
    return tuple(  # type: ignore[return-value]
        rows.set_index("prediction_id").loc[both].reset_index() for rows in (first, second)
    )


def _patients(rows: pd.DataFrame) -> NDArray[np.str_]:
    return rows["patient_id"].to_numpy(dtype=str)


def leaderboard_table(ranking: Ranking, most: int) -> Table:
    """Lay out at most `most` rows; names are folded where the screen is narrow."""
    title = "pf1, cross-fitted, decisions as given" if ranking.metric == "pf1" else ranking.metric
    results = ranking.results
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False,
        title=f"{title} (95 % interval), and its difference from {ranking.reference}",
    )  # fmt: skip
    table.add_column("run", overflow="fold")
    for heading in ("folds", "breasts"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in (ranking.metric, "difference"):
        table.add_column(heading, no_wrap=True)
    table.add_column("p", no_wrap=True, min_width=4)
    for result in results[:most]:
        difference, p_value = "", ""
        if result.difference is not None:
            difference = _estimate(result.difference)
            p_value = _digits(result.difference.p_value)
            if result.shared < result.breasts:
                difference += f" of {result.shared}"
        elif result.name != ranking.reference:
            why = "labels differ" if result.name in ranking.remarks else "undefined"
            difference = why if result.shared else "no breast in common"
        name = result.name + (" *" if result.optimistic else "")
        counts = str(len(result.folds)), str(result.breasts)
        table.add_row(name, *counts, _estimate(result.score), difference, p_value)
    if len(results) > most:
        table.caption = f"and {len(results) - most} more: most={len(results)}, or csv=FILE"
    return table


def _estimate(interval: Interval) -> str:
    value, low, high = map(_digits, (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"


def _digits(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)  # of a number in [-1, 1]


def leaderboard_frame(ranking: Ranking) -> pd.DataFrame:
    """One row per run, for a file."""
    return pd.DataFrame(
        {
            "run": result.name,
            "folds": " ".join(map(str, result.folds)),
            "breasts": result.breasts,
            "positives": result.positives,
            "optimistic": int(result.optimistic),
            "value": result.score.value,
            "low": result.score.low,
            "high": result.score.high,
            "shared_breasts": result.shared,
            "difference": getattr(result.difference, "value", None),
            "difference_low": getattr(result.difference, "low", None),
            "difference_high": getattr(result.difference, "high", None),
            "p_value": getattr(result.difference, "p_value", None),
        }
        for result in ranking.results
    )
