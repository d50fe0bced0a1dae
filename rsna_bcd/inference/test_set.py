"""Predict a test set: resumable and within a time budget; a valid submission in any case."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from rsna_bcd.errors import InputError
from rsna_bcd.files import write_csv
from rsna_bcd.imaging.mammogram import EMPTY, FLAT
from rsna_bcd.inference.deadline import DeadlineMonitor, Degradation, StageTimer
from rsna_bcd.inference.ensembling import predict_breasts
from rsna_bcd.inference.export import Engine, choose_engines, engine_names
from rsna_bcd.inference.progress import Progress
from rsna_bcd.inference.run import Run
from rsna_bcd.inference.stream import InferenceSettings, Prediction, predict
from rsna_bcd.preparation.crop import Source
from rsna_bcd.preparation.source_files import find_files
from rsna_bcd.scoring.ensemble import Ensemble
from rsna_bcd.tables.images import Rows
from rsna_bcd.tables.metadata import as_text
from rsna_bcd.tables.predictions import PREDICTION_COLUMNS, check_submission
from rsna_bcd.tables.test_set import (
    Failure,
    FailureKind,
    TestTables,
    failures_table,
    read_test_tables,
)

Unread = Literal["negative", "positive", "prior"]  # for a breast without a readable image
Members = Sequence[Sequence[Run]]  # of an ensemble: of each, the runs of its folds


@dataclass(frozen=True)
class TestSet:
    """The tables of a test set and its files.

    Attributes:
        tables: the images, the breasts to be predicted, and the faults of the tables.
        files: of existing images, by `image_id`.
        unlistable: reasons by `image_id` of images whose folder cannot be listed.
    """

    __test__ = False  # for pytest

    tables: TestTables
    files: Mapping[str, Path]
    unlistable: Mapping[str, str]


def read_test_set(
    csv: Any, sample_submission: Path, folder: Path, source: Source, rows: Rows | None
) -> TestSet:
    """Read the tables of a test set (`read_test_tables`) and find its files in a folder.

    Raises:
        InputError: the tables cannot be used, or there is no file at all.
    """
    tables = read_test_tables(csv, sample_submission, rows)
    unlistable: dict[str, str] = {}
    files = find_files(folder, tables.images, source, unlistable)
    if not files:
        raise InputError(
            f"None of the {len(tables.images)} files of {csv} is in {folder} as source={source}. "
            "Check paths.data= and source=."
        )
    return TestSet(tables, files, unlistable)


def add_missing_columns(test: TestSet, ensemble: Ensemble, members: Members) -> TestSet:
    """Add the columns that the ensemble uses and the table lacks, with unknown values."""
    needed = {
        column: "networks are given it"
        for run in _flat(members)
        if run.metadata
        for column in run.metadata.columns
    }
    if ensemble.thresholds.sites:
        needed.setdefault("site_id", "sites have thresholds of their own")
    tables = test.tables
    absent = {column: why for column, why in needed.items() if column not in tables.images}
    failures = [
        Failure(None, None, None, "missing column", f"no {c}, though {why}: unknown everywhere")
        for c, why in absent.items()
    ]
    unknown = {c: pd.Series([None] * len(tables.images), dtype="object") for c in absent}
    images = tables.images.assign(**unknown)
    return replace(
        test, tables=replace(tables, images=images, failures=(*tables.failures, *failures))
    )


@dataclass(frozen=True)
class Outcome:
    """How the predictions of a test set were made.

    Attributes:
        degradation: for the time budget.
        non_finite: positions of runs that were used and gave not one finite value.
        timer: seconds by stage, of this process.
        resumed: number of images that an earlier process had predicted.
        seconds: of this process, on the clock.
        engines: of each run.
    """

    degradation: Degradation
    non_finite: tuple[int, ...]
    timer: StageTimer
    resumed: int
    seconds: float
    engines: Sequence[Engine]

    def refit(self, ensemble: Ensemble) -> Ensemble:
        """The ensemble, with its recall rate as the policy if runs are missing.

        A threshold is a value on the scale of all networks; fewer of them have another scale, but
        much the same order.
        """
        is_complete = not self.degradation and not self.non_finite
        return ensemble if is_complete else replace(ensemble, policy="recall_rate")

    def seconds_by_stage(self, names: Sequence[str]) -> dict[str, float]:
        """Seconds on the clock (`predicting`), of all processes (`decoding`), of each network."""
        return {
            "predicting": self.seconds,
            "decoding": self.timer.decoding,
            "waiting": self.timer.waiting,
            **{name: self.timer.network_seconds(run) for run, name in enumerate(names)},
        }


def predict_test_set(
    test: TestSet,
    members: Members,
    progress: Progress,
    settings: InferenceSettings,
    *,
    log: Callable[[str], None],
    on_progress: Callable[[int, int], None],
) -> Outcome:
    """Predict the images that have no prediction in the progress file, and add them to it.

    Args:
        test: the test set.
        members: of the ensemble.
        progress: earlier predictions; new ones are added.
        settings: of the inference.
        log: called with messages for the user.
        on_progress: called with the number of images that are predicted, and the number of those
            by an earlier process.

    Raises:
        InputError: an engine is impossible; or earlier predictions were degraded for a time budget,
            and there is none now.
    """
    started = time.monotonic()
    runs, images = _flat(members), test.tables.images
    earlier = _degradation(progress)
    if earlier and math.isinf(settings.until):
        raise InputError(
            "The earlier predictions were made within a time budget, which dropped "
            f"{earlier.describe([run.name for run in runs])}. Keep them with budget.hours=..., or "
            "predict again without loss with overwrite=true."
        )
    by_patient = any(run.level == "breast" for run in runs)
    left = progress.remaining(images, test.files, by_patient=by_patient)
    resumed = len(test.files) - len(left)
    if resumed and left:
        log(f"Resumes: {resumed:,} of {len(test.files):,} images are done.")
    engines: list[Engine] = progress.plan.get("engines", [])
    if left:
        runs = choose_engines(
            runs, settings.engine, exports=settings.exports, own_exports=settings.own_exports,
            images=len(left), before=engines, log=log,
        )  # fmt: skip
        engines = engine_names(runs)
    monitor = DeadlineMonitor(members, len(left), settings.until, settings.workers, earlier, log)
    done = 0
    on_progress(resumed, resumed)
    for prediction in predict(images, left, runs, settings, monitor):
        _note_plan(progress, monitor.degradation, engines)
        progress.add(prediction)
        if isinstance(prediction, Prediction):
            done += 1
            on_progress(resumed + done, resumed)
    _note_plan(progress, monitor.degradation, engines)
    if done < len(left):
        log(f"Out of time: {len(left) - done:,} of {len(test.files):,} images are not predicted.")
    degradation = monitor.degradation
    non_finite = _non_finite(progress, len(runs), degradation)
    seconds = time.monotonic() - started
    return Outcome(degradation, non_finite, monitor.timer, resumed, seconds, engines)


def _flat(members: Members) -> list[Run]:
    return [run for member in members for run in member]


def _note_plan(progress: Progress, degradation: Degradation, engines: Sequence[Engine]) -> None:
    """Record a degradation, before the first prediction under it."""
    if _degradation(progress) != degradation:
        progress.set_plan({**asdict(degradation), "engines": engines})


def _degradation(progress: Progress) -> Degradation | None:
    """The one that predictions were made under; None before the first."""
    if not progress.plan:
        return None
    tta = progress.plan["tta"]  # true or false in files of earlier versions
    if isinstance(tta, bool):
        tta = None if tta else 0
    return Degradation(tta, tuple(progress.plan["dropped"]))


def _non_finite(progress: Progress, n_runs: int, degradation: Degradation) -> tuple[int, ...]:
    """Runs without one finite value, if there is any finite value."""
    is_finite = np.zeros(n_runs, dtype=np.bool_)
    images = [prediction.probabilities for prediction in progress.by_image.values()]
    breasts = [prediction.probabilities for prediction in progress.by_breast.values()]
    for probabilities in (*images, *breasts):
        if probabilities is not None:
            is_finite |= np.isfinite(probabilities)
    without = np.flatnonzero(~is_finite).tolist() if is_finite.any() else []
    return tuple(run for run in without if run not in degradation.dropped)


@dataclass(frozen=True)
class TestSetResult:
    """The predictions, decisions and faults of a test set.

    Attributes:
        breasts: from `predict_breasts`, one row per breast of the sample submission.
        submission: `prediction_id, cancer`.
        failures: every fault (`tables.test_set`).
    """

    __test__ = False  # for pytest

    breasts: pd.DataFrame
    submission: pd.DataFrame
    failures: pd.DataFrame

    def write(self, folder: Path) -> None:
        """Write `failures.csv`, `predictions.csv` and `submission.csv`, last."""
        columns = [c for c in (*PREDICTION_COLUMNS, "calibrated") if c in self.breasts]
        write_csv(self.failures, folder / "failures.csv")
        write_csv(self.breasts[columns], folder / "predictions.csv")
        write_csv(self.submission, folder / "submission.csv")


def decide(
    test: TestSet,
    ensemble: Ensemble,
    members: Members,
    progress: Progress,
    outcome: Outcome,
    unread: Unread,
) -> TestSetResult:
    """Blend the predictions, decide each breast, and name every fault.

    A breast without a readable image gets 0, 1 or, if `unread` is `prior`, the prevalence that the
    ensemble was fitted at.

    Raises:
        InputError: the submission does not fit the sample submission.
    """
    images = test.tables.images
    breasts = predict_breasts(
        outcome.refit(ensemble),
        members,
        images,
        list(progress.by_image.values()),
        list(progress.by_breast.values()),
        (*outcome.degradation.dropped, *outcome.non_finite),
        test.tables.breasts,
    )
    unreadable = {"negative": 0, "positive": 1, "prior": ensemble.prior}[unread]
    cancer = breasts["cancer"].where(breasts["unread"] == 0, unreadable)
    submission = breasts[["prediction_id"]].assign(cancer=cancer)
    check_submission(submission, test.tables.breasts)
    failures = [
        *test.tables.failures,
        *_unfamiliar_images(_flat(members), images),
        *_image_failures(test, progress),
    ]
    failures += _breast_failures(breasts, progress, failures, unread)
    return TestSetResult(breasts, submission, failures_table(failures))


def _unfamiliar_images(runs: Sequence[Run], images: pd.DataFrame) -> Iterator[Failure]:
    """Images of machines that are not in the training, and breasts of more images than are used."""
    row: Any
    known = [run.seen["machine_id"] for run in runs if "machine_id" in run.seen]
    if known and "machine_id" in images:
        machine = as_text(images["machine_id"])
        is_new = machine.notna() & ~machine.isin({value for own in known for value in own})
        for row, name in zip(images[is_new].itertuples(), machine[is_new], strict=True):
            reason = f"no network has seen machine {name} in training"
            yield Failure(*_ids(row), "new machine", reason)
    most = [run.views.most for run in runs if run.level == "breast" and run.views.policy == "all"]
    if most:
        counts = images.groupby("prediction_id", sort=False)["image_id"].size()
        for row in images.drop_duplicates("prediction_id").itertuples():
            if (number := counts[row.prediction_id]) > min(most):
                reason = f"{number} images, of which a network looks at {min(most)}"
                yield Failure(row.prediction_id, row.patient_id, None, "many images", reason)


def _image_failures(test: TestSet, progress: Progress) -> Iterator[Failure]:
    """Images without a prediction, or without one of all networks."""
    row: Any
    kind: FailureKind
    for row in test.tables.images.itertuples():
        prediction = progress.by_image.get(row.image_id)
        if row.image_id not in test.files:
            kind = "absent"
            reason = test.unlistable.get(row.image_id, "there is no such file")
        elif prediction is None:
            kind, reason = "out of time", "the time budget ended first"
        elif prediction.reason is None:
            continue
        else:
            reason = prediction.reason
            if prediction.probabilities is not None:
                kind = "no value"
            elif reason.startswith(EMPTY):
                kind = "empty"
            else:
                kind = "flat" if reason.startswith(FLAT) else "unreadable"
        yield Failure(*_ids(row), kind, reason)


def _breast_failures(
    breasts: pd.DataFrame, progress: Progress, earlier: Sequence[Failure], unread: Unread
) -> Iterator[Failure]:
    """Breasts without a readable image, or without a value of a network.

    Breasts that are not in the table or out of time are among the earlier failures.
    """
    named = {f.prediction_id for f in earlier if f.kind in ("unlisted", "out of time")}
    row: Any
    for row in breasts.itertuples():
        ids = row.prediction_id, row.patient_id, None
        prediction = progress.by_breast.get(row.prediction_id)
        if row.unread and row.prediction_id not in named:
            reason = f"no image of it could be read; the prediction is {unread}"
            yield Failure(*ids, "nothing readable", reason)
        elif prediction is not None and prediction.reason is not None:
            yield Failure(*ids, "no value", prediction.reason)


def _ids(row: Any) -> tuple[str, str, str]:
    return row.prediction_id, row.patient_id, row.image_id
