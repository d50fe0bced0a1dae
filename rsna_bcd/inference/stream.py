"""Files to probabilities in one pass: processes decode and crop ahead of the networks.

No crop is written. What a network sees is made by the code, and with the settings, that made its
training crops. A breast is predicted when the last image of its patient has come, so that files
are read patient by patient and few crops wait at a time.
"""

import math
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from rsna_bcd.data.breasts import Sample, breast_sample, collate_breasts
from rsna_bcd.imaging.crops import Crop, as_training_input
from rsna_bcd.inference.deadline import StageTimer
from rsna_bcd.inference.predictor import Precision, Predictor
from rsna_bcd.inference.run import Run
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.crop import CropSettings, CropsTask, Source, prepare_crops
from rsna_bcd.tables.views import left_out

Decoded = engine.Result[str, list[Crop]]


@dataclass(frozen=True)
class Prediction:
    """What the runs say of one image.

    Attributes:
        image_id: the image.
        probabilities: (runs,), in the order of the runs; each the mean over its TTA. NaN for runs
            that look at breasts, that were dropped, or that gave no finite value. None if the file
            could not be read.
        reason: why the file could not be read, or a network gave no finite value; None if all is
            well.
    """

    image_id: str
    probabilities: NDArray[np.float64] | None
    reason: str | None


@dataclass(frozen=True)
class BreastPrediction:
    """What the runs say of one breast of which at least one image could be read.

    Attributes:
        prediction_id: the breast.
        probabilities: (runs,), in the order of the runs; NaN for runs that look at images, that
            were dropped, or that gave no finite value.
        reason: why a network gave no finite value; None if all is well.
    """

    prediction_id: str
    probabilities: NDArray[np.float64]
    reason: str | None = None


def predict_files(
    images: pd.DataFrame,
    files: Mapping[str, Path],
    runs: Sequence[Run],
    *,
    source: Source,
    batch_size: int,
    workers: int,
    ahead: int = 32,
    precision: Precision = "auto",
    dropped: Collection[int] = (),
    until: float = math.inf,
    spent: StageTimer | None = None,
) -> Iterator[Prediction | BreastPrediction]:
    """Predict each file with each run that looks at images, each breast with each of the others.

    Args:
        images: the table of images: `image_id, prediction_id, patient_id, view`, and the columns
            that runs are given as metadata.
        files: paths by `image_id`; images that have none take no part.
        runs: trained networks; those with equal crop settings share their crops.
        source: how to read the files.
        batch_size: images at a time through a network; of breasts as many as have about so many.
        workers: processes that decode; 0 decodes in this one.
        ahead: images that may be under way or decoded while the networks are at work.
        precision: of the networks (`inference.predictor`).
        dropped: positions of runs that are not asked. Looked at before each batch, so that the
            caller may add to it in between.
        until: time, as `time.monotonic` gives it, by which the last prediction comes. What is left
            then has none; a batch that would take longer is not begun.
        spent: where to note what took how long.

    Yields:
        One `Prediction` a file, in the order in which they are ready: a file that cannot be read is
        one with a reason. Among them, if any run looks at breasts, one `BreastPrediction` a breast
        that has an image.

    Raises:
        InputError: the table lacks a column that a run is given.
    """
    spent = StageTimer() if spent is None else spent
    results = decode_files(
        images, files, runs, source=source, workers=workers, ahead=ahead, until=until
    )
    with closing(results):
        yield from predict_decoded(
            results, images, files, runs, batch_size=batch_size, precision=precision,
            dropped=dropped, until=until, spent=spent,
        )  # fmt: skip


def decode_files(
    images: pd.DataFrame,
    files: Mapping[str, Path],
    runs: Sequence[Run],
    *,
    source: Source,
    workers: int,
    ahead: int,
    until: float,
) -> Generator[Decoded, None, None]:
    """Make the crops that `runs` want of each file, patient by patient; see `predict_files`.

    Yields:
        One result a file, by `image_id`: the crops of `crops_of`.
    """
    settings = crops_of(runs)
    tasks = (
        (image_id, CropsTask(files[image_id], settings, source))
        for image_id in images.sort_values("patient_id", kind="stable")["image_id"]
        if image_id in files
    )
    return engine.run(
        prepare_crops, tasks, workers=min(workers, len(files)), ahead=ahead, until=until
    )


