"""Predictions on disk: a process that was killed resumes where it was.

The first line is the fingerprint of all inputs; the last `plan` says how predictions are made; the
others are one per image or breast, with null for NaN.

```
{"made_from": {"networks": "1f3a...", ...}}
{"plan": {"tta": null, "dropped": []}}
{"image": "1", "probabilities": [0.1, null], "reason": null}
{"breast": "1_L", "probabilities": [null, 0.2], "reason": null}
```

Lines are only appended, each with one system call: after `kill -9` all but the last are complete,
and an incomplete last line is cut off.
"""

import errno
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_bcd.errors import InputError, difference
from rsna_bcd.files import (
    locked,
    parts_sha256,
    read_json_lines,
    storage_error,
    version_stamp,
)
from rsna_bcd.inference.run import Run
from rsna_bcd.inference.stream import BreastPrediction, Prediction
from rsna_bcd.models.checkpoint import weights_sha256
from rsna_bcd.targets import OLD_TTA

Fingerprint = dict[str, str]
Plan = dict[str, Any]

_ELSEWHERE = "Choose another submission_dir=..."


class Progress:
    """The progress file of one test set; made by `open_progress`.

    Attributes:
        by_image: predictions by `image_id`.
        by_breast: predictions by `prediction_id`.
        plan: how they are made; empty until it is set.
        is_new: whether it started with this process.
        start: name of the start from scratch; None in a file of an older version.

    With `overwrite`, earlier predictions stay in the file until the first new one is made: what
    stops a process before that costs nothing.
    """

    def __init__(self, handle: int, file: Path, inputs: Fingerprint, *, overwrite: bool) -> None:
        self._handle, self._file, self._inputs = handle, file, inputs
        self.by_image: dict[str, Prediction] = {}
        self.by_breast: dict[str, BreastPrediction] = {}
        self.plan: Plan = {}
        self.start: str | None = None
        before = self._read()
        if before and before != inputs and not overwrite:
            there, now = ({k: v[:8] for k, v in one.items()} for one in (before, inputs))  # hashes
            differing = "\n".join(f"  {line}" for line in difference(there, now))
            raise InputError(
                f"{file.parent} was made with other inputs or settings (there -> now):\n"
                f"{differing}\n{_ELSEWHERE}, or make it again with overwrite=true."
            )
        self.is_new = overwrite or not before
        self._has_header = not self.is_new
        if self.is_new:
            self.by_image, self.by_breast, self.plan = {}, {}, {}

    def add(self, prediction: Prediction | BreastPrediction) -> None:
        """Append a prediction; a `StorageError` if it cannot be written."""
        if isinstance(prediction, Prediction):
            self.by_image[prediction.image_id] = prediction
            entry: dict[str, Any] = {"image": prediction.image_id}
        else:
            self.by_breast[prediction.prediction_id] = prediction
            entry = {"breast": prediction.prediction_id}
        values = prediction.probabilities
        plain = None if values is None else [None if math.isnan(v) else v for v in values.tolist()]
        self._append({**entry, "probabilities": plain, "reason": prediction.reason})

    def set_plan(self, plan: Plan) -> None:
        """Append how predictions are made from now on; a `StorageError` if it cannot be written."""
        self.plan = plan
        self._append({"plan": plan})

    def remaining(
        self, images: pd.DataFrame, files: Mapping[str, Path], *, by_patient: bool
    ) -> dict[str, Path]:
        """The files that are still to be predicted; incomplete predictions are forgotten.

        With runs of breast level (`by_patient`), a patient with an image or a breast without a
        prediction is predicted again.
        """
        left = {image_id for image_id in files if image_id not in self.by_image}
        if by_patient:
            rows = images[images["image_id"].isin(list(files))]
            is_readable = [
                image_id in self.by_image and self.by_image[image_id].probabilities is not None
                for image_id in rows["image_id"]
            ]
            lacks_breast = pd.Series(is_readable, rows.index) & ~rows["prediction_id"].isin(
                list(self.by_breast)
            )
            patients = rows.loc[lacks_breast | rows["image_id"].isin(list(left)), "patient_id"]
            rows = rows[rows["patient_id"].isin(patients)]
            left = set(rows["image_id"])
            for breast in rows["prediction_id"]:
                self.by_breast.pop(breast, None)
        for image_id in left:
            self.by_image.pop(image_id, None)
        return {image_id: file for image_id, file in files.items() if image_id in left}

    def _append(self, entry: dict[str, Any]) -> None:
        if not self._has_header:
            self._has_header = True
            os.ftruncate(self._handle, 0)
            self.start = uuid.uuid4().hex
            self._append({"made_from": self._inputs, "start": self.start})
        line = (json.dumps(entry, allow_nan=False) + "\n").encode()
        try:
            if os.write(self._handle, line) < len(line):  # part of it went onto a full disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise storage_error(self._file, error) from error

    def _read(self) -> Fingerprint | None:
        """Read the file up to the first damaged line, and cut it off there.

        Returns:
            Its fingerprint; None if it is empty, {} if it is not ours.
        """
        inputs: Fingerprint | None = None

        def read_entry(entry: Any) -> None:
            nonlocal inputs
            if inputs is None:
                inputs, self.start = entry["made_from"], entry.get("start")
            elif "plan" in entry:
                self.plan = entry["plan"]
            else:
                values, reason = entry["probabilities"], entry["reason"]
                # None becomes NaN.
                array = None if values is None else np.array(values, dtype=np.float64)
                if "image" in entry:
                    self.by_image[entry["image"]] = Prediction(entry["image"], array, reason)
                elif array is not None:
                    breast = BreastPrediction(entry["breast"], array, reason)
                    self.by_breast[entry["breast"]] = breast

        is_damaged = read_json_lines(self._file, read_entry, cut_damage=True)
        return {} if inputs is None and is_damaged else inputs


@contextmanager
def open_progress(
    file: Path, inputs: Fingerprint, *, overwrite: bool = False
) -> Iterator[Progress]:
    """Open or create a progress file, and keep other processes out.

    Raises:
        InputError: another process works on it; or it has predictions of other inputs, and not
            `overwrite`.
        StorageError: it cannot be written.
    """
    with locked(file.parent, _ELSEWHERE.lower(), file.name) as handle:
        yield Progress(handle, file, inputs, overwrite=overwrite)


def inputs_fingerprint(
    ensemble_json: Path, runs: Sequence[Run], images: pd.DataFrame, files: Mapping[str, Path]
) -> Fingerprint:
    """Hashes of an ensemble, its runs, a table of images, and the size and time of its files."""
    stamps = []
    for image_id, file in files.items():
        try:
            stamps.append(version_stamp(file, image_id))
        except OSError as error:  # a dangling link: its reader reports it
            stamps.append(f"{image_id} {error.errno}")
    weights = [weights_sha256(run.network.state_dict()) for run in runs]
    former = {tuple(tta): name for name, tta in OLD_TTA.items()}  # files of earlier versions hold
    records = [
        json.dumps(
            {**run.record, "tta": former.get(tuple(run.tta), run.tta)}, sort_keys=True, default=str
        )
        for run in runs
    ]
    return {
        "ensemble": parts_sha256(ensemble_json.read_bytes()),
        "networks": parts_sha256(*(one.encode() for one in weights)),
        "records": parts_sha256(*(record.encode() for record in records)),
        "table": parts_sha256(images.to_csv(index=False).encode()),
        "files": parts_sha256(*(stamp.encode() for stamp in sorted(stamps))),
    }
