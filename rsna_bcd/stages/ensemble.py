"""`python -m rsna_bcd.ensemble`: out-of-fold predictions to a blend and an honest threshold."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from rsna_bcd._records import check_same_config, select_settings, write_record
from rsna_bcd._stage import CONF
from rsna_bcd.errors import InputError, difference
from rsna_bcd.files import write_csv
from rsna_bcd.inference.run import fold_hashes
from rsna_bcd.scoring.blend import BlendMethod, blend
from rsna_bcd.scoring.calibration import CalibrationMethod, calibration_scores
from rsna_bcd.scoring.cross_fitting import (
    CrossFitted,
    EnsembleFitter,
    FittedEnsemble,
    optimism,
    patient_groups,
)
from rsna_bcd.scoring.ensemble import FILE_NAME, Ensemble, Member, PolicyName, write_ensemble
from rsna_bcd.scoring.intervals import Interval, Score, bootstrap_scores, delong
from rsna_bcd.scoring.metrics import OPERATING, RANKING, Aggregation, logit
from rsna_bcd.scoring.thresholds import BestPf1, RecallRate, plateau
from rsna_bcd.tables.images import breast_sites, read_images
from rsna_bcd.tables.predictions import (
    ENSEMBLE_OOF_COLUMNS,
    align,
    by_aggregation,
    check_informative,
    read_run,
)
from rsna_bcd.targets import with_current_targets

_SETTINGS = (
    "name", "members", "blend", "weights", "rule", "threshold", "recall_rate", "by_site",
    "calibration", "groups", "resamples", "seed",
)  # fmt: skip
_LONGEST = 255  # bytes, of a name on common file systems


def ensemble(cfg: DictConfig) -> Ensemble:
    """Choose what the settings leave open, score it honestly, and write `ensemble.json`.

    It takes seconds, so a second call with the same settings fits again: the members may have
    gained folds.

    Raises:
        InputError: a member is absent, unfinished, tells nothing or lacks breasts that another has;
            a setting is unfit; or the folder was made with other settings.
    """
    names = _names(cfg)
    recipe = _recipe(cfg, names)
    folder = Path(cfg.ensemble_dir)
    record = select_settings(cfg, *_SETTINGS)
    check_same_config(folder / "config.yaml", record, overwrite=cfg.overwrite, root="ensemble")
    output = Path(cfg.paths.output)
    tables = {name: read_run(output / "runs" / name) for name in names}
    for name, table in tables.items():
        check_informative(name, table)
    rows, _ = align(tables)
    runs = [_member(output / "runs" / name, tables[name]) for name in names]
    columns = [_columns(cfg, output, run, tables[run.name], rows) for run in runs]
    labels, patients = rows["label"].to_numpy(), rows["patient_id"].to_numpy(dtype=str)
    sites = None if cfg.by_site is None else _sites(output, runs[0], rows)
    unread = _unread(rows, tables)
    groups = patient_groups(labels, patients, cfg.groups, cfg.seed)
    fitted = recipe.fit(labels, columns, patients, sites, unreadable=unread)
    held_out = recipe.cross_fit(labels, columns, patients, groups, sites, unreadable=unread)
    oof = _oof(rows, unread, fitted.combine(columns), held_out)
    result = Ensemble(
        name=cfg.name,
        blend=fitted.blend,
        members=_fitted_members(runs, fitted),
        policy=cfg.threshold,
        threshold=fitted.threshold.value,
        thresholds=fitted.threshold,
        plateau=plateau(labels[~unread], oof["probability"][~unread], patients[~unread]),
        cross_fitted_thresholds=tuple(one.threshold.value for one in held_out.fitted),
        calibration=fitted.calibration,
        prior=float(labels.mean()),
        breasts=len(oof),
        positives=int(labels.sum()),
        score=_score(oof, recipe, fitted, held_out, sites, cfg),
        command=_command(cfg, names),
    )
    # Never the old thresholds beside new rows, should writing fail in between.
    (folder / FILE_NAME).unlink(missing_ok=True)
    write_csv(oof, folder / "oof.csv")
    write_ensemble(result, folder / FILE_NAME)
    write_record(folder / "config.yaml", record)
    _show(result, folder)
    return result


def _command(cfg: DictConfig, names: list[str]) -> str:
    """The command that fits this ensemble again: its settings that are not the defaults."""
    defaults = OmegaConf.load(Path(CONF) / "ensemble.yaml")
    words = [f"name={cfg.name}", f"members=[{','.join(names)}]"]
    for key in _SETTINGS:
        if key not in ("name", "members") and cfg[key] != OmegaConf.select(defaults, key):
            value = "null" if cfg[key] is None else str(cfg[key]).replace(" ", "")
            words.append(f"{key}={value}")
    return " ".join(["python -m rsna_bcd.ensemble", *map(shlex.quote, words)])


def _recipe(cfg: DictConfig, names: list[str]) -> EnsembleFitter:
    """What the settings leave to be chosen; unfit ones are refused before anything is read."""
    for key, known in (
        ("threshold", get_args(PolicyName)),
        ("rule", ("own", "auto")),
        ("blend", get_args(BlendMethod)),
        ("calibration", ("none", *get_args(CalibrationMethod))),
    ):
        if cfg[key] not in known:
            raise InputError(f"{key} is {' or '.join(known)}, not {cfg[key]!r}.")
    _check_numbers(cfg)
    if cfg.blend == "rank_mean" and cfg.calibration == "temperature":
        raise InputError(
            "calibration=temperature scales logits around one half, which ranks put at the median "
            "breast. With blend=rank_mean use calibration=platt or isotonic."
        )
    if cfg.threshold == "pf1" and cfg.recall_rate is not None:
        raise InputError("recall_rate= is for threshold=recall_rate; pf1 chooses its own rate.")
    if cfg.threshold == "recall_rate" and cfg.by_site is not None:
        raise InputError(
            "by_site= is for threshold=pf1: a recall rate is kept over the whole test set, whatever"
            " the sites in it. Set one of them."
        )
    by_rate = cfg.threshold == "recall_rate"
    return EnsembleFitter(
        blend=cfg.blend,
        weights=_weights(cfg.weights, len(names)),
        policy=RecallRate(rate=cfg.recall_rate) if by_rate else BestPf1(by_site=cfg.by_site),
        calibration=None if cfg.calibration == "none" else cfg.calibration,
        names=tuple(names),
    )


def _check_numbers(cfg: DictConfig) -> None:
    """Refuse what is no whole number, or too small a one; and a rate that is none."""
    for key, least, what in (
        ("by_site", 1, "positives, or null"),
        ("groups", 2, "groups of patients"),
        ("resamples", 1, "resamples of the patients"),
        ("seed", 0, "a seed"),
    ):
        value = cfg[key]
        if value is None and key == "by_site":
            continue
        if type(value) is not int or value < least:  # true is an int, too
            raise InputError(f"{key}={value} must be a whole number ({what}), {least} or more.")
    rate = cfg.recall_rate
    if rate is not None and (type(rate) is not float or not 0 < rate < 1):
        raise InputError(f"recall_rate={rate} is not between 0 and 1, as .035 is, nor null.")


def _weights(setting: Any, n_members: int) -> tuple[float, ...] | None:
    """One a member; None where they are to be fitted."""
    if setting == "fitted":
        return None
    if setting is None:
        return (1.0,) * n_members
    if not OmegaConf.is_list(setting):
        raise InputError(f"weights is null, fitted or [2, 1], not {setting!r}.")
    weights = list(setting)
    if not all(type(weight) in (int, float) for weight in weights):
        raise InputError(f"weights={weights} must be {n_members} numbers, one a member.")
    blend([[0.0]] * n_members, "mean", weights)  # refuses other numbers of them, and unfit ones
    return tuple(float(weight) for weight in weights)


def _columns(
    cfg: DictConfig, output: Path, member: Member, table: pd.DataFrame, rows: pd.DataFrame
) -> dict[Aggregation, NDArray[np.float64]]:
    """A member's probabilities of `rows`, under each rule that may be chosen for it."""
    if cfg.rule == "auto":
        by_rule = by_aggregation(output / "runs" / member.name, table, member.rule)
    else:
        by_rule = {member.rule: table.set_index("prediction_id")["probability"]}
    return {
        rule: probability.loc[rows["prediction_id"]].to_numpy(dtype=np.float64)
        for rule, probability in by_rule.items()
    }