def crops_of(runs: Sequence[Run]) -> tuple[CropSettings, ...]:
    """The different crops that runs want."""
    return tuple(dict.fromkeys(run.crop for run in runs))


def predict_decoded(
    results: Iterable[Decoded],
    images: pd.DataFrame,
    files: Mapping[str, Path],
    runs: Sequence[Run],
    *,
    batch_size: int,
    precision: Precision,
    dropped: Collection[int],
    until: float,
    spent: StageTimer,
) -> Iterator[Prediction | BreastPrediction]:
    """Predict what `decode_files` yields; see `predict_files`."""
    forwards = [Predictor(run, precision) for run in runs]
    which_crop = [crops_of(runs).index(run.crop) for run in runs]
    of_images = _OfImages(images, runs, forwards, which_crop)
    waiting = PatientBuffer(images, files, runs, which_crop)
    ready: list[tuple[str, list[Crop]]] = []

    def predict(least: int) -> Iterator[Prediction | BreastPrediction]:
        """Predict what is ready, images and breasts, if there is at least so much of it."""
        if len(ready) >= least and _in_time(spent, until):
            with spent.batch():
                of_batch = of_images.predict(ready, dropped, spent)
            ready.clear()
            yield from of_batch
        if waiting.ready >= least and _in_time(spent, until):
            with spent.batch():
                breasts = [
                    BreastPrediction(*of) for of in waiting.predict(forwards, dropped, spent)
                ]
            yield from breasts

    asked = time.monotonic()
    for result in results:
        spent.note_image(result.seconds, time.monotonic() - asked)
        waiting.arrived(result.key, result.value)
        if result.value is None:
            yield Prediction(result.key, None, result.reason)
        else:
            ready.append((result.key, result.value))
        yield from predict(batch_size)
        if not _in_time(spent, until):
            return
        asked = time.monotonic()
    yield from predict(1)


def _in_time(spent: StageTimer, until: float) -> bool:
    """Whether another batch would be done by then."""
    return time.monotonic() + spent.longest < until


class _OfImages:
    """The runs that look at images."""

    def __init__(
        self,
        images: pd.DataFrame,
        runs: Sequence[Run],
        forwards: Sequence[Predictor],
        which_crop: Sequence[int],
    ) -> None:
        self._n_runs = len(runs)
        self._row = {image_id: row for row, image_id in enumerate(images["image_id"])}
        self._runs = [
            (column, forward, which, None if run.metadata is None else run.metadata.encode(images))
            for column, (run, forward, which) in enumerate(
                zip(runs, forwards, which_crop, strict=True)
            )
            if run.unit == "image"
        ]

    def predict(
        self, ready: Sequence[tuple[str, list[Crop]]], dropped: Collection[int], spent: StageTimer
    ) -> list[Prediction]:
        """Run every network on a batch of crops."""
        rows = [self._row[image_id] for image_id, _ in ready]
        probabilities = np.full((len(ready), self._n_runs), np.nan)
        reasons: dict[int, str] = {}
        on_device: dict[tuple[int, torch.device], torch.Tensor] = {}  # what several runs share
        for column, forward, which, metadata in self._runs:
            if column in dropped:
                continue
            with spent.of_network(column, len(ready)):
                key = which, forward.device
                if key not in on_device:
                    crops = as_training_input(np.stack([crops[which] for _, crops in ready]))
                    on_device[key] = torch.from_numpy(crops)[:, None].to(forward.device)
                batch = {"image": on_device[key]}
                if metadata is not None:
                    batch["metadata"] = torch.from_numpy(metadata[rows])
                probabilities[:, column], reason = forward.predict(batch)
            if reason is not None:
                nan = np.isnan(probabilities[:, column]).nonzero()[0]
                reasons = dict.fromkeys(nan.tolist(), reason) | reasons
        return [
            Prediction(image_id, row, reasons.get(number))
            for number, ((image_id, _), row) in enumerate(zip(ready, probabilities, strict=True))
        ]


