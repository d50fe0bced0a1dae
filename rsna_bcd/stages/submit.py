"""`python -m rsna_bcd.submit`: test images + `ensemble.json` -> `submission.csv`."""

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from rsna_bcd.errors import InputError
from rsna_bcd.files import parts_sha256, write_file
from rsna_bcd.inference.deadline import deadline
from rsna_bcd.inference.predictor import resolve_precision
from rsna_bcd.inference.progress import (
    Fingerprint,
    Progress,
    inputs_fingerprint,
    open_progress,
)
from rsna_bcd.inference.run import Run, check_current, load_members, resolve_device
from rsna_bcd.inference.stream import InferenceSettings
from rsna_bcd.inference.test_set import (
    Members,
    Outcome,
    TestSet,
    TestSetResult,
    add_missing_columns,
    decide,
    predict_test_set,
    read_test_set,
)
from rsna_bcd.processes import usable_cores
from rsna_bcd.reporting.console import ProgressBar, SubmissionSummary, make_console
from rsna_bcd.scoring.ensemble import Ensemble, read_ensemble
from rsna_bcd.tables.predictions import read_submission
from rsna_bcd.tables.test_set import failures_table

_OUTPUTS = ("failures.csv", "predictions.csv", "submission.csv", "summary.json")


def submit(cfg: DictConfig, started: float | None = None) -> pd.DataFrame:
    """Predict the test set with every fold of every member, and write the submission.

    Predictions are kept in a progress file, which a process that was killed resumes from. Earlier
    outputs are replaced when all of the new ones are computed. `summary.json` is written last: if
    all are there, and all inputs are the same, nothing is done.

    Args:
        cfg: of `submit`.
        started: start of the time budget (`time.monotonic`); None for now.

    Returns:
        The submission: `prediction_id, cancer`, in the order of the sample submission. `cancer` is
        0 or 1; under `unread=prior`, the prevalence of training for a breast without a readable
        image.

    Raises:
        InputError: no such ensemble or run, invalid tables or settings, a folder with predictions
            of other inputs, or a submission that does not fit the sample submission, which is not
            written.
    """
    started = time.monotonic() if started is None else started
    console = make_console(stderr=True)
    folder, models = Path(cfg.submission_dir), Path(cfg.paths.models)
    ensemble = read_ensemble(Path(cfg.ensemble_json))
    check_current(ensemble, models)
    test = _read_test_set(cfg)
    device = resolve_device(cfg.device)
    settings = _settings(cfg, device, started)
    members = load_members(ensemble, models, device)
    runs = [run for member in members for run in member]
    test = add_missing_columns(test, ensemble, members)
    if others := sorted({run.source for run in runs} - {cfg.source}):
        console.print(
            f"Note: networks were trained on source={', '.join(others)}, not {cfg.source}; "
            "probabilities, and the threshold above all, may not carry over.",
        )
    inputs, asked = _inputs(cfg, runs, test, device, settings)
    with open_progress(folder / "journal.jsonl", inputs, overwrite=cfg.overwrite) as progress:
        if _is_finished(folder, progress, asked):
            console.print(f"{folder} is finished already; overwrite=true predicts again.")
            return read_submission(folder / "submission.csv")
        with ProgressBar(console, "Predicting", len(test.files)) as bar:
            outcome = predict_test_set(
                test, members, progress, settings, log=bar.log, on_progress=bar.update
            )
        result = decide(test, ensemble, members, progress, outcome, cfg.unread)
        how = ", ".join([f"{device}", settings.precision, " and ".join(sorted({*outcome.engines}))])
        summary = _summary(ensemble, members, test, progress, outcome, result, how)
        (folder / "summary.json").unlink(missing_ok=True)  # a mixture of outputs is not finished
        result.write(folder)
        seconds = time.monotonic() - started
        record = {**summary.as_dict(), "seconds_in_all": seconds, "asked": asked}
        record["start"] = progress.start
        write_file(folder / "summary.json", json.dumps(record, indent=1).encode() + b"\n")
    for line in (*summary.lines(result.failures), str(folder / "submission.csv")):
        console.print(line)
    return result.submission