def _sites(output: Path, member: Member, rows: pd.DataFrame) -> NDArray:
    """The site of each of `rows`, from the table that the member was trained on."""
    csv = output / "prepared" / member.dataset / member.crop / "train.csv"
    if not csv.is_file():
        raise InputError(
            f"by_site= needs {csv}, which says where breasts were imaged. Prepare it again: "
            f"`python -m rsna_bcd.prepare dataset={member.dataset} crop={member.crop}`."
        )
    sites = breast_sites(read_images(csv, "train"))
    return rows["prediction_id"].map(sites).fillna("").to_numpy(dtype=str)


def _unread(rows: pd.DataFrame, tables: dict[str, pd.DataFrame]) -> NDArray[np.bool_]:
    """Which of `rows` have the prior alone, because no member could read an image of theirs."""
    unread = pd.concat([t.set_index("prediction_id")["unread"] for t in tables.values()])
    return rows["prediction_id"].map(unread.groupby(level=0).min()).to_numpy(dtype=np.bool_)


def _oof(
    rows: pd.DataFrame,
    unread: NDArray[np.bool_],
    blended: NDArray[np.float64],
    held_out: CrossFitted,
) -> pd.DataFrame:
    """The blend's out-of-fold rows, `ENSEMBLE_OOF_COLUMNS` and maybe `calibrated`."""
    oof = rows.assign(
        probability=blended,
        logit=logit(pd.Series(blended)),
        unread=unread.astype(np.int64),
        held_out=held_out.probabilities,
        ranking=held_out.ranking,
        group=held_out.groups,
        decision=held_out.decisions,
    )[list(ENSEMBLE_OOF_COLUMNS)]
    return oof if held_out.calibrated is None else oof.assign(calibrated=held_out.calibrated)


