"""The table of a study: each variant's AUROC, and its paired difference from the reference."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from study_blends import (
    Folds,
    Scored,
    average_variants,
    choose_blends,
    pool_folds,
    stack_predictions,
)
from study_config import Study, Variant
from study_runs import RECORD, Task, is_predicted, is_trained

from rsna_bcd.errors import InputError
from rsna_bcd.reporting.subgroups import breast_facts
from rsna_bcd.scoring.intervals import (
    Score,
    bootstrap_distributions,
    percentile_interval,
    two_sided_p_value,
)
from rsna_bcd.scoring.metrics import auroc
from rsna_bcd.tables.images import read_images
from rsna_bcd.tables.predictions import align, read_oof

COLUMNS = (
    "variant", "seeds", "folds", "breasts", "positives", "auroc", "low", "high", "difficult",
    "auroc_without_difficult", "difference", "difference_low", "difference_high", "p", "p_holm",
    "minutes", "missing", "remark",
)  # fmt: skip

_LEAK = 0.1  # how far from one half an AUROC may be that should be one half


def study_table(
    study: Study,
    tasks: Sequence[Task],
    output: Path,
    prepared: Mapping[str, Path],
    see_other: Sequence[str] = (),
) -> pd.DataFrame:
    """Score the complete rows.

    A variant is compared with the reference over the same breasts: those of the folds that both
    have, for the seeds that have them all. AUROCs are the mean over seeds. Intervals and p-values
    resample patients, with the same resamples for all rows; `p_holm` is corrected for the number of
    rows (Holm, 1979).

    Args:
        study: its definition.
        tasks: all runs of it.
        output: folder of runs and predictions.
        prepared: the folder of crops of each trained variant.
        see_other: trained variants that see the patient's other breast.

    Returns:
        `COLUMNS`, one row per variant in the order of the study, the reference first.
    """
    scored = _read(study, tasks)
    for variant in study.variants.values():
        if variant.ensemble:
            scored[variant.name] = average_variants(study, variant, scored)
    own = set(map(str, study.seeds))  # others were trained for ensembles alone
    for variant in study.variants.values():
        if not variant.ensemble:
            seeds = scored[variant.name].seeds
            scored[variant.name].seeds = {s: folds for s, folds in seeds.items() if s in own}
    for variant in study.variants.values():
        source = str(variant.of)
        if variant.stack and source in prepared:
            images = read_images(prepared[source] / "train.csv", "train")
            scored[variant.name] = stack_predictions(study, variant, scored[source], output, images)
    images = read_images(prepared[study.reference] / "train.csv", "train")
    leak = other_breast_leak(images)
    leaks = {
        name
        for name in study.variants
        if abs(leak - 0.5) > _LEAK and _sees_other(study, name, see_other)
    }
    for variant in study.variants.values():
        if variant.choose:
            try:
                scored[variant.name] = choose_blends(study, variant, scored, leaks)
            except InputError as error:
                scored[variant.name] = Scored({}, [], remark=str(error))
    names = [study.reference, *(name for name in study.variants if name != study.reference)]
    reference = scored[study.reference]
    difficult = difficult_negatives(images)
    rows = []
    for name in names:
        try:
            rows.append(_row(study, name, scored[name], reference, difficult))
        except InputError as error:  # it has other breasts: the other rows count
            alone = Scored({}, scored[name].seconds, remark=str(error))
            rows.append(_row(study, name, alone, reference, difficult))
    columns = [column for column in COLUMNS if column != "p_holm"]
    table = pd.DataFrame(rows, columns=columns)
    is_leak = table["variant"].isin(leaks)
    table.loc[is_leak, "p"] = np.nan
    table.loc[is_leak, "remark"] = (
        "not comparable: whether the other breast is in the data reveals the label by itself "
        f"(AUROC {leak:.2f})"
    )
    return table.assign(p_holm=holm(table["p"]))[list(COLUMNS)]


def _sees_other(study: Study, name: str, see_other: Sequence[str]) -> bool:
    """Whether a variant, or one that it starts from, sees the patient's other breast."""
    variant = study.variants[name]
    if name in see_other or variant.other_breast or "other" in variant.stack:
        return True
    return any(_sees_other(study, source, see_other) for source in variant.sources)


