"""`python -m rsna_bcd.submit`: test images + `ensemble.json` -> `submission.csv`."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from rsna_bcd.errors import InputError
from rsna_bcd.files import parts_sha256, write_csv, write_file
from rsna_bcd.inference.ensembling import predict_breasts
from rsna_bcd.inference.test_set import (
    Unread,
    answers,
    check_unread,
    new_to,
    of_breasts,
    of_files,
    with_needed_columns,
)
from rsna_bcd.preparation.source_files import find_files
from rsna_bcd.processes import usable_cores
from rsna_bcd.reporting.console import ProgressBar, SubmissionSummary
from rsna_bcd.scoring.ensemble import Ensemble, read_ensemble
from rsna_bcd.tables.failures import failures_table
from rsna_bcd.tables.hidden import HiddenTest, read_hidden
from rsna_bcd.tables.predictions import PREDICTION_COLUMNS, check_submission, read_submission

# What needs torch is imported where it is used, in the main process alone: it would cost each of
# the processes that decode seconds and half a gigabyte.
if TYPE_CHECKING:
    import torch

    from rsna_bcd.inference.progress import Progress
    from rsna_bcd.inference.run import Run
    from rsna_bcd.inference.test_set import Means, Outcome

_OUTPUTS = ("failures.csv", "predictions.csv", "submission.csv", "summary.json")


def submit(cfg: DictConfig, started: float | None = None) -> pd.DataFrame:
    """Predict the test set with every fold of every member, and write the submission.

    What is predicted is kept in a journal: killed and started again, it goes on. `summary.json` is
    written last; where it is, and nothing changed since, there is nothing to do.

    Args:
        cfg: of `submit`.
        started: when the clock of `budget.hours` began (`time.monotonic`); None: now.

    Returns:
        The submission: `prediction_id, cancer`, in the order of the sample submission. `cancer` is
        0 or 1, or under `unread=prior` the prior where nothing could be read.

    Raises:
        InputError: no such ensemble or run, unfit tables or settings, or a submission that does not
            answer the sample submission. A wrong file is never written.
    """
    started = time.monotonic() if started is None else started
    # Before torch is loaded, and with it OpenMP: threads that wait by spinning take the cores from
    # the processes that decode. On two busy cores, a network took .45 s of a core instead of .72.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from rsna_bcd.inference.progress import open_progress
    from rsna_bcd.inference.run import check_current, resolve_device
    from rsna_bcd.inference.test_set import predict_test_set

    console = Console(stderr=True, markup=False)
    folder = Path(cfg.submission_dir)
    unread = check_unread(cfg.unread)
    ensemble = read_ensemble(Path(cfg.ensemble_json))
    check_current(ensemble, Path(cfg.paths.models))
    test = _read_test(cfg)
    device = resolve_device(cfg.device)
    means = _means(cfg, device, started)
    runs = _load_runs(ensemble, Path(cfg.paths.models), device)
    test = test.with_needed_columns(ensemble, runs)
    _warn_of_other_sources(console, runs, cfg.source)
    made_from = _made_from(cfg, test, runs, device, means)
    asked = {**made_from, **_asked(cfg, test)}
    with open_progress(folder / "journal.jsonl", made_from, overwrite=cfg.overwrite) as journal:
        if _is_finished(folder, journal, asked):
            _say(console, f"{folder} is finished already; overwrite=true predicts anew.")
            return read_submission(folder / "submission.csv")
        _clear(console, folder, journal)
        with ProgressBar(console, "Predicting", len(test.files)) as bar:
            outcome = predict_test_set(
                test.images, test.files, runs, journal, means, tell=bar.log, show=bar.update
            )
        breasts = _decide(ensemble, runs, test, journal, outcome)
        failures = _failures(test, runs, journal, breasts, unread)
        cancer = answers(breasts, unread, ensemble.prior)
        submission = breasts[["prediction_id"]].assign(cancer=cancer)
        check_submission(submission, test.tables.breasts)
        write_csv(failures, folder / "failures.csv")
        shown = [c for c in (*PREDICTION_COLUMNS, "calibrated") if c in breasts]
        write_csv(breasts[shown], folder / "predictions.csv")
        write_csv(submission, folder / "submission.csv")
        how = f"{device}, {means.precision}, {' and '.join(sorted(set(outcome.engines)))}"
        summary = _summary(ensemble, runs, test, journal, outcome, breasts, failures, how)
        record = {**summary.as_dict(), "seconds_in_all": time.monotonic() - started, "asked": asked}
        write_file(folder / "summary.json", json.dumps(record, indent=1).encode() + b"\n")
    for line in (*summary.lines(failures), str(folder / "submission.csv")):
        _say(console, line)
    return submission


@dataclass(frozen=True)
class _Test:
    """What is to be answered, and from what.

    Attributes:
        tables: the images, the breasts to answer for, what was amiss with the tables.
        files: of the images that are there, by `image_id`.
        unlistable: reasons by `image_id` of images whose folder cannot be listed.
    """

    tables: HiddenTest
    files: dict[str, Path]
    unlistable: dict[str, str]

    @property
    def images(self) -> pd.DataFrame:
        """The table, one row an image."""
        return self.tables.images

    def with_needed_columns(self, ensemble: Ensemble, runs: Sequence[Sequence[Run]]) -> _Test:
        """The same, with what the ensemble goes by; see `with_needed_columns`."""
        return replace(self, tables=with_needed_columns(self.tables, ensemble, _flat(runs)))


def _read_test(cfg: DictConfig) -> _Test:
    """Read the tables and look for the files."""
    csv = cfg.dataset.test_csv
    if csv is None:
        raise InputError(f"dataset={cfg.dataset.name} has no test split: nothing to submit.")
    tables = read_hidden(csv, Path(cfg.sample_submission), instantiate(cfg.dataset.rows))
    unlistable: dict[str, str] = {}
    files = find_files(Path(cfg.dataset.test_images), tables.images, cfg.source, unlistable)
    if not files:
        raise InputError(
            f"None of the {len(tables.images)} files of {csv} is in {cfg.dataset.test_images} as "
            f"source={cfg.source}. Check paths.data= and source=."
        )
    return _Test(tables, files, unlistable)


def _failures(
    test: _Test,
    runs: Sequence[Sequence[Run]],
    journal: Progress,
    breasts: pd.DataFrame,
    unread: Unread,
) -> pd.DataFrame:
    """What was not as it should be, one row a case."""
    earlier = [
        *test.tables.failures,
        *new_to(_flat(runs), test.images),
        *of_files(test.images, test.files, journal.by_image, test.unlistable),
    ]
    return failures_table([*earlier, *of_breasts(breasts, journal.by_breast, earlier, unread)])


def _flat(members: Sequence[Sequence[Run]]) -> list[Run]:
    return [run for member in members for run in member]


def _means(cfg: DictConfig, device: torch.device, started: float) -> Means:
    """With what, and in what time, predictions are made."""
    from rsna_bcd.inference.predictor import resolve_precision
    from rsna_bcd.inference.test_set import Means

    hours = cfg.budget.hours
    if hours is not None and not hours > 0:
        raise InputError(f"budget.hours={hours}: give hours, greater than 0, or null.")
    return Means(
        source=cfg.source,
        batch_size=cfg.batch_size,
        workers=usable_cores() if cfg.workers is None else cfg.workers,
        ahead=cfg.ahead,
        precision=resolve_precision(cfg.precision, device.type),
        engine=cfg.engine,
        exports=Path(cfg.exports_dir),
        made=Path(cfg.submission_dir) / "networks",
        hours=hours,
        started=started,
    )


def _load_runs(ensemble: Ensemble, models: Path, device: torch.device) -> list[list[Run]]:
    """The folds of each member, in the ensemble's order."""
    from rsna_bcd.inference.run import check_crop_algorithm, load_run

    runs = [
        [load_run(models / "runs" / member.name / f"fold{k}", device) for k in member.folds]
        for member in ensemble.members
    ]
    check_crop_algorithm(_flat(runs))
    return runs


