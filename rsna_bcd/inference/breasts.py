"""Crops that wait for the other images of their patient, and breasts as networks see them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from rsna_bcd.data.breasts import Sample, breast_sample, collate_breasts
from rsna_bcd.imaging.crops import Crop, as_training_input
from rsna_bcd.inference.precision import Forward
from rsna_bcd.inference.runs import Run
from rsna_bcd.inference.spent import Spent
from rsna_bcd.tables.views import left_out


class Waiting:
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
        self, forwards: Sequence[Forward], dropped: Collection[int], spent: Spent
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
