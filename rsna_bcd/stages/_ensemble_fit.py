"""Fit and score an ensemble: its settings, its members' records and their out-of-fold rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from rsna_bcd.errors import InputError, difference
from rsna_bcd.inference.run import fold_hashes
from rsna_bcd.scoring.blend import blend
from rsna_bcd.scoring.calibration import calibration_scores
from rsna_bcd.scoring.cross_fitting import (
    CrossFitted,
    EnsembleFitter,
    Members,
    optimism,
    patient_groups,
)
from rsna_bcd.scoring.ensemble import Ensemble, Member, Networks
from rsna_bcd.scoring.intervals import bootstrap_metrics, delong
from rsna_bcd.scoring.metrics import OPERATING, RANKING, logit
from rsna_bcd.scoring.thresholds import BestPf1, RecallRate, plateau
from rsna_bcd.tables.folds import settings_without_fold
from rsna_bcd.tables.images import breast_sites, read_images
from rsna_bcd.tables.predictions import (
    ENSEMBLE_OOF_COLUMNS,
    align,
    by_aggregation,
    check_informative,
    read_run,
)
from rsna_bcd.targets import read_record


def read_fitter(cfg: DictConfig) -> EnsembleFitter:
    """Make the fitter of the settings; those that contradict each other are refused."""
    names = [str(name) for name in cfg.members]
    if len(set(names)) < len(names):
        raise InputError(f"members={cfg.members} must be different runs.")
    if cfg.blend == "rank_mean" and cfg.calibration == "temperature":
        raise InputError(
            "calibration=temperature scales logits around one half, which ranks put at the median "
            "breast. With blend=rank_mean use calibration=platt or isotonic."
        )
    by_rate = cfg.threshold == "recall_rate"
    if not by_rate and cfg.recall_rate is not None:
        raise InputError("recall_rate= is for threshold=recall_rate; pf1 chooses its own rate.")
    if by_rate and cfg.by_site is not None:
        raise InputError(
            "by_site= is for threshold=pf1: a recall rate is kept over the whole test set, whatever"
            " the sites in it. Set one of them."
        )
    if cfg.networks == "all" and (cfg.by_site is not None or cfg.calibration != "none"):
        raise InputError(
            "by_site= and calibration= are fitted to probabilities out of fold, and networks=all "
            "have none: a test set is decided by the share of positives. Leave them out."
        )
    weights: Any = None  # fitted
    if cfg.weights != "fitted":
        weights = tuple(map(float, [1] * len(names) if cfg.weights is None else cfg.weights))
        blend([[0.0]] * len(names), "mean", weights)  # refuses invalid ones
    return EnsembleFitter(
        blend=cfg.blend,
        weights=weights,
        policy=make_policy(cfg),
        calibration=None if cfg.calibration == "none" else cfg.calibration,
        names=tuple(names),
    )


def make_policy(settings: DictConfig) -> BestPf1 | RecallRate:
    """Make the policy of the threshold, from the settings or the record of an ensemble."""
    if settings.get("threshold") == "recall_rate":
        return RecallRate(settings.get("recall_rate"))
    return BestPf1(by_site=settings.get("by_site"))


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold rows of several runs.

    Attributes:
        rows: Labels and identifiers of (N,) breasts.
        runs: The members; weights and ranks are yet to be fitted.
        members: Their probabilities of `rows`, under each rule that may be chosen.
        unreadable: (N,), True where no member could read an image, so that all have the prior.
    """

    rows: pd.DataFrame
    runs: tuple[Member, ...]
    members: Members
    unreadable: NDArray[np.bool_]


