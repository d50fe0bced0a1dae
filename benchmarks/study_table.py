"""The table of a study: each variant's AUROC, and its paired difference from the reference."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from study_config import Study, Variant, run_name
from study_runs import RECORD, Task, is_predicted, is_trained, run_folder

from rsna_bcd.scoring.intervals import (
    Score,
    bootstrap_distributions,
    percentile_interval,
    two_sided_p_value,
)
from rsna_bcd.scoring.metrics import auroc
from rsna_bcd.tables.images import read_images
from rsna_bcd.tables.predictions import align, read_oof, read_oof_images

COLUMNS = (
    "variant", "seeds", "folds", "breasts", "positives", "auroc", "low", "high", "difference",
    "difference_low", "difference_high", "p", "p_holm", "minutes", "missing", "remark",
)  # fmt: skip

_LEAK = 0.1  # how far from one half an AUROC may be that should be one half

Folds = dict[int, pd.DataFrame]  # the out-of-fold rows of one seed, by fold


@dataclass
class Scored:
    """The predictions of a variant that are complete.

    Attributes:
        seeds: its folds by seed; an ensemble over given seeds has one entry for all of them.
        seconds: of each run that the study trained.
    """

    seeds: dict[str, Folds]
    seconds: list[float]


def study_table(
    study: Study,
    tasks: Sequence[Task],
    output: Path,
    prepared: Mapping[str, Path],
    see_other: Sequence[str] = (),
) -> pd.DataFrame:
    """Score what is complete.

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
            scored[variant.name] = _ensemble(study, variant, scored)
    own = set(map(str, study.seeds))  # others were trained for ensembles alone
    for variant in study.variants.values():
        if not variant.ensemble:
            seeds = scored[variant.name].seeds
            scored[variant.name].seeds = {s: folds for s, folds in seeds.items() if s in own}
    for variant in study.variants.values():
        if variant.stack:
            assert variant.of is not None
            images = read_images(prepared[variant.of] / "train.csv", "train")
            scored[variant.name] = _stack(study, variant, scored[variant.of], output, images)
    names = [study.reference, *(name for name in study.variants if name != study.reference)]
    reference = scored[study.reference]
    rows = [_row(study, name, scored[name], reference) for name in names]
    columns = [column for column in COLUMNS if column not in ("p_holm", "remark")]
    table = pd.DataFrame(rows, columns=columns).assign(remark="")
    leak = other_breast_leak(read_images(prepared[study.reference] / "train.csv", "train"))
    if abs(leak - 0.5) > _LEAK:
        names = [n for n in study.variants if _sees_other(study, n, see_other)]
        leaks = table["variant"].isin(names)
        table.loc[leaks, "p"] = np.nan
        table.loc[leaks, "remark"] = (
            "not comparable: whether the other breast is in the data tells the label by itself "
            f"(AUROC {leak:.2f})"
        )
    return table.assign(p_holm=holm(table["p"]))[list(COLUMNS)]


def _sees_other(study: Study, name: str, see_other: Sequence[str]) -> bool:
    """Whether a variant, or one that it starts from, sees the patient's other breast."""
    variant = study.variants[name]
    if name in see_other or variant.other_breast or "other" in variant.stack:
        return True
    sources = [*variant.ensemble, *([variant.of] if variant.of else [])]
    return any(_sees_other(study, source, see_other) for source in sources)


def other_breast_leak(images: pd.DataFrame) -> float:
    """AUROC of "the patient's other breast is not in the table", by breast.

    One half where it tells nothing. Data of which only some breasts were published may tell all: a
    variant that sees the other breast then learns whether it is there.
    """
    breasts = images.groupby(["patient_id", "prediction_id"], as_index=False)["cancer"].max()
    alone = breasts.groupby("patient_id")["prediction_id"].transform("size") == 1
    return auroc(breasts["cancer"], alone.astype(float))


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