def _read_test_set(cfg: DictConfig) -> TestSet:
    csv = cfg.dataset.test_csv
    if csv is None:
        raise InputError(f"dataset={cfg.dataset.name} has no test split: nothing to submit.")
    sample, folder = Path(cfg.sample_submission), Path(cfg.dataset.test_images)
    return read_test_set(csv, sample, folder, cfg.source, instantiate(cfg.dataset.rows))


def _settings(cfg: DictConfig, device: torch.device, started: float) -> InferenceSettings:
    hours = cfg.budget.hours
    if hours is not None and not hours > 0:
        raise InputError(f"budget.hours={hours}: give hours, greater than 0, or null.")
    return InferenceSettings(
        source=cfg.source,
        batch_size=cfg.batch_size,
        workers=usable_cores() if cfg.workers is None else cfg.workers,
        ahead=cfg.ahead,
        precision=resolve_precision(cfg.precision, device.type),
        engine=cfg.engine,
        exports=Path(cfg.exports_dir),
        own_exports=Path(cfg.submission_dir) / "networks",
        until=deadline(started, hours),
    )


def _inputs(
    cfg: DictConfig,
    runs: Sequence[Run],
    test: TestSet,
    device: torch.device,
    settings: InferenceSettings,
) -> tuple[Fingerprint, dict[str, Any]]:
    """The inputs of the predictions, and those of the submission."""
    inputs = {
        **inputs_fingerprint(Path(cfg.ensemble_json), runs, test.tables.images, test.files),
        "source": cfg.source,
        "device": device.type,
        "precision": settings.precision,
        "engine": settings.engine,
    }
    faults = failures_table(test.tables.failures)
    asked = {
        **inputs,
        "sample": parts_sha256("\n".join(test.tables.breasts["prediction_id"]).encode()),
        "amiss": parts_sha256(faults.to_csv(index=False).encode()),
        "unread": cfg.unread,
        "budget_hours": cfg.budget.hours,
    }
    return inputs, asked


def _is_finished(folder: Path, progress: Progress, asked: dict[str, Any]) -> bool:
    """Whether there is a submission of the same inputs."""
    if progress.is_new or not all((folder / name).is_file() for name in _OUTPUTS):
        return False
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return bool(summary["asked"] == asked and summary.get("start") == progress.start)


def _summary(
    ensemble: Ensemble,
    members: Members,
    test: TestSet,
    progress: Progress,
    outcome: Outcome,
    result: TestSetResult,
    how: str,
) -> SubmissionSummary:
    names = [run.name for member in members for run in member]
    breasts, failures = result.breasts, result.failures
    readable = breasts.loc[breasts["unread"] == 0, "probability"]
    fitted = outcome.refit(ensemble)
    used, keeps_rate = fitted.threshold_for(readable), fitted.keeps_recall_rate(len(readable))
    return SubmissionSummary(
        breasts=len(breasts),
        images=len(test.tables.images),
        predicted=len(progress.by_image),
        resumed=outcome.resumed,
        positive=int(breasts["cancer"].sum()),
        unread=int(breasts["unread"].sum()),
        failures=dict(Counter(failures["kind"]).most_common()),
        dropped=outcome.degradation.describe(names),
        silent=", ".join(names[run] for run in outcome.non_finite),
        threshold=used.value,
        sites=used.sites,
        recall_rate=used.recall_rate if keeps_rate else None,
        why_fitted="too few breasts to keep a recall rate on"
        if fitted.policy == "recall_rate" and not keeps_rate
        else "",
        how=how,
        seconds=outcome.seconds_by_stage(names),
        out_of_fold=rate if math.isfinite(rate := ensemble.thresholds.recall_rate) else None,
    )