def read_members(
    output: Path,
    names: Sequence[str],
    *,
    every_rule: bool = False,
    allow_constant: bool = False,
    networks: Networks = "folds",
) -> OutOfFold:
    """Read runs, `<output>/runs/<name>`, that hold the same breasts.

    Args:
        output: of all stages.
        names: of the runs.
        every_rule: read them also under the other rule from images to a breast than a run's own.
        allow_constant: take a run with a fold that nothing can be fitted to (`check_informative`).
        networks: of the ensemble.

    Raises:
        InputError: a run is absent, unfinished, constant, lacks breasts that another has, or has
            folds with different settings; or of `all` networks one is.
    """
    tables = {name: read_run(output / "runs" / name) for name in names}
    if not allow_constant:
        for name, table in tables.items():
            check_informative(name, table)
    rows, _ = align(tables)
    runs = tuple(
        _read_member(output / "runs" / name, table, networks) for name, table in tables.items()
    )
    members = []
    for run in runs:
        table = tables[run.name]
        by_rule = {run.rule: table.set_index("prediction_id")["probability"]}
        if every_rule:
            by_rule = by_aggregation(output / "runs" / run.name, table, run.rule)
        members.append(
            {rule: p.loc[rows["prediction_id"]].to_numpy(np.float64) for rule, p in by_rule.items()}
        )
    unread = pd.concat([table.set_index("prediction_id")["unread"] for table in tables.values()])
    unreadable = rows["prediction_id"].map(unread.groupby(level=0).min()).to_numpy(np.bool_)
    return OutOfFold(rows, runs, members, unreadable)


def read_sites(output: Path, member: Member, rows: pd.DataFrame) -> NDArray:
    """The site of each of `rows`, from the table that the member was trained on."""
    csv = output / "prepared" / member.dataset / member.crop / "train.csv"
    if not csv.is_file():
        raise InputError(
            f"by_site= needs {csv}, which has the site of each breast. Prepare it again: "
            f"`python -m rsna_bcd.prepare dataset={member.dataset} crop={member.crop}`."
        )
    sites = breast_sites(read_images(csv, "train"))
    return rows["prediction_id"].map(sites).fillna("").to_numpy(dtype=str)


def fit_ensemble(
    name: str, fitter: EnsembleFitter, oof: OutOfFold, cfg: DictConfig, sites: NDArray | None = None
) -> tuple[Ensemble, pd.DataFrame]:
    """Fit an ensemble to out-of-fold rows, and score it in sample and cross-fitted.

    Args:
        name: of the ensemble.
        fitter: its settings.
        oof: rows of its members.
        cfg: with `groups` of patients, `resamples` and `seed`.
        sites: of the rows, for thresholds by site.

    Returns:
        The ensemble, and its table of `ENSEMBLE_OOF_COLUMNS`.

    Raises:
        InputError: there is nothing to choose by (`EnsembleFitter.fit`, `patient_groups`).
    """
    rows, members, unreadable = oof.rows, oof.members, oof.unreadable
    labels, patients = rows["label"].to_numpy(), rows["patient_id"].to_numpy(dtype=str)
    groups = patient_groups(labels, patients, cfg.groups, cfg.seed)
    fitted = fitter.fit(labels, members, patients, sites, unreadable)
    cross_fitted = fitter.cross_fit(labels, members, patients, groups, sites, unreadable)
    blended = fitted.combine(members)
    table = rows.assign(
        probability=blended,
        logit=logit(blended),
        unread=unreadable.astype(np.int64),
        held_out=cross_fitted.probabilities,
        ranking=cross_fitted.ranking,
        group=cross_fitted.groups,
        decision=cross_fitted.decisions,
    )[list(ENSEMBLE_OOF_COLUMNS)]
    if cross_fitted.calibrated is not None:
        table["calibrated"] = cross_fitted.calibrated
    decisions = np.where(unreadable, 0, fitted.threshold.decide(blended, sites))
    choices = fitted.aggregations, fitted.weights, fitted.ranks or (None,) * len(oof.runs)
    ensemble = Ensemble(
        name=name,
        blend=fitted.blend,
        members=tuple(
            replace(run, rule=rule, weight=weight, ranks=ranks)
            for run, rule, weight, ranks in zip(oof.runs, *choices, strict=True)
        ),
        policy="recall_rate" if isinstance(fitter.policy, RecallRate) else "pf1",
        threshold=fitted.threshold.value,
        thresholds=fitted.threshold,
        plateau=plateau(labels[~unreadable], blended[~unreadable], patients[~unreadable]),
        cross_fitted_thresholds=tuple(one.threshold.value for one in cross_fitted.fitted),
        calibration=fitted.calibration,
        prior=float(labels.mean()),
        breasts=len(table),
        positives=int(labels.sum()),
        score=_scores(table, decisions, fitter, cross_fitted, sites, cfg),
    )
    return ensemble, table


