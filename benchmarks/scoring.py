"""Scoring at the competition's size: from image probabilities to intervals of pF1.

    OMP_NUM_THREADS=1 python benchmarks/scoring.py
    OMP_NUM_THREADS=1 python benchmarks/scoring.py image_predictions.csv --json scoring.json

The table by image has `patient_id, laterality, cancer, probability`; without one, as many images as
the competition has are made up. Reading counts, imports do not.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from rsna_bcd.scoring.cross_fitting import EnsembleFitter, Members, patient_groups
from rsna_bcd.scoring.intervals import Score, bootstrap_scores
from rsna_bcd.scoring.metrics import OPERATING, RANKING
from rsna_bcd.scoring.thresholds import BestPf1, operating_points
from rsna_bcd.tables.predictions import to_breasts

PATIENTS, POSITIVES = 11_913, 492  # of the competition; a breast has 2.3 images
IMAGES = 54_706
GROUPS = 5


def made_up(seed: int) -> pd.DataFrame:
    """A table by image of the competition's size."""
    rng = np.random.default_rng(seed)
    breasts = 2 * PATIENTS
    label = np.zeros(breasts, dtype=int)
    label[rng.choice(breasts, POSITIVES, replace=False)] = 1
    score = rng.normal(2.2 * label - 6, 1)
    more = rng.choice(breasts, IMAGES - 2 * breasts)
    breast = np.sort(np.concatenate([np.repeat(np.arange(breasts), 2), more]))
    logits = score[breast] + rng.normal(0, 0.5, IMAGES)
    return pd.DataFrame(
        {
            "patient_id": breast // 2,
            "laterality": np.where(breast % 2, "R", "L"),
            "cancer": label[breast],
            "probability": 1 / (1 + np.exp(-logits)),
        }
    )


class Steps:
    """Seconds of named steps over several rounds."""

    def __init__(self) -> None:
        self.cpu: dict[str, list[float]] = {}
        self.wall: dict[str, list[float]] = {}

    def __call__(self, name: str, step: Callable[[], Any]) -> Any:
        """Run a step."""
        cpu, wall = time.process_time(), time.perf_counter()
        result = step()
        self.cpu.setdefault(name, []).append(time.process_time() - cpu)
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)
        return result


def one_round(steps: Steps, csv: Path | None, resamples: int) -> dict[str, int]:
    """All of the steps once; how many images, breasts and patients there were."""
    images = made_up(0) if csv is None else steps("read", lambda: pd.read_csv(csv))

    def aggregated() -> pd.DataFrame:
        ids = images["patient_id"].astype(str) + "_" + images["laterality"]
        named = images.assign(prediction_id=ids).rename(columns={"cancer": "label"})
        return to_breasts(named, "mean")

    oof = steps("aggregate", aggregated)
    labels, probabilities = oof["label"].to_numpy(), oof["probability"].to_numpy()
    patients = oof["patient_id"].to_numpy()
    case = labels, probabilities, patients
    policy = BestPf1()
    in_sample = steps("threshold", lambda: policy.fit(*case)).decide(probabilities)
    groups = patient_groups(labels, patients, GROUPS, 0)
    fitter = EnsembleFitter("mean", (1.0,), policy)
    members: Members = [{"mean": probabilities}]
    fitted = steps("cross-fit", lambda: fitter.cross_fit(labels, members, patients, groups))

    scores = {name: Score(metric, probabilities) for name, metric in RANKING.items()}
    for kind, made in (("in sample", in_sample), ("cross-fitted", fitted.decisions)):
        scores |= {f"{name}, {kind}": Score(metric, made) for name, metric in OPERATING.items()}
    steps(
        f"bootstrap of {len(scores)} scores",
        lambda: bootstrap_scores(scores, labels, patients, resamples),
    )
    steps(
        f"bootstrap of {len(OPERATING)} scores, thresholds refitted",
        lambda: fitter.intervals(OPERATING, labels, fitted, patients, n=resamples),
    )
    steps("operating points", lambda: operating_points(*case, n=resamples))
    return {"images": len(images), "breasts": len(oof), "patients": len(np.unique(patients))}


def main() -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("csv", type=Path, nargs="?")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core
    steps = Steps()
    for _ in range(arguments.rounds):
        size = one_round(steps, arguments.csv, arguments.resamples)
    rows = {
        name: {
            "cpu_seconds": statistics.median(steps.cpu[name]),
            "wall_seconds": statistics.median(steps.wall[name]),
        }
        for name in steps.cpu
    }
    total = {key: sum(row[key] for row in rows.values()) for key in ("cpu_seconds", "wall_seconds")}
    table = Table("step", "CPU s", "wall s")
    for name, row in {**rows, "all": total}.items():
        table.add_row(name, f"{row['cpu_seconds']:.3f}", f"{row['wall_seconds']:.3f}")
    counts = ", ".join(f"{n} {kind}" for kind, n in size.items())
    console = Console(width=100)
    console.print(
        f"{counts}; {arguments.resamples} resamples, one core, median of {arguments.rounds} rounds"
    )
    console.print(table)
    if arguments.json:
        report = {**size, "resamples": arguments.resamples, "steps": rows, "total": total}
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
