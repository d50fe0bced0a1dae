"""`python -m rsna_bcd.ensemble`: out-of-fold predictions to a blend and an honest threshold."""

from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from rsna_bcd._stage import difference, record_of, settle, stage, write_record
from rsna_bcd.errors import InputError
from rsna_bcd.scoring.blend import blend
from rsna_bcd.scoring.bootstrap import patient_bootstraps
from rsna_bcd.scoring.ensembles import FILE_NAME, Ensemble, Member, write_ensemble
from rsna_bcd.scoring.metrics import DECISION, RANKING
from rsna_bcd.scoring.threshold import best_threshold, cross_fit, decide, patient_groups
from rsna_bcd.tables.out_of_fold import align, read_run
from rsna_bcd.tables.predictions import OOF_COLUMNS, logit, write_csv


def ensemble(cfg: DictConfig) -> Ensemble:
    """Blend the members, fit the threshold, score both, and write `ensemble.json`.

    It takes seconds, so a second call with the same settings fits again: the members may have
    gained folds.

    Raises:
        InputError: a member is absent, unfinished or lacks breasts that another has; there is
            nothing to choose a threshold by; or the folder was made with other settings.
    """
    folder = Path(cfg.ensemble_dir)
    record = record_of(cfg, "name", "members", "blend", "weights", "groups", "resamples", "seed")
    settle(folder / "config.yaml", record, overwrite=cfg.overwrite)
    names = _names(cfg)
    runs = Path(cfg.paths.output) / "runs"
    tables = {name: read_run(runs / name) for name in names}
    rows, probabilities = align(tables)
    weights = [1.0] * len(names) if cfg.weights is None else [float(w) for w in cfg.weights]
    blended = blend(probabilities, cfg.blend, weights)
    unread = pd.concat([t.set_index("prediction_id")["unread"] for t in tables.values()])
    oof = rows.assign(
        probability=blended,
        logit=logit(pd.Series(blended)),
        # The prior was given only where no member could read an image.
        unread=rows["prediction_id"].map(unread.groupby(level=0).min()),
    )
    fitted = Ensemble(
        name=cfg.name,
        blend=cfg.blend,
        members=tuple(
            _member(runs / name, tables[name], weight)
            for name, weight in zip(names, weights, strict=True)
        ),
        threshold=best_threshold(oof["label"], oof["probability"]),
        prior=float(oof["label"].mean()),
        breasts=len(oof),
        positives=int(oof["label"].sum()),
        score=_score(oof, cfg),
    )
    write_csv(oof[list(OOF_COLUMNS)], folder / "oof.csv")
    write_ensemble(fitted, folder / FILE_NAME)
    write_record(folder / "config.yaml", record)
    _show(fitted, folder)
    return fitted


def _names(cfg: DictConfig) -> list[str]:
    """The members asked for."""
    names = [str(name) for name in cfg.members] if OmegaConf.is_list(cfg.members) else []
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"members={cfg.members} must be a list of different runs, such as members=[b5,small]."
        )
    return names


def _member(run: Path, oof: pd.DataFrame, weight: float) -> Member:
    """What inference must know about a run, from the records of its folds."""
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
    return Member(name=run.name, folds=folds, weight=weight, **settings)


def _record(record_file: Path) -> dict[Any, Any]:
    """All settings of a run but its fold, also where it starts from the same fold of another."""
    if not record_file.is_file():
        raise InputError(f"{record_file} does not exist. Train this fold again.")
    record = OmegaConf.to_container(OmegaConf.load(record_file))
    assert isinstance(record, dict)
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


def _score(oof: pd.DataFrame, cfg: DictConfig) -> dict[str, Any]:
    """Scores with intervals: of the ranking, and of decisions made honestly and in sample."""
    labels, probabilities = oof["label"].to_numpy(), oof["probability"].to_numpy()
    patients = oof["patient_id"].to_numpy(dtype=str)
    groups = patient_groups(labels, patients, cfg.groups, cfg.seed)
    honest = cross_fit(labels, probabilities, groups).decisions
    in_sample = decide(probabilities, best_threshold(labels, probabilities))
    rest = {"patients": patients, "n": cfg.resamples, "seed": cfg.seed}
    return {
        **patient_bootstraps(RANKING, labels, probabilities, **rest),
        "cross_fitted": patient_bootstraps(DECISION, labels, honest, **rest),
        "in_sample": patient_bootstraps(DECISION, labels, in_sample, **rest),
    }


def _show(fitted: Ensemble, folder: Path) -> None:
    """Print the members and the scores."""
    console = Console()
    members = Table("member", "folds", "crop", "breast", "weight")
    for member in fitted.members:
        folds = ", ".join(map(str, member.folds))
        members.add_row(member.name, folds, member.crop, member.rule, f"{member.weight:g}")
    console.print(members)
    title = f"{fitted.breasts} breasts out of fold, {fitted.positives} with cancer"
    scores = Table("", "cross-fitted", "in sample (optimistic)", title=title)
    for name in RANKING:
        scores.add_row(name, str(fitted.score[name]), "")
    for name in DECISION:
        scores.add_row(name, *(str(fitted.score[k][name]) for k in ("cross_fitted", "in_sample")))
    scores.caption = "value (95 % interval over resampled patients)"
    console.print(scores)
    chosen = [member.name for member in fitted.members if member.select != "last"]
    if chosen:
        console.print(
            f"All these scores are optimistic: {', '.join(chosen)} kept the epoch that was best on "
            "the fold it is scored on (select=best).",
            style="bold",
        )
    console.print(
        f"threshold {fitted.threshold:.4f}, {folder / FILE_NAME}", highlight=False, soft_wrap=True
    )


@stage("ensemble")
def main(cfg: DictConfig) -> None:
    """Run the stage."""
    ensemble(cfg)


if __name__ == "__main__":
    main()