def _names(cfg: DictConfig) -> list[str]:
    """The members asked for."""
    names = [str(name) for name in cfg.members] if OmegaConf.is_list(cfg.members) else []
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"members={cfg.members} must be a list of different runs, such as members=[b5,small]."
        )
    if len(str(cfg.name).encode()) > _LONGEST:
        raise InputError(
            f"The name {str(cfg.name)[:40]}... is longer than a folder's may be, {_LONGEST} bytes. "
            "Give the ensemble a shorter one: name=..."
        )
    return names


def _member(run: Path, oof: pd.DataFrame) -> Member:
    """What the records of a run's folds say; rule and weight are yet to be fitted."""
    folds = tuple(sorted(int(fold) for fold in oof["fold"].unique()))
    files = [run / f"fold{fold}" / "config.yaml" for fold in folds]
    for file in files:
        differing = "\n".join(f"  {x}" for x in difference(_record(files[0]), _record(file)))
        if differing:
            raise InputError(
                f"Folds of {run.name} were trained with different settings ({files[0].parent.name} "
                f"-> {file.parent.name}):\n{differing}\nTrain them alike, or give each its name."
            )
    settings = _settings(files[0])
    hashes = fold_hashes(run, folds, settings["select"])
    return Member(name=run.name, folds=folds, weight=1.0, hashes=hashes, **settings)


def _record(record_file: Path) -> dict[Any, Any]:
    """All settings of a run but its fold, also where it starts from the same fold of another."""
    if not record_file.is_file():
        raise InputError(f"{record_file} does not exist. Train this fold again.")
    record = with_current_targets(OmegaConf.to_container(OmegaConf.load(record_file)))
    assert isinstance(record, dict)
    record.pop("rsna_bcd", None)  # the version
    fold = record.pop("fold", None)
    for run in record.get("starts_from", []):
        if run["fold"] == fold:
            run["fold"] = "the same"
    for settings in (record, record.get("network", {})):
        file = settings.get("checkpoint_path")
        if file is not None:
            settings["checkpoint_path"] = file.replace(f"/fold{fold}/", "/fold*/")
    return record


def _settings(record_file: Path) -> dict[str, Any]:
    """Data set, crop, image-to-breast rule and choice of weights from a run's own record."""
    record = OmegaConf.load(record_file)
    keys = {
        "dataset": "dataset.name",
        "crop": "crop.name",
        "rule": "breast_rule",
        "select": "select",
    }
    found = {name: OmegaConf.select(record, key) for name, key in keys.items()}
    absent = [keys[name] for name, value in found.items() if value is None]
    if absent:
        raise InputError(f"{record_file} lacks {', '.join(absent)}. Train this fold again.")
    return found


def _fitted_members(runs: list[Member], fitted: FittedEnsemble) -> tuple[Member, ...]:
    ranks = fitted.ranks or (None,) * len(runs)
    return tuple(
        replace(run, rule=rule, weight=weight, ranks=own)
        for run, rule, weight, own in zip(
            runs, fitted.aggregations, fitted.weights, ranks, strict=True
        )
    )


