"""Predictions on disk as they come, so that a process that was killed goes on where it was.

First comes what all predictions follow from, then how they are made (the last such line stands),
then an image or a breast a line; null stands for NaN.

```
{"made_from": {"networks": "1f3a...", ...}}
{"plan": {"tta": true, "dropped": []}}
{"image": "1", "probabilities": [0.1, null], "reason": null}
{"breast": "1_L", "probabilities": [null, 0.2], "reason": null}
```

Lines are only ever appended, each with one call of the system: after `kill -9` all but the last are
whole, and what is left of that one is cut away.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_bcd.files import locked, parts_sha256, storage_error, version_stamp
from rsna_bcd.inference.run import Run
from rsna_bcd.inference.stream import BreastPrediction, Prediction
from rsna_bcd.models.exporting import fingerprint

MadeFrom = dict[str, str]
Plan = dict[str, Any]


class Progress:
    """The journal of one set of predictions; made by `open_progress`.

    Attributes:
        by_image: predictions by `image_id`.
        by_breast: predictions by `prediction_id`.
        plan: how these were made; empty before it is noted.
        is_new: whether it began with this process.
        anew: what of `made_from` is not as it was, so that earlier predictions were let go.
    """

    def __init__(self, handle: int, file: Path, made_from: MadeFrom, *, overwrite: bool) -> None:
        self._handle, self._file, self._made_from = handle, file, made_from
        self.by_image: dict[str, Prediction] = {}
        self.by_breast: dict[str, BreastPrediction] = {}
        self.plan: Plan = {}
        self.is_new = False
        self.anew: list[str] = []
        before = self._read()
        if before != made_from and before is not None:
            keys = sorted(before.keys() | made_from.keys())
            self.anew = [key for key in keys if before.get(key) != made_from.get(key)]
        if before != made_from or overwrite:
            self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.by_image, self.by_breast, self.plan, self.is_new = {}, {}, {}, True
        os.ftruncate(self._handle, 0)
        self._append({"made_from": self._made_from})

    def note(self, prediction: Prediction | BreastPrediction) -> None:
        """Append a prediction.

        Raises:
            StorageError: it cannot be written.
        """
        if isinstance(prediction, Prediction):
            self.by_image[prediction.image_id] = prediction
            entry: dict[str, Any] = {"image": prediction.image_id}
        else:
            self.by_breast[prediction.prediction_id] = prediction
            entry = {"breast": prediction.prediction_id}
        values = prediction.probabilities
        plain = None if values is None else [None if math.isnan(v) else v for v in values.tolist()]
        self._append({**entry, "probabilities": plain, "reason": prediction.reason})

    def note_plan(self, plan: Plan) -> None:
        """Append how predictions are made from now on.

        Raises:
            StorageError: it cannot be written.
        """
        self.plan = plan
        self._append({"plan": plan})

    def left(
        self, images: pd.DataFrame, files: Mapping[str, Path], *, by_patient: bool
    ) -> dict[str, Path]:
        """The files that are yet to be predicted; what is known of a part of them is forgotten.

        Args:
            images: `image_id, prediction_id, patient_id`, one row an image.
            files: of those that are there, by `image_id`.
            by_patient: networks look at breasts: a patient of whom an image or a breast is left is
                left as a whole.
        """
        left = {image_id for image_id in files if image_id not in self.by_image}
        if by_patient:
            rows = images[images["image_id"].isin(list(files))]
            read = [
                image_id in self.by_image and self.by_image[image_id].probabilities is not None
                for image_id in rows["image_id"]
            ]
            unseen = pd.Series(read, rows.index) & ~rows["prediction_id"].isin(list(self.by_breast))
            patients = rows.loc[unseen | rows["image_id"].isin(list(left)), "patient_id"]
            rows = rows[rows["patient_id"].isin(patients)]
            left = set(rows["image_id"])
            for breast in rows["prediction_id"]:
                self.by_breast.pop(breast, None)
        for image_id in left:
            self.by_image.pop(image_id, None)
        return {image_id: file for image_id, file in files.items() if image_id in left}

    def _append(self, entry: dict[str, Any]) -> None:
        try:
            os.write(self._handle, (json.dumps(entry, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise storage_error(self._file, error) from error

    def _read(self) -> MadeFrom | None:
        """Take in what is there; what it was made from, None if that is not to be told."""
        content = self._file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.ftruncate(self._handle, len(whole))
        try:
            entries = [json.loads(line) for line in whole.splitlines()]
            made_from: MadeFrom | None = entries[0]["made_from"] if entries else None
            for entry in entries[1:]:
                self._take(entry)
        except (ValueError, KeyError, TypeError):  # not ours, or damaged
            return {}
        return made_from

    def _take(self, entry: dict[str, Any]) -> None:
        if "plan" in entry:
            self.plan = entry["plan"]
            return
        values, reason = entry["probabilities"], entry["reason"]
        # None becomes NaN.
        array = None if values is None else np.array(values, dtype=np.float64)
        if "image" in entry:
            self.by_image[entry["image"]] = Prediction(entry["image"], array, reason)
        elif array is not None:
            self.by_breast[entry["breast"]] = BreastPrediction(entry["breast"], array, reason)


@contextmanager
def open_progress(
    file: Path, made_from: MadeFrom, *, overwrite: bool = False
) -> Iterator[Progress]:
    """Open or begin a journal, and keep other processes out.

    Args:
        file: of the journal.
        made_from: all that predictions follow from; made from anything else they count for nothing.
        overwrite: begin anew whatever is there.

    Raises:
        InputError: another process is at work on it.
        StorageError: it cannot be written.
    """
    with locked(file.parent, "choose another submission_dir=...", file.name) as handle:
        yield Progress(handle, file, made_from, overwrite=overwrite)


def made_from(
    ensemble_json: Path, runs: Sequence[Run], images: pd.DataFrame, files: Mapping[str, Path]
) -> MadeFrom:
    """Hashes of what predictions follow from.

    Args:
        ensemble_json: the ensemble.
        runs: its networks, as `load_run` gives them.
        images: the table of images.
        files: of those that are there; one that was replaced since has another size or time.
    """
    stamps = sorted(_stamp(file, image_id) for image_id, file in files.items())
    records = [json.dumps(run.record, sort_keys=True, default=str) for run in runs]
    return {
        "ensemble": parts_sha256(ensemble_json.read_bytes()),
        "networks": parts_sha256(*(fingerprint(run.network).encode() for run in runs)),
        "records": parts_sha256(*(record.encode() for record in records)),
        "table": parts_sha256(images.to_csv(index=False).encode()),
        "files": parts_sha256(*(stamp.encode() for stamp in stamps)),
    }


def _stamp(file: Path, image_id: str) -> str:
    try:
        return version_stamp(file, image_id)
    except OSError as error:  # a link to nowhere: its reader will say so
        return f"{image_id} {error.errno}"
