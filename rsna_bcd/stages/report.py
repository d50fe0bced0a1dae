"""`python -m rsna_bcd.report`: out-of-fold predictions to one page, and to a model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_file
from rsna_bcd.imaging.crops import read_crop
from rsna_bcd.inference.baselines import intensity_features, metadata_features, out_of_fold
from rsna_bcd.inference.run import check_current, resolve_device
from rsna_bcd.inference.saliency import Explainer
from rsna_bcd.reporting.console import make_console
from rsna_bcd.reporting.evaluation import (
    Evaluation,
    ReportInputs,
    Sample,
    evaluate,
    read_manifests,
)
from rsna_bcd.reporting.formatting import THIN
from rsna_bcd.reporting.gallery import Case, choose_cases, gallery, make_picture
from rsna_bcd.reporting.page import TILES, render_card, render_page, score_rows
from rsna_bcd.reporting.subgroups import sample_images
from rsna_bcd.scoring.cross_fitting import EnsembleFitter
from rsna_bcd.scoring.ensemble import FILE_NAME, Ensemble, read_ensemble
from rsna_bcd.scoring.metrics import Aggregation
from rsna_bcd.scoring.thresholds import BestPf1, RecallRate
from rsna_bcd.stages._ensemble_fit import fit_ensemble, make_policy, read_members
from rsna_bcd.tables.images import read_images
from rsna_bcd.tables.predictions import align, by_aggregation, read_ensemble_oof, read_run

_TREES = {
    "metadata": "the tree on metadata",
    "intensity": "the tree on intensity statistics",
}


def report(cfg: DictConfig) -> Evaluation:
    """Write the page and the model card of an ensemble or of a run.

    Raises:
        InputError: an invalid setting, or inputs that are absent, unfinished or do not fit
            together.
    """
    if (cfg.name is None) == (cfg.run is None):
        raise InputError("Give name= of an ensemble or run= of a run, one of them.")
    device = resolve_device(cfg.device)
    output = Path(cfg.paths.output)
    ensemble, oof = _read_ensemble(cfg, output) if cfg.run is None else _fit_run(cfg, output)
    folders = [output / "prepared" / m.dataset / m.crop for m in ensemble.members]
    images = read_images(folders[0] / "train.csv", "train")
    members = _member_probabilities(ensemble, oof, output)
    evaluation = evaluate(
        ReportInputs(
            ensemble=ensemble,
            is_run=cfg.name is None,
            oof=oof,
            images=images,
            members=members,
            others=_baselines(cfg, images, oof, folders[0], output),
            policy=BestPf1() if cfg.name is None else _policy(cfg, output),
            preparation=read_manifests(list(dict.fromkeys(folders))),
            samples=_samples(cfg, images, oof, folders[0]),
            cases=_cases(cfg, ensemble, oof, members, output, device),
            maps=cfg.maps,
            histories=_histories(ensemble, output),
            synthetic=(Path(cfg.paths.data) / "synthesize.yaml").is_file(),
            resamples=cfg.resamples,
            band_resamples=cfg.band_resamples,
            seed=cfg.seed,
        )
    )
    folder = Path(cfg.report_dir) / (f"runs/{cfg.run}" if cfg.name is None else str(cfg.name))
    card, page = folder / "model_card.md", folder / "index.html"
    write_file(card, render_card(evaluation).encode())
    write_file(page, render_page(evaluation).encode())
    scores = [
        f"{row.name} {row.value} ({row.range})".replace(THIN, " ")
        for row in score_rows(evaluation.scores, TILES)
    ]
    console = make_console()
    for line in (
        f"Out of fold, with 95 % intervals: {', '.join(scores)}",
        f"Report: {page} ({page.stat().st_size / 1e6:.1f} MB)",
        f"Model card: {card}",
    ):
        console.print(line)
    return evaluation


def _read_ensemble(cfg: DictConfig, output: Path) -> tuple[Ensemble, pd.DataFrame]:
    folder = output / "ensembles" / str(cfg.name)
    ensemble = read_ensemble(folder / FILE_NAME)
    check_current(ensemble, output)
    return ensemble, read_ensemble_oof(folder / "oof.csv")


def _fit_run(cfg: DictConfig, output: Path) -> tuple[Ensemble, pd.DataFrame]:
    """A run as an ensemble of one, its threshold fitted and cross-fitted here."""
    name = str(cfg.run)
    fitter = EnsembleFitter("mean", (1.0,), BestPf1(), names=(name,))
    oof = read_members(output, fitter.names, allow_constant=True)
    return fit_ensemble(name, fitter, oof, cfg)


def _policy(cfg: DictConfig, output: Path) -> BestPf1 | RecallRate:
    """The policy of an ensemble's threshold, from its record."""
    file = output / "ensembles" / str(cfg.name) / "config.yaml"
    return make_policy(_record(file, "Fit the ensemble again."))


