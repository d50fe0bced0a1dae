"""Rows of a study that are made of other rows' predictions: ensembles, stacks, chosen blends."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from study_config import Study, Variant, run_name
from study_runs import run_folder

from rsna_bcd.errors import InputError
from rsna_bcd.scoring.blend import blend, fit_rank_transform
from rsna_bcd.scoring.metrics import auroc, logit
from rsna_bcd.tables.predictions import align, read_oof_images

_MEMBERS = 20  # of a blend that is chosen, at most; one may be in it several times

Folds = dict[int, pd.DataFrame]  # the out-of-fold rows of one seed, by fold


@dataclass
class Scored:
    """The predictions of a variant that are complete.

    Attributes:
        seeds: its folds by seed; an ensemble over given seeds has one entry for all of them.
        seconds: of each run that the study trained.
        missing: besides folds.
        remark: about all of it.
        without: of a stack, by seed and fold: its folds by regressions that have not seen that one.
    """

    seeds: dict[str, Folds]
    seconds: list[float]
    missing: tuple[str, ...] = ()
    remark: str = ""
    without: dict[str, dict[int, Folds]] = field(default_factory=dict)


def average_variants(study: Study, variant: Variant, scored: Mapping[str, Scored]) -> Scored:
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


def stack_predictions(
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
        without = {fold: _cross_fit(breasts, inputs, fold) for fold in folds}
        result.without[seed] = without
        result.seeds[seed] = {fold: own[fold] for fold, own in without.items() if fold in own}
    return result


def _cross_fit(breasts: pd.DataFrame, inputs: NDArray[np.float64], left_out: int) -> Folds:
    """Each fold by a logistic regression on all others but `left_out`.

    Folds for which breasts of both classes are not left are absent.
    """
    folds: Folds = {}
    fold_of, labels = breasts["fold"].to_numpy(), breasts["label"].to_numpy()
    for fold in np.unique(fold_of):
        inside = fold_of == fold
        training = ~inside & (fold_of != left_out)
        if len(np.unique(labels[training])) == 2:
            model = make_pipeline(StandardScaler(), LogisticRegression())
            model.fit(inputs[training], labels[training])
            probability = model.predict_proba(inputs[inside])[:, 1]
            folds[int(fold)] = breasts[inside].assign(probability=probability)
    return folds


def stack_inputs(
    breasts: pd.DataFrame, by_image: pd.DataFrame | None, images: pd.DataFrame
) -> pd.DataFrame:
    """Inputs that a stack may use of each breast.

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


def choose_blends(
    study: Study, variant: Variant, scored: Mapping[str, Scored], leaks: Collection[str]
) -> Scored:
    """Each fold by the blend of candidates that is best on the other folds.

    Of a seed these are the folds that the reference has, two at least, and the candidates that have
    them all. A stack is refitted without the fold that is chosen for: of two, none would be left.
    """
    names = [name for name in variant.choose if name not in leaks]
    few = [name for name in names if study.variants[name].stack and len(study.folds) < 3]
    names = [name for name in names if name not in few]
    result = Scored({}, [])
    remarks = []
    for seed in map(str, study.seeds):
        folds = sorted(scored[study.reference].seeds.get(seed, {}))
        if len(folds) < 2:
            continue
        own = {
            fold: {n: _seed_folds(study.variants[n], scored[n], seed, fold) for n in names}
            for fold in folds
        }
        complete = [n for n in names if all(o[n].keys() >= set(folds) for o in own.values())]
        absent = ", ".join(name for name in names if name not in complete)
        result.missing += (f"seed {seed}: candidates {absent}",) if absent else ()
        if not complete:
            continue
        result.seeds[seed], members = _nested(
            {fold: {n: pool_folds(o[n], folds) for n in complete} for fold, o in own.items()}
        )
        remarks += [f"seed {seed}, fold {fold}: {text}" for fold, text in members.items()]
    costs = [np.mean(scored[name].seconds) for name in names if scored[name].seconds]
    result.seconds = [float(sum(costs))] if result.seeds and costs else []
    left_out = ", ".join(name for name in variant.choose if name in leaks)
    remarks += [f"left out, as not comparable: {left_out}"] if left_out else []
    remarks += [f"left out, as stacks need three folds here: {', '.join(few)}"] if few else []
    result.remark = "; ".join(remarks)
    return result


def _nested(candidates: Mapping[int, Mapping[str, pd.DataFrame]]) -> tuple[Folds, dict[int, str]]:
    """The rows of each fold by a blend that is chosen on the other folds, and its members.

    For each fold, candidates have the rows of all folds; no stack among them has seen this one.

    Where folds have different blends, a breast gets its rank among the rows that its blend was
    chosen on: blends differ in their scale, and one AUROC is of all folds.
    """
    aligned = {fold: align(tables) for fold, tables in candidates.items()}
    counts = {}
    for fold, (rows, p) in aligned.items():
        others = (rows["fold"] != fold).to_numpy()
        counts[fold] = greedy_selection(rows["label"].to_numpy()[others], p[:, others])
    same = len({tuple(weights) for weights in counts.values()}) == 1
    folds: Folds = {}
    members = {}
    for fold, (rows, p) in aligned.items():
        weights, inside = counts[fold], (rows["fold"] == fold).to_numpy()
        blended = blend(p, "logit_mean", weights)
        if not same:
            blended = fit_rank_transform(blended[~inside], "a blend").apply(blended)
        folds[fold] = rows[inside].assign(probability=blended[inside])
        times = {name: n for name, n in zip(candidates[fold], weights, strict=True) if n}
        members[fold] = ", ".join(f"{n} x {name}" if n > 1 else name for name, n in times.items())
    return folds, members


def _seed_folds(variant: Variant, own: Scored, seed: str, left_out: int) -> Folds:
    """The folds of one seed, of a stack those without the one that is left out.

    Those of an ensemble over given seeds belong to each.
    """
    if variant.stack:
        return own.without.get(seed, {}).get(left_out, {})
    if variant.seeds:
        seed = "+".join(map(str, variant.seeds))
    return own.seeds.get(seed, {})


def greedy_selection(labels: ArrayLike, probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Choose the models whose mean logit has the highest AUROC, by forward selection.

    Again and again, that model is added with which the mean is best, also one that is in it. Of the
    first 20 means the best one counts, of equal ones the first.

    Source: Caruana et al., Ensemble selection from libraries of models, ICML (2004).

    Args:
        labels: (N,), each 0 or 1.
        probabilities: (M, N), of M models.

    Returns:
        (M,), how often each model is in the mean.

    Raises:
        InputError: one class only.
    """
    logits = logit(probabilities)
    total, counts = np.zeros(logits.shape[1]), np.zeros(len(logits), dtype=np.int64)
    best, chosen = -1.0, counts
    for _ in range(_MEMBERS):
        scores = [auroc(labels, total + own) for own in logits]
        added = int(np.argmax(scores))
        if np.isnan(scores[added]):
            raise InputError("Members cannot be chosen by labels that are all equal.")
        total, counts = total + logits[added], counts + np.eye(len(logits), dtype=np.int64)[added]
        if scores[added] > best:
            best, chosen = scores[added], counts
    return chosen


def pool_folds(folds: Folds, wanted: Sequence[int]) -> pd.DataFrame:
    """The rows of these folds, one below the other."""
    return pd.concat([folds[fold] for fold in wanted], ignore_index=True)
