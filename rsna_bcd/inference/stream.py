"""Files to probabilities in one pass: processes decode and crop ahead of the networks.

No crop is written. What a network sees is made by the code, and with the settings, that made its
training crops. A breast is predicted when the last image of its patient has come, so that files
are read patient by patient and few crops wait at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.imaging.crops import Crop
from rsna_bcd.inference.breasts import Waiting
from rsna_bcd.inference.runs import Run
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.crop import CropsTask, Source, prepare_crops


@dataclass(frozen=True)
class Prediction:
    """What the runs say of one image: exactly one of `probabilities` and `reason` is set.

    Attributes:
        image_id: the image.
        probabilities: (runs,), in the order of the runs; each the mean over its TTA. NaN for runs
            that look at breasts.
        reason: why the file could not be read.
    """

    image_id: str
    probabilities: NDArray[np.float64] | None
    reason: str | None


@dataclass(frozen=True)
class BreastPrediction:
    """What the runs say of one breast of which at least one image could be read.

    Attributes:
        prediction_id: the breast.
        probabilities: (runs,), in the order of the runs; NaN for runs that look at images.
    """

    prediction_id: str
    probabilities: NDArray[np.float64]


def predict_files(
    images: pd.DataFrame,
    files: Mapping[str, Path],
    runs: Sequence[Run],
    *,
    source: Source,
    batch_size: int,
    workers: int,
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

    Yields:
        One `Prediction` a file, in the order in which they are ready: a file that cannot be read is
        one with a reason. Among them, if any run looks at breasts, one `BreastPrediction` a breast
        that has an image.

    Raises:
        InputError: the table lacks a column that a run is given.
    """
    settings = tuple(dict.fromkeys(run.crop for run in runs))
    of_images = _OfImages(images, runs, [settings.index(run.crop) for run in runs])
    waiting = Waiting(images, files, runs, [settings.index(run.crop) for run in runs])
    ready: list[tuple[str, list[Crop]]] = []
    tasks = (
        (image_id, CropsTask(files[image_id], settings, source))
        for image_id in images.sort_values("patient_id", kind="stable")["image_id"]
        if image_id in files
    )
    for result in engine.run(prepare_crops, tasks, workers=min(workers, len(files))):
        waiting.arrived(result.key, result.value)
        if result.value is None:
            yield Prediction(result.key, None, result.reason)
        else:
            ready.append((result.key, result.value))
        if len(ready) >= batch_size:
            yield from of_images.predict(ready)
            ready.clear()
        if waiting.ready >= batch_size:
            yield from _of_breasts(waiting)
    if ready:
        yield from of_images.predict(ready)
    yield from _of_breasts(waiting)


def _of_breasts(waiting: Waiting) -> Iterator[BreastPrediction]:
    for prediction_id, probabilities in waiting.predict():
        yield BreastPrediction(prediction_id, probabilities)


class _OfImages:
    """The runs that look at images."""

    def __init__(
        self, images: pd.DataFrame, runs: Sequence[Run], which_crop: Sequence[int]
    ) -> None:
        self._runs = [(run if run.unit == "image" else None) for run in runs]
        self._which_crop = which_crop
        self._row = {image_id: row for row, image_id in enumerate(images["image_id"])}
        self._metadata = [
            None if run is None or run.metadata is None else run.metadata.encode(images)
            for run in self._runs
        ]

    def predict(self, ready: Sequence[tuple[str, list[Crop]]]) -> Iterator[Prediction]:
        """Run every network on a batch of crops."""
        rows = [self._row[image_id] for image_id, _ in ready]
        probabilities = np.full((len(ready), len(self._runs)), np.nan)
        for column, (run, which, known) in enumerate(
            zip(self._runs, self._which_crop, self._metadata, strict=True)
        ):
            if run is not None:
                crops = np.stack([crops[which] for _, crops in ready])
                probabilities[:, column] = run.predict(
                    crops, None if known is None else known[rows]
                )
        for (image_id, _), row in zip(ready, probabilities, strict=True):
            yield Prediction(image_id, row, None)