def _ensemble(study: Study, variant: Variant, scored: Mapping[str, Scored]) -> Scored:
    """The mean probability of variants and seeds, in the folds that all of them have."""
    groups = [list(variant.seeds)] if variant.seeds else [[seed] for seed in study.seeds]
    seeds: dict[str, Folds] = {}
    for group in groups:
        members = [scored[name].seeds.get(str(s), {}) for name in variant.ensemble for s in group]
        folds: Folds = {}
        for fold in study.folds:
            if all(fold in member for member in members):
                rows, p = align({str(i): member[fold] for i, member in enumerate(members)})
                folds[fold] = rows.assign(probability=p.mean(axis=0))
        if folds:
            seeds["+".join(map(str, group))] = folds
    return Scored(seeds, [])


def _stack(
    study: Study, variant: Variant, source: Scored, output: Path, images: pd.DataFrame
) -> Scored:
    """A logistic regression on out-of-fold predictions, each fold predicted by the others."""
    assert variant.of is not None
    result = Scored({}, [])
    for seed in map(str, study.seeds):
        folds = source.seeds.get(seed, {})
        if len(folds) < 2:
            continue  # one fold has no others
        breasts = pd.concat(folds.values(), ignore_index=True)
        name = run_name(variant.of, int(seed))
        files = [run_folder(output, name, fold) / "oof_images.csv" for fold in folds]
        by_image = None
        if all(file.is_file() for file in files):
            by_image = pd.concat([read_oof_images(file) for file in files], ignore_index=True)
        inputs = stack_inputs(breasts, by_image, images)[list(variant.stack)].to_numpy()
        result.seeds[seed] = {}
        for fold in folds:
            inside = (breasts["fold"] == fold).to_numpy()
            model = make_pipeline(StandardScaler(), LogisticRegression())
            model.fit(inputs[~inside], breasts["label"].to_numpy()[~inside])
            probability = model.predict_proba(inputs[inside])[:, 1]
            result.seeds[seed][fold] = breasts[inside].assign(probability=probability)
    return result


def stack_inputs(
    breasts: pd.DataFrame, by_image: pd.DataFrame | None, images: pd.DataFrame
) -> pd.DataFrame:
    """What a stack may use of each breast.

    Args:
        breasts: rows of `oof.csv`.
        by_image: rows of `oof_images.csv`; None for networks of breasts.
        images: the prepared table, with `image_id`, `view` and `age`.

    Returns:
        One row per breast: `mean`, `max` and `min` of the logits of its images, their mean in `CC`
        and in `MLO` views (the overall mean where there is none); `other`, the mean logit of the
        patient's other breast (its own where there is none); `age` in years (the median where it is
        missing).
    """
    ids = breasts["prediction_id"]
    if by_image is None:
        by_image = breasts.assign(view="")
    else:
        by_image = by_image.merge(images[["image_id", "view"]], on="image_id", how="left")
    logits = by_image.groupby("prediction_id")["logit"]
    own = breasts.set_index("prediction_id")["logit"]  # where no image was read
    frame = pd.DataFrame({rule: logits.agg(rule).reindex(ids) for rule in ("mean", "max", "min")})
    frame = frame.apply(lambda column: column.fillna(own))
    for view in ("CC", "MLO"):
        of_view = by_image[by_image["view"] == view].groupby("prediction_id")["logit"].mean()
        frame[view] = of_view.reindex(ids).fillna(frame["mean"])
    patient = breasts["patient_id"].to_numpy()
    total = frame["mean"].groupby(patient).transform("sum")
    count = frame["mean"].groupby(patient).transform("count")
    others = (total - frame["mean"]) / (count - 1).where(count > 1)
    frame["other"] = others.fillna(frame["mean"])
    age = images.drop_duplicates("prediction_id").set_index("prediction_id").get("age")
    years = pd.Series(np.nan, ids) if age is None else pd.to_numeric(age).reindex(ids)
    frame["age"] = years.fillna(years.median() if years.notna().any() else 0.0)
    return frame.reset_index(drop=True)


