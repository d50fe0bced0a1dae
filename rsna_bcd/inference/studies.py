"""Predict studies: DICOM files without a table, one study after the other, with quality flags.

Each file is decoded once: the predicted crop is also the one of its picture. It is freed with its
study, so that memory does not grow with the number of files.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rsna_bcd.imaging.headers import machine_name
from rsna_bcd.imaging.quality import QualityFlag, split_flags
from rsna_bcd.inference.ensembling import predict_breasts
from rsna_bcd.inference.run import Run
from rsna_bcd.inference.saliency import explain_breast
from rsna_bcd.inference.stream import BreastPrediction, InferenceSettings, Prediction, predict
from rsna_bcd.preparation.crop import PreparedImage
from rsna_bcd.scoring.ensemble import Ensemble
from rsna_bcd.tables.from_headers import UNKNOWN_SIDE
from rsna_bcd.tables.study_results import QUALITY_FLAGS, BreastResult, ImageResult
from rsna_bcd.tables.views import excluded_images

_STANDARD_VIEWS = ("CC", "MLO")
_HEADER_FACTS = (
    "view_header", "age", "machine", "manufacturer", "presentation", "rows", "columns",
)  # fmt: skip
_CROP_FACTS = (
    "breast_found", "flipped", "rotated", "box_left", "box_top", "box_width", "box_height",
    "window",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """The images of one study, and their predictions.

    Attributes:
        images: rows of the table.
        by_image: predictions by `image_id`.
        by_breast: one per breast with a readable image, if there is a run of breast level.
    """

    images: pd.DataFrame
    by_image: Mapping[str, Prediction]
    by_breast: Sequence[BreastPrediction]

    @property
    def prepared(self) -> dict[str, PreparedImage]:
        """Crops of the readable images, by `image_id`."""
        return {i: p.prepared for i, p in self.by_image.items() if p.prepared is not None}


def predict_studies(
    images: pd.DataFrame,
    files: Mapping[str, Path],
    runs: Sequence[Run],
    settings: InferenceSettings,
) -> Iterator[Study]:
    """Predict DICOM files, and yield each study as soon as it is complete.

    Args:
        images: as of `stream.predict`; a `patient_id` is a study.
        files: of all images, by `image_id`.
        runs: trained networks.
        settings: with a `kept_crop`.

    Raises:
        InputError: the table lacks a column that a run takes.
    """
    rows = {str(study): own for study, own in images.groupby("patient_id")}
    has_breast_level = any(run.level == "breast" for run in runs)
    study_of_image = dict(zip(images["image_id"], images["patient_id"], strict=True))
    study_of_breast = dict(zip(images["prediction_id"], images["patient_id"], strict=True))
    by_image: dict[str, dict[str, Prediction]] = {}
    by_breast: dict[str, list[BreastPrediction]] = {}
    for prediction in predict(images, files, runs, settings):
        if isinstance(prediction, Prediction):
            study = study_of_image[prediction.image_id]
            by_image.setdefault(study, {})[prediction.image_id] = prediction
        else:
            study = study_of_breast[prediction.prediction_id]
            by_breast.setdefault(study, []).append(prediction)
        own = rows[study]
        if len(by_image.get(study, {})) < len(own):
            continue
        complete = Study(own, by_image[study], by_breast.get(study, []))
        if has_breast_level:
            readable = own.loc[own["image_id"].isin(list(complete.prepared)), "prediction_id"]
            if len(complete.by_breast) < readable.nunique():
                continue
        del by_image[study]
        by_breast.pop(study, None)
        yield complete
    assert not by_image, "a study is incomplete"


def mean_saliency(runs: Sequence[Run], study: Study) -> dict[str, NDArray[np.floating[Any]]]:
    """The mean saliency of the folds of one member, whose crops the study holds.

    Returns:
        By `image_id`, (h, w) in [0, 1] over the whole crop. 1 is the largest value of the breast:
        images compare within a breast, breasts do not. Images that no run takes are absent.
    """
    images = study.images
    crops = {image_id: prepared.pixels for image_id, prepared in study.prepared.items()}
    excluded = excluded_images(images[images["image_id"].isin(list(crops))])
    deciding = {image_id: crop for image_id, crop in crops.items() if image_id not in excluded}
    saliency: dict[str, NDArray[np.floating[Any]]] = {}
    for breast in images["prediction_id"].unique():
        maps: dict[str, list[NDArray[np.floating[Any]]]] = {}
        for run in runs:
            taken = crops if run.level == "image" else deciding
            for image in explain_breast(run, images, breast, taken):
                if image.saliency is not None:
                    maps.setdefault(image.image_id, []).append(image.saliency)
        means = {image_id: np.mean(own, axis=0) for image_id, own in maps.items()}
        largest = max((float(mean.max()) for mean in means.values()), default=0.0)
        saliency |= {image_id: mean / (largest or 1.0) for image_id, mean in means.items()}
    return saliency


def study_results(
    study: Study,
    headers: Mapping[str, Mapping[str, Any]],
    ensemble: Ensemble,
    members: Sequence[Sequence[Run]],
    *,
    is_synthetic: bool,
) -> list[BreastResult]:
    """Blend and decide the breasts of a study, and flag causes of a less reliable result.

    Args:
        study: from `predict_studies`, by all runs of all members.
        headers: of its files, by `image_id`.
        ensemble: decides each breast by its fitted threshold, whatever its policy.
        members: the runs of the folds of each.
        is_synthetic: whether they were trained on synthetic mammograms.
    """
    runs = [run for member in members for run in member]
    common_flags = model_flags(runs, is_synthetic=is_synthetic)
    images, by_image, prepared = study.images, study.by_image, study.prepared
    breasts = predict_breasts(ensemble, members, images, list(by_image.values()), study.by_breast)
    by_breast = {str(row["prediction_id"]): row for row in breasts.to_dict("records")}
    excluded = excluded_images(images[images["image_id"].isin(list(prepared))])
    results = []
    for breast, rows in images.groupby("prediction_id", sort=False):
        image_results = []
        for row in rows.to_dict("records"):
            file = row["image_id"]
            image = _image_result(row, headers[file], by_image[file], runs, file not in excluded)
            probability = _image_probability(ensemble, members, by_image[file])
            image_results.append(replace(image, probability=probability))
        row = by_breast[str(breast)]
        is_readable = row["unread"] == 0
        probability = float(row["probability"])
        deciding = rows[~rows["image_id"].isin(excluded)]
        flags = breast_flags(
            deciding,
            [image.flags for image in image_results if image.decides] if is_readable else [],
            probability,
            ensemble,
            common_flags,
            has_excluded=len(deciding) < len(rows),
        )
        first = rows.iloc[0]
        calibrated = float(row["calibrated"]) if is_readable and "calibrated" in row else None
        results.append(
            BreastResult(
                prediction_id=str(breast),
                patient_id=str(first["patient"]),
                examination=int(first["examination"]),
                laterality=str(first["laterality"]),
                probability=probability if is_readable else None,
                threshold=ensemble.threshold,
                calibrated=calibrated,
                decision=("positive" if row["cancer"] else "negative") if is_readable else None,
                flags=flags,
                images=image_results,
            )
        )
    return results


def _image_result(
    row: Mapping[Any, Any],
    header: Mapping[str, Any],
    prediction: Prediction,
    runs: Sequence[Run],
    decides: bool,
) -> ImageResult:
    """The result for one image, without its probability."""
    prepared = prediction.prepared
    record = {} if prepared is None else prepared.record
    flags: list[str] = []
    if prepared is not None:
        quality = split_flags(str(record.get("quality_flags") or ""))
        flags = image_flags(row, quality, runs, breast_found=record.get("breast_found") == 1)
        if not decides:
            flags = [flag for flag in QUALITY_FLAGS if flag in {*flags, "view left out"}]
    return ImageResult(
        file=str(row["image_id"]),
        view=None if pd.isna(row["view"]) else str(row["view"]),
        probability=None,
        decides=prepared is not None and decides,
        flags=flags,
        reason=None if prepared is not None else prediction.reason,
        facts={key: header[key] for key in _HEADER_FACTS}
        | {key: record.get(key) for key in _CROP_FACTS},
    )


def _image_probability(
    ensemble: Ensemble, members: Sequence[Sequence[Run]], prediction: Prediction
) -> float | None:
    """The blend for one image; None if a run gives it no finite value."""
    if prediction.probabilities is None or not np.isfinite(prediction.probabilities).all():
        return None
    ends = np.cumsum([len(member) for member in members])[:-1]
    by_member = [[folds.mean()] for folds in np.split(prediction.probabilities, ends)]
    return float(ensemble.combine(by_member)[0])


def image_flags(
    row: Mapping[str, Any], flags: Iterable[QualityFlag], runs: Sequence[Run], *, breast_found: bool
) -> list[str]:
    """Quality flags of one readable image, in the order of `QUALITY_FLAGS`.

    Args:
        row: from `images_from_headers`.
        flags: of its header and its pixels.
        runs: all networks.
        breast_found: whether the crop is of a breast, not the whole frame.
    """
    view = None if pd.isna(row["view"]) else str(row["view"])
    machine = None if pd.isna(row["machine_id"]) else str(row["machine_id"])
    inputs = {name for run in runs if run.metadata is not None for name in run.metadata.columns}
    holds = {
        "no breast found": not breast_found,
        **{str(flag): True for flag in flags},
        "unseen machine": machine is not None
        and any(
            _model(machine) not in {_model(known) for known in run.seen["machine_id"]}
            for run in runs
            if _names_models(run)
        ),
        "unseen view": view is not None
        and any(view not in run.seen["view"] for run in runs if "view" in run.seen),
        "side unknown": row["laterality"] == UNKNOWN_SIDE,
        "view unknown": view is None,
        "patient unknown": not row["patient_named"],
        "facts missing": any(pd.isna(row[name]) for name in inputs),
    }
    return [flag for flag in QUALITY_FLAGS if holds.get(flag)]


def breast_flags(
    images: pd.DataFrame,
    flags_by_image: Sequence[Sequence[str]],
    probability: float,
    ensemble: Ensemble,
    common_flags: Sequence[str] = (),
    *,
    has_excluded: bool = False,
) -> list[str]:
    """Quality flags of one breast, in the order of `QUALITY_FLAGS`.

    Args:
        images: its rows of the table, unreadable ones included, without those that do not decide.
        flags_by_image: of each readable one of these.
        probability: of the blend.
        ensemble: with its plateau.
        common_flags: of all predictions.
        has_excluded: whether it has images that do not decide.
    """
    if not flags_by_image:
        return ["not read"]
    views = set(images["view"].dropna())
    n_readable, plateau = len(flags_by_image), ensemble.plateau
    found = {*common_flags, *(flag for flags in flags_by_image for flag in flags)}
    if n_readable < len(images):
        found.add("image not read")
    if has_excluded:
        found.add("view left out")
    if plateau.low <= probability <= plateau.high and plateau.low < plateau.high:
        found.add("near the threshold")
    # If the side is unknown, so are the other images of the breast.
    all_known = not images["view"].isna().any() and n_readable == len(images)
    if all_known and not (images["laterality"] == UNKNOWN_SIDE).any():
        found |= {f"no {view}" for view in _STANDARD_VIEWS if view not in views}
    return [flag for flag in QUALITY_FLAGS if flag in found]


def model_flags(runs: Sequence[Run], *, is_synthetic: bool) -> list[str]:
    """Quality flags of all predictions for DICOM files, in the order of `QUALITY_FLAGS`."""
    from_pictures = any(run.source != "dicom" for run in runs)
    holds = {"synthetic model": is_synthetic, "trained on pictures": from_pictures}
    return [flag for flag in QUALITY_FLAGS if holds.get(flag)]


def model_notes(ensemble: Ensemble, runs: Sequence[Run]) -> list[str]:
    """Sentences about an ensemble and all its runs that hold for all results."""
    notes = []
    if not all(_names_models(run) for run in runs):
        known = all("machine_id" in run.seen for run in runs)
        why = "it has numbers for them, headers names" if known else "it kept no list of them"
        notes.append(f"Whether a machine is in the training of the model is unknown: {why}.")
    if ensemble.policy == "recall_rate":
        notes.append(
            "The ensemble keeps a recall rate on a whole test set; here each breast is decided by "
            "the fitted threshold, whatever else is in the folder."
        )
    if ensemble.thresholds.sites:
        notes.append("Sites have thresholds of their own, but no header names a site of training.")
    return notes


def _names_models(run: Run) -> bool:
    """Whether the machines of a run's training have names, as they have in headers."""
    return any(not machine.isdigit() for machine in run.seen.get("machine_id", ()))


def _model(machine: str) -> str:
    """A model without case, blanks and version, for comparison."""
    return re.sub(r"[\W_]+", "", machine_name(machine) or "").lower()
