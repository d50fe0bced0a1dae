"""`python -m rsna_bcd.compare`: runs on the same breasts, and whether they differ."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from rsna_bcd._stage import stage
from rsna_bcd.errors import InputError
from rsna_bcd.scoring.bootstrap import paired_difference, patient_bootstrap, patient_bootstraps
from rsna_bcd.scoring.metrics import RANKING
from rsna_bcd.scoring.pf1 import pf1
from rsna_bcd.scoring.threshold import cross_fit, patient_groups
from rsna_bcd.tables.out_of_fold import align, read_run, trained_folds


def compare(cfg: DictConfig) -> dict[str, Any]:
    """Score runs on the folds that all of them have, and the others against the first.

    pF1 is that of decisions whose threshold was fitted on other patients, the same groups of them
    for every run.

    Returns:
        `folds`, `breasts`, `positives`, and for each run its `score` and, but for the first, its
        `difference` from the first.

    Raises:
        InputError: a run or fold is absent or unfinished, or the runs hold different breasts.
    """
    names = _names(cfg)
    runs = Path(cfg.paths.output) / "runs"
    folds = _folds(cfg, {name: runs / name for name in names})
    rows, probabilities = align({name: read_run(runs / name, folds) for name in names})
    labels = rows["label"].to_numpy()
    patients = rows["patient_id"].to_numpy(dtype=str)
    rest = {"patients": patients, "n": cfg.resamples, "seed": cfg.seed}
    groups = patient_groups(labels, patients, cfg.groups, cfg.seed)
    decisions = [cross_fit(labels, p, groups).decisions for p in probabilities]
    comparison: dict[str, Any] = {
        "folds": folds,
        "breasts": len(rows),
        "positives": int(labels.sum()),
        "runs": {},
    }
    for i, name in enumerate(names):
        comparison["runs"][name] = {
            "score": {
                **patient_bootstraps(RANKING, labels, probabilities[i], **rest),
                "pf1": patient_bootstrap(pf1, labels, decisions[i], **rest),
            }
        }
        if i > 0:
            comparison["runs"][name]["difference"] = {
                **{
                    key: paired_difference(
                        metric, labels, probabilities[0], probabilities[i], **rest
                    )
                    for key, metric in RANKING.items()
                },
                "pf1": paired_difference(pf1, labels, decisions[0], decisions[i], **rest),
            }
    _show(comparison)
    if cfg.json is not None:
        text = json.dumps(comparison, indent=2, default=asdict) + "\n"  # intervals become dicts
        Path(cfg.json).write_text(text, encoding="utf-8")
    return comparison


def _names(cfg: DictConfig) -> list[str]:
    """The runs asked for."""
    names = [str(name) for name in cfg.runs] if OmegaConf.is_list(cfg.runs) else []
    if not names or len(set(names)) < len(names):
        raise InputError(f"runs={cfg.runs} must be a list of different runs, such as runs=[a,b].")
    return names


def _folds(cfg: DictConfig, runs: Mapping[str, Path]) -> list[int]:
    """The folds asked for, or those that every run has."""
    if cfg.fold is not None:
        return list(cfg.fold) if OmegaConf.is_list(cfg.fold) else [cfg.fold]
    trained = {name: set(trained_folds(run)) for name, run in runs.items()}
    shared = sorted(set.intersection(*trained.values()))
    if not shared:
        have = "; ".join(f"{name} has {sorted(folds)}" for name, folds in trained.items())
        raise InputError(f"No fold was trained in all runs: {have}. Train one in all of them.")
    return shared


def _show(comparison: dict[str, Any]) -> None:
    """Print a row a run and score."""
    title = (
        f"{comparison['breasts']} breasts of fold {', '.join(map(str, comparison['folds']))}, "
        f"{comparison['positives']} with cancer"
    )
    first = next(iter(comparison["runs"]))
    headings = ("", "value (95 % interval)", f"difference from {first}", "p")
    table = Table(*headings, title=title, box=SIMPLE, pad_edge=False)  # fits into 80 columns
    for name, run in comparison["runs"].items():
        table.add_row(f"[bold]{name}[/bold]")
        for metric, interval in run["score"].items():
            row = ["pf1, cross-fitted" if metric == "pf1" else metric, str(interval)]
            if "difference" in run:
                difference = run["difference"][metric]
                row += [str(difference), f"{difference.p_value:.3f}"]
            table.add_row(*row)
        table.add_section()
    Console().print(table)


@stage("compare")
def main(cfg: DictConfig) -> None:
    """Run the stage."""
    compare(cfg)


if __name__ == "__main__":
    main()
