"""Predict studies: DICOM files without a table, one study after the other."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.imaging.crops import Crop
from rsna_bcd.imaging.headers import machine_name
from rsna_bcd.imaging.quality import QualityFlag, split_flags
from rsna_bcd.inference.deadline import StageTimer
from rsna_bcd.inference.ensembling import predict_breasts
from rsna_bcd.inference.run import Run
from rsna_bcd.inference.saliency import look
from rsna_bcd.inference.stream import (
    BreastPrediction,
    Decoded,
    Prediction,
    crops_of,
    predict_decoded,
)
from rsna_bcd.preparation import engine
from rsna_bcd.preparation.crop import CropSettings, CropsTask, PreparedImage, prepare_images
from rsna_bcd.scoring.ensemble import Ensemble
from rsna_bcd.tables.answers import DOUBTS, BreastAnswer, Decision, ImageAnswer
from rsna_bcd.tables.from_headers import UNKNOWN_SIDE
from rsna_bcd.tables.views import left_out


@dataclass(frozen=True)
class Study:
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


def predict_studies(
    images: pd.DataFrame,
    files: Mapping[str, Path],
    runs: Sequence[Run],
    shown: CropSettings,
    *,
    batch_size: int,
    workers: int,
    ahead: int,
) -> Iterator[Study]:
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
            until=math.inf, spent=StageTimer(),
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

    def add(self, prediction: Prediction | BreastPrediction) -> Iterator[Study]:
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
        yield Study(
            rows,
            tuple(self._by_image.pop(patient)),
            tuple(self._by_breast.pop(patient, [])),
            {image_id: self.prepared.pop(image_id) for image_id in read["image_id"]},
        )


def saliency_of(runs: Sequence[Run], examination: Study) -> dict[str, NDArray[np.floating[Any]]]:
    """Where runs look, in the mean.

    Args:
        runs: folds of one member, whose crops the examination holds.
        examination: from `predict_studies`.

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


_BOX = ("box_left", "box_top", "box_width", "box_height")


def study_results(
    examination: Study,
    headers: Mapping[str, Mapping[str, Any]],
    ensemble: Ensemble,
    members: Sequence[Sequence[Run]],
    *,
    made_up: bool,
) -> list[BreastAnswer]:
    """Blend, decide and doubt the breasts of an examination.

    Args:
        examination: from `predict_studies`, by all runs of all members.
        headers: of its files, by `image_id`.
        ensemble: decides each breast by itself: by its fitted threshold, whatever its policy.
        members: of each, the runs of its folds.
        made_up: whether they were trained on synthetic mammograms.
    """
    of_all = model_flags(runs := [run for member in members for run in member], made_up=made_up)
    images = examination.images
    breasts = predict_breasts(
        ensemble, members, images, examination.by_image, examination.by_breast
    )
    said_of = {str(row["prediction_id"]): row for row in breasts.to_dict("records")}
    by_image = {prediction.image_id: prediction for prediction in examination.by_image}
    dropped = left_out(images[images["image_id"].isin(list(examination.prepared))])
    answers = []
    for breast, rows in images.groupby("prediction_id", sort=False):
        of_images = [
            _of_image(
                row,
                headers[row["image_id"]],
                by_image,
                examination,
                ensemble,
                members,
                runs,
                decides=row["image_id"] not in dropped,
            )
            for row in rows.to_dict("records")
        ]
        said = said_of[str(breast)]
        is_read = said["unread"] == 0
        probability = float(said["probability"])
        read = [image.doubts for image in of_images if image.decides] if is_read else []
        deciding = rows[~rows["image_id"].isin(dropped)]
        first = rows.iloc[0]
        decision: Decision = "positive" if said["cancer"] else "negative"
        answers.append(
            BreastAnswer(
                prediction_id=str(breast),
                patient_id=str(first["patient"]),
                examination=int(first["examination"]),
                laterality=str(first["laterality"]),
                probability=probability if is_read else None,
                threshold=ensemble.threshold,
                calibrated=float(said["calibrated"]) if is_read and "calibrated" in said else None,
                decision=decision if is_read else None,
                doubts=breast_flags(
                    deciding,
                    read,
                    probability,
                    ensemble,
                    of_all,
                    views_left_out=len(deciding) < len(rows),
                ),
                images=of_images,
            )
        )
    return answers


def _of_image(
    row: Mapping[Any, Any],
    header: Mapping[str, Any],
    by_image: Mapping[str, Prediction],
    examination: Study,
    ensemble: Ensemble,
    members: Sequence[Sequence[Run]],
    runs: Sequence[Run],
    *,
    decides: bool,
) -> ImageAnswer:
    file = str(row["image_id"])
    prepared = examination.prepared.get(file)
    record = {} if prepared is None else prepared.record
    named = ("view_header", "age", "machine", "manufacturer", "presentation", "rows", "columns")
    of_crop = (
        "breast_found",
        "flipped",
        "rotated",
        "box_left",
        "box_top",
        "box_width",
        "box_height",
        "window",
    )
    found = record.get("breast_found") == 1
    flags = split_flags(str(record.get("quality_flags") or ""))
    kinds = image_flags(row, flags, runs, breast_found=found)
    own = kinds if decides else [kind for kind in DOUBTS if kind in {*kinds, "view left out"}]
    return ImageAnswer(
        file=file,
        view=None if pd.isna(row["view"]) else str(row["view"]),
        probability=_alone(ensemble, members, by_image[file]),
        decides=prepared is not None and decides,
        doubts=[] if prepared is None else own,
        reason=None if prepared is not None else by_image[file].reason,
        facts={key: header[key] for key in named} | {key: record.get(key) for key in of_crop},
    )


