"""Lesions that show in one view only: networks of a breast beside one of images and a rule.

    python benchmarks/one_view.py --json one_view.json      # about 20 minutes on two cores

A synthetic competition whose cancers are in a single view; networks from scratch, all with the same
small backbone, crops and number of looks at an image; out-of-fold predictions of two folds. The
network of images has the better of the rules mean and max, chosen on the other patients. What was
trained is kept in --folder, and not trained again.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from commands import run_command
from rich.console import Console
from rich.table import Table

from rsna_bcd.scoring.cross_fitting import cross_fitted_decisions, patient_groups
from rsna_bcd.scoring.intervals import Difference, Interval, bootstrap_metrics, paired_difference
from rsna_bcd.scoring.metrics import RANKING, auroc, pf1
from rsna_bcd.scoring.thresholds import BestPf1
from rsna_bcd.tables.predictions import align, read_run, to_breasts

FOLDS, GROUPS = (0, 1), 5
IMAGES = "images, best rule"
OF_BREAST = "network=effnetv2_s_attention", "network.backbone=test_resnet", "network.dropout=0"
AGGREGATOR = "network.aggregator._target_=rsna_bcd.models.aggregators."
# As many images a batch: a breast has a little over two.
BREASTS = "batch_size=16", "network.pretrained=false", "network.drop_path_rate=null"
NETWORKS: dict[str, tuple[str, ...]] = {
    "images": (),
    "mean of probabilities": (
        *OF_BREAST, *BREASTS, f"{AGGREGATOR}MeanProbability", "~network.aggregator.hidden",
    ),
    "maximum of probabilities": (
        *OF_BREAST, *BREASTS, f"{AGGREGATOR}MaxProbability", "~network.aggregator.hidden",
    ),
    "attention": (*OF_BREAST, *BREASTS),
    "transformer": (
        *("network=convnext_small_four_view", "network.backbone=test_resnet", "network.dropout=0"),
        *(*BREASTS, "network.pooling=gem", "network.aggregator.width=64", "views.policy=all"),
        "views.other_breast=false",
    ),
    "side by side": (
        *("network=convnext_small_two_view", "network.backbone=test_resnet", "network.dropout=0"),
        *(*BREASTS, "network.pooling=gem"),
    ),
}  # fmt: skip


def train(folder: Path, patients: int, epochs: int) -> dict[str, Path]:
    """Make the competition and train missing runs; the folders of the runs by name."""
    paths = f"paths.data={folder / 'data'}", f"paths.output={folder}"
    size = f"size.train_patients={patients}", "size.test_patients=1"
    run_command("synthesize", *paths, *size, "appearance.lesion_views=one")
    run_command("prepare", *paths, "crop=demo", "splits=[train]")
    runs = {}
    for name, overrides in NETWORKS.items():
        slug = name.replace(" ", "_")
        for fold in FOLDS:
            settings = "experiment=demo", f"epochs={epochs}", f"name={slug}", f"fold={fold}"
            run_command("train", *paths, *settings, *overrides, "resume=true", "trainer=cpu")
        runs[name] = folder / "runs" / slug
    return runs


def with_best_rule(run: Path, seed: int) -> pd.DataFrame:
    """The breasts of a network of images, each by the rule that is better on other patients."""
    images = pd.concat(
        [
            pd.read_csv(run / f"fold{fold}/oof_images.csv", dtype={"prediction_id": "string"})
            for fold in FOLDS
        ]
    )
    rules = {rule: to_breasts(images, rule) for rule in ("mean", "max")}
    breasts = rules["mean"]
    labels = breasts["label"].to_numpy()
    groups = patient_groups(labels, breasts["patient_id"].to_numpy(dtype=str), GROUPS, seed)
    chosen = breasts["probability"].to_numpy().copy()
    for group in range(GROUPS):
        inside = groups == group
        scores = {
            rule: auroc(labels[~inside], table["probability"].to_numpy()[~inside])
            for rule, table in rules.items()
        }
        best = max(scores, key=lambda rule: scores[rule])
        chosen[inside] = rules[best]["probability"].to_numpy()[inside]
    return breasts.assign(probability=chosen)


def main() -> None:
    """Train, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("output/one_view"))
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    runs = train(arguments.folder, arguments.patients, arguments.epochs)
    tables = {name: read_run(path, FOLDS) for name, path in runs.items() if name != "images"}
    tables = {IMAGES: with_best_rule(runs["images"], arguments.seed), **tables}
    rows, probabilities = align(tables)
    labels, patients = rows["label"].to_numpy(), rows["patient_id"].to_numpy(dtype=str)
    groups = patient_groups(labels, patients, GROUPS, arguments.seed)
    decisions = [
        cross_fitted_decisions(labels, p, patients, BestPf1(), groups) for p in probabilities
    ]
    rest = {"patients": patients, "n": arguments.resamples, "seed": arguments.seed}
    results: dict[str, dict[str, Interval]] = {}
    differences: dict[str, Difference] = {}
    for i, name in enumerate(tables):
        results[name] = {
            **bootstrap_metrics(RANKING, labels, probabilities[i], **rest),
            **bootstrap_metrics({"pf1": pf1}, labels, decisions[i], **rest),
        }
        if i:
            first, second = probabilities[0], probabilities[i]
            differences[name] = paired_difference(auroc, labels, first, second, **rest)
    title = f"{len(rows)} breasts, {np.sum(labels)} with cancer in one view; value (95 % interval)"
    table = Table("", "AUROC", "average precision", "pF1", "AUROC less the first's", title=title)
    for name, scores in results.items():
        difference = f"{differences[name]}" if name in differences else ""
        table.add_row(name, *map(str, scores.values()), difference)
    Console(width=140).print(table)
    if arguments.json:
        content = {"scores": results, "differences": differences}
        arguments.json.write_text(json.dumps(content, indent=1, default=asdict))


if __name__ == "__main__":
    main()