def _scores(
    oof: pd.DataFrame,
    in_sample: NDArray[np.int64],
    fitter: EnsembleFitter,
    cross_fitted: CrossFitted,
    sites: NDArray | None,
    cfg: DictConfig,
) -> Mapping[str, Any]:
    """`Ensemble.score`."""
    labels, patients = oof["label"].to_numpy(), oof["patient_id"].to_numpy(dtype=str)
    blended, unreadable = oof["probability"].to_numpy(), oof["unread"].to_numpy(np.bool_)
    rest = {"patients": patients, "n": cfg.resamples, "seed": cfg.seed}
    calibration = {}
    if fitter.blend != "rank_mean":  # ranks are no probabilities before they are calibrated
        calibration["blended"] = calibration_scores(labels, blended, **rest)
    if cross_fitted.calibrated is not None:
        calibration["calibrated"] = calibration_scores(labels, cross_fitted.calibrated, **rest)
    return {
        **bootstrap_metrics(RANKING, labels, cross_fitted.ranking, **rest),
        "auroc_delong": delong(labels, cross_fitted.ranking, patients),
        "cross_fitted": fitter.intervals(
            OPERATING, labels, cross_fitted, sites=sites, unreadable=unreadable, **rest
        ),
        "in_sample": bootstrap_metrics(RANKING, labels, blended, **rest)
        | bootstrap_metrics(OPERATING, labels, in_sample, **rest),
        "optimism": optimism(labels, in_sample, cross_fitted.decisions),
        "calibration": calibration,
    }


def _read_member(run: Path, oof: pd.DataFrame, networks: Networks) -> Member:
    """A run from the records of its folds; rule and weight are yet to be fitted."""
    folds = tuple(sorted(int(fold) for fold in oof["fold"].unique()))
    trained: list[int | str] = [*folds, *(["all"] if networks == "all" else [])]
    if networks == "all" and not (run / "foldall" / "metrics.json").is_file():
        raise InputError(
            f"networks=all needs {run / 'foldall'}, trained to its end on all patients: "
            f"`python -m rsna_bcd.train experiment=... name={run.name} fold=all`."
        )
    files = [run / f"fold{fold}" / "config.yaml" for fold in trained]
    for file in files:
        differing = "\n".join(f"  {x}" for x in difference(_record(files[0]), _record(file)))
        if differing:
            raise InputError(
                f"Folds of {run.name} were trained with different settings ({files[0].parent.name} "
                f"-> {file.parent.name}):\n{differing}\nTrain them alike, or give each its name."
            )
    record = OmegaConf.load(files[0])
    keys = {"dataset": "dataset.name", "crop": "crop.name", "rule": "breast_rule"}
    settings = {
        name: OmegaConf.select(record, key) for name, key in (keys | {"select": "select"}).items()
    }
    absent = [keys.get(name, name) for name, value in settings.items() if value is None]
    if absent:
        raise InputError(f"{files[0]} lacks {', '.join(absent)}. Train this fold again.")
    hashes = fold_hashes(run, trained, settings["select"])
    return Member(name=run.name, folds=folds, weight=1.0, hashes=hashes, **settings)


def _record(record_file: Path) -> dict[str, Any]:
    """The settings that the folds of a run should share."""
    if not record_file.is_file():
        raise InputError(f"{record_file} does not exist. Train this fold again.")
    return settings_without_fold(read_record(record_file))