def _alone(
    ensemble: Ensemble, members: Sequence[Sequence[Run]], prediction: Prediction
) -> float | None:
    """The blend of what all networks say of one image; None where not all said something."""
    if prediction.probabilities is None or not np.isfinite(prediction.probabilities).all():
        return None
    ends = np.cumsum([len(member) for member in members])[:-1]
    by_member = [[folds.mean()] for folds in np.split(prediction.probabilities, ends)]
    return float(ensemble.combine(by_member)[0])


_STANDARD_VIEWS = ("CC", "MLO")


def image_flags(
    row: Mapping[str, Any], flags: Iterable[QualityFlag], runs: Sequence[Run], *, breast_found: bool
) -> list[str]:
    """Doubts about one image that could be read.

    Args:
        row: of the table from `images_from_headers`.
        flags: quality flags of its header and its pixels.
        runs: all networks; what one of them has not seen is doubtful.
        breast_found: whether the crop is of a breast, and not the whole frame.

    Returns:
        Keys of `DOUBTS`, in its order.
    """
    view = None if pd.isna(row["view"]) else str(row["view"])
    machine = None if pd.isna(row["machine_id"]) else str(row["machine_id"])
    given = {name for run in runs if run.metadata is not None for name in run.metadata.columns}
    holds = {
        "no breast found": not breast_found,
        **{str(flag): True for flag in flags},
        "unseen machine": machine is not None
        and any(_model(machine) not in _models_seen(run) for run in runs if names_models(run)),
        "unseen view": view is not None
        and any(view not in run.seen["view"] for run in runs if "view" in run.seen),
        "side unknown": row["laterality"] == UNKNOWN_SIDE,
        "view unknown": view is None,
        "patient unknown": not row["patient_named"],
        "facts missing": any(pd.isna(row[name]) for name in given),
    }
    return [kind for kind in DOUBTS if holds.get(kind)]


def breast_flags(
    images: pd.DataFrame,
    of_images: Sequence[Sequence[str]],
    probability: float,
    ensemble: Ensemble,
    of_model: Sequence[str] = (),
    *,
    views_left_out: bool = False,
) -> list[str]:
    """Doubts about one breast.

    Args:
        images: its rows of the table, those of unreadable images included, without those that do
            not decide about it.
        of_images: doubts about each of these that could be read.
        probability: of the blend.
        ensemble: that gave it.
        of_model: doubts about all that it says.
        views_left_out: whether there are images that do not decide.

    Returns:
        Keys of `DOUBTS`, in its order.
    """
    if not of_images:
        return ["not read"]
    views = set(images["view"].dropna())
    all_known = not images["view"].isna().any() and len(of_images) == len(images)
    plateau = ensemble.plateau
    found = {*of_model, *(kind for of_image in of_images for kind in of_image)}
    if len(of_images) < len(images):
        found.add("image not read")
    if views_left_out:
        found.add("view left out")
    if plateau.low <= probability <= plateau.high and plateau.low < plateau.high:
        found.add("near the threshold")
    # Of an image whose side is unknown, nobody knows which others belong to it.
    if all_known and not (images["laterality"] == UNKNOWN_SIDE).any():
        found |= {f"no {view}" for view in _STANDARD_VIEWS if view not in views}
    return [kind for kind in DOUBTS if kind in found]


def names_models(run: Run) -> bool:
    """Whether the machines that a run has seen have names, which headers have as well."""
    return any(not machine.isdigit() for machine in run.seen.get("machine_id", ()))


def _models_seen(run: Run) -> set[str]:
    """Models that a run was trained on; runs of before have them as their headers had."""
    return {_model(machine) for machine in run.seen["machine_id"]}


def _model(machine: str) -> str:
    """A model for comparing, whatever its case, blanks and version."""
    return re.sub(r"[\W_]+", "", machine_name(machine) or "").lower()


def model_flags(runs: Sequence[Run], *, made_up: bool) -> list[str]:
    """Doubts about all that networks say of DICOM files.

    Args:
        runs: all networks.
        made_up: whether they were trained on synthetic mammograms.

    Returns:
        Keys of `DOUBTS`, in its order.
    """
    holds = {
        "synthetic model": made_up,
        "trained on pictures": any(run.source != "dicom" for run in runs),
    }
    return [kind for kind in DOUBTS if holds.get(kind)]


def model_notes(ensemble: Ensemble, runs: Sequence[Run]) -> list[str]:
    """What one should know of all answers alike, in sentences.

    Args:
        ensemble: with its threshold.
        runs: all its networks.
    """
    notes = []
    if not all(names_models(run) for run in runs):
        known = all("machine_id" in run.seen for run in runs)
        why = "it knows them by numbers, headers by names" if known else "it kept no list of them"
        notes.append(f"Whether the model has seen a machine in training cannot be told: {why}.")
    if ensemble.policy == "recall_rate":
        notes.append(
            "The ensemble keeps a recall rate on a whole test set; here each breast is decided by "
            "the fitted threshold, whatever else is in the folder."
        )
    if ensemble.thresholds.sites:
        notes.append("Sites have thresholds of their own, but no header names a site of training.")
    return notes
