"""Files to probabilities in one pass: processes decode and crop ahead of the networks.

Crops are made by the code and settings that made those of training; none is written. A breast is
predicted when its patient is complete; files are read patient by patient, so few crops are kept.
"""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from rsna_bcd.data.dataset import Sample, breast_sample, collate_breasts
from rsna_bcd.imaging.crops import Crop, as_training_input
from rsna_bcd.inference.deadline import DeadlineMonitor, StageTimer
from rsna_bcd.inference.export import Engine
from rsna_bcd.inference.predictor import Precision, Predictor
from rsna_bcd.inference.run import Run
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.crop import (
    CropSettings,
    CropsTask,
    PreparedImage,
    Source,
    prepare_images,
)
from rsna_bcd.tables.views import excluded_images


@dataclass(frozen=True)
class InferenceSettings:
    """How files are predicted.

    Attributes:
        source: format of the files.
        batch_size: images per batch; of breasts as many as have about so many images.
        workers: processes that decode; 0 decodes in this one.
        ahead: images that may be decoded before the networks need them.
        precision: of the networks (`inference.predictor`).
        kept_crop: the crop that each `Prediction` keeps; None for none.
        engine: of the networks of a test set, see `export.choose_engines`.
        exports: folder of exported networks.
        own_exports: folder for networks that are exported while predicting.
        until: deadline of the last prediction, on the clock of `time.monotonic`.
    """

    source: Source
    batch_size: int
    workers: int
    ahead: int = 32
    precision: Precision = "auto"
    kept_crop: CropSettings | None = None
    engine: Engine = "torch"
    exports: Path = Path("exports")
    own_exports: Path = Path("networks")
    until: float = math.inf


@dataclass(frozen=True)
class Prediction:
    """The probabilities of one image.

    Attributes:
        image_id: the image.
        probabilities: (runs,), each the mean over its TTA; NaN for runs of breast level, for
            dropped ones, and for values that are not finite. None if the file is unreadable.
        reason: why the file is unreadable, or a value not finite; None without a fault.
        prepared: the `kept_crop` of the settings.
    """

    image_id: str
    probabilities: NDArray[np.float64] | None
    reason: str | None
    prepared: PreparedImage | None = None


@dataclass(frozen=True)
class BreastPrediction:
    """The probabilities of one breast that has a readable image.

    Attributes:
        prediction_id: the breast.
        probabilities: (runs,); NaN for runs of image level, for dropped ones, and for values that
            are not finite.
        reason: why a value is not finite; None without a fault.
    """

    prediction_id: str
    probabilities: NDArray[np.float64]
    reason: str | None = None


def predict(
    images: pd.DataFrame,
    files: Mapping[str, Path],
    runs: Sequence[Run],
    settings: InferenceSettings,
    monitor: DeadlineMonitor | None = None,
) -> Iterator[Prediction | BreastPrediction]:
    """Predict each file with each run of image level, each breast with each run of breast level.

    Args:
        images: table with `image_id, prediction_id, patient_id, view` and the metadata of runs.
        files: by `image_id`; images without one are left out.
        runs: trained networks; those with equal crop settings share their crops.
        settings: of the inference.
        monitor: of the time budget, which drops runs. No batch is started that would end after the
            deadline: the remaining images have no prediction.

    Yields:
        One `Prediction` per file and, if there is a run of breast level, one `BreastPrediction`
        per breast with a readable image, in the order in which they are complete.

    Raises:
        InputError: the table lacks a column that a run takes.
    """
    if monitor is None:
        monitor = DeadlineMonitor([runs], len(files))
    crops = tuple(dict.fromkeys(run.crop for run in runs))
    batches = _Batches(images, files, runs, crops, settings, monitor)
    tasks = (
        (image_id, CropsTask(files[image_id], crops, settings.source))
        for image_id in images.sort_values("patient_id", kind="stable")["image_id"]
        if image_id in files
    )
    results = engine.run(
        prepare_images,
        tasks,
        workers=min(settings.workers, len(files)),
        ahead=settings.ahead,
        until=monitor.until,
    )
    with closing(results):
        timed = _timed(results, monitor)
        if monitor.needs_estimate:
            yield from _first_batches(timed, batches, monitor)
        for result in timed:
            yield from batches.add(result)
        yield from batches.predict(1)


Decoded = engine.Result[str, list[PreparedImage]]


def _timed(results: Iterator[Decoded], monitor: DeadlineMonitor) -> Iterator[Decoded]:
    """Time the results, and end with the time budget."""
    waiting_since = time.monotonic()
    for result in results:
        monitor.timer.add_image(result.seconds, time.monotonic() - waiting_since)
        yield result
        if not monitor.in_time():
            return
        waiting_since = time.monotonic()


