"""`python -m rsna_bcd.submit`: test images + `ensemble.json` -> `submission.csv`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from rsna_bcd._stage import stage
from rsna_bcd.errors import InputError
from rsna_bcd.inference.ensembling import predict_breasts
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.files import find_files
from rsna_bcd.scoring.ensembles import Ensemble, read_ensemble
from rsna_bcd.tables.images import read_images
from rsna_bcd.tables.predictions import (
    PREDICTION_COLUMNS,
    SUBMISSION_COLUMNS,
    check_submission,
    write_csv,
)

# The processes that decode import this module as well. What needs torch is imported where it is
# used, in the main process alone: it would cost each of them seconds and half a gigabyte.
if TYPE_CHECKING:
    import torch

    from rsna_bcd.inference.runs import Run
    from rsna_bcd.inference.stream import BreastPrediction, Prediction

_SHOWN = 5  # failed files named in the summary; failures.csv has all


def submit(cfg: DictConfig) -> pd.DataFrame:
    """Predict the test set with every fold of every member, and write the submission.

    Returns:
        The submission: `prediction_id, cancer` (0 or 1), in the order of the sample submission.

    Raises:
        InputError: no such ensemble or run, unfit tables, or a submission that does not answer the
            sample submission. A wrong file is never written.
    """
    from rsna_bcd.inference.stream import Prediction, predict_files

    started = time.monotonic()
    ensemble = read_ensemble(Path(cfg.ensemble_json))
    if cfg.dataset.test_csv is None:
        raise InputError(f"dataset={cfg.dataset.name} has no test split: nothing to submit.")
    images = read_images(cfg.dataset.test_csv, "test", instantiate(cfg.dataset.rows))
    sample = _read_sample(Path(cfg.sample_submission), images)
    runs = _load_runs(ensemble, Path(cfg.paths.models), _device(cfg.device))
    files = find_files(Path(cfg.dataset.test_images), images, cfg.source)
    if not files:
        raise InputError(
            f"None of the {len(images)} files of {cfg.dataset.test_csv} is in "
            f"{cfg.dataset.test_images} as source={cfg.source}. Check paths.data= and source=."
        )
    workers = engine.usable_cores() if cfg.workers is None else cfg.workers
    stream = predict_files(
        images,
        files,
        [run for member in runs for run in member],
        source=cfg.source,
        batch_size=cfg.batch_size,
        workers=workers,
    )
    console = Console(stderr=True)
    others = sorted({run.source for member in runs for run in member} - {cfg.source})
    if others:
        console.print(
            f"Note: networks were trained on source={', '.join(others)}, not {cfg.source}; "
            "probabilities, and the threshold above all, may not carry over."
        )
    by_image: list[Prediction] = []
    by_breast: list[BreastPrediction] = []
    with Progress(console=console) as progress:
        task = progress.add_task("Predicting", total=len(files))
        for prediction in stream:
            if isinstance(prediction, Prediction):
                by_image.append(prediction)
                progress.advance(task)
            else:
                by_breast.append(prediction)
    failures = _failures(images, files, by_image)
    breasts = predict_breasts(ensemble, runs, images, by_image, by_breast)
    submission = _in_order(breasts[list(SUBMISSION_COLUMNS)], sample)
    check_submission(submission, sample)
    folder = Path(cfg.submission_dir)
    write_csv(failures, folder / "failures.csv")
    shown = [c for c in (*PREDICTION_COLUMNS, "calibrated") if c in breasts]
    write_csv(breasts[shown], folder / "predictions.csv")
    write_csv(submission, folder / "submission.csv")
    _summarise(console, folder, submission, breasts, failures, time.monotonic() - started)
    _show_threshold(console, ensemble, breasts)
    return submission


def _device(name: str) -> torch.device:
    """The device named, `auto` being a GPU where there is one."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown, or not on this machine
        raise InputError(f"device={name}: {error}. Choose auto, cpu or cuda.") from error
    return device