def _warn_of_other_sources(console: Console, runs: Sequence[Sequence[Run]], source: str) -> None:
    others = sorted({run.source for member in runs for run in member} - {source})
    if others:
        _say(
            console,
            f"Note: networks were trained on source={', '.join(others)}, not {source}; "
            "probabilities, and the threshold above all, may not carry over.",
        )


def _made_from(
    cfg: DictConfig, test: _Test, runs: Sequence[Sequence[Run]], device: torch.device, means: Means
) -> dict[str, str]:
    """All that predictions follow from."""
    from rsna_bcd.inference.progress import made_from

    return {
        **made_from(Path(cfg.ensemble_json), _flat(runs), test.images, test.files),
        "source": cfg.source,
        "device": device.type,
        "precision": means.precision,
        "engine": means.engine,
    }


def _asked(cfg: DictConfig, test: _Test) -> dict[str, Any]:
    """What else a finished submission follows from."""
    amiss = failures_table(test.tables.failures)
    return {
        "sample": parts_sha256("\n".join(test.tables.breasts["prediction_id"]).encode()),
        "amiss": parts_sha256(amiss.to_csv(index=False).encode()),
        "unread": cfg.unread,
        "budget_hours": cfg.budget.hours,
    }


def _is_finished(folder: Path, journal: Progress, asked: Mapping[str, Any]) -> bool:
    """Whether just this was asked for before, and answered."""
    summary = folder / "summary.json"
    if journal.is_new or not summary.is_file() or not (folder / "submission.csv").is_file():
        return False
    finished: bool = json.loads(summary.read_text(encoding="utf-8"))["asked"] == asked
    return finished