class PatientBuffer:
    """Collects crops by patient for the runs that look at breasts, and predicts them.

    Without such a run nothing is kept.

    Args:
        images: the table of images: `image_id, prediction_id, patient_id, view`, and the columns
            that runs are given as metadata.
        files: by `image_id`; the images that will arrive.
        runs: all runs; those that look at images have no part in this.
        which_crop: for each run, which of an image's crops it sees.

    Raises:
        InputError: the table lacks a column that a run is given.
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
            if run.unit == "breast"
        ]
        self._metadata = {
            column: run.metadata.encode_breasts(images)
            for column, run, _ in self._runs
            if run.metadata is not None
        }
        self._breasts = {
            breast: row for row, breast in enumerate(images["prediction_id"].drop_duplicates())
        }
        self._views: dict[str, str | None] = dict(
            zip(images["image_id"], images["view"], strict=True)
        )
        # Breasts of which images may be left out; the competition's tables have none.
        supplemental = images[images["supplemental"]] if "supplemental" in images else images[:0]
        mixed = images["prediction_id"].isin(supplemental["prediction_id"])
        self._with_supplemental = images[mixed]
        expected = images[images["image_id"].isin(list(files))] if self._runs else images[:0]
        self._patient_of = dict(zip(expected["image_id"], expected["patient_id"], strict=True))
        self._to_come = expected["patient_id"].value_counts().to_dict()
        # In the order of the table, as in training, whatever the order in which they arrive.
        self._images = {
            patient: {
                breast: list(own)
                for breast, own in rows.groupby("prediction_id", sort=False)["image_id"]
            }
            for patient, rows in expected.groupby("patient_id", sort=False)
        }
        self._crops: dict[str, list[Crop]] = {}
        self._complete: list[str] = []
        self.ready = 0  # crops of complete patients

    def arrived(self, image_id: str, crops: list[Crop] | None) -> None:
        """Take note of an image.

        Args:
            image_id: one of `files`.
            crops: None if it could not be read: it is as if it were not there.
        """
        patient = self._patient_of.get(image_id)
        if patient is None:
            return
        if crops is not None:
            self._crops[image_id] = crops
        self._to_come[patient] -= 1
        if not self._to_come[patient]:
            self._complete.append(patient)
            own = self._images[patient].values()
            self.ready += sum(image in self._crops for images in own for image in images)

    def predict(
        self, forwards: Sequence[Predictor], dropped: Collection[int], spent: StageTimer
    ) -> Iterator[tuple[str, NDArray[np.float64], str | None]]:
        """Predict the breasts of all patients that are complete, and let go of their crops.

        Args:
            forwards: of all runs.
            dropped: positions of runs that are not asked.
            spent: where to note what took how long.

        Yields:
            `prediction_id`; (runs,) probabilities, NaN for runs that look at images, that are
            dropped, or that gave no finite value; and why one gave none.
        """
        present = self._with_supplemental["image_id"].isin(list(self._crops))
        dropped_images = left_out(self._with_supplemental[present])
        read = {
            breast: [i for i in images if i in self._crops and i not in dropped_images]
            for patient in self._complete
            for breast, images in self._images[patient].items()
        }
        others = {
            breast: [
                image for other in self._images[patient] if other != breast for image in read[other]
            ]
            for patient in self._complete
            for breast in self._images[patient]
        }
        breasts = [breast for breast, images in read.items() if images]
        if breasts:
            probabilities = np.full((len(breasts), self._n_runs), np.nan)
            reasons: dict[int, str] = {}
            for column, run, which in self._runs:
                if column in dropped:
                    continue
                with spent.of_network(column, self.ready):
                    samples = [self._sample(run, which, read[b], others[b]) for b in breasts]
                    batch = collate_breasts(samples)
                    if column in self._metadata:
                        rows = [self._breasts[breast] for breast in breasts]
                        batch["metadata"] = torch.from_numpy(self._metadata[column][rows])
                    probabilities[:, column], reason = forwards[column].predict(batch)
                if reason is not None:
                    nan = np.isnan(probabilities[:, column]).nonzero()[0]
                    reasons = dict.fromkeys(nan.tolist(), reason) | reasons
            for number, (breast, row) in enumerate(zip(breasts, probabilities, strict=True)):
                yield str(breast), row, reasons.get(number)
        for patient in self._complete:
            for images in self._images.pop(patient).values():
                for image in images:
                    self._crops.pop(image, None)
        self._complete.clear()
        self.ready = 0

    def _sample(self, run: Run, which: int, own: list[str], other: list[str]) -> Sample:
        """One breast as the run saw those of its training."""

        def load(position: int, of_other: bool) -> NDArray[Any]:
            return as_training_input(self._crops[(other if of_other else own)[position]][which])

        return breast_sample(
            run.views, [self._views[i] for i in own], [self._views[i] for i in other], load
        )