def other_breast_leak(images: pd.DataFrame) -> float:
    """AUROC of "the patient's other breast is not in the table", by breast.

    One half where it tells nothing. Data of which only some breasts were published may tell all: a
    variant that sees the other breast then learns whether it is there.
    """
    breasts = images.groupby(["patient_id", "prediction_id"], as_index=False)["cancer"].max()
    alone = breasts.groupby("patient_id")["prediction_id"].transform("size") == 1
    return auroc(breasts["cancer"], alone.astype(float))


def difficult_negatives(images: pd.DataFrame) -> set[str] | None:
    """`prediction_id` of the breasts without cancer that were difficult to read.

    None where no image has a `difficult_negative_case`.
    """
    cancer = images.groupby("prediction_id")["cancer"].max()
    difficult = breast_facts(images, list(cancer.index))["difficult"]
    if difficult.isna().all():
        return None
    return set(cancer.index[(cancer == 0) & (difficult == 1)])


def _read(study: Study, tasks: Sequence[Task]) -> dict[str, Scored]:
    """All predictions of trained and predicted variants that are complete."""
    scored = {name: Scored({}, []) for name in study.variants}
    for task in tasks:
        run = task.run
        if not is_trained(task):
            continue
        folder = task.folder
        found = [(run.variant, folder / "oof.csv", folder / RECORD)]
        for variant in run.predicted:
            if is_predicted(task, variant):
                csv = task.predicted_csv(variant)
                found.append((variant.name, csv, csv.with_suffix(".json")))
        for name, csv, record in found:
            scored[name].seeds.setdefault(str(run.seed), {})[run.fold] = read_oof(csv)
            seconds = json.loads(record.read_text())["seconds"]
            scored[name].seconds += [] if seconds is None else [seconds]  # None: by the command
    return scored


def _row(
    study: Study, name: str, scored: Scored, reference: Scored, difficult: Collection[str] | None
) -> tuple[object, ...]:
    """The row of one variant, without the correction of its p-value."""
    missing = _missing(study, study.variants[name], scored)
    minutes = np.mean(scored.seconds) / 60 if scored.seconds else np.nan
    own = common_folds(scored.seeds, reference.seeds)
    if not own:
        return (name, "", "", 0, 0, *[np.nan] * 9, minutes, missing, scored.remark)
    folds = own[0][1]
    seeds = [seed for seed, _ in own]
    tables = {f"{name} {s}": pool_folds(scored.seeds[s], folds) for s in seeds}
    others = [s for s, found in reference.seeds.items() if set(folds) <= found.keys()]
    same = [s for s in others if s in seeds] or others  # of an ensemble over seeds: all of them
    references = {f"reference {s}": pool_folds(reference.seeds[s], folds) for s in same}
    rows, probabilities = align({**tables, **references})
    labels, patients = rows["label"].to_numpy(), rows["patient_id"].to_numpy(dtype=str)
    values, resampled = auroc_resamples(labels, probabilities, patients, study.resamples)
    n = len(tables)
    counts = (len(rows), int(labels.sum()))
    score = (values[:n].mean(), *percentile_interval(resampled[:n].mean(axis=0)))
    without: tuple[float, ...] = (np.nan, np.nan)
    if difficult is not None:
        easy = ~rows["prediction_id"].isin(difficult).to_numpy()
        mean = np.mean([auroc(labels[easy], p[easy]) for p in probabilities[:n]])
        without = int((~easy).sum()), float(mean)
    difference: tuple[float, ...] = (np.nan,) * 4
    if name != study.reference:
        differences = resampled[:n].mean(axis=0) - resampled[n:].mean(axis=0)
        value = values[:n].mean() - values[n:].mean()
        difference = (value, *percentile_interval(differences), two_sided_p_value(differences))
    listed = ",".join(seeds), ",".join(map(str, folds))
    return (name, *listed, *counts, *score, *without, *difference, minutes, missing, scored.remark)


