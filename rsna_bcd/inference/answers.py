"""From what networks say of an examination to answers about its breasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rsna_bcd.imaging.quality import split_flags
from rsna_bcd.inference import doubts
from rsna_bcd.inference.ensembling import predict_breasts
from rsna_bcd.scoring.ensembles import Ensemble
from rsna_bcd.tables.answers import DOUBTS, BreastAnswer, Decision, ImageAnswer
from rsna_bcd.tables.views import left_out

if TYPE_CHECKING:  # these need torch, which the processes that decode must not import
    from rsna_bcd.inference.examinations import Examination
    from rsna_bcd.inference.runs import Run
    from rsna_bcd.inference.stream import Prediction


_BOX = ("box_left", "box_top", "box_width", "box_height")


def answers_of(
    examination: Examination,
    headers: Mapping[str, Mapping[str, Any]],
    ensemble: Ensemble,
    members: Sequence[Sequence[Run]],
    *,
    made_up: bool,
) -> list[BreastAnswer]:
    """Blend, decide and doubt the breasts of an examination.

    Args:
        examination: from `predict_examinations`, by all runs of all members.
        headers: of its files, by `image_id`.
        ensemble: decides each breast by itself: by its fitted threshold, whatever its policy.
        members: of each, the runs of its folds.
        made_up: whether they were trained on synthetic mammograms.
    """
    of_all = doubts.of_model(runs := [run for member in members for run in member], made_up=made_up)
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
                doubts=doubts.of_breast(
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
    examination: Examination,
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
    kinds = doubts.of_image(row, flags, runs, breast_found=found)
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
