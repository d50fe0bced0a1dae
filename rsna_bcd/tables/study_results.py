"""Results of a study: probabilities, decisions and quality flags of its breasts and images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

NO_DEVICE = "No medical device: for research only, not validated for the care of patients."

Decision = Literal["positive", "negative"]
_KEYS = {"flags": "doubts"}  # of predictions.json, where they differ from the attributes

# Each continues the sentence of its name. In the order of display.
QUALITY_FLAGS = {
    "synthetic model": "trained on mammograms made by a computer: it knows nothing of real ones",
    "trained on pictures": "not on DICOM files: the threshold above all may not carry over",
    "not read": "none of its images could be read: there is no prediction",
    "view left out": "it has no part in the result: the breast has standard views",
    "image not read": "the prediction is from the other images of the breast",
    "near the threshold": "thresholds on either side did as well out of fold: the decision is open",
    "no breast found": "none stood out from the background: the whole frame was used",
    "no window": "the header has none: the grey scale was fitted to the tissue",
    "window discarded": "a window does not fit its pixels: another grey scale was used",
    "lookup table discarded": "the header's table is damaged: another grey scale was used",
    "inversion contradictory": "the header contradicts itself on which end of the scale is bright",
    "orientation contradictory": "header and pixels disagree on which side the chest wall is",
    "spot compression": "shows a part of the breast under local pressure",
    "magnification": "shows a part of the breast, enlarged",
    "needle localization": "shows a wire or needle before an operation",
    "specimen": "shows tissue that was removed",
    "stereotactic or biopsy": "taken to guide a needle",
    "for processing": "values of the detector; networks learn from images for presentation",
    "synthetic 2D": "computed from a tomosynthesis, not exposed by itself",
    "digitized film": "scanned from film; networks learn from digital mammograms",
    "not said to be a mammogram": "the header names no modality, class or body part that says so",
    "laterality contradictory": "fields of the header name different sides",
    "view contradictory": "fields of the header name different views",
    "unseen machine": "the networks were not trained on images of this model",
    "unseen view": "the networks were not trained on this view",
    "side unknown": "the header names no side, so the image counts as a breast of its own",
    "view unknown": "the header names no view that is known here",
    "no CC": "the breast has no craniocaudal view",
    "no MLO": "the breast has no mediolateral oblique view",
    "patient unknown": "none is named: the images of one folder are taken for one patient's",
    "facts missing": "networks are given facts of the patient or machine that the header lacks",
}


@dataclass(frozen=True)
class ImageResult:
    """The result of one image.

    Attributes:
        file: as it was given.
        view: None where it is unknown.
        probability: of the image by itself; None where networks look at whole breasts, or where it
            could not be read.
        flags: keys of `QUALITY_FLAGS`.
        reason: why it could not be read; None where it was.
        facts: of its header and its crop.
        decides: whether it contributes to its breast: it is readable, and no
            supplemental view of a breast that has standard ones.
    """

    file: str
    view: str | None
    probability: float | None
    flags: list[str]
    reason: str | None
    facts: dict[str, Any]
    decides: bool = True


@dataclass(frozen=True)
class BreastResult:
    """The result of one breast.

    Attributes:
        prediction_id: the breast.
        patient_id: as the header, or the folder, calls the patient.
        examination: which of the patient's, in the order in which they were found.
        laterality: L, R or `unknown`.
        probability: of the blend; None if nothing could be read.
        threshold: at or above which the blend is called positive.
        calibrated: of the same, where the ensemble is calibrated.
        decision: None if nothing could be read.
        flags: keys of `QUALITY_FLAGS`, those of the images that decide included.
        images: in the order of the table.
    """

    prediction_id: str
    patient_id: str
    examination: int
    laterality: str
    probability: float | None
    threshold: float
    calibrated: float | None
    decision: Decision | None
    flags: list[str]
    images: list[ImageResult]


def as_record(result: BreastResult) -> dict[str, Any]:
    """The result as in `predictions.json`."""
    return asdict(result, dict_factory=lambda items: {_KEYS.get(k, k): v for k, v in items})


def breasts_table(results: Sequence[BreastResult]) -> pd.DataFrame:
    """One row per breast, for `breasts.csv`; lists in one cell, parted by `; `.

    Views in brackets have no part in the result.
    """
    calibrates = any(result.calibrated is not None for result in results)
    return pd.DataFrame(
        {
            "prediction_id": result.prediction_id,
            "patient_id": result.patient_id,
            "examination": result.examination,
            "laterality": result.laterality,
            "views": views_text(result),
            "probability": result.probability,
            **({"calibrated": result.calibrated} if calibrates else {}),
            "threshold": result.threshold,
            "decision": result.decision,
            "doubts": "; ".join(result.flags),
        }
        for result in results
    )


def views_text(result: BreastResult) -> str:
    """The views of a breast, `?` where one is unknown, in brackets where it does not decide."""
    views = [image.view or "?" for image in result.images]
    return " ".join(
        view if image.decides or image.reason is not None else f"({view})"
        for view, image in zip(views, result.images, strict=True)
    )


def images_table(results: Sequence[BreastResult], pictures: Mapping[str, str]) -> pd.DataFrame:
    """One row per image, for `images.csv`; `pictures` says by file where its picture is."""
    return pd.DataFrame(
        {
            "file": image.file,
            "prediction_id": result.prediction_id,
            "patient_id": result.patient_id,
            "laterality": result.laterality,
            "view": image.view,
            "probability": image.probability,
            "decides": int(image.decides),
            "doubts": "; ".join(image.flags),
            "picture": pictures.get(image.file),
            **image.facts,
        }
        for result in results
        for image in result.images
    )