def _row(study: Study, name: str, scored: Scored, reference: Scored) -> tuple[object, ...]:
    """The row of one variant, without the correction of its p-value."""
    variant = study.variants[name]
    missing = _missing(study, variant, scored)
    minutes = np.mean(scored.seconds) / 60 if scored.seconds else np.nan
    own = common_folds(scored.seeds, reference.seeds)
    if not own:
        return (name, "", "", 0, 0, *[np.nan] * 7, minutes, missing)
    folds = own[0][1]
    seeds = [seed for seed, _ in own]
    tables = {f"{name} {s}": _pooled(scored.seeds[s], folds) for s in seeds}
    others = [s for s, found in reference.seeds.items() if set(folds) <= found.keys()]
    same = [s for s in others if s in seeds] or others  # of an ensemble over seeds: all of them
    references = {f"reference {s}": _pooled(reference.seeds[s], folds) for s in same}
    rows, probabilities = align({**tables, **references})
    labels, patients = rows["label"].to_numpy(), rows["patient_id"].to_numpy(dtype=str)
    values, resampled = auroc_resamples(labels, probabilities, patients, study.resamples)
    n = len(tables)
    counts = (len(rows), int(labels.sum()))
    score = (values[:n].mean(), *percentile_interval(resampled[:n].mean(axis=0)))
    difference: tuple[float, ...] = (np.nan,) * 4
    if name != study.reference:
        differences = resampled[:n].mean(axis=0) - resampled[n:].mean(axis=0)
        value = values[:n].mean() - values[n:].mean()
        difference = (value, *percentile_interval(differences), two_sided_p_value(differences))
    listed = ",".join(seeds), ",".join(map(str, folds))
    return (name, *listed, *counts, *score, *difference, minutes, missing)


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


def _pooled(folds: Folds, wanted: Sequence[int]) -> pd.DataFrame:
    return pd.concat([folds[fold] for fold in wanted], ignore_index=True)


def _missing(study: Study, variant: Variant, scored: Scored) -> str:
    """The folds of a variant that are not complete, by seed."""
    one = ["+".join(map(str, variant.seeds))] if variant.seeds else list(map(str, study.seeds))
    lacking = {seed: sorted(set(study.folds) - scored.seeds.get(seed, {}).keys()) for seed in one}
    return "; ".join(
        f"seed {seed}: fold {','.join(map(str, folds))}" for seed, folds in lacking.items() if folds
    )


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
    """The table for people, with what it rests on and what is missing."""

    def interval(row: pd.Series, value: str, low: str, high: str, sign: str = "") -> str:
        if not np.isfinite(row[value]):
            return ""
        numbers = (f"{row[key]:{sign}.3f}" for key in (value, low, high))
        return "{} ({} to {})".format(*numbers)

    lines = [
        "| variant | AUROC (95 %) | difference (95 %) | p, Holm | seeds x folds | min per run |",
        "|---|---|---|---|---|---|",
    ]
    for _, row in table.iterrows():
        score = interval(row, "auroc", "low", "high")
        difference = interval(row, "difference", "difference_low", "difference_high", "+")
        p = f"{row['p_holm']:.3f}" if np.isfinite(row["p_holm"]) else ""
        n = [len(str(row[key]).split(",")) if row[key] else 0 for key in ("seeds", "folds")]
        minutes = f"{row['minutes']:.2f}" if np.isfinite(row["minutes"]) else ""
        cells = [row["variant"], score, difference, p, f"{n[0]} x {n[1]}", minutes]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    breasts, positives = int(table["breasts"].max()), int(table["positives"].max())
    lines += [
        "",
        f"Reference: {study.reference}. Up to {breasts} breasts, {positives} with cancer, out of "
        "fold; mean over seeds; intervals and p-values from "
        f"{study.resamples} resamples of patients; p-values corrected for the number of rows "
        "(Holm).",
    ]
    absent = table[table["missing"] != ""]
    for _, row in absent.iterrows():
        lines.append(f"Missing: {row['variant']}, {row['missing']}.")
    for remark, rows in table[table["remark"] != ""].groupby("remark"):
        lines.append(f"{', '.join(rows['variant'])}: {remark}.")
    return "\n".join([*lines, *remarks]) + "\n"
