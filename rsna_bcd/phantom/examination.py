"""All images of one patient: breasts, lesions, views, machine, files."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from rsna_bcd.phantom.anatomy import project, sample_breast
from rsna_bcd.phantom.competition import INVASIVE_SHARE
from rsna_bcd.phantom.lesions import Circle, Finding, plant, sample_findings
from rsna_bcd.phantom.scanner import MACHINES, choose_detector, expose, matrix, write_dicom

LESION_COLUMNS = (
    "prediction_id", "image_id", "kind", "center_x", "center_y", "radius", "box_left", "box_top",
    "box_width", "box_height",
)  # fmt: skip
_NAMES = {"mass": "spiculated_mass", "calcifications": "calcification_cluster"}


@dataclass(frozen=True)
class Appearance:
    """Appearance and difficulty of the images.

    Attributes:
        pixel_mm: pixel spacing, mm; 0.05 to 0.1 in reality.
        radius_mm: mean radius of masses and clusters, without spicules.
        contrast: brightness of a mass over its surroundings, of a range of 1.
        lookalikes: share of negative breasts with look-alikes of cancers.
        lesion_views: `both`, or `one`: each cancer is seen either from above or from the side.
    """

    pixel_mm: float
    radius_mm: float
    contrast: float
    lookalikes: float
    lesion_views: Literal["both", "one"]


@dataclass(frozen=True)
class Examination:
    """A patient's visit.

    Attributes:
        images: the patient's rows of `sample_images`.
        folder: `<data>/<split>_images`.
        appearance: of the images.
        seed: of the competition; it and the patient's number determine everything that is drawn.
    """

    images: pd.DataFrame
    folder: Path
    appearance: Appearance
    seed: int


def examine(examination: Examination) -> list[dict[str, Any]]:
    """Make the DICOM files of one patient; one record per cancer and image, `LESION_COLUMNS`."""
    appearance, images = examination.appearance, examination.images
    patient = int(images["patient_id"].iloc[0])
    machine = MACHINES[int(images["machine_id"].iloc[0])]
    rng = np.random.default_rng([examination.seed, 1, patient])
    size = float(rng.standard_normal())
    detector = choose_detector(machine, size)
    shape = matrix(detector, appearance.pixel_mm)
    syntax = JPEG2000Lossless if rng.random() < 0.5 else JPEGLosslessSV1
    folder = examination.folder / str(patient)
    folder.mkdir(parents=True, exist_ok=True)
    lesions = []
    for laterality, rows in images.groupby("laterality"):
        first = rows.iloc[0]
        breast = sample_breast(size, first["parenchyma"], bool(first["implant"]), rng)
        cancer = bool(first["cancer"])
        invasive = bool(first["invasive"]) if cancer else rng.random() < INVASIVE_SHARE
        findings = sample_findings(
            breast, cancer, invasive, appearance.radius_mm, appearance.contrast, rng
        )
        if not cancer and rng.random() >= appearance.lookalikes:
            findings = []
        unseen_side = bool(rng.integers(2)) if appearance.lesion_views == "one" else None
        for row in rows.to_dict("records"):
            projection = project(breast, row["view"], shape, detector.height_mm / shape[0], rng)
            planted = [
                (finding, plant(projection, finding))
                for finding in findings
                if projection.from_side != unseen_side
            ]
            exposure = expose(projection, shape[1], machine, str(laterality), row["view"], rng)
            image_id = str(row["image_id"])
            write_dicom(
                folder / f"{image_id}.dcm", exposure.pixels, exposure.header, str(patient),
                image_id, syntax,
            )  # fmt: skip
            lesions += [
                _record(row, finding, circle, shape, exposure.mirrored)
                for finding, circle in planted
                if finding.malignant
            ]
    return lesions


def _record(
    row: Mapping[Hashable, Any],
    finding: Finding,
    circle: Circle,
    shape: tuple[int, int],
    mirrored: bool,
) -> dict[str, Any]:
    """Describe a lesion in pixels of the stored image."""
    x = shape[1] - 1 - circle.x if mirrored else circle.x
    left, right = max(0, int(x - circle.radius)), min(shape[1], int(x + circle.radius) + 1)
    top, bottom = int(circle.y - circle.radius), int(circle.y + circle.radius) + 1
    top, bottom = max(0, top), min(shape[0], bottom)
    values = (
        row["prediction_id"], row["image_id"], _NAMES[finding.kind], round(x, 2),
        round(circle.y, 2), round(circle.radius, 2), left, top, right - left, bottom - top,
    )  # fmt: skip
    return dict(zip(LESION_COLUMNS, values, strict=True))
