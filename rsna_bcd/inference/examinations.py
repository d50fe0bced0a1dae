"""All that networks say of a patient's images, one examination after the other, with the crops.

Each file is decoded once: the crops that are predicted are those that are shown afterwards. They
are let go of with their examination, so that the memory in use does not grow with the number.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.imaging.crops import Crop
from rsna_bcd.inference.explain import look
from rsna_bcd.inference.runs import Run
from rsna_bcd.inference.spent import Spent
from rsna_bcd.inference.stream import (
    BreastPrediction,
    Decoded,
    Prediction,
    crops_of,
    predict_decoded,
)
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.crop import CropSettings, CropsTask, PreparedImage, prepare_images
from rsna_bcd.tables.views import left_out


@dataclass(frozen=True)
class Examination:
    """The images of one patient, and what the runs say of them.

    Attributes:
        images: rows of the table.
        by_image: one an image.
        by_breast: one a breast that could be read, if a run looks at breasts.
        prepared: by `image_id`, the crop to be shown, of the images that could be read.
    """

    images: pd.DataFrame
    by_image: tuple[Prediction, ...]
    by_breast: tuple[BreastPrediction, ...]
    prepared: Mapping[str, PreparedImage]


def predict_examinations(
    images: pd.DataFrame,
    files: Mapping[str, Path],
    runs: Sequence[Run],
    shown: CropSettings,
    *,
    batch_size: int,
    workers: int,
    ahead: int,
) -> Iterator[Examination]:
    """Predict DICOM files, in float32, and yield each examination as soon as it is complete.

    Args:
        images: the table of images, as for `predict_files`; a `patient_id` is an examination.
        files: the file of every image, by `image_id`.
        runs: trained networks.
        shown: which of their crops to keep.
        batch_size: images at a time through a network.
        workers: processes that decode; 0 decodes in this one.
        ahead: images that may be under way or decoded while the networks are at work.

    Raises:
        InputError: the table lacks a column that a run is given.
    """
    gathered = _Gathered(images, by_breast=any(run.unit == "breast" for run in runs))
    settings = crops_of(runs)
    tasks = (
        (image_id, CropsTask(files[image_id], settings, "dicom"))
        for image_id in images.sort_values("patient_id", kind="stable")["image_id"]
    )
    results = engine.run(prepare_images, tasks, workers=min(workers, len(files)), ahead=ahead)

    def crops() -> Iterator[Decoded]:
        for result in results:
            if result.value is not None:
                gathered.prepared[result.key] = result.value[settings.index(shown)]
            pixels = None if result.value is None else [one.pixels for one in result.value]
            yield engine.Result(result.key, pixels, result.reason, result.seconds)

    with closing(results):
        for prediction in predict_decoded(
            crops(), images, files, runs, batch_size=batch_size, precision="float32", dropped=(),
            until=math.inf, spent=Spent(),
        ):  # fmt: skip
            yield from gathered.add(prediction)
    assert not gathered.prepared, "an image belongs to no examination that is complete"


class _Gathered:
    """What is known of examinations that are not complete.

    Attributes:
        prepared: by `image_id`, crops of images that could be read.
    """

    def __init__(self, images: pd.DataFrame, *, by_breast: bool) -> None:
        self.prepared: dict[str, PreparedImage] = {}
        self._rows = {str(patient): rows for patient, rows in images.groupby("patient_id")}
        self._patient_of = dict(zip(images["image_id"], images["patient_id"], strict=True))
        self._patient_of_breast = dict(
            zip(images["prediction_id"], images["patient_id"], strict=True)
        )
        self._to_come = Counter(images["patient_id"])
        self._wants_breasts = by_breast
        self._by_image: dict[str, list[Prediction]] = {}
        self._by_breast: dict[str, list[BreastPrediction]] = {}

    def add(self, prediction: Prediction | BreastPrediction) -> Iterator[Examination]:
        """Take note of a prediction, and yield the examination if it is the last one of it."""
        if isinstance(prediction, Prediction):
            patient = self._patient_of[prediction.image_id]
            self._by_image.setdefault(patient, []).append(prediction)
            self._to_come[patient] -= 1
        else:
            patient = self._patient_of_breast[prediction.prediction_id]
            self._by_breast.setdefault(patient, []).append(prediction)
        rows = self._rows[patient]
        read = rows[rows["image_id"].isin(list(self.prepared))]
        breasts = read["prediction_id"].nunique() if self._wants_breasts else 0
        if self._to_come[patient] or len(self._by_breast.get(patient, [])) < breasts:
            return
        yield Examination(
            rows,
            tuple(self._by_image.pop(patient)),
            tuple(self._by_breast.pop(patient, [])),
            {image_id: self.prepared.pop(image_id) for image_id in read["image_id"]},
        )


def saliency_of(
    runs: Sequence[Run], examination: Examination
) -> dict[str, NDArray[np.floating[Any]]]:
    """Where runs look, in the mean.

    Args:
        runs: folds of one member, whose crops the examination holds.
        examination: from `predict_examinations`.

    Returns:
        By `image_id`, (h, w) in [0, 1] over the whole crop. 1 is the largest value of the breast:
        images compare within a breast, breasts do not. Images that no run was shown are absent.
    """
    images = examination.images
    crops: dict[str, Crop] = {i: one.pixels for i, one in examination.prepared.items()}
    dropped = left_out(images[images["image_id"].isin(list(crops))])
    deciding = {image_id: crop for image_id, crop in crops.items() if image_id not in dropped}
    strengths: dict[str, NDArray[np.floating[Any]]] = {}
    for breast in images["prediction_id"].unique():
        maps: dict[str, list[NDArray[np.floating[Any]]]] = {}
        for run in runs:
            for seen in look(run, images, breast, crops if run.unit == "image" else deciding):
                if seen.saliency is not None:
                    maps.setdefault(seen.image_id, []).append(seen.saliency)
        means = {image_id: np.mean(of_image, axis=0) for image_id, of_image in maps.items()}
        strongest = max((float(mean.max()) for mean in means.values()), default=0.0)
        strengths |= {image_id: mean / (strongest or 1.0) for image_id, mean in means.items()}
    return strengths