def _member_probabilities(
    ensemble: Ensemble, oof: pd.DataFrame, output: Path
) -> dict[str, NDArray[np.float64]]:
    """Each member's probabilities of the breasts, by its aggregation in the ensemble."""
    members = {}
    for member in ensemble.members:
        run = output / "runs" / member.name
        try:
            table = read_run(run, member.folds)
            own = _trained_rule(run / f"fold{member.folds[0]}" / "config.yaml")
        except InputError as error:
            raise InputError(
                f"A report needs the predictions of all members, {member.name} among them. {error} "
                "Or fit the ensemble again without it, with members=[...] overwrite=true."
            ) from error
        probabilities = table.set_index("prediction_id")["probability"]
        if own != member.rule:
            probabilities = by_aggregation(run, table, own)[member.rule]
        absent = oof["prediction_id"][~oof["prediction_id"].isin(probabilities.index)]
        if len(absent):
            raise InputError(
                f"Run {member.name} no longer predicts {len(absent)} breasts of the ensemble, "
                f"such as {absent.iloc[0]}. Fit the ensemble again, with overwrite=true."
            )
        members[member.name] = probabilities.loc[oof["prediction_id"]].to_numpy(np.float64)
    return members


def _histories(ensemble: Ensemble, output: Path) -> dict[str, dict[str, pd.DataFrame]]:
    """`metrics.csv` of each member by fold, where it exists."""
    histories: dict[str, dict[str, pd.DataFrame]] = {}
    for member in ensemble.members:
        for fold in member.folds:
            file = output / "runs" / member.name / f"fold{fold}" / "metrics.csv"
            if file.is_file():
                histories.setdefault(member.name, {})[f"fold {fold}"] = pd.read_csv(file)
    return histories


def _trained_rule(file: Path) -> Aggregation:
    """The rule from images to a breast that a fold was trained with."""
    rule: Aggregation | None = _record(file, "Train this fold again.").get("breast_rule")
    if rule is None:
        raise InputError(f"{file} is incomplete. Train this fold again.")
    return rule


def _record(file: Path, remedy: str) -> Any:
    if not file.is_file():
        raise InputError(f"{file} does not exist. {remedy}")
    return OmegaConf.load(file)


def _baselines(
    cfg: DictConfig, images: pd.DataFrame, oof: pd.DataFrame, prepared: Path, output: Path
) -> dict[str, NDArray[np.float64]]:
    """Out-of-fold probabilities of the models to compare with."""
    named = cfg.baseline if OmegaConf.is_list(cfg.baseline) else [cfg.baseline]
    baselines = {}
    for name in (str(one) for one in named if one is not None):
        if name in _TREES:
            features = (
                metadata_features(images)
                if name == "metadata"
                else intensity_features(images, prepared)
            )
            baselines[_TREES[name]] = out_of_fold(features, images, oof, cfg.seed)
        else:
            folds = sorted(int(fold) for fold in oof["fold"].unique())
            tables = {"the model": oof, name: read_run(output / "runs" / name, folds)}
            baselines[f"run {name}"] = align(tables)[1][1]
    return baselines


def _samples(
    cfg: DictConfig, images: pd.DataFrame, oof: pd.DataFrame, prepared: Path
) -> list[Sample]:
    """Some crops of the breasts of the report."""
    if "path" not in images or not cfg.samples:
        return []
    own = images[images["prediction_id"].isin(oof["prediction_id"])]
    samples = []
    for row in sample_images(own, cfg.samples).to_dict("records"):
        try:
            picture = make_picture(read_crop(prepared / row["path"]))
        except InputError as error:
            raise InputError(f"{error} Or leave the samples out with samples=0.") from error
        machine = f", machine {row['machine_id']}" if "machine_id" in row else ""
        caption = f"{row['laterality']} {row['view']}{machine}"
        samples.append(Sample(picture, caption, row["cancer"] == 1))
    return samples


def _cases(
    cfg: DictConfig,
    ensemble: Ensemble,
    oof: pd.DataFrame,
    members: Mapping[str, NDArray[np.float64]],
    output: Path,
    device: torch.device,
) -> Sequence[Case] | None:
    """Breasts of the gallery, explained by the member with the largest weight."""
    if cfg.cases == 0:
        return None
    chosen = choose_cases(oof.assign(probability=oof["ranking"]), oof["decision"], cfg.cases)
    try:
        explainer = Explainer.for_ensemble(ensemble, output, device)
        if not cfg.maps:
            return gallery(chosen, explainer.images, explainer.without_maps)
        if len(members) == 1:
            return gallery(chosen, explainer.images, explainer)
        own = dict(zip(oof["prediction_id"], members[explainer.name].tolist(), strict=True))
        return gallery(chosen, explainer.images, explainer, explainer.name, own)
    except InputError as error:
        raise InputError(
            f"{error} Or show crops alone with maps=false, or leave the gallery out with cases=0."
        ) from error