def _first_batches(
    results: Iterator[Decoded], batches: "_Batches", monitor: DeadlineMonitor
) -> Sequence[Prediction | BreastPrediction]:
    """Predict the images that the first estimate is made from.

    They are predicted again if it drops test-time augmentation: all images are on one scale.
    """
    first: list[Decoded] = []
    predictions: list[Prediction | BreastPrediction] = []
    for result in results:
        first.append(result)
        predictions += batches.add(result)
        if monitor.has_sample():
            break
    predictions += batches.predict(1)
    monitor.estimate(batches.done)
    if monitor.degradation.tta is None:
        return predictions
    batches.restart()
    return [prediction for result in first for prediction in batches.add(result)]


class _Batches:
    """Collects decoded images into batches, and predicts these with all runs but dropped ones."""

    def __init__(
        self,
        images: pd.DataFrame,
        files: Mapping[str, Path],
        runs: Sequence[Run],
        crops: Sequence[CropSettings],
        settings: InferenceSettings,
        monitor: DeadlineMonitor,
    ) -> None:
        self._images, self._files, self._runs = images, files, runs
        self._which_crop = [crops.index(run.crop) for run in runs]
        self._kept = None if settings.kept_crop is None else crops.index(settings.kept_crop)
        self._settings, self._monitor = settings, monitor
        self._row = {image_id: row for row, image_id in enumerate(images["image_id"])}
        self._metadata = {
            column: torch.from_numpy(run.metadata.encode(images))
            for column, run in enumerate(runs)
            if run.level == "image" and run.metadata is not None
        }
        self.restart()

    def restart(self) -> None:
        """Drop the added batches, and predict with the remaining test-time augmentation."""
        kept = self._monitor.degradation.tta
        runs = [replace(run, tta=run.tta[:kept]) for run in self._runs]
        self._predictors = [Predictor(run, self._settings.precision) for run in runs]
        self._patients = PatientBuffer(self._images, self._files, runs, self._which_crop)
        self._ready: list[tuple[str, list[PreparedImage]]] = []
        self.done = 0

    def add(self, result: Decoded) -> list[Prediction | BreastPrediction]:
        """Add an image, and predict the batches that are complete."""
        prepared = result.value
        crops = None if prepared is None else [one.pixels for one in prepared]
        self._patients.add(result.key, crops)
        if prepared is not None:
            self._ready.append((result.key, prepared))
            return self.predict(self._settings.batch_size)
        self.done += 1
        unreadable = Prediction(result.key, None, result.reason)
        return [unreadable, *self.predict(self._settings.batch_size)]

    def predict(self, least: int) -> list[Prediction | BreastPrediction]:
        """Predict the images and the breasts that are ready, each if of at least so many images."""
        predictions: list[Prediction | BreastPrediction] = []
        timer = self._monitor.timer
        dropped = self._monitor.degradation.dropped
        if len(self._ready) >= least and self._monitor.in_time():
            with timer.time_batch():
                predictions += self._predict_images(dropped)
            self.done += len(self._ready)
            self._ready.clear()
        if self._patients.ready >= least and self._monitor.in_time():
            with timer.time_batch():
                predictions += self._patients.predict(self._predictors, dropped, timer)
        if predictions and not self._monitor.needs_estimate:
            self._monitor.update(self.done)
        return predictions

    def _predict_images(self, dropped: Collection[int]) -> list[Prediction]:
        """Run every image-level network on the images that are ready."""
        rows = [self._row[image_id] for image_id, _ in self._ready]
        probabilities = np.full((len(self._ready), len(self._runs)), np.nan)
        reasons: dict[int, str] = {}
        shared: dict[tuple[int, torch.device], torch.Tensor] = {}  # by runs with the same crops
        for column, (run, predictor) in enumerate(zip(self._runs, self._predictors, strict=True)):
            if column in dropped or run.level != "image":
                continue
            with self._monitor.timer.time_network(column, len(self._ready)):
                key = self._which_crop[column], predictor.device
                if key not in shared:
                    crops = np.stack([prepared[key[0]].pixels for _, prepared in self._ready])
                    image = torch.from_numpy(as_training_input(crops))[:, None]
                    shared[key] = image.to(predictor.device)
                batch = {"image": shared[key]}
                if column in self._metadata:
                    batch["metadata"] = self._metadata[column][rows]
                probabilities[:, column], reason = predictor.predict(batch)
            _add_reasons(reasons, probabilities[:, column], reason)
        kept = [None if self._kept is None else crops[self._kept] for _, crops in self._ready]
        return [
            Prediction(image_id, probabilities[row], reasons.get(row), kept[row])
            for row, (image_id, _) in enumerate(self._ready)
        ]