def _clear(console: Console, folder: Path, journal: Progress) -> None:
    """Take away what does not go with the journal."""
    if journal.anew:
        _say(console, f"Begins anew, for these are others than before: {', '.join(journal.anew)}.")
    for name in _OUTPUTS if journal.is_new else _OUTPUTS[-1:]:
        (folder / name).unlink(missing_ok=True)


def _decide(
    ensemble: Ensemble,
    runs: Sequence[Sequence[Run]],
    test: _Test,
    journal: Progress,
    outcome: Outcome,
) -> pd.DataFrame:
    """Blend what the networks said, and decide; see `predict_breasts`."""
    return predict_breasts(
        outcome.fitted(ensemble),
        runs,
        test.images,
        list(journal.by_image.values()),
        list(journal.by_breast.values()),
        outcome.without,
        test.tables.breasts,
    )


def _summary(
    ensemble: Ensemble,
    runs: Sequence[Sequence[Run]],
    test: _Test,
    journal: Progress,
    outcome: Outcome,
    breasts: pd.DataFrame,
    failures: pd.DataFrame,
    how: str,
) -> SubmissionSummary:
    """What became of it."""
    from rsna_bcd.inference.test_set import names_of, words_of

    read = breasts.loc[breasts["unread"] == 0, "probability"]
    fitted = outcome.fitted(ensemble)
    used, keeps_rate = fitted.threshold_for(read), fitted.keeps_recall_rate(len(read))
    return SubmissionSummary(
        breasts=len(breasts),
        images=len(test.images),
        predicted=len(journal.by_image),
        resumed=outcome.resumed,
        positive=int(breasts["cancer"].sum()),
        unread=int(breasts["unread"].sum()),
        failures=dict(Counter(failures["kind"]).most_common()),
        shed=words_of(outcome.shed, runs),
        silent=names_of(outcome.silent, runs),
        threshold=used.value,
        sites=used.sites,
        recall_rate=used.recall_rate if keeps_rate else None,
        why_fitted="too few breasts to keep a recall rate on"
        if fitted.policy == "recall_rate" and not keeps_rate
        else "",
        how=how,
        seconds=outcome.seconds_by_stage(runs),
        out_of_fold=rate if math.isfinite(rate := ensemble.thresholds.recall_rate) else None,
    )


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)