def _read_sample(csv: Path, images: pd.DataFrame) -> pd.DataFrame:
    """The breasts to answer for; data that is no competition's has those of its own table."""
    if not csv.is_file():
        return images[["prediction_id"]].drop_duplicates()
    try:
        sample = pd.read_csv(csv, dtype={"prediction_id": "string"})
    except pd.errors.EmptyDataError:
        raise InputError(f"{csv} is empty. Download it anew.") from None
    if "prediction_id" not in sample:
        raise InputError(f"{csv} has no column prediction_id. Download it anew.")
    # Now, not after hours of prediction.
    check_submission(images[["prediction_id"]].drop_duplicates().assign(cancer=0), sample)
    return sample


def _load_runs(ensemble: Ensemble, models: Path, device: torch.device) -> list[list[Run]]:
    """The folds of each member, in the ensemble's order."""
    from rsna_bcd.inference.runs import load_run

    return [
        [load_run(models / "runs" / member.name / f"fold{k}", device) for k in member.folds]
        for member in ensemble.members
    ]


def _failures(
    images: pd.DataFrame, files: dict[str, Path], predictions: list[Prediction]
) -> pd.DataFrame:
    """Each image that took no part, with its reason."""
    reasons = {p.image_id: p.reason for p in predictions if p.reason is not None}
    reasons |= dict.fromkeys(
        images.loc[~images["image_id"].isin(files.keys()), "image_id"], "absent"
    )
    rows = images.loc[images["image_id"].isin(reasons.keys())]
    return rows[["prediction_id", "patient_id", "image_id"]].assign(
        reason=rows["image_id"].map(reasons)
    )


def _in_order(submission: pd.DataFrame, sample: pd.DataFrame) -> pd.DataFrame:
    """In the order of the sample submission where that is complete."""
    order = {prediction_id: i for i, prediction_id in enumerate(sample["prediction_id"])}
    return submission.sort_values(
        "prediction_id", key=lambda ids: ids.map(order), kind="stable", ignore_index=True
    )


def _summarise(
    console: Console,
    folder: Path,
    submission: pd.DataFrame,
    breasts: pd.DataFrame,
    failures: pd.DataFrame,
    seconds: float,
) -> None:
    """One screen: what was predicted, what failed, how long it took."""
    positive, unread = int(submission["cancer"].sum()), int(breasts["unread"].sum())
    console.print(
        f"{len(submission)} breasts, {positive} called positive "
        f"({positive / len(submission):.1%}), in {seconds:.0f} s. {folder / 'submission.csv'}",
        highlight=False,
        soft_wrap=True,
    )
    if len(failures):
        console.print(
            f"{len(failures)} image(s) took no part; {unread} breast(s) of which nothing could be "
            f"read have the prior and are called negative. {folder / 'failures.csv'}",
            highlight=False,
            soft_wrap=True,
        )
        for row in failures.head(_SHOWN).itertuples():
            console.print(f"  {row.image_id}: {row.reason}", highlight=False, soft_wrap=True)


def _show_threshold(console: Console, ensemble: Ensemble, breasts: pd.DataFrame) -> None:
    """Say which threshold decided, and whether it is the one that was fitted."""
    read = breasts.loc[breasts["unread"] == 0, "probability"]
    used = ensemble.threshold_for(read)
    how = "".join(f", site {site} {value:.4f}" for site, value in used.sites.items())
    if ensemble.keeps_rate(len(read)):
        how = f", which keeps a recall rate of {used.recall_rate:.1%}"
    elif ensemble.policy == "recall_rate":
        how += ", as fitted: too few breasts to keep a recall rate on"
    console.print(f"Threshold {used.value:.4f}{how}.", highlight=False, soft_wrap=True)


@stage("submit")
def main(cfg: DictConfig) -> None:
    """Run the stage."""
    submit(cfg)


if __name__ == "__main__":
    main()