def _score(
    oof: pd.DataFrame,
    recipe: EnsembleFitter,
    fitted: FittedEnsemble,
    held_out: CrossFitted,
    sites: NDArray | None,
    cfg: DictConfig,
) -> dict[str, Any]:
    """Scores with intervals: where all was chosen on other patients, and in sample."""
    labels, patients = oof["label"].to_numpy(), oof["patient_id"].to_numpy(dtype=str)
    blended, honest = oof["probability"].to_numpy(), held_out.ranking
    unread = oof["unread"].to_numpy(dtype=np.bool_)
    in_sample = np.where(unread, 0, fitted.threshold.decide(blended, sites))
    judged = (
        ("blend", RANKING, honest),
        ("in_sample", RANKING, blended),
        ("in_sample", OPERATING, in_sample),
    )
    scores = {
        f"{kind}.{name}": Score(metric, of_rows)
        for kind, metrics, of_rows in judged
        for name, metric in metrics.items()
    }
    rest = {"patients": patients, "n": cfg.resamples, "seed": cfg.seed}
    found: dict[str, dict[str, Interval]] = {}
    for key, interval in bootstrap_scores(scores, labels, **rest).items():
        kind, name = key.split(".")
        found.setdefault(kind, {})[name] = interval
    calibration = {}
    if recipe.blend != "rank_mean":  # ranks are no probabilities before they are calibrated
        calibration["blended"] = calibration_scores(labels, blended, **rest)
    if held_out.calibrated is not None:
        calibration["calibrated"] = calibration_scores(labels, held_out.calibrated, **rest)
    return {
        **found["blend"],
        "auroc_delong": delong(labels, honest, patients),
        "cross_fitted": recipe.intervals(
            OPERATING, labels, held_out, sites=sites, unreadable=unread, **rest
        ),
        "in_sample": found["in_sample"],
        "optimism": optimism(labels, in_sample, held_out.decisions),
        "calibration": calibration,
    }


def _show(fitted: Ensemble, folder: Path) -> None:
    """Print the members and the scores."""
    console = Console(markup=False)
    members = Table("member", "folds", "crop", "breast", "weight")
    for member in fitted.members:
        folds = ", ".join(map(str, member.folds))
        members.add_row(member.name, folds, member.crop, member.rule, f"{member.weight:.3g}")
    console.print(members)
    title = f"{fitted.breasts} breasts out of fold, {fitted.positives} with cancer"
    scores = Table("", "cross-fitted", "in sample (optimistic)", title=title)
    honest = {**{name: fitted.score[name] for name in RANKING}, **fitted.score["cross_fitted"]}
    for name, interval in honest.items():
        scores.add_row(name, str(interval), str(fitted.score["in_sample"][name]))
        if name == "auroc":
            scores.add_row("auroc, by DeLong", str(fitted.score["auroc_delong"]), "")
    if fitted.calibration is not None:
        for kind, of_kind in fitted.score["calibration"].items():
            for name, of_name in of_kind.items():
                scores.add_row(f"{name}, {kind}", str(of_name), "")
    scores.caption = "value (95 % interval over patients; cross-fitted: thresholds refitted)"
    console.print(scores)
    chosen = [member.name for member in fitted.members if member.select != "last"]
    if chosen:
        console.print(
            f"All these scores are optimistic: {', '.join(chosen)} kept the epoch that was best on "
            "the fold it is scored on (select=best).",
            style="bold",
        )
    if fitted.policy == "recall_rate":
        console.print(
            "Decisions of these scores are by the fitted threshold; on a test set that is large "
            "enough, submit calls the same share instead.",
            soft_wrap=True,
        )
    elif any(len(member.folds) > 1 for member in fitted.members):
        console.print(
            "A test set has the mean over the folds, which is less extreme than the single fold of "
            "these rows, so that this threshold calls fewer of it; threshold=recall_rate calls the "
            "same share.",
            soft_wrap=True,
        )
    own = "".join(f", site {k} {v:.4f}" for k, v in fitted.thresholds.sites.items())
    console.print(
        f"threshold {fitted.threshold:.4f} (plateau {fitted.plateau.low:.4f} to "
        f"{fitted.plateau.high:.4f}){own}; pF1 in sample less "
        f"cross-fitted: {fitted.score['optimism']:+.3f}. {folder / FILE_NAME}",
        highlight=False,
        soft_wrap=True,
    )