def common_folds(
    own: Mapping[str, Folds], reference: Mapping[str, Folds]
) -> list[tuple[str, list[int]]]:
    """The seeds of a variant, and the folds, that are compared with the reference.

    Those of the seed with the most folds that the reference has too, and all other seeds that have
    them as well. A seed that the reference lacks (an ensemble of seeds) is compared with any.
    """
    shared: dict[str, set[int]] = {}
    for seed, folds in own.items():
        candidates = [reference[seed]] if seed in reference else list(reference.values())
        most = max((folds.keys() & other.keys() for other in candidates), key=len, default=set())
        if most:
            shared[seed] = set(most)
    if not shared:
        return []
    best = max(shared.values(), key=len)
    return [(seed, sorted(best)) for seed, folds in shared.items() if folds >= best]


def _missing(study: Study, variant: Variant, scored: Scored) -> str:
    """The parts of a variant that are missing, by seed: folds, and candidates to choose from."""
    one = ["+".join(map(str, variant.seeds))] if variant.seeds else list(map(str, study.seeds))
    lacking = {seed: sorted(set(study.folds) - scored.seeds.get(seed, {}).keys()) for seed in one}
    folds_of = (f"seed {s}: fold {','.join(map(str, f))}" for s, f in lacking.items() if f)
    return "; ".join([*folds_of, *scored.missing])


def auroc_resamples(
    labels: ArrayLike,
    probabilities: NDArray[np.float64],
    patients: ArrayLike,
    n: int,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROCs of several predictions of the same breasts, and over the same resampled patients.

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (M, N).
        patients: (N,), an id per row.
        n: number of patient_resamples.
        seed: of the patient_resamples.

    Returns:
        (M,), and (M, n); NaN where a resample has one class only.
    """
    scores = {str(model): Score(auroc, row) for model, row in enumerate(probabilities)}
    resampled = bootstrap_distributions(scores, labels, patients, n, seed)
    values = np.array([auroc(labels, row) for row in probabilities])
    return values, np.stack(list(resampled.values()))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p-values corrected for their number by Holm's step-down method; NaN are not counted.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    corrected = np.full_like(p, np.nan)
    defined = np.flatnonzero(np.isfinite(p))
    order = defined[np.argsort(p[defined], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return corrected


def as_markdown(study: Study, table: pd.DataFrame, remarks: Sequence[str] = ()) -> str:
    """The table for people, with its data and its missing rows."""

    def interval(row: pd.Series, value: str, low: str, high: str, sign: str = "") -> str:
        if not np.isfinite(row[value]):
            return ""
        numbers = (f"{row[key]:{sign}.3f}" for key in (value, low, high))
        return "{} ({} to {})".format(*numbers)

    knows_difficult = bool(table["difficult"].notna().any())
    heads = [
        "variant", "AUROC (95 %)", *(["without difficult"] if knows_difficult else []),
        "difference (95 %)", "p, Holm", "seeds x folds", "min per run",
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for _, row in table.iterrows():
        score = interval(row, "auroc", "low", "high")
        difference = interval(row, "difference", "difference_low", "difference_high", "+")
        p = f"{row['p_holm']:.3f}" if np.isfinite(row["p_holm"]) else ""
        n = [len(str(row[key]).split(",")) if row[key] else 0 for key in ("seeds", "folds")]
        minutes = f"{row['minutes']:.2f}" if np.isfinite(row["minutes"]) else ""
        easy = row["auroc_without_difficult"]
        without = [f"{easy:.3f}" if np.isfinite(easy) else ""] if knows_difficult else []
        cells = [row["variant"], score, *without, difference, p, f"{n[0]} x {n[1]}", minutes]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    breasts, positives = int(table["breasts"].max()), int(table["positives"].max())
    lines += [
        "",
        f"Reference: {study.reference}. Up to {breasts} breasts, {positives} with cancer, out of "
        "fold; mean over seeds; intervals and p-values from "
        f"{study.resamples} resamples of patients; p-values corrected for the number of rows "
        "(Holm).",
    ]
    if knows_difficult:
        lines.append(
            f"Without difficult: AUROC without difficult negatives (`difficult_negative_case`), "
            f"{int(table['difficult'].max())} breasts."
        )
    absent = table[table["missing"] != ""]
    for _, row in absent.iterrows():
        lines.append(f"Missing: {row['variant']}, {row['missing']}.")
    for remark, rows in table[table["remark"] != ""].groupby("remark"):
        lines.append(f"{', '.join(rows['variant'])}: {remark}.")
    return "\n".join([*lines, *remarks]) + "\n"