def _add_reasons(reasons: dict[int, str], values: NDArray[np.float64], reason: str | None) -> None:
    """Give rows without a finite value the reason, if they have none of an earlier run."""
    if reason is not None:
        for row in np.isnan(values).nonzero()[0].tolist():
            reasons.setdefault(row, reason)


class PatientBuffer:
    """Collects crops by patient for the runs of breast level, and predicts complete patients.

    Without such a run nothing is kept.

    Args:
        images: as of `predict`.
        files: of the images that will be added.
        runs: all runs.
        which_crop: for each run, the position of its crop among those of an image.

    Attributes:
        ready: number of crops of complete patients.

    Raises:
        InputError: the table lacks a column that a run takes.
    """

    def __init__(
        self,
        images: pd.DataFrame,
        files: Mapping[str, Path],
        runs: Sequence[Run],
        which_crop: Sequence[int],
    ) -> None:
        self._n_runs = len(runs)
        self._runs = [
            (column, run, which)
            for column, (run, which) in enumerate(zip(runs, which_crop, strict=True))
            if run.level == "breast"
        ]
        self._metadata = {
            column: torch.from_numpy(run.metadata.encode_breasts(images))
            for column, run, _ in self._runs
            if run.metadata is not None
        }
        breasts = images["prediction_id"].drop_duplicates()
        self._row = {breast: row for row, breast in enumerate(breasts)}
        self._view: dict[str, str | None] = dict(
            zip(images["image_id"], images["view"], strict=True)
        )
        # Breasts that may leave out images; the competition's tables have none.
        supplemental = images[images["supplemental"]] if "supplemental" in images else images[:0]
        mixed = images["prediction_id"].isin(supplemental["prediction_id"])
        self._with_supplemental = images[mixed]
        expected = images[images["image_id"].isin(list(files))] if self._runs else images[:0]
        self._patient = dict(zip(expected["image_id"], expected["patient_id"], strict=True))
        self._missing = expected["patient_id"].value_counts().to_dict()
        # In the order of the table, as in training, whatever the order in which they are added.
        self._breasts = {
            patient: {
                breast: list(own)
                for breast, own in rows.groupby("prediction_id", sort=False)["image_id"]
            }
            for patient, rows in expected.groupby("patient_id", sort=False)
        }
        self._crops: dict[str, list[Crop]] = {}
        self._complete: list[str] = []
        self.ready = 0

    def add(self, image_id: str, crops: list[Crop] | None) -> None:
        """Add an image of `files`; None if it is unreadable, which counts as absent."""
        patient = self._patient.get(image_id)
        if patient is None:
            return
        if crops is not None:
            self._crops[image_id] = crops
        self._missing[patient] -= 1
        if not self._missing[patient]:
            self._complete.append(patient)
            own = self._breasts[patient].values()
            self.ready += sum(image in self._crops for images in own for image in images)

    def predict(
        self, predictors: Sequence[Predictor], dropped: Collection[int], timer: StageTimer
    ) -> list[BreastPrediction]:
        """Predict the breasts of all complete patients, and free their crops."""
        present = self._with_supplemental["image_id"].isin(list(self._crops))
        excluded = excluded_images(self._with_supplemental[present])
        own = {
            breast: [i for i in images if i in self._crops and i not in excluded]
            for patient in self._complete
            for breast, images in self._breasts[patient].items()
        }
        other = {
            breast: [i for b in self._breasts[patient] if b != breast for i in own[b]]
            for patient in self._complete
            for breast in self._breasts[patient]
        }
        breasts = [breast for breast, images in own.items() if images]
        probabilities = np.full((len(breasts), self._n_runs), np.nan)
        reasons: dict[int, str] = {}
        for column, run, which in self._runs:
            if column in dropped or not breasts:
                continue
            with timer.time_network(column, self.ready):
                batch = collate_breasts(
                    [self._sample(run, which, own[breast], other[breast]) for breast in breasts]
                )
                if column in self._metadata:
                    batch["metadata"] = self._metadata[column][[self._row[b] for b in breasts]]
                probabilities[:, column], reason = predictors[column].predict(batch)
            _add_reasons(reasons, probabilities[:, column], reason)
        for patient in self._complete:
            for images in self._breasts.pop(patient).values():
                for image in images:
                    self._crops.pop(image, None)
        self._complete.clear()
        self.ready = 0
        return [
            BreastPrediction(str(breast), probabilities[row], reasons.get(row))
            for row, breast in enumerate(breasts)
        ]

    def _sample(self, run: Run, which: int, own: list[str], other: list[str]) -> Sample:
        """One breast as in the run's training."""

        def load(position: int, is_other: bool) -> NDArray[Any]:
            return as_training_input(self._crops[(other if is_other else own)[position]][which])

        return breast_sample(
            run.views, [self._view[i] for i in own], [self._view[i] for i in other], load
        )
