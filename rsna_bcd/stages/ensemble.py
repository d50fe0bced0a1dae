"""`python -m rsna_bcd.ensemble`: fit and score an ensemble on its members' out-of-fold rows."""

import shlex
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from rsna_bcd import settings
from rsna_bcd._records import check_same_config, recorded_keys, select_settings, write_record
from rsna_bcd._stage import CONF
from rsna_bcd.files import write_csv
from rsna_bcd.reporting.console import make_console
from rsna_bcd.scoring.ensemble import FILE_NAME, Ensemble, write_ensemble
from rsna_bcd.scoring.metrics import RANKING
from rsna_bcd.stages._ensemble_fit import fit_ensemble, read_fitter, read_members, read_sites

_RECORDED = recorded_keys(settings.Ensemble)


def ensemble(cfg: DictConfig) -> Ensemble:
    """Fit an ensemble, score it by cross-fitting, and write `ensemble.json`.

    It takes seconds, so a second call with the same settings fits again: the members may have
    gained folds.

    Raises:
        InputError: a member is absent, unfinished, constant or lacks breasts that another has; a
            setting is invalid; or the folder was made with other settings.
    """
    fitter = read_fitter(cfg)
    folder, output = Path(cfg.ensemble_dir), Path(cfg.paths.output)
    record = select_settings(cfg, *_RECORDED)
    check_same_config(folder / "config.yaml", record, overwrite=cfg.overwrite, root="ensemble")
    oof = read_members(output, fitter.names, every_rule=cfg.rule == "auto", networks=cfg.networks)
    sites = None if cfg.by_site is None else read_sites(output, oof.runs[0], oof.rows)
    fitted, table = fit_ensemble(cfg.name, fitter, oof, cfg, sites)
    result = replace(fitted, command=_command(cfg), networks=cfg.networks)
    # An old threshold must not remain beside new rows if writing fails in between.
    (folder / FILE_NAME).unlink(missing_ok=True)
    write_csv(table, folder / "oof.csv")
    write_ensemble(result, folder / FILE_NAME)
    write_record(folder / "config.yaml", record)
    _show(result, folder)
    return result


def _command(cfg: DictConfig) -> str:
    """The command that fits this ensemble again: its settings that are not the defaults."""
    defaults = OmegaConf.load(Path(CONF) / "ensemble.yaml")
    words = [f"name={cfg.name}", f"members=[{','.join(map(str, cfg.members))}]"]
    for key in _RECORDED:
        if key not in ("name", "members") and cfg[key] != OmegaConf.select(defaults, key):
            value = "null" if cfg[key] is None else str(cfg[key]).replace(" ", "")
            words.append(f"{key}={value}")
    return " ".join(["python -m rsna_bcd.ensemble", *map(shlex.quote, words)])


def _show(fitted: Ensemble, folder: Path) -> None:
    """Print the members and the scores."""
    console = make_console()
    members = Table("member", "folds", "crop", "breast", "weight")
    for member in fitted.members:
        folds = ", ".join(map(str, member.folds))
        members.add_row(member.name, folds, member.crop, member.rule, f"{member.weight:.3g}")
    console.print(members, soft_wrap=False)
    title = f"{fitted.breasts} breasts out of fold, {fitted.positives} with cancer"
    scores = Table("", "cross-fitted", "in sample (optimistic)", title=title)
    ranking = {name: fitted.score[name] for name in RANKING}
    for name, interval in (ranking | fitted.score["cross_fitted"]).items():
        scores.add_row(name, str(interval), str(fitted.score["in_sample"][name]))
        if name == "auroc":
            scores.add_row("auroc, by DeLong", str(fitted.score["auroc_delong"]), "")
    if fitted.calibration is not None:
        for kind, metrics in fitted.score["calibration"].items():
            for name, score in metrics.items():
                scores.add_row(f"{name}, {kind}", str(score), "")
    scores.caption = "value (95 % interval over patients; cross-fitted: thresholds refitted)"
    console.print(scores, soft_wrap=False)
    chosen = [member.name for member in fitted.members if member.select != "last"]
    if chosen:
        console.print(
            f"All these scores are optimistic: {', '.join(chosen)} kept the epoch that was best on "
            "the fold it is scored on (select=best).",
            style="bold",
        )
    if fitted.networks == "all":
        console.print(
            "All this is of the networks of the folds. submit predicts by those that were trained "
            f"on all patients, and predicts {fitted.thresholds.recall_rate:.1%} positive, as here."
        )
    elif fitted.policy == "recall_rate":
        console.print(
            "The decisions of these scores are by the fitted threshold; on a large enough test "
            "set, submit keeps the recall rate instead."
        )
    elif any(len(member.folds) > 1 for member in fitted.members):
        console.print(
            "A test set has the mean over the folds, which is less extreme than the single fold of "
            "these rows, so its recall rate is lower at this threshold; threshold=recall_rate "
            "keeps the rate."
        )
    own = "".join(f", site {k} {v:.4f}" for k, v in fitted.thresholds.sites.items())
    console.print(
        f"threshold {fitted.threshold:.4f} (plateau {fitted.plateau.low:.4f} to "
        f"{fitted.plateau.high:.4f}){own}; pF1 in sample less "
        f"cross-fitted: {fitted.score['optimism']:+.3f}. {folder / FILE_NAME}"
    )
